"""Disk images and block devices for tests, and the fixtures that make them."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host import Host


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk image of 1 MiB."""
    return make_image(tmp_path / "disk.img")


def make_image(path: Path, text: bytes = b"first sector", size: int = 1 << 20) -> Path:
    """Make a sparse image that begins with ``text``."""
    path.write_bytes(text)
    with path.open("r+b") as file:
        file.truncate(size)
    return path


@pytest.fixture
def loop_device(host: Host, tmp_path: Path) -> Iterator[str]:
    """A block device: a loop device that no script made."""
    name = losetup("--find", "--show", str(make_image(tmp_path / "device.img")))
    yield name
    losetup("-d", name)


@pytest.fixture
def read_only_loop(host: Host, tmp_path: Path) -> Iterator[str]:
    """A block device that cannot be written."""
    name = losetup("--find", "--show", "--read-only", str(make_image(tmp_path / "ro-device.img")))
    yield name
    losetup("-d", name)


@pytest.fixture
def big_sectors(host: Host, tmp_path: Path) -> Iterator[Path]:
    """An image on a file system whose device has sectors of 4,096 bytes."""
    device = losetup("--find", "--show", "-b", "4096", str(make_image(tmp_path / "4k.img", size=64 << 20)))
    host.kept.add(device)
    place = tmp_path / "4k"
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", device], check=True)
    try:
        with mounted(place, device):
            yield make_image(place / "disk.img")
            host.close()
    finally:
        losetup("-d", device)


@contextmanager
def mounted(place: Path, *what: str) -> Iterator[None]:
    """Have a file system mounted; ``what``: mount's arguments before the place."""
    subprocess.run(["mount", *what, place], check=True)
    try:
        yield
    finally:
        take_back("umount", str(place))


def take_back(*command: str, seconds: float = 10) -> None:
    """Run a program that undoes something, again while another process has that open for a moment (EBUSY)."""
    deadline = time.monotonic() + seconds
    while (done := subprocess.run(command, capture_output=True, text=True)).returncode:
        if time.monotonic() > deadline:
            if command[0] == "umount":  # pytest's own clean-up fails on a mount, before it says which tests failed
                subprocess.run(["umount", "--lazy", *command[1:]], check=False)
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        time.sleep(0.02)


def losetup(*arguments: str) -> str:
    """Run losetup; return what it prints."""
    return subprocess.run(["losetup", *arguments], check=True, capture_output=True, text=True).stdout.strip()
