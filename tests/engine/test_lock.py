"""S4: the lock that old and new scripts share, with real processes in the way."""

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vbdkit.engine import Lock
from vbdkit.protocol.failure import Failure

HOLD = (
    "import fcntl, os, sys, time; f = os.open(sys.argv[1], 66); fcntl.flock(f, 2); "
    "print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def directory(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "xen-hotplug")


def lock(directory: bytes, seconds: float = 5) -> Lock:
    return Lock(directory, time.monotonic() + seconds)


@pytest.fixture
def holder(directory: bytes) -> Iterator["subprocess.Popen[str]"]:
    os.mkdir(directory)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, os.fsdecode(directory + b"/block")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with process:
        yield process
        process.kill()


def test_the_file_is_there_while_held_and_gone_after(directory: bytes) -> None:
    with lock(directory) as held:
        assert held.path == directory + b"/block"
        inside = os.stat(held.path)
        assert inside.st_size == 0
    assert os.listdir(directory) == []


def test_it_excludes_another_flock_on_the_same_file(directory: bytes) -> None:
    with lock(directory) as held:
        other = os.open(held.path, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)


def test_a_wait_ends_at_the_deadline_and_says_who_holds_it(directory: bytes, holder: "subprocess.Popen[str]") -> None:
    before = time.monotonic()
    with pytest.raises(Failure) as caught, lock(directory, 0.3):
        pass
    assert 0.2 < time.monotonic() - before < 5
    assert f"pid {holder.pid} ({sys.executable} -c" in str(caught.value)
    assert os.listdir(directory) == [b"block"]


def test_the_holder_is_found_among_more_locks_than_a_page_of_proc_has(
    directory: bytes, holder: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    with contextlib.ExitStack() as files:
        for number in range(150):  # the newest stand in front
            file = files.enter_context((tmp_path / str(number)).open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Failure) as caught, lock(directory, 0.1):
            pass
    assert f"pid {holder.pid} ({sys.executable} -c" in str(caught.value)


def test_a_killed_holder_leaves_nothing_in_the_way(directory: bytes, holder: "subprocess.Popen[str]") -> None:
    holder.kill()
    holder.wait()
    assert os.listdir(directory) == [b"block"]
    with lock(directory):
        pass
    assert os.listdir(directory) == []


def test_a_file_that_was_replaced_under_the_waiter_is_tried_anew(
    directory: bytes, holder: "subprocess.Popen[str]"
) -> None:
    """The holder unlinks (as it should) and a third party makes a new file before the waiter wakes."""
    with ThreadPoolExecutor(1) as pool:
        path = directory + b"/block"
        old = os.stat(path).st_ino
        waiter = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys, time, os\nfrom vbdkit.engine import Lock\n"
                "with Lock(os.fsencode(sys.argv[1]), time.monotonic() + 10) as l: print(os.stat(l.path).st_ino)",
                os.fsdecode(directory),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        result = pool.submit(waiter.communicate)
        time.sleep(0.3)
        os.unlink(path)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT))
        new = os.stat(path).st_ino
        holder.kill()
        assert result.result(10)[0] == f"{new}\n"
        assert new != old


def test_a_directory_in_the_locks_place_is_a_clear_error(directory: bytes) -> None:
    os.makedirs(directory + b"/block")
    with pytest.raises(Failure, match="cannot be taken"), lock(directory):
        pass


def test_a_link_to_nowhere_in_the_directorys_place_is_a_clear_error(directory: bytes) -> None:
    os.symlink("/nowhere/at/all", directory)
    with pytest.raises(Failure, match="cannot be taken: No such file or directory"), lock(directory):
        pass


def test_many_processes_hold_it_one_at_a_time(directory: bytes, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    count = (
        "import sys, time, os\nfrom vbdkit.engine import Lock\n"
        "for _ in range(20):\n"
        " with Lock(os.fsencode(sys.argv[1]), time.monotonic() + 50):\n"
        "  n = int(open(sys.argv[2]).read()); time.sleep(0.0005); open(sys.argv[2], 'w').write(str(n + 1))\n"
    )
    command = [sys.executable, "-Wignore", "-c", count, os.fsdecode(directory), str(counter)]
    processes = [subprocess.Popen(command) for _ in range(8)]
    assert [process.wait(60) for process in processes] == [0] * 8
    assert counter.read_text() == "160"
    assert os.listdir(directory) == []
