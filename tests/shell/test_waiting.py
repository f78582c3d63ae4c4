"""The helper that stays after its script for the next one: what it serves, what it refuses, when it goes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.need import need
from tests.shell.conftest import WAIT, Scripts
from tests.waiting import until
from vbdkit.cli.stub import LIBRARY


@pytest.fixture(autouse=True)
def _linux() -> None:
    need(sys.platform == "linux", "needs Linux")


def waiting(scripts: Scripts) -> int:
    """The pid of the one that waits, 0 where none does."""
    try:
        pid = int((scripts.host.run_dir / ".sh" / "pid").read_text().split()[0])
        os.readlink(f"/proc/{pid}/exe")  # not of one that has ended and that nobody has looked at yet
    except (OSError, ValueError):
        return 0
    return pid


def with_one_waiting(scripts: Scripts) -> int:
    """Run a script, whose helper then waits."""
    assert scripts.disk("success", 4).add().status == 0
    until(lambda: waiting(scripts) != 0, "the helper that waits")
    return waiting(scripts)


def no_other(scripts: Scripts) -> None:
    """From now on no new helper can be started: who is served, is served by the one that waits."""
    library = scripts.folder / LIBRARY
    lines = library.read_text().splitlines(keepends=True)
    library.write_text(
        "".join("_vbdkit_python=/bin/false\n" if "_vbdkit_python=" in line[:16] else line for line in lines)
    )


def test_it_serves_the_next_script_without_another_interpreter(scripts: Scripts, devices: list[str]) -> None:
    pid = with_one_waiting(scripts)
    no_other(scripts)
    disk = scripts.disk(f'[ "$command" = remove ] || write_dev {devices[0]}; echo said >&2')
    done = disk.add()
    assert (done.status, done.outcome, done.output) == (0, b"connected", "said\n")
    assert scripts.disk(f"write_dev {devices[0]}", 6).add().outcome == b"busy"
    scripts.write("false")
    assert disk.remove().status == 1
    assert waiting(scripts) == pid


def test_many_scripts_at_once(bash: Scripts) -> None:
    with_one_waiting(bash)
    no_other(bash)
    disks = [bash.disk('xenstore_write "$XENBUS_PATH/mine" "$$"; success', domid) for domid in range(10, 22)]
    with ThreadPoolExecutor(12) as pool:
        done = list(pool.map(lambda disk: disk.add(), disks))
    assert [one.status for one in done] == [0] * 12, done
    assert len({one.nodes["mine"] for one in done}) == 12


def test_two_that_become_free_at_once_leave_one(bash: Scripts) -> None:
    disks = [bash.disk("sleep 0.2; success", domid) for domid in range(10, 14)]
    with ThreadPoolExecutor(4) as pool:
        assert [one.status for one in pool.map(lambda disk: disk.add(), disks)] == [0] * 4
    until(lambda: waiting(bash) != 0, "the helper that waits")
    until(lambda: [path.name for path in bash.host.run_dir.glob(".sh*")] == [".sh"], "the end of the others")


def test_the_environment_is_each_scripts_own(bash: Scripts, devices: list[str]) -> None:
    with_one_waiting(bash)
    no_other(bash)
    done = bash.disk(f"write_dev {devices[0]}").run("add", extra={"VBDKIT_PUBLISH": "path"})
    assert done.status == 0
    assert "physical-device" not in done.nodes


def test_a_socket_for_stderr(bash: Scripts) -> None:
    """What a service of systemd has; it cannot be opened by a name."""
    with_one_waiting(bash)
    no_other(bash)
    disk = bash.disk("echo said >&2; success")
    ours, its = socket.socketpair()
    env = bash.host.environment() | {"XENBUS_PATH": disk.path.decode()}
    subprocess.run([bash.host.script, "add"], env=env, stderr=its.fileno(), check=True)
    its.close()
    ours.settimeout(WAIT)
    assert ours.recv(100) == b"said\n"
    ours.close()


def test_one_that_was_killed_is_replaced(scripts: Scripts) -> None:
    pid = with_one_waiting(scripts)
    os.kill(pid, signal.SIGKILL)
    until(lambda: waiting(scripts) == 0, "its end")
    assert with_one_waiting(scripts) != pid


def test_another_process_with_its_pid_is_not_taken_for_it(scripts: Scripts) -> None:
    """Nobody would ever answer."""
    os.kill(with_one_waiting(scripts), signal.SIGKILL)
    mark = scripts.host.run_dir / ".sh" / "pid"
    mark.write_text(f"{os.getpid()} {mark.read_text().split()[1]}\n")
    assert scripts.disk("success").add().status == 0


def test_one_that_has_ended_and_that_nobody_has_looked_at_is_not_taken_for_it(scripts: Scripts) -> None:
    """A first process that does not care for orphans leaves it so for long."""
    os.kill(with_one_waiting(scripts), signal.SIGKILL)
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        began = Path(f"/proc/{ended.pid}/stat").read_text().rpartition(")")[2].split()[19]
        (scripts.host.run_dir / ".sh" / "pid").write_text(f"{ended.pid} {began}\n")
        assert scripts.disk("success").add().status == 0


def test_it_refuses_other_settings(bash: Scripts) -> None:
    pid = with_one_waiting(bash)
    library = bash.folder / LIBRARY
    library.write_text(library.read_text().replace("import vbdkit\n", "import vbdkit  # as if differently installed\n"))
    no_other(bash)
    assert bash.disk("success").add().status == 1
    assert waiting(bash) == pid


def test_it_refuses_once_a_module_has_changed(bash: Scripts) -> None:
    """An update must not leave the old one at work."""
    package = bash.copy()
    with_one_waiting(bash)
    (package / "engine" / "deliver.py").touch()
    no_other(bash)
    assert bash.disk("success").add().status == 1


def test_it_goes_with_its_folder(bash: Scripts) -> None:
    bash.copy(IDLE=100)
    pid = with_one_waiting(bash)
    shutil.rmtree(bash.host.run_dir)
    until(lambda: not Path(f"/proc/{pid}/exe").exists(), "its end")


def test_it_goes_when_nobody_comes(bash: Scripts) -> None:
    bash.copy(IDLE=100, STAY=1.0)
    assert bash.disk("success", 4).add().status == 0
    until(lambda: waiting(bash) != 0, "the helper that waits")
    pid = waiting(bash)
    until(lambda: not Path(f"/proc/{pid}/exe").exists(), "its end")
    assert list(bash.host.run_dir.glob(".sh*")) == []
    assert bash.disk("success").add().status == 0


def test_it_has_nothing_of_the_script_that_it_served(bash: Scripts, devices: list[str]) -> None:
    pid = with_one_waiting(bash)
    bash.disk(f"claim_lock block; write_dev {devices[0]}").add()
    names = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert {name for name in names if not name.startswith((f"{bash.host.run_dir}/.sh/", "/dev/null"))} == set()
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
