"""The BSDs' `block` runs where nothing is there that only Linux has."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import PYTHON, SOURCE, Host
from tests.images import make_image
from tests.platform.models.freebsd import Freebsd
from tests.platform.models.netbsd import Netbsd
from vbdkit.engine.lock import Lock
from vbdkit.toolstack.netbsd_host import take_away

# What a Python on FreeBSD 14 or NetBSD 10 lacks of the modules that scripts import, and all of Linux's own package.
# fcntl.ioctl is there; but whoever needs it at import time would need its numbers, too, which differ.
WITHOUT_LINUX = f"""#!{PYTHON} -IS
import sys
sys.path.insert(0, {str(SOURCE)!r})
class NoLinux:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("vbdkit.platform.linux"):
            raise ImportError("this is no Linux: " + name)
sys.meta_path.insert(0, NoLinux())
sys.platform = "SYSTEM14"
import posix, fcntl, select, _socket
LINUX = {{
    posix: ("O_PATH", "O_TMPFILE", "O_NOATIME", "O_LARGEFILE", "setns", "unshare", "pidfd_open", "memfd_create",
            "eventfd", "getrandom", "sched_getaffinity", "copy_file_range", "splice", "getxattr", "listxattr"),
    fcntl: ("ioctl", "F_OFD_GETLK", "F_OFD_SETLK", "F_OFD_SETLKW", "F_NOTIFY", "F_SETLEASE", "F_GETPIPE_SZ"),
    select: ("epoll", "EPOLLIN"),
    _socket: ("SO_PEERCRED", "AF_NETLINK", "AF_VSOCK", "AF_PACKET"),
}}
for module, names in LINUX.items():
    for name in names:
        module.__dict__.pop(name, None)
"""


@pytest.fixture(params=["freebsd", "netbsd"])
def host(request: pytest.FixtureRequest, tmp_path: Path, store_socket: Path) -> Iterator[Host]:
    """A host of one BSD, whose script takes its system from Python."""
    place = tmp_path / "model"
    settings = Freebsd(place).place.settings if request.param == "freebsd" else Netbsd(place).settings
    made = Host(tmp_path, store_socket, request.param, settings=settings)
    start = made.script.read_text().splitlines()[-1].replace(f"{request.param!r}", "''")
    assert start.startswith("start('block', '',")
    text = WITHOUT_LINUX.replace("SYSTEM", request.param)
    made.script.write_text(f"{text}from vbdkit.hot import start\n{start}\n")
    yield made
    if request.param == "netbsd":
        take_away(place)


def test_add_refuse_remove(host: Host, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    first, second = host.disk(5, image), host.disk(6, image)
    done = first.add()
    assert (done.status, done.output) == (0, "")
    done = second.add()
    assert (done.status, done.outcome) == (1, b"busy")
    assert "in use by guest 5 (guest5) as its disk xvda" in done.error
    assert [second.remove().status, first.remove().status] == [0, 0]
    assert not {"physical-device", "physical-device-path"} & set(first.nodes())


def test_the_lock_is_waited_for(host: Host, tmp_path: Path) -> None:
    host.script.write_text(host.script.read_text().replace("lock_dir=", "time_limit=2.0, lock_dir="))
    disk = host.disk(5, make_image(tmp_path / "disk.img"))
    with Lock(os.fsencode(host.lock_dir), float("inf")):
        done = disk.add()
    assert (done.status, done.outcome) == (1, b"error")
    assert "waiting for the lock" in done.error
    assert disk.add().status == 0
    disk.remove()
