"""Starts one process and says how long it took, or how long it held the sharing lock. Knows nothing of Xen.

How long: from before posix_spawn until wait4 has returned, with the monotonic clock.

The lock: no tracer, for that slows down what it measures, and a script of many processes most. Instead inotify tells
this process, which waits at real-time priority and so wakes within some 20 us, that somebody opens the lock's file and
that it is unlinked. Opening comes a little before holding (Xen's own script starts flock(1) in between), so from then
on /proc/locks is read ten times a millisecond until the kernel lists the flock. What is returned is an upper bound:
from the last look at which it was not held yet to the news of the unlink, from which on the next script makes a file
of its own.
"""

import contextlib
import ctypes
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

LOOK_AGAIN = 100e-6  # seconds between two looks at /proc/locks
# sys/inotify.h
IN_OPEN, IN_CREATE, IN_DELETE = 0x20, 0x100, 0x200
_NOTHING = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)


class ProcessFailed(Exception):
    """A process that is measured ended with another status than 0: there is nothing to report."""


class Command:
    """A program with its arguments and its whole environment; what it prints goes to `log`."""

    def __init__(self, argv: list[str], environment: dict[str, str], log: Path):
        self.argv = argv
        self.environment = environment
        self.log = log

    def start(self) -> int:
        """The process id. stdin is /dev/null, as under libxl."""
        out = (os.POSIX_SPAWN_OPEN, 1, str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        actions = [_NOTHING, out, (os.POSIX_SPAWN_DUP2, 1, 2)]
        return os.posix_spawn(self.argv[0], self.argv, self.environment, file_actions=actions)

    def check(self, status: int) -> None:
        if status:
            code = os.waitstatus_to_exitcode(status)
            tail = self.log.read_text(errors="replace")[-500:] if self.log.exists() else ""
            raise ProcessFailed(f"{' '.join(self.argv)} ended with {code}\n{tail}".rstrip())


def duration(command: Command) -> float:
    """Seconds from start to end. Raises ProcessFailed."""
    began = time.perf_counter_ns()
    _, status, _ = os.wait4(command.start(), 0)
    ended = time.perf_counter_ns()
    command.check(status)
    return (ended - began) / 1e9


def lock_held(command: Command, lock: Path) -> float | None:
    """Seconds for which the process, or one that it started, held flock on `lock`; None if it took no lock.

    Raises ProcessFailed.
    """
    with _news_of(lock.parent) as news, _urgent():
        process = command.start()
        ended = os.pidfd_open(process)
        began: int | None = None
        held: float | None = None
        seen = False  # in /proc/locks
        try:
            while True:
                looking = began is not None and not seen and held is None
                ready, _, _ = select.select([news, ended], [], [], LOOK_AGAIN if looking else None)
                now = time.perf_counter_ns()
                if news in ready:
                    mask = _masks(os.read(news, 4096))
                    if began is None and mask & (IN_OPEN | IN_CREATE):
                        began = now
                    if began is not None and mask & IN_DELETE:
                        held = (now - began) / 1e9
                if began is not None and not seen and held is None:
                    seen = _is_held(lock)
                    if not seen:
                        began = now
                if ready == [ended]:
                    break
            _, status, _ = os.wait4(process, 0)
        finally:
            os.close(ended)
    command.check(status)
    return held


@contextlib.contextmanager
def _news_of(folder: Path) -> Iterator[int]:
    """An inotify descriptor that tells of files that are opened, made and unlinked in `folder`."""
    libc = ctypes.CDLL(None, use_errno=True)
    news = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if news < 0 or libc.inotify_add_watch(news, os.fsencode(folder), IN_OPEN | IN_CREATE | IN_DELETE) < 0:
        raise OSError(ctypes.get_errno(), "inotify", str(folder))
    try:
        yield news
    finally:
        os.close(news)


def _masks(events: bytes) -> int:
    """All masks of struct inotify_event (wd, mask, cookie, len, name) in one."""
    mask, at = 0, 0
    while at < len(events):
        mask |= int.from_bytes(events[at + 4 : at + 8], "little")
        at += 16 + int.from_bytes(events[at + 12 : at + 16], "little")
    return mask


@contextlib.contextmanager
def _urgent() -> Iterator[None]:
    """Go before all other processes when there is something to do; what is started meanwhile does not.

    Containers may forbid it; the bound is then as loose as the machine is busy.
    """
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _is_held(path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    # "1: FLOCK  ADVISORY  WRITE 4711 00:18:123 0 EOF"; a waiter has "->" behind the number.
    inode = f"{os.major(there.st_dev):02x}:{os.minor(there.st_dev):02x}:{there.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5] == inode:
            return True
    return False
