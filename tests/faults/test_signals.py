"""A run that is asked to end: what was done is undone and told; what is past its commit is finished."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.test_store import locked, waits_for_the_lock
from tests.host import Disk, Host
from tests.images import losetup
from tests.need import need_loop_devices
from tests.stores import Store, running_store


def loops_on(image: Path) -> list[str]:
    """The loop devices on a file, but those that were given back: they go when whoever looks at them closes them."""
    lines = losetup("-n", "-O", "NAME,AUTOCLEAR", "-j", str(image)).splitlines()
    return [name for name, autoclear in (line.split() for line in lines) if autoclear == "0"]


def records(host: Host) -> list[str]:
    return sorted(path.name for path in host.run_dir.iterdir()) if host.run_dir.exists() else []


def ended(process: "subprocess.Popen[bytes]") -> tuple[int, str]:
    """Status and output of a script that is about to end."""
    output = process.communicate(timeout=60)[0].decode()
    return process.returncode, output


@contextmanager
def stopped(store: Store) -> Iterator[None]:
    """The store's daemon answers nobody."""
    os.kill(store.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(store.pid, signal.SIGCONT)


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[Store]:
    """A C xenstored that a test may stop."""
    need_loop_devices()
    with running_store("c", tmp_path / "store") as store:
        yield store


def waits_for_the_store(process: "subprocess.Popen[bytes]") -> None:
    """Return once the script sleeps in a call on a socket."""
    path = Path(f"/proc/{process.pid}/wchan")
    end = time.monotonic() + 30
    while not path.read_text().startswith(("unix_stream", "unix_wait", "sock_alloc", "sk_", "wait_for")):
        assert time.monotonic() < end, path.read_text()
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda one: one.name)
def test_an_add_that_is_asked_to_end_takes_all_back_and_tells(host: Host, image: Path, number: signal.Signals) -> None:
    disk = host.disk(5, image)
    with locked(host):
        process = disk.start("add")
        waits_for_the_lock(process)
        assert loops_on(image), "attached already, and about to be checked"
        process.send_signal(number)
        status, output = ended(process)
    assert status == 1
    assert f"ended by {number.name}" in output
    assert disk.nodes()["hotplug-status"] == b"error"
    assert disk.nodes()["hotplug-error"].decode() in output
    assert (loops_on(image), records(host)) == ([], [])
    assert disk.add().status == 0


def test_a_second_signal_does_not_disturb_the_undo(host: Host, image: Path) -> None:
    disk = host.disk(5, image)
    with locked(host):
        process = disk.start("add")
        waits_for_the_lock(process)
        process.send_signal(signal.SIGTERM)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
        status, output = ended(process)
    assert (status, loops_on(image), records(host)) == (1, [], [])
    assert disk.nodes()["hotplug-status"] == b"error"
    assert "Traceback" not in output


def test_what_whoever_started_it_ignores_is_ignored(host: Host, image: Path) -> None:
    """As under nohup."""
    disk = host.disk(5, image)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with locked(host):
            process = disk.start("add")
            waits_for_the_lock(process)
            process.send_signal(signal.SIGHUP)
            time.sleep(0.1)
            assert process.poll() is None
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ended(process) == (0, "")
    assert disk.nodes()["hotplug-status"] == b"connected"


def test_an_add_that_waits_for_the_store_ends_too(own_store: Store, tmp_path: Path, image: Path) -> None:
    host = Host(tmp_path, own_store.socket, time_limit=3)
    disk = host.disk(5, image)
    with stopped(own_store):
        process = disk.start("add")
        waits_for_the_store(process)
        process.send_signal(signal.SIGTERM)
        status, output = ended(process)
    assert status == 1
    assert "ended by SIGTERM" in output
    assert "could not be written to xenstore" in output


def test_a_remove_that_is_asked_to_end_is_finished(own_store: Store, tmp_path: Path, image: Path) -> None:
    host = Host(tmp_path, own_store.socket)
    disk = host.disk(5, image)
    assert disk.add().status == 0
    with stopped(own_store):
        process = disk.start("remove")
        waits_for_the_store(process)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert process.poll() is None
    assert ended(process) == (0, "")
    assert (loops_on(image), records(host)) == ([], [])
    assert "physical-device" not in disk.nodes()


def test_a_kill_leaves_a_record_that_the_next_run_works_from(host: Host, image: Path) -> None:
    disk = host.disk(5, image)
    with locked(host):
        process = disk.start("add")
        waits_for_the_lock(process)
        process.kill()
        process.communicate()
    (left,) = loops_on(image)
    assert records(host) == ["vbd-5-51712"]
    other = host.disk(6, image)
    assert other.add().status == 0, "nobody has it, whatever was left"
    assert other.remove().status == 0
    assert disk.remove().status == 0
    assert (loops_on(image), records(host)) == ([], []), left


def test_two_scripts_for_one_disk_do_not_work_at_the_same_time(host: Host, image: Path) -> None:
    """As when the toolstack gives up on an `add` that still runs, and calls `remove`."""
    disk = host.disk(5, image)
    with locked(host):
        first = disk.start("add")
        waits_for_the_lock(first)
        second = Disk(host, "vbd", 5, 51712).start("remove")
        waits_for_the_lock(second)
        assert loops_on(image)
    assert ended(first) == (0, "")
    assert ended(second) == (0, "")
    assert (loops_on(image), records(host)) == ([], [])
    assert "physical-device" not in disk.nodes()


def test_a_loop_device_whose_node_is_missing_hides_no_guest(host: Host, image: Path) -> None:
    """A dom0 without udev, or somebody who cleans up /dev: the file is in use all the same."""
    disk = host.disk(5, image)
    node = disk.add().nodes["node"]
    os.unlink(node)
    assert host.disk(6, image).add().outcome == b"busy"
    os.unlink(node)
    assert disk.remove().status == 0
    assert (loops_on(image), records(host)) == ([], [])
