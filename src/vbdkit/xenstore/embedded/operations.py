"""The store behind its sockets: each request of each client turned into its reply and the events that follow.

Owns the clients' sessions (transactions, watches, identity), the domains that were introduced, and what every
operation takes and answers. No I/O: ``server.py`` feeds it packets and takes packets away.
"""

from collections.abc import Callable

from vbdkit.xenstore import codec
from vbdkit.xenstore.embedded import tree
from vbdkit.xenstore.embedded.permissions import (
    Caller,
    Permission,
    Permissions,
    Quota,
    Refused,
    parse_permissions,
    path_length_allowed,
)
from vbdkit.xenstore.embedded.transactions import Transaction
from vbdkit.xenstore.embedded.tree import Change, Tree, View
from vbdkit.xenstore.embedded.watches import INTRODUCE_DOMAIN, RELEASE_DOMAIN, Watch, Watches

_OK = b"OK\0"
_FIRST_RESERVED_DOMID = 0x7FF0
_CONTROL_HELP = b"check\nhelp\nprint <text>\n\0"


class Session:
    """One client's side of the store. ``outbox`` collects the packets for it."""

    def __init__(self, store: "Store", domid: int, home: int) -> None:
        """``domid``: whose rights it has; ``home``: whose directory its relative paths are in."""
        self.domid = domid
        self.base = b"/local/domain/%d/" % home
        self.outbox: list[bytes] = []
        self.watches = Watches()
        self.transactions: dict[int, Transaction] = {}
        self.next_transaction = 1
        self._store = store

    @property
    def caller(self) -> Caller:
        """Who asks, with the target that a stub domain has by now."""
        return Caller(self.domid, self._store.targets.get(self.domid), self._store.quota)


class Store:
    """The tree and all that hangs on it."""

    def __init__(self, quota: Quota) -> None:
        self.tree = Tree()
        self.quota = quota
        self.sessions: list[Session] = []
        self.introduced = {0}
        self.targets: dict[int, int] = {}
        self.released: Callable[[int], None] = lambda _: None
        """Called with the domid of a domain that is gone, before others are told."""
        special: Permissions = (Permission(0, False, False),)
        self._special = {INTRODUCE_DOMAIN: special, RELEASE_DOMAIN: special}
        self._operations: dict[int, Callable[[Session, View, bytes], bytes]] = {
            codec.CONTROL: self._control,
            codec.DIRECTORY: self._directory,
            codec.DIRECTORY_PART: self._directory_part,
            codec.READ: lambda s, view, data: tree.read(view, s.caller, _node(s, _only(data))),
            codec.GET_PERMS: lambda s, view, data: tree.get_permissions(view, s.caller, _node(s, _only(data))),
            codec.WRITE: self._write,
            codec.MKDIR: self._mkdir,
            codec.RM: self._remove,
            codec.SET_PERMS: self._set_permissions,
            codec.WATCH: self._watch,
            codec.UNWATCH: self._unwatch,
            codec.RESET_WATCHES: self._reset,
            codec.TRANSACTION_START: self._start,
            codec.INTRODUCE: self._introduce,
            codec.RELEASE: self._release,
            codec.GET_DOMAIN_PATH: lambda _s, _view, data: b"/local/domain/%d\0" % _number(_only(data)),
            codec.IS_DOMAIN_INTRODUCED: self._is_introduced,
            codec.RESUME: self._resume,
            codec.SET_TARGET: self._set_target,
        }

    def join(self, domid: int, home: int) -> Session:
        """Begin a client's session."""
        session = Session(self, domid, home)
        self.sessions.append(session)
        return session

    def leave(self, session: Session) -> None:
        """End it, with its watches and transactions."""
        self.sessions.remove(session)

    def handle(self, session: Session, op: int, request: int, tx: int, payload: bytes) -> None:
        """Do one request. Its reply goes to the session's outbox, events to everybody's."""
        after: list[bytes] = []
        try:
            if op == codec.TRANSACTION_END:
                reply = self._end(session, tx, payload)
            elif op not in self._operations:
                raise Refused("ENOSYS")
            else:
                if op in _PRIVILEGED and not session.caller.privileged:
                    raise Refused("EACCES")
                reply = self._operations[op](session, self._view(session, op, tx), payload)
            if op == codec.WATCH:
                after.append(session.watches.newest.first_event())
            if len(reply) > codec.PAYLOAD_MAX:
                raise Refused("E2BIG")
        except Refused as refused:
            op, reply = codec.ERROR, refused.name.encode() + b"\0"
        changes, self.tree.changes = self.tree.changes, []
        if changes:
            self._tell(changes)
        session.outbox.append(codec.packet(op, request, tx, reply))
        session.outbox += [codec.packet(codec.WATCH_EVENT, 0, 0, event) for event in after]

    def _tell(self, changes: list[Change]) -> None:
        """Send events; the same one comes once for what one request did."""
        for session in self.sessions:
            caller = session.caller
            events = [event for change in changes for event in session.watches.events(change, caller)]
            session.outbox += [codec.packet(codec.WATCH_EVENT, 0, 0, event) for event in dict.fromkeys(events)]

    def _view(self, session: Session, op: int, tx: int) -> View:
        if tx == 0 or op in _OUTSIDE_TRANSACTIONS:
            return self.tree
        if tx not in session.transactions:
            raise Refused("ENOENT")
        if op == codec.TRANSACTION_START:
            raise Refused("EBUSY")
        return session.transactions[tx]

    # Nodes.

    def _directory(self, session: Session, view: View, data: bytes) -> bytes:
        return codec.terminated(tree.children(view, session.caller, _node(session, _only(data))).children)

    def _directory_part(self, session: Session, view: View, data: bytes) -> bytes:
        path, offset = _strings(data, 2)
        node = tree.children(view, session.caller, _node(session, path))
        head = b"%d\0" % node.generation
        names = codec.terminated(node.children)[_number(offset) :]
        room = codec.PAYLOAD_MAX - len(head) - 1
        if len(names) <= room:
            return head + names + b"\0"
        return head + names[: names.rindex(b"\0", 0, room) + 1]

    def _write(self, session: Session, view: View, data: bytes) -> bytes:
        path, nul, value = data.partition(b"\0")
        if not nul:
            raise Refused("EINVAL")
        tree.write(view, session.caller, _node(session, path), value)
        return _OK

    def _mkdir(self, session: Session, view: View, data: bytes) -> bytes:
        tree.mkdir(view, session.caller, _node(session, _only(data)))
        return _OK

    def _remove(self, session: Session, view: View, data: bytes) -> bytes:
        tree.remove(view, session.caller, _node(session, _only(data)))
        return _OK

    def _set_permissions(self, session: Session, view: View, data: bytes) -> bytes:
        if data[-1:] != b"\0":
            raise Refused("EINVAL")
        path, *texts = codec.split(data)
        if path in self._special:
            if not session.caller.privileged:
                raise Refused("EACCES")
            self._special[path] = parse_permissions(texts, session.caller)
        else:
            tree.set_permissions(view, session.caller, _node(session, path, special=True), texts)
        return _OK

    # Transactions.

    def _start(self, session: Session, _view: View, _data: bytes) -> bytes:
        caller = session.caller
        if not caller.privileged and len(session.transactions) >= caller.quota.transactions:
            raise Refused("ENOSPC")
        while session.next_transaction == 0 or session.next_transaction in session.transactions:
            session.next_transaction = (session.next_transaction + 1) & 0xFFFFFFFF
        number = session.next_transaction
        session.next_transaction = (number + 1) & 0xFFFFFFFF
        session.transactions[number] = Transaction(self.tree, caller)
        return b"%d\0" % number

    def _end(self, session: Session, tx: int, data: bytes) -> bytes:
        if tx not in session.transactions:
            raise Refused("ENOENT")
        if data not in (b"T\0", b"F\0"):
            raise Refused("EINVAL")
        transaction = session.transactions.pop(tx)
        if data == b"T\0":
            transaction.commit()
        return _OK

    # Watches.

    def _watch(self, session: Session, _view: View, data: bytes) -> bytes:
        path, token = _strings(data, 2)
        absolute = _node(session, path, special=True)
        session.watches.add(Watch(absolute, token, b"" if absolute == path else session.base), session.caller)
        return _OK

    def _unwatch(self, session: Session, _view: View, data: bytes) -> bytes:
        path, token = _strings(data, 2)
        session.watches.drop(_absolute(session, path), token)
        return _OK

    def _reset(self, session: Session, _view: View, _data: bytes) -> bytes:
        session.watches.clear()
        session.transactions.clear()
        return _OK

    # Domains.

    def _introduce(self, _session: Session, _view: View, data: bytes) -> bytes:
        domid, _frame, _port = (_number(text) for text in _strings(data, 3))
        if domid >= _FIRST_RESERVED_DOMID:
            raise Refused("EINVAL")
        if domid not in self.introduced:
            self.introduced.add(domid)
            self.tree.changes.append(Change(INTRODUCE_DOMAIN, False, (self._special[INTRODUCE_DOMAIN],)))
        return _OK

    def _release(self, _session: Session, _view: View, data: bytes) -> bytes:
        domid = _number(_only(data))
        if domid == 0:
            raise Refused("EINVAL")
        self._must_be_introduced(domid)
        self.introduced.remove(domid)
        self.targets.pop(domid, None)
        self.released(domid)
        self.tree.changes.append(Change(RELEASE_DOMAIN, False, (self._special[RELEASE_DOMAIN],)))
        return _OK

    def _is_introduced(self, _session: Session, _view: View, data: bytes) -> bytes:
        return b"T\0" if _number(_only(data)) in self.introduced else b"F\0"

    def _resume(self, _session: Session, _view: View, data: bytes) -> bytes:
        self._must_be_introduced(_number(_only(data)))
        return _OK

    def _set_target(self, _session: Session, _view: View, data: bytes) -> bytes:
        domid, target = (_number(text) for text in _strings(data, 2))
        self._must_be_introduced(domid)
        self._must_be_introduced(target)
        self.targets[domid] = target
        return _OK

    def _must_be_introduced(self, domid: int) -> None:
        if domid not in self.introduced:
            raise Refused("ENOENT")

    def _control(self, _session: Session, _view: View, data: bytes) -> bytes:
        command = data.partition(b"\0")[0]
        if command == b"help":
            return _CONTROL_HELP
        if command in (b"check", b"print"):
            return _OK
        raise Refused("EINVAL")


_PRIVILEGED = {
    codec.CONTROL,
    codec.INTRODUCE,
    codec.RELEASE,
    codec.IS_DOMAIN_INTRODUCED,
    codec.RESUME,
    codec.SET_TARGET,
}
# A transaction id on these means nothing, not even an unknown one.
_OUTSIDE_TRANSACTIONS = {codec.WATCH, codec.UNWATCH}


def _strings(data: bytes, count: int) -> list[bytes]:
    """Return the NUL-terminated strings of a request. Refuses (EINVAL) another number of them, or bytes behind."""
    if data[-1:] != b"\0" or data.count(b"\0") != count:
        raise Refused("EINVAL")
    return data[:-1].split(b"\0")


def _only(data: bytes) -> bytes:
    return _strings(data, 1)[0]


def _number(text: bytes) -> int:
    if not text.isdigit():
        raise Refused("EINVAL")
    return int(text)


def _absolute(session: Session, path: bytes) -> bytes:
    return path if path[:1] in (b"/", b"@") else session.base + path


def _node(session: Session, path: bytes, special: bool = False) -> bytes:
    """Return the absolute form of a path, which a relative one gets from the client's own domain (clause C7)."""
    path = _absolute(session, path)
    if not codec.is_path(path, special) or not path_length_allowed(path):
        raise Refused("EINVAL")
    return path
