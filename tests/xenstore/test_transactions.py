"""Transactions: nothing half done, nothing lost; a conflict is EAGAIN and the client tries again."""

import time
from collections.abc import Callable

import pytest

from tests.stores import Store
from vbdkit.xenstore.client import Connection, StoreError


def test_nobody_sees_a_change_before_the_commit(xs: Connection, other: Connection) -> None:
    tx = xs.begin()
    xs.write(b"/t/a", b"1", tx)
    assert xs.read(b"/t/a", tx) == b"1"
    assert not other.exists(b"/t/a")
    assert not xs.exists(b"/t/a")
    assert xs.commit(tx)
    assert other.read(b"/t/a") == b"1"


def test_an_abort_leaves_nothing(xs: Connection) -> None:
    tx = xs.begin()
    xs.write(b"/t/a", b"1", tx)
    xs.abort(tx)
    assert not xs.exists(b"/t")


def test_removals_and_permissions_are_part_of_it(xs: Connection) -> None:
    xs.write_many([(b"/t/a/b", b"1"), (b"/t/c", b"2")])
    tx = xs.begin()
    xs.remove(b"/t/a", tx)
    xs.set_permissions(b"/t/c", [b"n0", b"r9"], tx)
    assert xs.list(b"/t", tx) == [b"c"]
    assert xs.read(b"/t/a/b") == b"1"
    assert xs.commit(tx)
    assert not xs.exists(b"/t/a")
    assert xs.get_permissions(b"/t/c") == [b"n0", b"r9"]


@pytest.mark.parametrize(
    "change",
    [
        lambda other: other.write(b"/t/a", b"changed"),
        lambda other: other.remove(b"/t/a"),
    ],
    ids=["write", "remove"],
)
def test_what_was_read_and_then_written_may_not_change_meanwhile(
    xs: Connection, other: Connection, change: Callable[[Connection], None]
) -> None:
    xs.write(b"/t/a", b"1")
    tx = xs.begin()
    assert xs.read(b"/t/a", tx) == b"1"
    change(other)
    xs.write(b"/t/b", b"2", tx)
    assert not xs.commit(tx)
    assert not xs.exists(b"/t/b")


def test_a_node_that_was_not_there_may_not_come_meanwhile(xs: Connection, other: Connection) -> None:
    xs.mkdir(b"/t")
    tx = xs.begin()
    assert not xs.exists(b"/t/a", tx)
    other.write(b"/t/a", b"mine")
    xs.write(b"/t/a", b"no, mine", tx)
    assert not xs.commit(tx)
    assert xs.read(b"/t/a") == b"mine"


def test_a_listed_directory_may_get_no_child_meanwhile(xs: Connection, other: Connection) -> None:
    xs.mkdir(b"/t/d")
    tx = xs.begin()
    assert xs.list(b"/t/d", tx) == []
    other.mkdir(b"/t/d/new")
    xs.write(b"/t/e", b"", tx)
    assert not xs.commit(tx)


def test_independent_transactions_do_not_meet(xs: Connection, other: Connection) -> None:
    xs.write_many([(b"/t/a", b""), (b"/t/b", b"")])
    mine, theirs = xs.begin(), other.begin()
    xs.write(b"/t/a", b"1", mine)
    other.write(b"/t/b", b"2", theirs)
    assert xs.commit(mine)
    assert other.commit(theirs)
    assert xs.read_many([b"/t/a", b"/t/b"]) == [b"1", b"2"]


def test_blind_writes_conflict_where_the_store_does_not_replay_them(
    xs: Connection, other: Connection, store: Store
) -> None:
    """oxenstored repeats a transaction's requests on the new tree and commits if all answers are the same."""
    xs.write(b"/t/a", b"")
    tx = xs.begin()
    xs.write(b"/t/a", b"1", tx)
    other.write(b"/t/a", b"2")
    assert xs.commit(tx) == (store.kind == "o")
    assert xs.read(b"/t/a") == (b"1" if store.kind == "o" else b"2")


def test_what_a_transaction_has_seen_does_not_change_under_it(xs: Connection, other: Connection) -> None:
    xs.write(b"/t/a", b"1")
    tx = xs.begin()
    assert xs.read(b"/t/a", tx) == b"1"
    other.write(b"/t/a", b"2")
    assert xs.read(b"/t/a", tx) == b"1"
    xs.abort(tx)


def test_ids_are_the_connection_s_own(xs: Connection, other: Connection, store: Store) -> None:
    tx = xs.begin()
    with pytest.raises(StoreError) as caught:
        other.read(b"/", tx + 100)
    assert caught.value.name == ("EIO" if store.kind == "o" else "ENOENT")
    xs.abort(tx)
    with pytest.raises(StoreError):
        xs.commit(tx)


def test_transaction_tries_again_until_it_is_through(xs: Connection, other: Connection) -> None:
    xs.write(b"/t/count", b"0")
    tries: list[int] = []

    def body(tx: int) -> int:
        now = int(xs.read(b"/t/count", tx))
        if len(tries) < 3:
            other.write(b"/t/count", b"%d" % (now + 10))
        tries.append(now)
        xs.write(b"/t/count", b"%d" % (now + 1), tx)
        return now

    assert xs.transaction(body) == 30
    assert tries == [0, 10, 20, 30]
    assert xs.read(b"/t/count") == b"31"


def test_transaction_gives_up_at_the_deadline(xs: Connection, other: Connection) -> None:
    xs.write(b"/t/count", b"0")

    def body(tx: int) -> None:
        now = int(xs.read(b"/t/count", tx))
        other.write(b"/t/count", b"%d" % (now + 1))
        xs.write(b"/t/count", b"mine", tx)

    xs.deadline = time.monotonic() + 0.2
    with pytest.raises(StoreError) as caught:
        xs.transaction(body)
    assert caught.value.name == "ETIMEDOUT"
    assert int(other.read(b"/t/count")) > 0


def test_an_error_in_the_body_undoes_all(xs: Connection) -> None:
    class Mine(Exception):
        pass

    def body(tx: int) -> None:
        xs.write(b"/t/a", b"", tx)
        raise Mine

    with pytest.raises(Mine):
        xs.transaction(body)

    def refused(tx: int) -> None:
        xs.write_many([(b"/t/a", b""), (b"/t//", b"")], tx)

    with pytest.raises(StoreError, match="EINVAL"):
        xs.transaction(refused)
    assert not xs.exists(b"/t/a")


def test_a_closed_connection_s_transaction_is_gone(xs: Connection, store: Store) -> None:
    with store.connect() as third:
        third.write(b"/t/a", b"", third.begin())
    assert not xs.exists(b"/t/a")
