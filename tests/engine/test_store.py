"""The store as a script meets it: one transaction under the lock (O6), conflicts, refusals, its end in mid-run."""

import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host import Disk, Host, bound_loops
from tests.need import need_loop_devices
from tests.stores import running_store

OUTPUT = {"physical-device", "physical-device-path", "node"}


@contextmanager
def locked(host: Host) -> Iterator[None]:
    """Hold the sharing lock as another script would (S4)."""
    host.lock_dir.mkdir(exist_ok=True)
    fd = os.open(host.lock_dir / "block", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


def waits_for_the_lock(process: "subprocess.Popen[bytes]") -> None:
    """Return once the script sleeps in flock."""
    for _ in range(500):
        if in_flock(process.pid):
            return
        time.sleep(0.01)
    raise AssertionError("the script does not wait for the lock")


def in_flock(pid: int) -> bool:
    """Whether a process waits for a file lock; such lines of proc_locks(5) have an arrow."""
    return any("->" in line and line.split()[5] == str(pid) for line in Path("/proc/locks").read_text().splitlines())


def test_o6_nothing_is_published_without_the_lock(host: Host, image: Path) -> None:
    disk = host.disk(5, image)
    with locked(host):
        process = disk.start("add")
        waits_for_the_lock(process)
        assert not (OUTPUT | {"hotplug-status"}) & set(disk.nodes())
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert disk.nodes()["hotplug-status"] == b"connected"


def test_o6_all_nodes_are_there_when_the_driver_wakes(host: Host, image: Path) -> None:
    disk = host.disk(5, image)
    with host.connect(30) as store:
        store.watch(disk.path, b"t")
        store.next_event()
        process = disk.start("add")
        event = store.next_event()
        assert event is not None
        seen = {name.decode() for name in store.list(disk.path)}
        assert seen >= OUTPUT | {"hotplug-status"}, "at the first event of the script's, all is there"
        process.communicate(timeout=30)


def test_o6_a_transaction_that_others_disturb_is_done_again(host: Host, image: Path) -> None:
    disk = host.disk(5, image)
    stop = threading.Event()

    def disturb() -> None:
        with host.connect(60) as store:
            while not stop.is_set():
                store.write(disk.path + b"/params", os.fsencode(image))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(4):
            assert disk.add().status == 0
            assert disk.remove().status == 0
    finally:
        stop.set()
        thread.join()


def test_a_disk_that_the_toolstack_took_back_is_not_published(host: Host, image: Path) -> None:
    disk, loops = host.disk(5, image), bound_loops()
    with locked(host):
        process = disk.start("add")
        waits_for_the_lock(process)
        disk.forget()
    output = process.communicate(timeout=30)[0].decode()
    assert process.returncode == 1
    assert "the toolstack removed backend/vbd/5/51712 while the disk was being attached" in output
    assert disk.nodes() == {}, "the directory is not made again"
    assert bound_loops() == loops


def test_the_store_goes_away_in_the_middle(tmp_path: Path) -> None:
    need_loop_devices()
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with running_store("c", tmp_path / "store") as store:
        host = Host(tmp_path, store.socket)
        loops = bound_loops()
        disk = host.disk(5, image)
        with locked(host):
            process = disk.start("add")
            waits_for_the_lock(process)
            os.kill(store.pid, signal.SIGKILL)
            time.sleep(0.2)  # for the kernel to close its socket
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 1
    assert "xenstore" in output
    assert "Traceback" not in output
    assert bound_loops() == loops
    assert list(host.run_dir.iterdir()) == []


def test_a_store_that_may_not_be_read(tmp_path: Path) -> None:
    """A driver domain's connection to nodes that are not its own: refused with the reason, nothing left."""
    need_loop_devices()
    from vbdkit.xenstore.embedded import EmbeddedStore

    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with EmbeddedStore(str(tmp_path / "all")) as store:
        store.listen(str(tmp_path / "domain3"), domid=3)
        dom0 = Host(tmp_path, tmp_path / "all")
        dom0.domain(3)
        disk = dom0.vbd(5, image)
        with dom0.connect() as connection:
            for node in (b"params", b"mode", b"state"):
                path = b"/local/domain/3/" + disk.path + b"/" + node
                connection.write(path, connection.read(disk.path + b"/" + node))
                connection.set_permissions(path, [b"n0"])
        loops = bound_loops()
        result = Disk(dom0, "vbd", 5, 51712).run("add", extra={"XENSTORED_PATH": str(tmp_path / "domain3")})
        assert result.status == 1
        assert "Permission denied (EACCES)" in result.output
        assert bound_loops() == loops


@pytest.mark.parametrize("kind", ["c", "o"])
def test_both_of_xens_stores_serve_the_script(tmp_path: Path, kind: str) -> None:
    need_loop_devices()
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with running_store(kind, tmp_path / "store") as store:
        host = Host(tmp_path, store.socket)
        one, two = host.disk(5, image), host.disk(6, image)
        assert (one.add().outcome, two.add().outcome) == (b"connected", b"busy")
        assert (one.remove().status, two.add().outcome, two.remove().status) == (0, b"connected", 0)
        assert set(bound_loops()) <= host.loops
