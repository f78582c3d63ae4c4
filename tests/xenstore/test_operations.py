"""Every operation on nodes, on all three stores. Where they differ, the test says how."""

import pytest

from tests.stores import Store
from vbdkit.xenstore.client import Connection, StoreError

ALL_BYTES = bytes(range(256))


def refusal(call: object, *arguments: object) -> str:
    """The name of the error that a call ends with."""
    assert callable(call)
    with pytest.raises(StoreError) as caught:
        call(*arguments)
    return caught.value.name


@pytest.mark.parametrize(
    "value", [b"", b"x", ALL_BYTES, "Größe\n二行目\n".encode(), b"trailing\0", b"\0", b"a" * 4000], ids=repr
)
def test_a_value_comes_back_as_it_was_written(xs: Connection, value: bytes) -> None:
    xs.write(b"/t/node", value)
    assert xs.read(b"/t/node") == value


def test_write_makes_the_parents_with_empty_values(xs: Connection) -> None:
    xs.write(b"/t/a/b/c", b"deep")
    assert xs.read_many([b"/t", b"/t/a", b"/t/a/b", b"/t/a/b/c"]) == [b"", b"", b"", b"deep"]


def test_mkdir_makes_an_empty_node_and_leaves_an_old_one_alone(xs: Connection) -> None:
    xs.mkdir(b"/t/dir/below")
    assert xs.read(b"/t/dir/below") == b""
    xs.write(b"/t/dir", b"kept")
    xs.mkdir(b"/t/dir")
    assert xs.read(b"/t/dir") == b"kept"


def test_remove_takes_all_below_and_forgives_a_missing_node_but_not_a_missing_parent(xs: Connection) -> None:
    xs.write_many([(b"/t/a/b", b""), (b"/t/a/c/d", b""), (b"/t/e", b"")])
    xs.remove(b"/t/a")
    assert xs.list(b"/t") == [b"e"]
    xs.remove(b"/t/a")
    assert refusal(xs.remove, b"/t/a/b") == "ENOENT"


def test_remove_many_forgives_both(xs: Connection) -> None:
    xs.write(b"/t/e", b"")
    xs.remove_many([b"/t/none", b"/t/none/below", b"/t/e"])
    assert xs.list(b"/t") == []


def test_missing_nodes(xs: Connection) -> None:
    assert refusal(xs.read, b"/t/none") == "ENOENT"
    assert refusal(xs.list, b"/t/none") == "ENOENT"
    assert refusal(xs.get_permissions, b"/t/none") == "ENOENT"
    assert refusal(xs.set_permissions, b"/t/none", [b"n0"]) == "ENOENT"
    assert xs.read_many([b"/t/none", b"/"]) == [None, b""]
    assert xs.list_many([b"/t/none", b"/t/none/below"]) == [None, None]
    assert not xs.exists(b"/t/none")
    assert xs.exists(b"/")


def test_an_error_is_one_sentence_with_operation_path_and_reason(xs: Connection) -> None:
    with pytest.raises(StoreError) as caught:
        xs.read(b"/t/none")
    error = caught.value
    assert (error.name, error.number, error.operation, error.path) == ("ENOENT", 2, "read", b"/t/none")
    assert str(error) == "cannot read /t/none: No such file or directory (ENOENT)"


@pytest.mark.parametrize("path", [b"", b"//t", b"/t/", b"/t//a", b"/t a", b"/t!", "/é".encode(), b"/t\n"])
def test_the_store_refuses_what_is_no_path(xs: Connection, path: bytes) -> None:
    assert refusal(xs.read, path) == "EINVAL"
    assert refusal(xs.write, path, b"") == "EINVAL"
    assert refusal(xs.watch, path, b"token") == "EINVAL"
    assert refusal(xs.read_many, [b"/", path, b"/"]) == "EINVAL"
    assert xs.read(b"/") == b"", "the connection goes on"


def test_one_bad_path_in_a_batch_is_named_and_the_others_are_done(xs: Connection) -> None:
    with pytest.raises(StoreError) as caught:
        xs.write_many([(b"/t/a", b"1"), (b"/t//", b"2"), (b"/t/b", b"3")])
    assert (caught.value.name, caught.value.path) == ("EINVAL", b"/t//")
    assert xs.read_many([b"/t/a", b"/t/b"]) == [b"1", b"3"]


def test_stores_take_2048_bytes_of_path_not_counting_a_domain_s_directory(xs: Connection) -> None:
    """The protocol's limit is 3072; all three are at this one by default."""
    own = b"/local/domain/1/"
    for path in (b"/t/" + b"a" * 2045, own + b"a" * 2048, b"a" * 2048):
        xs.write(path, b"x")
        assert xs.read(path) == b"x"
    assert refusal(xs.write, b"/t/" + b"a" * 2046, b"x") == "EINVAL"
    assert refusal(xs.write, own + b"a" * 2049, b"x") == "EINVAL"


def test_what_cannot_be_sent_is_refused_before_it_is(xs: Connection) -> None:
    assert refusal(xs.read, b"/t\0x") == "EINVAL"
    assert refusal(xs.write, b"/t\0x", b"") == "EINVAL"
    assert refusal(xs.watch, b"/t", b"to\0ken") == "EINVAL"
    assert refusal(xs.set_permissions, b"/t", [b"n0\0r1"]) == "EINVAL"
    assert refusal(xs.read, b"/" + b"a" * 3072) == "E2BIG"
    assert refusal(xs.read_many, [b"a" * 2049]) == "E2BIG"
    assert refusal(xs.write, b"/t/x", b"a" * 4092) == "E2BIG"
    xs.write(b"/t/x", b"a" * 4091)
    assert xs.read(b"/t/x") == b"a" * 4091


def test_relative_paths_are_below_the_own_domain(xs: Connection) -> None:
    """Clause C7: also over a socket, in all three stores."""
    xs.write(b"backend/vbd/5/51712/params", b"/disk")
    assert xs.read(b"/local/domain/0/backend/vbd/5/51712/params") == b"/disk"
    assert xs.list(b"backend/vbd") == [b"5"]
    xs.remove(b"backend")
    assert not xs.exists(b"/local/domain/0/backend")


def test_lists_past_one_packet_are_whole(xs: Connection, store: Store) -> None:
    """C xenstored says E2BIG and wants DIRECTORY_PART; oxenstored sends one over-long packet."""
    names = [b"child-%05d" % number for number in range(1500)]
    xs.write_many([(b"/t/long/" + name, b"") for name in names])
    xs.write(b"/t/short/one", b"")
    assert sorted(xs.list(b"/t/long")) == names
    long, none, short = xs.list_many([b"/t/long", b"/t/none", b"/t/short"])
    assert sorted(long or []) == names
    assert (none, short) == (None, [b"one"])


@pytest.mark.parametrize("size", range(4085, 4106))
def test_lists_about_as_long_as_a_packet_are_whole(xs: Connection, size: int) -> None:
    names = [b"%08d" % number for number in range(400)]
    names.append(b"x" * (size - 9 * 400 - 1))
    xs.write_many([(b"/t/d/" + name, b"") for name in names])
    assert sorted(xs.list(b"/t/d")) == sorted(names)


def test_a_long_list_in_a_transaction_is_the_transaction_s(xs: Connection) -> None:
    names = [b"child-%05d" % number for number in range(1000)]
    tx = xs.begin()
    xs.write_many([(b"/t/" + name, b"") for name in names], tx)
    assert sorted(xs.list(b"/t", tx)) == names
    assert not xs.exists(b"/t")
    xs.abort(tx)


def test_five_thousand_requests_in_one_batch(xs: Connection) -> None:
    items = [(b"/t/%d/node" % number, b"value %d" % number) for number in range(5000)]
    xs.write_many(items)
    assert xs.read_many([path for path, _ in items]) == [value for _, value in items]
    assert xs.list_many([b"/t/%d" % number for number in range(5000)]) == [[b"node"]] * 5000


def test_a_batch_with_more_bytes_than_any_buffer_does_not_stand_still(xs: Connection) -> None:
    items = [(b"/t/%d" % number, b"v" * 4000) for number in range(500)]
    xs.write_many(items)
    assert xs.read_many([path for path, _ in items] * 2) == [value for _, value in items] * 2


def test_empty_batches_are_nothing(xs: Connection) -> None:
    assert xs.read_many([]) == []
    assert xs.list_many([]) == []
    xs.write_many([])


def test_permissions(xs: Connection) -> None:
    xs.write(b"/t/node", b"")
    assert xs.get_permissions(b"/t/node") == [b"n0"]
    xs.set_permissions(b"/t/node", [b"n0", b"r5", b"b6", b"w7"])
    assert xs.get_permissions(b"/t/node") == [b"n0", b"r5", b"b6", b"w7"]


def test_a_new_node_inherits_its_parent_s_permissions(xs: Connection) -> None:
    xs.write(b"/t/node", b"")
    xs.set_permissions(b"/t/node", [b"n5", b"r6"])
    xs.write(b"/t/node/a/b", b"")
    assert xs.get_permissions(b"/t/node/a/b") == [b"n5", b"r6"]


@pytest.mark.parametrize("permissions", [[], [b"q0"], [b"r5x"], [b"r"], [b""]])
def test_bad_permissions(xs: Connection, permissions: list[bytes]) -> None:
    xs.write(b"/t/node", b"")
    assert refusal(xs.set_permissions, b"/t/node", permissions) == "EINVAL"
    assert xs.get_permissions(b"/t/node") == [b"n0"]


def test_the_root(xs: Connection, store: Store) -> None:
    assert b"tool" in xs.list(b"/")
    xs.mkdir(b"/")
    if store.kind != "o":  # oxenstored says yes, and does nothing
        assert refusal(xs.remove, b"/") == "EINVAL"
    assert b"tool" in xs.list(b"/")


def test_domains(xs: Connection, store: Store) -> None:
    assert xs.domain_path(7) == b"/local/domain/7"
    assert not xs.is_introduced(7)
    # oxenstored asks the hypervisor about a domain; here there is none, and the answer is EINVAL as often as not.
    unknown = {"EINVAL", "ENOENT"} if store.kind == "o" else {"ENOENT"}
    assert refusal(xs.release, 7) in unknown
    assert refusal(xs.resume, 7) in unknown
    assert refusal(xs.set_target, 7, 8) in unknown
    assert refusal(xs.release, 0) == "EINVAL"


def test_control(xs: Connection, store: Store) -> None:
    assert xs.control(b"check") == b"OK\0"
    if store.kind != "o":  # to which everything is OK
        assert refusal(xs.control, b"no-such-command") == "EINVAL"
