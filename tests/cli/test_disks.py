"""`vbdkit attach`, `detach` and `run`: the commands on a host with everything but Xen (tests/toolstack/xen.py)."""

import argparse
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import PYTHON, SOURCE, run_command
from tests.images import image, make_image
from tests.need import need_loop_devices, need_program, need_root
from tests.toolstack.xen import Xen, make_xen
from vbdkit.cli import domain
from vbdkit.cli.report import CommandError
from vbdkit.toolstack import settings
from vbdkit.toolstack.nodes import Disk, add_disk, wait_for_state

__all__ = ["image"]

Vbdkit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def xen(tmp_path: Path, store_socket: Path) -> Iterator[Xen]:
    need_loop_devices()
    with make_xen(tmp_path, store_socket) as made:
        yield made


@pytest.fixture
def environment(xen: Xen, package: Path) -> dict[str, str]:
    return {**xen.host.environment(), "PYTHONPATH": str(package.parent), "LC_ALL": "C.UTF-8"}


@pytest.fixture
def config(xen: Xen, tmp_path: Path) -> Path:
    path = tmp_path / "vbdkit.toml"
    host = xen.host
    path.write_text(f'scripts-dir = "{tmp_path}"\nrun-dir = "{host.run_dir}"\nlock-dir = "{host.lock_dir}"\n')
    return path


@pytest.fixture
def vbdkit(package: Path, environment: dict[str, str], config: Path) -> Vbdkit:
    def run(command: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        return run_command(package, command, "--config", config, *arguments, env=environment)

    return run


def connected(xen: Xen, domid: int = 5, devid: int = 51712) -> None:
    wait_for_state(xen.store, Disk(domid, b"", b"", devid=devid), {b"4"}, 10)


@pytest.mark.parametrize("more", [[], ["--no-script"]])
def test_a_guest_gets_a_disk_by_name_and_gives_it_back_by_number(
    vbdkit: Vbdkit, xen: Xen, image: Path, more: list[str]
) -> None:
    done = vbdkit("attach", *more, "web", f"{image},,xvda")
    assert re.fullmatch(
        rf"guest 5 \(web\) has {image} as its disk xvda, read-write \(through /dev/loop\d+\)\n", done.stdout
    )
    assert (done.returncode, done.stderr) == (0, "")
    connected(xen)
    done = vbdkit("detach", "5", "51712")
    assert done.stdout == f"guest 5 (web) no longer has {image} as its disk xvda\n"
    assert (done.returncode, done.stderr) == (0, "")
    assert xen.left() == []


def test_without_a_script_it_is_one_process(
    xen: Xen, environment: dict[str, str], config: Path, image: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    xen.host.script.unlink()
    strace = [need_program("strace"), "-f", "-o", str(trace), "-e", "trace=process"]
    command = [str(PYTHON), "-m", "vbdkit", "attach", "--config", str(config), "--no-script", "5", f"{image},,xvda"]
    subprocess.run([*strace, *command], env=environment, check=True, capture_output=True)
    calls = re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE)
    assert [call for call in calls if call not in ("wait4", "exit_group")] == ["execve"]
    connected(xen)
    xen.detach()


def test_a_refusal_is_one_sentence(vbdkit: Vbdkit, xen: Xen, image: Path) -> None:
    vbdkit("attach", "web", f"{image},,xvda")
    for more in ([], ["--no-script"]):
        done = vbdkit("attach", *more, "mail", f"{image},,xvda")
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(
            rf"vbdkit: {image} is in use by guest 5 \(web\) as its disk xvda, read-write \(through /dev/loop\d+\), "
            r"so another guest may not have it read-write; detach it there first \(xl block-detach 5 xvda\)\n",
            done.stderr,
        )
    connected(xen)
    xen.detach()
    assert xen.left() == []


def test_the_limits_can_be_set(vbdkit: Vbdkit, xen: Xen, image: Path) -> None:
    xen.script("block-slow", "#!/bin/sh\n[ $1 = remove ] || exec sleep 60\n")
    done = vbdkit("attach", "--script-limit", "0.5", "5", f"vdev=xvda,script=block-slow,target={image}")
    assert "block-slow add was not done after 0.5 s and was killed" in done.stderr
    assert xen.left() == []
    vbdkit("attach", "5", f"{image},,xvda")
    connected(xen)
    xen.driver.__exit__(None, None, None)
    try:
        done = vbdkit("detach", "--close-limit", "0.2", "5", "xvda")
        assert "guest 5 did not give its disk xvda back within 0.2 s" in done.stderr
        done = vbdkit("attach", "--ready-limit", "0.3", "5", f"{image},,xvdb")
        assert "/5/51728/state is 1 after 0.3 s; the toolstack waits for 2\n  no backend driver has " in done.stderr
    finally:
        xen.driver = type(xen.driver)(xen.stack.environ)
        xen.driver.__enter__()
    vbdkit("detach", "--force", "5", "xvda")
    assert xen.left() == []


def test_force_says_what_did_not_work(vbdkit: Vbdkit, xen: Xen, image: Path) -> None:
    xen.script("block-bad", f'#!/bin/sh\n[ $1 = add ] || exit 4\nexec {xen.host.script} "$@"\n')
    vbdkit("attach", "5", f"vdev=xvda,script=block-bad,target={image}")
    connected(xen)
    done = vbdkit("detach", "web", "xvda")
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.endswith("block-bad remove ended with status 4 and gave no reason")
    assert second == "  its nodes stay; try again, or with --force let go of it all the same"
    done = vbdkit("detach", "--force", "web", "xvda")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [first]
    assert xen.nodes() == []


def test_a_disk_that_a_guest_has_not_is_named_with_those_that_it_has(vbdkit: Vbdkit, xen: Xen, image: Path) -> None:
    done = vbdkit("detach", "web", "xvda")
    assert done.stderr.splitlines() == [
        "vbdkit: guest 5 (web) has no disk xvda",
        "  it has no disks at all (xl list shows the guests)",
    ]
    xen.attach(f"{image},,xvdb")
    connected(xen, devid=51728)
    assert "its disks are: xvdb" in vbdkit("detach", "web", "xvda").stderr
    assert "names no virtual disk" in vbdkit("detach", "web", "xv").stderr
    xen.detach(51728)


def test_a_name_that_is_no_text_gets_through(vbdkit: Vbdkit, xen: Xen, tmp_path: Path) -> None:
    strange = make_image(tmp_path / os.fsdecode(b"a \xff \xc3\xa9.img"))
    done = vbdkit("attach", "5", f"vdev=xvda,target={strange}")
    assert (done.returncode, done.stderr) == (0, "")
    assert xen.read("/local/domain/0/backend/vbd/5/51712/params") == os.fsencode(strange)
    connected(xen)
    xen.detach()


@pytest.mark.parametrize("text", ["32752", "", "999999999999"])
def test_a_domain_that_is_none_is_wrong_use(vbdkit: Vbdkit, text: str) -> None:
    done = vbdkit("attach", text, "a,,hda")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no domain (numbers go from 0 to 32751" in done.stderr


def test_a_configuration_that_others_can_change_is_not_used(safe_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_root()
    file = safe_folder / "vbdkit.toml"
    file.write_text("no-script = true\n")
    monkeypatch.setattr(domain, "DEFAULT", file)
    monkeypatch.setattr(settings, "DEFAULT", file)
    arguments = argparse.Namespace(config=None)
    assert domain.settings_of(arguments).no_script
    file.chmod(0o666)
    with pytest.raises(CommandError, match=r"others than root can change the configuration .*/vbdkit.toml"):
        domain.settings_of(arguments)


def test_a_store_that_is_not_there_is_said(package: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(package.parent), "XENSTORED_PATH": "/nowhere/s"}
    done = run_command(package, "detach", "5", "xvda", env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("vbdkit: cannot connect to xenstore: ")


class TestRun:
    """`vbdkit run`: one script by hand."""

    @pytest.fixture
    def waiting(self, xen: Xen, image: Path) -> Disk:
        """A disk whose nodes stand and whose backend waits: what a failed xl block-attach leaves."""
        disk = Disk(5, os.fsencode(image), os.fsencode(xen.host.script))
        add_disk(xen.store, disk)
        wait_for_state(xen.store, disk, {b"2"}, 10)
        return disk

    def test_it_shows_call_nodes_output_time_and_changes(
        self, vbdkit: Vbdkit, xen: Xen, waiting: Disk, image: Path
    ) -> None:
        script = xen.script(
            "block-chatty",
            f'#!/bin/sh\necho "to stdout"; echo "to stderr" >&2\nexec {xen.host.script} "$@"\n',
        )
        done = vbdkit("run", "--script", script, "add", "web", "xvda")
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0] == f"guest 5 (web), disk xvda: {script} add"
        assert f"  script={script}" in lines
        assert "  XENBUS_PATH=backend/vbd/5/51712" in lines
        assert "  XENBUS_TYPE=vbd" in lines
        nodes = lines[lines.index("nodes") : lines.index("output")]
        assert f"  params = {image}" in nodes
        assert "  state = 2" in nodes
        assert not [line for line in nodes if "hotplug" in line]
        output = lines[lines.index("output") + 1 : lines.index("changes in the store")]
        assert output == ["  to stdout", "  to stderr"]
        changes = lines[lines.index("changes in the store") + 1 : -1]
        assert "  + /local/domain/0/backend/vbd/5/51712/hotplug-status = connected" in changes
        assert any(re.search(r"  \+ /local/.*/physical-device = [0-9a-f]+:[0-9a-f]+$", line) for line in changes)
        assert re.fullmatch(r"exit 0 after \d+\.\d ms", lines[-1])
        connected(xen)
        xen.detach()
        assert xen.left() == []

    def test_what_went_is_shown_with_what_it_was(self, vbdkit: Vbdkit, xen: Xen, image: Path) -> None:
        xen.attach(f"{image},,xvda")
        connected(xen)
        done = vbdkit("run", "remove", "5", "xvda")
        assert (done.returncode, done.stderr) == (0, "")
        assert "  - /local/domain/0/backend/vbd/5/51712/hotplug-status (was connected)" in done.stdout.splitlines()
        xen.detach()
        assert xen.left() == []

    def test_a_script_that_fails_is_shown_with_its_reason(
        self, vbdkit: Vbdkit, xen: Xen, waiting: Disk, image: Path
    ) -> None:
        image.unlink()
        done = vbdkit("run", "add", "5", "xvda")
        assert done.returncode == 1
        assert done.stderr == f"vbdkit: {image} does not exist\n"
        assert f"  + {waiting.backend.decode()}/hotplug-error = {image} does not exist" in done.stdout.splitlines()
        assert re.fullmatch(r"exit 1 after \d+\.\d ms", done.stdout.splitlines()[-1])

    def test_a_script_that_changes_nothing_anywhere(self, vbdkit: Vbdkit, xen: Xen, waiting: Disk) -> None:
        script = xen.script("block-idle", "#!/bin/sh\nexec sleep 60\n")
        done = vbdkit("run", "--script-limit", "0.4", "--script", script, "add", "5", "xvda")
        lines = done.stdout.splitlines()
        assert lines[-5:-1] == ["output", "  none", "changes in the store", "  none"]
        assert lines[-1].startswith("killed after 0.4 s (C6) after ")
        assert done.returncode == 1

    def test_changes_anywhere_in_the_store_are_seen(self, vbdkit: Vbdkit, xen: Xen, waiting: Disk) -> None:
        script = xen.script(
            "block-far",
            "#!/bin/sh\nexec /usr/bin/python3 -c 'import sys, time; sys.path.insert(0, sys.argv[1])\n"
            "from vbdkit.xenstore.client import Connection\n"
            'Connection.open(time.monotonic() + 9).write(b"/local/far/away", b"a\\nb")'
            f"' {SOURCE.parent}\n",
        )
        done = vbdkit("run", "--script", script, "add", "5", "xvda")
        assert "  + /local/far/away = a\\nb" in done.stdout.splitlines(), done.stdout

    def test_one_that_cannot_be_started_is_said(self, vbdkit: Vbdkit, waiting: Disk) -> None:
        done = vbdkit("run", "--script", "/nowhere/block", "add", "5", "xvda")
        assert "  /nowhere/block cannot be started: No such file or directory" in done.stdout.splitlines()
        assert (done.returncode, done.stderr) == (1, "vbdkit: /nowhere/block add: exit 127\n")


class TestSlowScripts:
    """What a script waits for is to be seen while it waits, not when it has ended."""

    @pytest.fixture
    def start(self, package: Path, environment: dict[str, str], config: Path) -> Callable[..., "subprocess.Popen[str]"]:
        def run(command: str, *arguments: str | Path) -> "subprocess.Popen[str]":
            argv = [PYTHON, "-m", "vbdkit", command, "--config", config, *arguments]
            return subprocess.Popen(
                argv, env=environment, cwd="/", text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )

        return run

    def script(self, xen: Xen, says: str) -> Path:
        """One that says something, waits until it may go on, and has the last word without a newline."""
        go = xen.host.directory / "go"
        return xen.script(
            "block-slow",
            f'#!/bin/sh\n{says}\nwhile [ ! -e {go} ]; do sleep 0.05; done\n{xen.host.script} "$@"\nprintf done >&2\n',
        )

    def test_run_shows_each_line_as_it_comes(
        self, start: Callable[..., "subprocess.Popen[str]"], xen: Xen, image: Path
    ) -> None:
        script = self.script(xen, "echo one >&2; echo two")
        disk = Disk(5, os.fsencode(image), os.fsencode(script))
        add_disk(xen.store, disk)
        wait_for_state(xen.store, disk, {b"2"}, 10)
        process = start("run", "add", "5", "xvda")
        assert process.stdout is not None
        seen = []
        while "  two" not in seen:
            seen.append(process.stdout.readline().rstrip("\n"))
            assert seen[-1] or process.poll() is None, "it ended without"
        assert not (xen.host.directory / "go").exists()
        (xen.host.directory / "go").touch()
        lines = seen + process.communicate(timeout=60)[0].splitlines()
        at = lines.index("output")
        assert lines[at + 1 : at + 5] == ["  one", "  two", "  done", "changes in the store"]
        assert process.returncode == 0
        connected(xen)
        xen.detach()

    def test_attach_says_in_one_line_what_the_script_says(
        self, start: Callable[..., "subprocess.Popen[str]"], xen: Xen, image: Path
    ) -> None:
        self.script(xen, "echo block-slow: waiting for the portal >&2; sleep 1.5; echo another >&2")
        process = start("attach", "web", f"script=block-slow,vdev=xvda,target={image}")
        assert process.stderr is not None
        assert process.stderr.readline() == "vbdkit: block-slow: waiting for the portal\n"
        (xen.host.directory / "go").touch()
        output, rest = process.communicate(timeout=60)
        assert output.startswith("guest 5 (web) has ")
        assert (process.returncode, rest) == (0, "")
        connected(xen)
        xen.detach()
        assert xen.left() == []

    def test_attach_says_of_a_silent_one_that_it_is_at_work(
        self, start: Callable[..., "subprocess.Popen[str]"], xen: Xen, image: Path
    ) -> None:
        self.script(xen, "true")
        process = start("attach", "web", f"script=block-slow,vdev=xvda,target={image}")
        assert process.stderr is not None
        assert process.stderr.readline() == "vbdkit: the disk's script is at work, 3 s so far\n"
        (xen.host.directory / "go").touch()
        assert process.communicate(timeout=60)[1] == ""
        connected(xen)
        xen.detach()

    def test_a_reader_that_goes_away_does_not_end_the_script(
        self, start: Callable[..., "subprocess.Popen[str]"], xen: Xen, image: Path
    ) -> None:
        script = self.script(xen, "echo one; exec >&2")
        script.write_text(script.read_text().replace("sleep 0.05", "echo more; sleep 0.05"))
        disk = Disk(5, os.fsencode(image), os.fsencode(script))
        add_disk(xen.store, disk)
        wait_for_state(xen.store, disk, {b"2"}, 10)
        process = start("run", "add", "5", "xvda")
        assert process.stdout is not None
        assert process.stderr is not None
        while process.stdout.readline() != "  one\n":
            assert process.poll() is None
        process.stdout.close()
        (xen.host.directory / "go").touch()
        with process.stderr as errors:
            assert errors.read() == ""
        assert process.wait(60) == 141
        connected(xen)
        xen.detach()
