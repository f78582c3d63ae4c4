"""Loop devices: find, bind, ask, release. Facts from the kernel's drivers/block/loop.c and linux/loop.h.

A loop device that vbdkit makes carries its owner's name in lo_file_name (a label of 63 bytes that the
kernel keeps and never reads; losetup shows the backing file from sysfs instead). So it can be told from all
others even when the record of it is lost.
"""

import errno
import posix
import time
from _struct import Struct
from fcntl import ioctl

from vbdkit.platform.linux.kernel import read
from vbdkit.protocol.failure import Failure

LOOP_CLR_FD = 0x4C01
LOOP_GET_STATUS64 = 0x4C05
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82
BLKROGET = 0x125E
LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
LOOP_MAJOR = 7
OWNER_PREFIX = b"vbdkit:"

_CONTROL = b"/dev/loop-control"
# struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encryption (2), flags, names (2), key, init (2)
_INFO = Struct("=5Q4I64s64s32s2Q")
_EMPTY_INFO = bytes(_INFO.size)
# struct loop_config: fd, block size, info, reserved
_CONFIG = Struct("=II232s64x")
# The guest sees 512-byte sectors whatever the file lies on: a copied disk must not change its geometry.
_BLOCK_SIZE = 512
_LABEL_MAX = 63  # LO_NAME_SIZE, with a NUL behind it
# What open says of a device without a node, without a driver, or in the middle of its release.
_NOT_THERE = (errno.ENOENT, errno.ENXIO, errno.ENODEV)
# Shorter than the smallest page by more than one line: all of it came in one piece.
_ONE_PIECE = 3900


class Loop:
    """A bound loop device, as the kernel describes it.

    ``backing`` is (st_dev, st_ino) of its file, ``backing_rdev`` the number where that is a block device
    (else 0), ``owner`` the vbd's name where vbdkit made it (else empty). It shows ``limit`` bytes of the file
    from ``offset`` on (0: to the end).
    """

    __slots__ = ("autoclear", "backing", "backing_rdev", "limit", "number", "offset", "owner", "rdev", "read_only")

    def __init__(self, number: int, rdev: int, info: bytes) -> None:
        """Unpack LOOP_GET_STATUS64's answer."""
        dev, ino, backing_rdev, self.offset, self.limit, _, _, _, flags, label, _, _, _, _ = _INFO.unpack(info)
        self.number = number
        self.rdev = rdev
        self.backing = (dev, ino)
        self.backing_rdev = backing_rdev
        self.read_only = bool(flags & LO_FLAGS_READ_ONLY)
        self.autoclear = bool(flags & LO_FLAGS_AUTOCLEAR)
        name = label.partition(b"\0")[0]
        self.owner = name[len(OWNER_PREFIX) :] if name.startswith(OWNER_PREFIX) else b""

    @property
    def path(self) -> bytes:
        """The device's node."""
        return device_path(self.number)


def device_path(number: int) -> bytes:
    """Return the path of a loop device's node."""
    return b"/dev/loop%d" % number


def query(number: int) -> Loop | None:
    """Return what loop device ``number`` is bound to, or None where it is not bound or not there."""
    fd = _open_to_ask(number)
    if fd is None:
        return None
    try:
        return _status(fd, number)
    finally:
        posix.close(fd)


def backing_name(number: int) -> bytes:
    """Return the path by which the kernel knows a bound loop device's file, as sysfs shows it; empty where unknown."""
    try:
        return read(b"/sys/block/loop%d/loop/backing_file" % number).removesuffix(b"\n")
    except OSError:
        return b""


def _open_to_ask(number: int) -> int | None:
    """Open a loop device for its status, making its node where that is missing; None where there is none to ask."""
    path, flags = device_path(number), posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK
    try:
        try:
            return posix.open(path, flags)
        except FileNotFoundError:
            # A device is there without its node, too, and what it is bound to is in use.
            if not posix.access(b"/sys/block/loop%d" % number, posix.F_OK):
                return None
            _make_node(number)
            return posix.open(path, flags)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise


def _status(fd: int, number: int) -> Loop | None:
    try:
        info = ioctl(fd, LOOP_GET_STATUS64, _EMPTY_INFO)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOTTY):
            return None
        raise
    return Loop(number, posix.fstat(fd).st_rdev, info)


def bound() -> "list[Loop]":
    """Return all bound loop devices of this host, but those on a file system that has died. Raises OSError.

    The kernel asks the file system for the status (loop_get_status in loop.c). One whose server is gone (FUSE) says
    ENOTCONN, and gives no file of its own to anybody else either; so that device is in nobody's way.
    """
    found = []
    for name in _candidates():
        if name.startswith(b"loop") and name[4:].isdigit():
            try:
                loop = query(int(name[4:]))
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise
                continue
            if loop is not None:
                found.append(loop)
    return found


def _candidates() -> "list[bytes]":
    """Return the names of all block devices that may be bound loop devices, and of few others.

    /proc/partitions has those that have a size, so unbound ones need not be opened (show_partition in the kernel's
    block/genhd.c). But it comes in pieces of a page: when any device goes between two of them, the next one begins
    too far down the list (disk_seqf_start), and devices that are there are left out. So a list that may be longer
    than one page is asked of sysfs, where a bound loop device has a folder "loop" (loop_sysfs_init in loop.c).
    """
    listed = read(b"/proc/partitions")
    if len(listed) < _ONE_PIECE:
        return [line.rpartition(b" ")[2] for line in listed.splitlines()]
    # Not /sys/block, whose links cost as much again as the look behind them.
    place = posix.open(b"/sys/devices/virtual/block", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        names = [name.encode("ascii") for name in posix.listdir(place) if name.startswith("loop")]
        return [name for name in names if posix.access(name + b"/loop", posix.F_OK, dir_fd=place)]
    finally:
        posix.close(place)


def owned() -> "list[Loop]":
    """Return the loop devices that vbdkit has made. Raises OSError."""
    return [loop for loop in bound() if loop.owner]


def bind(fd: int, owner: str, deadline: float) -> Loop:
    """Bind a free loop device to the open file ``fd``, read-only where that descriptor is.

    ``owner`` is the vbd's name. In one call (LOOP_CONFIGURE, Linux 5.8), so the device is never seen half
    set up. Raises Failure.
    """
    label = OWNER_PREFIX + owner.encode("ascii")
    if len(label) > _LABEL_MAX:
        # Cut, it would be nobody's, and the device would never be released.
        raise Failure(
            "no loop device can be labelled {owner}: the kernel keeps {most} bytes; let the records be in /run/vbdkit "
            "(vbdkit install without --run-dir)",
            owner=owner,
            most=_LABEL_MAX - len(OWNER_PREFIX),
        )
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, label, b"", b"", 0, 0)
    config = _CONFIG.pack(fd, _BLOCK_SIZE, info)
    try:
        control = posix.open(_CONTROL, posix.O_RDWR | posix.O_CLOEXEC)
    except OSError as error:
        raise Failure(
            "no loop device can be had: {path}: {why}; load the kernel's loop module (modprobe loop)",
            path=_CONTROL,
            why=posix.strerror(error.errno or 0),
        ) from None
    try:
        while True:
            number: int = ioctl(control, LOOP_CTL_GET_FREE)
            device, bound_now = -1, False
            try:
                device = _open(number)
                ioctl(device, LOOP_CONFIGURE, config)
                bound_now = True
                loop = _status(device, number)
                if loop is None:
                    raise OSError(errno.ENXIO, posix.strerror(errno.ENXIO))
                return loop
            except OSError as error:
                if bound_now:
                    raise  # that one is ours, and the caller's to take back
                # Another process took the number in between (EBUSY), or even gave it back and the kernel is at
                # releasing it (ENXIO): ask for the next one.
                if error.errno not in (errno.EBUSY, errno.ENXIO):
                    raise
            finally:
                if device >= 0:
                    posix.close(device)
            if time.monotonic() >= deadline:
                raise Failure(
                    "no loop device can be had: each one that was free was taken by others, until the time was up"
                )
            time.sleep(0.0005)
    except OSError as error:
        old = error.errno == errno.EINVAL
        raise Failure(
            "no loop device can be had: {why}" + (" (Linux 5.8 or later is needed)" if old else ""),
            why=posix.strerror(error.errno or 0),
        ) from None
    finally:
        posix.close(control)


def _open(number: int) -> int:
    """Open a loop device's node for binding, making the node where it is missing."""
    path = device_path(number)
    try:
        return posix.open(path, posix.O_RDWR | posix.O_CLOEXEC)
    except FileNotFoundError:
        _make_node(number)
    return posix.open(path, posix.O_RDWR | posix.O_CLOEXEC)


def _make_node(number: int) -> None:
    try:
        posix.mknod(device_path(number), 0o060660, posix.makedev(LOOP_MAJOR, number))
    except FileExistsError:
        pass  # somebody was faster


def release(number: int, backing: "tuple[int, int]", owner: str) -> "bool | None":
    """Release loop device ``number`` if it still is ``owner``'s and bound to ``backing``.

    Returns True where it is free now, False where the kernel frees it as soon as its last opener closes it
    (a driver that is about to go), None where it is another's or nobody's: then nothing was done.
    """
    fd = _open_to_ask(number)
    if fd is None:
        return None
    try:
        loop = _status(fd, number)
        if loop is None or loop.backing != backing or loop.owner != owner.encode("ascii"):
            return None
        try:
            ioctl(fd, LOOP_CLR_FD)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return True
    finally:
        # With this descriptor open the kernel only marks the device; the close lets it go.
        posix.close(fd)
    left = query(number)
    return left is None or left.backing != backing or left.owner != owner.encode("ascii")
