"""Reading what the kernel tells in files: /proc and /sys."""

import posix

SYSFS = b"/sys"


def read(path: bytes) -> bytes:
    """Return all of a file that the kernel makes up while it is read. Raises OSError."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        chunks = []
        while chunk := posix.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        posix.close(fd)


def exists(path: bytes) -> bool:
    """Whether there is such a file. Raises OSError where that cannot be told."""
    try:
        posix.stat(path)
    except FileNotFoundError:
        return False
    return True


def numbers(rdev: int) -> "tuple[int, int]":
    """Return (major, minor) of a device number."""
    return posix.major(rdev), posix.minor(rdev)


def number_in(path: bytes) -> int:
    """Return the decimal number that a file of the kernel's holds. Raises OSError."""
    return int(read(path))


def device_number(text: bytes) -> int:
    """Return the device number that the kernel writes as "major:minor"."""
    major, _, minor = text.partition(b":")
    return posix.makedev(int(major), int(minor))


def device_folder(rdev: int) -> bytes:
    """Return the folder in which sysfs tells of a block device."""
    return b"%s/dev/block/%d:%d" % (SYSFS, *numbers(rdev))


def driven(name: bytes) -> bool | None:
    """Whether the backend driver has a device open for a vbd; None where this kernel has no backends.

    The kernel keeps a backend that has its device until the store tells it otherwise, so also when the store does not
    know it any more. blkback shows the number once it has opened the device (xenvbd_sysfs_addif in the kernel's
    xen-blkback/xenbus.c); a backend of another kind is some program's, of which nothing is known.
    """
    place = SYSFS + b"/bus/xen-backend/devices/"
    backend = place + name
    if not exists(place):
        return None
    return exists(backend) and (not name.startswith(b"vbd-") or exists(backend + b"/physical_device"))
