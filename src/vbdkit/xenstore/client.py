"""A blocking xenstore client: one connection, requests in batches, every reply under a deadline.

Owns the conversation: request ids, batches, transactions, queued watch events, errors by name. How bytes travel
is link.py's, what a packet looks like codec.py's. Bytes in, bytes out: no value is decoded, stripped or guessed.

Hot path: imports what ARCHITECTURE.md lists and nothing else.
"""

import errno
import posix
import time

import vbdkit.xenstore.codec as codec  # noqa: PLR0402  # "from" would ask the room for a public name first
from vbdkit.xenstore.link import addresses, connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeVar

    from vbdkit.xenstore.link import DeviceLink, SocketLink

    T = TypeVar("T")
    # Connection.list would hide the builtin from annotations.
    Names = list[bytes]
    Replies = list[tuple[int, bytes]]
    Values = list[bytes | None]
    Listings = list[list[bytes] | None]

_NAMES = {
    codec.CONTROL: "control",
    codec.DIRECTORY: "list",
    codec.READ: "read",
    codec.GET_PERMS: "get the permissions of",
    codec.WATCH: "watch",
    codec.UNWATCH: "unwatch",
    codec.TRANSACTION_START: "start a transaction",
    codec.TRANSACTION_END: "end a transaction",
    codec.INTRODUCE: "introduce",
    codec.RELEASE: "release",
    codec.GET_DOMAIN_PATH: "get the path of domain",
    codec.WRITE: "write",
    codec.MKDIR: "make",
    codec.RM: "remove",
    codec.SET_PERMS: "set the permissions of",
    codec.IS_DOMAIN_INTRODUCED: "ask for domain",
    codec.RESUME: "resume",
    codec.SET_TARGET: "set the target of",
    codec.RESET_WATCHES: "reset watches",
    codec.DIRECTORY_PART: "list",
}
# C xenstored takes one conflicting transaction after another; a moment between tries lets the other finish.
_RETRY_PAUSE = 0.0005


class StoreError(Exception):
    """An operation on the store that did not work.

    ``name`` is the error's name: one that the store sent ("ENOENT", "EACCES", "EAGAIN", ...), or this
    host's own: "ETIMEDOUT" where no reply came in time, "ECONNRESET" or "EPIPE" where the store went away,
    "EPROTO" where it said what no store says. ``number`` is that errno, ``operation`` what was tried, ``path``
    the node, or None.
    """

    def __init__(self, name: str, operation: str, path: bytes | None = None, what: str = "") -> None:
        """``what`` says more than the error's own words."""
        self.name = name
        self.number = codec.error_number(name)
        self.operation = operation
        self.path = path
        shown = "" if path is None else " " + path.decode("utf-8", "backslashreplace")
        super().__init__(f"cannot {operation}{shown}: {what or posix.strerror(self.number)} ({name})")


class Connection:
    """One connection to the store.

    ``deadline`` is a time.monotonic() value in seconds on which every send and reply draws; it may be moved.
    All methods raise StoreError. After one that broke the conversation (a deadline, a lost store) every
    further call raises the same error, once the events that had come by then are taken.
    """

    __slots__ = ("_broken", "_decoder", "_events", "_link", "_request", "deadline")

    def __init__(self, link: "SocketLink | DeviceLink", deadline: float) -> None:
        """Talk over an open link; ``open`` makes one."""
        self._link = link
        self._decoder = codec.Decoder()
        self._events: list[tuple[bytes, bytes]] = []
        self._request = 0
        self._broken: tuple[str, str] | None = None
        self.deadline = deadline

    @classmethod
    def open(cls, deadline: float, environ: "Mapping[bytes, bytes] | None" = None) -> "Connection":
        """Connect to the store that ``environ`` (default: the process's) names, else where stores usually are."""
        tried = []
        number = errno.ENOENT
        for path, _ in addresses(posix.environ if environ is None else environ):
            try:
                return cls(connect(path, deadline), deadline)
            except (OSError, ValueError) as error:
                failure = getattr(error, "errno", None) or errno.EINVAL
                tried.append(f"{path.decode('utf-8', 'backslashreplace')}: {posix.strerror(failure)}")
                if number == errno.ENOENT:
                    number = failure
                if failure == errno.ETIMEDOUT:  # a store is there, but does not answer: no reason to ask another
                    break
        raise StoreError(_errno_name(number), "connect to xenstore", None, "; ".join(tried))

    # Reading.

    def read(self, path: bytes, tx: int = 0) -> bytes:
        """Return a node's value."""
        return self._one(codec.READ, path, tx)

    def read_many(self, paths: "Sequence[bytes]", tx: int = 0) -> "Values":
        """Return the values of many nodes, asked for in one batch; None stands for a node that is not there."""
        return self._many(codec.READ, paths, tx)

    def exists(self, path: bytes, tx: int = 0) -> bool:
        """Tell whether a node is there."""
        return self.read_many((path,), tx)[0] is not None

    def list(self, path: bytes, tx: int = 0) -> "Names":
        """Return the names of a node's children, however many there are."""
        try:
            return codec.split(self._one(codec.DIRECTORY, path, tx))
        except StoreError as error:
            if error.name != "E2BIG":
                raise
        return self._list_in_parts(path, tx)

    def list_many(self, paths: "Sequence[bytes]", tx: int = 0) -> "Listings":
        """Return the children of many nodes, asked for in one batch; None stands for a node that is not there."""
        found: Listings = []
        first: StoreError | None = None
        for path, (op, payload) in zip(paths, self._batch(codec.DIRECTORY, paths, tx), strict=True):
            if op != codec.ERROR:
                found.append(codec.split(payload))
                continue
            name = codec.error_name(payload)
            if name == "E2BIG":
                found.append(self._list_in_parts(path, tx))
            elif name == "ENOENT":
                found.append(None)
            elif first is None:
                first = StoreError(name, "list", path)
        if first is not None:
            raise first
        return found

    def get_permissions(self, path: bytes, tx: int = 0) -> "Names":
        """Return a node's permissions: the owner's first, as ``b"n0"``, then others', as ``b"r5"``."""
        return codec.split(self._one(codec.GET_PERMS, path, tx))

    # Writing.

    def write(self, path: bytes, value: bytes, tx: int = 0) -> None:
        """Write a node, making its parents where they are missing."""
        self.write_many(((path, value),), tx)

    def write_many(self, items: "Sequence[tuple[bytes, bytes]]", tx: int = 0) -> None:
        """Write many nodes in one batch. Raises the first error; what came behind it was tried all the same."""
        for path, value in items:
            _check_path(path, "write")
            if len(path) + 1 + len(value) > codec.PAYLOAD_MAX:
                raise StoreError("E2BIG", "write", path, f"path and value have over {codec.PAYLOAD_MAX} bytes")
        requests = [(codec.WRITE, path + b"\0" + value) for path, value in items]
        for (path, _), (op, payload) in zip(items, self._exchange(requests, tx), strict=True):
            if op == codec.ERROR:
                raise StoreError(codec.error_name(payload), "write", path)

    def mkdir(self, path: bytes, tx: int = 0) -> None:
        """Make an empty node; one that is there already stays as it is."""
        self._one(codec.MKDIR, path, tx)

    def remove(self, path: bytes, tx: int = 0) -> None:
        """Remove a node and all below it. A missing node is no error to most stores, a missing parent is ENOENT."""
        self._one(codec.RM, path, tx)

    def remove_many(self, paths: "Sequence[bytes]", tx: int = 0) -> None:
        """Remove many nodes in one batch; those that are not there are no error."""
        self._many(codec.RM, paths, tx)

    def set_permissions(self, path: bytes, permissions: "Sequence[bytes]", tx: int = 0) -> None:
        """Set a node's permissions, spelled as get_permissions returns them."""
        self._one(codec.SET_PERMS, path, tx, *permissions)

    # Transactions.

    def begin(self) -> int:
        """Start a transaction and return its id, to be given as ``tx``."""
        payload = self._one(codec.TRANSACTION_START, None, 0, b"")
        try:
            return int(payload.rstrip(b"\0"))
        except ValueError:
            raise StoreError("EPROTO", "start a transaction", None, f"the store answered {payload!r}") from None

    def commit(self, tx: int) -> bool:
        """End a transaction; False where another change came in between and nothing was done."""
        try:
            self._one(codec.TRANSACTION_END, None, tx, b"T")
        except StoreError as error:
            if error.name != "EAGAIN":
                raise
            return False
        return True

    def abort(self, tx: int) -> None:
        """End a transaction without effect."""
        self._one(codec.TRANSACTION_END, None, tx, b"F")

    def transaction(self, body: "Callable[[int], T]") -> "T":
        """Run ``body`` with a transaction's id and commit; all of it again on a conflict, until the deadline.

        An error in ``body`` ends the transaction without effect and is raised.
        """
        while True:
            tx = self.begin()
            try:
                result = body(tx)
            except BaseException:
                if self._broken is None:
                    try:
                        self.abort(tx)
                    except StoreError:
                        pass  # the error in the body says more
                raise
            if self.commit(tx):
                return result
            if time.monotonic() >= self.deadline:
                raise StoreError("ETIMEDOUT", "end a transaction", None, "others changed the same nodes each time")
            time.sleep(_RETRY_PAUSE)

    # Domains.

    def domain_path(self, domid: int) -> bytes:
        """Return ``/local/domain/<domid>``, as the store spells it."""
        return self._one(codec.GET_DOMAIN_PATH, None, 0, b"%d" % domid).rstrip(b"\0")

    def is_introduced(self, domid: int) -> bool:
        """Tell whether the store serves this domain."""
        return self._one(codec.IS_DOMAIN_INTRODUCED, None, 0, b"%d" % domid).rstrip(b"\0") == b"T"

    def introduce(self, domid: int, frame: int, port: int) -> None:
        """Make the store serve a domain: its ring's frame number and event channel."""
        self._one(codec.INTRODUCE, None, 0, b"%d" % domid, b"%d" % frame, b"%d" % port)

    def release(self, domid: int) -> None:
        """Make the store forget a domain."""
        self._one(codec.RELEASE, None, 0, b"%d" % domid)

    def resume(self, domid: int) -> None:
        """Tell the store that a domain goes on after a suspend."""
        self._one(codec.RESUME, None, 0, b"%d" % domid)

    def set_target(self, domid: int, target: int) -> None:
        """Let a stub domain act with its target's permissions."""
        self._one(codec.SET_TARGET, None, 0, b"%d" % domid, b"%d" % target)

    def control(self, *arguments: bytes) -> bytes:
        """Give the daemon a command, as xenstore-control does, and return its answer."""
        return self._one(codec.CONTROL, None, 0, *arguments)

    # Watches.

    def watch(self, path: bytes, token: bytes) -> None:
        """Watch a node and all below it; a first event comes at once."""
        self._one(codec.WATCH, path, 0, token)

    def unwatch(self, path: bytes, token: bytes) -> None:
        """End a watch."""
        self._one(codec.UNWATCH, path, 0, token)

    def reset_watches(self) -> None:
        """End all watches and transactions of this connection."""
        self._one(codec.RESET_WATCHES, None, 0, b"")

    def next_event(self, deadline: float | None = None) -> "tuple[bytes, bytes] | None":
        """Return the next watch event, (path, token), or None where none came until ``deadline``.

        ``deadline`` is a time.monotonic() value; None: the connection's own. One in the past takes what is there.
        """
        until = self.deadline if deadline is None else deadline
        while not self._events:
            if self._broken is not None:
                raise StoreError(self._broken[0], "use this connection", None, self._broken[1])
            try:
                self._take(self._link.receive(until, self._decoder.missing()), [])
            except OSError as error:
                if error.errno == errno.ETIMEDOUT:
                    return None
                raise self._break(error, "wait for a watch event", None) from None
        return self._events.pop(0)

    # The connection itself.

    @property
    def broken(self) -> bool:
        """Whether the conversation is over: what was asked last may have been done or not."""
        return self._broken is not None

    def fileno(self) -> int:
        """Return the descriptor, for select: readable when an event or a lost store waits. See next_event first."""
        return self._link.fileno()

    def close(self) -> None:
        """Close the connection; its transactions and watches end with it."""
        self._broken = ("EBADF", "the connection is closed")
        self._link.close()

    def __enter__(self) -> "Connection":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    # The conversation.

    def _one(self, op: int, path: bytes | None, tx: int, *arguments: bytes) -> bytes:
        """Ask one thing and return the answer's payload."""
        strings = arguments if path is None else (path, *arguments)
        if path is not None:
            _check_path(path, _NAMES[op], op in (codec.WATCH, codec.UNWATCH, codec.GET_PERMS, codec.SET_PERMS))
        for text in arguments:
            if b"\0" in text:
                raise StoreError("EINVAL", _NAMES[op], path, f"{text!r} holds a NUL byte")
        # TRANSACTION_START and RESET_WATCHES want one empty string.
        payload = codec.terminated(strings)
        if len(payload) > codec.PAYLOAD_MAX:
            raise StoreError("E2BIG", _NAMES[op], path, f"the request has over {codec.PAYLOAD_MAX} bytes")
        [(kind, reply)] = self._exchange([(op, payload)], tx)
        if kind == codec.ERROR:
            raise StoreError(codec.error_name(reply), _NAMES[op], path)
        return reply

    def _batch(self, op: int, paths: "Sequence[bytes]", tx: int) -> "Replies":
        for path in paths:
            _check_path(path, _NAMES[op])
        return self._exchange([(op, path + b"\0") for path in paths], tx)

    def _many(self, op: int, paths: "Sequence[bytes]", tx: int) -> "Values":
        found: Values = []
        first: StoreError | None = None
        for path, (kind, payload) in zip(paths, self._batch(op, paths, tx), strict=True):
            if kind != codec.ERROR:
                found.append(payload)
                continue
            found.append(None)
            name = codec.error_name(payload)
            if name != "ENOENT" and first is None:
                first = StoreError(name, _NAMES[op], path)
        if first is not None:
            raise first
        return found

    def _list_in_parts(self, path: bytes, tx: int) -> "Names":
        """DIRECTORY_PART: a generation, then children from an offset; anew where the generation changed."""
        whole, generation = b"", None
        while time.monotonic() < self.deadline:
            reply = self._one(codec.DIRECTORY_PART, path, tx, b"%d" % len(whole))
            now, _, part = reply.partition(b"\0")
            if generation is not None and now != generation:
                whole, generation = b"", None
                continue
            generation = now
            # The end of the list is marked by one NUL more.
            if part.endswith(b"\0\0") or part in (b"", b"\0"):
                return codec.split(whole + part[:-1])
            whole += part
        raise StoreError("ETIMEDOUT", "list", path, "it changed each time while its parts were read")

    def _exchange(self, requests: "Replies", tx: int) -> "Replies":
        """Send requests, in one batch if the link bears it; return their (operation, payload) replies in order."""
        if self._broken is not None:
            raise StoreError(self._broken[0], "use this connection", None, self._broken[1])
        if not requests:
            return []
        if time.monotonic() >= self.deadline:  # nothing is sent: the connection stays as good as it was
            op, payload = requests[0]
            path = payload.partition(b"\0")[0] or None
            raise StoreError("ETIMEDOUT", _NAMES[op], path, "no time is left to ask the store")
        first = self._request
        self._request = (first + len(requests)) & 0x7FFFFFFF
        packet = codec.packet
        packets = [packet(op, (first + n) & 0x7FFFFFFF, tx, payload) for n, (op, payload) in enumerate(requests)]
        replies: Replies = []
        wanted = len(requests)
        ids = first
        batches = [packets] if self._link.pipelines else [[packet] for packet in packets]
        asked = 0
        try:
            for batch in batches:
                asked += len(batch)
                for piece in self._link.send(batch, self.deadline):
                    ids = self._take(piece, replies, ids)
                while len(replies) < asked:
                    missing = self._decoder.missing()
                    # Each reply has a header at least; past that nothing is sure.
                    least = missing + (asked - len(replies) - 1) * codec.HEADER_SIZE
                    ids = self._take(self._link.receive(self.deadline, least), replies, ids)
            if len(replies) > wanted:
                raise OSError(errno.EPROTO, "more replies than requests")
        except OSError as error:
            op, payload = requests[min(len(replies), wanted - 1)]
            raise self._break(error, _NAMES[op], payload.partition(b"\0")[0] or None) from None
        return replies

    def _take(self, piece: bytes, replies: "Replies", wanted: int = -1) -> int:
        """Sort what came in: events to their queue, replies to ``replies``, which must come in order."""
        for op, request, _, payload in self._decoder.feed(piece):
            if op == codec.WATCH_EVENT:
                self._events.append(codec.event(payload))
            elif request != wanted and op not in (codec.WATCH, codec.UNWATCH):
                # Old kernels' devices (Linux before 4.11, NetBSD) answer these two themselves, without an id.
                raise OSError(errno.EPROTO, "a reply to nothing that was asked")
            else:
                wanted = (wanted + 1) & 0x7FFFFFFF
                replies.append((op, payload))
        if self._decoder.oversized:
            raise OSError(errno.EPROTO, f"a reply of {self._decoder.oversized} bytes")
        return wanted

    def _break(self, error: OSError, operation: str, path: bytes | None) -> StoreError:
        """Note that the conversation is over, and why."""
        name = _errno_name(error.errno or errno.EIO)
        what = {
            "ETIMEDOUT": "the store did not answer in time",
            "ECONNRESET": "the store went away",
            "EPIPE": "the store went away",
        }.get(name, str(error.strerror or error))
        self._broken = (name, f"an earlier request failed: {what}")
        return StoreError(name, operation, path, what)


def _check_path(path: bytes, operation: str, special: bool = False) -> None:
    """Refuse what would break the packet or the rules before it is sent."""
    if b"\0" in path:
        raise StoreError("EINVAL", operation, path, "the path holds a NUL byte")
    if codec.path_too_long(path):
        raise StoreError("E2BIG", operation, path[:60] + b"...", "the path is too long")


def _errno_name(number: int) -> str:
    return errno.errorcode.get(number, "EIO")
