"""GEOM as the kernel tells it: every provider of a disk's bytes, and every consumer of one.

``sysctl kern.geom.confxml`` prints all of it (sys/geom/geom_dump.c): in the XML the text of names has no ``<`` and no
``>`` (g_conf_print_escaped), so cutting at these is exact, and no XML library has to be loaded.
"""

from vbdkit.platform.programs import ask
from vbdkit.protocol.failure import Failure


class Provider:
    """Something that /dev may have a node of. ``size`` in bytes; ``facts`` what its class tells of it."""

    __slots__ = ("facts", "geom", "key")

    def __init__(self, key: bytes, geom: "Geom") -> None:
        """Take what its opening tag tells."""
        self.key = key
        self.geom = geom
        self.facts: dict[bytes, bytes] = {}

    @property
    def name(self) -> bytes:
        """Its name below /dev."""
        return self.facts.get(b"name", b"")

    @property
    def size(self) -> int:
        """Its size in bytes; 0 for a drive without a medium."""
        return self.number(b"mediasize") or 0

    def number(self, name: bytes) -> int | None:
        """Return a number that its class tells, None where it tells none."""
        text = self.facts.get(name, b"")
        return int(text) if text.isdigit() else None


class Consumer:
    """One use of a provider. ``provider`` is that one's key; ``mode`` counts readers, writers and excluders."""

    __slots__ = ("facts", "geom", "provider")

    def __init__(self, geom: "Geom") -> None:
        """Take what its opening tag tells."""
        self.geom = geom
        self.provider = b""
        self.facts: dict[bytes, bytes] = {}

    @property
    def mode(self) -> "tuple[int, int, int]":
        """How often it has the provider open to read, to write, and so that nobody else may write."""
        text = self.facts.get(b"mode", b"")
        read, _, rest = text.removeprefix(b"r").partition(b"w")
        write, _, exclude = rest.partition(b"e")
        return int(read), int(write), int(exclude)


class Geom:
    """One instance of a class (``kind``: DISK, PART, MD, VFS, ...): it makes providers out of consumers."""

    __slots__ = ("consumers", "facts", "kind", "providers")

    def __init__(self, kind: bytes) -> None:
        """Start without any."""
        self.kind = kind
        self.consumers: list[Consumer] = []
        self.providers: list[Provider] = []
        self.facts: dict[bytes, bytes] = {}


def geoms(programs: bytes) -> "list[Geom]":
    """Return all of this host's. Raises ProgramError, and Failure for a mesh that is cut short or not understood."""
    text = ask(programs, (b"sysctl", b"-b", b"kern.geom.confxml"))[0].rstrip(b"\0\n")
    try:
        if not text.endswith(b"</mesh>"):
            raise ValueError
        found = parse(text)
        for geom in found:
            for consumer in geom.consumers:
                _ = consumer.mode
            for provider in geom.providers:
                int(provider.key, 16)
    except (ValueError, IndexError):
        raise Failure(
            "kern.geom.confxml, {size} bytes that end in {end}, is not what this vbdkit understands: who has which "
            "disk cannot be told",
            size=len(text),
            end=repr(text[-40:].decode("utf-8", "backslashreplace")),
        ) from None
    return found


def parse(text: bytes) -> "list[Geom]":
    """Return the geoms of a mesh. What is about to go (wither) is left out."""
    found: list[Geom] = []
    kind: dict[bytes, bytes] = {}
    facts: dict[bytes, bytes] = {}
    outer: list[dict[bytes, bytes]] = []
    for part in text.split(b"<")[1:]:
        tag, _, body = part.partition(b">")
        word, _, attribute = tag.rstrip(b"/").partition(b" ")
        if word.startswith(b"/"):
            if word in _ENDS:
                facts = outer.pop()
        elif attribute.startswith(b"id="):
            outer.append(facts)
            if word == b"class":
                facts = kind = {}
            else:
                facts = _opened(word, attribute, kind, found)
        elif attribute.startswith(b"ref="):
            if word == b"provider":
                found[-1].consumers[-1].provider = _key(attribute)
        else:
            facts.setdefault(word, _unescaped(body))
    for geom in found:
        geom.providers = [provider for provider in geom.providers if b"wither" not in provider.facts]
    return [geom for geom in found if b"wither" not in geom.facts]


_ENDS = (b"/class", b"/geom", b"/consumer", b"/provider")


def _opened(word: bytes, attribute: bytes, kind: "dict[bytes, bytes]", found: "list[Geom]") -> "dict[bytes, bytes]":
    """Note a thing that begins, and return where its facts go."""
    if word == b"geom":
        found.append(Geom(kind.get(b"name", b"")))
        return found[-1].facts
    if word == b"consumer":
        consumer = Consumer(found[-1])
        found[-1].consumers.append(consumer)
        return consumer.facts
    provider = Provider(_key(attribute), found[-1])
    found[-1].providers.append(provider)
    return provider.facts


def _key(attribute: bytes) -> bytes:
    return attribute.partition(b"=")[2].strip(b'"')


def _unescaped(text: bytes) -> bytes:
    """Undo the kernel's ``&#xC3;``, which stands for one byte."""
    if b"&#x" not in text:
        return text
    head, *rest = text.split(b"&#x")
    for part in rest:
        number, _, after = part.partition(b";")
        head += bytes((int(number, 16),)) + after
    return head
