"""The slow part of a custom script: programs, waits, the deadline, signals and kills; nothing is lost or left."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.custom.conftest import LOOP, Author, copies, loops_left
from tests.faults.test_gc import found, gc
from tests.host import SOURCE, Disk, bound_loops
from tests.waiting import until

# Notes that it has begun, runs a shell program, and notes that it was taken back.
PROGRAM = '''
import os

class Test(Storage):
    """A program of the tests."""
    syntax = "FILE"

    def attach(self, target, mode):
        self.note(begun_by=self.vbd)
        self.tool("sh", "-c", """%s""", target["file"])
        return target["file"]

    def detach(self, made):
        open("%s/detached", "a").write(made["begun_by"] + chr(10))
'''


def program(folder: Path, shell: str) -> str:
    """The class that runs a program in shell; ``$0`` is the target, ``$D`` the folder."""
    return PROGRAM % (f"D={folder}; {shell}", folder)


def detached(folder: Path) -> int:
    """How often it was taken back."""
    path = folder / "detached"
    return len(path.read_text().splitlines()) if path.exists() else 0


def alive(pid_file: Path) -> bool:
    """Whether the process is there whose number a file has."""
    try:
        state = Path(f"/proc/{pid_file.read_text().strip()}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """A folder in which programs note their pids; what is alive at the end is killed."""
    folder = tmp_path / "pids"
    folder.mkdir()
    yield folder
    for path in folder.iterdir():
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(path.read_text()), signal.SIGKILL)


class TestDeadline:
    """C6: before the toolstack's kill, with a reason."""

    @pytest.fixture(autouse=True)
    def _short(self, author: Author) -> None:
        author.host.time_limit = 2.0

    @pytest.mark.parametrize(
        "shell",
        [
            "echo cannot reach 10.0.0.1 >&2; echo $$ >$D/pids/tool; exec sleep 600",
            "trap '' TERM INT HUP; echo cannot reach 10.0.0.1 >&2; echo $$ >$D/pids/tool; while :; do sleep 600; done",
            "echo cannot reach 10.0.0.1 >&2; sleep 600 & echo $! >$D/pids/tool; wait",
            "echo cannot reach 10.0.0.1; echo $$ >$D/pids/tool; exec sleep 600",
        ],
        ids=["hung", "ignores signals", "has a child with its output", "speaks on stdout"],
    )
    def test_a_program_that_does_not_end_is_ended_and_its_last_words_are_told(
        self, author: Author, image: Path, tmp_path: Path, pids: Path, shell: str
    ) -> None:
        done = author.disk(program(tmp_path, shell), image).add()
        assert done.status == 1
        assert "was not done after" in done.error
        assert done.error.endswith(": cannot reach 10.0.0.1")
        assert done.outcome == b"error"
        assert done.error in done.output
        assert not alive(pids / "tool")
        assert (detached(tmp_path), author.records()) == (1, [])

    def test_a_daemon_that_is_to_stay_stays(self, author: Author, image: Path, tmp_path: Path, pids: Path) -> None:
        """With the program's output still open, which nobody waits for; at a failure later on, too."""
        daemon = "setsid sh -c 'echo $$ >'$D'/pids/daemon; exec sleep 600' & while [ ! -s $D/pids/daemon ]; do :; done"
        body = program(tmp_path, daemon)
        disk = author.disk(body, image)
        assert disk.add().status == 0
        assert alive(pids / "daemon")
        assert disk.remove().status == 0
        assert alive(pids / "daemon")
        done = author.disk(program(tmp_path, daemon.replace("/daemon", "/second") + "; sleep 600"), image, 6).add()
        assert "was not done after" in done.error
        assert alive(pids / "second")

    def test_the_programs_own_limit_comes_first(self, author: Author, image: Path) -> None:
        author.host.time_limit = None
        body = LOOP.replace(
            'return self.tool("losetup"', 'self.tool("sleep", "600", seconds=0.2)\n        return self.tool("x"'
        )
        began = time.monotonic()
        done = author.disk(body, image).add()
        assert "sleep 600 was not done after 0 s" in done.error
        assert time.monotonic() - began < 20

    def test_a_wait_of_the_authors_own_ends_in_time(self, author: Author, image: Path) -> None:
        body = LOOP.replace("return self.tool(", 'self.wait(lambda: False, "the moon")\n        return self.tool(')
        done = author.disk(body, image).add()
        assert done.error.startswith("the moon: not after ")
        assert author.records() == []

    @pytest.mark.parametrize(
        "code",
        ["time.sleep(600)", "os.read(os.pipe()[0], 1)", "[None for _ in iter(int, 1)]"],
        ids=["sleeps", "reads", "is busy"],
    )
    def test_code_of_the_authors_that_does_not_end_is_ended_and_undone(
        self, author: Author, image: Path, tmp_path: Path, code: str
    ) -> None:
        body = program(tmp_path, "true").replace(
            '        return target["file"]', f'        import time; {code}\n        return target["file"]'
        )
        disk = author.disk(body, image)
        line = [code in line for line in author.host.script.read_text().splitlines()].index(True) + 1
        done = disk.add()
        where = f"line {line} of {author.host.script}"
        assert done.error == f"the script's attach was not done in time: it waits in {where}"
        assert (detached(tmp_path), author.records()) == (1, [])

    def test_an_undo_that_hangs_too_does_not_hide_the_reason(
        self, author: Author, image: Path, tmp_path: Path, pids: Path
    ) -> None:
        body = program(tmp_path, "echo no route >&2; exit 4").replace(
            "        open(",
            f'        self.tool("sh", "-c", "echo $$ >{pids}/undo; exec sleep 600")\n        open(',
        )
        disk = author.disk(body, image)
        done = disk.add()
        assert done.status == 1
        assert done.error.endswith("failed: no route")
        assert not alive(pids / "undo")
        assert author.records() == ["vbd-5-51712"], "what could not be undone is not forgotten"
        author.write(program(tmp_path, "true"))
        assert disk.remove().status == 0
        assert (detached(tmp_path), author.records()) == (1, [])

    def test_a_remove_that_hangs_says_so_and_can_be_done_again(
        self, author: Author, image: Path, tmp_path: Path
    ) -> None:
        disk = author.disk(LOOP, image)
        assert disk.add().status == 0
        author.write(LOOP.replace('self.tool("losetup", "--detach"', 'self.tool("sleep", "600", "x"'))
        done = disk.remove()
        assert done.status == 1
        assert "sleep 600 x" in done.output
        author.write(LOOP)
        assert disk.remove().status == 0
        assert (loops_left(), author.records()) == ([], [])


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
    def test_one_in_the_middle_of_a_program_undoes_and_tells(
        self, author: Author, image: Path, tmp_path: Path, pids: Path, number: signal.Signals
    ) -> None:
        disk = author.disk(program(tmp_path, "echo $$ >$D/pids/tool; exec sleep 600"), image)
        process = disk.start("add")
        until(lambda: alive(pids / "tool"), "the program")
        process.send_signal(number)
        output = process.communicate(timeout=30)[0].decode()
        assert process.returncode == 1
        assert f"ended by {number.name} before it was done" in disk.nodes()["hotplug-error"].decode()
        assert number.name in output
        assert not alive(pids / "tool")
        assert (detached(tmp_path), author.records()) == (1, [])

    def test_one_while_a_wait_is_going_on(self, author: Author, image: Path, tmp_path: Path) -> None:
        body = program(tmp_path, "true").replace(
            '        return target["file"]', f'        self.wait(lambda: open("{tmp_path}/asked", "w") and 0, "a path")'
        )
        disk = author.disk(body, image)
        process = disk.start("add")
        until((tmp_path / "asked").exists, "the wait")
        process.terminate()
        process.communicate(timeout=30)
        assert "SIGTERM" in disk.nodes()["hotplug-error"].decode()
        assert (detached(tmp_path), author.records()) == (1, [])

    def test_a_remove_is_finished(self, author: Author, image: Path, tmp_path: Path, pids: Path) -> None:
        slow = "echo $$ >$D/pids/tool; while [ ! -e $D/go ]; do sleep 0.02; done"
        body = program(tmp_path, "true").replace(
            "        open(", f'        self.tool("sh", "-c", """D={tmp_path}; {slow}""")\n        open('
        )
        disk = author.disk(body, image)
        assert disk.add().status == 0
        process = disk.start("remove")
        until(lambda: alive(pids / "tool"), "the program")
        process.terminate()
        (tmp_path / "go").touch()
        process.communicate(timeout=30)
        assert (process.returncode, detached(tmp_path), author.records()) == (0, 1, [])


# Where a SIGKILL comes: in a method of the author's, or after it.
KILL = "os.kill(os.getpid(), 9)"
PHASES = {
    "parse": ("    def attach(", f"    def parse(self, text):\n        {KILL}\n\n    def attach("),
    "identity": ('return "share "', f'return {KILL} or "share "'),
    "before the note": ("        self.note(", f"        {KILL}\n        self.note("),
    "before the program": ('        self.tool("cp"', f'        {KILL}\n        self.tool("cp"'),
    "after the program": ("        return self.tool(", f"        {KILL}\n        return self.tool("),
    "after the attach": ("copy).strip()", f'copy).strip() + str({KILL} or "")'),
}


class TestKills:
    """C6: the toolstack's SIGKILL, at any time."""

    def killed(self, author: Author, image: Path, phase: str, domid: int = 5) -> Disk:
        old, new = PHASES[phase]
        body = copies(author.host.directory)
        assert old in body
        disk = author.disk("import os\n" + body.replace(old, new), image, domid)
        assert disk.run("add").status == -signal.SIGKILL
        author.write(copies(author.host.directory))
        return disk

    def left(self, author: Author) -> tuple[list[str], list[str], list[Path]]:
        return loops_left(), author.records(), sorted(author.host.directory.glob("vbd-*"))

    @pytest.mark.parametrize("phase", PHASES)
    def test_the_next_add_of_this_disk_works_and_nothing_is_left(self, author: Author, image: Path, phase: str) -> None:
        disk = self.killed(author, image, phase)
        done = disk.add()
        assert (done.status, done.outcome) == (0, b"connected")
        assert len(bound_loops()) == 1
        assert disk.remove().status == 0
        assert self.left(author) == ([], [], [])

    @pytest.mark.parametrize("phase", PHASES)
    def test_remove_takes_back_what_there_is(self, author: Author, image: Path, phase: str) -> None:
        disk = self.killed(author, image, phase)
        assert disk.remove().status == 0
        assert self.left(author) == ([], [], [])

    @pytest.mark.parametrize("phase", PHASES)
    def test_another_guest_gets_it_once_it_is_taken_back(self, author: Author, image: Path, phase: str) -> None:
        """Before the record nothing has been done; from then on nobody knows."""
        disk = self.killed(author, image, phase)
        other = author.host.disk(6, image)
        done = other.add()
        assert (done.status == 0) == (phase in ("parse", "identity"))
        if done.status:
            assert done.outcome == b"busy"
            assert "guest 5" in done.error
            assert disk.remove().status == 0
            assert other.add().status == 0
        assert other.remove().status == 0
        assert self.left(author) == ([], [], [])

    @pytest.mark.parametrize("phase", PHASES)
    def test_gc_collects_it_through_the_script(self, author: Author, image: Path, phase: str) -> None:
        with author.host.connect() as store:
            store.write(b"domid", b"0")
        disk = self.killed(author, image, phase)
        assert found(author.host) == [], "the backend is there still"
        disk.forget()
        items = found(author.host)
        assert [item["outcome"] for item in items] == ["collected"] * (phase not in ("parse", "identity"))
        assert self.left(author) == ([], [], [])

    def test_between_publication_and_the_end(self, author: Author, image: Path, tmp_path: Path) -> None:
        """A kill after the commit: the guest has its disk, add says so, remove takes it back."""
        disk = author.disk(LOOP, image)
        disk.add()
        disk.write(state=b"4")
        assert disk.add().status == 0
        assert disk.remove().status == 0
        assert self.left(author) == ([], [], [])

    def test_what_a_killed_script_has_started_lives_on_and_does_not_confuse_the_next(
        self, author: Author, image: Path, tmp_path: Path, pids: Path
    ) -> None:
        """It gets some time to end (test_in_common.py), and no more than that."""
        author.host.time_limit = 5
        disk = author.disk(program(tmp_path, "echo $$ >$D/pids/tool; exec sleep 600"), image)
        process = disk.start("add")
        until(lambda: alive(pids / "tool"), "the program")
        process.kill()
        process.communicate(timeout=30)
        assert alive(pids / "tool")
        author.write(program(tmp_path, "true"))
        assert disk.add().status == 0
        assert not alive(pids / "tool")
        assert detached(tmp_path) == 1
        assert disk.remove().status == 0


class TestGc:
    @pytest.fixture
    def abandoned(self, author: Author, image: Path) -> Disk:
        with author.host.connect() as store:
            store.write(b"domid", b"0")
        disk = author.disk(LOOP, image)
        assert disk.add().status == 0
        disk.forget()
        return disk

    def test_a_script_that_is_gone_is_named_with_the_way_out(self, author: Author, abandoned: Disk) -> None:
        author.host.script.rename(author.host.directory / "away")
        (item,) = found(author.host, status=1)
        assert item["outcome"] == "kept"
        assert f"attached by {author.host.script}, which alone can take it back and is not there" in item["note"]
        assert str(author.host.run_dir / "vbd-5-51712") in item["note"]
        assert author.records() == ["vbd-5-51712"]
        (author.host.directory / "away").rename(author.host.script)
        (item,) = found(author.host)
        assert item["outcome"] == "collected"
        assert (loops_left(), author.records()) == ([], [])

    def test_a_script_that_fails_is_quoted(self, author: Author, abandoned: Disk) -> None:
        author.write(LOOP.replace('"--detach"', '"--no-such-option"'))
        (item,) = found(author.host, status=1)
        assert item["outcome"] == "kept"
        assert "unrecognized option '--no-such-option'" in item["note"]
        assert author.records() == ["vbd-5-51712"]
        author.write(LOOP)
        assert gc(author.host).returncode == 0
        assert loops_left() == []

    def test_a_fault_of_the_scripts_is_one_sentence(self, author: Author, abandoned: Disk) -> None:
        author.write(LOOP.replace('if "device" in made', 'if "device" in nowhere'))
        (item,) = found(author.host, status=1)
        assert "the script's detach has a fault: NameError: name 'nowhere' is not defined (line " in item["note"]
        assert "Traceback" not in item["note"]


class TestWaits:
    def test_a_slow_program_is_told_with_its_own_words(self, author: Author, image: Path, tmp_path: Path) -> None:
        shell = "echo connecting to 10.0.0.1 >&2; while [ ! -e $D/go ]; do sleep 0.02; done"
        disk = author.disk(program(tmp_path, shell), image)
        process = disk.start("add")
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        (tmp_path / "go").touch()
        rest = process.communicate(timeout=30)[0]
        assert process.returncode == 0, rest
        assert line.startswith("block-test: vbd-5-51712: waiting for sh -c ")
        assert line.endswith(", 1 s so far; it says: connecting to 10.0.0.1\n")

    def test_a_wait_of_the_authors_own_is_told(self, author: Author, image: Path, tmp_path: Path) -> None:
        body = LOOP.replace(
            "return self.tool(",
            f'import os\n        self.wait(lambda: os.path.exists("{tmp_path}/go"), "the path to storage")\n'
            "        return self.tool(",
        )
        process = author.disk(body, image).start("add")
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        (tmp_path / "go").touch()
        process.communicate(timeout=30)
        assert process.returncode == 0
        assert line == "block-test: vbd-5-51712: waiting for the path to storage, 1 s so far\n"

    def test_the_log_has_it_too(self, tmp_path: Path) -> None:
        """In a process of its own, whose syslog daemon is here."""
        code = (
            f"import time; from vbdkit.engine import log; log._SOCKET = {str(tmp_path / 'log')!r}\n"
            "from vbdkit import platform; from vbdkit.datapaths import load\n"
            "from vbdkit.engine.record import Records; from vbdkit.engine.script import Run\n"
            "from vbdkit.engine.tool import run_tool; from vbdkit.protocol.vbd import parse_backend_path\n"
            "vbd = parse_backend_path(b'backend/vbd/5/51712'); end = time.monotonic() + 30\n"
            "linux, records = platform.load('linux'), Records(b'/none')\n"
            "run = Run('block-x', 'add', vbd, linux, load, records, b'/none', end, end, {})\n"
            "run_tool(run, [b'sleep', b'1.2'])\n"
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
            daemon.bind(str(tmp_path / "log"))
            daemon.settimeout(30)
            done = subprocess.run(
                [sys.executable, "-c", code],
                env={"PYTHONPATH": str(SOURCE)},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert daemon.recv(4096).endswith(b": block-x add vbd-5-51712: waiting for sleep 1.2, 1 s so far")
        assert done.stderr == "block-x: vbd-5-51712: waiting for sleep 1.2, 1 s so far\n"

    def test_a_toolstack_that_does_not_read_holds_up_nothing(self, author: Author, image: Path) -> None:
        noisy = LOOP.replace(
            "return self.tool(", 'for _ in range(2000): self.log("x" * 100)\n        return self.tool('
        )
        process = author.disk(noisy, image).start("add")
        assert process.wait(timeout=30) == 0
        process.communicate()


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ('self.tool("sh", "-c", "echo one >&2; echo two >&2; exit 3")', "failed: one; two"),
            ('self.tool("false")', "false failed: exit status 1"),
            ('self.tool("sh", "-c", "kill -9 $$")', "failed: signal 9"),
            ('self.tool("no-such-program")', "the program no-such-program is not there"),
            ('self.tool("fancy")', "the program fancy is not there (the package fancy-utils has it)"),
            ('self.tool("/etc/passwd")', "/etc/passwd is not there"),
            ('raise Failure("no {what} here", what="luck")', "no luck here"),
            ('target["nothing"]', "the script's attach has a fault: KeyError: 'nothing' (line "),
            ("1 / 0", "the script's attach has a fault: ZeroDivisionError: division by zero (line "),
            ("return None", "the script's attach returned None, and not the path of a device or file"),
            ('return ""', "the script's attach returned '', and not the path"),
            ('return "loop7"', "the script's attach returned 'loop7', and not the path"),
            ('open("/no/such/file")', "/no/such/file: No such file or directory"),
        ],
    )
    def test_one_sentence_says_what_was_wrong(self, author: Author, image: Path, code: str, words: str) -> None:
        body = LOOP.replace("        return self.tool(", f"        {code}\n        return self.tool(").replace(
            '    syntax = "FILE"', '    syntax = "FILE"\n    tools = {"fancy": "fancy-utils"}'
        )
        done = author.disk(body, image).add()
        assert done.status == 1
        assert words in done.error
        assert done.error in done.output
        assert "Traceback" not in done.output
        assert len(done.output.splitlines()) == 1
        assert (loops_left(), author.records()) == ([], [])

    @pytest.mark.parametrize("method", ["parse", "identity", "attach"])
    def test_a_fault_names_method_and_line(self, author: Author, image: Path, method: str) -> None:
        arguments = {"parse": "self, text", "identity": "self, target", "attach": "self, target, mode"}[method]
        body = (
            f"{LOOP}\n    def {method}({arguments}):\n        return helper()\n\ndef helper():\n    return undefined\n"
        )
        disk = author.disk(body, image)
        line = author.host.script.read_text().splitlines().index("    return undefined") + 1
        done = disk.add()
        assert done.error == (
            f"the script's {method} has a fault: NameError: name 'undefined' is not defined "
            f"(line {line} of {author.host.script})"
        )
        assert author.records() == []

    def test_a_fault_in_detach_keeps_the_record(self, author: Author, image: Path) -> None:
        disk = author.disk(LOOP, image)
        disk.add()
        author.write(LOOP.replace('self.tool("losetup", "--detach"', 'self.tol("losetup", "--detach"'))
        done = disk.remove()
        assert done.status == 1
        assert "the script's detach has a fault: AttributeError" in done.output
        assert author.records() == ["vbd-5-51712"]
        author.write(LOOP)
        assert disk.remove().status == 0
        assert (loops_left(), author.records()) == ([], [])

    def test_output_that_is_no_text_and_long(self, author: Author, image: Path, tmp_path: Path) -> None:
        (tmp_path / "said").write_bytes(b"x" * 100_000 + b"\n\377\033[31m\n")
        code = f'self.tool("sh", "-c", "cat {tmp_path}/said >&2; exit 1")'
        body = LOOP.replace("        return self.tool(", f"        {code}\n        return self.tool(")
        done = author.disk(body, image).add()
        assert done.status == 1
        assert done.error.isprintable()
        assert done.error.endswith("xxx; \\xff\\x1b[31m")
        assert len(done.error) < 1024


class TestWithoutXenstore:
    def test_remove_works_from_the_record(self, author: Author, image: Path) -> None:
        """Whether another guest has that device nobody can say then; so the device stays, and the record."""
        disk = author.disk(LOOP, image)
        disk.add()
        done = disk.run("remove", extra={"XENSTORED_PATH": "/nonexistent"})
        assert done.status == 1
        assert "stays: whether another guest has it by now cannot be told" in done.output
        assert author.records() == ["vbd-5-51712"]
        assert disk.remove().status == 0
        assert (loops_left(), author.records()) == ([], [])

    def test_an_add_begins_nothing(self, author: Author, image: Path, tmp_path: Path) -> None:
        disk = author.disk(program(tmp_path, "true"), image)
        done = disk.run("add", extra={"XENSTORED_PATH": "/nonexistent"})
        assert done.status == 1
        assert "xenstore" in done.output
        assert (detached(tmp_path), author.host.run_dir.exists()) == (0, False)
