"""Asking programs: no shell, nothing inherited, a limit of time, their words in the error, and none left running."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vbdkit.platform.programs import ProgramError, ask, limit

Make = Callable[[str, str], bytes]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Put a shell script on the path, and return the path."""

    def write(name: str, text: str) -> bytes:
        path = tmp_path / name
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)
        return os.fsencode(tmp_path)

    return write


def test_what_each_prints_comes_back_in_order(make: Make) -> None:
    make("one", 'echo "one $#: $1"')
    path = make("two", "echo two >&2; echo 2")
    assert ask(path, (b"two",), (b"one", b"$(touch canary); *")) == [b"2\n", b"one 1: $(touch canary); *\n"]


def test_they_run_beside_one_another(make: Make, tmp_path: Path) -> None:
    """Each waits for the other: one after the other they would never end."""
    for name in ("a", "b"):
        os.mkfifo(tmp_path / f"{name}.fifo")
    make("first", f"echo x >{tmp_path}/a.fifo; read line <{tmp_path}/b.fifo; echo $line")
    path = make("second", f"read line <{tmp_path}/a.fifo; echo y >{tmp_path}/b.fifo; echo $line")
    assert ask(path, (b"first",), (b"second",)) == [b"y\n", b"x\n"]


def test_more_than_a_pipe_holds_on_both_sides(make: Make) -> None:
    path = make(
        "much",
        "i=0; while [ $i -lt 3000 ]; do echo $i.......................................; "
        "echo $i....................................... >&2; i=$((i+1)); done",
    )
    (said,) = ask(path, (b"much",))
    assert len(said.splitlines()) == 3000


def test_nothing_is_inherited(make: Make, tmp_path: Path) -> None:
    # What started this process may have left it some.
    before = {os.path.realpath(path).rpartition("/")[2] for path in Path("/proc/self/fd").iterdir()}
    path = make("look", "exec /bin/ls -l /proc/self/fd")
    with (tmp_path / "open").open("w"):
        (said,) = ask(path, (b"look",), (b"look",))[:1]
    assert "/dev/null" in said.decode().splitlines()[1]
    assert str(tmp_path) not in said.decode()
    pipes = {line.rpartition(" ")[2] for line in said.decode().splitlines() if "pipe:" in line}
    assert len(pipes - before) == 2, "its own two, and none of the other program's"
    path = make("environment", "exec /usr/bin/env")
    assert sorted(ask(path, (b"environment",))[0].splitlines()) == sorted(
        [b"LC_ALL=C", b"PATH=" + path, b"PWD=" + os.getcwdb()]
    )


def test_a_broken_pipe_ends_it_as_it_should(make: Make) -> None:
    """Python ignores SIGPIPE, which a child would inherit."""
    path = make("pipe", "exec /bin/grep SigIgn /proc/self/status")
    (said,) = ask(path, (b"pipe",))
    assert not int(said.split()[1], 16) & (1 << (signal.SIGPIPE - 1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo 'tool: no such device' >&2; exit 3", "tool 5 x: exit 3: tool: no such device"),
        ("echo 'on the wrong side'; exit 1", "tool 5 x: exit 1: on the wrong side"),
        ("exit 1", "tool 5 x: exit 1, without a word"),
        ("kill -9 $$", "tool 5 x: ended by signal 9, without a word"),
    ],
)
def test_a_failure_in_its_own_words(make: Make, text: str, words: str) -> None:
    path = make("tool", text)
    with pytest.raises(ProgramError) as caught:
        ask(path, (b"tool", b"5", b"x"))
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [("exec /bin/sleep 60", "does not answer"), ("exec >&- 2>&-; exec /bin/sleep 60", "does not come to an end")],
)
def test_one_that_hangs_is_ended(make: Make, tmp_path: Path, text: str, words: str) -> None:
    path = make("hang", f"echo $$ >{tmp_path}/pid; {text}")
    make("well", "echo well")
    begun = time.monotonic()
    with pytest.raises(ProgramError, match=words):
        ask(path, (b"well",), (b"hang",), seconds=0.5)
    assert time.monotonic() - begun < 30, "not its own 60 seconds"
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_that_lets_no_signal_end_it_is_ended_with_all_that_it_started(make: Make, tmp_path: Path) -> None:
    path = make("hang", f"trap '' TERM INT HUP; /bin/sleep 600 & echo $! >{tmp_path}/pid; wait; wait; /bin/sleep 600")
    with pytest.raises(ProgramError, match="hang does not answer, and was killed"):
        ask(path, (b"hang",), seconds=0.5)
    grandchild = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 30
    while Path(f"/proc/{grandchild}").exists() and _state(grandchild) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_one_that_leaves_its_pipes_to_another_is_over_when_it_ends(make: Make, tmp_path: Path) -> None:
    path = make("parent", f"echo said; /bin/sleep 60 & echo $! >{tmp_path}/pid; echo more")
    try:
        assert ask(path, (b"parent",), seconds=30) == [b"said\nmore\n"]
        os.kill(int((tmp_path / "pid").read_text()), 0)  # it lives, and has them still
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_one_that_never_stops_talking_is_ended(make: Make) -> None:
    path = make("talk", "while :; do echo x; done")
    with pytest.raises(ProgramError, match="talk does not answer, and was killed"):
        ask(path, (b"talk",), seconds=0.3)


@pytest.fixture
def limits() -> Iterator[None]:
    yield
    limit(0, 0)


@pytest.mark.usefixtures("limits")
def test_the_time_of_a_run_counts_first_up_to_its_deadline_then_to_its_end(make: Make) -> None:
    path = make("hang", "exec /bin/sleep 60")
    begun = time.monotonic()
    limit(begun + 0.3, begun + 0.6)
    for _ in range(2):
        with pytest.raises(ProgramError, match="does not answer"):
            ask(path, (b"hang",), seconds=30)
    assert 0.6 <= time.monotonic() - begun < 30
    assert ask(make("well", "echo well"), (b"well",)) == [b"well\n"], "a run that is over limits nothing"


def test_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"the program vnconfig is not there \(looked in /nowhere:.*\)"):
        ask(b"/nowhere:" + os.fsencode(tmp_path), (b"vnconfig", b"-l"))
    with pytest.raises(ProgramError, match="this system has none"):
        ask(b"", (b"vnconfig", b"-l"))


def test_the_first_folder_that_has_it(make: Make, tmp_path: Path) -> None:
    (tmp_path / "early").mkdir()
    (tmp_path / "early/tool").write_text("not executable")
    path = make("tool", "echo late")
    assert ask(os.fsencode(tmp_path / "early") + b":" + path, (b"tool",)) == [b"late\n"]


def test_all_end_when_one_cannot_be_started(make: Make, tmp_path: Path) -> None:
    path = make("slow", f"echo $$ >{tmp_path}/pid; exec /bin/sleep 60")
    with pytest.raises(ProgramError, match="missing is not there"):
        ask(path, (b"slow",), (b"missing",))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ProgramError):
        ask(path, (b"missing",))
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
