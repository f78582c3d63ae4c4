"""The helper of one shell script: answers its library, keeps its locks, passes on its stderr. Lives as long as it does.

Holds what a shell cannot hold safely: a lock whose descriptor no daemon of the script inherits, a connection to
the store, and the last line that a tool wrote to stderr, which is the best word there is for why a script failed.

The conversation goes over named pipes, which the library opens for each call and closes again, so that nothing of it
is inherited either. ``turn`` has one byte in it while nobody speaks. A question on ``ask`` is fields with a NUL after
each, their number first; an answer on ``answer`` a line with the status (0, or 1: give up) and the number of lines
that follow. What the questions mean is in ``scripts/verbs.py``.
"""

import posix
import select
import time

from vbdkit.scripts.common import clean
from vbdkit.scripts.verbs import Script

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any
else:
    import _signal  # signal itself imports enum

# Milliseconds after which an idle helper looks whether a turn was taken and not used.
_IDLE = 2500
# Milliseconds between looks for the shell where no descriptor tells of its end.
_LOOK = 200
# Seconds that a full pipe in the place of the toolstack's stderr is waited for.
_PATIENCE = 1.0
_LOG = b"/xen-hotplug.log"


def serve(
    pid: int,
    command: str,
    name: bytes,
    path: bytes,
    folder: bytes,
    log_dir: bytes,
    run_dir: bytes,
    system: str,
    **settings: "Any",
) -> None:
    """Be the helper of the shell ``pid``, which runs the script ``name`` for ``path``, until it ends."""
    posix.setsid()  # what is meant for the script's terminal or group is not meant for us
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGPIPE):
        _signal.signal(number, _signal.SIG_IGN)
    null = posix.open("/dev/null", posix.O_RDWR)
    for fd in (0, 1):
        posix.dup2(null, fd)
    posix.closerange(3, 1024)
    try:
        pipes = Pipes(folder, log_dir)
        script = Script(command, name, path, run_dir, system, pipes.tell, **settings)
        Helper(pid, pipes, script).serve()
    finally:
        clean(folder)
    script.end()
    pipes.end()


def no_place(error: OSError, folder: bytes, command: bytes, name: bytes, path: bytes) -> None:
    """Tell that there can be no conversation."""
    from vbdkit.protocol.failure import Failure

    script = Script(command.decode("ascii"), name, path, folder.rpartition(b"/")[0], "", lambda text: _write(2, text))
    why = Failure(
        "{folder}, where scripts and vbdkit talk, cannot be made: {why}",
        folder=folder,
        why=posix.strerror(error.errno or 0),
    )
    script.fail(why)


class Pipes:
    """Our side of the conversation's pipes, and where the script's stderr goes: the toolstack's and the log."""

    def __init__(self, folder: bytes, log_dir: bytes) -> None:
        """Open them. Descriptor 2 is the toolstack's stderr. Raises OSError."""
        both = posix.O_RDWR | posix.O_NONBLOCK | posix.O_CLOEXEC  # so that opening never waits and none ever ends
        self.turn = posix.open(folder + b"/turn", both)
        self.ask = posix.open(folder + b"/ask", both)
        self.answer = posix.open(folder + b"/answer", both)
        # For reading only: it ends when the last process that inherited it as its stderr does.
        self.err = posix.open(folder + b"/err", posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
        try:
            flags = posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW
            self.log = posix.open(log_dir + _LOG, flags | posix.O_NONBLOCK, 0o640)
        except OSError:
            self.log = -1  # no folder for logs in this domain
        posix.write(self.turn, b"\n")

    def overheard(self) -> bytes:
        """Pass on what the script and its tools have written to stderr by now, and return it."""
        whole = b""
        try:
            while piece := posix.read(self.err, 65536):
                whole += piece
                self.tell(piece)
        except BlockingIOError:
            pass
        return whole

    def tell(self, text: bytes) -> None:
        """Write to the toolstack's stderr and to the log."""
        _write(2, text)
        if self.log >= 0:
            _write(self.log, text)

    def end(self) -> None:
        """Stay for what the script has left running, whose stderr would be a broken pipe otherwise."""
        try:
            if not posix.read(self.err, 1):
                return
        except BlockingIOError:
            pass
        null = posix.open("/dev/null", posix.O_RDWR)
        posix.set_blocking(self.err, True)
        posix.dup2(self.err, 0)
        posix.dup2(self.log if self.log >= 0 else null, 1)
        posix.dup2(null, 2)
        posix.chdir("/")
        try:
            posix.execv("/bin/cat", ["cat"])
        except OSError:
            while piece := posix.read(0, 65536):
                _write(1, piece)


class Helper:
    """The conversation with one shell."""

    def __init__(self, pid: int, pipes: Pipes, script: Script) -> None:
        """Take who talks, over what, about what."""
        self._pid = pid
        self._pipes = pipes
        self._script = script
        self._heard = b""
        self._asked = 0  # questions so far
        self._missed = -1  # how many these were when the turn was found taken

    def serve(self) -> None:
        """Answer until the shell has ended."""
        try:
            shell = posix.pidfd_open(self._pid)
        except AttributeError:
            shell = -1  # not Linux
        except ProcessLookupError:
            return
        self._poll = select.poll()
        for fd in (self._pipes.ask, self._pipes.err, shell):
            if fd >= 0:
                self._poll.register(fd, select.POLLIN)
        self._shell = shell
        self._script.begin()
        while True:
            ready = dict(self._poll.poll(_IDLE if shell >= 0 else _LOOK))
            if self._pipes.err in ready:
                text = self._pipes.overheard()
                self._script.hear(text)
                if not text:
                    # Nobody has it open, of which poll would tell without end: look again at the next question.
                    self._poll.unregister(self._pipes.err)
            if self._pipes.ask in ready:
                self._listen()
            elif shell in ready or (shell < 0 and not _alive(self._pid)):
                self._script.hear(self._pipes.overheard())
                return
            elif not ready:
                self._look_for_turn()

    def _listen(self) -> None:
        """Take what was asked, and answer it once it is whole."""
        self._heard += posix.read(self._pipes.ask, 65536)
        self._asked += 1
        count, mark, rest = self._heard.partition(b"\0")
        if not mark:
            return
        fields = rest.split(b"\0")
        if len(fields) <= int(count):
            return
        self._heard = b""
        said = self._pipes.overheard()
        self._script.hear(said)
        self._poll.register(self._pipes.err, select.POLLIN)
        status, text = self._script.answer(fields[:-1])
        lines = text.replace(b"\0", b"").split(b"\n") if text is not None else []
        self._reply(b"%d %d\n" % (status, len(lines)) + b"".join(line + b"\n" for line in lines))

    def _reply(self, text: bytes) -> None:
        """Write an answer, unless the shell ends before it has read it."""
        out = select.poll()
        out.register(self._pipes.answer, select.POLLOUT)
        if self._shell >= 0:
            out.register(self._shell, select.POLLIN)
        while text:
            ready = dict(out.poll())
            if self._shell in ready:
                return
            try:
                text = text[posix.write(self._pipes.answer, text) :]
            except BlockingIOError:
                pass

    def _look_for_turn(self) -> None:
        """Take the turn back from a process that was killed while it had it: one that lives uses it at once."""
        try:
            posix.read(self._pipes.turn, 1)
        except BlockingIOError:
            if self._asked != self._missed:
                self._missed = self._asked
                return  # taken a moment ago, perhaps
            self._heard = b""
            try:
                posix.read(self._pipes.answer, 1 << 20)
            except BlockingIOError:
                pass
        self._missed = -1
        posix.write(self._pipes.turn, b"\n")


def _alive(pid: int) -> bool:
    try:
        posix.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _write(fd: int, text: bytes) -> None:
    """Write to what may be a pipe that nobody reads: that must not hold up a script."""
    until = time.monotonic() + _PATIENCE
    out = select.poll()
    out.register(fd, select.POLLOUT)
    try:
        # A pipe that is ready takes this much at once (PIPE_BUF).
        while text and out.poll(max(0.0, until - time.monotonic()) * 1000):
            text = text[posix.write(fd, text[:4096]) :]
    except OSError:
        pass
