"""I5: `add` once more for a disk whose driver waits (state 2). blkback has its device by then, and takes no other."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.engine.test_store import in_flock, locked, waits_for_the_lock
from tests.host import Disk, Host, backing_file, bound_loops
from tests.images import losetup, make_image


@pytest.fixture(params=["file", "device"])
def disk(request: pytest.FixtureRequest, host: Host, image: Path, loop_device: str) -> Disk:
    """A disk that was attached a moment ago."""
    made = host.disk(5, image if request.param == "file" else loop_device)
    assert made.add().outcome == b"connected"
    return made


def kernel_has(disk: Disk) -> None:
    """From now on scripts see a kernel whose blkback has this disk's device open."""
    bus = disk.host.directory / "bus"
    backend = bus / f"xen-backend/devices/{disk.kind}-{disk.domid}-{disk.devid}"
    backend.mkdir(parents=True)
    (backend / "physical_device").write_text("7:0\n")
    disk.host.within(f"mount --bind {bus} /sys/bus")


@pytest.mark.parametrize("known", [False, True])
def test_add_twice_before_the_guest_came_up_is_one_attach(disk: Disk, known: bool) -> None:
    """The same device stays published all the while: not even a moment without it, or with another."""
    if known:
        kernel_has(disk)
    before, loops = disk.nodes(), bound_loops(disk.host.directory)
    with disk.host.connect(60) as store:
        store.watch(disk.path, b"t")
        store.next_event()
        second = disk.add()
        store.watch(disk.path + b"/end", b"end")
        event = store.next_event()
        assert event is not None
        assert event[1] == b"end", "nothing was written"
    assert (second.status, second.output, second.nodes) == (0, "", before)
    assert bound_loops(disk.host.directory) == loops
    assert disk.remove().status == 0
    assert list(disk.host.run_dir.iterdir()) == []


def test_two_adds_at_once_are_one_attach(host: Host, image: Path) -> None:
    """The second waits for the first one's record, and finds the disk there."""
    disk = host.disk(5, image)
    with locked(host):
        first = disk.start("add")
        waits_for_the_lock(first)
        second = disk.start("add")
        while not in_flock(second.pid):
            assert second.poll() is None
        (loop,) = bound_loops(host.directory)
    for process in (first, second):
        assert (process.communicate(timeout=60)[0], process.returncode) == (b"", 0)
    assert bound_loops(host.directory) == [loop]
    assert disk.nodes()["node"] == loop.encode()


@pytest.mark.parametrize("what", ["mode", "target", "replaced", "unbound", "unbound but open"])
def test_what_is_not_the_same_any_more_is_attached_anew(host: Host, image: Path, tmp_path: Path, what: str) -> None:
    disk = host.disk(5, image)
    (loop,) = (disk.add().nodes["node"].decode(),)
    asked = image
    if what == "mode":
        disk.write(mode=b"r")
    elif what == "target":
        asked = make_image(tmp_path / "other.img")
        disk.write(params=os.fsencode(asked))
    elif what == "replaced":
        make_image(tmp_path / "new.img").rename(image)
    else:
        with open(loop, "rb") if "open" in what else nullcontext():
            losetup("-d", loop)
            result = disk.add()
    if "unbound" not in what:
        result = disk.add()
    assert (result.status, result.outcome) == (0, b"connected")
    (loop,) = bound_loops(host.directory)
    assert result.nodes["node"].decode() == loop
    assert backing_file(loop) == str(asked)
    read_only = Path(f"/sys/block/{loop.removeprefix('/dev/')}/ro").read_text()
    assert read_only == ("1\n" if what == "mode" else "0\n")


@pytest.mark.parametrize("what", ["mode", "target", "replaced"])
def test_a_driver_that_has_the_old_one_is_given_no_other(host: Host, image: Path, tmp_path: Path, what: str) -> None:
    """blkback would stay with the old device, and the store would say that it has the new one."""
    disk = host.disk(5, image)
    before = disk.add().nodes
    kernel_has(disk)
    if what == "mode":
        disk.write(mode=b"r")
    elif what == "target":
        disk.write(params=os.fsencode(make_image(tmp_path / "other.img")))
    else:
        make_image(tmp_path / "new.img").rename(image)
    result = disk.add()
    assert (result.status, result.outcome) == (1, b"error")
    loop = before["node"].decode()
    assert f"the guest has its disk already, as {loop}, and the driver takes no other in its place" in result.error
    assert (result.nodes["physical-device"], bound_loops(host.directory)) == (before["physical-device"], [loop])
    assert disk.remove().status == 0
    assert bound_loops(host.directory) == []
