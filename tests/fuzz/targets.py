"""What must hold for any bytes at all. Each target takes an input and fails with an exception."""

import errno
import posix
import re
from collections.abc import Callable, Sequence

from vbdkit.platform import linux
from vbdkit.protocol.failure import Failure, shown
from vbdkit.protocol.invocation import CONVENTIONS, InvocationError, parse_invocation
from vbdkit.protocol.mode import parse_mode
from vbdkit.protocol.vbd import backend_path, parse_backend_path
from vbdkit.xenstore import codec
from vbdkit.xenstore.client import Connection, StoreError
from vbdkit.xenstore.embedded.operations import Session, Store
from vbdkit.xenstore.embedded.permissions import Quota
from vbdkit.xenstore.embedded.tree import parent_of

Packet = tuple[int, int, int, bytes]


class Input:
    """Bytes that are taken off the front as numbers and strings; where they end, all is zero and empty."""

    def __init__(self, data: bytes) -> None:
        """Begin at the front."""
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there is more."""
        return self._at < len(self._data)

    def some(self, count: int) -> bytes:
        """Take so many bytes, or as many as there are."""
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self) -> int:
        """Take one byte."""
        return int.from_bytes(self.some(1), "big")

    def text(self) -> bytes:
        """Take a short string with its length in front; from 255 on a long one, of up to 4,096 bytes."""
        length = self.number()
        return self.some(length if length < 255 else 16 * self.number() + 16)


def check(holds: bool, what: object) -> None:
    """Fail unless something holds; an assertion that no -O takes away."""
    if not holds:
        raise AssertionError(what)


# The codec.

PATH = re.compile(rb"/|/?[A-Za-z0-9@_-]+(/[A-Za-z0-9@_-]+)*")
SPECIAL = re.compile(rb"@[A-Za-z0-9@_-]*")


def codec_target(data: bytes) -> None:
    """A stream gives the same packets however it is cut; texts and names are what their grammar says."""
    given = Input(data)
    limit = (codec.PAYLOAD_MAX, codec.REPLY_MAX)[given.number() & 1]
    sizes = [1 + given.number() for _ in range(given.number() % 8)] or [1]
    stream = data[len(sizes) :]
    whole, pieces = codec.Decoder(limit), codec.Decoder(limit)
    packets = whole.feed(stream)
    apart: list[Packet] = []
    at = turn = 0
    while at < len(stream):
        piece = stream[at : at + sizes[turn % len(sizes)]]
        apart += pieces.feed(piece)
        at, turn = at + len(piece), turn + 1
        check(pieces.oversized > 0 or pieces.missing() > 0, "something is always missing")
    check(packets == apart, (packets, apart))
    check(whole.oversized == pieces.oversized, "both see the same end")
    again = b"".join(codec.packet(*packet) for packet in packets)
    check(stream.startswith(again), "what was decoded is what stood there")
    check(all(len(payload) <= limit for *_, payload in packets), "no payload is over the limit")
    check(not whole.oversized or whole.oversized > limit, whole.oversized)
    for *_, payload in packets:
        _payload(payload)
    _payload(stream)


def _payload(payload: bytes) -> None:
    strings = codec.split(payload)
    check(codec.split(codec.terminated(strings)) == strings or strings == [b""], strings)
    check(codec.terminated(strings).rstrip(b"\0") == payload.rstrip(b"\0"), "no byte is lost")
    path, token = codec.event(payload)
    check(payload.startswith(path) and b"\0" not in path + token, (path, token))
    name = codec.error_name(payload)
    check(name.isalnum() and name.isascii(), name)
    check(codec.error_number(name) > 0, name)
    legal = PATH.fullmatch(payload) is not None and payload[:1] != b"@"
    check(codec.is_path(payload) == legal, payload)
    check(codec.is_path(payload, special=True) == (legal or SPECIAL.fullmatch(payload) is not None), payload)
    check(codec.path_too_long(payload) == (len(payload) > (3072 if payload[:1] == b"/" else 2048)), len(payload))


# The client, before a store that says what it likes.


# The call that takes an event.
EVENT = 12


class Liar:
    """A link whose other end answers everything with the next piece of the input, whatever was asked."""

    pipelines = True

    def __init__(self, data: bytes) -> None:
        """Answer with ``data``, in pieces of lengths that it says itself."""
        self._data = Input(data)

    def send(self, packets: Sequence[bytes], deadline: float) -> list[bytes]:
        """Take a batch."""
        check(all(len(packet) <= codec.HEADER_SIZE + codec.PAYLOAD_MAX for packet in packets), "no request is too long")
        return []

    def receive(self, deadline: float, least: int) -> bytes:
        """Give the next piece; at the end of the input the store is gone."""
        piece = self._data.some(1 + 4 * self._data.number())
        if not piece:
            raise OSError(errno.ECONNRESET, posix.strerror(errno.ECONNRESET))
        return piece

    def fileno(self) -> int:
        """No descriptor."""
        return -1

    def close(self) -> None:
        """Nothing to close."""


def client_target(data: bytes) -> None:
    """Every call returns what its signature says, or raises StoreError; after a broken conversation the same one."""
    given = Input(data)
    calls = [given.number() for _ in range(1 + given.number() % 4)]
    connection = Connection(Liar(data[1 + len(calls) :]), float("inf"))  # type: ignore[arg-type]  # by shape
    deeds: list[tuple[Callable[[], object], Callable[[object], bool]]] = [
        (lambda: connection.read(b"a"), _is_bytes),
        (
            lambda: connection.read_many([b"a", b"b/c", b"/d"]),
            lambda found: isinstance(found, list) and len(found) == 3,
        ),
        (lambda: connection.list(b"a"), _is_list),
        (lambda: connection.list_many([b"a", b"b"]), lambda found: isinstance(found, list) and len(found) == 2),
        (lambda: connection.get_permissions(b"a"), _is_list),
        (lambda: connection.write_many([(b"a", b"x"), (b"b", b"")]), lambda found: found is None),
        (lambda: connection.remove_many([b"a", b"b"]), lambda found: found is None),
        (connection.begin, lambda found: isinstance(found, int)),
        (lambda: connection.transaction(lambda tx: connection.write(b"a", b"x", tx)), lambda found: found is None),
        (lambda: connection.domain_path(5), _is_bytes),
        (lambda: connection.is_introduced(5), lambda found: isinstance(found, bool)),
        (lambda: connection.watch(b"a", b"t"), lambda found: found is None),
        (lambda: connection.next_event(float("inf")), lambda found: isinstance(found, tuple) and len(found) == 2),
        (lambda: connection.control(b"help"), _is_bytes),
    ]
    broken = None
    for call in calls:
        deed, right = deeds[call % len(deeds)]
        try:
            found = deed()
        except StoreError as error:
            check(error.number > 0, error)
            if broken is not None:
                check(error.name == broken, "a broken connection stays broken")
            elif connection._broken is not None:
                broken = error.name
                check(broken in ("EPROTO", "ECONNRESET"), error)
        else:
            check(broken is None or call % len(deeds) == EVENT, "after the end there are only events from before it")
            check(right(found), found)


def _is_bytes(found: object) -> bool:
    return isinstance(found, bytes)


def _is_list(found: object) -> bool:
    return isinstance(found, list) and all(map(_is_bytes, found))


# The embedded store.

OPERATIONS = (*range(23), 127, 0xFFFFFFFF)
ROOM = 2000


def store_target(data: bytes) -> None:
    """Each request has one answer of its own; the tree stays a tree; nobody gets more than a packet holds."""
    given = Input(data)
    store = Store(Quota(nodes=30, watches=4, transactions=3))
    store.introduced |= {5, 6}
    sessions = [store.join(domid, home) for domid, home in ((0, 0), (5, 5), (6, 6), (0, 3))]
    count = 0
    while given and count < 200:
        count += 1
        session = sessions[given.number() % len(sessions)]
        kind = given.number()
        if kind >= 250:  # as it comes from the wire
            packets = codec.Decoder(codec.PAYLOAD_MAX).feed(given.some(64))
        else:
            strings = [given.text() for _ in range(given.number() % 5)]
            payload = (codec.terminated(strings) if kind & 1 else b"\0".join(strings))[: codec.PAYLOAD_MAX]
            packets = [(OPERATIONS[kind // 2 % len(OPERATIONS)], count, given.number() % 4, payload)]
        for op, request, tx, payload in packets:
            _handled(store, sessions, session, op, request, tx, payload)
    _whole(store)


def _handled(
    store: Store, sessions: list[Session], session: Session, op: int, request: int, tx: int, payload: bytes
) -> None:
    store.handle(session, op, request, tx, payload)
    answers = 0
    for other in sessions:
        for answer in codec.Decoder(codec.PAYLOAD_MAX).feed(b"".join(other.outbox)):
            if answer[0] == codec.WATCH_EVENT and answer[1] == 0:
                check(answer[3].count(b"\0") == 2, answer)
                continue
            answers += 1
            check(other is session, "another client got the answer")
            check(answer[0] in (op, codec.ERROR) and answer[1:3] == (request, tx), answer)
            if answer[0] == codec.ERROR:
                check(codec.error_name(answer[3]) in codec.ERROR_NUMBERS, answer)
        check(
            sum(codec.HEADER_SIZE + _length(packet) for packet in other.outbox) == len(b"".join(other.outbox)), "whole"
        )
        other.outbox.clear()
    check(answers == 1, f"{answers} answers")
    check(store.tree.changes == [], "everything was told")


def _length(packet: bytes) -> int:
    length: int = codec.HEADER.unpack_from(packet)[3]
    check(length <= codec.PAYLOAD_MAX, f"a packet of {length} bytes")
    return length


def _whole(store: Store) -> None:
    """The nodes are one tree, and each is counted for its owner."""
    nodes = store.tree._nodes
    owned: dict[int, int] = {}
    for path, node in nodes.items():
        check(path == b"/" or path.rpartition(b"/")[2] in nodes[parent_of(path)].children, path)
        check(len(set(node.children)) == len(node.children), path)
        for child in node.children:
            check(path.rstrip(b"/") + b"/" + child in nodes, (path, child))
        owned[node.permissions[0].domid] = owned.get(node.permissions[0].domid, 0) + 1
    for domid, count in owned.items():
        check(store.tree.owned(domid) == count, (domid, count))


# Small texts of the protocol.


def texts_target(data: bytes) -> None:
    """What is taken for a vbd, a mode or a number is one, and what is said about the rest is one printable line."""
    vbd = parse_backend_path(data)
    if vbd is not None:
        check(backend_path(vbd.backend, vbd.kind, vbd.domid, vbd.devid) == data, data)
        check(re.fullmatch(r"[\w-]{5,56}", vbd.name, re.ASCII) is not None, vbd.name)
    mode = parse_mode(data)
    check(mode is None or mode.writable == (b"w" in data), data)
    try:
        identity = linux.published(data)
    except ValueError:
        identity = None
    check(identity is None or b":" in data, data)
    line = shown(data)
    check(line.isprintable(), line)
    for template in ("{x}", "{x} is {x!s} and {x}"):
        text = Failure(template, x=data).node_text()
        check(len(text) <= 1024 and text.decode().isprintable(), text)
        text = Failure(template, x=data.decode("utf-8", "surrogateescape")).node_text()
        check(len(text) <= 1024 and text.decode().isprintable(), text)
    words = data.replace(b"\n", b"\0").split(b"\0")
    for system in CONVENTIONS:
        try:
            call = parse_invocation(system, words, {b"XENBUS_PATH": words[-1]})
            check(call.vbd.path in words, data)
        except InvocationError as error:
            check(str(error).isprintable(), error)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "codec": codec_target,
    "client": client_target,
    "store": store_target,
    "texts": texts_target,
}
