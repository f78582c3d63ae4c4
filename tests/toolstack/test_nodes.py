"""The toolstack's nodes are those that libxl writes: names, owners, and all gone at the end (I1-I4)."""

import time

import pytest

from tests.toolstack.conftest import GUEST
from vbdkit.protocol.failure import Failure
from vbdkit.toolstack.nodes import Disk, add_disk, close_disk, destroy_guest, remove_disk, wait_for_state
from vbdkit.xenstore.client import Connection


def values(store: Connection, path: bytes) -> dict[bytes, bytes]:
    names = store.list(path)
    return dict(zip(names, map(bytes, store.read_many([path + b"/" + name for name in names])), strict=True))  # type: ignore[arg-type]


def everything(store: Connection, path: bytes = b"") -> list[bytes]:
    below = store.list(path or b"/")
    return [path] + [node for name in below for node in everything(store, path + b"/" + name)]


def test_the_backend_holds_what_a_script_reads(store: Connection, disk: Disk) -> None:
    add_disk(store, disk)
    nodes = values(store, b"/local/domain/0/backend/vbd/5/51712")
    assert nodes[b"params"] == disk.params
    assert nodes[b"mode"] == b"w"
    assert nodes[b"script"] == b"/etc/xen/scripts/block"
    assert nodes[b"frontend"] == b"/local/domain/5/device/vbd/51712"
    assert nodes[b"frontend-id"] == b"5"
    assert nodes[b"dev"] == b"xvda"
    assert (nodes[b"state"], nodes[b"online"], nodes[b"type"]) == (b"1", b"1", b"phy")


def test_the_toolstack_keeps_a_copy_that_no_backend_can_change(store: Connection, disk: Disk) -> None:
    add_disk(store, disk)
    copy = values(store, b"/libxl/5/device/vbd/51712")
    assert copy.pop(b"backend") == disk.backend
    assert copy == values(store, disk.backend)


@pytest.mark.parametrize(
    ("path", "permissions"),
    [
        (b"/local/domain/0/backend/vbd/5/51712", [b"n0", b"r5"]),
        (b"/local/domain/0/backend/vbd/5/51712/params", [b"n0", b"r5"]),
        (b"/local/domain/5/device/vbd/51712", [b"n5", b"r0"]),
        (b"/local/domain/5/device/vbd/51712/state", [b"n5", b"r0"]),
        (b"/libxl/5/device/vbd/51712/params", [b"n0"]),
        (b"/local/domain/5", [b"n0", b"r5"]),
    ],
)
def test_each_side_owns_its_directory(store: Connection, disk: Disk, path: bytes, permissions: list[bytes]) -> None:
    add_disk(store, disk)
    assert store.get_permissions(path) == permissions


def test_a_driver_domain_owns_the_backend(store: Connection) -> None:
    disk = Disk(5, b"/dev/vg/web", b"/etc/xen/scripts/block", backend_domid=3)
    add_disk(store, disk)
    assert disk.backend == b"/local/domain/3/backend/vbd/5/51712"
    assert store.get_permissions(disk.backend) == [b"n3", b"r5"]
    assert store.get_permissions(disk.frontend) == [b"n5", b"r3"]


def test_nothing_is_left_when_disk_and_guest_are_gone(store: Connection, disk: Disk) -> None:
    add_disk(store, disk)
    remove_disk(store, disk)
    destroy_guest(store, GUEST)
    left = [path for path in everything(store) if b"5" in path]
    assert left == []


def test_a_second_disk_keeps_its_nodes_when_the_first_goes(store: Connection, disk: Disk) -> None:
    second = Disk(5, disk.params, disk.script, devid=51728, dev=b"xvdb")
    add_disk(store, disk)
    add_disk(store, second)
    remove_disk(store, disk)
    assert store.list(b"/local/domain/0/backend/vbd/5") == [b"51728"]
    assert values(store, second.backend)[b"dev"] == b"xvdb"


def test_closing_asks_the_driver_to_let_go_for_good(store: Connection, disk: Disk) -> None:
    add_disk(store, disk)
    assert close_disk(store, disk)
    assert store.read_many([disk.backend + b"/online", disk.backend + b"/state"]) == [b"0", b"5"]


def test_closing_leaves_a_closed_backend_closed(store: Connection, disk: Disk) -> None:
    add_disk(store, disk)
    store.write(disk.backend + b"/state", b"6")
    close_disk(store, disk)
    assert store.read(disk.backend + b"/state") == b"6"


def test_closing_what_is_gone_does_not_bring_it_back(store: Connection, disk: Disk) -> None:
    assert not close_disk(store, disk)
    assert not store.exists(disk.backend)


def test_waiting_has_an_end_and_says_what_for(store: Connection, disk: Disk) -> None:
    add_disk(store, disk)
    begun = time.monotonic()
    with pytest.raises(Failure, match=r"state is 1 after 0.2 s; the toolstack waits for 2"):
        wait_for_state(store, disk, {b"2"}, 0.2)
    assert time.monotonic() - begun < 5


def test_waiting_ends_when_the_backend_is_removed(store: Connection, disk: Disk) -> None:
    with pytest.raises(Failure, match="was removed"):
        wait_for_state(store, disk, {b"2"}, 10)
