"""64 scripts at once for one target: exactly one wins, whatever the store, and beside Xen's own script (O1, S4)."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import Disk, Host, bound_loops
from tests.need import need_loop_devices
from tests.sharing.machine import Machine
from tests.stock import LOCKS, StockHost, stock_folders
from tests.stores import running_store
from vbdkit.engine.lock import Lock

MANY = 64


@pytest.fixture(params=["c", "o"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    need_loop_devices()
    with running_store(request.param, tmp_path / "store") as store:
        made = Host(tmp_path, store.socket)
        yield made
        made.close()


def ask(disk: Disk) -> "subprocess.Popen[bytes]":
    """Start a script as libxl does, but for its output: nobody reads that until all have ended."""
    return disk.start("add", output=subprocess.DEVNULL)


def all_at_once(disks: list[Disk], locks: Path) -> list[int]:
    """Start a script for each disk; let them go when all of them wait for the lock. Return their exit statuses."""
    with Lock(os.fsencode(locks), time.monotonic() + 60):
        processes = [ask(disk) for disk in disks]
        wait_for_waiters(locks / "block", len(disks))
    return [process.wait(120) for process in processes]


def wait_for_waiters(lock: Path, count: int) -> None:
    """Return when so many processes sleep in flock on this file; in proc_locks(5) their lines have an arrow."""
    inode = f":{lock.stat().st_ino} "
    deadline = time.monotonic() + 25
    while True:
        lines = Path("/proc/locks").read_text().splitlines()
        waiting = sum("->" in line and inode in line for line in lines)
        if waiting >= count:
            return
        assert time.monotonic() < deadline, f"only {waiting} wait for the lock"
        time.sleep(0.02)


def winner(disks: list[Disk], statuses: list[int]) -> Disk:
    """The one that has the disk; no other has anything."""
    nodes = [disk.nodes() for disk in disks]
    (won,) = [number for number, status in enumerate(statuses) if status == 0]
    assert [number for number, found in enumerate(nodes) if "physical-device" in found] == [won]
    assert nodes[won]["hotplug-status"] == b"connected"
    return disks[won]


def test_o1_64_at_once_and_one_wins(host: Host) -> None:
    with Machine(host) as machine:
        image = machine.image()
        disks = [host.disk(domid, image) for domid in range(10, 10 + MANY)]
        won = winner(disks, all_at_once(disks, host.lock_dir))
        for disk in disks:
            if disk != won:
                nodes = disk.nodes()
                assert nodes["hotplug-status"] == b"busy"
                assert f"guest {won.domid} ".encode() in nodes["hotplug-error"]
        assert bound_loops(machine.folder) == [won.nodes()["node"].decode()]
        assert [path.name for path in host.run_dir.iterdir()] == [f"vbd-{won.domid}-51712"], "one record"
        assert list(host.lock_dir.iterdir()) == []
        assert won.remove().status == 0


def test_s4_32_of_xens_and_32_of_ours_and_one_wins(tmp_path: Path, store_socket: Path) -> None:
    """Both take the same lock and see each other's nodes; so whoever comes first, nobody comes second."""
    need_loop_devices()
    with stock_folders():
        places = tmp_path / "stock", tmp_path / "ours"
        for place in places:
            place.mkdir()
        stock = StockHost(places[0], store_socket)
        ours = Host(places[1], store_socket, lock_dir=LOCKS)
        with Machine(ours) as machine:
            target = machine.loop(machine.image())
            disks = [(stock, ours)[domid % 2].disk(domid, target) for domid in range(10, 10 + MANY)]
            won = winner(disks, all_at_once(disks, LOCKS))
            assert bound_loops(machine.folder) == [target]
            assert won.remove().status == 0
