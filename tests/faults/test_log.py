"""syslog: its daemon may hang, be gone or be slow; lines may be lost, disks must not."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import Host
from tests.need import need_program

DAEMON_ERR, DAEMON_INFO = 3 << 3 | 3, 3 << 3 | 6


class Log:
    """A /dev/log that only the scripts of one host see."""

    def __init__(self, host: Host, kind: socket.SocketKind) -> None:
        """Make the socket; nobody reads from it yet."""
        need_program("unshare")
        self.kind = kind
        self.path = host.directory / "log.sock"
        self.socket = socket.socket(socket.AF_UNIX, kind)
        self.socket.bind(str(self.path))
        dev = host.directory / "dev"
        dev.mkdir()
        host.within(
            f"mount -t tmpfs tmpfs {dev} && cp -a /dev/null /dev/loop-control {dev} && ln -s {self.path} {dev}/log "
            f"&& mount --move {dev} /dev"
        )
        self._senders: list[socket.socket] = []

    def fill(self) -> None:
        """Let the next one that writes to it wait for ever: a queue of lines, or one of connections."""
        if self.kind == socket.SOCK_STREAM:
            self.socket.listen(0)
        try:
            while True:
                sender = socket.socket(socket.AF_UNIX, self.kind)
                self._senders.append(sender)
                sender.setblocking(False)
                sender.connect(str(self.path))
                if self.kind == socket.SOCK_DGRAM:
                    sender.send(b"x")
        except BlockingIOError:
            pass

    def lines(self) -> list[str]:
        """What came, as far as it did."""
        self.socket.setblocking(False)
        found = []
        try:
            while True:
                if self.kind == socket.SOCK_DGRAM:
                    found.append(self.socket.recv(65536).decode())
                else:
                    connection = self.socket.accept()[0]
                    connection.settimeout(10)
                    with connection, connection.makefile("rb") as file:
                        text = file.read()
                    assert text.endswith(b"\0")
                    found.append(text[:-1].decode())
        except BlockingIOError:
            return found

    def close(self) -> None:
        for one in (self.socket, *self._senders):
            one.close()


@pytest.fixture(params=[socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["datagrams", "stream"])
def log(request: pytest.FixtureRequest, host: Host) -> Iterator[Log]:
    """Of both kinds that syslog daemons have."""
    made = Log(host, request.param)
    yield made
    made.close()


def test_a_daemon_that_reads_nothing_holds_up_nobody(log: Log, host: Host, image: Path) -> None:
    """As where it hangs, or was stopped and systemd still has its socket: syslog(3) would never return."""
    log.fill()
    disk, other = host.disk(5, image), host.disk(6, image)
    assert disk.add().outcome == b"connected"
    refusal = other.add()
    assert (refusal.status, refusal.outcome) == (1, b"busy")
    assert "in use by guest 5" in refusal.output
    assert disk.remove().status == 0
    assert list(host.run_dir.iterdir()) == []


def test_what_is_said_arrives_in_the_form_of_syslog(log: Log, host: Host, image: Path) -> None:
    if log.kind == socket.SOCK_STREAM:
        log.socket.listen(10)
    disk = host.disk(5, image)
    process = disk.start("add")
    process.communicate()
    disk.write(params=b"/nowhere", state=b"2")
    disk.remove()
    assert disk.add().status == 1
    done, released, failed = log.lines()
    stamp = r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d"
    attached = f"block add vbd-5-51712: {re.escape(str(image))} attached as /dev/loop\\d+ \\(w\\)"
    assert re.fullmatch(rf"<{DAEMON_INFO}>{stamp} vbdkit\[{process.pid}\]: {attached}", done), done
    assert re.fullmatch(rf"<{DAEMON_INFO}>{stamp} vbdkit\[\d+\]: block remove vbd-5-51712: detached.*", released)
    assert re.fullmatch(rf"<{DAEMON_ERR}>{stamp} vbdkit\[\d+\]: block: vbd-5-51712: /nowhere .*", failed), failed


def test_a_daemon_that_is_slow_gets_the_line(host: Host, image: Path) -> None:
    log = Log(host, socket.SOCK_DGRAM)
    log.fill()
    disk = host.disk(5, image)
    process = disk.start("add")
    while "hotplug-status" not in disk.nodes():  # what is said of a success is said after it
        assert process.poll() is None
    lines = log.lines()
    process.communicate(timeout=60)
    lines += log.lines()
    log.close()
    assert [line for line in lines if "attached as" in line] == [line for line in lines if line != "x"] != []


def test_without_a_daemon_nothing_is_missed(host: Host, image: Path) -> None:
    log = Log(host, socket.SOCK_DGRAM)
    log.close()
    disk = host.disk(5, image)
    assert disk.add().outcome == b"connected"
    assert disk.remove().status == 0
