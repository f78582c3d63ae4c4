"""What cannot be known is not free: errors of the store, and guests that go while they are looked at."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import Host
from tests.need import need_loop_devices
from tests.sharing.machine import ALICE, BOB, Machine
from tests.sharing.meddler import Meddler, Meddling
from vbdkit.xenstore.codec import DIRECTORY, DIRECTORY_PART, READ

ERRORS = ("EACCES", "EIO", "E2BIG", "EINVAL", "ENOMEM")


@pytest.fixture
def machine(tmp_path: Path, store_socket: Path) -> Iterator[Machine]:
    """Two guests on a host whose scripts find their store at a place where a Meddler may be."""
    need_loop_devices()
    host = Host(tmp_path, store_socket, script_socket=tmp_path / "meddler")
    with Machine(host) as made:
        made.domain(ALICE, "alice")
        made.domain(BOB, "bob")
        yield made
        host.script_socket = None
    host.close()


def meddler(machine: Machine, meddling: Meddling) -> Meddler:
    place = machine.host.script_socket
    assert place is not None
    place.unlink(missing_ok=True)
    return Meddler(place, machine.host.socket, meddling)


def passing(op: int, path: bytes) -> str:
    return ""


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("path", [b"backend", b"backend/vbd", b"backend/qdisk", b"backend/vbd/5"])
def test_a_list_that_cannot_be_had_is_not_an_empty_one(machine: Machine, path: bytes, error: str) -> None:
    target = machine.image()
    with meddler(machine, passing):
        assert machine.attach(ALICE, target, "w").status == 0
    lists = (DIRECTORY, DIRECTORY_PART)
    with meddler(machine, lambda op, asked: error if op in lists and asked == path else ""):
        result = machine.attach(BOB, target, "w")
        assert (result.status, result.outcome) == (1, b"error")
        assert f"cannot list {path.decode()}: " in result.error
        assert error in result.error
        assert not {"physical-device", "node"} & set(result.nodes)
        assert [record.name for record in machine.host.run_dir.iterdir()] == ["vbd-5-51712"]
        assert machine.attach(BOB, target, "w!").status == 0, "nobody asked for the check"


@pytest.mark.parametrize("node", ["physical-device", "physical-device-path", "mode"])
def test_a_guests_node_that_cannot_be_read_is_not_a_missing_one(machine: Machine, node: str) -> None:
    target = machine.loop(machine.image())
    with meddler(machine, passing):
        assert machine.attach(ALICE, target, "r").status == 0
    with machine.host.connect() as store:
        if node == "physical-device-path":
            store.remove(b"backend/vbd/5/51712/physical-device")
    path = f"backend/vbd/5/51712/{node}".encode()
    with meddler(machine, lambda op, asked: "EIO" if (op, asked) == (READ, path) else ""):
        result = machine.attach(BOB, target, "r")
        assert (result.status, result.outcome) == (1, b"error")
        assert "EIO" in result.error


@pytest.mark.parametrize(
    ("op", "path", "gone"),
    [
        (DIRECTORY, b"backend/vbd/5", b"backend/vbd/5"),
        (READ, b"backend/vbd/5/51712/physical-device", b"backend/vbd/5/51712"),
        (READ, b"backend/vbd/5/51712/physical-device-path", b"backend/vbd/5"),
    ],
)
def test_a_guest_that_gives_its_disk_back_meanwhile(machine: Machine, op: int, path: bytes, gone: bytes) -> None:
    """It was in the list, and is gone when its nodes are asked for: the rest is still looked at."""
    device, other = machine.loop(machine.image()), machine.image("b.img")
    machine.domain(9, "dave")
    with meddler(machine, passing):
        assert machine.attach(ALICE, device, "w").status == 0
        assert machine.attach(9, other, "w").status == 0
    if path.endswith(b"path"):
        with machine.host.connect() as store:
            store.remove(b"backend/vbd/5/51712/physical-device")
    steps: list[bytes] = []

    def take_back(asked: int, of: bytes) -> str:
        if (asked, of) == (op, path) and not steps:
            steps.append(of)
            (machine.host.run_dir / "vbd-5-51712").unlink()
            with machine.host.connect() as store:
                store.remove(gone)
        return ""

    with meddler(machine, take_back):
        assert machine.attach(BOB, device, "w").status == 0
        assert steps == [path], "it was asked for"
        result = machine.attach(BOB, other, "w", devid=51728)
        assert (result.status, result.outcome) == (1, b"busy")
        assert "guest 9 (dave)" in result.error


def test_mounts_that_cannot_be_known_are_not_none(machine: Machine) -> None:
    """A script that sees no /proc refuses."""
    target = machine.loop(machine.image())
    host = machine.host
    disk = host.vbd(BOB, target)
    with meddler(machine, passing):
        argv = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$0" add', os.fspath(host.script)]
        environment = host.environment() | {
            "XENBUS_PATH": disk.path.decode(),
            "XENBUS_TYPE": "vbd",
            "XENBUS_BASE_PATH": "backend",
        }
        done = subprocess.run(argv, env=environment, capture_output=True)
    nodes = disk.nodes()
    assert done.returncode == 1
    assert nodes["hotplug-status"] == b"error"
    assert b"/proc/" in nodes["hotplug-error"]
    assert "physical-device" not in nodes
