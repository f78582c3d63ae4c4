"""How the disks and files of a NetBSD host are carved from one another: vnds, disklabels, wedges.

The interface is vbdkit.storage.chain.Stack. Devices are known by the numbers of their block nodes below /dev. What
RAIDframe, ccd, cgd and LVM are made of is not followed: each of them has its parts open, and NetBSD lets a block
device be opened once only (spec_open), which local users shows.
"""

import _stat

from vbdkit.platform.bsd import PLACE, WAYS_OUT
from vbdkit.platform.netbsd import system, vnd
from vbdkit.platform.target import status_of
from vbdkit.storage.chain import BLOCK, Chain, Piece, run
from vbdkit.storage.sharing import EXCLUSIVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.storage.chain import Link

    Identity = tuple[int, int]

_LETTERS = b"abcdefghijklmnop"


class VndChain(Chain):
    """A chain that remembers the facts it comes from."""

    __slots__ = ("facts",)

    ways_out = {
        **WAYS_OUT,
        EXCLUSIVE: "NetBSD lets a block device be opened once only; find what has it open (mount, swapctl -l, "
        "raidctl, cgdconfig -l, another guest: xl block-list) and take it away there first",
    }

    def __init__(self, target: bytes, facts: "system.Facts | None") -> None:
        """``facts`` is None where there was no system to ask."""
        super().__init__(target)
        self.facts = facts


class Stack:
    """The facts of this host as they are asked for."""

    def __init__(self, facts: "system.Facts") -> None:
        """Find the nodes of all disks. Raises OSError."""
        self._raw = facts.raw
        # device -> (disk, letter of the partition; empty for a wedge), and back
        self._names: dict[Identity, tuple[bytes, bytes]] = {}
        self._devices: dict[tuple[bytes, bytes], Identity] = {}
        self._labels: dict[bytes, tuple[dict[bytes, tuple[int, int]] | None, list[bytes]]] = {}
        self._under: dict[Identity, Identity] = {}
        self._on_file: dict[Identity, list[Identity]] = {}
        for disk in facts.disks:
            for letter in (b"",) if disk.startswith(b"dk") else [bytes((code,)) for code in _LETTERS]:
                self._add(PLACE.dev + b"/" + disk + letter, disk, letter)
        for number, file in facts.vnds.items():
            if file is not None:
                device = self._add(vnd.node(number, self._raw), b"vnd%d" % number, self._raw)
                if device is not None:
                    self._under[device] = file
                    self._on_file.setdefault(file, []).append(device)

    def _add(self, path: bytes, disk: bytes, letter: bytes) -> "Identity | None":
        status = status_of(path)
        if status is None or not _stat.S_ISBLK(status.st_mode):
            return None
        device = (BLOCK, status.st_rdev)
        self._names[device] = (disk, letter)
        self._devices[disk, letter] = device
        return device

    def below(self, identity: "Identity") -> "list[Piece]":
        """Return what this thing is carved from. Raises Failure."""
        file = self._under.get(identity)
        if file is not None:
            return [Piece(identity, file, run(0))]
        if identity[0] != BLOCK:
            # A file's st_dev is the number of the block device that its file system is on (ufs_getattr).
            under = (BLOCK, identity[0])
            return [Piece(identity, under, None, True)] if under in self._names else []
        disk, letter = self._names.get(identity, (b"", b""))
        if not disk or letter == self._raw:
            return []
        if not letter:
            parent, start, size = system.wedge(disk)
            whole = self._devices.get((parent, self._raw))
            return [Piece(identity, whole, run(start, size))] if whole is not None else []
        whole = self._devices.get((disk, self._raw))
        label = self._label(disk)[0]
        if whole is None:
            return []
        if label is None:
            return [Piece(identity, whole, run(0))]  # it may be anything: it counts as all of the disk
        start, size = label.get(letter, (0, 0))
        return [Piece(identity, whole, run(start, size))] if size else []

    def above(self, identity: "Identity") -> "list[Piece]":
        """Return what is carved from this thing. Raises Failure."""
        found = [Piece(device, identity, run(0)) for device in self._on_file.get(identity, ())]
        if identity[0] == BLOCK:
            found += [Piece(file, identity, None, True) for file in self._on_file if (BLOCK, file[0]) == identity]
            disk, letter = self._names.get(identity, (b"", b""))
            if disk and letter == self._raw:
                letters, wedges = self._label(disk)
                uppers = [
                    device
                    for (name, each), device in self._devices.items()
                    if name == disk and each != self._raw and (letters is None or each in letters)
                ]
                uppers += [self._devices[name, b""] for name in wedges if (name, b"") in self._devices]
                for upper in uppers:
                    found += [piece for piece in self.below(upper) if piece.lower == identity]
        return found

    def _label(self, disk: bytes) -> "tuple[dict[bytes, tuple[int, int]] | None, list[bytes]]":
        found = self._labels.get(disk)
        if found is None:
            found = self._labels[disk] = system.partitions(disk)
        return found

    def describe(self, link: "Link") -> None:
        """Give a link its name, and say what it is."""
        disk, letter = self._names.get(link.identity, (b"", b""))
        if disk:
            link.name = link.name or PLACE.dev + b"/" + disk + letter
            link.what = "vnd" if link.identity in self._under else "wedge" if not letter else ""
            link.what = link.what or ("disk" if letter == self._raw else "partition")
        elif link.identity[0] != BLOCK:
            link.what = "file"
            link.name = link.name or b"file %d of a file system" % link.identity[1]
