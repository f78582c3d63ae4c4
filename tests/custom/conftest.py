"""Custom scripts in Python on a host with a real store."""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host import PYTHON, SOURCE, Disk, Host, bound_loops, host
from tests.images import image, make_image
from tests.waiting import until

__all__ = ["host", "image"]  # fixtures

HEAD = f"""\
#!{PYTHON} -IS
import sys
sys.path.insert(0, {str(SOURCE)!r})
from vbdkit.custom import Failure, Storage, main, verb
"""


@dataclass
class Author:
    """Writes scripts, and lets guests have disks by them."""

    host: Host

    def write(self, body: str, name: str = "block-test", kind: str = "Test") -> Path:
        """Write a script whose storage is the class ``kind`` in ``body``; the host's disks use it from now on."""
        host = self.host
        more = "" if host.time_limit is None else f", time_limit={host.time_limit}"
        more += "" if host.system == sys.platform else f", system={host.system!r}"
        more += "".join(f", {name}={value!r}" for name, value in host.settings.items())
        path = host.directory / name
        path.write_text(
            f"{HEAD}{body}\nmain({kind}, run_dir={bytes(host.run_dir)!r}, lock_dir={bytes(host.lock_dir)!r}{more})\n"
        )
        path.chmod(0o755)
        host.script = path
        return path

    def disk(self, body: str, params: str | Path, domid: int = 5, mode: str = "w") -> Disk:
        """A script, and a disk of a live guest that it serves."""
        self.write(body)
        return self.host.disk(domid, params, mode)

    def records(self) -> list[str]:
        """The names of the records."""
        return sorted(path.name for path in self.host.run_dir.glob("[!.]*"))


@pytest.fixture
def author(host: Host) -> Author:
    """An author on a host of Linux, as root."""
    return Author(host)


# The storage of most tests: a file by losetup.
LOOP = '''
class Test(Storage):
    """A file through losetup."""
    syntax = "FILE"

    def attach(self, target, mode):
        return self.tool("losetup", "--find", "--show", target["file"]).strip()

    def detach(self, made):
        if "device" in made:
            self.tool("losetup", "--detach", made["device"])
'''

# Storage on a network, as it looks from here: each attach is another device, and only the name tells what it is.
COPY = '''
import os

class Test(Storage):
    """A copy of a file for each guest."""
    syntax = "FILE"

    def identity(self, target):
        return {identity}

    def attach(self, target, mode):
        copy = "{folder}/" + self.vbd
        self.note(copy=copy)
        self.tool("cp", target["file"], copy)
        return self.tool("losetup", "--find", "--show", copy).strip()

    def detach(self, made):
        if "copy" not in made:
            return
        for line in self.tool("losetup", "--noheadings", "--output", "NAME", "--associated", made["copy"]).splitlines():
            self.tool("losetup", "--detach", line.strip())
        if os.path.exists(made["copy"]):
            os.unlink(made["copy"])
'''


def copies(folder: Path, identity: str = '"share " + target["file"]') -> str:
    """The class that copies, with its identity as an expression."""
    return COPY.replace("{folder}", str(folder)).replace("{identity}", identity)


def loops_left() -> list[str]:
    """The loop devices that stay bound: one that somebody has open in the moment of its release goes a little later."""
    with contextlib.suppress(AssertionError):
        until(lambda: not bound_loops(), "no loop device", 5)
    return bound_loops()


def marked(path: Path) -> Path:
    """An image to be attached."""
    return make_image(path)
