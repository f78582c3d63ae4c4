"""Whose a script's disk is: what nobody else takes back, and what it must not take back from another disk."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.host import Host
from tests.images import losetup
from tests.shell.conftest import WAIT, Scripts
from tests.waiting import until
from vbdkit.datapaths import load
from vbdkit.engine.leftovers import KEPT, Collection
from vbdkit.engine.lock import Lock


class TestWhoseItIs:
    """What a script attached, that script alone can take back."""

    def test_gc_keeps_and_names_it(self, bash: Scripts, host: Host, devices: list[str]) -> None:
        disk = bash.disk(f"write_dev {devices[0]}")
        assert disk.add().status == 0
        disk.forget()
        with host.connect() as store:
            store.write(b"domid", b"0")
        environ = {os.fsencode(key): os.fsencode(value) for key, value in host.environment().items()}
        [item] = Collection(load, environ, "", os.fsencode(host.run_dir), os.fsencode(host.lock_dir))
        assert item.outcome == KEPT
        assert f"{devices[0]} was attached by {host.script}, which alone can take it back" in item.note
        assert bash.records() == ["vbd-5-51712"]

    def test_block_remove_lets_go_of_the_record_only(self, bash: Scripts, host: Host, image: Path) -> None:
        block, loop = host.script, losetup("--find", "--show", str(image))
        disk = bash.disk(f"write_dev {loop}")
        assert disk.add().status == 0
        host.script = block
        try:
            assert disk.remove().status == 0
            assert bash.records() == []
            assert losetup("--list", "--noheadings", "--output", "BACK-FILE", loop) == str(image)
        finally:
            losetup("-d", loop)


class TestWhatAnotherDiskHas:
    """The toolstack has a script take back a disk that it refused; the guest that has the same target keeps it."""

    BODY = """
    case $command in
      add) [ ! -e 'SESSION' ] || fatal "already opened"; touch 'SESSION'; write_dev DEVICE ;;
      remove) rm 'SESSION' ;;
    esac"""

    def script(self, scripts: Scripts, device: str) -> tuple[str, Path]:
        session = scripts.host.directory / "session"
        return self.BODY.replace("SESSION", str(session)).replace("DEVICE", device), session

    def test_it_stays_at_the_remove_of_one_that_was_refused(self, scripts: Scripts, devices: list[str]) -> None:
        body, session = self.script(scripts, devices[0])
        first, second = scripts.disk(body, 5), scripts.disk(body, 6)
        assert first.add().status == 0
        assert second.add().error == "already opened"
        for _ in range(2):
            assert second.remove().status == 0
            assert session.exists()
        assert first.remove().status == 0
        assert not session.exists()
        assert first.remove().status != 0, "nobody has it now: the script is asked, as ever"

    @pytest.mark.parametrize("whole", [False, True])
    def test_not_where_the_other_guest_is_gone(self, bash: Scripts, devices: list[str], whole: bool) -> None:
        body, session = self.script(bash, devices[0])
        first, second = bash.disk(body, 5), bash.disk(body, 6)
        assert first.add().status == 0
        with bash.host.connect() as store:
            store.remove_many([b"/local/domain/5", *([first.path] if whole else [])])
        assert second.remove().status == 0
        assert not session.exists()

    def test_it_stays_for_a_guest_that_lives_though_its_nodes_are_gone(self, bash: Scripts, devices: list[str]) -> None:
        """Its remove was skipped, or the store came back empty."""
        body, session = self.script(bash, devices[0])
        first, second = bash.disk(body, 5), bash.disk(body, 6)
        assert first.add().status == 0
        first.forget()
        assert second.remove().status == 0
        assert session.exists()

    @pytest.mark.parametrize("other", ["target", "script"])
    def test_not_where_it_is_another_target_or_script(self, bash: Scripts, devices: list[str], other: str) -> None:
        body, session = self.script(bash, devices[0])
        assert bash.disk(body, 5).add().status == 0
        second = bash.disk(body, 6, "another target" if other == "target" else "the target")
        if other == "script":
            bash.write(body, "block-other")
        assert second.remove().status == 0
        assert not session.exists()

    def test_what_was_made_beside_it_is_taken_back(self, bash: Scripts, devices: list[str]) -> None:
        """A device of its own, which write_dev refused for what lies under it."""
        made = bash.host.directory / "made"
        loop = losetup("--find", "--show", devices[0])
        try:
            body = f"[ $command = remove ] || write_dev DEVICE; [ $command = add ] || touch '{made}'"
            first = bash.disk(body.replace("DEVICE", devices[0]), 5)
            assert first.add().status == 0
            second = bash.disk(body.replace("DEVICE", loop), 6)
            assert second.add().outcome == b"busy"
            assert bash.records() == ["vbd-5-51712", "vbd-6-51712"]
            assert second.remove().status == 0
            assert made.exists()
            assert bash.records() == ["vbd-5-51712"]
        finally:
            losetup("-d", loop)

    def test_a_disk_that_was_published_without_a_record_is_taken_back(self, bash: Scripts, devices: list[str]) -> None:
        """By Xen's own library, before ours was installed; both only read."""
        body, session = self.script(bash, devices[0])
        assert bash.disk(body, 5).add().status == 0
        second = bash.disk(body, 6)
        second.write(**{"physical-device": b"7:1", "hotplug-status": b"connected"})
        assert second.remove().status == 0
        assert not session.exists()

    def test_it_waits_for_a_run_that_is_at_work(self, bash: Scripts, devices: list[str]) -> None:
        body, session = self.script(bash, devices[0])
        first, second = bash.disk(body, 5), bash.disk(body, 6)
        with Lock(os.fsencode(bash.host.lock_dir), time.monotonic() + WAIT):
            adding = first.start("add")
            until(lambda: "vbd-5-51712" in bash.records(), "its record")
            removing = second.start("remove")
            time.sleep(0.3)
            assert removing.poll() is None
        for process in (adding, removing):
            process.communicate(timeout=WAIT)
            assert process.returncode == 0
        assert session.exists()

    def test_it_waits_for_an_add_that_has_no_device_yet(self, scripts: Scripts, devices: list[str]) -> None:
        """Two guests are started at once; the one that fails is cleaned up after while the other one logs in still."""
        body, session = self.script(scripts, devices[0])
        go = scripts.host.directory / "go"
        body = body.replace("; write_dev", f"; while [ ! -e '{go}' ]; do sleep 0.1; done; write_dev")
        first, second = scripts.disk(body, 5), scripts.disk(body, 6)
        adding = first.start("add")
        until(session.exists, "the first one's login")
        assert second.add().error == "already opened"
        removing = second.start("remove")
        with pytest.raises(subprocess.TimeoutExpired):
            removing.communicate(timeout=0.5)
        go.touch()
        for process in (adding, removing):
            process.communicate(timeout=WAIT)
            assert process.returncode == 0
        assert session.exists()
        until(lambda: scripts.records() == ["vbd-5-51712"], "the end of the conversations")

    def test_an_add_that_stays_is_named(self, host: Host, devices: list[str]) -> None:
        host.time_limit = 2.0
        bash = Scripts(host)
        first, second = [bash.disk("[ $command = remove ] || exec sleep 600", domid) for domid in (5, 6)]
        adding = first.start("add")
        try:
            until(lambda: list(host.run_dir.glob(".sh-*/add")) != [], "what it says of itself")
            done = second.remove()
            assert done.status == 1
            assert "another disk was attached from the same target" in done.error
        finally:
            adding.kill()
            adding.communicate(timeout=WAIT)
