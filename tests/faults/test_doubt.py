"""A commit whose reply is lost: it is found out whether it was done, and never guessed (O6, O7)."""

import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_signals import loops_on, records
from tests.host import Host, Result

_HEADER = struct.Struct("=4I")
_TRANSACTION_END = 7


class Cut:
    """A way to the store that breaks at the first commit: before the store has it, or before its reply is through.

    ``for_good``: nobody gets through after that.
    """

    def __init__(self, place: Path, store: Path, before: bool, for_good: bool) -> None:
        self.path = place / "cut"
        self._store, self._before, self._for_good = store, before, for_good
        self._done = False
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with client, socket.socket(socket.AF_UNIX) as store:
                if self._done and self._for_good:
                    continue
                store.connect(str(self._store))
                try:
                    while self._pass_on(client, store):
                        pass
                except OSError:
                    pass

    def _pass_on(self, client: socket.socket, store: socket.socket) -> bool:
        """One request and its reply; False where the client is gone or is to be cut off."""
        request = _packet(client)
        if not request:
            return False
        cut = not self._done and _HEADER.unpack_from(request)[0] == _TRANSACTION_END and request.endswith(b"T\0")
        self._done = self._done or cut
        if cut and self._before:
            return False
        store.sendall(request)
        reply = _packet(store)
        if not cut:
            client.sendall(reply)
        return not cut


def _packet(sock: socket.socket) -> bytes:
    head = sock.recv(_HEADER.size, socket.MSG_WAITALL)
    length = _HEADER.unpack(head)[3] if len(head) == _HEADER.size else 0
    return head + (sock.recv(length, socket.MSG_WAITALL) if length else b"")


@pytest.fixture
def cuts(host: Host, tmp_path: Path) -> Iterator[list[Cut]]:
    made: list[Cut] = []
    yield made
    for cut in made:
        cut.close()


def add(host: Host, image: Path, cuts: list[Cut], before: bool = False, for_good: bool = False) -> Result:
    """Run add for guest 5, with its way to the store cut at the commit."""
    cuts.append(Cut(image.parent, host.socket, before, for_good))
    return host.disk(5, image).run("add", extra={"XENSTORED_PATH": str(cuts[-1].path)})


def test_one_that_was_done_is_a_success(host: Host, image: Path, cuts: list[Cut]) -> None:
    result = add(host, image, cuts)
    assert (result.status, result.output, result.outcome) == (0, "", b"connected")
    assert loops_on(image) == [os.fsdecode(result.nodes["node"])]
    assert records(host) == ["vbd-5-51712"]
    assert host.disk(6, image).add().outcome == b"busy"


def test_one_that_was_not_done_is_undone(host: Host, image: Path, cuts: list[Cut]) -> None:
    result = add(host, image, cuts, before=True)
    assert (result.status, result.outcome) == (1, b"error")
    assert "the store went away" in result.error
    assert "physical-device" not in result.nodes
    assert (loops_on(image), records(host)) == ([], [])
    assert host.disk(6, image).add().outcome == b"connected"


def test_while_nobody_can_tell_the_device_stays(host: Host, image: Path, cuts: list[Cut]) -> None:
    """Its number may be published, so it must not become another's."""
    result = add(host, image, cuts, for_good=True)
    assert result.status == 1
    assert "could not be written to xenstore" in result.output
    assert result.outcome == b"connected", "it was published indeed"
    assert loops_on(image) == [os.fsdecode(result.nodes["node"])]
    assert records(host) == ["vbd-5-51712"]
    assert host.disk(6, image).add().outcome == b"busy"
