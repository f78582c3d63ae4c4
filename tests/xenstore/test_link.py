"""Stores that are missing, silent, full, killed or strange: an error by name, within the deadline."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.need import need_program
from tests.stores import Store, real_store
from vbdkit.xenstore import codec
from vbdkit.xenstore.client import Connection, StoreError
from vbdkit.xenstore.embedded import EmbeddedStore
from vbdkit.xenstore.link import DeviceLink, SocketLink, addresses


@contextlib.contextmanager
def fails(name: str, within: float = 1.0) -> Iterator[None]:
    """The block ends with this error, this soon."""
    before = time.monotonic()
    with pytest.raises(StoreError) as caught:
        yield
    assert time.monotonic() - before < within
    assert caught.value.name == name, str(caught.value)


def environ(path: Path) -> dict[bytes, bytes]:
    return {b"XENSTORED_PATH": os.fsencode(path)}


def soon(seconds: float = 0.2) -> float:
    return time.monotonic() + seconds


def on_socketpair() -> tuple[Connection, socket.socket]:
    mine, theirs = socket.socketpair()
    return Connection(SocketLink(mine), soon()), theirs


# Where it is looked for.


def test_places_in_libxenstore_s_order() -> None:
    devices = [(b"/dev/xen/xenbus", True), (b"/proc/xen/xenbus", True)]
    usual = [(b"/run/xenstored/socket", False), (b"/var/run/xenstored/socket", False)]
    assert addresses({}) == usual + devices
    assert addresses({b"XENSTORED_RUNDIR": b"/x"}) == [(b"/x/socket", False), *devices]
    assert addresses({b"XENSTORED_PATH": b"/y", b"XENSTORED_RUNDIR": b"/x"}) == [(b"/y", False)]
    assert addresses({b"XENSTORED_PATH": b"", b"XENSTORED_RUNDIR": b""}) == usual + devices


def test_the_rundir_leads_to_its_socket(tmp_path: Path) -> None:
    rundir = {b"XENSTORED_RUNDIR": os.fsencode(tmp_path)}
    with EmbeddedStore(str(tmp_path / "socket")), Connection.open(soon(5), rundir) as xs:
        assert xs.exists(b"/tool")


def test_no_store(tmp_path: Path) -> None:
    with fails("ENOENT"):
        Connection.open(soon(), environ(tmp_path / "nothing"))


def test_no_store_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=str(tmp_path)):
        Connection.open(soon(), {b"XENSTORED_RUNDIR": os.fsencode(tmp_path)})


def test_a_socket_that_a_dead_store_left_behind(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "socket"))
    with fails("ECONNREFUSED"):
        Connection.open(soon(), environ(tmp_path / "socket"))


def test_no_right_to_connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vbdkit.xenstore.client.connect", refuse)
    with fails("EACCES"):
        Connection.open(soon(), environ(tmp_path))


# Silence.


def test_a_full_backlog_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    """C xenstored listens with a backlog of 1, so this is what a busy one looks like."""
    path = tmp_path / "socket"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        stack.enter_context(Connection.open(soon(), environ(path)))
        before = time.monotonic()
        with fails("ETIMEDOUT"):
            Connection.open(soon(0.3), environ(path))
        assert time.monotonic() - before > 0.25

        timer = threading.Timer(0.1, lambda: stack.enter_context(listener.accept()[0]))
        timer.start()
        stack.enter_context(Connection.open(soon(5), environ(path)))
        assert time.monotonic() - before < 2
        timer.join()


def test_a_signal_while_connecting_is_no_connection(tmp_path: Path) -> None:
    """The interpreter takes an interrupted connect for one that goes on; on a unix socket nothing goes on."""
    path = tmp_path / "socket"
    came: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda number, _: came.append(number))
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(0)
            with Connection.open(soon(), environ(path)):
                signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
                before = time.monotonic()
                with fails("ETIMEDOUT"):
                    Connection.open(soon(0.3), environ(path))
                assert time.monotonic() - before > 0.25
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert len(came) > 1


def test_a_silent_store() -> None:
    xs, theirs = on_socketpair()
    with theirs, xs:
        before = time.monotonic()
        with fails("ETIMEDOUT"):
            xs.read(b"/t")
        assert time.monotonic() - before > 0.15
        with fails("ETIMEDOUT"):  # what its answer belongs to is no longer known
            xs.read(b"/t")


def test_a_store_that_answers_half() -> None:
    xs, theirs = on_socketpair()
    with theirs, xs:
        theirs.sendall(codec.packet(codec.READ, 0, 0, b"value")[:-1])
        with fails("ETIMEDOUT"):
            xs.read(b"/t")


@pytest.mark.parametrize("count", [200, 20000])
def test_a_store_that_stops_in_the_middle_of_a_batch(count: int) -> None:
    """20,000 requests do not fit into the socket's buffers, so here it is the sending that stands still."""
    xs, theirs = on_socketpair()
    with theirs, xs:
        theirs.sendall(b"".join(codec.packet(codec.READ, number, 0, b"x") for number in range(100)))
        with fails("ETIMEDOUT"):
            xs.read_many([b"/t/%d" % number for number in range(count)])


def test_no_time_left_harms_no_connection(tmp_path: Path) -> None:
    with EmbeddedStore(str(tmp_path / "s")), Connection.open(soon(5), environ(tmp_path / "s")) as xs:
        xs.deadline = time.monotonic() - 1
        with fails("ETIMEDOUT"):
            xs.read(b"/")
        xs.deadline = soon(5)
        assert xs.read(b"/") == b""


# Gone.


@pytest.mark.parametrize("kind", ["c", "o"])
def test_a_daemon_that_is_killed_while_a_batch_is_under_way(kind: str, tmp_path: Path) -> None:
    with real_store(kind, tmp_path) as store, store.connect() as xs:
        threading.Timer(0.05, os.kill, (store.pid, 9)).start()
        before = time.monotonic()
        with pytest.raises(StoreError) as caught:
            xs.read_many([b"/tool"] * 200_000)
        assert caught.value.name in ("ECONNRESET", "EPIPE")
        assert time.monotonic() - before < 5
        with pytest.raises(StoreError):
            xs.read(b"/")


def test_a_store_that_closes_the_connection() -> None:
    xs, theirs = on_socketpair()
    with xs:
        theirs.close()
        with fails("EPIPE"):
            xs.read(b"/t")
        with fails("EPIPE"):
            xs.read(b"/t")


def test_a_store_that_goes_while_an_event_is_waited_for() -> None:
    xs, theirs = on_socketpair()
    with xs:
        theirs.close()
        with fails("ECONNRESET"):
            xs.next_event()


def test_a_broken_conversation_gives_the_events_from_before_and_then_its_error() -> None:
    xs, theirs = on_socketpair()
    with theirs, xs:
        theirs.sendall(codec.packet(codec.WATCH_EVENT, 0, 0, b"a\0t\0") + codec.packet(codec.READ, 77, 0, b"nonsense"))
        with fails("EPROTO"):
            xs.read(b"/t")
        theirs.sendall(codec.packet(codec.WATCH_EVENT, 0, 0, b"b\0t\0"))
        assert xs.next_event() == (b"a", b"t")
        with fails("EPROTO"):
            xs.next_event()


def test_a_closed_connection() -> None:
    xs, theirs = on_socketpair()
    theirs.close()
    xs.close()
    with fails("EBADF"):
        xs.read(b"/")


# Nonsense.


@pytest.mark.parametrize(
    "answer",
    [
        codec.packet(codec.READ, 77, 0, b"not asked for"),
        codec.HEADER.pack(codec.READ, 0, 0, 1 << 30),
        codec.packet(codec.READ, 0, 0, b"right") + codec.packet(codec.READ, 0, 0, b"twice"),
        codec.packet(codec.READ, 0, 0, b"right") + codec.packet(codec.READ, 1, 0, b"too early"),
    ],
    ids=["unknown id", "huge", "twice", "too early"],
)
def test_answers_that_no_store_gives(answer: bytes) -> None:
    xs, theirs = on_socketpair()
    with theirs, xs:
        theirs.sendall(answer)
        with fails("EPROTO"):
            xs.read(b"/t")


def test_a_transaction_without_a_number() -> None:
    xs, theirs = on_socketpair()
    with theirs, xs:
        theirs.sendall(codec.packet(codec.TRANSACTION_START, 0, 0, b"many\0"))
        with fails("EPROTO"):
            xs.begin()


def test_a_list_that_changes_while_its_parts_are_read_is_read_anew() -> None:
    xs, theirs = on_socketpair()
    answers = [
        (codec.ERROR, b"E2BIG\0"),
        (codec.DIRECTORY_PART, b"7\0old\0"),
        (codec.DIRECTORY_PART, b"8\0new2\0\0"),
        (codec.DIRECTORY_PART, b"8\0new1\0"),
        (codec.DIRECTORY_PART, b"8\0new2\0\0"),
    ]
    asked = []

    def answer() -> None:
        for number, (op, payload) in enumerate(answers):
            asked.append(theirs.recv(4096)[codec.HEADER_SIZE :])
            theirs.sendall(codec.packet(op, number, 0, payload))

    store = threading.Thread(target=answer)
    store.start()
    with theirs, xs:
        assert xs.list(b"/t") == [b"new1", b"new2"]
        store.join()
    assert asked == [b"/t\0", *(b"/t\0%d\0" % at for at in (0, 4, 0, 5))]


# The device.


@contextlib.contextmanager
def device(store: Path, pieces: int) -> Iterator[tuple[DeviceLink, list[bytes]]]:
    """A descriptor like xenbus: a write is a packet, reads give ``pieces`` bytes at most; and all writes.

    Fails at the end where a write came before the reply to the one before: Linux would mix the two.
    """
    writes: list[bytes] = []
    early: list[bytes] = []
    answers: list[int] = []
    decoder = codec.Decoder()
    kernel, user = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def relay(receive: Callable[[], bytes], send: Callable[[bytes], object]) -> None:
        with contextlib.suppress(OSError):
            while data := receive():
                send(data)

    with socket.socket(socket.AF_UNIX) as daemon, kernel:
        daemon.connect(str(store))

        def up(data: bytes) -> None:
            early.extend([data] if len(answers) < len(writes) else [])
            writes.append(data)
            daemon.sendall(data)

        def answer(data: bytes) -> None:
            answers.extend(op for op, *_ in decoder.feed(data) if op != codec.WATCH_EVENT)
            kernel.send(data)

        down = threading.Thread(target=relay, args=(lambda: daemon.recv(pieces), answer))
        along = threading.Thread(target=relay, args=(lambda: kernel.recv(1 << 17), up))
        down.start()
        along.start()
        link = DeviceLink(user.detach())
        try:
            yield link, writes
        finally:
            link.close()
            along.join()
            daemon.shutdown(socket.SHUT_RDWR)
            down.join()
    assert not early


@pytest.mark.parametrize("pieces", [1, 7, 16, 4096])
def test_a_device_gets_a_packet_a_write_and_gives_what_it_likes(tmp_path: Path, pieces: int) -> None:
    with (
        EmbeddedStore(str(tmp_path / "s")),
        device(tmp_path / "s", pieces) as (link, writes),
        Connection(link, soon(20)) as xs,
    ):
        xs.write_many([(b"/t/%d" % number, b"v%d" % number) for number in range(50)])
        assert xs.read_many([b"/t/%d" % number for number in range(50)]) == [b"v%d" % n for n in range(50)]
        xs.watch(b"/t", b"token")
        assert xs.next_event() == (b"/t", b"token")
        tx = xs.begin()
        xs.remove(b"/t", tx)
        assert xs.commit(tx)
        assert not xs.exists(b"/t")
        assert len(writes) == 105
        assert all(len(data) == 16 + struct.unpack_from("=I", data, 12)[0] for data in writes)


def test_a_silent_device_and_one_that_ends() -> None:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with Connection(DeviceLink(mine.detach()), soon()) as xs:
        with fails("ETIMEDOUT"):
            xs.read(b"/")
        theirs.close()
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with Connection(DeviceLink(mine.detach()), soon()) as xs:
        theirs.close()
        with pytest.raises(StoreError, match=r"EPIPE|ECONNRESET"):
            xs.read(b"/")


def test_a_device_that_answers_watch_without_an_id() -> None:
    """Linux before 4.11 and NetBSD leave the id of their own answer to chance."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, Connection(DeviceLink(mine.detach()), soon()) as xs:
        theirs.send(codec.packet(codec.WATCH, 0xDEADBEEF, 0, b"OK\0"))
        theirs.send(codec.packet(codec.READ, 1, 0, b"value"))
        xs.watch(b"/t", b"token")
        assert xs.read(b"/t") == b"value"


def test_a_path_that_is_no_socket_is_opened_as_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "device")
    with Connection.open(soon(), environ(tmp_path / "device")) as xs:
        assert not os.get_inheritable(xs.fileno())
        assert os.path.samestat(os.fstat(xs.fileno()), os.stat(tmp_path / "device"))


def test_descriptors_are_close_on_exec(c_store: Store) -> None:
    with c_store.connect() as xs:
        assert not os.get_inheritable(xs.fileno())


def test_a_round_trip_is_two_system_calls(c_store: Store, tmp_path: Path) -> None:
    """One send and one receive for a small batch: start-up time is what users feel."""
    trace = tmp_path / "trace"
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1]);"
        "from vbdkit.xenstore.client import Connection;"
        "xs = Connection.open(time.monotonic() + 20, {b'XENSTORED_PATH': sys.argv[2].encode()});"
        "[xs.read(b'/') for _ in range(100)]"
    )
    source = Path(__file__).parents[2] / "src"
    command: list[str | Path] = [
        "strace",
        "-f",
        "-c",
        "-o",
        trace,
        "-e",
        "trace=network,read,write,poll,select,setsockopt",
    ]
    need_program("strace")
    subprocess.run([*command, "/usr/bin/python3", "-IS", "-c", program, source, c_store.socket], check=True)
    lines = [line.split() for line in trace.read_text().splitlines() if "sendto" in line or "recvfrom" in line]
    calls = {words[-1]: int(words[3]) for words in lines}
    assert calls["sendto"] == 100
    # C xenstored sends header and value apart: the second may come late.
    assert 100 <= calls["recvfrom"] <= 200
