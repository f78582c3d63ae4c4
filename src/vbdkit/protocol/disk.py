"""xl's disk specifications: ``/dev/vg/web,,xvda`` and all other forms of xl-disk-configuration(5), parsed and shown.

The rules are the man page's. Where it is silent they are what libxlutil 4.17 does with the text, found by asking it;
tests/protocol/test_disk_oracle.py asks it again. No I/O: whether a target, script or domain is there is not known here.

A specification is a row of parameters. Which form one has is decided as by the real parser's lexer: of all forms that
fit at a place the one that reaches furthest; of those that reach equally far, the first in _FORMS.
"""

import json
import re
from dataclasses import dataclass, fields

from vbdkit.protocol.failure import Failure

FORMATS = ("raw", "qcow", "qcow2", "vhd", "qed", "empty")
BACKENDS = ("phy", "tap", "qdisk", "standalone")
SPECIFICATIONS = ("xen", "virtio")
UNKNOWN = "unknown"


@dataclass(slots=True)
class Disk:
    """What libxl knows of a disk: its libxl_device_disk, field by field, in the order that it prints them.

    Texts are as in the specification; bytes that are no UTF-8 are kept as surrogates (os.fsencode brings them back).
    ``None`` is unset; an unset yes-or-no is decided by the toolstack later.
    """

    backend_domid: int = 0
    backend_domname: str | None = None
    pdev_path: str | None = None
    vdev: str | None = None
    backend: str = UNKNOWN
    format: str = UNKNOWN
    script: str | None = None
    removable: bool = False
    readwrite: bool = False
    is_cdrom: bool = False
    direct_io_safe: bool = False
    discard_enable: bool | None = None
    specification: str = UNKNOWN
    transport: str = UNKNOWN
    irq: int = 0
    base: int = 0
    colo_enable: bool | None = None
    colo_restore_enable: bool | None = None
    colo_host: str | None = None
    colo_port: int = 0
    colo_export: str | None = None
    active_disk: str | None = None
    hidden_disk: str | None = None
    trusted: bool | None = None


class DiskError(Failure):
    """A text is no disk specification. ``words`` has all that is wrong with it, each as xl words it."""

    def __init__(self, words: "list[str]") -> None:
        """Keep the words; the sentence is all of them."""
        super().__init__("config parsing error in disk specification: {words}", words="; ".join(words))
        self.words = tuple(words)


def parse_disk(text: str, *more: str) -> Disk:
    """Return the disk that a specification stands for. ``more``: its further parts, as `xl block-attach` takes them.

    Raises DiskError.
    """
    parser = _Parser()
    for part in (text, *more):
        parser.read(part)
    return parser.finish()


def disk_json(disk: Disk) -> str:
    """Return the disk as `xl -N block-attach` prints it: JSON, what is unset left out, a line feed at the end."""
    shown: dict[str, object] = {}
    for one in fields(disk):
        value = getattr(disk, one.name)
        if value == one.default:
            continue
        if isinstance(value, bool):
            # libxl's own types: yes, no or unset in words, most others as C integers.
            value = str(value) if one.default is None else value if one.name == "direct_io_safe" else int(value)
        shown[one.name] = value
    text = json.dumps(shown, indent=4, ensure_ascii=False)
    return re.sub(r"(?<!\\)((?:\\\\)*)\\u([0-9a-f]{4})", lambda found: f"{found[1]}\\u{found[2].upper()}", text) + "\n"


# What a parameter sets. Texts may be set once, after which only an empty one may be set again.
_TEXTS = {
    "backend": "backend_domname",
    "vdev": "vdev",
    "script": "script",
    "colo-host": "colo_host",
    "colo-export": "colo_export",
    "active-disk": "active_disk",
    "hidden-disk": "hidden_disk",
}
# parameter -> (field, known values and what they mean). May be set again to the same.
_CHOICES = {
    "format": ("format", {"": "raw", **{name: name for name in FORMATS}}),
    "backendtype": ("backend", {name: name for name in BACKENDS}),
    "specification": ("specification", {name: name for name in SPECIFICATIONS}),
}
_ACCESS = {"": True, "rw": True, "w": True, "ro": False, "r": False}
_DEVTYPES = {"cdrom": True, "disk": False}
# flag -> (field, value). trusted and untrusted: in the man page of 4.17, but not in its parser.
_FLAGS = {
    "cdrom": ("is_cdrom", True),
    "direct-io-safe": ("direct_io_safe", True),
    "discard": ("discard_enable", True),
    "no-discard": ("discard_enable", False),
    "colo": ("colo_enable", True),
    "no-colo": ("colo_enable", False),
    "trusted": ("trusted", True),
    "untrusted": ("trusted", False),
}
# deprecated prefix -> what it stands for
_PREFIXES = {
    "raw": ("format", "raw"),
    "qcow": ("format", "qcow"),
    "qcow2": ("format", "qcow2"),
    "vhd": ("format", "vhd"),
    "iscsi": ("script", "block-iscsi"),
    "nbd": ("script", "block-nbd"),
    "enbd": ("script", "block-enbd"),
    "drbd": ("script", "block-drbd"),
    **dict.fromkeys(("tapdisk", "tap", "tap2", "aio", "ioemu", "file", "phy")),
}

_NAMED = ("access", "devtype", "colo-port", *_TEXTS, *_CHOICES)
# What may begin at a place: (form, its text, what follows and counts for how far it reaches but is not taken).
_FORMS = tuple(
    (form, re.compile(rf"{pattern}(?=(?P<ahead>{ahead}))"))
    for form, pattern, ahead in (
        ("blank", r"[ \t\n]+", r"(?:[^ \t\n].*)?"),
        ("named", rf"(?P<name>{'|'.join(_NAMED)})=(?P<value>[^,]*),?", ""),
        ("flag", rf"(?P<name>{'|'.join(_FLAGS)}),?", ""),
        ("target", r"target=(?P<value>.*)", ""),
        ("unknown", r"[a-z][-a-z0-9]*=[^,],?", ""),
        ("prefix", rf"(?P<name>{'|'.join(_PREFIXES)}):", r".*"),
        ("strange_prefix", r"[a-z][a-z0-9]*:", r"(?:[^a-z0-9].*)?"),
        ("positional", r"(?:(?P<value>[^=,]*),|(?P<last>[^=,]+))", ""),
        ("bad", r"=.*", ""),
    )
)


class _Parser:
    """One disk in the making. Each form in _FORMS has a method of its name."""

    def __init__(self) -> None:
        self.disk = Disk(readwrite=True)
        self.access_given = False
        self.prefixed = False
        self.wrong: list[str] = []
        self.text = ""
        self.ended = False

    def read(self, text: str) -> None:
        """Take one part in. Nothing is read after a part with something wrong in it."""
        if self.wrong:
            return
        self.text, at = _bytewise(text), 0
        while at < len(self.text) and not self.ended:
            found = [(form, match) for form, pattern in _FORMS if (match := pattern.match(self.text, at))]
            form, match = max(found, key=lambda one: one[1].end("ahead"))
            getattr(self, f"_{form}")(match)
            at = match.end()

    def finish(self) -> Disk:
        """Return the disk, where all is right and nothing is missing."""
        disk = self.disk
        if self.wrong:
            raise DiskError(self.wrong)
        if disk.is_cdrom:
            disk.removable, disk.readwrite = True, False
            if not disk.pdev_path:
                disk.format = "empty"
        if disk.format == UNKNOWN:
            disk.format = "raw"
        if disk.vdev is None:
            self._say("no vdev specified")
        elif disk.pdev_path is None and not disk.removable:
            self._say("no target specified (and device not removable)")
        if self.wrong:
            raise DiskError(self.wrong)
        for one in fields(disk):
            value = getattr(disk, one.name)
            if isinstance(value, str):
                setattr(disk, one.name, _textual(value))
        return disk

    def _say(self, what: str, near: str | None = None) -> None:
        place = "" if near is None else f": near `{near}'"
        self.wrong.append(_textual(f"{what}{place} in `{self.text}'"))

    # The forms.

    def _blank(self, match: "re.Match[str]") -> None:
        pass

    def _named(self, match: "re.Match[str]") -> None:
        name, value = match["name"], match["value"]
        if name in _TEXTS:
            self._set_text(_TEXTS[name], name, value)
        elif name in _CHOICES:
            self._set_choice(name, value)
        elif name == "access":
            self._set_access(value)
        elif name == "devtype":
            if value in _DEVTYPES:
                self.disk.is_cdrom = _DEVTYPES[value]
            else:
                self._say("unknown value for type", match[0])
        else:
            self._set_port(value)

    def _flag(self, match: "re.Match[str]") -> None:
        setattr(self.disk, *_FLAGS[match["name"]])

    def _target(self, match: "re.Match[str]") -> None:
        self._set_text("pdev_path", "target", match["value"].removesuffix(","))

    def _unknown(self, match: "re.Match[str]") -> None:
        self._say("unknown parameter", match[0])

    def _prefix(self, match: "re.Match[str]") -> None:
        self.prefixed = True
        meaning = _PREFIXES[match["name"]]
        if meaning is None:
            return
        what, value = meaning
        if what == "format":
            self._set_choice("format", value)
        else:
            self._set_text("script", "script", value)

    def _strange_prefix(self, match: "re.Match[str]") -> None:
        self._say("unknown deprecated disk prefix", match[0])
        self.ended = True

    def _positional(self, match: "re.Match[str]") -> None:
        value = match["last"] if match["value"] is None else match["value"]
        disk = self.disk
        if self.wrong:
            return  # what is next in the row is not clear any more
        if disk.pdev_path is None:
            disk.pdev_path = value
        elif not self.prefixed and disk.format == UNKNOWN:
            if disk.pdev_path or ":" not in value:
                self._set_choice("format", value)
            else:  # xend's empty drive: ,hdc:cdrom,r
                disk.format = "empty"
                self._set_vdev(value)
        elif disk.vdev is None:
            self._set_vdev(value)
        elif not self.access_given:
            self.access_given = True
            self._set_access(value)
        else:
            self._say("too many positional parameters", value)
            self.ended = True

    def _bad(self, match: "re.Match[str]") -> None:
        if match[0] != "=" or match.end() < len(self.text):  # a "=" at the very end passes
            self._say("bad disk syntax", match[0])
            self.ended = True

    # What they set.

    def _set_vdev(self, value: str) -> None:
        name, colon, devtype = value.rpartition(":")
        self._set_text("vdev", "vdev", name if colon else value)
        if devtype in _DEVTYPES and colon:
            self.disk.is_cdrom = _DEVTYPES[devtype]
        elif colon:
            self._say("unknown deprecated type", devtype)

    def _set_text(self, field: str, name: str, value: str) -> None:
        if getattr(self.disk, field):
            self._say(f"{name} respecified", value)
        else:
            setattr(self.disk, field, value)

    def _set_choice(self, name: str, value: str) -> None:
        field, known = _CHOICES[name]
        if value not in known:
            self._say(f"unknown value for {name}", value)
        elif getattr(self.disk, field) not in (UNKNOWN, known[value]):
            self._say(f"{field} respecified", value)
        else:
            setattr(self.disk, field, known[value])

    def _set_access(self, value: str) -> None:
        if value in _ACCESS:
            self.disk.readwrite = _ACCESS[value]
        else:
            self._say("unknown value for access", value)

    def _set_port(self, value: str) -> None:
        found = re.match(r"[ \t\n\v\f\r]*([-+]?[0-9]+)", value)
        port = _c_int(int(found[1])) if found else 0
        if port:
            self.disk.colo_port = port
        else:
            self._say("unknown value for colo_port", value)


def _c_int(number: int) -> int:
    """What C's atoi makes of a number that is too large."""
    limited = max(-(1 << 63), min(number, (1 << 63) - 1))
    return (limited + (1 << 31)) % (1 << 32) - (1 << 31)


def _bytewise(text: str) -> str:
    """A character for each byte: the real parser knows of bytes only."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _textual(text: str) -> str:
    """What _bytewise was made from."""
    return text.encode("latin-1").decode("utf-8", "surrogateescape")
