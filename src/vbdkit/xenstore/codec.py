"""The xenstore wire protocol as functions on bytes: operations, packets, error names, path rules.

Owns what a packet looks like and what a legal name is. Does no I/O, keeps no connection and no tree: the
client (client.py) and the embedded store (embedded/) both stand on it, so neither has its own idea of the wire.

Hot path: a block script imports this module, so it imports ``errno`` and ``struct`` and nothing else.

Source of the facts: xen/include/public/io/xs_wire.h and docs/misc/xenstore.txt of Xen, and what Debian's C
xenstored and oxenstored 4.17 were seen to do (tests/xenstore). Clauses: "Xenstore traps" in the protocol document.
"""

import errno
from _struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# Operations (enum xsd_sockmsg_type). 20 is unused: RESTRICT was withdrawn.
CONTROL = 0
DIRECTORY = 1
READ = 2
GET_PERMS = 3
WATCH = 4
UNWATCH = 5
TRANSACTION_START = 6
TRANSACTION_END = 7
INTRODUCE = 8
RELEASE = 9
GET_DOMAIN_PATH = 10
WRITE = 11
MKDIR = 12
RM = 13
SET_PERMS = 14
WATCH_EVENT = 15
ERROR = 16
IS_DOMAIN_INTRODUCED = 17
RESUME = 18
SET_TARGET = 19
RESET_WATCHES = 21
DIRECTORY_PART = 22

HEADER = Struct("=IIII")
"""Operation, request id, transaction id, payload length; native byte order on every host."""
HEADER_SIZE = 16
PAYLOAD_MAX = 4096
"""Bytes of payload in one packet. A longer request makes the store drop the connection."""
ABSOLUTE_PATH_MAX = 3072
RELATIVE_PATH_MAX = 2048
REPLY_MAX = 16 << 20
"""What the client takes as one reply. oxenstored answers a long DIRECTORY in one packet past PAYLOAD_MAX."""

_ERROR_NAMES = (
    *("EINVAL", "EACCES", "EEXIST", "EISDIR", "ENOENT", "ENOMEM", "ENOSPC", "EIO"),
    *("ENOTEMPTY", "ENOSYS", "EROFS", "EBUSY", "EAGAIN", "EISCONN", "E2BIG", "EPERM"),
)
ERROR_NUMBERS: "dict[str, int]" = {name: getattr(errno, name) for name in _ERROR_NAMES}
"""The errors that travel on the wire, by name: this host's errno number of each."""
ERROR_NAMES: "dict[int, str]" = {number: name for name, number in ERROR_NUMBERS.items()}

_PATH_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@"

_pack_header = HEADER.pack
_unpack_header = HEADER.unpack_from


def packet(op: int, request_id: int, tx: int, payload: bytes) -> bytes:
    """Return one packet. The caller has seen to it that ``payload`` is within PAYLOAD_MAX."""
    return _pack_header(op, request_id, tx, len(payload)) + payload


def terminated(strings: "Iterable[bytes]") -> bytes:
    """Return ``strings`` as the wire lists them, each ended by a NUL; an empty list is empty."""
    return b"".join([string + b"\0" for string in strings])


def split(payload: bytes) -> "list[bytes]":
    """Return the NUL-terminated strings of ``payload``; a last one without its NUL counts as well."""
    if not payload:
        return []
    if payload[-1] == 0:
        payload = payload[:-1]
    return payload.split(b"\0")


def event(payload: bytes) -> "tuple[bytes, bytes]":
    """Return (path, token) of a WATCH_EVENT's payload; what a server may add behind them is left out."""
    parts = payload.split(b"\0", 2)
    return parts[0], parts[1] if len(parts) > 1 else b""


def error_name(payload: bytes) -> str:
    """Return the name in an ERROR packet, "EIO" where it is no name at all."""
    name = payload.rstrip(b"\0").decode("ascii", "replace")
    return name if name.isalnum() and name.isascii() else "EIO"


def error_number(name: str) -> int:
    """Return this host's errno number for an error's name; EIO for one that this host does not know."""
    number = ERROR_NUMBERS.get(name)
    return getattr(errno, name, errno.EIO) if number is None else number


def is_path(path: bytes, special: bool = False) -> bool:
    """Tell whether a store takes ``path`` as a node's name: absolute or relative, characters and slashes right.

    ``special``: names such as ``@releaseDomain`` are legal too (watches, permissions). Length is judged apart,
    by ``path_too_long``, since stores differ in when they do it.
    """
    if path[:1] == b"@":
        return special and b"/" not in path and not path.translate(None, _PATH_BYTES)
    if not path or path.translate(None, _PATH_BYTES) or b"//" in path:
        return False
    return path == b"/" or path[-1] != 0x2F


def path_too_long(path: bytes) -> bool:
    """Tell whether ``path`` is longer than the protocol allows: 3072 bytes absolute, 2048 relative."""
    return len(path) > (ABSOLUTE_PATH_MAX if path[:1] == b"/" else RELATIVE_PATH_MAX)


class Decoder:
    """Turns a stream of bytes, however cut, into packets. Linear in the bytes fed.

    ``oversized`` is 0 until a header announces more than ``limit`` bytes; it is that number from then on, and
    nothing behind that header is decoded: the stream cannot be trusted any more.
    """

    __slots__ = ("_have", "_limit", "_need", "_parts", "oversized")

    def __init__(self, limit: int = REPLY_MAX) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._have = 0  # bytes in _parts
        self._need = HEADER_SIZE  # bytes without which no packet is complete
        self.oversized = 0

    def missing(self) -> int:
        """Return how many bytes must at least come before the next packet (or its length) is known."""
        return self._need - self._have

    def feed(self, data: bytes) -> "list[tuple[int, int, int, bytes]]":
        """Take ``data`` and return the packets that it completes: (operation, request id, transaction id, payload)."""
        packets: list[tuple[int, int, int, bytes]] = []
        if self.oversized:
            return packets
        if self._have:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return packets
            data = b"".join(self._parts)
            self._parts = []
        at, end = 0, len(data)
        need = HEADER_SIZE
        limit = self._limit
        while end - at >= HEADER_SIZE:
            op, request_id, tx, length = _unpack_header(data, at)
            if length > limit:
                self.oversized = length
                break
            behind = at + HEADER_SIZE + length
            if behind > end:
                need = HEADER_SIZE + length
                break
            packets.append((op, request_id, tx, data[at + HEADER_SIZE : behind]))
            at = behind
        self._need = need
        self._have = end - at
        if at < end:
            self._parts = [data[at:] if at else data]
        return packets
