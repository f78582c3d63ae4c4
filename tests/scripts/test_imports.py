"""The hot path: what a run of `block` imports comes from a short list (ARCHITECTURE.md)."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.host import PYTHON, Host
from tests.images import losetup, make_image
from tests.need import need_loop_devices
from tests.platform.models.freebsd import Freebsd
from tests.platform.models.netbsd import Netbsd
from tests.shell.conftest import Scripts
from vbdkit.cli.stub import LIBRARY
from vbdkit.platform import SYSTEMS
from vbdkit.protocol.invocation import build_invocation
from vbdkit.toolstack.netbsd_host import take_away

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


class Machine:
    """A host of one system, with a device that a guest could have."""

    def __init__(self, system: str, folder: Path, socket: Path) -> None:
        need_loop_devices()
        settings: dict[str, bytes] = {}
        self.device = ""
        self.close: Callable[[], object] = lambda: None
        if system == "linux":
            self.device = losetup("--find", "--show", str(make_image(folder / "device.img")))
            self.close = lambda: losetup("-d", self.device)
        elif system == "freebsd":
            freebsd = Freebsd(folder / "model")
            self.device = str(freebsd.disk("ada0", "null"))
            settings = freebsd.place.settings
        else:
            netbsd = Netbsd(folder / "model")
            netbsd.disk("wd0", {"e": (2048, 4096)})
            self.device = str(netbsd.dev / "wd0e")
            self.close = lambda: take_away(netbsd.folder)
            settings = netbsd.settings
        self.host = Host(folder, socket, system, settings=settings)


@pytest.fixture(params=["linux", "freebsd", "netbsd"])
def machine(request: pytest.FixtureRequest, tmp_path: Path, store_socket: Path) -> Iterator[Machine]:
    """Each system in turn."""
    made = Machine(request.param, tmp_path, store_socket)
    yield made
    made.close()
    made.host.close()


@pytest.mark.parametrize("case", ["file", "device", "refused", "missing"])
def test_add_and_remove_import_only_what_is_on_the_list(
    machine: Machine, tmp_path: Path, bare: set[str], case: str
) -> None:
    host, image = machine.host, make_image(tmp_path / "disk.img")
    target = {"file": str(image), "device": machine.device, "refused": str(image), "missing": "/none"}[case]
    if case == "refused":
        assert host.disk(4, image).add().status == 0
    disk = host.disk(5, target)
    for command, status in (("add", case in ("refused", "missing")), ("remove", 0)):
        called, env = build_invocation(host.system, os.fsencode(host.script), command, b"vbd", 5, 51712)
        environment = host.environment() | {os.fsdecode(key): os.fsdecode(value) for key, value in env.items()}
        argv = [PYTHON, "-IS", "-X", "importtime", *map(os.fsdecode, called)]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        modules = imported(done.stderr) - bare
        assert "vbdkit.engine.script" in modules
        foreign = {name for name in modules if name.split(".")[0] != "vbdkit"}
        assert foreign - ALLOWED == set()
        systems = {name.split(".")[2] for name in modules if name.startswith("vbdkit.platform.")}
        assert systems & set(SYSTEMS) == {host.system}, "one system knows nothing of another"
        if case == "file":
            assert "vbdkit.storage.sentence" not in modules, "words for refusals load on a refusal"
    assert disk.nodes().get("hotplug-status") is None


def test_the_shell_librarys_helper_imports_only_what_is_on_the_list(host: Host, bare: set[str], tmp_path: Path) -> None:
    device = losetup("--find", "--show", str(make_image(tmp_path / "disk.img")))
    try:
        scripts = Scripts(host)
        disk = scripts.disk(f'[ "$command" = remove ] || write_dev {device}')
        library = scripts.folder / LIBRARY
        text = library.read_text().replace(" -IS ", " -IS -X importtime ")
        library.write_text(text.replace("/.sh\n", "/none\n"))  # so that each starts its own
        for command in ("add", "remove"):
            done = disk.run(command)
            assert done.status == 0, done.output
            modules = imported(done.output + scripts.log.read_text()) - bare
            assert "vbdkit.scripts.common" in modules
            assert {name for name in modules if name.split(".")[0] != "vbdkit"} - ALLOWED == set()
            assert "vbdkit.engine.deliver" in modules
    finally:
        losetup("-d", device)
