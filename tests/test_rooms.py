"""The house's plan (ARCHITECTURE.md): a room imports from the rooms above it only, and no module grows too long."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "vbdkit"
ROOMS = {
    "protocol": set(),
    "xenstore": {"protocol"},
    "storage": {"protocol"},
    "platform": {"protocol", "storage"},
    "engine": {"protocol", "xenstore", "storage", "platform"},
    "datapaths": {"protocol", "xenstore", "storage", "platform", "engine"},
    "scripts": {"protocol", "xenstore", "storage", "platform", "engine", "datapaths"},
    "toolstack": {"protocol", "xenstore", "storage", "platform", "engine", "datapaths", "scripts"},
    "cli": {"protocol", "xenstore", "storage", "platform", "engine", "datapaths", "scripts", "toolstack"},
}
# Rooms whose packages stand side by side and know nothing of each other.
APART = {"platform": {"linux", "freebsd", "netbsd"}, "datapaths": {"file", "device", "shell", "custom", "lvm", "nbd"}}
MODULES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> set[tuple[str, ...]]:
    """All vbdkit modules that a module imports, guarded ones included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {tuple(name.split(".")) for name in names if name.split(".")[0] == "vbdkit"}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_imports_only_from_the_rooms_above_it(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0]
    if room not in ROOMS:
        return
    for name in imports(path):
        if len(name) > 1 and name[1] in ROOMS:
            assert name[1] == room or name[1] in ROOMS[room], f"{room} may not import {'.'.join(name)}"


@pytest.mark.parametrize("room", sorted(APART))
def test_systems_and_datapaths_know_nothing_of_each_other(room: str) -> None:
    for path in (SOURCE / room).rglob("*.py"):
        own = path.relative_to(SOURCE / room).parts[0].removesuffix(".py")
        if own in APART[room]:
            for name in imports(path):
                if name[1:2] == (room,) and len(name) > 2:
                    assert name[2] not in APART[room] - {own}, f"{path} imports {'.'.join(name)}"


def test_no_module_is_longer_than_600_lines() -> None:
    repository = SOURCE.parent.parent
    every = [*MODULES, *(repository / "tests").rglob("*.py"), *(repository / "bench").rglob("*.py")]
    assert [path.name for path in every if len(path.read_text().splitlines()) > 600] == []


def test_every_room_is_on_the_plan() -> None:
    plan = (SOURCE.parent.parent / "ARCHITECTURE.md").read_text()
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert rooms == set(ROOMS)
    assert [room for room in rooms if f"`{room}/`" not in plan] == []
