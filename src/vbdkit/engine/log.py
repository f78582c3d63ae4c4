"""Lines to syslog, without waiting for it for long: a line may be lost, a disk must not be.

On Linux syslog(3) blocks while the daemon's queue is full: for ever, where a daemon hangs or was ended and its socket
is still held (systemd does that). So the line is sent from here there, in the form that syslog(3) gives it.
"""

import _socket
import errno
import posix
import select
import sys
import syslog
import time

# Seconds that lines may wait together, until one is taken again.
_PATIENCE = 1.0
_SOCKET = "/dev/log"
_left = [_PATIENCE]


def write(priority: int, text: str) -> None:
    """Send one line, as the daemon "vbdkit" with this process's number. Raises nothing."""
    if sys.platform != "linux":
        # There a full queue is an error, and syslog(3) knows where the daemon listens.
        syslog.openlog("vbdkit", syslog.LOG_PID, syslog.LOG_DAEMON)
        syslog.syslog(priority, text)
        return
    when = time.strftime("%b %e %H:%M:%S")
    line = f"<{syslog.LOG_DAEMON | priority}>{when} vbdkit[{posix.getpid()}]: {text}".encode("utf-8", "replace")
    for kind, end in ((_socket.SOCK_DGRAM, b""), (_socket.SOCK_STREAM, b"\0")):
        try:
            _send(kind | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC, line + end)
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:
                continue  # a daemon of the other kind
        return


def _send(kind: int, line: bytes) -> None:
    """Send a line by a socket of one kind, unless the daemon takes none in time. Raises OSError."""
    log = _socket.socket(_socket.AF_UNIX, kind)
    try:
        log.connect(_SOCKET)
        begun = time.monotonic()
        ready = select.poll()
        ready.register(log.fileno(), select.POLLOUT)
        if ready.poll(_left[0] * 1000):
            log.send(line)
            _left[0] = _PATIENCE
        else:
            _left[0] = max(0.0, _left[0] - (time.monotonic() - begun))
    finally:
        log.close()
