"""The model drivers do with the nodes what the kernels' drivers do (protocol.md, who reads what)."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.images import losetup, make_image
from tests.need import need_loop_devices
from tests.waiting import until
from vbdkit.platform import SYSTEMS
from vbdkit.protocol.failure import Failure
from vbdkit.toolstack.driver import FreebsdDriver, LinuxDriver, ModelDriver, NetbsdDriver, Opened, driver_for
from vbdkit.toolstack.nodes import Disk, add_disk, close_disk, remove_disk, wait_for_state
from vbdkit.xenstore.client import Connection

Environ = dict[bytes, bytes]
ERROR_NODE = b"/local/domain/0/error/backend/vbd/5/51712/error"


def opened(driver: ModelDriver) -> Opened:
    found = driver.opened(5, 51712)
    assert found is not None
    return found


def publish(store: Connection, disk: Disk, **nodes: bytes) -> None:
    store.write_many([(disk.backend + b"/" + name.replace("_", "-").encode(), nodes[name]) for name in nodes])


@pytest.fixture
def linux(environ: Environ, store: Connection, disk: Disk) -> Iterator[LinuxDriver]:
    """A running blkback and a disk that waits for its script."""
    with LinuxDriver(environ) as driver:
        add_disk(store, disk)
        wait_for_state(store, disk, {b"2"}, 10)
        yield driver


@pytest.fixture
def freebsd(environ: Environ, store: Connection, disk: Disk) -> Iterator[FreebsdDriver]:
    """A running FreeBSD blkback and a disk that waits for its script."""
    with FreebsdDriver(environ) as driver:
        add_disk(store, disk)
        wait_for_state(store, disk, {b"2"}, 10)
        yield driver


@pytest.fixture
def loop(image: Path) -> Iterator[Path]:
    """The image as a loop device."""
    need_loop_devices()
    name = subprocess.check_output(["losetup", "-f", "--show", image], text=True).strip()
    yield Path(name)
    subprocess.run(["losetup", "-d", name], check=True)


def number(device: Path) -> bytes:
    rdev = device.stat().st_rdev
    return b"%x:%x" % (os.major(rdev), os.minor(rdev))


class TestBoth:
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_a_disk_that_was_there_first_is_found(
        self, environ: Environ, store: Connection, disk: Disk, system: str
    ) -> None:
        add_disk(store, disk)
        with driver_for(system)(environ):
            assert wait_for_state(store, disk, {b"2"}, 10) == b"2"

    @pytest.mark.parametrize("system", SYSTEMS)
    def test_it_closes_when_the_toolstack_asks(
        self, environ: Environ, store: Connection, disk: Disk, system: str
    ) -> None:
        with driver_for(system)(environ):
            add_disk(store, disk)
            wait_for_state(store, disk, {b"2"}, 10)
            close_disk(store, disk)
            assert wait_for_state(store, disk, {b"6"}, 10) == b"6"

    def test_a_system_without_a_model(self) -> None:
        with pytest.raises(Failure, match="plan9"):
            driver_for("plan9")

    def test_it_never_brings_back_what_the_toolstack_removed(
        self, environ: Environ, store: Connection, disk: Disk
    ) -> None:
        with LinuxDriver(environ):
            for _ in range(50):
                add_disk(store, disk)
                remove_disk(store, disk)
            add_disk(store, Disk(5, disk.params, disk.script, devid=51728))
            wait_for_state(store, Disk(5, disk.params, disk.script, devid=51728), {b"2"}, 10)
            assert not store.exists(disk.backend)


class TestLinux:
    def test_it_opens_by_number_whatever_the_path_says(
        self, linux: LinuxDriver, store: Connection, disk: Disk, loop: Path
    ) -> None:
        publish(store, disk, physical_device_path=b"/nowhere", physical_device=number(loop))
        wait_for_state(store, disk, {b"4"}, 10)
        assert opened(linux).read(3, 2) == b"\3" * 512 + b"\4" * 512
        assert opened(linux).size == 4096

    def test_a_path_alone_does_not_wake_it(self, linux: LinuxDriver, store: Connection, disk: Disk) -> None:
        publish(store, disk, physical_device_path=disk.params, hotplug_status=b"connected")
        with pytest.raises(Failure):
            wait_for_state(store, disk, {b"4"}, 0.3)

    def test_a_guest_can_write_where_the_mode_has_a_w(
        self, linux: LinuxDriver, store: Connection, disk: Disk, loop: Path, image: Path
    ) -> None:
        publish(store, disk, physical_device=number(loop))
        wait_for_state(store, disk, {b"4"}, 10)
        opened(linux).write(7, b"x" * 512)
        assert image.read_bytes()[-512:] == b"x" * 512

    def test_and_not_where_it_has_none(
        self, environ: Environ, store: Connection, disk: Disk, loop: Path, image: Path
    ) -> None:
        reader = Disk(5, disk.params, disk.script, mode=b"r")
        with LinuxDriver(environ) as driver:
            add_disk(store, reader)
            publish(store, reader, physical_device=number(loop))
            wait_for_state(store, reader, {b"4"}, 10)
            with pytest.raises(OSError, match="Read-only"):
                opened(driver).write(0, b"x" * 512)

    @pytest.mark.parametrize("value", [b"ff:fffff", b"/dev/loop0", b"", b"1797"])
    def test_what_it_cannot_open_becomes_an_error_node(
        self, linux: LinuxDriver, store: Connection, disk: Disk, value: bytes
    ) -> None:
        need_loop_devices()
        publish(store, disk, physical_device=value)
        wait_for_state(store, disk, {b"5"}, 10)
        assert store.exists(ERROR_NODE)
        assert linux.opened(5, 51712) is None

    def test_a_later_change_of_the_device_is_refused(
        self, linux: LinuxDriver, store: Connection, disk: Disk, loop: Path
    ) -> None:
        publish(store, disk, physical_device=number(loop))
        wait_for_state(store, disk, {b"4"}, 10)
        publish(store, disk, physical_device=b"7:ff")
        until(lambda: linux.log, "a line of its log")
        assert "not supported" in linux.log[0]
        assert opened(linux).what == number(loop)

    def test_it_lets_the_device_go(self, linux: LinuxDriver, store: Connection, disk: Disk, loop: Path) -> None:
        publish(store, disk, physical_device=number(loop))
        wait_for_state(store, disk, {b"4"}, 10)
        close_disk(store, disk)
        wait_for_state(store, disk, {b"6"}, 10)
        assert linux.open_count() == 0

    def test_it_leaves_no_node_below_dev(self, linux: LinuxDriver, store: Connection, disk: Disk, loop: Path) -> None:
        publish(store, disk, physical_device=number(loop))
        wait_for_state(store, disk, {b"4"}, 10)
        assert list(Path("/dev").glob(".vbdkit-*")) == []


RECORDING = Path(__file__).with_name("blkback.txt")
# What the toolstack and the script wrote, not the driver.
GIVEN = {
    *("bootable", "dev", "device-type", "discard-enable", "frontend", "frontend-id", "hotplug-status", "mode", "node"),
    *("online", "params", "physical-device", "physical-device-path", "removable", "script", "specification", "type"),
}


def recorded(moment: str) -> dict[str, str]:
    """The nodes that the real blkback had written at a moment."""
    section = RECORDING.read_text().partition(f"[{moment}]\n")[2].partition("\n[")[0]
    lines = [line.partition(" = ") for line in section.strip().splitlines()]
    assert lines
    return {name: value for name, _, value in lines if name not in GIVEN}


def written(store: Connection, disk: Disk) -> dict[str, str]:
    """The nodes that the model has written."""
    names = store.list(disk.backend)
    values = store.read_many([disk.backend + b"/" + name for name in names])
    nodes = {name.decode(): (value or b"").decode() for name, value in zip(names, values, strict=True)}
    return {name: value for name, value in nodes.items() if name not in GIVEN}


class TestBesideTheRealBlkback:
    """Node by node as in the rig's dom0 (blkback.txt), with the same disk: a file of 16 MB, a loop device."""

    @pytest.fixture
    def device(self, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
        made: list[str] = []

        def make(mode: str) -> Path:
            file = make_image(tmp_path / f"{mode}.img", size=16 << 20)
            made.append(losetup("--find", "--show", *(["--read-only"] if mode == "r" else []), str(file)))
            return Path(made[-1])

        need_loop_devices()
        yield make
        for name in made:
            losetup("-d", name)

    @pytest.mark.parametrize("mode", ["w", "r"])
    def test_from_waiting_to_closed(
        self, environ: Environ, store: Connection, device: Callable[[str], Path], mode: str
    ) -> None:
        # xl asks for no discard of a disk that cannot be written.
        disk = Disk(5, b"/tmp/disk.img", b"/etc/xen/scripts/block", mode=mode.encode())
        with LinuxDriver(environ):
            add_disk(store, disk)
            publish(store, disk, discard_enable=b"1" if mode == "w" else b"0")
            wait_for_state(store, disk, {b"2"}, 10)
            assert written(store, disk) == recorded(f"{mode} InitWait")
            publish(store, disk, physical_device=number(device(mode)))
            wait_for_state(store, disk, {b"4"}, 10)
            assert written(store, disk) == recorded(f"{mode} Connected")
            close_disk(store, disk)
            wait_for_state(store, disk, {b"6"}, 10)
            assert written(store, disk) == recorded(f"{mode} Closed")

    def test_a_device_that_cannot_be_opened(self, linux: LinuxDriver, store: Connection, disk: Disk) -> None:
        need_loop_devices()
        publish(store, disk, physical_device=b"ff:fffff")
        wait_for_state(store, disk, {b"5"}, 10)
        assert written(store, disk) == recorded("unopenable Closing")
        until(lambda: store.exists(ERROR_NODE), "the error")
        error = store.read(ERROR_NODE).decode()
        # The kernel's number is of its own look-up, the model's of open(2); the words are blkback's.
        assert error.partition(" ")[2] == recorded("unopenable error")["error"].partition(" ")[2]


class TestNetbsd:
    @pytest.fixture
    def netbsd(self, environ: Environ, store: Connection, disk: Disk) -> Iterator[NetbsdDriver]:
        """A running xbdback and a disk that waits for its script."""
        with NetbsdDriver(environ) as driver:
            add_disk(store, disk)
            wait_for_state(store, disk, {b"2"}, 10)
            yield driver

    def test_it_opens_a_decimal_number(self, netbsd: NetbsdDriver, store: Connection, disk: Disk, loop: Path) -> None:
        publish(store, disk, physical_device=b"%d" % loop.stat().st_rdev)
        wait_for_state(store, disk, {b"4"}, 10)
        assert opened(netbsd).read(3, 1) == b"\3" * 512
        told = written(store, disk)
        assert told == {
            "state": "4",
            "sectors": "8",
            "info": "0",
            "sector-size": "512",
            "feature-flush-cache": "1",
        }

    @pytest.mark.parametrize("value", [b"7:0", b"/dev/loop0", b"", b"-1"])
    def test_anything_else_it_passes_over_in_silence(
        self, netbsd: NetbsdDriver, store: Connection, disk: Disk, value: bytes
    ) -> None:
        publish(store, disk, physical_device=value)
        until(lambda: netbsd.log, "a line of its log")
        assert written(store, disk) == {"state": "2"}
        assert netbsd.open_count() == 0

    def test_it_opens_a_device_once_only(self, netbsd: NetbsdDriver, store: Connection, disk: Disk, loop: Path) -> None:
        second = Disk(5, disk.params, disk.script, devid=51728)
        publish(store, disk, physical_device=b"%d" % loop.stat().st_rdev)
        wait_for_state(store, disk, {b"4"}, 10)
        add_disk(store, second)
        wait_for_state(store, second, {b"2"}, 10)
        publish(store, second, physical_device=b"%d" % loop.stat().st_rdev)
        until(lambda: netbsd.log, "a line of its log")
        assert "busy" in netbsd.log[0]
        assert written(store, second) == {"state": "2"}

    @pytest.mark.parametrize(("mode", "writable"), [(b"w", True), (b"w!", True), (b"rw", False), (b"r", False)])
    def test_only_the_first_letter_of_the_mode_counts(
        self, environ: Environ, store: Connection, disk: Disk, loop: Path, mode: bytes, writable: bool
    ) -> None:
        with NetbsdDriver(environ) as driver:
            add_disk(store, Disk(5, disk.params, disk.script, mode=mode))
            publish(store, disk, physical_device=b"%d" % loop.stat().st_rdev)
            wait_for_state(store, disk, {b"4"}, 10)
            assert opened(driver).writable is writable


class TestFreebsd:
    def test_it_opens_a_plain_file_by_its_path(self, freebsd: FreebsdDriver, store: Connection, disk: Disk) -> None:
        publish(store, disk, physical_device_path=disk.params)
        wait_for_state(store, disk, {b"4"}, 10)
        assert opened(freebsd).read(0, 1) == b"\0" * 512
        assert opened(freebsd).read(7, 4) == b"\7" * 512

    def test_a_number_does_not_wake_it(self, freebsd: FreebsdDriver, store: Connection, disk: Disk) -> None:
        publish(store, disk, physical_device=b"7:0")
        with pytest.raises(Failure):
            wait_for_state(store, disk, {b"4"}, 0.3)

    def test_what_it_cannot_open_it_says_and_goes_offline(
        self, freebsd: FreebsdDriver, store: Connection, disk: Disk, tmp_path: Path
    ) -> None:
        publish(store, disk, physical_device_path=os.fsencode(tmp_path))
        wait_for_state(store, disk, {b"5", b"6"}, 10)
        status, online, error = store.read_many(
            [disk.backend + b"/" + name for name in (b"hotplug-status", b"online", b"hotplug-error")]
        )
        assert (status, online) == (b"error", b"0")
        assert error

    def test_it_lets_the_file_go_when_the_toolstack_deletes_the_nodes(
        self, freebsd: FreebsdDriver, store: Connection, disk: Disk
    ) -> None:
        publish(store, disk, physical_device_path=disk.params)
        wait_for_state(store, disk, {b"4"}, 10)
        remove_disk(store, disk)
        until(lambda: freebsd.open_count() == 0, "it is closed")
