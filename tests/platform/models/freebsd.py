"""A model of FreeBSD: GEOM as ``sysctl kern.geom.confxml`` prints it, and mount(8), swapctl(8).

The XML has the form of sys/geom/geom_dump.c (g_conf_specific and what it calls), of
g_part_dumpconf (geom/part/g_part.c) and g_md_dumpconf (dev/md/md.c).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.platform.models.place import Place


def escaped(text: bytes) -> bytes:
    """As g_conf_print_escaped (sys/geom/geom_dump.c) does: byte by byte."""
    out = b""
    for byte in text:
        if byte in b"&<>'\"" or byte > 0x7E:
            out += b"&#x%X;" % byte
        else:
            out += bytes([byte]) if byte in b"\t\n\r" or byte > 0x1F else b"?"
    return out


@dataclass
class Use:
    """One consumer: of which provider, and how often it has it open (r, w, e)."""

    of: str
    mode: tuple[int, int, int] = (0, 0, 0)


@dataclass
class Geom:
    """One geom: its class, its name, what it consumes, and its providers with what their class tells."""

    kind: str
    name: str
    uses: list[Use] = field(default_factory=list)
    gives: Mapping[str, Mapping[str, str | bytes | int]] = field(default_factory=dict)


class Freebsd:
    """One host. ``geoms`` may be changed at any time; ``tell`` lets sysctl know."""

    def __init__(self, folder: Path) -> None:
        self.place = Place(folder, ["sysctl", "mount", "swapctl"])
        self.geoms: list[Geom] = []
        self.mounts: list[str] = ["/dev/ada9p2 on / (ufs, local, soft-updates)"]
        self.swaps: list[str] = []
        self.tell()

    def tell(self) -> None:
        """Let the programs print what is so now."""
        self.place.say("sysctl -b kern.geom.confxml", self.confxml() + b"\0")
        self.place.say("mount", "".join(line + "\n" for line in self.mounts))
        swap = "".join(f"{path:<14} 4194304      1024\n" for path in self.swaps)
        self.place.say("swapctl -l", "Device:       1024-blocks     Used:\n" + swap)

    def disk(self, name: str, stands_for: str = "", size: int = 64 << 20) -> Path:
        """A disk, with its node and the geom behind that."""
        return self.give(Geom("DISK", name, gives={name: {"mediasize": size}}), stands_for)

    def give(self, geom: Geom, stands_for: str = "") -> Path:
        """A geom; its first provider's node."""
        self.geoms.append(geom)
        nodes = [self.place.node(name, stands_for) for name in geom.gives]
        self.geoms += [Geom("DEV", name, [Use(name)]) for name in geom.gives]
        self.tell()
        return nodes[0] if nodes else Path()

    def partition(self, disk: str, number: int, start: int, size: int, stands_for: str = "") -> Path:
        """A partition of a disk, in bytes."""
        facts: dict[str, str | bytes | int] = {
            "mediasize": size,
            "start": start // 512,
            "end": (start + size) // 512 - 1,
            "index": number,
            "type": "freebsd-ufs",
            "offset": start,
            "length": size,
        }
        (table,) = [geom for geom in self.geoms if (geom.kind, geom.name) == ("PART", disk)] or [
            Geom("PART", disk, [Use(disk)])
        ]
        name = f"{disk}p{number}"
        table.gives = {**table.gives, name: facts}
        if table not in self.geoms:
            self.geoms.append(table)
        self.geoms.append(Geom("DEV", name, [Use(name)]))
        node = self.place.node(name, stands_for)
        self.tell()
        return node

    def md(self, unit: int, file: Path | bytes, read_only: bool = False, size: int = 1 << 20, node: str = "") -> Path:
        """What ``mdconfig -a -t vnode -f FILE -u UNIT`` makes."""
        path = file if isinstance(file, bytes) else str(file).encode()
        facts: dict[str, str | bytes | int] = {
            "mediasize": size,
            "unit": unit,
            "length": size,
            "compression": "off",
            "access": "read-only" if read_only else "read-write",
            "type": "vnode",
            "file": path,
        }
        return self.give(Geom("MD", f"md{unit}", gives={f"md{unit}": facts}), node)

    def use(self, kind: str, name: str, of: str, mode: tuple[int, int, int]) -> None:
        """Something that has a provider open: VFS, SWAP, ZFS::VDEV, ..."""
        self.geoms.append(Geom(kind, name, [Use(of, mode)]))
        self.tell()

    def confxml(self) -> bytes:
        """The mesh as the kernel prints it."""
        keys: dict[str, bytes] = {}
        for number, geom in enumerate(self.geoms):
            for name in geom.gives:
                keys[name] = b"0xfffff80003%06x" % (number * 256 + len(keys))
        out = b"<mesh>\n"
        for kind in dict.fromkeys(geom.kind for geom in self.geoms):
            out += b'  <class id="0xffffffff81%06x">\n    <name>%s</name>\n' % (len(kind), kind.encode())
            for number, geom in enumerate(self.geoms):
                if geom.kind == kind:
                    out += self._geom(number, geom, keys)
            out += b"  </class>\n"
        return out + b"</mesh>\n"

    @staticmethod
    def _geom(number: int, geom: Geom, keys: dict[str, bytes]) -> bytes:
        own = b"0xfffff80002%06x" % number
        out = b'    <geom id="%s">\n      <class ref="0xffffffff81%06x"/>\n      <name>%s</name>\n' % (
            own,
            len(geom.kind),
            escaped(geom.name.encode()),
        )
        out += b"      <rank>1</rank>\n      <config>\n      </config>\n"
        for position, use in enumerate(geom.uses):
            out += b'\t<consumer id="0xfffff80004%03x%03x">\n\t  <geom ref="%s"/>\n' % (number, position, own)
            out += b'\t  <provider ref="%s"/>\n\t  <mode>r%dw%de%d</mode>\n' % (keys[use.of], *use.mode)
            out += b"\t  <config>\n\t  </config>\n\t</consumer>\n"
        for name, facts in geom.gives.items():
            out += b'\t<provider id="%s">\n\t  <geom ref="%s"/>\n\t  <mode>r0w0e0</mode>\n' % (keys[name], own)
            out += b"\t  <name>%s</name>\n\t  <mediasize>%d</mediasize>\n" % (
                escaped(name.encode()),
                int(facts["mediasize"]),
            )
            out += b"\t  <sectorsize>512</sectorsize>\n\t  <stripesize>0</stripesize>\n"
            out += b"\t  <stripeoffset>0</stripeoffset>\n"
            out += b"\t  <config>\n"
            for key, value in facts.items():
                if key != "mediasize":
                    text = value if isinstance(value, bytes) else str(value).encode()
                    out += b"\t    <%s>%s</%s>\n" % (key.encode(), escaped(text), key.encode())
            out += b"\t  </config>\n\t</provider>\n"
        return out + b"    </geom>\n"
