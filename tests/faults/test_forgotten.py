"""A store that comes back empty while guests run: what they have goes to nobody else, and all of it comes back.

What survives the store are the records, the kernel's own list of backends where it has one, and what Xen's tools write
into a new store about this domain (xen-init-dom0).
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.test_signals import loops_on, records
from tests.host import SOURCE, Disk, Host, Result, unshared
from tests.images import losetup, make_image
from tests.need import need_loop_devices
from tests.platform.models.freebsd import Freebsd
from tests.platform.models.netbsd import Netbsd
from tests.stores import need_real_stores, real_store
from vbdkit.engine.check import examine
from vbdkit.engine.record import Records
from vbdkit.platform import linux
from vbdkit.toolstack.netbsd_host import take_away

A, B = 5, 6


class Reborn:
    """A host whose store can be killed, and comes back empty."""

    def __init__(self, kind: str, place: Path, stack: ExitStack) -> None:
        self.kind, self.place, self._stack = kind, place, stack
        self._mounts = "true"
        store = stack.enter_context(real_store(kind, place / "store"))
        self.pid = store.pid
        self.host = Host(place, store.socket)
        self.image = make_image(place / "disk.img")
        self.device = losetup("--find", "--show", str(make_image(place / "device.img")))
        stack.callback(self.host.close)
        stack.callback(losetup, "-d", self.device)

    def target(self, what: str) -> str:
        return str(self.image) if what == "file" else self.device

    def connected(self, target: str | Path, mode: str = "w") -> Disk:
        """Guest A, running, with its disk."""
        disk = self.host.disk(A, target, mode)
        result = disk.add()
        assert (result.status, result.error) == (0, "")
        disk.write(state=b"4")
        return disk

    def empty_store(self, dom0: bool = False) -> None:
        """The daemon is killed, and another one knows nothing. ``dom0``: Xen's tools have told it about domain 0."""
        os.kill(self.pid, signal.SIGKILL)
        store = self._stack.enter_context(real_store(self.kind, self.place / "store"))
        self.pid = store.pid
        with self.host.connect() as connection:
            assert not connection.exists(b"backend")
            if dom0:
                self.host.init(connection)

    def kernel_with(self, *backends: str, without: str = "") -> None:
        """Let the scripts see a kernel with these backends that have a device open, and one ``without``.

        As /sys/bus/xen-backend looks on a host with blkback; in a mount namespace of each script's own.
        """
        devices = self.place / "bus/xen-backend/devices"
        devices.mkdir(parents=True, exist_ok=True)
        for name in (*backends, *filter(None, [without])):
            (devices / name).mkdir()
        for name in backends:
            (devices / name / "physical_device").write_text("7:0\n")
        self._mounts = f"mount --bind {self.place}/bus /sys/bus"
        self.host.within(self._mounts)

    def gc(self) -> "subprocess.CompletedProcess[str]":
        """Run the command, where the kernel is what the scripts see."""
        places = f"--run-dir {self.host.run_dir} --lock-dir {self.host.lock_dir}"
        command = f"{unshared(self._mounts)} {sys.executable} -m vbdkit gc {places}"
        environment = self.host.environment() | {"PYTHONPATH": str(SOURCE)}
        return subprocess.run(
            ["/bin/sh", "-c", command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )


def refused(result: Result, target: str, *words: str) -> None:
    """Busy, since guest A may have it still, and nothing is left of the attempt."""
    assert (result.status, result.outcome) == (1, b"busy"), result
    assert result.error.startswith(f"{target} was attached for guest {A} as its disk 51712, read-"), result.error
    for word in ("was it started anew?", "vbdkit gc takes it back", *words):
        assert word in result.error
    assert not {"physical-device", "physical-device-path", "node"} & set(result.nodes)


def granted(result: Result) -> None:
    assert (result.status, result.outcome, result.error) == (0, b"connected", ""), result


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture(params=["c", "o"])
def reborn(request: pytest.FixtureRequest, tmp_path: Path, stack: ExitStack) -> Reborn:
    """On each of Xen's stores."""
    need_loop_devices()
    need_real_stores()
    return Reborn(request.param, tmp_path, stack)


@pytest.fixture
def host(tmp_path: Path, stack: ExitStack) -> Reborn:
    """On C xenstored, where the store makes no difference."""
    need_loop_devices()
    need_real_stores()
    return Reborn("c", tmp_path, stack)


@pytest.mark.parametrize("what", ["file", "device"])
def test_a_store_that_comes_back_empty_gives_nothing_away(reborn: Reborn, what: str) -> None:
    target, host = reborn.target(what), reborn.host
    reborn.connected(target)
    loops = loops_on(reborn.image)
    reborn.empty_store()
    other = host.disk(B, target)
    refused(other.add(), target, *loops)
    assert (loops_on(reborn.image), records(host)) == (loops, [f"vbd-{A}-51712"])
    # Its toolstack writes the nodes again.
    again = host.disk(A, target)
    granted(again.add())
    assert len(loops_on(reborn.image)) == len(loops)
    assert other.add().outcome == b"busy"
    again.write(state=b"6", online=b"0")
    assert again.remove().status == 0
    again.forget()
    granted(other.add())
    assert other.remove().status == 0
    assert (loops_on(reborn.image), records(host)) == ([], [])


@pytest.mark.parametrize("what", ["file", "device"])
def test_a_remove_without_nodes_sets_it_free(reborn: Reborn, what: str) -> None:
    target, host = reborn.target(what), reborn.host
    disk = reborn.connected(target)
    reborn.empty_store()
    other = host.disk(B, target)
    refused(other.add(), target)
    assert disk.remove().status == 0
    granted(other.add())


@pytest.mark.parametrize("what", ["file", "device"])
def test_the_kernel_remembers_where_a_new_dom0_does_not(host: Reborn, what: str) -> None:
    """The tools have written domain 0 anew, so the guest looks dead; but blkback has its device."""
    target = host.target(what)
    host.kernel_with(f"vbd-{A}-51712")
    host.connected(target)
    host.empty_store(dom0=True)
    refused(host.host.disk(B, target).add(), target)
    done = host.gc()
    assert (done.returncode, "the backend driver has it open, whatever the store says" in done.stdout) == (1, True)
    assert records(host.host) == [f"vbd-{A}-51712"]
    # Its nodes are written again, but its add has not run yet.
    host.host.disk(A, target)
    refused(host.host.disk(B, target).add(), target)


def test_gc_keeps_what_the_kernel_has_also_without_a_record(host: Reborn) -> None:
    host.kernel_with(f"vbd-{A}-51712")
    host.connected(host.image)
    (host.host.run_dir / f"vbd-{A}-51712").unlink()
    host.empty_store(dom0=True)
    loops = loops_on(host.image)
    done = host.gc()
    assert (done.returncode, "the backend driver has it open" in done.stdout) == (1, True)
    assert (loops_on(host.image), records(host.host)) == (loops, [])


@pytest.mark.parametrize("what", ["file", "device"])
@pytest.mark.parametrize("waiting", [False, True])
def test_what_the_kernel_does_not_have_is_free(host: Reborn, what: str, waiting: bool) -> None:
    """It has no such backend, or one that waits for a device: nobody uses the disk, whatever became of the store."""
    target = host.target(what)
    host.kernel_with(without=f"vbd-{A}-51712" if waiting else "")
    host.connected(target)
    host.empty_store()
    granted(host.host.disk(B, target).add())


@pytest.mark.parametrize("kind", ["vbd3", "tap"])
def test_a_backend_of_a_program_counts_as_long_as_it_is_there(host: Reborn, kind: str) -> None:
    """Only blkback shows what it has open."""
    disk = host.host.vbd(A, host.image, kind=kind)
    host.host.domain(A)
    host.kernel_with(without=f"{kind}-{A}-51712")
    granted(disk.add())
    host.empty_store(dom0=True)
    refused(host.host.disk(B, host.image).add(), str(host.image))


@pytest.mark.parametrize("what", ["file", "device"])
def test_leftovers_of_a_dead_domain_do_not_block(reborn: Reborn, what: str) -> None:
    """The toolstack has called no remove and deleted all nodes (I4). The store is the same one, and in order."""
    target = reborn.target(what)
    disk = reborn.connected(target)
    with reborn.host.connect() as store:
        store.remove_many([disk.path, b"/local/domain/%d" % A])
    granted(reborn.host.disk(B, target).add())


@pytest.mark.parametrize("what", ["file", "device"])
def test_a_living_guest_whose_remove_was_skipped_still_counts(host: Reborn, what: str) -> None:
    """Its backend did not close (I4), so it may be writing; `vbdkit gc` settles it."""
    target = host.target(what)
    host.connected(target).forget()
    other = host.host.disk(B, target)
    refused(other.add(), target)
    assert host.gc().returncode == 0
    granted(other.add())


def test_readers_bear_readers_and_a_mark_skips_the_check(host: Reborn) -> None:
    host.connected(host.image, "r")
    host.empty_store()
    refused(host.host.disk(B, host.image).add(), str(host.image), "read-only", "(mode w! skips the check)")
    granted(host.host.disk(7, host.image, "r").add())
    granted(host.host.disk(8, host.image, "w!").add())


def test_one_that_asks_without_a_record_of_its_own_is_refused_as_well(host: Reborn) -> None:
    """What a path-only script has made is checked without one (G1); and `vbdkit check` asks for nobody."""
    host.connected(host.image)
    host.empty_store()
    there = linux.open_target(os.fsencode(host.image), True)
    records = Records(os.fsencode(host.host.run_dir))
    try:
        with host.host.connect() as store:
            for domid, own in ((B, b"backend/vbd/%d/51712" % B), (-1, b"")):
                found = examine(store, linux, there, records, b"backend", domid, own)
                assert "was attached for guest 5" in str(found.refusal(True, linux))
    finally:
        there.close()


def test_the_same_guest_may_have_it_twice(host: Reborn) -> None:
    host.connected(host.image)
    host.empty_store()
    host.host.domain(A)
    granted(host.host.vbd(A, host.image, devid=51728).add())


def test_another_target_is_free(host: Reborn, tmp_path: Path) -> None:
    host.connected(host.image)
    host.empty_store()
    granted(host.host.disk(B, make_image(tmp_path / "other.img")).add())
    granted(host.host.disk(7, host.device).add())


def test_what_is_not_there_any_more_is_no_obstacle(host: Reborn) -> None:
    host.connected(host.image)
    host.empty_store()
    losetup("-d", *loops_on(host.image))
    granted(host.host.disk(B, host.image).add())


def test_a_record_that_nobody_can_read_is_unknown_and_unknown_is_not_free(host: Reborn) -> None:
    host.connected(host.image)
    host.empty_store()
    record = host.host.run_dir / f"vbd-{A}-51712"
    for text in ("vbdkit 2\nbetter than ours\n", "vbdkit 1\nnumber x\n", ""):
        record.write_text(text)
        result = host.host.disk(B, host.image).add()
        assert (result.status, result.outcome) == (1, b"error")
        assert f"the record {record} is not one that this vbdkit can read" in result.error
    with host.host.connect() as store:
        host.host.init(store)
    granted(host.host.disk(B, host.image).add())  # guest A is known to be dead


def test_a_script_of_its_own_is_remembered_by_its_device(host: Reborn) -> None:
    """Custom scripts in shell note what they handed over (write_dev)."""
    disk = host.host.disk(A, "anything")
    record = host.host.run_dir / f"vbd-{A}-51712"
    host.host.run_dir.mkdir()
    record.write_text(f"vbdkit 1\ndatapath shell\nmode w\ntarget anything\nscript block-own\ndevice {host.device}\n")
    disk.forget()
    host.empty_store()
    refused(host.host.disk(B, host.device).add(), host.device)


@pytest.mark.parametrize("system", ["freebsd", "netbsd"])
@pytest.mark.parametrize("what", ["file", "device"])
def test_where_no_kernel_tells_the_record_does(tmp_path: Path, store_socket: Path, system: str, what: str) -> None:
    """A file as it is, a vnd, a device: all are remembered on the BSDs as well."""
    need_loop_devices()
    image = make_image(tmp_path / "disk.img")
    settings: dict[str, bytes] = {}
    if system == "freebsd":
        freebsd = Freebsd(tmp_path / "model")
        device, settings = freebsd.disk("ada0", "null"), freebsd.place.settings
    else:
        netbsd = Netbsd(tmp_path / "model")
        netbsd.disk("wd0", {"e": (2048, 4096)})
        device, settings = netbsd.dev / "wd0e", netbsd.settings
    host = Host(tmp_path, store_socket, system, settings=settings)
    target = image if what == "file" else device
    try:
        one, other = host.disk(A, target), host.disk(B, target)
        granted(one.add())
        one.forget()
        refused(other.add(), str(target))
        assert one.remove().status == 0
        granted(other.add())
        assert other.remove().status == 0
    finally:
        if system == "netbsd":
            take_away(netbsd.folder)
