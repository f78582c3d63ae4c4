"""What NetBSD's programs are asked, and what their answers mean. The one place that knows these texts.

Sources: vnconfig.c, swapctl.c, dkctl.c, disklabel's show.c and mount.c of NetBSD, and their manual pages.
"""

import posix

from vbdkit.platform.bsd import PLACE
from vbdkit.platform.programs import ProgramError, ask
from vbdkit.platform.target import status_of
from vbdkit.protocol.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    Identity = tuple[int, int]

# What disklabel and dkctl count in, on disks with sectors of the usual size.
_SECTOR = 512
_VNDS = (b"vnconfig", b"-l")
_NAMES = (b"sysctl", b"-n", b"kern.rawpartition", b"hw.disknames")


class Facts:
    """The answers of one moment.

    ``vnds``: number -> the file under it (None: free); ``raw``: the letter of the partition that is a whole disk;
    ``disks``: the names of all disks and wedges; ``mounts`` and ``swaps``: as mount(8) and swapctl(8) print them.
    """

    __slots__ = ("disks", "mounts", "raw", "swaps", "vnds")

    def __init__(self) -> None:
        """Ask. Raises ProgramError, and Failure for an answer that is not understood."""
        listed, names, self.mounts, self.swaps = ask(PLACE.programs, _VNDS, _NAMES, (b"mount",), (b"swapctl", b"-l"))
        self.vnds = _vnds(listed)
        self.raw, self.disks = _names(names)


def vnds() -> "tuple[dict[int, Identity | None], bytes]":
    """Return the file under each vnd (None: free), and the raw partition's letter. Raises ProgramError, Failure."""
    listed, names = ask(PLACE.programs, _VNDS, _NAMES)
    return _vnds(listed), _names(names)[0]


def file_under(number: int) -> "Identity | None":
    """Return the file under one vnd; None where it is free. Raises ProgramError, Failure."""
    return _vnds(ask(PLACE.programs, (*_VNDS, b"vnd%d" % number))[0]).get(number)


def set_up(number: int, path: bytes, read_only: bool) -> bool:
    """Put a file under a vnd; False where that is another's by now. Raises ProgramError.

    The vnd goes by name: of a path, releases want different partitions (opendisk(3) finds the right one).
    """
    command = (b"vnconfig", b"-c", *((b"-r",) if read_only else ()), b"vnd%d" % number, path)
    return _unless_busy(command)


def take_down(number: int) -> bool:
    """Free a vnd; False where somebody has it open. Raises ProgramError."""
    return _unless_busy((b"vnconfig", b"-u", b"vnd%d" % number))


def _unless_busy(command: "tuple[bytes, ...]") -> bool:
    try:
        ask(PLACE.programs, command)
    except ProgramError as error:
        if error.said.lower().endswith(b"busy"):  # EBUSY: "Device busy" here, "... or resource busy" elsewhere
            return False
        raise
    return True


def partitions(disk: bytes) -> "tuple[dict[bytes, tuple[int, int]] | None, list[bytes]]":
    """Return the partitions of a disk's label (letter -> start and size in bytes) and the names of its wedges.

    A disk whose label cannot be had has none that is known: None then. Raises ProgramError.
    """
    wedges = _unless(b"Inappropriate ioctl", (b"dkctl", disk, b"listwedges")) or b""
    names = [line.partition(b":")[0] for line in wedges.splitlines()[1:]]
    label = _unless(b"", (b"disklabel", disk))
    return _label(label) if label is not None else None, [name for name in names if name.startswith(b"dk")]


def _unless(reason: bytes, command: "tuple[bytes, ...]") -> "bytes | None":
    """Return what a program prints, None where it fails with a reason that says: there is no such thing."""
    try:
        return ask(PLACE.programs, command)[0]
    except ProgramError as error:
        if error.said and reason in error.said:
            return None
        raise


def _label(label: bytes) -> "dict[bytes, tuple[int, int]]":
    found = {}
    sector = _SECTOR
    for line in label.splitlines():
        words = line.split()
        if words[:1] == [b"bytes/sector:"] and words[1].isdigit():
            sector = int(words[1])
        elif (
            len(words) > 3
            and len(words[0]) == 2
            and words[0].endswith(b":")
            and words[1].isdigit()
            and words[2].isdigit()
        ):
            # " a:   1048576      2048     4.2BSD ...": size, then offset
            found[words[0][:1]] = (int(words[2]) * sector, int(words[1]) * sector)
    return found


def wedge(name: bytes) -> "tuple[bytes, int, int]":
    """Return of a wedge its disk's name, and its start and size in bytes. Raises ProgramError, Failure."""
    said = ask(PLACE.programs, (b"dkctl", name, b"getwedgeinfo"))[0]
    first, _, second = said.partition(b"\n")
    # "dk0 at wd0: web", "dk0: 204800 blocks at 2048, type: ffs"
    disk = first.removeprefix(name + b" at ").partition(b":")[0]
    words = second.removeprefix(name + b": ").split()
    start = words[3].rstrip(b",") if len(words) > 3 else b""
    if not disk or words[1:3] != [b"blocks", b"at"] or not (start.isdigit() and words[0].isdigit()):
        raise _not_understood(b"dkctl", said)
    return disk, int(start) * _SECTOR, int(words[0]) * _SECTOR


def _names(text: bytes) -> "tuple[bytes, list[bytes]]":
    raw, _, disks = text.partition(b"\n")
    if not raw.isdigit():
        raise _not_understood(b"sysctl", text)
    return b"abcdefghijklmnop"[int(raw) : int(raw) + 1], disks.split()


def _vnds(text: bytes) -> "dict[int, Identity | None]":
    """Read lines as ``vnd0: not in use`` and ``vnd1: /home (/dev/wd0f) inode 53``.

    A file system that is not mounted under its device's own name is ``wd0f``, one without a device ``dev 168,5``.
    """
    found: dict[int, Identity | None] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(b": ")
        number = name.removeprefix(b"vnd")
        if not number.isdigit():
            raise _not_understood(b"vnconfig", line)
        if rest == b"not in use":
            found[int(number)] = None
            continue
        where, _, inode = rest.rpartition(b" inode ")
        dev = _device(where)
        if dev is None or not inode.isdigit():
            raise _not_understood(b"vnconfig", line)
        found[int(number)] = (dev, int(inode))
    return found


def _device(where: bytes) -> int | None:
    """Return the number of the device that a file system is on, as vnconfig names it."""
    major, comma, minor = where.removeprefix(b"dev ").partition(b",")
    if comma and where.startswith(b"dev ") and major.isdigit() and minor.isdigit():
        return posix.makedev(int(major), int(minor))
    name = where.rpartition(b" (")[2].rstrip(b")").removeprefix(b"/dev/")
    status = status_of(PLACE.dev + b"/" + name)
    return None if status is None else status.st_rdev


def _not_understood(program: bytes, said: bytes) -> Failure:
    return Failure(
        "{program} says {said}, which this vbdkit does not understand: who has which disk cannot be told",
        program=program,
        said=repr(said[:200].decode("utf-8", "backslashreplace")),
    )
