"""`vbdkit gc`: what no living disk uses goes, and nothing else; when in doubt, nothing."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_store import locked, waits_for_the_lock
from tests.faults.test_signals import ended, loops_on, own_store, records
from tests.host import SOURCE, Disk, Host
from tests.images import losetup, make_image
from tests.stores import Store

__all__ = ["own_store"]


@pytest.fixture
def dom0(host: Host) -> Host:
    """A host whose store knows its own domain, as Xen's tools leave it."""
    with host.connect() as store:
        store.write(b"domid", b"0")
    return host


def gc(host: Host, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command on a test host."""
    place = ["--run-dir", str(host.run_dir), "--lock-dir", str(host.lock_dir)]
    argv = [sys.executable, "-m", "vbdkit", "gc", *place, *arguments]
    return subprocess.run(
        argv, env=host.environment() | {"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, timeout=60
    )


def found(host: Host, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
    """The leftovers that the command prints as JSON."""
    done = gc(host, "--json", *arguments)
    assert done.returncode == status, (done.stdout, done.stderr)
    leftovers: list[dict[str, Any]] = json.loads(done.stdout)["leftovers"]
    return leftovers


def nothing(host: Host) -> None:
    done = gc(host)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Nothing is left over.\n", "")


@pytest.fixture
def abandoned(dom0: Host, image: Path) -> Disk:
    """A disk whose backend did not close, so that the toolstack deleted the nodes and called no `remove` (I4)."""
    disk = dom0.disk(5, image)
    assert disk.add().status == 0
    disk.forget()
    return disk


def test_a_disk_whose_remove_was_skipped_is_collected(abandoned: Disk, image: Path) -> None:
    host = abandoned.host
    (loop,) = loops_on(image)
    (item,) = found(host)
    assert item["age_seconds"] >= 0
    del item["age_seconds"]
    assert item == {
        "vbd": "vbd-5-51712",
        "device": loop,
        "datapath": "file",
        "target": str(image),
        "mode": "w",
        "reason": "its backend is gone from xenstore",
        "outcome": "collected",
        "note": f"{loop} released",
    }
    assert (loops_on(image), records(host)) == ([], [])
    nothing(host)


def test_a_dry_run_shows_it_and_changes_nothing(abandoned: Disk, image: Path) -> None:
    host, loops = abandoned.host, loops_on(image)
    before = (host.run_dir / "vbd-5-51712").read_bytes()
    done = gc(host, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.startswith(f"  would collect vbd-5-51712: {loops[0]} ({image}), ")
    assert [item["outcome"] for item in found(host, "--dry-run")] == ["would collect"]
    assert (loops_on(image), (host.run_dir / "vbd-5-51712").read_bytes()) == (loops, before)


def test_a_guest_that_is_gone_leaves_its_backend_and_its_disk(dom0: Host, image: Path) -> None:
    disk = dom0.disk(5, image)
    disk.add()
    with dom0.connect() as store:
        store.remove(b"/local/domain/5")
    (item,) = found(dom0)
    assert (item["outcome"], item["reason"]) == ("collected", "guest 5 is gone")
    assert (loops_on(image), records(dom0)) == ([], [])
    assert "physical-device" not in disk.nodes(), "its number will be another's"


@pytest.mark.parametrize("state", ["2", "4", "5"])
def test_a_living_disk_stays(dom0: Host, image: Path, loop_device: str, state: str) -> None:
    disks = [dom0.disk(5, image), dom0.disk(6, loop_device)]
    for disk in disks:
        assert disk.add().status == 0
        disk.write(state=state.encode())
    loops = loops_on(image)
    nothing(dom0)
    assert loops_on(image) == loops
    assert records(dom0) == ["vbd-5-51712", "vbd-6-51712"]


def test_a_run_in_progress_is_never_collected(dom0: Host, image: Path) -> None:
    """Not even where the toolstack has taken the disk back meanwhile."""
    disk = dom0.disk(5, image)
    with locked(dom0):
        process = disk.start("add")
        waits_for_the_lock(process)
        disk.forget()
        loops = loops_on(image)
        assert loops
        nothing(dom0)
        assert loops_on(image) == loops
        process.kill()
        process.communicate()
    assert [item["outcome"] for item in found(dom0)] == ["collected"]
    assert (loops_on(image), records(dom0)) == ([], [])


def test_a_kill_before_the_number_was_noted_leads_to_the_device_all_the_same(abandoned: Disk, image: Path) -> None:
    record = abandoned.host.run_dir / "vbd-5-51712"
    lines = record.read_text().splitlines(keepends=True)
    assert lines[-1].startswith("loop ")
    record.write_text("".join(lines[:-1]))
    (loop,) = loops_on(image)
    (item,) = found(abandoned.host)
    assert (item["device"], item["outcome"]) == (loop, "collected")
    assert (loops_on(image), records(abandoned.host)) == ([], [])


def test_a_device_without_a_record_is_known_by_its_label(abandoned: Disk, image: Path) -> None:
    (loop,) = loops_on(image)
    (abandoned.host.run_dir / "vbd-5-51712").unlink()
    (item,) = found(abandoned.host, "--dry-run")
    assert (item["device"], item["reason"], item["age_seconds"]) == (loop, "there is no record of it", None)
    assert found(abandoned.host)[0]["outcome"] == "collected"
    assert (loops_on(image), records(abandoned.host)) == ([], [])


def test_a_living_disk_stays_also_without_a_record(dom0: Host, image: Path) -> None:
    disk = dom0.disk(5, image)
    disk.add()
    (dom0.run_dir / "vbd-5-51712").unlink()
    loops = loops_on(image)
    nothing(dom0)
    assert loops_on(image) == loops
    assert records(dom0) == []


def test_a_record_whose_device_is_gone_goes(abandoned: Disk, image: Path) -> None:
    losetup("-d", *loops_on(image))
    (item,) = found(abandoned.host)
    assert (item["device"], item["outcome"]) == (None, "collected")
    assert item["note"] == "nothing was attached any more"
    assert records(abandoned.host) == []


def test_a_number_that_has_become_anothers_is_left_alone(abandoned: Disk, image: Path, tmp_path: Path) -> None:
    (loop,) = loops_on(image)
    losetup("-d", loop)
    other = make_image(tmp_path / "other.img")
    losetup(loop, str(other))
    try:
        assert [item["outcome"] for item in found(abandoned.host)] == ["collected"], "the record alone"
        assert loops_on(other) == [loop]
    finally:
        losetup("-d", loop)


def test_what_vbdkit_did_not_make_is_never_touched(dom0: Host, image: Path) -> None:
    loop = losetup("--find", "--show", str(image))
    try:
        nothing(dom0)
        assert loops_on(image) == [loop]
    finally:
        losetup("-d", loop)


def test_what_another_installation_made_is_never_touched(abandoned: Disk, tmp_path: Path, image: Path) -> None:
    """Its own store, records and locks: `vbdkit try` beside the real one."""
    (tmp_path / "second").mkdir()
    second = Host(tmp_path / "second", abandoned.host.socket)
    with second.connect() as store:
        store.write(b"domid", b"0")
    second.run_dir.mkdir()
    loops = loops_on(image)
    assert loops
    nothing(second)
    assert loops_on(image) == loops
    assert abandoned.remove().status == 0


def test_a_leftover_that_another_guest_has_by_its_number_stays(abandoned: Disk, image: Path) -> None:
    """Somebody gave the loop device itself to a guest, unchecked: it may have the first one still."""
    host, (loop,) = abandoned.host, loops_on(image)
    user = host.disk(6, loop, "w!")
    assert user.add().status == 0
    (item,) = found(host, status=1)
    assert (item["vbd"], item["outcome"], item["note"]) == ("vbd-5-51712", "kept", "guest 6 has it")
    assert loops_on(image) == [loop]
    assert user.remove().status == 0
    assert [one["outcome"] for one in found(host)] == ["collected"]


def test_a_device_that_is_open_goes_with_its_last_user(abandoned: Disk, image: Path) -> None:
    (loop,) = loops_on(image)
    with open(loop, "rb"):
        (item,) = found(abandoned.host)
        assert item["note"] == f"{loop} goes when its last user closes it"
    assert loops_on(image) == []


def test_an_unreadable_record_is_shown_and_kept(abandoned: Disk, image: Path) -> None:
    record = abandoned.host.run_dir / "vbd-5-51712"
    record.write_text("vbdkit 2\nbetter than ours\n")
    (item,) = found(abandoned.host, status=1)
    assert (item["outcome"], item["reason"]) == ("kept", "its record cannot be read")
    assert str(record) in item["note"]
    assert record.read_text() == "vbdkit 2\nbetter than ours\n"
    assert loops_on(image)


def test_a_record_that_a_kill_left_unfinished_goes(dom0: Host) -> None:
    dom0.run_dir.mkdir()
    (dom0.run_dir / "vbd-5-51712.new").write_text("vbdkit 1\nda")
    with open(dom0.run_dir / "vbd-6-51712.new", "w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        assert [item["vbd"] for item in found(dom0)] == ["vbd-5-51712"]
    assert records(dom0) == ["vbd-6-51712.new"]


def test_files_that_are_no_records_stay(dom0: Host) -> None:
    dom0.run_dir.mkdir()
    (dom0.run_dir / "README").write_text("an administrator's")
    nothing(dom0)
    assert records(dom0) == ["README"]


@pytest.mark.parametrize("how", ["gone", "empty", "silent"])
def test_nothing_is_collected_where_the_store_does_not_tell(
    own_store: Store, tmp_path: Path, image: Path, how: str
) -> None:
    host = Host(tmp_path, own_store.socket)
    disk = host.disk(5, image)
    with host.connect() as store:
        store.write(b"domid", b"0")
    disk.add()
    loops = loops_on(image)
    if how == "empty":  # as after a restart of xenstored, with all guests alive
        with host.connect() as store:
            store.remove(b"/local")
    else:
        os.kill(own_store.pid, signal.SIGKILL if how == "gone" else signal.SIGSTOP)
    try:
        done = gc(host, "--deadline", "2")
    finally:
        if how == "silent":
            os.kill(own_store.pid, signal.SIGCONT)
    assert done.returncode == 1
    assert "xenstore" in done.stderr
    assert "Traceback" not in done.stderr
    assert (loops_on(image), records(host)) == (loops, ["vbd-5-51712"])
    losetup("-d", *loops)


def test_collecting_waits_for_the_lock_and_says_for_whom(abandoned: Disk, image: Path) -> None:
    with locked(abandoned.host):
        place = ["--run-dir", str(abandoned.host.run_dir), "--lock-dir", str(abandoned.host.lock_dir)]
        process = subprocess.Popen(
            [sys.executable, "-m", "vbdkit", "gc", *place],
            env=abandoned.host.environment() | {"PYTHONPATH": str(SOURCE)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        waits_for_the_lock(process)
        assert loops_on(image)
    assert ended(process)[0] == 0
    assert loops_on(image) == []


def test_where_there_never_was_a_record_there_is_nothing(dom0: Host) -> None:
    nothing(dom0)
    assert not dom0.run_dir.exists()
