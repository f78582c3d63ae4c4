"""What systemd is told: sd_notify's messages, from the daemon itself."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driverdomain import driver_domain
from tests.waiting import until
from vbdkit.toolstack.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, bytes]]:
    """The manager's socket, and its address as in NOTIFY_SOCKET."""
    name = os.fsencode(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name if request.param == "path" else b"\0" + name)
        sock.settimeout(30)
        yield sock, name if request.param == "path" else b"@" + name


def test_ready_alive_stopping(manager: tuple[socket.socket, bytes], tmp_path: Path) -> None:
    sock, address = manager
    with driver_domain(tmp_path, "embedded") as domain:
        domain.start(environ={b"NOTIFY_SOCKET": address, b"WATCHDOG_USEC": b"100000"})
        heard = sock.recv(4096).split(b"\n")
        while heard == [b"WATCHDOG=1"]:
            heard = sock.recv(4096).split(b"\n")
        assert heard == [b"READY=1", b"STATUS=watching /local/domain/7/backend"]
        begun = time.monotonic()
        for _ in range(4):
            assert sock.recv(4096) == b"WATCHDOG=1"
        # Each half of what is asked for, however idle the store is; far less often than a busy loop would.
        assert time.monotonic() - begun > 0.1
        assert domain.process is not None
        domain.process.send_signal(signal.SIGTERM)
        while (message := sock.recv(4096)) == b"WATCHDOG=1":
            pass
        assert message.startswith(b"STOPPING=1")
        until(lambda: domain.process is not None and domain.process.poll() == 0, "it ends")


def test_the_watchdog_is_another_process_s(tmp_path: Path) -> None:
    environ = {b"NOTIFY_SOCKET": os.fsencode(tmp_path / "none"), b"WATCHDOG_USEC": b"3000000"}
    assert Notifier(environ).interval == 1.5
    assert Notifier({**environ, b"WATCHDOG_PID": b"%d" % os.getpid()}).interval == 1.5
    assert Notifier({**environ, b"WATCHDOG_PID": b"1"}).interval is None
    assert Notifier({b"WATCHDOG_USEC": b"3000000"}).interval is None
    Notifier(environ).tell("READY=1")  # nobody listens: no error
