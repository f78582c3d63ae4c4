"""The embedded store's sockets: one thread, one loop, clients that cannot harm each other.

Owns descriptors and buffers. A client that sends an impossible packet, or never reads what it gets, loses its own
connection and nothing else.
"""

import contextlib
import errno
import os
import selectors
import socket
import stat
import threading
from types import TracebackType

from vbdkit.xenstore import codec
from vbdkit.xenstore.embedded.operations import Session, Store
from vbdkit.xenstore.embedded.permissions import Quota

_READ = 65536
# A client with this much unread gets no more requests done until it reads (its own doing, it waits for itself).
_ENOUGH = 1 << 20
# Watch events come unasked; one who lets this much pile up is cut off.
_TOO_MUCH = 64 << 20
_BACKLOG = 128


class _Client:
    """One accepted connection."""

    def __init__(self, sock: socket.socket, session: Session, listener: bytes) -> None:
        self.sock = sock
        self.session = session
        self.listener = listener
        self.decoder = codec.Decoder(codec.PAYLOAD_MAX)
        self.unsent = bytearray()
        self.interest = selectors.EVENT_READ


class EmbeddedStore:
    """A xenstore daemon inside this process, on unix sockets, with the real wire protocol.

    ::

        with EmbeddedStore(b"/tmp/x/socket") as store:
            Connection.open(deadline, {b"XENSTORED_PATH": b"/tmp/x/socket"})

    ``start`` (or ``with``) runs it in a thread; ``serve_forever`` in the caller's. Both end with ``close``, which
    removes the sockets. Once closed it cannot be started again.
    """

    def __init__(
        self, socket_path: bytes | str, domid: int = 0, connection_domid: int = 0, quota: Quota | None = None
    ) -> None:
        """Bind ``socket_path``, for its owner only. Raises OSError; EADDRINUSE where a living store listens there.

        ``domid``: relative paths of its clients are below /local/domain/<domid>. ``connection_domid``: whose rights
        they have; 0 may do everything. ``quota`` binds all others (default: C xenstored's figures).
        """
        self._store = Store(quota or Quota())
        self._store.released = self._forget
        self._store.introduced.add(domid)
        self._selector = selectors.DefaultSelector()
        self._listeners: dict[bytes, tuple[socket.socket, os.stat_result]] = {}
        self._clients: dict[int, _Client] = {}
        self._lock = threading.Lock()  # between the loop's turns and listen()
        self._stop, wake = socket.socketpair()
        self._wake = wake
        self._selector.register(self._stop, selectors.EVENT_READ)
        self._thread: threading.Thread | None = None
        self._closed = False
        try:
            self._listen(os.fsencode(socket_path), connection_domid, domid)
        except BaseException:
            self.close()
            raise

    def listen(self, path: bytes | str, domid: int) -> None:
        """Serve clients of one more domain at ``path``: with its rights, quota and relative paths. Raises OSError.

        May be called while the store runs. The domain counts as introduced.
        """
        with self._lock:
            self._listen(os.fsencode(path), domid, domid)
            self._store.introduced.add(domid)

    def _listen(self, path: bytes, domid: int, home: int) -> None:
        quiet = contextlib.suppress(FileNotFoundError, ConnectionRefusedError)
        with socket.socket(socket.AF_UNIX) as probe, quiet:
            probe.settimeout(1)
            probe.connect(path)
            raise OSError(errno.EADDRINUSE, "another store listens here", os.fsdecode(path))
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)  # left behind by one that was killed
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(path)
            os.chmod(path, 0o600)
            sock.listen(_BACKLOG)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        self._listeners[path] = (sock, os.stat(path))
        self._selector.register(sock, selectors.EVENT_READ, (path, domid, home))

    def start(self) -> None:
        """Serve in a thread of its own; clients can connect as soon as this returns."""
        self._thread = threading.Thread(target=self.serve_forever, name="xenstore", daemon=True)
        self._thread.start()

    def serve_forever(self) -> None:
        """Serve until ``close`` is called, from another thread or a signal handler."""
        while True:
            ready = self._selector.select()
            with self._lock:
                if self._closed:
                    return
                for key, events in ready:
                    if isinstance(key.data, _Client):
                        self._serve(key.data, events)
                    elif key.data is not None:
                        self._accept(key.fileobj, *key.data)  # type: ignore[arg-type]  # registered as a socket
                self._flush()

    def stop(self) -> None:
        """Make ``serve_forever`` return. Safe in a signal handler."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._wake.send(b"x")

    def close(self) -> None:
        """Stop, drop all clients, remove the sockets. More than once is no error."""
        self.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None
        with self._lock:
            for client in list(self._clients.values()):
                self._drop(client)
            for path, (sock, made) in self._listeners.items():
                sock.close()
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.lstat(path), made):
                        os.unlink(path)
            self._listeners.clear()
            self._selector.close()
            self._stop.close()
            self._wake.close()

    def __enter__(self) -> "EmbeddedStore":
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    # The loop's parts, with the lock held.

    def _accept(self, listener: socket.socket, path: bytes, domid: int, home: int) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return  # gone again, or no descriptors left: the others go on
        sock.setblocking(False)
        client = _Client(sock, self._store.join(domid, home), path)
        self._clients[sock.fileno()] = client
        self._selector.register(sock, client.interest, client)

    def _serve(self, client: _Client, events: int) -> None:
        if not events & selectors.EVENT_READ or client.sock.fileno() not in self._clients:
            return
        try:
            data = client.sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        for op, request, tx, payload in client.decoder.feed(data):
            self._store.handle(client.session, op, request, tx, payload)
        if client.decoder.oversized:
            self._drop(client)

    def _flush(self) -> None:
        """Send what there is for each client, as far as its buffer takes it, and settle what to wait for."""
        for client in list(self._clients.values()):
            outbox = client.session.outbox
            if outbox:
                client.unsent += b"".join(outbox)
                outbox.clear()
            if client.unsent:
                try:
                    del client.unsent[: client.sock.send(client.unsent)]
                except BlockingIOError:
                    pass
                except OSError:
                    self._drop(client)
                    continue
                if len(client.unsent) > _TOO_MUCH:
                    self._drop(client)
                    continue
            interest = selectors.EVENT_READ if len(client.unsent) < _ENOUGH else 0
            interest |= selectors.EVENT_WRITE if client.unsent else 0
            if interest != client.interest:
                client.interest = interest
                self._selector.modify(client.sock, interest, client)

    def _drop(self, client: _Client) -> None:
        if client.sock.fileno() < 0:
            return
        self._store.leave(client.session)
        del self._clients[client.sock.fileno()]
        self._selector.unregister(client.sock)
        client.sock.close()

    def _forget(self, domid: int) -> None:
        """End the connections of a released domain."""
        for client in list(self._clients.values()):
            if client.session.domid == domid:
                self._drop(client)
