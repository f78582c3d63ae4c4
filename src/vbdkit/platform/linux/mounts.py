"""What is mounted in this domain, by device number (proc_pid_mountinfo(5))."""

import posix

from vbdkit.platform.linux.kernel import device_number, read

_BTRFS = b"/sys/fs/btrfs"


class Mount:
    """One mount: ``rdev`` of the device, ``point``, ``writable`` (the file system as a whole)."""

    __slots__ = ("point", "rdev", "writable")

    def __init__(self, rdev: int, point: bytes, writable: bool) -> None:
        """Take the facts."""
        self.rdev = rdev
        self.point = point
        self.writable = writable


def mounts_of(rdevs: "frozenset[int]", process: bytes = b"self") -> "list[Mount]":
    """Return the mounts of these devices, as a process sees them. Raises OSError where the list cannot be read."""
    found = []
    for line in read(b"/proc/" + process + b"/mountinfo").splitlines():
        # id parent major:minor root point options [tags...] - type source superoptions
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ")
        kind_source_options = right.split(b" ")
        if len(fields) < 6 or len(kind_source_options) < 3:
            raise OSError(5, "unreadable line in mountinfo")
        rdev = device_number(fields[2])
        if posix.major(rdev) == 0:
            # File systems of several devices (btrfs) and overlays have a number of their own.
            rdev = _source_rdev(unescaped(kind_source_options[1]))
        if rdev in rdevs:
            # One mount may be read-only while another of the same file system is not: ask the file system.
            writable = b"rw" in kind_source_options[2].split(b",")
            found.append(Mount(rdev, unescaped(fields[4]), writable))
    return found


def _source_rdev(source: bytes) -> int:
    if not source.startswith(b"/"):
        return 0
    try:
        return posix.stat(source).st_rdev
    except OSError:
        return 0


def devices_under(fd: int) -> "list[int]":
    """Return the devices of the file system that an open file lies on, where its st_dev names none (btrfs).

    None for a file system without devices (tmpfs, NFS). Raises OSError.
    """
    mount = b""
    for line in read(b"/proc/self/fdinfo/%d" % fd).splitlines():
        if line.startswith(b"mnt_id:"):
            mount = line.split()[1]
    for line in read(b"/proc/self/mountinfo").splitlines():
        if line.partition(b" ")[0] == mount:
            source = unescaped(line.partition(b" - ")[2].split(b" ")[1])
            rdev = _source_rdev(source)
            return companions(rdev) or [rdev] if rdev else []
    return []


def companions(rdev: int) -> "list[int]":
    """Return the devices of the btrfs file system that this device belongs to; none for any other device."""
    try:
        systems = posix.listdir(_BTRFS)
    except FileNotFoundError:
        return []
    for system in systems:
        folder = _BTRFS + b"/" + system + b"/devices"
        try:
            found = [device_number(read(folder + b"/" + name + b"/dev")) for name in posix.listdir(folder)]
        except (FileNotFoundError, NotADirectoryError):
            continue  # a folder that is no file system, or one that is just unmounted
        if rdev in found:
            return found
    return []


def unescaped(text: bytes) -> bytes:
    r"""Undo the kernel's \040 and friends."""
    if b"\\" not in text:
        return text
    head, *rest = text.split(b"\\")
    return head + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in rest)
