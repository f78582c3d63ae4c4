"""What has changed in a store between two looks."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbdkit.toolstack.snapshot import Change, changes, take
from vbdkit.xenstore.client import Connection
from vbdkit.xenstore.embedded import EmbeddedStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Connection]:
    socket = str(tmp_path / "store").encode()
    with EmbeddedStore(socket, domid=0), Connection.open(time.monotonic() + 60, {b"XENSTORED_PATH": socket}) as made:
        yield made


def test_all_of_a_large_store_is_seen(store: Connection) -> None:
    items = [(b"/a/%d/%d" % (outer, inner), b"x") for outer in range(60) for inner in range(20)]
    store.write_many(items)
    assert dict(items).items() <= take(store, [b"/"]).items()
    assert take(store, [b"/a/7"]) == {b"/a/7": b"", **{b"/a/7/%d" % inner: b"x" for inner in range(20)}}
    assert take(store, [b"/none"]) == {}


def test_new_changed_and_gone_nodes_are_told(store: Connection) -> None:
    store.write_many([(b"/a/stays", b"1"), (b"/a/changes", b"1"), (b"/b/goes", b"1"), (b"/a/empty", b"")])
    before = take(store, [b"/"])
    store.write_many([(b"/a/changes", b"2"), (b"/c/d/comes", b"3"), (b"/a/empty", b"now not")])
    store.remove(b"/b")
    assert changes(before, take(store, [b"/"])) == [
        Change(b"/a/changes", b"1", b"2"),
        Change(b"/a/empty", b"", b"now not"),
        Change(b"/b/goes", b"1", None),
        Change(b"/c/d/comes", None, b"3"),
    ]


def test_a_directory_that_comes_empty_is_a_change(store: Connection) -> None:
    before = take(store, [b"/"])
    store.mkdir(b"/a/b")
    assert changes(before, take(store, [b"/"])) == [Change(b"/a/b", None, b"")]


def test_what_may_not_be_read_is_left_out(tmp_path: Path) -> None:
    socket, guests = str(tmp_path / "store").encode(), str(tmp_path / "guest").encode()
    with (
        EmbeddedStore(socket, domid=0) as server,
        Connection.open(time.monotonic() + 60, {b"XENSTORED_PATH": socket}) as dom0,
    ):
        dom0.write_many([(b"/open/a", b"1"), (b"/closed/b", b"2"), (b"/open/c", b"3")])
        for path in (b"/open", b"/open/a", b"/open/c"):
            dom0.set_permissions(path, [b"n0", b"r5"])
        server.listen(guests, 5)
        with Connection.open(time.monotonic() + 60, {b"XENSTORED_PATH": guests}) as guest:
            found = take(guest, [b"/open", b"/closed", b"/none"])
    assert found == {b"/open": b"", b"/open/a": b"1", b"/open/c": b"3"}
