"""What only the embedded store can show here: other domains' rights and quotas, its sockets, bad clients."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stores import Store
from tests.xenstore.test_operations import refusal
from tests.xenstore.test_watches import events
from vbdkit.xenstore import codec
from vbdkit.xenstore.client import Connection, StoreError
from vbdkit.xenstore.embedded import EmbeddedStore, Quota

MODULE = [sys.executable, "-m", "vbdkit.xenstore.embedded"]


def connect(path: Path) -> Connection:
    return Store("embedded", path).connect()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(str(tmp_path / "dom0")) as store:
        store.listen(str(tmp_path / "dom5"), domid=5)
        yield store


@pytest.fixture
def dom0(served: EmbeddedStore, tmp_path: Path) -> Iterator[Connection]:
    with connect(tmp_path / "dom0") as xs:
        xs.mkdir(b"/local/domain/5")
        xs.set_permissions(b"/local/domain/5", [b"n5"])
        xs.write(b"/local/domain/5/name", b"driver")
        yield xs


@pytest.fixture
def dom5(dom0: Connection, tmp_path: Path) -> Iterator[Connection]:
    with connect(tmp_path / "dom5") as xs:
        yield xs


# Rights.


def test_a_domain_s_relative_paths_are_its_own(dom0: Connection, dom5: Connection) -> None:
    """Clause C7: in a driver domain as in dom0."""
    dom5.write(b"backend/vbd/7/51712/state", b"2")
    assert dom0.read(b"/local/domain/5/backend/vbd/7/51712/state") == b"2"
    dom5.watch(b"backend", b"token")
    assert dom5.next_event() == (b"backend", b"token")


def test_what_others_own_is_theirs(dom0: Connection, dom5: Connection) -> None:
    dom0.write(b"/secret/node", b"")
    for call in (dom5.read, dom5.list, dom5.get_permissions, dom5.remove, dom5.mkdir):
        assert refusal(call, b"/secret/none" if call == dom5.mkdir else b"/secret/node") == "EACCES"
    assert refusal(dom5.write, b"/secret/node", b"") == "EACCES"
    assert refusal(dom5.read_many, [b"name", b"/secret/node"]) == "EACCES", "never as if it were not there"
    assert refusal(dom5.read, b"/none") == "EACCES", "whether there is such a node is not told either"


def test_what_is_granted_is_granted(dom0: Connection, dom5: Connection) -> None:
    dom0.write_many([(b"/s/r", b"1"), (b"/s/w", b"1"), (b"/s/b", b"1"), (b"/s/all", b"1")])
    for name, permissions in (
        (b"r", [b"n0", b"r5"]),
        (b"w", [b"n0", b"w5"]),
        (b"b", [b"n0", b"b5"]),
        (b"all", [b"r0"]),
    ):
        dom0.set_permissions(b"/s/" + name, permissions)
    assert dom5.read_many([b"/s/r", b"/s/b", b"/s/all"]) == [b"1", b"1", b"1"]
    assert refusal(dom5.read, b"/s/w") == "EACCES"
    dom5.write_many([(b"/s/w", b"2"), (b"/s/b/new", b"")])
    assert refusal(dom5.write, b"/s/r", b"2") == "EACCES"
    assert refusal(dom5.set_permissions, b"/s/b", [b"n5"]) == "EACCES"


def test_what_a_domain_makes_is_its_own(dom0: Connection, dom5: Connection) -> None:
    dom0.mkdir(b"/shared")
    dom0.set_permissions(b"/shared", [b"b0", b"r6"])
    dom5.write(b"/shared/mine", b"")
    assert dom0.get_permissions(b"/shared/mine") == [b"b5", b"r6"]
    dom5.set_permissions(b"/shared/mine", [b"n5", b"r0"])
    assert refusal(dom5.set_permissions, b"/shared/mine", [b"n6"]) == "EPERM"


def test_a_stub_domain_acts_for_its_target(dom0: Connection, dom5: Connection) -> None:
    dom0.introduce(6, 1, 1)
    dom0.write(b"/local/domain/6/data", b"")
    dom0.set_permissions(b"/local/domain/6/data", [b"n6"])
    assert refusal(dom5.read, b"/local/domain/6/data") == "EACCES"
    dom0.set_target(5, 6)
    assert dom5.read(b"/local/domain/6/data") == b""


def test_a_watch_does_not_tell_what_may_not_be_read(dom0: Connection, dom5: Connection) -> None:
    dom5.watch(b"/", b"token")
    assert dom5.next_event() == (b"/", b"token")
    dom0.write(b"/secret/node", b"")
    dom0.remove(b"/secret")
    dom0.write(b"/local/domain/5/name", b"other")
    assert dom5.next_event() == (b"/local/domain/5/name", b"token")


@pytest.mark.parametrize("op", ["introduce", "release", "resume", "set_target", "is_introduced", "control"])
def test_some_operations_are_dom0_s(dom5: Connection, op: str) -> None:
    arguments = {"introduce": (7, 1, 1), "set_target": (7, 8), "control": (b"check",)}.get(op, (7,))
    assert refusal(getattr(dom5, op), *arguments) == "EACCES"


# Quotas.


def test_quotas_bind_a_domain_and_not_dom0(dom0: Connection, dom5: Connection) -> None:
    assert refusal(dom5.write, b"big", b"a" * 2048) == "ENOSPC"
    dom5.write(b"big", b"a" * 2000)
    assert refusal(dom5.set_permissions, b"big", [b"n5", b"r1", b"r2", b"r3", b"r4", b"r6"]) == "ENOSPC"
    dom5.mkdir(b"dir")
    dom5.write_many([(b"dir/%d" % number, b"") for number in range(500)])
    with pytest.raises(StoreError, match="ENOSPC"):  # a node's size counts its children's names
        dom5.write_many([(b"dir/%d" % number, b"") for number in range(500, 600)])
    dom0.write_many([(b"/many/%d" % number, b"a" * 4000) for number in range(1001)])


def test_a_domain_s_nodes_are_counted(tmp_path: Path) -> None:
    with EmbeddedStore(str(tmp_path / "dom0"), quota=Quota(nodes=4)) as store:
        store.listen(str(tmp_path / "dom5"), 5)
        with connect(tmp_path / "dom0") as xs, connect(tmp_path / "dom5") as guest:
            xs.mkdir(b"/local/domain/5")
            xs.set_permissions(b"/local/domain/5", [b"n5"])
            guest.write(b"a/b", b"")
            assert refusal(guest.write, b"c/d", b"") == "ENOSPC"
            assert not guest.exists(b"c"), "nothing is half made"
            guest.mkdir(b"c")
            assert refusal(guest.mkdir, b"e") == "ENOSPC"
            assert refusal(guest.transaction, lambda tx: guest.mkdir(b"e", tx)) == "ENOSPC"
            tx = guest.begin()
            guest.remove(b"c", tx)
            guest.mkdir(b"e", tx)
            assert guest.commit(tx)
            guest.remove(b"a")
            guest.write(b"c/d", b"")
            xs.write_many([(b"/local/domain/5/%d" % number, b"") for number in range(9)])


def test_watches_and_transactions_have_quotas(dom5: Connection) -> None:
    for number in range(128):
        dom5.watch(b"name", b"%d" % number)
    assert refusal(dom5.watch, b"name", b"more") == "E2BIG"
    for _ in range(10):
        dom5.begin()
    assert refusal(dom5.begin) == "ENOSPC"


def test_a_transaction_s_nodes_have_a_quota(tmp_path: Path) -> None:
    with EmbeddedStore(str(tmp_path / "dom0"), quota=Quota(nodes_per_transaction=5)) as store:
        store.listen(str(tmp_path / "dom5"), 5)
        with connect(tmp_path / "dom0") as xs, connect(tmp_path / "dom5") as guest:
            xs.write(b"/local/domain/5/a", b"")
            xs.set_permissions(b"/local/domain/5", [b"n5"])
            tx = guest.begin()
            assert refusal(guest.read_many, [b"%d" % number for number in range(9)], tx) == "ENOSPC"


# Domains come and go.


def test_introduce_and_release_are_told(dom0: Connection) -> None:
    dom0.watch(b"@introduceDomain", b"come")
    dom0.watch(b"@releaseDomain", b"gone")
    events(dom0)
    dom0.introduce(9, 1, 2)
    assert dom0.is_introduced(9)
    assert events(dom0) == [(b"@introduceDomain", b"come")]
    dom0.introduce(9, 1, 2)
    dom0.resume(9)
    assert events(dom0) == []
    dom0.release(9)
    assert not dom0.is_introduced(9)
    assert events(dom0) == [(b"@releaseDomain", b"gone")]


def test_a_domain_hears_of_others_only_where_it_may(dom0: Connection, dom5: Connection) -> None:
    dom5.watch(b"@releaseDomain", b"gone")
    assert dom5.next_event() == (b"@releaseDomain", b"gone")
    dom0.introduce(9, 1, 1)
    dom0.release(9)
    dom5.exists(b"name")
    assert dom5.next_event(time.monotonic()) is None
    dom0.set_permissions(b"@releaseDomain", [b"n0", b"r5"])
    dom0.introduce(9, 1, 1)
    dom0.release(9)
    assert dom5.next_event() == (b"@releaseDomain", b"gone")


def test_a_released_domain_s_connections_end(dom0: Connection, dom5: Connection) -> None:
    assert dom5.read(b"name") == b"driver"
    dom0.release(5)
    with pytest.raises(StoreError, match=r"ECONNRESET|EPIPE"):
        dom5.read(b"name")


def test_the_store_s_own_domain_can_be_another(tmp_path: Path) -> None:
    with EmbeddedStore(str(tmp_path / "s"), domid=3) as _, connect(tmp_path / "s") as xs:
        xs.write(b"x", b"")
        assert xs.exists(b"/local/domain/3/x")


# Clients that misbehave.


def test_an_oversized_request_costs_its_sender_the_connection_and_nobody_else(dom0: Connection, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bad:
        bad.connect(str(tmp_path / "dom0"))
        bad.sendall(codec.HEADER.pack(codec.WRITE, 1, 0, codec.PAYLOAD_MAX + 1))
        bad.settimeout(5)
        assert bad.recv(100) == b""
    assert dom0.read(b"/") == b""


def test_one_who_never_reads_holds_up_nobody(dom0: Connection, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bad:
        bad.connect(str(tmp_path / "dom0"))
        bad.setblocking(False)
        dom0.write(b"/big", b"x" * 4000)
        flood = codec.packet(codec.READ, 1, 0, b"/big\0") * 1000
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                bad.send(flood)
            except BlockingIOError:
                break
            before = time.monotonic()
            dom0.read(b"/")
            assert time.monotonic() - before < 1
        assert dom0.read_many([b"/big"] * 100) == [b"x" * 4000] * 100


def test_garbage_and_half_requests_harm_nobody(dom0: Connection, tmp_path: Path) -> None:
    half = [b"\1", codec.packet(codec.READ, 1, 0, b"/t\0")[:-1], codec.packet(99, 1, 5, b"???"), os.urandom(500)]
    for data in half:
        with socket.socket(socket.AF_UNIX) as bad:
            bad.connect(str(tmp_path / "dom0"))
            bad.sendall(data)
    assert dom0.read(b"/") == b""


@pytest.mark.parametrize("op", range(30))
@pytest.mark.parametrize(
    "payload", [b"", b"\0", b"\0\0", b"x", b"/t", b"/t\0x\0y\0", b"\xff" * 99, b"5\0", b"99999999999\0"]
)
def test_any_payload_of_any_operation_has_an_answer(tmp_path: Path, op: int, payload: bytes) -> None:
    with EmbeddedStore(str(tmp_path / "s")), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(tmp_path / "s"))
        client.sendall(codec.packet(op, 7, 0, payload))
        [(_, request, _, _), *_] = codec.Decoder().feed(client.recv(65536))
        assert request == 7


def test_many_clients_at_once_lose_nothing(tmp_path: Path) -> None:
    def count(times: int) -> None:
        with connect(tmp_path / "s") as xs:
            for _ in range(times):
                xs.transaction(lambda tx: xs.write(b"/n", b"%d" % (int(xs.read(b"/n", tx)) + 1), tx))

    with EmbeddedStore(str(tmp_path / "s")), connect(tmp_path / "s") as xs:
        xs.write(b"/n", b"0")
        threads = [threading.Thread(target=count, args=(50,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert xs.read(b"/n") == b"200"


# Sockets.


def test_a_store_removes_its_sockets_and_only_its_own(tmp_path: Path) -> None:
    store = EmbeddedStore(str(tmp_path / "a"))
    store.listen(str(tmp_path / "b"), 5)
    store.start()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    (tmp_path / "b").unlink()
    (tmp_path / "b").write_text("somebody else's")
    store.close()
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_dead_store_s_socket_is_taken_over_a_living_one_s_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with EmbeddedStore(path), pytest.raises(OSError, match="another store") as caught:
        EmbeddedStore(path)
    assert caught.value.errno == errno.EADDRINUSE


def test_a_file_is_never_taken_for_a_socket(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(OSError, match=r"[Aa]ddress already in use"):
        EmbeddedStore(str(tmp_path / "s"))
    assert (tmp_path / "s").read_text() == "precious"


def test_as_a_daemon(tmp_path: Path) -> None:
    command: list[str | Path] = [
        *MODULE,
        "--socket",
        tmp_path / "s",
        "--domid",
        "3",
        "--for-domain",
        f"5:{tmp_path / 'five'}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == f"xenstore is ready at {tmp_path / 's'}\n"
        with connect(tmp_path / "s") as xs, connect(tmp_path / "five") as guest:
            xs.write(b"x", b"1")
            assert xs.read(b"/local/domain/3/x") == b"1"
            assert refusal(guest.read, b"/local/domain/3/x") == "EACCES"
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(5) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_daemon_says_what_is_wrong_with_its_arguments(tmp_path: Path) -> None:
    with EmbeddedStore(str(tmp_path / "s")):
        taken = subprocess.run([*MODULE, "--socket", tmp_path / "s"], capture_output=True, text=True)
    assert (taken.returncode, "another store listens here" in taken.stderr) == (1, True)
    wrong = subprocess.run([*MODULE, "--socket", "x", "--for-domain", "five"], capture_output=True, text=True)
    assert (wrong.returncode, "DOMID:PATH" in wrong.stderr) == (2, True)
    told = subprocess.run([*MODULE, "--help"], capture_output=True, text=True)
    assert (told.returncode, "--for-domain" in told.stdout) == (0, True)
