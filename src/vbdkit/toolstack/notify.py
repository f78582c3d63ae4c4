"""What systemd's service manager is told (sd_notify(3)), without its library. Silent where nobody listens."""

import os
import socket
from collections.abc import Mapping

# What belongs to this process and to none that it starts.
PRIVATE = (b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"WATCHDOG_PID")


class Notifier:
    """Speaks to the socket that ``environ`` names.

    ``interval`` is how often, in seconds, the manager has to hear ``WATCHDOG=1`` at least: half of the time after
    which it takes the service for dead; None where it does not ask.
    """

    def __init__(self, environ: Mapping[bytes, bytes]) -> None:
        """Take the address; nothing is sent."""
        address = environ.get(b"NOTIFY_SOCKET", b"")
        # An abstract address, which begins with a NUL byte, is written with "@".
        self._address = b"\0" + address[1:] if address[:1] == b"@" else address
        self.interval = self._asked(environ) if address else None

    def tell(self, *states: str) -> None:
        """Send assignments such as READY=1, in one message. One that cannot be sent is lost, as sd_notify's are."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
                sock.sendto("\n".join(states).encode(), self._address)
        except OSError:
            pass

    @staticmethod
    def _asked(environ: Mapping[bytes, bytes]) -> float | None:
        limit, pid = environ.get(b"WATCHDOG_USEC", b""), environ.get(b"WATCHDOG_PID", b"")
        if not limit.isdigit() or not int(limit) or (pid and pid != b"%d" % os.getpid()):
            return None
        return int(limit) / 2e6
