"""The helper of one shell script: answers its library, keeps its locks, passes on its stderr. Lives as long as it does.

Holds what a shell cannot hold safely: a lock whose descriptor no daemon of the script inherits, a connection to
the store, and the last line that a tool wrote to stderr, which is the best word there is for why a script failed.
How it talks is in ``scripts/talk.py``, what the questions mean in ``scripts/verbs.py``.
"""

import posix
import select
import time

from vbdkit.scripts.common import clean
from vbdkit.scripts.talk import IDLE, Talk
from vbdkit.scripts.verbs import Script

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Mapping
    from typing import Any
else:
    import _signal  # signal itself imports enum

# Milliseconds between looks for the shell where no descriptor tells of its end.
_LOOK = 200
# Seconds that a full pipe in the place of the toolstack's stderr is waited for.
_PATIENCE = 1.0
_LOG = b"/xen-hotplug.log"


def serve(
    fields: "list[bytes]",
    folder: bytes,
    run_dir: bytes,
    system: str,
    environ: "Mapping[bytes, bytes]",
    settings: "dict[str, Any]",
) -> bool:
    """Be the helper of one shell until it ends. Whether nothing is left to do then.

    ``fields`` are what the library says of its script: pid, command, name, backend path, folder of logs. ``environ`` is
    the script's environment, descriptor 2 the toolstack's stderr.
    """
    posix.setsid()  # what is meant for the script's terminal or group is not meant for us
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGPIPE):
        _signal.signal(number, _signal.SIG_IGN)
    null = posix.open("/dev/null", posix.O_RDWR)
    for fd in (0, 1):
        posix.dup2(null, fd)
    posix.closerange(3, 1024)
    pid, command, name, path, log_dir = fields
    try:
        stderr = Stderr(folder, log_dir)
        script = Script(command.decode("ascii"), name, path, run_dir, system, stderr.tell, environ, **settings)
        _answer(int(pid), Talk(folder), stderr, script, folder)
    finally:
        clean(folder)
    script.end()
    return stderr.end()


def no_place(error: OSError, fields: "list[bytes]", folder: bytes) -> None:
    """Tell that there can be no conversation."""
    from vbdkit.protocol.failure import Failure

    _, command, name, path, _ = fields
    place = folder.rpartition(b"/")[0]
    script = Script(command.decode("ascii"), name, path, place, "", lambda text: _write(2, text), posix.environ)
    why = Failure(
        "{folder}, where scripts and vbdkit talk, cannot be made: {why}",
        folder=folder,
        why=posix.strerror(error.errno or 0),
    )
    script.fail(why)


class Stderr:
    """Where the script's stderr goes: to the toolstack's, and to the log."""

    def __init__(self, folder: bytes, log_dir: bytes) -> None:
        """Open both ends. Raises OSError."""
        self._read = True  # the toolstack reads what it gets
        # For reading only: it ends when the last process that inherited it as its stderr does.
        self.fd = posix.open(folder + b"/err", posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
        try:
            flags = posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW
            self._log = posix.open(log_dir + _LOG, flags | posix.O_NONBLOCK, 0o640)
        except OSError:
            self._log = -1  # no folder for logs in this domain

    def overheard(self) -> bytes:
        """Pass on what the script and its tools have written to stderr by now, and return it."""
        whole = b""
        try:
            while piece := posix.read(self.fd, 65536):
                whole += piece
                self.tell(piece)
        except BlockingIOError:
            pass
        return whole

    def tell(self, text: bytes) -> None:
        """Write to the toolstack's stderr and to the log."""
        if self._read and not _write(2, text):
            self._read = False  # nor will it be: the rest is for the log only
        if self._log >= 0:
            _write(self._log, text)

    def end(self) -> bool:
        """Stay for what the script has left running, whose stderr would be a broken pipe otherwise.

        True where there is nothing of the kind.
        """
        null = posix.open("/dev/null", posix.O_RDWR)
        try:
            if not posix.read(self.fd, 1):
                posix.dup2(null, 2)
                return True
        except BlockingIOError:
            pass
        posix.set_blocking(self.fd, True)
        posix.dup2(self.fd, 0)
        posix.dup2(self._log if self._log >= 0 else null, 1)
        posix.dup2(null, 2)
        posix.chdir("/")
        try:
            posix.execv("/bin/cat", ["cat"])
        except OSError:
            while piece := posix.read(0, 65536):
                _write(1, piece)
        return False


def _answer(pid: int, talk: Talk, stderr: Stderr, script: Script, folder: bytes) -> None:
    """Answer a script's questions until its shell has ended."""
    try:
        shell = posix.pidfd_open(pid)
    except AttributeError:
        shell = -1  # not Linux
    except ProcessLookupError:
        return
    poll = select.poll()
    for fd in (talk.ask, stderr.fd, shell):
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    script.begin(folder)
    while True:
        ready = dict(poll.poll(IDLE if shell >= 0 else _LOOK))
        if stderr.fd in ready:
            text = stderr.overheard()
            script.hear(text)
            if not text:
                # Nobody has it open, of which poll would tell without end: look again at the next question.
                poll.unregister(stderr.fd)
        if talk.ask in ready:
            fields = talk.listen()
            if fields is not None:
                script.hear(stderr.overheard())
                poll.register(stderr.fd, select.POLLIN)
                talk.reply(*script.answer(fields), shell)
        elif shell in ready or (shell < 0 and not _alive(pid)):
            script.hear(stderr.overheard())
            return
        elif not ready:
            talk.look_for_turn()


def _alive(pid: int) -> bool:
    try:
        posix.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _write(fd: int, text: bytes) -> bool:
    """Write to what may be a pipe that nobody reads: that must not hold up a script. False: nobody did in time."""
    until = time.monotonic() + _PATIENCE
    out = select.poll()
    out.register(fd, select.POLLOUT)
    try:
        # A pipe that is ready takes this much at once (PIPE_BUF).
        while text and out.poll(max(0.0, until - time.monotonic()) * 1000):
            text = text[posix.write(fd, text[:4096]) :]
    except OSError:
        pass
    return not text
