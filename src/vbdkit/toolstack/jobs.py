"""Runs of block scripts for a daemon: each in a process of its own, many at a time, none for ever.

A run of vbdkit's own script is a forked process that calls the engine: all is imported already, and the engine may
use what belongs to a whole process (alarm and termination signals, the syslog connection), be killed, or hang in the
kernel, without the daemon or another run noticing. Others' scripts are started as libxl starts them (C3-C6).
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import NoReturn

from vbdkit.datapaths import load
from vbdkit.engine.record import RUN_DIR
from vbdkit.engine.script import LOCK_DIR, TIME_LIMIT, run
from vbdkit.protocol.failure import Failure, shown
from vbdkit.protocol.invocation import CONVENTIONS, build_invocation
from vbdkit.protocol.vbd import Vbd
from vbdkit.toolstack.script import HOTPLUG_TIMEOUT

# What a run of our own says on stderr is one sentence; the pipe that it goes to holds more than this.
_SENTENCE_MAX = 8192
# A run of our own ends by itself at this share of the limit, as a script does that libxl would kill (30 s of 40).
_SHARE = TIME_LIMIT / HOTPLUG_TIMEOUT


@dataclass(frozen=True)
class Own:
    """The settings of a script that is vbdkit's own, so that it needs no process to be started anew."""

    run_dir: bytes = RUN_DIR
    lock_dir: bytes = LOCK_DIR


@dataclass(frozen=True)
class Job:
    """What is to run: ``command`` (ADD or REMOVE) for ``vbd``, by ``script`` or, where ``own``, by the engine."""

    command: str
    vbd: Vbd
    script: bytes
    own: Own | None


@dataclass(frozen=True)
class Done:
    """How it ended. ``status`` as of subprocess; ``killed``: its time was up; ``said``: words of our own script."""

    job: Job
    status: int
    killed: bool
    seconds: float
    said: str


class _Process:
    """One that runs."""

    def __init__(self, job: Job, pid: int, limit: float, output: int) -> None:
        self.job = job
        self.pid = pid
        self.begun = time.monotonic()
        self.deadline = self.begun + limit
        self.killed = False
        self.output = output  # -1: it goes where ours goes


class Jobs:
    """The runs of one daemon. Not for several threads; who owns it gets SIGCHLD and calls ``reap``.

    ``limit`` is the number of seconds after which a run is killed, ``environ`` what scripts inherit, ``aside`` is
    called in a forked process, to let go of what is the daemon's.
    """

    def __init__(self, system: str, environ: Mapping[bytes, bytes], limit: float, aside: Callable[[], None]) -> None:
        """Start nothing yet."""
        self._system = system
        self._environ = dict(environ)
        self._limit = limit
        self._aside = aside
        self._running: dict[bytes, _Process] = {}

    def __len__(self) -> int:
        """How many run."""
        return len(self._running)

    def __contains__(self, path: object) -> bool:
        """Whether one runs for the vbd of this backend path."""
        return path in self._running

    def start(self, job: Job) -> None:
        """Start a run. Raises Failure where that cannot be."""
        vbd = job.vbd
        assert vbd.backend is not None
        argv, added = build_invocation(
            self._system, job.script, job.command, vbd.kind, vbd.domid, vbd.devid, vbd.backend
        )
        environ = {**self._environ, **added}
        try:
            if job.own is None:
                process = subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL, stdout=2, process_group=0)
                process.returncode = 0  # it is reaped here, by its id
                pid, output = process.pid, -1
            else:
                if CONVENTIONS[self._system][0] == "environment":
                    # Absolute: the daemon's connection need not be at home in the domain that it serves.
                    environ[b"XENBUS_PATH"] = vbd.path
                pid, output = self._fork(job.own, argv, environ)
        except OSError as error:
            raise Failure(
                "the script {script} cannot be run in this driver domain: {why}",
                script=job.script,
                why=error.strerror or str(error),
            ) from None
        self._running[vbd.path] = _Process(job, pid, self._limit, output)

    def reap(self) -> list[Done]:
        """Return the runs that have ended, and kill those whose time is up."""
        ended = []
        now = time.monotonic()
        for path, process in list(self._running.items()):
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                del self._running[path]
                code = os.waitstatus_to_exitcode(status)
                ended.append(Done(process.job, code, process.killed, now - process.begun, _said(process.output)))
            elif now >= process.deadline and not process.killed:
                # Only this process (C6): what a script started lives on, as under libxl.
                process.killed = True
                os.kill(process.pid, signal.SIGKILL)
        return ended

    def next_deadline(self) -> float:
        """When the next run has to be killed, in time.monotonic(); infinite where there is none."""
        return min((process.deadline for process in self._running.values() if not process.killed), default=inf)

    def terminate(self) -> None:
        """Ask all runs to end."""
        for process in self._running.values():
            os.kill(process.pid, signal.SIGTERM)

    def _fork(self, own: Own, argv: list[bytes], environ: dict[bytes, bytes]) -> tuple[int, int]:
        """Return (pid, the end of a pipe that has what it says)."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            pid = os.fork()
        except OSError:
            os.close(read)
            os.close(write)
            raise
        if pid == 0:
            self._child(own, argv, environ, write)
        os.close(write)
        return pid, read

    def _child(self, own: Own, argv: list[bytes], environ: dict[bytes, bytes], output: int) -> NoReturn:
        """Be the script."""
        status = 1
        try:
            self._aside()
            os.setpgid(0, 0)  # out of reach of the terminal's Ctrl-C, which means the daemon
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            for number, descriptor in enumerate((null, output, output)):
                os.dup2(descriptor, number)
            status = run(
                argv, environ, load, self._system, own.run_dir, own.lock_dir, self._limit * _SHARE, own_process=True
            )
        finally:
            os._exit(status)


def _said(output: int) -> str:
    """Read what came through a pipe whose writer is gone, and close it."""
    if output < 0:
        return ""
    try:
        return shown(os.read(output, _SENTENCE_MAX).rstrip(b"\n"))
    except BlockingIOError:  # a process that outlives the run has it open
        return ""
    finally:
        os.close(output)
