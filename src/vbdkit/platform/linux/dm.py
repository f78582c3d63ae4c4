"""Device-mapper tables: which part of which device a mapped device is.

Facts from linux/dm-ioctl.h and, for what each target's line holds, Documentation/admin-guide/device-mapper.
"""

import errno
import posix
from _struct import Struct
from fcntl import ioctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    # rdev of a lower device -> where it is used (see storage.chain.Piece); None: somewhere
    Table = dict[int, "tuple[tuple[int, int, int, int], ...] | None"]

_CONTROL = b"/dev/mapper/control"
_TABLE_STATUS = 0xC138FD0C
_STATUS_TABLE_FLAG = 1 << 4
_NOFLUSH_FLAG = 1 << 11  # do not make a thin pool write its metadata for this
_BUFFER_FULL_FLAG = 1 << 8
# struct dm_ioctl: version (3), data size, data start, target count, open count, flags, event number, padding, dev,
# name, uuid, data
_HEAD = Struct("=8I2IQ128s129s7s")
# struct dm_target_spec: start, length, status, next; then the type's name
_TARGET = Struct("=2QiI16s")
_SECTOR = 512
_FLAGS = _STATUS_TABLE_FLAG | _NOFLUSH_FLAG


class Mapper:
    """The way to ask device-mapper, opened when it is first needed: a volume group may have thousands of volumes."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._fd = -1

    def close(self) -> None:
        """Close what was opened; again is no harm."""
        if self._fd >= 0:
            posix.close(self._fd)
            self._fd = -1

    def table(self, rdev: int) -> "Table | None":
        """Return where a mapped device's lower devices are used; None for multipath, whose paths are all the same.

        A target whose line does not say where uses "somewhere" of each device that it names. Raises OSError.
        """
        if self._fd < 0:
            self._fd = posix.open(_CONTROL, posix.O_RDWR | posix.O_CLOEXEC)
        found: Table = {}
        for start, length, kind, line in _lines(self._fd, rdev):
            if kind == b"multipath":
                return None
            _use(found, kind, line.split(), start * _SECTOR, length * _SECTOR)
        return found


def _use(found: "Table", kind: bytes, words: "list[bytes]", start: int, length: int) -> None:
    """Add what one line of a table uses."""
    if kind == b"linear":  # device offset
        parts = [(words[0], words[1], length)]
    elif kind == b"striped":  # stripes chunk (device offset)...
        count = int(words[0])
        parts = [(words[2 + 2 * i], words[3 + 2 * i], length // count) for i in range(count)]
    elif kind == b"crypt":  # cipher key iv device offset
        parts = [(words[3], words[4], length)]
    else:
        for word in words:
            lower = _number(word)
            if lower:
                found[lower] = None
        return
    for device, offset, size in parts:
        lower = _number(device)
        before = found.get(lower, ())
        if before is not None:
            first = int(offset) * _SECTOR
            found[lower] = (*before, (start, start + length, first, first + size))


def _number(word: bytes) -> int:
    """Return the device number that a word is ("253:4"), or 0."""
    major, _, minor = word.partition(b":")
    return posix.makedev(int(major), int(minor)) if major.isdigit() and minor.isdigit() else 0


def _lines(control: int, rdev: int) -> "list[tuple[int, int, bytes, bytes]]":
    """Return the live table: (start, length, type, line), sectors. Raises OSError."""
    size = 4096
    while True:
        buffer = bytearray(size)
        _HEAD.pack_into(buffer, 0, 4, 0, 0, size, _HEAD.size, 0, 0, _FLAGS, 0, 0, rdev, b"", b"", b"")
        ioctl(control, _TABLE_STATUS, buffer)
        head = _HEAD.unpack_from(buffer)
        if not head[7] & _BUFFER_FULL_FLAG:
            break
        if size >= 1 << 24:
            raise OSError(errno.EMSGSIZE, "a device-mapper table of more than 16 MiB")
        size *= 4
    found = []
    at = base = head[4]
    for _ in range(head[5]):
        start, length, _, following, kind = _TARGET.unpack_from(buffer, at)
        end = buffer.index(b"\0", at + _TARGET.size)
        found.append((start, length, kind.rstrip(b"\0"), bytes(buffer[at + _TARGET.size : end])))
        # ``next`` counts from the start of the data when a table is told.
        at = base + following
    return found
