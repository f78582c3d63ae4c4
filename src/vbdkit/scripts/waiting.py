"""A helper whose script has ended waits for the next one: to start the interpreter is most of what a script costs.

For each script that asks it forks a helper, which has all modules from the first moment; itself it holds nothing, knows
nothing of any disk, and says no to whatever is not exactly as it was: changed modules or settings, another mount
namespace. The library then starts a helper of its own, as it does where none waits. Linux only: elsewhere
there is no way to another process's stderr.

Off the hot path: nobody waits for it until it is ready.
"""

import os
import select
import signal
import sys
import time

from vbdkit.engine.flock import at, free
from vbdkit.scripts.common import clean, make, place
from vbdkit.scripts.helper import serve
from vbdkit.scripts.talk import IDLE, Talk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Seconds without a script after which it leaves.
STAY = 60.0
# Seconds for which one that leaves still says no to those that found it before.
_LINGER = 1.0
_PIDFD_GETFD = 438  # asm-generic/unistd.h, the same on all machines


def wait(run_dir: bytes, system: str, settings: "dict[str, Any]", began: int) -> None:
    """Wait for scripts, unless another helper does. Returns when it is time to end the process.

    ``began`` (time.time_ns()) is from before the modules were loaded: one that changed since may be the old one here.
    """
    sources = _sources()
    if not hasattr(os, "pidfd_open") or any(changed > began for _, changed, _ in sources):
        return
    os.closerange(3, 1024)
    os.chdir("/")
    folder = run_dir + b"/.sh"
    try:
        mark = _settle(folder)
        if mark < 0:
            return
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
        Waiting(folder, mark, run_dir, system, settings, sources).wait()
    except OSError:
        return  # the folder went away, say


class Waiting:
    """One that waits. ``mark`` is the open file in ``folder`` whose lock says that somebody does."""

    def __init__(
        self,
        folder: bytes,
        mark: int,
        run_dir: bytes,
        system: str,
        settings: "dict[str, Any]",
        sources: "list[tuple[str, int, int]]",
    ) -> None:
        """Take the parts; ``sources`` are those that must not change."""
        self._folder = folder
        self._mark = mark
        self._run_dir = run_dir
        self._system = system
        self._settings = settings
        self._talk = Talk(folder)
        self._start = os.fsencode(sys.orig_argv[sys.orig_argv.index("-c") + 1])
        self._getfd = _getfd()
        self._sources = sources
        self._until = time.monotonic() + STAY

    def wait(self) -> None:
        """Serve scripts until none has come for a while, or the folder is gone."""
        poll = select.poll()
        poll.register(self._talk.ask, select.POLLIN)
        gone = b""
        while time.monotonic() < self._until:
            if poll.poll(IDLE):
                fields = self._talk.listen()
                if fields is not None:
                    text = None if gone else self._served(fields)
                    self._talk.reply(0 if text else 1, text, -1)
                continue
            if at(self._mark, self._folder + b"/pid") is None and not gone:
                return
            self._talk.look_for_turn()
            if time.monotonic() >= self._until and not gone:
                gone = self._folder + b".%d" % os.getpid()
                os.rename(self._folder, gone)  # nobody finds it any more
                clean(gone)
                self._until = time.monotonic() + _LINGER

    def _served(self, fields: list[bytes]) -> bytes | None:
        """Fork a helper for a script; return what the library is to know, or None: this one is not for us."""
        verb, pid, *rest, start = fields
        if verb != b"start" or start != self._start or _sources() != self._sources:
            return None
        try:
            process = b"/proc/" + pid
            if os.readlink(process + b"/ns/mnt") != os.readlink(b"/proc/self/ns/mnt"):
                return None
            with open(process + b"/environ", "rb") as file:
                environ = dict(text.split(b"=", 1) for text in file.read().split(b"\0") if b"=" in text)
            stderr = self._stderr(int(pid))
            try:
                folder = place(self._run_dir, pid)
                make(self._run_dir, folder)
                child = os.fork()
                if child == 0:
                    os.dup2(stderr, 2)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # it waits for what it starts itself
                    try:
                        serve([pid, *rest], folder, self._run_dir, self._system, environ, self._settings)
                    finally:
                        os._exit(0)
            finally:
                os.close(stderr)
        except OSError:
            return None
        self._until = time.monotonic() + STAY
        return b"%d %s" % (child, folder)

    def _stderr(self, pid: int) -> int:
        """Return a descriptor of another process's stderr. Raises OSError."""
        process = os.pidfd_open(pid)
        try:
            fd = self._getfd(_PIDFD_GETFD, process, 2, 0) if self._getfd is not None else -1
        finally:
            os.close(process)
        # A pipe or a terminal can be had by its name too; a socket cannot.
        return fd if fd >= 0 else os.open(f"/proc/{pid}/fd/2", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


def _settle(folder: bytes) -> int:
    """Make the folder where scripts look for one that waits. Returns the locked file in it; -1: another one waits."""
    fresh = folder + b".%d" % os.getpid()
    make(folder.rpartition(b"/")[0], fresh)
    mark = os.open(fresh + b"/pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    free(mark)
    with open("/proc/self/stat", "rb") as file:
        began = file.read().rpartition(b")")[2].split()[19]  # proc(5), field 22
    os.write(mark, b"%d %s\n" % (os.getpid(), began))
    for _ in range(2):
        try:
            os.rename(fresh, folder)
        except OSError:
            if _is_taken(folder):
                break
            clean(folder)
        else:
            return mark
    clean(fresh)
    return -1


def _is_taken(folder: bytes) -> bool:
    """Whether somebody waits there: whoever does has the lock, and nobody has it after a kill."""
    try:
        fd = os.open(folder + b"/pid", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not free(fd) or at(fd, folder + b"/pid") is None
    finally:
        os.close(fd)


def _sources() -> "list[tuple[str, int, int]]":
    """Return when each module's source last changed in any way, and its size. Raises OSError for one that is gone."""
    found = []
    for name, module in sorted(sys.modules.items()):
        source = getattr(module, "__file__", None)
        if name.startswith("vbdkit") and source:
            status = os.stat(source)
            found.append((source, status.st_ctime_ns, status.st_size))
    return found


def _getfd() -> "Any":
    try:
        import ctypes

        return ctypes.CDLL(None).syscall
    except (ImportError, OSError):
        return None
