"""The time limit: whatever a run waits for, the error is told before the toolstack's kill (C6, O7)."""

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.engine.test_store import locked
from tests.faults.test_signals import ended, loops_on, own_store, records, stopped
from tests.fuse import fuse
from tests.host import Host
from tests.need import need_loop_devices, need_program, need_root
from tests.stores import Store

__all__ = ["own_store"]


@pytest.fixture
def hasty(tmp_path: Path, store_socket: Path) -> Host:
    """A host whose script ends after two seconds."""
    need_loop_devices()
    return Host(tmp_path, store_socket, time_limit=2)


def test_a_held_lock_is_told_with_its_holder(hasty: Host, image: Path) -> None:
    disk = hasty.disk(5, image)
    with locked(hasty):
        result = disk.add()
    assert (result.status, result.outcome) == (1, b"error")
    assert f"held by pid {os.getpid()} (" in result.error
    assert " for " in result.error
    assert (loops_on(image), records(hasty)) == ([], [])


def test_a_lock_whose_holder_left_it_to_a_child_is_told(hasty: Host, image: Path) -> None:
    """C6: what a killed script started lives on, with every descriptor that it inherited."""
    disk = hasty.disk(5, image)
    hasty.lock_dir.mkdir()
    command = f"exec 9>{hasty.lock_dir}/block; flock 9; sleep 60 >/dev/null 2>&1 & echo $!"
    child = int(subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True).stdout)
    try:
        result = disk.add()
    finally:
        os.kill(child, 9)
    assert "started (which has ended itself)" in result.error
    assert (loops_on(image), records(hasty)) == ([], [])


def test_a_silent_store_is_told_on_stderr(own_store: Store, tmp_path: Path, image: Path) -> None:
    host = Host(tmp_path, own_store.socket, time_limit=2)
    disk = host.disk(5, image)
    with stopped(own_store):
        status, output = ended(disk.start("add"))
    assert status == 1
    assert "the store did not answer in time" in output
    assert (loops_on(image), records(host)) == ([], [])


def test_a_remove_with_a_silent_store_still_releases(own_store: Store, tmp_path: Path, image: Path) -> None:
    host = Host(tmp_path, own_store.socket, time_limit=2)
    disk = host.disk(5, image)
    assert disk.add().status == 0
    with stopped(own_store):
        ended(disk.start("remove"))
    assert (loops_on(image), records(host)) == ([], [])


def test_a_call_that_no_signal_ends_is_told_before_the_end(hasty: Host, tmp_path: Path) -> None:
    """The script cannot end while the kernel keeps it, but the toolstack's log and the store know why."""
    with fuse(tmp_path / "fuse") as served:
        disk = hasty.disk(5, served.disk)
        served.silent = True
        process = disk.start("add")
        assert process.stdout is not None
        said = process.stdout.readline().decode()
        assert served.asked.is_set()
        nodes = disk.nodes()
    process.wait(60)
    process.stdout.close()
    assert process.returncode == 1
    assert f"the time (2 s) was up while opening {served.disk}" in said
    assert nodes["hotplug-status"] == b"error"
    assert nodes["hotplug-error"].decode() in said
    assert records(hasty) == []


def test_a_file_on_a_file_system_that_works_is_no_trouble(hasty: Host, tmp_path: Path) -> None:
    """The other half of the proof: the same file system, answering."""
    with fuse(tmp_path / "fuse") as served:
        disk = hasty.disk(5, served.disk, "r")
        assert disk.add().error == ""
        assert disk.remove().status == 0


def test_an_overdue_run_publishes_nothing_when_the_kernel_comes_back(hasty: Host, tmp_path: Path) -> None:
    with fuse(tmp_path / "fuse") as served:
        disk = hasty.disk(5, served.disk, "r")
        served.silent = True
        process = disk.start("add")
        assert process.stdout is not None
        process.stdout.readline()
    process.wait(60)
    process.stdout.close()
    assert "physical-device" not in disk.nodes()
    assert records(hasty) == []


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_file_that_goes_while_held_publishes_nothing(hasty: Host, image: Path, replaced: bool) -> None:
    """Someone cleans /run: another script may have a lock of that name by now."""
    disk = hasty.disk(5, image)
    # The script reads the mounts with the lock held; there strace keeps it for a while.
    trace = [need_program("strace"), "-qq", "-o", "/dev/null", "-P", "/proc/self/mountinfo"]
    trace += ["-e", "inject=openat:delay_enter=300000"]
    environment = hasty.environment() | {"XENBUS_PATH": disk.path.decode()}
    process = subprocess.Popen(
        [*trace, hasty.script, "add"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    lock = hasty.lock_dir / "block"
    while not lock.exists():
        assert process.poll() is None
    time.sleep(0.1)
    lock.unlink()
    if replaced:
        lock.write_text("another's")
    status, output = ended(process)
    assert status == 1
    assert "was removed or replaced while this script held it" in output
    assert disk.nodes()["hotplug-status"] == b"error"
    assert "physical-device" not in disk.nodes()
    assert (loops_on(image), records(hasty)) == ([], [])
    assert lock.exists() == replaced, "another's lock is not ours to unlink"


@pytest.mark.parametrize("what", ["full", "read-only", "missing", "a file"])
def test_a_place_for_locks_that_cannot_be_used_is_told(hasty: Host, image: Path, what: str) -> None:
    need_root()
    disk = hasty.disk(5, image)
    place = hasty.lock_dir
    if what == "a file":
        place.write_text("")
    elif what == "missing":
        place.symlink_to("nowhere/at/all")
    else:
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=2", "tmpfs", place], check=True)
        if what == "full":
            (place / "filler").write_text("")
        else:
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    try:
        result = disk.add()
    finally:
        if what in ("full", "read-only"):
            subprocess.run(["umount", place], check=True)
    why = {"full": errno.ENOSPC, "read-only": errno.EROFS, "missing": errno.ENOENT, "a file": errno.ENOTDIR}[what]
    assert (result.status, result.outcome) == (1, b"error")
    assert f"the lock {place}/block cannot be taken: {os.strerror(why)}" in result.error
    assert (loops_on(image), records(hasty)) == ([], [])
