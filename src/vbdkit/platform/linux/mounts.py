"""What is mounted in this domain, by device number (proc_pid_mountinfo(5))."""

import posix

from vbdkit.platform.linux.kernel import read

_PATH = b"/proc/self/mountinfo"


class Mount:
    """One mount: ``rdev`` of the device, ``point``, ``writable`` (the file system as a whole)."""

    __slots__ = ("point", "rdev", "writable")

    def __init__(self, rdev: int, point: bytes, writable: bool) -> None:
        """Take the facts."""
        self.rdev = rdev
        self.point = point
        self.writable = writable


def mounts_of(rdevs: "frozenset[int]") -> "list[Mount]":
    """Return the mounts of these devices. Raises OSError where the list cannot be read."""
    found = []
    for line in read(_PATH).splitlines():
        # id parent major:minor root point options [tags...] - type source superoptions
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ")
        kind_source_options = right.split(b" ")
        if len(fields) < 6 or len(kind_source_options) < 3:
            raise OSError(5, "unreadable line in mountinfo")
        major, _, minor = fields[2].partition(b":")
        rdev = posix.makedev(int(major), int(minor))
        if major == b"0":
            # File systems of several devices (btrfs) and overlays have a number of their own.
            rdev = _source_rdev(_unescaped(kind_source_options[1]))
        if rdev in rdevs:
            # One mount may be read-only while another of the same file system is not: ask the file system.
            writable = b"rw" in kind_source_options[2].split(b",")
            found.append(Mount(rdev, _unescaped(fields[4]), writable))
    return found


def _source_rdev(source: bytes) -> int:
    if not source.startswith(b"/"):
        return 0
    try:
        return posix.stat(source).st_rdev
    except OSError:
        return 0


def _unescaped(text: bytes) -> bytes:
    r"""Undo the kernel's \040 and friends."""
    if b"\\" not in text:
        return text
    head, *rest = text.split(b"\\")
    return head + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in rest)
