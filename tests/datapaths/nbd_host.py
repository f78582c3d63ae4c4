"""A host with network block devices: real images served by the real qemu-nbd, and a model of what the kernel does."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.datapaths import qemu_nbd
from tests.host import PYTHON, SOURCE, Disk, Host, host
from tests.images import make_image
from tests.need import need, need_program
from vbdkit.datapaths.nbd import Nbd as Storage

__all__ = ["host"]  # a fixture


@dataclass
class Nbd:
    """The host, its script ``block-nbd``, and ``root``, where the model of the kernel has its devices."""

    host: Host
    root: Path

    def write_script(self, program: Path = Path(qemu_nbd.__file__), more: str = "") -> Path:
        """Write the script; ``program`` is in the place of qemu-nbd."""
        host = self.host
        path = host.directory / "block-nbd"
        limit = "" if host.time_limit is None else f", time_limit={host.time_limit}"
        path.write_text(
            f"#!{PYTHON} -IS\nimport sys\nsys.path.insert(0, {str(SOURCE)!r})\n"
            "from vbdkit.custom import main\nfrom vbdkit.datapaths.nbd import Nbd\n"
            f"class Here(Nbd):\n    {Storage.__doc__!r}\n    program = {str(program)!r}\n"
            f"    sysfs = {str(self.root / 'sys')!r}\n    nodes = {str(self.root / 'dev')!r}\n{more}\n"
            f"main(Here, run_dir={bytes(host.run_dir)!r}, lock_dir={bytes(host.lock_dir)!r}{limit})\n"
        )
        path.chmod(0o755)
        host.script = path
        return path

    def disk(self, target: str, domid: int = 5, mode: str = "w") -> Disk:
        """A live guest's disk."""
        return self.host.disk(domid, target, mode)

    def image(self, name: str = "disk", form: str = "qcow2", marker: bytes = b"first sector") -> Path:
        """An image of 4 MiB of this format that begins with a marker."""
        raw = make_image(self.host.directory / f"{name}.raw", marker, 4 << 20)
        if form == "raw":
            return raw
        path = raw.with_suffix("." + form)
        self.img("convert", "-f", "raw", "-O", form, str(raw), str(path))
        raw.unlink()
        return path

    def img(self, *words: str) -> str:
        """Run qemu-img."""
        return subprocess.run(["qemu-img", *words], check=True, capture_output=True, text=True).stdout

    def content(self, image: Path, form: str = "qcow2") -> bytes:
        """What is on the disk of an image that nobody has, as another program reads it."""
        out = image.with_suffix(".out")
        self.img("convert", "-f", form, "-O", "raw", str(image), str(out))
        data = out.read_bytes()
        out.unlink()
        return data

    def free(self) -> list[str]:
        """The devices that nobody has."""
        folders = sorted((self.root / "sys/block").iterdir())
        return [folder.name for folder in folders if not (folder / "pid").exists()]

    def servers(self, mark: str = "--socket=") -> list[int]:
        """The servers of this host's disks, by process; without the mark, with all that the model has."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if os.fsencode(f"{mark}{self.host.run_dir}/.nbd/") in path.read_bytes():
                    found.append(int(path.parts[2]))
        return sorted(found)

    def kill(self) -> None:
        """Kill the servers, and wait until the model of the kernel has seen that, as the kernel does at once."""
        for pid in self.servers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.settle()

    def left(self) -> list[str]:
        """Whatever there is yet of disks."""
        self.settle()
        found = [f"process {pid}" for pid in self.servers("")]
        found += [str(path) for path in self.host.run_dir.rglob("*") if not path.is_dir()]
        return found + [f"{name} is connected" for name in ("nbd0", "nbd1", "nbd2") if name not in self.free()]

    def settle(self) -> None:
        """Wait until the model has taken all down that has lost its server."""
        end = time.monotonic() + 10
        while time.monotonic() < end and (self.servers("") or any(self.root.glob("*.fuse"))):
            time.sleep(0.01)

    def close(self) -> None:
        """End what a failed test has left."""
        self.kill()


@pytest.fixture
def nbd(host: Host, tmp_path: Path) -> Iterator[Nbd]:
    """A host of Linux with three network block devices, as root."""
    for program in ("qemu-nbd", "qemu-img", "qemu-storage-daemon", "setpriv"):
        need_program(program)
    need(os.path.exists("/dev/fuse"), "needs FUSE (/dev/fuse)")
    need(sys.platform == "linux", "needs Linux")
    made = Nbd(host, tmp_path / "k")
    (made.root / "sys/module/nbd").mkdir(parents=True)
    for number in range(3):
        qemu_nbd.unused(made.root / f"dev/nbd{number}")
    made.write_script()
    yield made
    made.close()
