"""From the user's text to an open file or block device: what is the same on every Unix.

The descriptor that is opened here is the one that all later steps use, so nobody can put another file
in the name's place between check and use.
"""

import _stat  # stat adds nothing here but a file to load
import errno
import posix

from vbdkit.protocol.failure import Failure

FILE = "file"
DEVICE = "device"
SECTOR = 512

_KINDS = (
    (_stat.S_ISDIR, "a directory"),
    (_stat.S_ISFIFO, "a FIFO"),
    (_stat.S_ISSOCK, "a socket"),
    (_stat.S_ISCHR, "a character device"),
)


class Target:
    """An open target: ``path`` (absolute), ``kind`` FILE or DEVICE, ``fd``, ``stat`` (of the descriptor)."""

    __slots__ = ("fd", "kind", "path", "stat")

    def __init__(self, path: bytes, kind: str, fd: int, status: posix.stat_result) -> None:
        """Own the descriptor from now on."""
        self.path = path
        self.kind = kind
        self.fd = fd
        self.stat = status

    def close(self) -> None:
        """Close the descriptor; again is no harm."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            try:
                posix.close(fd)
            except OSError:
                pass  # nothing was written through it, and the disk may be published by now


def open_target(
    text: bytes,
    writable: bool,
    smallest: int = SECTOR,
    character_devices: bool = False,
    open_devices: bool = True,
) -> Target:
    """Open what a disk's target names.

    A relative name stands under /dev, as in the stock scripts. A plain file is opened for what the mode
    asks; a device for reading only, since closing a device that was open for writing makes udev probe it.
    ``smallest``: what a file must have at least, in bytes; less than a sector where it is no disk, but says where one
    is. ``character_devices``: whether these serve as disks too (FreeBSD). ``open_devices``: without it a device has no
    descriptor and only its status (NetBSD). Raises Failure.
    """
    path = text if text.startswith(b"/") else b"/dev/" + text
    try:
        before = posix.stat(path)
        kind = _kind(path, before, character_devices)
        if kind == DEVICE and not open_devices:
            return Target(path, kind, -1, before)
        access = posix.O_RDWR if writable and kind == FILE else posix.O_RDONLY
        # O_NONBLOCK: should a FIFO or a drive without a medium be there by now, do not wait for it.
        fd = posix.open(path, access | posix.O_CLOEXEC | posix.O_NONBLOCK | posix.O_NOCTTY)
    except ValueError:
        raise Failure("{path} holds a NUL byte, so it names no file", path=path) from None
    except OSError as error:
        raise explained(path, writable, error) from None
    target = Target(path, kind, fd, posix.fstat(fd))
    try:
        if _kind(path, target.stat, character_devices) != kind:
            raise Failure("{path} changed while it was opened; try again", path=path)
        if kind == FILE and target.stat.st_size < smallest:
            what = "is empty" if target.stat.st_size == 0 else f"has {target.stat.st_size} bytes"
            raise Failure(
                "{path} " + what + ": a disk needs at least one sector of 512 bytes (truncate -s 1G {path} makes one)",
                path=path,
            )
    except Failure:
        target.close()
        raise
    return target


def status_of(path: bytes) -> posix.stat_result | None:
    """Return the status of what a path names, or None where it can name nothing on this host. Raises OSError."""
    try:
        return posix.stat(path)
    except ValueError:
        return None  # a NUL byte
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return None
        raise


def _kind(path: bytes, status: posix.stat_result, character_devices: bool) -> str:
    mode = status.st_mode
    if _stat.S_ISREG(mode):
        return FILE
    if _stat.S_ISBLK(mode) or (character_devices and _stat.S_ISCHR(mode)):
        return DEVICE
    what = "no file or device"
    for test, words in _KINDS:
        if test(mode):
            what = words
    raise Failure("{path} is {what}; a disk is a block device or a plain file", path=path, what=what)


def explained(path: bytes, writable: bool, error: OSError) -> Failure:
    """Return the sentence for a target that cannot be opened."""
    number = error.errno or 0
    if number == errno.ENOENT:
        try:
            link = posix.readlink(path)
        except OSError:
            return Failure("{path} does not exist", path=path)
        return Failure("{path} is a link to {link}, which does not exist", path=path, link=link)
    if writable and number in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ETXTBSY):
        return Failure(
            "{path} cannot be opened for writing: {why}; make it writable or give the disk read-only (mode r)",
            path=path,
            why=posix.strerror(number),
        )
    return Failure("{path} cannot be opened: {why}", path=path, why=posix.strerror(number))
