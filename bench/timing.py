"""Starts one process and says how long it took, or how long it held the sharing lock. Knows nothing of Xen.

How long: from before posix_spawn until wait4 has returned, with the monotonic clock.

The lock: no tracer, for that slows down what it measures, and a script of many processes most; and not /proc/locks,
for reading it makes every flock(2) of the machine wait for milliseconds (fs/locks.c takes file_rwsem for writing).
Instead inotify tells this process when the lock's file is opened and when it is unlinked, from which on the next script
makes a file of its own. To hear of both at once it has real-time priority and shares a core with the script, since
waking another core can take long on a virtual machine. What is returned is an upper bound: opening comes before
holding, in Xen's own script by the start of flock(1), a millisecond or so.
"""

import contextlib
import ctypes
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

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
    """Seconds from the opening of `lock` by the process, or one that it started, to its unlink; None: it took no lock.

    Raises ProcessFailed.
    """
    began = held = None
    with _news_of(lock.parent) as news, _urgent():
        process = command.start()
        ended = os.pidfd_open(process)
        ready: list[int] = []
        now = time.perf_counter_ns()
        while ready != [ended]:
            before = now
            ready, _, _ = select.select([news, ended], [], [])
            now = time.perf_counter_ns()
            if news in ready:
                mask = _masks(os.read(news, 4096))
                if began is None and mask & (IN_OPEN | IN_CREATE):
                    began = before if mask & IN_DELETE else now
                if began is not None and mask & IN_DELETE:
                    held = (now - began) / 1e9
        os.close(ended)
        _, status, _ = os.wait4(process, 0)
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
    """Go before all other processes when there is something to do, on the core of what is started meanwhile.

    Containers may forbid the priority; the bound is then as loose as the machine is busy.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, cores)
