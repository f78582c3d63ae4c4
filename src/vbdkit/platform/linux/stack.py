"""How block devices and files of this host are carved from one another: sysfs, loop devices, device-mapper tables.

The interface is vbdkit.storage.chain.Stack. sysfs tells partitions (start, size), members (slaves) and what is built
on a device (holders): Documentation/ABI/stable/sysfs-block and block/holder.c in the kernel.
"""

import errno
import posix

import vbdkit.platform.linux.loop as loops
from vbdkit.platform.linux import dm, kernel
from vbdkit.platform.linux.kernel import device_folder, device_number, exists, number_in, numbers, read
from vbdkit.protocol.failure import Failure
from vbdkit.storage.chain import BLOCK, Piece, run

TYPE_CHECKING = False
if TYPE_CHECKING:
    Identity = tuple[int, int]

# What the kernel says of a device that was there a moment ago.
_GONE = (errno.ENOENT, errno.ENXIO, errno.ENODEV)
_SECTOR = 512  # what sysfs and device-mapper count in, whatever the device's own sectors are


class Gone(Failure):
    """A device that sysfs does not know, or not any more."""


class Stack:
    """The facts of this host as they are asked for."""

    def __init__(self) -> None:
        """List the loop devices, which sysfs has no links for. Raises OSError."""
        self._names: dict[Identity, bytes] = {}
        self._loops: dict[Identity, loops.Loop] = {}
        self._on: dict[Identity, list[Piece]] = {}
        self._behind: dict[Identity, Piece] = {}
        self._below: dict[Identity, list[Piece]] = {}
        self._above: dict[Identity, list[Piece]] = {}
        self._paths: dict[Identity, list[Identity]] = {}
        self._file_systems: dict[int, list[int]] = {}
        self._mapper = dm.Mapper()
        self._mapper_major = 0
        for loop in loops.bound():
            own = (BLOCK, loop.rdev)
            lower = (BLOCK, loop.backing_rdev) if loop.backing_rdev else loop.backing
            piece = Piece(own, lower, run(loop.offset, loop.limit))
            self._loops[own] = loop
            self._behind[own] = piece
            self._on.setdefault(lower, []).append(piece)

    def close(self) -> None:
        """Close what was opened for asking."""
        self._mapper.close()

    def lies_on(self, dev: int, rdevs: "list[int]") -> None:
        """Note on which devices a file system lies whose own number (st_dev) names none (btrfs)."""
        self._file_systems[dev] = rdevs

    def name(self, identity: "Identity") -> bytes:
        """Return the path by which the kernel knows a thing that was seen; empty where it has none."""
        loop = self._loops.get(identity)
        if loop is not None:
            return loop.path
        if identity[0] != BLOCK:
            return loops.backing_name(self._loops[self._on[identity][0].upper].number) if identity in self._on else b""
        name = self._names.get(identity)
        return b"/dev/" + name.replace(b"!", b"/") if name else b""

    def below(self, identity: "Identity") -> "list[Piece]":
        """Return what this thing is carved from. Raises OSError and Failure."""
        found = self._below.get(identity)
        if found is None:
            found = self._below[identity] = self._carved_from(identity)
        return found

    def _carved_from(self, identity: "Identity") -> "list[Piece]":
        kind, rdev = identity
        if kind != BLOCK:
            if posix.major(kind):
                return [Piece(identity, (BLOCK, kind), None, True)]
            return [Piece(identity, (BLOCK, dev), None, True) for dev in self._file_systems.get(kind, ())]
        place = device_folder(rdev)
        try:
            members = posix.listdir(place + b"/slaves")
        except FileNotFoundError:
            return [self._partition(rdev, place)]
        if members:
            return self._assembled(identity, [(BLOCK, self._named(name)) for name in members], place)
        behind = self._behind.get(identity)
        return ([] if behind is None else [behind]) + self._path_of(identity, place)

    def _path_of(self, identity: "Identity", place: bytes) -> "list[Piece]":
        """Return the multipath device that this is a path of, if any: all paths are windows on the same sectors."""
        holders = posix.listdir(place + b"/holders")
        if len(holders) == 1 and holders[0].startswith(b"dm-"):
            device = self._mapped(holders[0])
            if self._mapper.table(device) is None:
                return [Piece(identity, (BLOCK, device), run(0))]
        return []

    def _partition(self, rdev: int, place: bytes) -> Piece:
        try:
            start, size = number_in(place + b"/start"), number_in(place + b"/size")
            disk = device_number(read(place + b"/../dev"))
        except FileNotFoundError:
            raise Gone(
                "block device {number} is not in {place}: what it is carved from cannot be told "
                "(is /sys mounted? was the device removed just now?)",
                number="{}:{}".format(*numbers(rdev)),
                place=place,
            ) from None
        return Piece((BLOCK, rdev), (BLOCK, disk), run(start * _SECTOR, size * _SECTOR or 1))

    def _assembled(self, identity: "Identity", members: "list[Identity]", place: bytes) -> "list[Piece]":
        """Return the pieces of a device that is made of others: by its table where it has one."""
        table: dm.Table = {}
        if exists(place + b"/dm"):
            found = self._mapper.table(identity[1])
            if found is None:
                # What a multipath device is made of is carved from it (see _carved_from).
                self._paths[identity] = members
                return []
            table = found
        return [Piece(identity, member, table.get(member[1])) for member in members]

    def above(self, identity: "Identity") -> "list[Piece]":
        """Return what is carved from this thing, with the pieces that ``below`` gives. Raises OSError and Failure."""
        found = self._above.get(identity)
        if found is None:
            found = self._above[identity] = list(self._on.get(identity, ()))
            if identity[0] == BLOCK:
                for upper in self._built_on(identity):
                    try:
                        found += [piece for piece in self._pieces(upper, identity) if piece.lower == identity]
                    except Gone:
                        continue  # since it was listed; what comes meanwhile is published under the lock, so not yet
                    except OSError as error:
                        if error.errno not in _GONE:
                            raise
        return found

    def _pieces(self, upper: "Identity", lower: "Identity") -> "list[Piece]":
        """Return at least the piece that ``upper`` has of ``lower``, without looking for more than is needed."""
        if upper in self._below or not self._names.get(upper, b"").startswith(b"dm-"):
            return self.below(upper)
        # A volume group may have thousands of volumes: one question each.
        table = self._mapper.table(upper[1])
        return [] if table is None else [Piece(upper, lower, table.get(lower[1]))]

    def _built_on(self, identity: "Identity") -> "set[Identity]":
        """Return what may be carved from a device: loop devices' files on its file system, partitions, volumes."""
        rdev = identity[1]
        place = device_folder(rdev)
        files = [loop.backing for loop in self._loops.values() if loop.backing[0] == rdev]
        return {*files, *self._partitions(place), *self._holders(place), *self._paths.get(identity, ())}

    def _holders(self, place: bytes) -> "list[Identity]":
        found = []
        for name in posix.listdir(place + b"/holders"):
            try:
                found.append((BLOCK, self._mapped(name) if name.startswith(b"dm-") else self._named(name)))
            except FileNotFoundError:
                continue  # gone since it was listed
        return found

    def _mapped(self, name: bytes) -> int:
        """Return the number of dm-N, which is N; all device-mapper devices have one major number (dm.c)."""
        if not self._mapper_major:
            self._mapper_major = posix.major(self._named(name))
        rdev = posix.makedev(self._mapper_major, int(name[3:]))
        self._names[(BLOCK, rdev)] = name
        return rdev

    def _partitions(self, place: bytes) -> "list[Identity]":
        disk = posix.readlink(place).rpartition(b"/")[2]
        found = []
        for name in posix.listdir(place):
            if name.startswith(disk) and exists(place + b"/" + name + b"/partition"):
                found.append((BLOCK, self._named(name)))
        return found

    def _named(self, name: bytes) -> int:
        """Return the number of a device by the kernel's name for it, and keep that name. Raises OSError."""
        rdev = device_number(read(b"%s/class/block/%s/dev" % (kernel.SYSFS, name)))
        self._names[(BLOCK, rdev)] = name
        return rdev
