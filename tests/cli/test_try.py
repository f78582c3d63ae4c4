"""`vbdkit try` shows a guest getting its disk, on any host, and leaves nothing behind."""

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import PYTHON, run_command
from tests.need import need_loop_devices, need_program, need_root

NOBODY = 65534
GREETING = "vbdkit try: the first sector of this disk"
Done = subprocess.CompletedProcess[str]


class Stage:
    """Where the command runs: as whom, and with a temporary folder of its own that must be empty afterwards."""

    def __init__(self, package: Path, folder: Path, user: int) -> None:
        self.package = package
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(package.parent),
            "LC_ALL": "C.UTF-8",
            "TERM": "xterm",
            "TMPDIR": str(self.temporary),
        }
        self.user_options: dict[str, Any] = {}
        if user != os.geteuid():
            os.chown(self.temporary, user, user)
            self.user_options = {"user": user, "group": user, "extra_groups": []}

    def run(self, *arguments: str | Path, **options: object) -> Done:
        """Run it without a terminal."""
        return run_command(self.package, "try", *arguments, **{"env": self.env, **self.user_options, **options})

    def start(self, *arguments: str | Path, stdout: int) -> "subprocess.Popen[bytes]":
        """Start it, in a process group of its own."""
        return subprocess.Popen(
            [str(PYTHON), "-m", "vbdkit", "try", *map(str, arguments)],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **self.user_options,
        )

    def nothing_is_left(self) -> None:
        """Prove it from outside."""
        assert list(self.temporary.iterdir()) == []
        for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                assert str(self.folder) not in loop.read_text()
            except OSError:
                continue  # others on this machine have loop devices, too


@pytest.fixture(params=["root", "user"])
def stage(request: pytest.FixtureRequest, package: Path, safe_folder: Path) -> Iterator[Stage]:
    """Both kinds of user. Without root, the one that runs the tests is the second."""
    if request.param == "root":
        need_loop_devices()
        user = 0
    else:
        user = NOBODY if os.geteuid() == 0 else os.geteuid()
    made = Stage(package, safe_folder, user)
    yield made
    made.nothing_is_left()


@pytest.fixture
def root(package: Path, safe_folder: Path) -> Iterator[Stage]:
    """Root with loop devices."""
    need_loop_devices()
    made = Stage(package, safe_folder, 0)
    yield made
    made.nothing_is_left()


@pytest.fixture
def user(package: Path, safe_folder: Path) -> Iterator[Stage]:
    """Somebody without privilege."""
    made = Stage(package, safe_folder, NOBODY if os.geteuid() == 0 else os.geteuid())
    yield made
    made.nothing_is_left()


@pytest.fixture
def image(safe_folder: Path) -> Path:
    """An image of the user's, which everybody may read and write."""
    path = safe_folder / "guest.img"
    path.write_bytes(b"my own boot sector\n" + bytes(20000))
    path.chmod(0o666)
    return path


class TestTheStory:
    def test_goes_well_and_says_so(self, stage: Stage) -> None:
        done = stage.run()
        assert (done.returncode, done.stderr) == (0, "")
        assert "All went as it should" in done.stdout

    def test_guest_1_reads_the_first_sector(self, stage: Stage) -> None:
        assert f'"{GREETING}"' in stage.run().stdout

    def test_guest_2_is_refused_with_a_sentence(self, stage: Stage) -> None:
        said = stage.run().stdout
        assert "block add: exit 1" in said or re.search(r"block /local/domain/0/backend/vbd/2/51712 add: exit 1", said)
        assert "hotplug-status = busy" in said
        assert re.search(r"hotplug-error = \S+/disk\.img is in use by guest 1 \(alice\)", said)

    def test_each_step_has_its_time(self, stage: Stage) -> None:
        steps = [line for line in stage.run().stdout.splitlines() if " ms  " in line]
        assert len(steps) > 12
        assert all(re.match(r" +\d+\.\d ms  (toolstack|driver|script|guest \d)  ", line) for line in steps)

    def test_is_plain_text_when_piped(self, stage: Stage) -> None:
        said = stage.run().stdout
        assert "\x1b" not in said
        assert said.isascii()

    def test_as_root_is_about_a_loop_device(self, root: Stage) -> None:
        said = root.run().stdout
        assert "XENBUS_PATH=backend/vbd/1/51712 block add: exit 0" in said
        assert re.search(r"physical-device = 7:[0-9a-f]+\n", said)
        assert re.search(r"has opened block device 7:[0-9a-f]+, read-write, 4096 KiB", said)

    def test_without_privilege_is_about_the_file(self, user: Stage) -> None:
        said = user.run().stdout
        assert "you are not root" in said
        assert "block /local/domain/0/backend/vbd/1/51712 add: exit 0" in said
        assert re.search(r"physical-device-path = \S+/disk\.img\n", said)
        assert "physical-device =" not in said

    def test_root_can_ask_for_the_other_way(self, root: Stage) -> None:
        done = root.run("--system", "freebsd")
        assert done.returncode == 0
        assert "as on FreeBSD" in done.stdout

    def test_root_can_ask_for_netbsds_way(self, root: Stage) -> None:
        done = root.run("--system", "netbsd")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "block /local/domain/0/backend/vbd/1/51712 2: exit 0" in done.stdout
        assert re.search(r" vnd = \S+/vnd0d\n", done.stdout)
        assert re.search(r" physical-device = [0-9]+\n", done.stdout)
        assert re.search(r"in use by guest 1 \(alice\) as its disk xvda, read-write \(through \S+/vnd0d\)", done.stdout)
        assert "51712 6: exit 0" in done.stdout
        assert done.stdout.count("gone: the whole backend directory") == 2

    @pytest.mark.parametrize("system", ["linux", "freebsd", "netbsd"])
    def test_all_that_each_step_tells_is_its_own(self, root: Stage, system: str) -> None:
        """The driver runs beside the script: what it writes is told in its own step, whoever is faster."""
        told = root.run("--system", system).stdout.count("more that tell what it can do")
        assert told == (1 if system == "netbsd" else 3)

    def test_where_loop_devices_are_not_to_be_had_it_goes_the_other_way(self, root: Stage) -> None:
        need_program("unshare")
        hide = 'mount --bind /dev/null /dev/loop-control && exec "$@"'
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", hide, "sh", str(PYTHON), "-m", "vbdkit", "try"],
            env=root.env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "no loop device: /dev/loop-control" in done.stdout
        assert "as on FreeBSD" in done.stdout


class TestTheUsersImage:
    def test_is_read_and_stays_as_it_is(self, stage: Stage, image: Path) -> None:
        before = image.read_bytes(), image.stat().st_mtime_ns
        done = stage.run(image)
        assert done.returncode == 0, done.stderr
        assert '"my own boot sector"' in done.stdout
        assert (image.read_bytes(), image.stat().st_mtime_ns) == before

    def test_may_be_a_block_device(self, root: Stage, image: Path) -> None:
        name = subprocess.check_output(["losetup", "-f", "--show", image], text=True).strip()
        try:
            done = root.run(name)
            assert done.returncode == 0, done.stderr
            assert f"params = {name}\n" in done.stdout
            assert "node = " not in done.stdout  # nothing was made, so nothing is to be taken away
        finally:
            subprocess.run(["losetup", "-d", name], check=True)

    def test_that_the_user_may_only_read_is_given_read_only(self, user: Stage, image: Path) -> None:
        image.chmod(0o444)
        done = user.run(image)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "mode = r\n" in done.stdout

    def test_may_have_a_strange_name(self, stage: Stage, image: Path) -> None:
        strange = image.rename(image.with_name("my disk: 50% of 'it', ü.img"))
        done = stage.run(strange)
        assert done.returncode == 0, done.stderr
        assert "my disk: 50% of 'it', ü.img" in done.stdout

    @pytest.mark.parametrize(
        ("make", "sentence"),
        [
            (lambda path: None, "cannot be read: No such file or directory"),
            (lambda path: path.mkdir(), "is a folder"),
            (lambda path: path.touch(), "is smaller than one sector"),
            (os.mkfifo, "is neither a file nor a block device"),
        ],
        ids=["missing", "folder", "empty", "pipe"],
    )
    def test_that_is_no_disk(
        self, stage: Stage, safe_folder: Path, make: Callable[[Path], None], sentence: str
    ) -> None:
        make(safe_folder / "thing")
        done = stage.run(safe_folder / "thing")
        assert done.returncode == 1
        assert f"vbdkit: {safe_folder}/thing {sentence}" in done.stderr
        assert done.stdout == ""

    def test_that_the_user_may_not_read(self, user: Stage, image: Path) -> None:
        need_root()
        image.chmod(0o600)
        done = user.run(image)
        assert done.returncode == 1
        assert "Permission denied" in done.stderr

    def test_that_is_in_use_is_left_alone(self, stage: Stage, image: Path) -> None:
        need_loop_devices()
        name = subprocess.check_output(["losetup", "-f", "--show", image], text=True).strip()
        try:
            done = stage.run(image)
            assert done.returncode == 1
            assert f"{image} is in use: {name} is bound to it" in done.stderr
        finally:
            subprocess.run(["losetup", "-d", name], check=True)


class TestWrongUse:
    @pytest.mark.parametrize("system", ["linux", "netbsd"])
    def test_the_way_of_loop_devices_without_privilege(self, user: Stage, system: str) -> None:
        done = user.run("--system", system)
        assert done.returncode == 1
        assert "you are not root" in done.stderr
        assert "--system freebsd" in done.stderr

    @pytest.mark.parametrize("arguments", [["--system", "plan9"], ["a", "b"], ["--sys", "linux"]])
    def test_what_it_does_not_understand(self, user: Stage, arguments: list[str]) -> None:
        done = user.run(*arguments)
        assert done.returncode == 2
        assert "usage: vbdkit" in done.stderr


class TestInterrupted:
    """Whenever it ends, nothing is left; Stage looks."""

    @pytest.mark.parametrize("after", ["1. Guest 1", "state = 2", "has opened", "2. Guest 2", "3. Guest 1"])
    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_by_a_signal(self, stage: Stage, after: str, number: int, status: int) -> None:
        process = stage.start(stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout, process.stderr:
            for line in process.stdout:
                if after in line.decode():
                    os.killpg(process.pid, number)
                    break
            process.stdout.read()
            assert process.stderr.read() == b""
        assert process.wait(60) == status

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_by_a_signal_on_netbsds_way(self, root: Stage, number: int) -> None:
        """A vnd is a loop device under another name: none of either is left."""
        process = root.start("--system", "netbsd", stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout, process.stderr:
            for line in process.stdout:
                if b"has opened" in line:
                    os.killpg(process.pid, number)
                    break
            process.stdout.read()
            assert process.stderr.read() == b""
        assert process.wait(60) == 128 + number

    def test_by_impatience(self, root: Stage) -> None:
        process = root.start(stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout, process.stderr:
            for line in process.stdout:
                if b"has opened" in line:
                    break
            while process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                time.sleep(0.002)

    def test_by_a_reader_who_has_seen_enough(self, stage: Stage) -> None:
        process = stage.start(stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stderr:
            with process.stdout:
                process.stdout.readline()
            assert process.stderr.read() == b""
        assert process.wait(60) == 141

    def test_by_a_script_that_fails(self, stage: Stage) -> None:
        block = stage.package / "scripts" / "block.py"
        block.write_text(
            "import sys\ndef main(*_, **__):\n    print('the disk is on fire', file=sys.stderr)\n    sys.exit(1)\n"
        )
        done = stage.run()
        assert done.returncode == 1
        assert "vbdkit: guest 1 did not get the image: the disk is on fire" in done.stderr

    def test_by_a_script_that_lets_everybody_have_it(self, user: Stage) -> None:
        verdict = user.package / "storage" / "sharing.py"
        verdict.write_text(verdict.read_text() + "\n\ndef verdict(*_, **__):\n    return None\n")
        done = user.run()
        assert done.returncode == 1
        assert "Not as it should be: guest 2 got the image that guest 1 has" in done.stdout


class TestOnATerminal:
    def on_a_terminal(self, stage: Stage, **env: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        stage.env.update(env)
        process = stage.start(stdout=theirs)
        os.close(theirs)
        said = b""
        assert process.stderr is not None
        with process.stderr:
            while select.select([ours], [], [], 60)[0]:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # how Linux says that the other side is closed
                    break
                if not piece:
                    break
                said += piece
        os.close(ours)
        return process.wait(60), said.decode()

    def test_it_is_coloured(self, stage: Stage) -> None:
        status, said = self.on_a_terminal(stage)
        assert status == 0
        assert "\x1b[32mAll went as it should" in said

    @pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
    def test_it_is_not_where_the_user_says_so(self, stage: Stage, env: dict[str, str]) -> None:
        status, said = self.on_a_terminal(stage, **env)
        assert status == 0
        assert "\x1b" not in said


def test_the_temporary_folder_may_have_a_long_name(package: Path, safe_folder: Path) -> None:
    folder = safe_folder / ("long" * 30)
    folder.mkdir()
    stage = Stage(package, folder, os.geteuid())
    assert stage.run().returncode == 0
    stage.nothing_is_left()


def test_version_and_help(package: Path) -> None:
    assert re.fullmatch(r"vbdkit \d+\.\d+\.\d+\n", run_command(package, "--version").stdout)
    for arguments in (["--help"], ["try", "--help"], ["install", "--help"], ["uninstall", "--help"]):
        done = run_command(package, *arguments)
        assert done.returncode == 0
        assert "examples:" in done.stdout or "first steps:" in done.stdout
        assert "exit status:" in done.stdout


def test_no_command_is_wrong_use(package: Path) -> None:
    done = run_command(package)
    assert done.returncode == 2
    assert "say which command" in done.stderr
    assert done.stdout == ""
