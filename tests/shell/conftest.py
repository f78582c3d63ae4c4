"""Scripts in shell on a host with a real store: any shell, our library beside them, a folder of programs in front."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import vbdkit
from tests.cli.conftest import copy_package
from tests.host import PYTHON, Disk, Host, host
from tests.images import image, losetup, make_image, read_only_loop
from tests.need import need_program
from vbdkit.cli.stub import LIBRARY, Stub

__all__ = ["host", "image", "read_only_loop"]  # fixtures

# bash for the scripts of Linux; the others stand in for small systems and for the BSDs' shells.
SHELLS = {"bash": "/bin/bash", "dash": "/bin/dash", "busybox": "/bin/busybox sh", "mksh": "/bin/mksh"}
WAIT = 20.0  # seconds for what must come
HEAD = 'dir=$(dirname "$0")\n. "$dir/block-common.sh"\n'


@dataclass
class Scripts:
    """A folder of hotplug scripts with our library. ``log`` is the log that Xen's scripts share."""

    host: Host
    shell: str = SHELLS["bash"]

    def __post_init__(self) -> None:
        """Write the library, and where this host has its log."""
        self.folder = self.host.directory / "scripts"
        self.programs = self.host.directory / "bin"
        self.log = self.host.directory / "log" / "xen-hotplug.log"
        for folder in (self.folder, self.programs, self.log.parent):
            folder.mkdir()
        (self.folder / "hotplugpath.sh").write_text(f"XEN_LOG_DIR={self.log.parent}\nbindir={self.programs}\n")
        package = Path(vbdkit.__file__).parent
        limit = self.host.time_limit
        system = None if self.host.system == sys.platform else self.host.system
        where = self.host.run_dir, self.host.lock_dir
        stub = Stub(b"", package, system, *where, limit, self.host.settings, Path(PYTHON))
        (self.folder / LIBRARY).write_bytes(stub.library(self.folder))

    def program(self, name: str, text: str) -> None:
        """Put a program in front of all others of the host."""
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def write(self, body: str, name: str = "block-test") -> Path:
        """Write a script that sources the library and does ``body``; the host's disks use it from now on."""
        return self.use(f"#!{self.shell}\n{HEAD}{body}\n", name)

    def use(self, text: str, name: str) -> Path:
        """Write a whole script; the host's disks use it from now on."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        self.host.script = path
        return path

    def copy(self, **settings: float) -> Path:
        """Use a copy of the package from now on, with other values for IDLE and STAY; returns where it is."""
        package = copy_package(self.host.directory / "lib")
        library = self.folder / LIBRARY
        library.write_text(library.read_text().replace(str(Path(vbdkit.__file__).parent.parent), str(package.parent)))
        for name, value in settings.items():
            module = package / "scripts" / ("talk.py" if name == "IDLE" else "waiting.py")
            text, count = re.subn(rf"^{name} = .*", f"{name} = {value}", module.read_text(), flags=re.M)
            assert count == 1
            module.write_text(text)
        return package

    def disk(self, body: str, domid: int = 5, params: str = "the target", mode: str = "w") -> Disk:
        """A script, and a disk of a live guest that it serves."""
        self.write(body)
        return self.host.disk(domid, params, mode)

    def records(self) -> list[str]:
        """What stands in the records' folder, folders of conversations included; not the helper that waits."""
        names = os.listdir(self.host.run_dir) if self.host.run_dir.is_dir() else []
        return sorted(name for name in names if name != ".sh" and not name.startswith(".sh."))


@pytest.fixture(autouse=True)
def _nobody_waits(host: Host) -> Iterator[None]:
    """The helper that waits for another script goes with its folder."""
    yield
    shutil.rmtree(host.run_dir / ".sh", ignore_errors=True)


@pytest.fixture(params=SHELLS)
def scripts(request: pytest.FixtureRequest, host: Host) -> Scripts:
    """Scripts for each shell in turn."""
    need_program(request.param)
    return Scripts(host, SHELLS[request.param])


@pytest.fixture
def bash(host: Host) -> Scripts:
    """Scripts for bash."""
    return Scripts(host)


@pytest.fixture
def devices(host: Host, tmp_path: Path) -> Iterator[list[str]]:
    """Two block devices that no script of the test made."""
    made = [losetup("--find", "--show", str(make_image(tmp_path / f"device{number}.img"))) for number in range(2)]
    yield made
    for name in made:
        losetup("-d", name)
