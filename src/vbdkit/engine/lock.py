"""The lock that old and new scripts share (S4): flock on a file that its holder unlinks.

You hold it when the inode behind your descriptor is the one at the path. Waiting draws on the deadline, and
a wait that fails says who holds the lock.
"""

import errno
import posix
import time
from fcntl import LOCK_EX, LOCK_NB, flock

from vbdkit.protocol.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import FrameType
else:
    import _signal  # signal itself imports enum

# The sharing check's lock in Xen's own block script.
NAME = b"block"


class Lock:
    """A lock of one name in one directory; a context manager that holds it."""

    __slots__ = ("_deadline", "_directory", "_fd", "path")

    def __init__(self, directory: bytes, deadline: float, name: bytes = NAME) -> None:
        """``deadline`` is a time.monotonic() value in seconds."""
        self._directory = directory
        self._deadline = deadline
        self._fd = -1
        self.path = directory + b"/" + name

    def __enter__(self) -> "Lock":
        """Take the lock. Raises Failure where the time is up or the directory cannot be used."""
        try:
            while self._fd < 0:
                self._try()
        except TimeoutError:
            holder = _holder(self.path)
            raise Failure(
                "the time was up while waiting for the lock {path}, held by {holder}; try again when that has ended",
                path=self.path,
                holder=holder or "a process that has ended by now",
            ) from None
        except OSError as error:
            raise Failure(
                "the lock {path} cannot be taken: {why}", path=self.path, why=posix.strerror(error.errno or 0)
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock back: unlink while holding, so that a waiter sees that its inode is gone."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                posix.unlink(self.path)
            except FileNotFoundError:
                pass
            finally:
                posix.close(fd)

    def _try(self) -> None:
        """Open, lock, compare; leave ``_fd`` negative where the file was replaced meanwhile."""
        flags = posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW
        try:
            fd = posix.open(self.path, flags, 0o600)
        except FileNotFoundError:
            try:
                posix.mkdir(self._directory, 0o755)
            except FileExistsError:
                pass  # another script was faster, or a link to nowhere is in the way
            fd = posix.open(self.path, flags, 0o600)
        try:
            try:
                flock(fd, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                _wait(fd, self._deadline)
            mine = posix.fstat(fd)
            try:
                there = posix.stat(self.path, follow_symlinks=False)
            except FileNotFoundError:
                return
            if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
                self._fd, fd = fd, -1
        finally:
            if fd >= 0:
                posix.close(fd)
        if self._fd < 0 and time.monotonic() >= self._deadline:
            raise TimeoutError(errno.ETIMEDOUT, posix.strerror(errno.ETIMEDOUT))


def _wait(fd: int, deadline: float) -> None:
    """Block in flock until it is ours; an alarm ends the wait at the deadline with TimeoutError."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(errno.ETIMEDOUT, posix.strerror(errno.ETIMEDOUT))

    def expired(number: int, frame: "FrameType | None") -> None:
        raise TimeoutError(errno.ETIMEDOUT, posix.strerror(errno.ETIMEDOUT))

    before = _signal.signal(_signal.SIGALRM, expired)
    # Again each 10 ms after the first: an alarm that comes just before the call blocks would be lost.
    _signal.setitimer(_signal.ITIMER_REAL, left, 0.01)
    try:
        flock(fd, LOCK_EX)
    finally:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.signal(_signal.SIGALRM, before)


def _holder(path: bytes) -> str:
    """Return who holds the lock on Linux, from /proc/locks: "pid 4711 (block add)"; empty where that is unknown."""
    try:
        inode = b":%d" % posix.stat(path).st_ino
        fd = posix.open(b"/proc/locks", posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            lines = posix.read(fd, 1 << 20).splitlines()
        finally:
            posix.close(fd)
        for line in lines:
            # 1: FLOCK  ADVISORY  WRITE 4711 fe:00:131 0 EOF   (waiters have "->" as their second word)
            words = line.split()
            if words[1:2] == [b"FLOCK"] and words[5].endswith(inode):
                return f"pid {words[4].decode('ascii')} ({_command(words[4])})"
    except (OSError, IndexError, UnicodeError):
        pass
    return ""


def _command(pid: bytes) -> str:
    fd = posix.open(b"/proc/" + pid + b"/cmdline", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(fd, 200).replace(b"\0", b" ").strip().decode("utf-8", "backslashreplace")
    finally:
        posix.close(fd)
