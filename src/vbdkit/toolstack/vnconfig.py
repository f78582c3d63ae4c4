"""NetBSD's vnconfig(8) for a model of that system: a vnd is a loop device behind a block node of the vnd's name.

Says and fails as vnconfig.c does. Imports little: a block script that is tried starts it many times.
"""

import errno
import posix
import sys
import time

from vbdkit.platform.linux import loop

# The letter of the partition that is a whole disk.
RAW = "d"
# Whose the loop devices are: no vbd, so no script and no clean-up of this host's takes them for its own.
_OWNER = "a-model-of-netbsd"
_BLOCK_NODE = 0o060600


def main(dev: bytes, arguments: list[str]) -> None:
    """Be the program: with -l tell of one or all, with -u free one, else set one up (-r: read-only)."""
    flags = {argument for argument in arguments if argument.startswith("-")}
    words = [argument for argument in arguments if not argument.startswith("-")]
    if "-l" in flags:
        for name in words or sorted(_names(dev)):
            print(_line(dev, name))
        return
    node = dev + b"/" + (words[0] + RAW).encode()
    raw = f"/dev/r{words[0]}{RAW}"
    if words[0] not in _names(dev):
        _fail(f"{raw}: opendisk: Device not configured")
    if "-u" in flags:
        _clear(node, raw)
    else:
        _set(node, raw, words[1], "-r" in flags)


def _names(dev: bytes) -> list[str]:
    """Return the names of all vnds: those that have a raw node."""
    nodes = [name.decode("utf-8", "surrogateescape") for name in posix.listdir(dev)]
    return [name[1 : -len(RAW)] for name in nodes if name.startswith("rvnd") and name.endswith(RAW)]


def _line(dev: bytes, name: str) -> str:
    bound = _behind(dev + b"/" + (name + RAW).encode())
    if bound is None:
        return f"{name}: not in use"
    device, inode = bound.backing
    return f"{name}: dev {posix.major(device)},{posix.minor(device)} inode {inode}"


def _behind(node: bytes) -> "loop.Loop | None":
    """Return the loop device behind a vnd's node."""
    try:
        return loop.query(posix.minor(posix.stat(node).st_rdev))
    except FileNotFoundError:
        return None


def _set(node: bytes, raw: str, file: str, read_only: bool) -> None:
    try:
        descriptor = posix.open(file, posix.O_RDONLY if read_only else posix.O_RDWR)
    except OSError as error:
        _fail(f"{file}: {error.strerror}")
    bound = loop.bind(descriptor, _OWNER, time.monotonic() + 10)
    try:
        posix.mknod(node, _BLOCK_NODE, bound.rdev)
    except FileExistsError:
        loop.release(bound.number, bound.backing, _OWNER)
        _fail(f"{raw}: VNDIOCSET: Device busy")


def _clear(node: bytes, raw: str) -> None:
    if _behind(node) is None:
        _fail(f"{raw}: VNDIOCCLR: Device not configured")
    try:
        # Every open of a block device is exclusive there.
        posix.close(posix.open(node, posix.O_RDONLY | posix.O_EXCL))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _fail(f"{raw}: VNDIOCCLR: Device busy")
    free(node)


def free(node: bytes) -> None:
    """Take a vnd's node away and release the loop device behind it."""
    bound = _behind(node)
    posix.unlink(node)
    if bound is not None:
        loop.release(bound.number, bound.backing, _OWNER)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def _fail(words: str) -> "NoReturn":
    print("vnconfig: " + words, file=sys.stderr)
    raise SystemExit(1)
