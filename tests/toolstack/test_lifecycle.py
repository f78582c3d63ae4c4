"""A disk's way into a guest and out again, with the real script on real stores; a model driver (C3-C6, I1-I5)."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import image, make_image
from tests.toolstack.xen import Xen, everything, make_xen, oxenstored, xen
from vbdkit.protocol.failure import Failure
from vbdkit.toolstack.lifecycle import Unfinished
from vbdkit.toolstack.nodes import disks_of, find_disk, wait_for_state

__all__ = ["image", "oxenstored", "xen"]

BACKEND = "/local/domain/0/backend/vbd/5/51712"


def first_bytes(xen: Xen, domid: int = 5, devid: int = 51712) -> bytes:
    opened = xen.driver.opened(domid, devid)
    assert opened is not None
    return opened.read(0, 1)[:12]


def connected(xen: Xen, devid: int = 51712) -> None:
    """Wait for the model driver, which opens the device beside us."""
    disk = find_disk(xen.store, 5, devid)
    assert disk is not None
    wait_for_state(xen.store, disk, {b"4"}, 10)


@pytest.fixture(params=["script", "no script"])
def either(request: pytest.FixtureRequest, xen: Xen) -> Xen:
    """By the script in a process of its own, and in this one (G3)."""
    xen.settings(no_script=request.param == "no script")
    return xen


class TestAttach:
    def test_a_guest_gets_a_file_and_gives_it_back(self, either: Xen, image: Path) -> None:
        before = everything(either.store)
        attached = either.attach(f"{image},,xvda")
        assert attached.device is not None
        assert attached.device.startswith(b"/dev/loop")
        connected(either)
        assert first_bytes(either) == b"first sector"
        assert list(either.host.run_dir.iterdir()) == [either.host.run_dir / "vbd-5-51712"]
        assert either.detach() == []
        assert either.left() == []
        assert everything(either.store) == before

    def test_a_read_only_disk_cannot_be_written(self, either: Xen, image: Path) -> None:
        either.attach(f"{image},,xvda,r")
        connected(either)
        opened = either.driver.opened(5, 51712)
        assert opened is not None
        with pytest.raises(OSError, match="Read-only"):
            opened.write(0, b"x" * 512)
        assert either.read(BACKEND + "/mode") == b"r"
        assert either.read(BACKEND + "/discard-enable") == b"0"
        either.detach()
        assert either.left() == []

    def test_a_second_guest_is_refused_and_nothing_of_it_stays(self, either: Xen, image: Path) -> None:
        either.attach(f"{image},,xvda")
        connected(either)
        before = everything(either.store)
        with pytest.raises(Failure, match=r"is in use by guest 5 \(web\) as its disk xvda, read-write \(through"):
            either.attach(f"{image},,xvdb", domid=6)
        assert [path for path, _ in everything(either.store)] == [path for path, _ in before]
        assert first_bytes(either) == b"first sector"
        either.detach()
        assert either.left() == []

    def test_the_same_disk_twice_is_refused_before_anything_is_touched(self, either: Xen, image: Path) -> None:
        either.attach(f"{image},,xvda")
        connected(either)
        before = everything(either.store)
        with pytest.raises(Failure, match="guest 5 has a disk xvda already"):
            either.attach(f"{make_image(image.parent / 'other')},,xvda")
        assert everything(either.store) == before
        either.detach()

    def test_a_guest_that_is_not_there_gets_nothing(self, either: Xen, image: Path) -> None:
        before = everything(either.store)
        with pytest.raises(Failure, match="there is no guest 7"):
            either.attach(f"{image},,xvda", domid=7)
        assert everything(either.store) == before

    def test_a_target_that_is_not_there_is_said_before_a_node_is_written(self, either: Xen, tmp_path: Path) -> None:
        before = everything(either.store)
        with pytest.raises(Failure, match=r"nothing\.img does not exist"):
            either.attach(f"{tmp_path}/nothing.img,,xvda")
        assert everything(either.store) == before

    def test_several_disks_are_kept_apart(self, either: Xen, image: Path) -> None:
        other = make_image(image.parent / "b c;d=e.img", b"other disk..")
        either.attach(f"{image},,xvda")
        either.attach(f"vdev=xvdb,target={other}")
        connected(either)
        connected(either, 51728)
        assert [(disk.dev, disk.params) for disk in disks_of(either.store, 5)] == [
            (b"xvda", os.fsencode(image)),
            (b"xvdb", os.fsencode(other)),
        ]
        either.detach()
        assert [disk.dev for disk in disks_of(either.store, 5)] == [b"xvdb"]
        either.detach(51728)
        assert either.left() == []


class TestByScript:
    """What only a script in a process of its own can do."""

    def test_the_reason_is_the_scripts_own(self, xen: Xen, image: Path) -> None:
        xen.script("block-no", "#!/bin/sh\n[ $1 = remove ] || { echo no such thing >&2; exit 3; }\n")
        with pytest.raises(Failure, match=r"block-no add ended with status 3: no such thing"):
            xen.attach(f"vdev=xvda,script=block-no,target={image}")
        assert xen.left() == []

    def test_one_that_hangs_is_killed_at_the_limit_and_taken_back(self, xen: Xen, image: Path, tmp_path: Path) -> None:
        calls = tmp_path / "calls"
        xen.script("block-slow", f"#!/bin/sh\necho $1 >>{calls}\n[ $1 = remove ] || exec sleep 60\n")
        xen.settings(limits={"script": 0.5})
        with pytest.raises(Failure, match=r"block-slow add was not done after 0.5 s and was killed"):
            xen.attach(f"vdev=xvda,script=block-slow,target={image}")
        assert calls.read_text() == "add\nremove\n"
        assert xen.left() == []

    def test_one_that_ends_well_without_a_device_is_a_failure(self, xen: Xen, image: Path) -> None:
        xen.script("block-idle", "#!/bin/sh\nexit 0\n")
        with pytest.raises(Failure, match="ended well, but wrote neither physical-device nor"):
            xen.attach(f"vdev=xvda,script=block-idle,target={image}")
        assert xen.left() == []

    def test_one_that_is_not_there_is_a_failure(self, xen: Xen, image: Path) -> None:
        with pytest.raises(Failure, match=r"block-none cannot be started: No such file"):
            xen.attach(f"vdev=xvda,script=block-none,target={image}")
        assert xen.nodes() == []

    def test_its_remove_that_fails_after_a_failed_add_is_said(self, xen: Xen, image: Path) -> None:
        xen.script("block-bad", "#!/bin/sh\necho cannot $1 >&2\nexit 1\n")
        with pytest.raises(Unfinished, match="block-bad add ended with status 1: cannot add") as told:
            xen.attach(f"vdev=xvda,script=block-bad,target={image}")
        assert [line.partition("block-bad ")[2] for line in told.value.way_out] == [
            "remove ended with status 1: cannot remove"
        ]
        assert xen.nodes() == []

    def test_a_target_with_a_script_is_the_scripts_business(self, xen: Xen, image: Path) -> None:
        xen.script("block-lun", f'#!/bin/sh\n[ "$1" = remove ] || xenstore_was_here\nexec {xen.host.script} "$@"\n')
        with pytest.raises(Failure, match=r"iqn.2001-04.com.example:a,portal=b does not exist"):
            xen.attach("vdev=xvda,script=block-lun,target=iqn.2001-04.com.example:a,portal=b")
        assert xen.left() == []

    def test_ctrl_c_takes_all_back(self, xen: Xen, image: Path) -> None:
        xen.script(
            "block-wait",
            "#!/bin/sh\n[ $1 = remove ] && exit\nsleep 1; kill -INT $PPID; exec sleep 60\n",
        )
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                xen.attach(f"vdev=xvda,script=block-wait,target={image}")
        finally:
            signal.signal(signal.SIGINT, before)
        assert xen.left() == []


class TestWithoutAScript:
    def test_nothing_is_started(self, xen: Xen, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fork(*_: object, **__: object) -> None:
            raise AssertionError("a process was started")

        monkeypatch.setattr(subprocess, "Popen", fork)
        xen.host.script.unlink()
        xen.settings(no_script=True)
        xen.attach(f"{image},,xvda")
        connected(xen)
        xen.detach()
        assert xen.left() == []

    def test_the_script_takes_over_what_was_attached_without_it(self, xen: Xen, image: Path) -> None:
        # As when xl detaches: it knows of no other way.
        xen.settings(no_script=True)
        xen.attach(f"{image},,xvda")
        connected(xen)
        disk = find_disk(xen.store, 5, 51712)
        assert disk is not None
        assert disk.way == b"direct"
        xen.store.remove(disk.libxl + b"/vbdkit-way")
        xen.detach()
        assert xen.left() == []

    def test_a_custom_script_is_still_started(self, xen: Xen, image: Path, tmp_path: Path) -> None:
        xen.settings(no_script=True)
        xen.script("block-own", f'#!/bin/sh\necho $1 >>{tmp_path}/calls\nexec {xen.host.script} "$@"\n')
        xen.attach(f"vdev=xvda,script=block-own,target={image}")
        connected(xen)
        xen.detach()
        assert (tmp_path / "calls").read_text() == "add\nremove\n"
        assert xen.left() == []

    def test_all_three_nodes_and_the_record_are_those_of_the_script(self, xen: Xen, image: Path) -> None:
        seen = []
        for no_script in (False, True):
            xen.settings(no_script=no_script)
            xen.attach(f"{image},,xvda")
            connected(xen)
            record = (xen.host.run_dir / "vbd-5-51712").read_text()
            nodes = [(path, value) for path, value in everything(xen.store) if not path.endswith(b"/vbdkit-way")]
            loop = xen.read(BACKEND + "/node")
            assert loop is not None
            number = xen.read(BACKEND + "/physical-device")
            known = {loop: b"LOOP", number: b"NUMBER"}
            seen.append(([(path, known.get(value, value)) for path, value in nodes], _without(record, loop)))
            xen.detach()
        assert seen[0] == seen[1]


def _without(record: str, loop: bytes) -> list[str]:
    return [line for line in record.splitlines() if line != f"loop {loop.decode().removeprefix('/dev/loop')}"]


class TestReady:
    def test_a_backend_that_never_gets_ready_is_waited_for_as_long_as_said(self, xen: Xen, image: Path) -> None:
        xen.driver.__exit__(None, None, None)
        xen.settings(limits={"ready": 0.3})
        try:
            with pytest.raises(Unfinished, match=r"state is 1 after 0.3 s; the toolstack waits for 2") as told:
                xen.attach(f"{image},,xvda")
            way_out = "no backend driver has taken it up; is one loaded (Linux: xen-blkback) in "
            assert told.value.way_out == (way_out + "this domain?",)
            assert xen.nodes() == []
            xen.host.domain(3, "storage")
            with pytest.raises(Unfinished, match=r"state is 1 after 0.3 s") as told:
                xen.attach("vdev=xvda,backend=storage,target=/dev/vg/there")
            assert told.value.way_out == (way_out + "domain 3 (storage), and is that up?",)
            assert xen.nodes() == []
        finally:
            xen.driver = type(xen.driver)(xen.stack.environ)
            xen.driver.__enter__()


class TestDetach:
    @pytest.fixture
    def stubborn(self, xen: Xen, image: Path) -> Xen:
        """A guest that does not let go: its backend stays where it is."""
        xen.attach(f"{image},,xvda")
        connected(xen)
        xen.driver.__exit__(None, None, None)
        xen.settings(limits={"close": 0.3})
        return xen

    def test_a_guest_that_keeps_its_disk_keeps_it(self, stubborn: Xen) -> None:
        with pytest.raises(Unfinished, match=r"guest 5 did not give its disk xvda back within 0.3 s") as told:
            stubborn.detach()
        assert "--force" in told.value.way_out[0]
        assert stubborn.read(BACKEND + "/physical-device")
        assert stubborn.read("/libxl/5/device/vbd/51712") is not None
        self._start_again(stubborn)
        assert stubborn.detach() == []
        assert stubborn.left() == []

    def test_unless_it_is_taken_by_force_which_is_said(self, stubborn: Xen) -> None:
        problems = stubborn.detach(force=True)
        assert problems[0] == "guest 5 did not give its disk xvda back within 0.3 s"
        assert problems[1:] == [f"{BACKEND} was not closed within 0.3 s, with its frontend gone"]
        assert stubborn.nodes() == []
        self._start_again(stubborn)
        assert stubborn.left() == []

    def _start_again(self, xen: Xen) -> None:
        xen.driver = type(xen.driver)(xen.stack.environ)
        xen.driver.__enter__()

    def test_a_backend_that_was_still_connecting_is_asked_again(self, xen: Xen, image: Path) -> None:
        # The driver overwrites the toolstack's 5 with the 4 that it was about to write.
        xen.attach(f"{image},,xvda")
        connected(xen)
        xen.driver.__exit__(None, None, None)
        pid = os.fork()
        if pid == 0:
            os._exit(_answer(xen, (b"5", b"4"), (b"5", b"6")))
        xen.detach()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        self._start_again(xen)
        assert xen.left() == []

    def test_a_backend_directory_that_goes_meanwhile_is_closed(self, xen: Xen, image: Path) -> None:
        xen.attach(f"{image},,xvda")
        connected(xen)
        xen.driver.__exit__(None, None, None)
        pid = os.fork()
        if pid == 0:
            os._exit(_answer(xen, (b"5", None)))
        assert xen.detach() == []
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        self._start_again(xen)
        assert xen.left() == []

    def test_a_script_that_fails_leaves_the_nodes_to_try_again(self, xen: Xen, image: Path, tmp_path: Path) -> None:
        xen.script(
            "block-busy",
            f"#!/bin/sh\n[ $1 = add ] || [ -e {tmp_path}/ok ] || {{ echo later >&2; exit 1; }}\n"
            f'exec {xen.host.script} "$@"\n',
        )
        xen.attach(f"vdev=xvda,script=block-busy,target={image}")
        connected(xen)
        with pytest.raises(Unfinished, match=r"block-busy remove ended with status 1: later"):
            xen.detach()
        assert xen.read(BACKEND + "/params")
        (tmp_path / "ok").touch()
        assert xen.detach() == []
        assert xen.left() == []

    def test_or_is_passed_over_by_force_which_is_said(self, xen: Xen, image: Path) -> None:
        xen.script("block-bad", f'#!/bin/sh\n[ $1 = add ] || exit 4\nexec {xen.host.script} "$@"\n')
        xen.attach(f"vdev=xvda,script=block-bad,target={image}")
        connected(xen)
        (said,) = xen.detach(force=True)
        assert said.endswith("block-bad remove ended with status 4 and gave no reason")
        assert xen.nodes() == []

    def test_what_is_gone_already_is_released_all_the_same(self, either: Xen, image: Path) -> None:
        either.attach(f"{image},,xvda")
        connected(either)
        either.store.remove(BACKEND.encode())
        either.detach()
        assert either.left() == []

    def test_a_disk_of_another_kind_is_left_to_xl(self, xen: Xen) -> None:
        libxl = b"/libxl/5/device/vbd/51712"
        xen.store.write_many(
            [(libxl + b"/backend", b"/local/domain/0/backend/qdisk/5/51712"), (libxl + b"/dev", b"xvda")]
        )
        with pytest.raises(Failure, match="is served by qdisk, not by a block script; xl block-detach 5 xvda"):
            xen.detach()
        assert xen.read("/libxl/5/device/vbd/51712/backend")


class TestFreebsd:
    """Another system's convention (C4, O4): the script's arguments, and which node wakes the driver."""

    @pytest.fixture(params=["script", "no script"])
    def bsd(self, request: pytest.FixtureRequest, tmp_path: Path, store_socket: Path) -> Iterator[Xen]:
        with make_xen(tmp_path, store_socket, "freebsd") as made:
            made.settings(no_script=request.param == "no script")
            yield made

    def test_the_file_itself_is_the_device(self, bsd: Xen, image: Path) -> None:
        attached = bsd.attach(f"{image},,xvda")
        connected(bsd)
        assert attached.device == os.fsencode(image)
        assert first_bytes(bsd) == b"first sector"
        with pytest.raises(Failure, match=r"in use by guest 5 \(web\) as its disk xvda"):
            bsd.attach(f"{image},,xvda", domid=6)
        bsd.detach()
        assert bsd.left() == []


class TestDriverDomain:
    """Another domain serves the disk: its own daemon runs the script (C.2, C.4 of libxl)."""

    @pytest.fixture
    def served(self, xen: Xen) -> Xen:
        """Domain 3 has a backend driver; nobody runs scripts there but the test."""
        xen.host.domain(3, "storage")
        driver = type(xen.driver)(xen.stack.environ, domid=3)
        xen.driver.__exit__(None, None, None)
        xen.driver = driver
        driver.__enter__()
        return xen

    def test_its_outcome_is_the_outcome(self, served: Xen, tmp_path: Path) -> None:
        backend = "/local/domain/3/backend/vbd/5/51712"
        pid = os.fork()
        if pid == 0:
            os._exit(_play_devd(served, backend, ("hotplug-error", "no such volume"), ("hotplug-status", "error")))
        served.settings(limits={"close": 0.5})
        with pytest.raises(Unfinished, match="no such volume") as told:
            served.attach("vdev=xvda,backend=storage,target=/dev/vg/there")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert "domain 3 has not taken" in told.value.way_out[0]
        assert served.nodes() == []

    def test_and_so_is_its_success(self, served: Xen) -> None:
        backend = "/local/domain/3/backend/vbd/5/51712"
        served.settings(limits={"close": 0.5})
        pid = os.fork()
        if pid == 0:
            os._exit(_play_devd(served, backend, ("physical-device-path", "/dev/x"), ("hotplug-status", "connected")))
        attached = served.attach("vdev=xvda,backend=3,target=/dev/vg/there")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert (attached.device, attached.run, attached.notes) == (b"/dev/x", None, ())
        assert served.read("/local/domain/5/device/vbd/51712/backend-id") == b"3"
        (said,) = served.detach()
        assert "domain 3 has not taken" in said
        assert served.nodes() == [path for path in served.nodes() if path.startswith(b"/local/domain/3/")]

    def test_one_that_says_nothing_is_said(self, served: Xen) -> None:
        served.settings(limits={"script": 0.3, "close": 0.3})
        attached = served.attach("vdev=xvda,backend=storage,target=/dev/vg/there")
        (note,) = attached.notes
        assert note == "domain 3, which serves the disk, has not said within 0.3 s whether it works"


def _answer(xen: Xen, *turns: tuple[bytes, bytes | None]) -> int:
    """In a process of its own, in a driver's place: wait for a state, then write another (None: all is removed)."""
    node = f"{BACKEND}/state".encode()
    with xen.host.connect(20) as store:
        store.watch(node, b"x")
        for wanted, answer in turns:
            while store.read_many([node])[0] != wanted:
                if store.next_event() is None:
                    return 1
            if answer is None:
                store.remove(BACKEND.encode())
            else:
                store.write(node, answer)
    return 0


def _play_devd(xen: Xen, backend: str, *nodes: tuple[str, str]) -> int:
    """In a process of its own: wait for the backend to be ready, then write what a script would."""
    with xen.host.connect(20) as store:
        store.watch(backend.encode(), b"x")
        while store.read_many([backend.encode() + b"/state"])[0] != b"2":
            if store.next_event() is None:
                return 1
        store.write_many([(f"{backend}/{name}".encode(), value.encode()) for name, value in nodes])
    return 0
