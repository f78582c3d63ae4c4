"""The file that holds a script's modules: used when it fits, ignored when anything differs."""

import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import PYTHON, copy_package
from vbdkit.hot import _ROOTS
from vbdkit.platform import SYSTEMS

PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
import vbdkit.hot
print(vbdkit.hot.load("block", sys.argv[2], "linux"), "vbdkit.engine.script" in sys.modules)
import vbdkit.scripts.block, vbdkit.engine.attach, vbdkit.engine.detach, vbdkit.storage.sentence
print(vbdkit.scripts.block.__file__, vbdkit.engine.__path__, vbdkit.engine.Lock.__name__)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    copy = copy_package(tmp_path)
    subprocess.run([PYTHON, "-IS", copy / "hot.py", "linux"], check=True, capture_output=True)
    return copy


def loads(package: Path, command: str = "add") -> bool:
    """Whether the file is used; the modules must be the package's either way."""
    done = subprocess.run(
        [PYTHON, "-IS", "-c", PROBE, package.parent, command], check=True, capture_output=True, text=True
    )
    used, rest = done.stdout.splitlines()
    assert rest == f"{package}/scripts/block.py ['{package}/engine'] Lock"
    assert used in ("True True", "False False")
    return used == "True True"


def files(package: Path) -> list[Path]:
    return sorted((package / "__pycache__").glob("hot-*"))


@pytest.mark.parametrize("command", ["add", "remove"])
def test_it_is_used(package: Path, command: str) -> None:
    assert len(files(package)) == len(_ROOTS)
    assert loads(package, command)


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_has_all_that_an_add_imports_on_each_system(tmp_path: Path, system: str) -> None:
    """What is left to the import system is what only some runs need."""
    copy = copy_package(tmp_path)
    subprocess.run([PYTHON, "-IS", copy / "hot.py", system], check=True, capture_output=True)
    probe = (
        "import sys; sys.path.insert(0, sys.argv[1]); import vbdkit.hot\n"
        "assert vbdkit.hot.load('block', 'add', sys.argv[2])\n"
        "print(*(name for name in sys.modules if name.startswith('vbdkit.platform.')))"
    )
    command = [str(PYTHON), "-IS", "-c", probe, str(tmp_path), system]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert f"vbdkit.platform.{system}" in loaded
    assert f"vbdkit.platform.{system}.stack" in loaded
    assert {name.split(".")[2] for name in loaded} & set(SYSTEMS) == {system}


def test_it_is_not_used_once_a_source_differs(package: Path) -> None:
    source = package / "engine" / "attach.py"
    source.write_text(source.read_text() + "# changed\n")
    assert not loads(package)
    assert loads(package, "remove"), "which does not need that module"


def test_it_is_not_used_once_a_source_is_gone(package: Path) -> None:
    (package / "protocol" / "mode.py").rename(package / "protocol" / "mode.old")
    (package / "protocol" / "mode.old").replace(package / "protocol" / "mode.py")
    assert loads(package), "a rename alone changes nothing"
    (package / "engine" / "guests.py").touch()
    assert not loads(package)


@pytest.mark.parametrize("damage", [b"", b"x", b"\x00" * 100])
def test_a_damaged_file_is_not_used(package: Path, damage: bytes) -> None:
    for file in files(package):
        file.write_bytes(damage)
    assert not loads(package)


def test_one_that_was_cut_short_is_not_used(package: Path) -> None:
    for file in files(package):
        file.write_bytes(file.read_bytes()[:-1000])
    assert not loads(package)


def test_one_of_another_interpreter_is_not_used(package: Path) -> None:
    import marshal

    for file in files(package):
        (form, version), entries = marshal.loads(file.read_bytes())
        file.write_bytes(marshal.dumps(((form, version + 1), entries)))
    assert not loads(package)
