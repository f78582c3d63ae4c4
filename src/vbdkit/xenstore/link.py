"""How bytes reach the store: a unix socket to its daemon, or a kernel's xenbus device.

Owns the descriptor, where the store is looked for, and the deadline of each send and receive. Knows nothing of
packets, except that a device takes one packet per write. Hot path: see client.py for what may be imported.

Source of the facts: tools/libs/store/xs.c of Xen (the order of addresses), drivers/xen/xenbus/xenbus_dev_frontend.c
of Linux, sys/dev/xen/xenstore/xenstore_dev.c of FreeBSD, sys/arch/xen/xenbus/xenbus_dev.c of NetBSD.
"""

import _socket
import _stat
import errno
import posix
import select
import sys
from _struct import Struct
from time import monotonic, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_DEVICES: "tuple[bytes, ...]"
if sys.platform.startswith("freebsd"):
    _DEVICES = (b"/dev/xen/xenstore",)
elif sys.platform.startswith("netbsd"):
    _DEVICES = (b"/kern/xen/xenbus",)
else:
    _DEVICES = (b"/dev/xen/xenbus", b"/proc/xen/xenbus")

# struct timeval: time_t is 64 bits wide on every NetBSD, and its suseconds_t is an int.
_TIMEVAL = Struct("@qi0q" if sys.platform.startswith("netbsd") else "@ll")
# One blocking call lasts this long at most, then the deadline is looked at; so the two timeouts need no
# system call of their own until the end of the deadline is nearer than this.
_SLICE = 1.0
# A socket's buffers take this much without the daemon reading any of it.
_SURE = 32768
# From this many bytes of replies on, waiting is done by sleeping: seconds per byte of them, and at most. C xenstored
# stops writing when a quarter of the buffer is full, which is some 35 replies; it makes them in 200 microseconds.
_MANY = 1024
_PACE = 2.5e-6 / 16
_NAP = 0.0001
_NOSIGNAL = getattr(_socket, "MSG_NOSIGNAL", 0)
_DONTWAIT = _socket.MSG_DONTWAIT
# A full backlog makes Linux wait. Elsewhere it is ECONNREFUSED, which may also mean that nobody listens: try a while.
_REFUSED_RETRY = 0.0 if sys.platform == "linux" else 1.0


def addresses(environ: "Mapping[bytes, bytes]") -> "list[tuple[bytes, bool]]":
    """Return where to look for the store, in libxenstore's order: (path, whether it is the kernel's device).

    A place that ``environ`` names excludes the others of its kind: XENSTORED_PATH everything else (it may be a
    socket or a device), XENSTORED_RUNDIR the two usual sockets. An empty variable counts as unset.
    """
    path = environ.get(b"XENSTORED_PATH")
    if path:
        return [(path, False)]
    rundir = environ.get(b"XENSTORED_RUNDIR")
    sockets = [rundir + b"/socket"] if rundir else [b"/run/xenstored/socket", b"/var/run/xenstored/socket"]
    return [(path, False) for path in sockets] + [(path, True) for path in _DEVICES]


def connect(path: bytes, deadline: float) -> "SocketLink | DeviceLink":
    """Open the store at ``path``, by what is there: a socket, or else a device. Raises OSError.

    ``deadline`` is a time.monotonic() value; ETIMEDOUT where a daemon did not accept until then.
    """
    if not _stat.S_ISSOCK(posix.stat(path).st_mode):
        return DeviceLink(posix.open(path, posix.O_RDWR))
    begun = monotonic()
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    link = SocketLink(sock)
    try:
        while True:
            link.allow(deadline)
            try:
                # Blocking on purpose: C xenstored's backlog is 1, and a non-blocking connect gets EAGAIN at once.
                sock.connect(path)
                # An interrupted connect looks like a success to the interpreter; on a unix socket it is not.
                sock.getpeername()
                return link
            except BlockingIOError:  # the backlog stayed full for a slice
                continue
            except ConnectionRefusedError:
                if monotonic() - begun >= _REFUSED_RETRY:
                    raise
                sleep(0.01)
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise
    except BaseException:
        link.close()
        raise


def _timed_out() -> OSError:
    return OSError(errno.ETIMEDOUT, posix.strerror(errno.ETIMEDOUT))


class SocketLink:
    """A connected stream socket in blocking mode, with the kernel's own timeouts on it.

    Every method raises OSError: ETIMEDOUT at the deadline, ECONNRESET when the other end is gone.
    """

    __slots__ = ("_slice", "_sock")
    pipelines = True  # requests may be sent before the replies to earlier ones have come

    def __init__(self, sock: "_socket.socket") -> None:
        self._sock = sock
        self._slice = 0.0  # what the kernel's timeouts are set to

    def allow(self, deadline: float) -> None:
        """Make the next blocking call end with the deadline; raise ETIMEDOUT if it has passed."""
        left = deadline - monotonic()
        if left <= 0:
            raise _timed_out()
        wait = _SLICE if left > _SLICE else left
        if wait != self._slice:
            # All zero would mean "for ever".
            value = _TIMEVAL.pack(int(wait), max(int(wait % 1 * 1e6), 0 if wait >= 1 else 1))
            self._sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, value)
            self._sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, value)
            self._slice = wait

    def send(self, packets: "Sequence[bytes]", deadline: float) -> "list[bytes]":
        """Send ``packets`` and return the bytes that came in meanwhile, in pieces.

        A batch that may not fit into the buffers is sent and answered by turns, so that neither side can wait
        for the other to read.
        """
        data = packets[0] if len(packets) == 1 else b"".join(packets)
        if len(data) > _SURE:
            return self._send_much(data, deadline)
        while True:
            self.allow(deadline)
            try:
                sent = self._sock.send(data, _NOSIGNAL)
            except BlockingIOError:
                continue
            if sent == len(data):
                return []
            data = data[sent:]

    def _send_much(self, data: bytes, deadline: float) -> "list[bytes]":
        came: list[bytes] = []
        at = 0
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN | select.POLLOUT)
        while at < len(data):
            left = deadline - monotonic()
            if left <= 0:
                raise _timed_out()
            for _, ready in poll.poll(left * 1000):
                if ready & select.POLLOUT:
                    try:
                        at += self._sock.send(data[at : at + _SURE], _NOSIGNAL | _DONTWAIT)
                    except BlockingIOError:
                        pass
                if ready & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    try:
                        piece = self._sock.recv(65536, _DONTWAIT)
                    except BlockingIOError:
                        continue
                    if not piece:
                        raise OSError(errno.ECONNRESET, posix.strerror(errno.ECONNRESET))
                    came.append(piece)
        return came

    def receive(self, deadline: float, least: int) -> bytes:
        """Return what the store sends next. ``least``: as many bytes are sure to come (replies still missing).

        A deadline in the past takes what is there already.
        """
        while True:
            left = deadline - monotonic()
            try:
                if left <= 0 or least > _MANY:
                    piece = self._sock.recv(65536, _DONTWAIT)
                else:
                    self.allow(deadline)
                    piece = self._sock.recv(16384)
            except BlockingIOError:
                if left <= 0:
                    raise _timed_out() from None
                if least > _MANY:
                    # C xenstored sends each reply in two writes. To wait for the socket would mean to be woken by
                    # each, at the daemon's cost; so leave it alone for less time than any store needs.
                    sleep(min(least * _PACE, _NAP, left))
                    least -= _MANY  # a store that is silent is waited for at the socket in the end
                continue
            if not piece:
                raise OSError(errno.ECONNRESET, posix.strerror(errno.ECONNRESET))
            return piece

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        try:
            self._sock.close()
        except OSError:
            pass  # gone all the same, and nothing was left to be sent


class DeviceLink:
    """The kernel's xenbus device: a packet is one write, replies are read in whatever pieces the kernel gives.

    One request at a time: Linux (since 4.11) leaves a request in the descriptor's one buffer until a kernel thread
    sends it (xenbus_dev_request_and_reply); a write before its reply has come puts the next one's words into it.

    Waiting for a reply is done with poll. NetBSD's device is always "ready" and then waits in read; there a
    request's reply is complete when its write returns, so only waiting for watch events is unbounded. A write
    cannot be given a deadline: kernels answer it at once.
    """

    __slots__ = ("_fd", "_poll")
    pipelines = False

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def send(self, packets: "Sequence[bytes]", deadline: float) -> "list[bytes]":
        """Write ``packets``, each with one call: Linux's device drops what follows a packet in the same write."""
        if deadline <= monotonic():
            raise _timed_out()
        for data in packets:
            sent = posix.write(self._fd, data)
            if sent != len(data):
                raise OSError(errno.EIO, f"the device took {sent} of {len(data)} bytes")
        return []

    def receive(self, deadline: float, least: int) -> bytes:
        """Return the next piece; a deadline in the past takes what is there already."""
        if not self._poll.poll(max(deadline - monotonic(), 0) * 1000):
            raise _timed_out()
        piece = posix.read(self._fd, 65536)
        if not piece:
            raise OSError(errno.ECONNRESET, posix.strerror(errno.ECONNRESET))
        return piece

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            posix.close(fd)
