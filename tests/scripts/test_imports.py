"""The hot path: what a run of `block` imports comes from a short list (ARCHITECTURE.md)."""

import subprocess
from pathlib import Path

import pytest

from tests.host import PYTHON, Host
from tests.images import make_image

# What a bare interpreter has at its start, which costs nothing more.
ALLOWED = {
    *("sys", "posix", "errno", "time", "stat", "_stat", "fcntl", "_socket", "struct", "_struct", "select", "syslog"),
    *("_signal", "_thread", "gc"),  # parts of every interpreter: alarm, signals, the watch on the time; no collector
}


def imported(error: str) -> set[str]:
    """The modules in the output of -X importtime."""
    return {
        line.rpartition("|")[2].strip()
        for line in error.splitlines()
        if line.startswith("import time:") and "imported package" not in line
    }


@pytest.fixture(scope="module")
def bare() -> set[str]:
    """What the interpreter imports by itself."""
    command = [PYTHON, "-I", "-S", "-X", "importtime", "-c", "pass"]
    return imported(subprocess.run(command, capture_output=True, text=True, check=True).stderr)


@pytest.mark.parametrize("case", ["file", "device", "refused", "missing"])
def test_add_and_remove_import_only_what_is_on_the_list(host: Host, tmp_path: Path, bare: set[str], case: str) -> None:
    image = make_image(tmp_path / "disk.img")
    target = {"file": str(image), "device": "/dev/loop7", "refused": str(image), "missing": "/none"}[case]
    if case == "device":
        target = subprocess.run(
            ["losetup", "--find", "--show", image], check=True, capture_output=True, text=True
        ).stdout.strip()
    if case == "refused":
        host.disk(4, image).add()
    disk = host.disk(5, target)
    for command, status in (("add", case in ("refused", "missing")), ("remove", 0)):
        environment = host.environment() | {"XENBUS_PATH": disk.path.decode()}
        argv = [PYTHON, "-IS", "-X", "importtime", str(host.script), command]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        modules = imported(done.stderr) - bare
        assert "vbdkit.engine.script" in modules
        foreign = {name for name in modules if name.split(".")[0] != "vbdkit"}
        assert foreign - ALLOWED == set()
        if case == "file":
            assert "vbdkit.storage.sentence" not in modules, "words for refusals load on a refusal"
