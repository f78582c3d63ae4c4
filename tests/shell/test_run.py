"""A script from its start to its end: what is published and kept, how failures are told, what is left (S1, S4)."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.host import Disk, Host
from tests.images import losetup
from tests.platform.models.netbsd import Netbsd
from tests.shell.conftest import SHELLS, WAIT, Scripts
from tests.stores import realstore
from tests.waiting import until
from vbdkit.engine.lock import Lock
from vbdkit.scripts.common import clean, make
from vbdkit.toolstack.netbsd_host import take_away


def lock_is_free(host: Host, name: bytes = b"block") -> bool:
    path = os.fsencode(host.lock_dir) + b"/" + name
    if not os.path.exists(path):
        return True
    with Lock(os.fsencode(host.lock_dir), time.monotonic() + WAIT, name):
        return True


class TestWriteDev:
    def test_a_device_becomes_a_disk_and_is_taken_back(self, scripts: Scripts, devices: list[str]) -> None:
        disk = scripts.disk(f'[ "$command" = remove ] || write_dev {devices[0]}')
        done = disk.add()
        assert (done.status, done.outcome, done.error) == (0, b"connected", ""), done.output
        number = os.stat(devices[0]).st_rdev
        assert done.nodes["physical-device"] == b"%x:%x" % (os.major(number), os.minor(number))
        assert done.nodes["physical-device-path"].decode() == devices[0]
        [record] = scripts.records()
        assert record == "vbd-5-51712"
        text = (scripts.host.run_dir / record).read_text()
        assert "datapath shell\n" in text
        assert f"script {scripts.host.script}\n" in text
        assert f"device {devices[0]}\n" in text
        disk.write(state=b"6", online=b"0")
        done = disk.remove()
        assert done.status == 0
        assert {"physical-device", "physical-device-path", "hotplug-status"} & set(done.nodes) == set()
        until(lambda: scripts.records() == [], "the end of the record")

    def test_a_second_guest_is_refused_and_can_have_it_later(self, bash: Scripts, devices: list[str]) -> None:
        body = f'[ "$command" = remove ] || write_dev {devices[0]}'
        first, second = bash.disk(body, 5), bash.disk(body, 6)
        assert first.add().status == 0
        done = second.add()
        assert (done.status, done.outcome) == (1, b"busy")
        assert done.error.startswith(f"{devices[0]} is in use by guest 5 (guest5) as its disk xvda, read-write")
        assert "physical-device" not in done.nodes
        assert bash.records() == ["vbd-5-51712"]
        assert second.remove().status == 0
        assert first.remove().status == 0
        assert second.add().outcome == b"connected"

    def test_whoever_asks_first_is_seen_by_the_block_script_too(
        self, bash: Scripts, host: Host, devices: list[str]
    ) -> None:
        block = host.script
        disk = bash.disk(f"write_dev {devices[0]}", 5)
        assert disk.add().status == 0
        host.script = block
        done = host.disk(6, devices[0]).add()
        assert (done.status, done.outcome) == (1, b"busy")

    def test_readers_share_and_the_mark_skips_the_check(self, bash: Scripts, devices: list[str]) -> None:
        for domid, mode, status in ((5, "r", 0), (6, "r", 0), (7, "w", 1), (8, "w!", 0)):
            assert bash.disk(f"write_dev {devices[0]}", domid, mode=mode).add().status == status

    @pytest.mark.parametrize(
        ("device", "sentence"),
        [
            ("/none/there", "/none/there does not exist"),
            ('""', "named no device"),
            ("/etc", "is a directory"),
            ("IMAGE", "is a plain file, not the block device that a script hands over"),
        ],
    )
    def test_what_is_no_device(self, bash: Scripts, image: Path, device: str, sentence: str) -> None:
        done = bash.disk(f"write_dev {device.replace('IMAGE', str(image))}\necho went on >&2").add()
        assert (done.status, done.outcome) == (1, b"error")
        assert sentence in done.error
        assert "went on" not in done.output
        assert bash.records() == []

    def test_a_writer_gets_no_read_only_device(self, bash: Scripts, read_only_loop: str) -> None:
        assert "read-only device" in bash.disk(f"write_dev {read_only_loop}").add().error
        assert bash.disk(f"write_dev {read_only_loop}", mode="r").add().status == 0

    def test_what_the_script_has_written_itself_stays_when_it_is_refused(
        self, bash: Scripts, devices: list[str]
    ) -> None:
        body = f'xenstore_write "$XENBUS_PATH/node" {devices[0]}; write_dev {devices[0]}'
        assert bash.disk(body, 5).add().status == 0
        done = bash.disk(body, 6).add()
        assert done.outcome == b"busy"
        assert done.nodes["node"].decode() == devices[0], "its remove needs it"

    def test_add_again_for_a_disk_that_the_guest_has(self, bash: Scripts, devices: list[str]) -> None:
        disk = bash.disk(f"write_dev {devices[0]}")
        assert disk.add().status == 0
        disk.write(state=b"4")
        assert disk.add().status == 0
        bash.write(f"write_dev {devices[1]}")
        done = disk.add()
        assert done.status == 1
        assert f"cannot get {devices[1]} in its place" in done.error
        assert done.nodes["physical-device-path"].decode() == devices[0]

    def test_another_device_while_the_driver_still_waits(self, bash: Scripts, devices: list[str]) -> None:
        disk = bash.disk(f"write_dev {devices[0]}")
        disk.add()
        bash.write(f"write_dev {devices[1]}")
        assert disk.add().nodes["physical-device-path"].decode() == devices[1]
        assert f"device {devices[1]}\n" in (bash.host.run_dir / "vbd-5-51712").read_text()

    def test_a_disk_that_the_toolstack_took_back_meanwhile(self, bash: Scripts, devices: list[str]) -> None:
        disk = bash.disk(f'{realstore("bin")}/xenstore-rm "$XENBUS_PATH"; write_dev {devices[0]}')
        done = disk.add()
        assert done.status == 1
        assert done.nodes == {}
        assert "there is no disk at" in done.output
        assert bash.records() == []

    def test_path_only_leaves_the_rest_to_the_toolstack(self, bash: Scripts, devices: list[str]) -> None:
        """G1."""
        disk = bash.disk(f"write_dev {devices[0]}")
        done = disk.run("add", extra={"VBDKIT_PUBLISH": "path"})
        assert done.status == 0
        assert done.nodes["physical-device-path"].decode() == devices[0]
        assert {"physical-device", "hotplug-status"} & set(done.nodes) == set()

    def test_a_loop_device_that_block_left_is_released(
        self, bash: Scripts, host: Host, image: Path, devices: list[str]
    ) -> None:
        disk = host.disk(5, image)
        assert disk.add().status == 0
        loop = disk.nodes()["node"].decode()
        bash.write(f"write_dev {devices[0]}")
        assert disk.add().status == 0
        assert losetup("--list", "--noheadings", "--output", "BACK-FILE", loop) != str(image)


def test_freebsds_way(tmp_path: Path, store_socket: Path, image: Path) -> None:
    """C4, O4: called with the path, a plain file is handed over as it is; the check is the same."""
    (tmp_path / "host").mkdir()
    scripts = Scripts(Host(tmp_path / "host", store_socket, system="freebsd"), SHELLS["dash"])
    first, second = [scripts.disk(f'[ "$command" = remove ] || write_dev {image}', domid) for domid in (5, 6)]
    done = first.add()
    assert (done.status, done.outcome) == (0, b"connected"), done.output
    assert done.nodes["physical-device-path"].decode() == str(image)
    assert "physical-device" not in done.nodes
    assert second.add().outcome == b"busy"
    assert first.remove().status == 0
    assert scripts.records() == []


def test_netbsds_way(tmp_path: Path, store_socket: Path) -> None:
    """C5, O5: called with a path and a state, a device is published as one decimal number."""
    (tmp_path / "host").mkdir()
    machine = Netbsd(tmp_path / "model")
    machine.disk("wd0", {"e": (2048, 4096)})
    device = machine.dev / "wd0e"
    scripts = Scripts(Host(tmp_path / "host", store_socket, "netbsd", settings=machine.settings), SHELLS["dash"])
    first, second = [scripts.disk(f'[ "$command" = remove ] || write_dev {device}', domid) for domid in (5, 6)]
    try:
        done = first.add()
        assert (done.status, done.outcome) == (0, b"connected"), done.output
        assert done.nodes["physical-device"] == b"%d" % os.stat(device).st_rdev
        assert done.nodes["physical-device-path"].decode() == str(device)
        done = second.add()
        assert (done.status, done.outcome) == (1, b"busy"), done.output
        assert f"{device} is in use by guest 5" in done.error
        assert first.remove().status == 0
        assert scripts.records() == []
    finally:
        take_away(machine.folder)


class TestFailures:
    def test_fatal_and_ebusy_in_their_own_words(self, scripts: Scripts) -> None:
        for verb, outcome in (("fatal", b"error"), ("ebusy", b"busy")):
            done = scripts.disk(f"{verb} the words 'of  a' \"script\n and more\"\necho went on >&2").add()
            assert (done.status, done.outcome, done.error) == (1, outcome, "the words of  a script and more")
            assert f"block-test: vbd-5-51712: {done.error}" in done.output
            assert "went on" not in done.output

    def test_a_tools_own_words(self, scripts: Scripts) -> None:
        """What nothing tests ends the script; Xen's library says "failed; error detected" then."""
        scripts.program("login", "#!/bin/sh\necho noise >&2\necho 'login: no such target' >&2\nexit 7\n")
        done = scripts.disk("login now\necho went on >&2").add()
        assert (done.status != 0, done.outcome) == (True, b"error")
        assert "login: no such target" in done.error
        assert "went on" not in done.output

    def test_words_that_come_in_pieces(self, bash: Scripts) -> None:
        bash.program("tool", '#!/bin/sh\nfor piece; do printf "$piece" >&2; sleep 0.1; done\nexit 1\n')
        pieces = r"'noise\ntool: ' 'a disk: no' ' luck' ': it is busy\n' '\n'"
        assert bash.disk(f"tool {pieces}").add().error.endswith("failed (tool: a disk: no luck: it is busy)")
        assert bash.disk("do_or_die tool 'never' ' ended'").add().error.endswith("(never ended)")

    def test_do_or_die(self, scripts: Scripts) -> None:
        scripts.program("login", "#!/bin/sh\n[ $# = 2 ] && echo 'login: no such target' >&2\nexit 7\n")
        assert scripts.disk("do_or_die login a b").add().error == "login a b failed (login: no such target)"
        assert scripts.disk("do_or_die login").add().error == "login failed (exit status 7)"

    def test_words_told_in_a_substitution_are_not_overwritten(self, scripts: Scripts) -> None:
        done = scripts.disk('dev=$(fatal "no luck with x")\necho went on >&2').add()
        assert (done.status, done.error) == (1, "no luck with x")
        assert "went on" not in done.output

    def test_an_exit_without_a_word(self, scripts: Scripts) -> None:
        done = scripts.disk("exit 3").add()
        assert (done.status, done.outcome, done.error) == (3, b"error", "block-test failed (exit status 3)")

    def test_success_after_a_failure_clears_it(self, bash: Scripts) -> None:
        disk = bash.disk("fatal x")
        disk.add()
        bash.write("success")
        done = disk.add()
        assert (done.status, done.outcome, done.error) == (0, b"connected", "")

    def test_a_failure_of_remove_keeps_the_record(self, bash: Scripts, devices: list[str]) -> None:
        disk = bash.disk(f'case $command in add) write_dev {devices[0]};; remove) fatal "still open";; esac')
        disk.add()
        done = disk.remove()
        assert (done.status, done.error) == (1, "still open")
        assert bash.records() == ["vbd-5-51712"]

    def test_a_killed_script_leaves_a_word_and_no_lock(self, bash: Scripts) -> None:
        ready = bash.host.directory / "ready"
        disk = bash.disk(f"claim_lock block; touch '{ready}'; exec sleep 600")
        process = disk.start("add")
        until(ready.exists, "the script")
        process.kill()
        process.communicate(timeout=WAIT)
        until(lambda: "hotplug-error" in disk.nodes(), "hotplug-error")
        assert disk.nodes()["hotplug-error"] == b"the script ended before the disk was attached"
        until(lambda: bash.records() == [], "the end of the conversation")
        until(lambda: lock_is_free(bash.host), "the lock")

    def test_no_store(self, bash: Scripts) -> None:
        disk = bash.disk("xenstore_read a")
        done = subprocess.run(
            [bash.host.script, "add"],
            env=bash.host.environment() | {"XENSTORED_PATH": "/none/socket", "XENBUS_PATH": disk.path.decode()},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert "connect to xenstore" in done.stderr

    def test_no_place_to_talk(self, bash: Scripts) -> None:
        disk = bash.disk("success")
        bash.host.run_dir.write_text("a file")
        done = disk.add()
        assert (done.status, done.outcome) == (1, b"error")
        assert "where scripts and vbdkit talk, cannot be made" in done.error

    def test_a_path_that_is_no_disks(self, bash: Scripts) -> None:
        disk = bash.disk('xenstore_read "$XENBUS_PATH/params"')
        env = bash.host.environment() | {"XENBUS_PATH": "backend/vif/x"}
        done = subprocess.run([disk.host.script, "add"], env=env, capture_output=True, text=True)
        assert done.returncode == 1
        assert "not the backend path of a virtual disk" in done.stderr


class TestLocks:
    def test_it_is_the_lock_of_all_block_scripts(self, scripts: Scripts, devices: list[str]) -> None:
        host = scripts.host
        disk = scripts.disk(
            f"claim_lock block; [ -e '{host.lock_dir}/block' ]; write_dev {devices[0]}; release_lock block"
        )
        with Lock(os.fsencode(host.lock_dir), time.monotonic() + WAIT):
            process = disk.start("add")
            # It has the lock's file open while it waits.
            until(lambda: waits(host), "the wait for the lock")
            assert process.poll() is None
        assert process.wait(WAIT) == 0
        process.communicate()
        assert disk.nodes()["hotplug-status"] == b"connected"
        until(lambda: not (host.lock_dir / "block").exists(), "the release")

    def test_names_are_apart_and_releasing_twice_is_no_harm(self, scripts: Scripts) -> None:
        done = scripts.disk(
            "claim_lock a; claim_lock b; claim_lock a; release_lock b; release_lock a; release_lock a"
        ).add()
        assert done.status == 0, done.output
        assert list(scripts.host.lock_dir.iterdir()) == []

    def test_a_lock_that_stays_taken(self, host: Host) -> None:
        host.time_limit = 2.0
        bash = Scripts(host)
        disk = bash.disk("claim_lock block\necho went on >&2")
        with Lock(os.fsencode(host.lock_dir), time.monotonic() + WAIT):
            done = disk.add()
        assert (done.status, done.outcome) == (1, b"error")
        assert f"the lock {host.lock_dir}/block, held by pid {os.getpid()}" in done.error
        assert "went on" not in done.output

    def test_a_daemon_inherits_neither_lock_nor_conversation(self, scripts: Scripts) -> None:
        """Xen's library leaves its lock to whatever the script starts, for as long as that lives."""
        pid_file = scripts.host.directory / "pid"
        disk = scripts.disk(f"claim_lock block; sleep 600 >/dev/null & echo $! >'{pid_file}'; success")
        done = disk.add()
        assert done.status == 0, done.output
        pid = int(pid_file.read_text())
        try:
            open_files = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
            assert [name for name in open_files if "lock" in name or name.endswith(("turn", "ask", "answer"))] == []
            until(lambda: lock_is_free(scripts.host), "the lock")
            until(lambda: scripts.records() == [], "the end of the conversation")
        finally:
            os.kill(pid, signal.SIGKILL)

    @pytest.mark.parametrize("missing", ["/dev/stdin", "/proc/self/fd/0"])
    def test_no_dev_stdin(self, bash: Scripts, missing: str) -> None:
        """Xen's claim_lock spins for ever without it."""
        disk = bash.disk(f"! [ -e {missing} ]; claim_lock block; release_lock block; success")
        script, env = bash.host.script, bash.host.environment() | {"XENBUS_PATH": disk.path.decode()}
        place = "/dev" if missing.startswith("/dev") else "/proc"
        keep = "/dev/null /dev/urandom" if place == "/dev" else ""
        inside = (
            f"mkdir -p /tmp/x.$$ && for f in {keep}; do cp -a $f /tmp/x.$$/; done; mount -t tmpfs none {place} && "
            f"for f in {keep}; do cp -a /tmp/x.$$/${{f##*/}} {place}/; done; rm -r /tmp/x.$$; exec {script} add"
        )
        done = subprocess.run(
            ["unshare", "-m", "--propagation", "private", "/bin/sh", "-c", inside],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert disk.nodes()["hotplug-status"] == b"connected"


def waits(host: Host) -> bool:
    """Whether a process other than this one has the lock's file open."""
    path = str(host.lock_dir / "block")
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(entry) == path and entry.parts[2] != str(os.getpid()):
                return True
        except OSError:
            pass
    return False


class TestStderr:
    def test_it_reaches_the_toolstack_and_the_log(self, scripts: Scripts) -> None:
        done = scripts.disk("echo to the log >&2; ls /none/there || :; success").add()
        for text in (done.output, scripts.log.read_text()):
            assert "to the log\n" in text
            assert "/none/there" in text

    def test_a_missing_folder_for_logs_stops_nothing(self, bash: Scripts) -> None:
        bash.log.parent.rmdir()
        done = bash.disk("echo to the toolstack >&2; success").add()
        assert (done.status, done.output) == (0, "to the toolstack\n")

    def test_a_daemons_words_still_find_the_log_when_the_script_has_ended(self, bash: Scripts) -> None:
        go, pid_file = bash.host.directory / "go", bash.host.directory / "pid"
        daemon = f"while ! [ -e '{go}' ]; do sleep 0.05; done; echo late >&2; sleep 0.05; echo later >&2"
        disk = bash.disk(f"( {daemon} ) >/dev/null & echo $! >'{pid_file}'; success")
        done = disk.add()  # returns although the daemon lives: it does not have the toolstack's stderr
        assert done.status == 0
        assert Path(f"/proc/{pid_file.read_text().strip()}").exists()
        go.touch()
        until(lambda: "late\nlater\n" in bash.log.read_text(), "the daemon's words")

    def test_a_toolstack_that_does_not_read(self, bash: Scripts) -> None:
        disk = bash.disk("head -c 300000 /dev/zero | tr '\\0' x >&2; success")
        process = disk.start("add")
        assert process.wait(60) == 0
        assert disk.nodes()["hotplug-status"] == b"connected"
        process.communicate()
        assert bash.log.stat().st_size >= 300000


class TestConversation:
    def test_many_at_once(self, scripts: Scripts) -> None:
        body = (
            'for i in 1 2 3 4 5 6 7 8; do ( for j in 1 2 3; do xenstore_write "$XENBUS_PATH/n$i" "$i$j"; '
            '[ "$(xenstore_read "$XENBUS_PATH/n$i")" = "$i$j" ] || echo mixed >&2; done ) & done; wait; success'
        )
        done = scripts.disk(body).add()
        assert (done.status, done.output) == (0, "")
        assert [done.nodes[f"n{i}"] for i in range(1, 9)] == [b"%d3" % i for i in range(1, 9)]

    def test_one_that_is_killed_with_the_turn_does_not_stop_the_others(self, bash: Scripts) -> None:
        bash.copy(IDLE=100)
        body = 'sh -c \'read x <"$0/turn"\' "$_vbdkit_pipes"; xenstore_write "$XENBUS_PATH/after" it; success'
        done = bash.disk(body).add()
        assert (done.status, done.nodes["after"]) == (0, b"it")

    def test_a_killed_helper_is_told(self, bash: Scripts) -> None:
        """Also while nobody has looked at how it ended."""
        wait = "while [ -e /proc/$_vbdkit_helper/exe ]; do :; done"
        done = bash.disk(f"exec 2>&1; kill -9 $_vbdkit_helper; {wait}; success").add()
        assert done.status == 1
        assert "the helper process of vbdkit is gone" in done.output

    def test_what_a_killed_helper_left_is_in_nobodys_way(self, tmp_path: Path) -> None:
        folder = os.fsencode(tmp_path / "run" / ".sh-1")
        for _ in range(2):
            make(os.path.dirname(folder), folder)
            for name in ("add", "add.new", "pid"):
                (tmp_path / "run" / ".sh-1" / name).write_text("vbd x\n")
        clean(folder)
        assert list((tmp_path / "run").iterdir()) == []

    def test_only_root_can_talk(self, bash: Scripts) -> None:
        done = bash.disk('stat -c %a:%u "$_vbdkit_pipes" "$_vbdkit_pipes"/* >&2; success').add()
        folder, *rest = done.output.split()
        assert (folder, set(rest)) == ("700:0", {"600:0"})
        assert len(rest) >= 4

    def test_wait_does_not_wait_for_the_helper(self, scripts: Scripts) -> None:
        assert scripts.disk("wait; success").add().status == 0

    def test_nothing_is_left(self, scripts: Scripts) -> None:
        disk = scripts.disk("claim_lock x; success")
        for command in ("add", "remove"):
            assert disk.run(command).status == 0
        until(lambda: scripts.records() == [], "the end of the conversation")

        def those_that_wait() -> list[str]:
            return [path.read_text().split()[0] for path in scripts.host.run_dir.glob(".sh/pid")]

        until(lambda: helpers_of(disk) == those_that_wait() != [], "the end of all helpers but the one that waits")


def helpers_of(disk: Disk) -> list[str]:
    """The pids of helpers that talk in this host's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes()
        except OSError:
            continue
        if os.fsencode(disk.host.run_dir) in text:
            found.append(entry.parent.name)
    return found
