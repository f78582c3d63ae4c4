"""Loop devices: found, bound, labelled and released, with others doing the same at the same time."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuse import fuse
from tests.host import backing_file, bound_loops
from tests.images import losetup, make_image
from tests.need import need_loop_devices
from vbdkit.platform.linux import loop
from vbdkit.protocol.failure import Failure
from vbdkit.protocol.vbd import parse_backend_path

# Each of several processes binds and releases as fast as it can.
RACE = """
import os, sys, time
from vbdkit.platform.linux import loop
fd = os.open(sys.argv[1], os.O_RDWR)
for _ in range(40):
    made = loop.bind(fd, "vbd-1-" + sys.argv[2], time.monotonic() + 20)
    assert made.owner == b"vbd-1-" + sys.argv[2].encode()
    # False: another process looks at the device just now, and the kernel releases it when that closes it.
    assert loop.release(made.number, made.backing, "vbd-1-" + sys.argv[2]) is not None
"""


@pytest.fixture(autouse=True)
def _needs() -> None:
    need_loop_devices()


def test_one_on_a_file_system_that_died_is_in_nobodys_way(image: Path, tmp_path: Path) -> None:
    """Else a single program that crashed (qemu-storage-daemon's exports are such files) would keep all disks away."""
    place = tmp_path / "fuse"
    with fuse(place) as served:
        dead = losetup("--find", "--show", "--read-only", str(served.disk))
    other = losetup("--find", "--show", str(image))
    try:
        with pytest.raises(OSError, match="not connected"):
            loop.query(int(dead.removeprefix("/dev/loop")))
        numbers = [one.number for one in loop.bound()]
        assert int(other.removeprefix("/dev/loop")) in numbers
        assert int(dead.removeprefix("/dev/loop")) not in numbers
    finally:
        losetup("--detach", dead, other)


def test_a_bound_device_says_whose_it_is_and_what_is_behind_it(image: Path) -> None:
    fd = os.open(image, os.O_RDWR)
    made = loop.bind(fd, "vbd-5-51712", time.monotonic() + 5)
    try:
        there = loop.query(made.number)
        assert there is not None
        status = os.stat(image)
        assert (there.owner, there.backing, there.read_only) == (b"vbd-5-51712", (status.st_dev, status.st_ino), False)
        assert backing_file(there.path) == str(image)
        assert [found.rdev for found in loop.bound() if found.number == made.number] == [made.rdev]
    finally:
        os.close(fd)
        assert loop.release(made.number, made.backing, "vbd-5-51712") is True
    assert loop.query(made.number) is None


def test_a_device_that_is_not_the_owners_is_not_released(image: Path, tmp_path: Path) -> None:
    name = losetup("--find", "--show", str(image))
    number, status = int(name.removeprefix("/dev/loop")), os.stat(image)
    try:
        assert loop.release(number, (status.st_dev, status.st_ino), "vbd-5-51712") is None
        assert loop.release(number, (status.st_dev, status.st_ino + 1), "") is None
        assert name in bound_loops()
    finally:
        losetup("-d", name)


def test_processes_that_take_the_same_free_number_all_get_a_device(tmp_path: Path) -> None:
    """Between asking for a free number and binding it another is faster: EBUSY, and the next number."""
    before = bound_loops()
    processes = [
        subprocess.Popen([sys.executable, "-c", RACE, str(make_image(tmp_path / f"{n}.img")), str(n)]) for n in range(6)
    ]
    assert [process.wait(60) for process in processes] == [0] * 6
    assert bound_loops() == before


def test_the_longest_name_of_a_vbd_fits_the_label(image: Path) -> None:
    vbd = parse_backend_path(b"backend/" + b"v" * 32 + b"/4294967295/4294967295")
    assert vbd is not None
    owner = vbd.name
    fd = os.open(image, os.O_RDONLY)
    made = loop.bind(fd, owner, time.monotonic() + 5)
    os.close(fd)
    assert made.owner == owner.encode()
    assert loop.release(made.number, made.backing, owner) is True


def test_a_list_that_the_kernel_gives_in_pieces_is_not_relied_on(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # While other devices go, /proc/partitions leaves out some that stay: seen with 300 loop devices, in 1 of 100 reads.
    first, second = (
        losetup("--find", "--show", str(image)),
        losetup("--find", "--show", str(make_image(tmp_path / "b"))),
    )
    try:
        whole = b"major minor  #blocks  name\n\n" + b"   7  1  1024 other\n" * 250
        monkeypatch.setattr(loop, "read", lambda path: whole if path == b"/proc/partitions" else path)
        found = {made.path.decode() for made in loop.bound()}
        assert {first, second} <= found
    finally:
        losetup("-d", first)
        losetup("-d", second)


def test_a_short_list_comes_in_one_piece(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = losetup("--find", "--show", str(image))
    try:
        short = b"major minor  #blocks  name\n\n   7  1  1024 " + name.rpartition("/")[2].encode() + b"\n"
        monkeypatch.setattr(loop, "read", lambda path: short)
        assert [made.path.decode() for made in loop.bound()] == [name]
    finally:
        losetup("-d", name)


def test_a_label_that_the_kernel_would_cut_is_refused(image: Path) -> None:
    before = bound_loops()
    with image.open("rb") as file, pytest.raises(Failure, match="no loop device can be labelled"):
        loop.bind(file.fileno(), "k" * 57, time.monotonic() + 5)
    assert bound_loops() == before
