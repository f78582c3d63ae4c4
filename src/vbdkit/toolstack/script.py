"""Running a block script as libxl does (C3-C6): argv, environment, descriptors, the time limit, the error.

Source: libxl_exec.c and libxl_aoutils.c of Xen for the descriptors and the kill, libxl_{linux,freebsd,netbsd}.c
for the arguments (protocol/invocation.py holds those).
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from vbdkit.datapaths import load
from vbdkit.engine.script import TIME_LIMIT, run
from vbdkit.protocol.invocation import build_invocation
from vbdkit.protocol.nodes import HOTPLUG_ERROR
from vbdkit.protocol.vbd import backend_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from vbdkit.engine.script import Run

    Follow = Callable[[float, bytes], None]
    from vbdkit.xenstore.client import Connection

# libxl's LIBXL_HOTPLUG_TIMEOUT, in seconds.
HOTPLUG_TIMEOUT = 40.0
# Seconds between two looks at what a script has said so far.
_LOOK = 0.1


@dataclass(frozen=True)
class ScriptRun:
    """How one run of a script ended.

    ``status`` is the exit status, negative for a signal. ``killed``: the time limit was up; ``error`` is then
    None, since libxl does not read hotplug-error in that case. ``seconds`` is wall-clock time. ``output`` is what
    came on stdout and stderr, in that order of writing.
    """

    status: int
    killed: bool
    seconds: float
    output: bytes
    error: bytes | None


def run_script(
    store: "Connection",
    system: str,
    script: bytes,
    command: str,
    domid: int,
    devid: int,
    *,
    kind: bytes = b"vbd",
    own_domid: int = 0,
    environ: Mapping[bytes, bytes] | None = None,
    timeout: float = HOTPLUG_TIMEOUT,
    process_group: int | None = None,
    follow: "Follow | None" = None,
) -> ScriptRun:
    """Run ``script`` with ``command`` (ADD or REMOVE) for a vbd of guest ``domid`` and wait for it.

    ``environ`` is the environment that it inherits (ours where None). ``process_group`` 0 puts it out of reach
    of the terminal's Ctrl-C, which libxl does not do. ``follow`` is called while the script runs, with the seconds so
    far and what it has said since the last call, in another thread. Raises OSError where the script cannot be started,
    StoreError where the store ends.
    """
    argv, additions = build_invocation(system, script, command, kind, domid, devid, own_domid)
    inherited = dict(os.environb if environ is None else environ)
    process: subprocess.Popen[bytes] | None = None
    limit: threading.Timer | None = None
    reader: _Reader | None = None
    # A file, not a pipe: children that outlive the script keep a pipe open, and reading it would not end.
    with tempfile.TemporaryFile() as output:
        begun = time.monotonic()
        try:
            with _held():
                process = subprocess.Popen(
                    argv,
                    env={**inherited, **additions},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    process_group=process_group,
                )
            # Popen.wait(timeout) sleeps between looks, which would be half of what is measured here.
            limit = threading.Timer(timeout, process.send_signal, [signal.SIGKILL])
            limit.start()
            if follow is not None:
                reader = _Reader(output.fileno(), begun, follow)
                reader.start()
            process.wait()
            seconds = time.monotonic() - begun
        finally:
            if limit is not None:
                limit.cancel()
            if process is not None:
                # Only this process (C6): what it started lives on. It is still there only where we are being ended.
                process.send_signal(signal.SIGKILL)
                process.wait()
            if reader is not None:
                reader.end()
        killed = process.returncode == -signal.SIGKILL and seconds >= timeout
        output.seek(0)
        said = output.read()
    error = None
    if process.returncode != 0 and not killed:
        (error,) = store.read_many([backend_path(own_domid, kind, domid, devid) + b"/" + HOTPLUG_ERROR])
    return ScriptRun(process.returncode, killed, seconds, said, error)


class _Reader(threading.Thread):
    """Passes on what is written to a file, until it is ended, and then the rest of it."""

    def __init__(self, descriptor: int, begun: float, follow: "Follow") -> None:
        super().__init__(name="output of a script", daemon=True)
        self._descriptor = descriptor
        self._begun = begun
        self._follow = follow
        self._ended = threading.Event()

    def run(self) -> None:
        at = 0
        while True:
            last = self._ended.wait(_LOOK)
            said = os.pread(self._descriptor, os.fstat(self._descriptor).st_size - at, at)
            at += len(said)
            try:
                self._follow(time.monotonic() - self._begun, said)
            except OSError:
                return  # nobody reads it any more
            if last:
                return

    def end(self) -> None:
        self._ended.set()
        self.join()


@contextmanager
def _held() -> Iterator[None]:
    """Let what ends this process (Ctrl-C, SIGTERM) wait for a moment: a child that is not known yet would live on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    came: list[tuple[int, FrameType | None]] = []
    for number, handler in before.items():
        if callable(handler):  # what is ignored stays ignored, also in the child; a handler is reset there
            signal.signal(number, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
    for sent, frame in came:
        handler = before[signal.Signals(sent)]
        assert callable(handler)
        handler(sent, frame)


def run_here(
    store: "Connection",
    system: str,
    script: bytes,
    command: str,
    domid: int,
    devid: int,
    *,
    kind: bytes = b"vbd",
    own_domid: int = 0,
    environ: Mapping[bytes, bytes] | None = None,
    timeout: float = TIME_LIMIT,
    run_dir: bytes,
    lock_dir: bytes,
    add: "Callable[[Run], None] | None" = None,
) -> ScriptRun:
    """Do what our own ``block`` does when it is called like this, without a process; the arguments are run_script's.

    ``timeout`` ends it in order, so ``killed`` is never true. ``add`` takes the place of ``engine.attach.add``.
    Raises StoreError where the store ends.
    """
    argv, additions = build_invocation(system, script, command, kind, domid, devid, own_domid)
    inherited = dict(os.environb if environ is None else environ)
    said: list[bytes] = []
    begun = time.monotonic()
    status = run(
        argv,
        {**inherited, **additions},
        load,
        system,
        run_dir,
        lock_dir,
        min(timeout, TIME_LIMIT),
        say=lambda line, _: said.append(line),
        add=add,
    )
    seconds = time.monotonic() - begun
    error = None
    if status != 0:
        (error,) = store.read_many([backend_path(own_domid, kind, domid, devid) + b"/" + HOTPLUG_ERROR])
    return ScriptRun(status, False, seconds, b"".join(said), error)
