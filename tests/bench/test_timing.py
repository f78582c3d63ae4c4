"""bench.timing: what it says about processes of which the truth is known."""

import sys
from pathlib import Path

import pytest

from bench.timing import Command, ProcessFailed, duration, lock_held

HOLD = """
import fcntl, os, sys, time
time.sleep(0.3)
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
time.sleep(0.2)
os.unlink(sys.argv[1])
time.sleep(0.3)
"""


def _python(folder: Path, program: str, *arguments: str) -> Command:
    return Command([sys.executable, "-I", "-S", "-c", program, *arguments], {}, folder / "log")


def test_duration_is_the_whole_run(tmp_path: Path) -> None:
    assert 0.1 <= duration(_python(tmp_path, "import time; time.sleep(0.1)")) < 1


def test_a_failure_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="ended with 3\nwhy"):
        duration(_python(tmp_path, "print('why'); raise SystemExit(3)"))


def test_the_lock_is_held_from_open_to_unlink_not_from_start_to_exit(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "block"
    lock.parent.mkdir()
    held = lock_held(_python(tmp_path, HOLD, str(lock)), lock)
    assert held is not None
    assert 0.2 <= held < 0.4


def test_no_lock_is_not_a_short_one(tmp_path: Path) -> None:
    assert lock_held(_python(tmp_path, "pass"), tmp_path / "block") is None
