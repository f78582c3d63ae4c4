"""A sysfs of block devices that this machine does not have: the folders, files and links that the kernel would show.

Facts: Documentation/ABI/stable/sysfs-block, block/genhd.c, block/holder.c, block/partitions/core.c,
drivers/md/dm-sysfs.c, drivers/block/nbd.c, drivers/block/rbd.c. The real thing is looked at in the Xen rig, whose
kernel has these drivers.
"""

import errno
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from vbdkit.platform.linux import dm

MAPPER = 253


@dataclass
class Sysfs:
    """Block devices under ``root``, and the tables of those that are device-mapper's."""

    root: Path
    tables: dict[int, list[tuple[int, int, bytes, bytes]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the folders of links."""
        for folder in ("dev/block", "class/block"):
            (self.root / folder).mkdir(parents=True)

    def disk(self, name: str, number: str, bus: str = "virtual/block", on: tuple[str, ...] = (), **files: str) -> int:
        """A whole device made of the devices ``on``. ``files``: by name, ``__`` for a slash. Returns its number."""
        place = self.root / "devices" / bus / name
        (place / "slaves").mkdir(parents=True)
        rdev = self._device(place, name, number, files)
        for lower in on:
            (place / "slaves" / lower).symlink_to(self._folder(lower))
            (self._folder(lower) / "holders" / name).symlink_to(place)
        return rdev

    def partition(self, disk: str, name: str, number: str, start: int, size: int) -> int:
        """A partition: start and size in sectors."""
        files = {"partition": name.removeprefix(disk).lstrip("p"), "start": str(start), "size": str(size)}
        return self._device(self._folder(disk) / name, name, number, files)

    def mapped(self, minor: int, name: str, uuid: str, on: tuple[str, ...], *lines: str) -> int:
        """A device-mapper device with its table: lines as `dmsetup table` shows them."""
        rdev = self.disk(f"dm-{minor}", f"{MAPPER}:{minor}", on=on, dm__name=name, dm__uuid=uuid)
        self.tables[rdev] = []
        for line in lines:
            start, length, kind, *rest = line.split(" ", 3)
            words = (rest[0] if rest else "").encode()
            self.tables[rdev].append((int(start), int(length), kind.encode(), words))
        return rdev

    def _folder(self, name: str) -> Path:
        return (self.root / "class/block" / name).resolve()

    def _device(self, place: Path, name: str, number: str, files: dict[str, str]) -> int:
        (place / "holders").mkdir(parents=True)
        for file, text in {"dev": number, "ro": "0", **files}.items():
            path = place / file.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text + "\n")
        for link in (self.root / "dev/block" / number, self.root / "class/block" / name):
            link.symlink_to(os.path.relpath(place, link.parent))
        major, minor = map(int, number.split(":"))
        return os.makedev(major, minor)

    def ioctl(self, fd: int, request: int, buffer: bytearray) -> int:
        """Answer DM_TABLE_STATUS as the kernel does (drivers/md/dm-ioctl.c), also that the buffer is too small."""
        assert request == dm._TABLE_STATUS
        size, start = struct.unpack_from("=2I", buffer, 12)
        flags, rdev = struct.unpack_from("=I8xQ", buffer, 28)
        assert size == len(buffer)
        assert flags & (1 << 4), "the table is asked for, not its state"
        if rdev not in self.tables:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        data = bytearray()
        for first, length, kind, words in self.tables[rdev]:
            spec = len(data)
            data += struct.pack("=2QiI16s", first, length, 0, 0, kind) + words + b"\0"
            data += bytes(-len(data) % 8)
            struct.pack_into("=I", data, spec + 20, len(data))
        if start + len(data) > size:
            struct.pack_into("=I", buffer, 28, flags | 1 << 8)
            return 0
        buffer[start : start + len(data)] = data
        struct.pack_into("=I", buffer, 20, len(self.tables[rdev]))
        return 0
