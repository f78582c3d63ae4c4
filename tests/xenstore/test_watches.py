"""Watches: who hears of what, under which name, in which order."""

import select
import time

import pytest

from tests.stores import Store
from tests.xenstore.test_operations import refusal
from vbdkit.xenstore.client import Connection


def events(xs: Connection) -> list[tuple[bytes, bytes]]:
    """All events that have come by the time that the store has answered one more request."""
    xs.exists(b"/")
    found = []
    while (event := xs.next_event(time.monotonic())) is not None:
        found.append(event)
    return found


def test_the_first_event_comes_when_the_watch_is_set(xs: Connection) -> None:
    xs.watch(b"/t/not/there", b"token")
    assert xs.next_event() == (b"/t/not/there", b"token")
    assert events(xs) == []


def test_a_change_at_the_node_or_below_it_is_told_with_its_own_path(xs: Connection, other: Connection) -> None:
    xs.watch(b"/t/a", b"token")
    events(xs)
    for path in (b"/t/a", b"/t/a/b/c", b"/t/aa", b"/t/b"):
        other.write(path, b"")
    assert events(xs) == [(b"/t/a", b"token"), (b"/t/a/b/c", b"token")]


def test_an_unchanged_value_a_mkdir_and_permissions_are_changes_too(xs: Connection, other: Connection) -> None:
    xs.watch(b"/t", b"token")
    events(xs)
    other.mkdir(b"/t/a")
    other.write(b"/t/a", b"")
    other.write(b"/t/a", b"")
    other.set_permissions(b"/t/a", [b"n0", b"r1"])
    assert events(xs) == [(b"/t/a", b"token")] * 4


def test_what_changes_nothing_is_not_told(xs: Connection, other: Connection) -> None:
    other.mkdir(b"/t/a")
    xs.watch(b"/t", b"token")
    events(xs)
    other.mkdir(b"/t/a")
    other.remove(b"/t/none")
    assert events(xs) == []


def test_a_removal_is_told_once_above_and_to_each_watch_below(xs: Connection, other: Connection, store: Store) -> None:
    other.write(b"/t/a/b/c", b"")
    for path in (b"/t", b"/t/a/b", b"/t/a/b/c", b"/t/a/x"):
        xs.watch(path, b"at " + path)
    events(xs)
    other.remove(b"/t/a")
    told = [(b"/t/a/b/c", b"at /t/a/b/c"), (b"/t/a/b", b"at /t/a/b"), (b"/t/a", b"at /t")]
    if store.kind == "o":  # from above, and those on nodes that are not there are told as well
        assert events(xs) == [*reversed(told), (b"/t/a/x", b"at /t/a/x")]
    else:
        assert events(xs) == told


def test_a_relative_watch_has_relative_events(xs: Connection, other: Connection) -> None:
    """Clause C7; also where the change was made under the absolute name."""
    xs.watch(b"backend/vbd", b"token")
    assert xs.next_event() == (b"backend/vbd", b"token")
    other.write(b"/local/domain/0/backend/vbd/5/51712/state", b"2")
    other.write(b"backend/vbd/5/51712/state", b"4")
    assert events(xs) == [(b"backend/vbd/5/51712/state", b"token")] * 2


def test_events_keep_the_order_of_the_changes(xs: Connection, other: Connection) -> None:
    xs.watch(b"/t", b"token")
    events(xs)
    paths = [b"/t/%d" % number for number in range(300)]
    other.write_many([(path, b"") for path in paths])
    assert [path for path, _ in events(xs)] == paths


def test_several_watches_are_told_each(xs: Connection, other: Connection) -> None:
    for path, token in ((b"/t/a", b"one"), (b"/t/a", b"two"), (b"/t", b"three")):
        xs.watch(path, token)
    events(xs)
    other.write(b"/t/a", b"")
    assert sorted(events(xs)) == [(b"/t/a", b"one"), (b"/t/a", b"three"), (b"/t/a", b"two")]


def test_the_same_watch_twice_and_the_end_of_one(xs: Connection, other: Connection) -> None:
    xs.watch(b"/t/a", b"token")
    assert refusal(xs.watch, b"/t/a", b"token") == "EEXIST"
    xs.unwatch(b"/t/a", b"token")
    assert refusal(xs.unwatch, b"/t/a", b"token") == "ENOENT"
    events(xs)
    other.write(b"/t/a", b"")
    assert events(xs) == []


def test_any_bytes_but_nul_are_a_token(xs: Connection) -> None:
    for token in (b"", bytes(range(1, 256)), b"x" * 3000):
        xs.watch(b"/t/a", token)
        assert xs.next_event() == (b"/t/a", token)


def test_special_watches(xs: Connection) -> None:
    xs.watch(b"@releaseDomain", b"gone")
    assert xs.next_event() == (b"@releaseDomain", b"gone")


def test_a_transaction_is_told_when_it_is_committed(xs: Connection, other: Connection) -> None:
    other.write(b"/t/old", b"")
    xs.watch(b"/t", b"token")
    events(xs)
    tx = other.begin()
    other.write_many([(b"/t/a/b", b""), (b"/t/c", b"")], tx)
    other.remove(b"/t/old", tx)
    assert events(xs) == []
    other.commit(tx)
    assert events(xs) == [(b"/t/a/b", b"token"), (b"/t/c", b"token"), (b"/t/old", b"token")]


def test_an_aborted_or_failed_transaction_is_not_told(xs: Connection, other: Connection) -> None:
    other.write(b"/t/a", b"")
    xs.watch(b"/t/b", b"token")
    events(xs)
    tx = other.begin()
    other.write(b"/t/b", b"", tx)
    other.abort(tx)
    tx = other.begin()
    other.read(b"/t/a", tx)
    other.write(b"/t/b", b"", tx)
    xs.write(b"/t/a", b"changed")
    assert not other.commit(tx)
    assert events(xs) == []


def test_events_between_request_and_reply_are_kept(xs: Connection) -> None:
    xs.watch(b"/t", b"token")
    items = [(b"/t/%d" % number, b"") for number in range(500)]
    xs.write_many(items)
    assert xs.read_many([path for path, _ in items]) == [b""] * 500
    assert events(xs) == [(b"/t", b"token"), *((path, b"token") for path, _ in items)]


def test_waiting_for_an_event_ends_at_its_deadline(xs: Connection) -> None:
    before = time.monotonic()
    assert xs.next_event(before + 0.1) is None
    assert 0.09 < time.monotonic() - before < 1
    assert xs.next_event(before - 1) is None
    assert xs.read(b"/") == b"", "the connection goes on"


def test_the_descriptor_is_readable_when_an_event_comes(xs: Connection, other: Connection) -> None:
    xs.watch(b"/t", b"token")
    assert xs.next_event() is not None
    poll = select.poll()
    poll.register(xs.fileno(), select.POLLIN)
    assert poll.poll(0) == []
    other.write(b"/t/a", b"")
    assert poll.poll(2000)
    assert xs.next_event(time.monotonic()) == (b"/t/a", b"token")


def test_reset_ends_watches_and_transactions(xs: Connection, other: Connection) -> None:
    xs.watch(b"/t", b"token")
    tx = xs.begin()
    xs.reset_watches()
    events(xs)
    other.write(b"/t/a", b"")
    assert events(xs) == []
    assert refusal(xs.write, b"/t/b", b"", tx) in ("ENOENT", "EIO")


@pytest.mark.parametrize("path", [b"/", b"/t/a/b/c"])
def test_watches_end_with_the_connection(xs: Connection, store: Store, path: bytes) -> None:
    with store.connect() as third:
        third.watch(path, b"token")
    xs.write(b"/t/a/b/c/d", b"")
    assert events(xs) == []
