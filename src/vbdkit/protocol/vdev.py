"""How a guest's virtual disk is named and numbered: ``xvda1`` and 51713, both ways (xen-vbd-interface(7)).

One table has the encodings; parsing, naming and taking a number apart read it. What libxl accepts is accepted with
the same number, and what it refuses is refused, except where it contradicts the man page or itself:

- ``d5`` without a partition is disk 5, as the man page has it; libxl 4.17 wants ``d5p0``.
- Accidents of its C parsing are no names here: nothing at all (0), ``hd`` and ``hd1`` (hdb, hdb1), signs and blanks,
  and numbers that wrap at 32 bits (``d4294967296p0`` is disk 0 there).
"""

import re

from vbdkit.protocol.failure import Failure

# (kind, number of disk ``first`` partition 0, bits of the partition, first disk, disks). The first that fits is used.
ENCODINGS = (
    ("hd", 3 << 8, 6, 0, 2),
    ("hd", 22 << 8, 6, 2, 2),
    ("sd", 8 << 8, 4, 0, 16),
    ("xvd", 202 << 8, 4, 0, 16),
    ("xvd", 1 << 28, 8, 0, 1 << 20),
)
LIMIT = 1 << 31  # a devid is a C int

_NUMBER = r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*"
_LETTERS = re.compile(r"(hd|sd|xvd)([a-z]+)([1-9][0-9]*)?", re.ASCII)
_DISK_PARTITION = re.compile(rf"d({_NUMBER})(?:p({_NUMBER}))?", re.ASCII)
_PLAIN = re.compile(_NUMBER, re.ASCII)


class VdevError(Failure):
    """The text names no virtual disk."""


class Vdev:
    """A virtual disk: its number ``devid``, and what it stands for.

    ``kind`` is xvd, sd or hd, ``disk`` counts from 0, ``partition`` 0 is the whole disk. For a number outside
    all encodings all three are None: guests ignore it, or know it from older times.
    """

    __slots__ = ("devid", "disk", "kind", "partition")

    def __init__(self, devid: int) -> None:
        """Take the number apart. Raises VdevError where it is none (0 to 2**31 - 1)."""
        if not 0 <= devid < LIMIT:
            raise VdevError(
                "{devid} is no number of a virtual disk; these go from 0 to {last}", devid=devid, last=LIMIT - 1
            )
        self.devid = devid
        self.kind: str | None = None
        self.disk: int | None = None
        self.partition: int | None = None
        for kind, base, bits, first, disks in ENCODINGS:
            offset = devid - base
            if 0 <= offset < disks << bits:
                self.kind, self.disk, self.partition = kind, first + (offset >> bits), offset & (1 << bits) - 1

    def __str__(self) -> str:
        """Return the name that parses to this number: xvda1, or the number itself where no name does."""
        if self.kind is None or self.disk is None or self.partition is None:
            return str(self.devid)
        # 1<<28 holds small disks too, but their names mean 202<<8.
        if _encode(self.kind, self.disk, self.partition) != self.devid:
            return str(self.devid)
        return f"{self.kind}{_letters(self.disk)}{self.partition or ''}"

    def __repr__(self) -> str:
        """Show number and name."""
        return f"Vdev({self.devid}: {self})"

    def __eq__(self, other: object) -> bool:
        """Two are the same by their number."""
        return isinstance(other, Vdev) and other.devid == self.devid

    def __hash__(self) -> int:
        """By the number."""
        return hash(self.devid)


def parse_vdev(text: str) -> Vdev:
    """Return the virtual disk that a user means by ``text``.

    That is xvda, sdb3, hdc2 (kind, letters, partition); d1p2 (xvd by numbers); or the bare number, decimal, hex or
    octal. Raises VdevError.
    """
    devid: int | None
    if found := _LETTERS.fullmatch(text):
        devid = _encode(found[1], _disk(found[2]), int(found[3] or "0"))
        if devid is None:
            raise VdevError(
                "{name} is beyond the virtual disks that there are: {known}", name=text, known=_known(found[1])
            )
    elif found := _DISK_PARTITION.fullmatch(text):
        devid = _encode("xvd", _c_number(found[1]), _c_number(found[2] or "0"))
        if devid is None:
            raise VdevError("{name} is beyond the virtual disks that there are: {known}", name=text, known=_known("d"))
    elif _PLAIN.fullmatch(text):
        devid = _c_number(text)
    else:
        raise VdevError(
            "{name} names no virtual disk; names are like xvda, sdb3, hdc, d1p2, or a number (xen-vbd-interface(7))",
            name=text or "an empty text",
        )
    return Vdev(devid)


def _encode(kind: str, disk: int, partition: int) -> int | None:
    for name, base, bits, first, disks in ENCODINGS:
        if name == kind and 0 <= disk - first < disks and partition < 1 << bits:
            return base + (disk - first << bits) + partition
    return None


def _known(kind: str) -> str:
    """The names of a kind, in words; ``d`` stands for xvd by numbers."""
    fitting = [row for row in ENCODINGS if row[0] == (kind if kind != "d" else "xvd")]
    disks = max(first + number for _, _, _, first, number in fitting)
    partitions = max((1 << bits) - 1 for _, _, bits, _, _ in fitting)
    if kind == "d":
        return f"d0 to d{disks - 1}, partitions p0 to p{partitions}"
    return f"{kind}a to {kind}{_letters(disks - 1)}, partitions 1 to {partitions}"


def _letters(disk: int) -> str:
    """0 is a, 25 z, 26 aa."""
    text, left = "", disk + 1
    while left:
        left, letter = divmod(left - 1, 26)
        text = chr(ord("a") + letter) + text
    return text


def _disk(letters: str) -> int:
    disk = 0
    for letter in letters:
        disk = disk * 26 + ord(letter) - ord("a") + 1
    return disk - 1


def _c_number(text: str) -> int:
    """Decimal, 0x hex or 0 octal, as in C."""
    if text[:2] in ("0x", "0X"):
        return int(text[2:], 16)
    return int(text, 8 if text[0] == "0" else 10)
