"""flock with a deadline, and what else it takes to lock by files that come and go."""

import errno
import posix
import time
from fcntl import LOCK_EX, LOCK_NB, flock

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import FrameType
else:
    import _signal  # signal itself imports enum


def at(fd: int, path: bytes) -> posix.stat_result | None:
    """Return the status of an open file if it is the one that is at the path now, else None."""
    mine = posix.fstat(fd)
    try:
        there = posix.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return there if (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev) else None


def close(fd: int) -> None:
    """Close a descriptor with nothing unwritten behind it: there is nothing that its failure could mean."""
    try:
        posix.close(fd)
    except OSError:
        pass


def wait(fd: int, deadline: float) -> None:
    """Take an exclusive flock; an alarm ends the wait at the deadline with TimeoutError. Raises OSError."""
    if free(fd):
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise timed_out()

    def expired(number: int, frame: "FrameType | None") -> None:
        raise timed_out()

    before = _signal.signal(_signal.SIGALRM, expired)
    # Again each 10 ms after the first: an alarm that comes just before the call blocks would be lost.
    _signal.setitimer(_signal.ITIMER_REAL, left, 0.01)
    try:
        flock(fd, LOCK_EX)
    finally:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.signal(_signal.SIGALRM, before)


def free(fd: int) -> bool:
    """Take an exclusive flock if nobody has it, and tell whether that worked."""
    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


def timed_out() -> TimeoutError:
    """Return the error of a wait that was in vain."""
    return TimeoutError(errno.ETIMEDOUT, posix.strerror(errno.ETIMEDOUT))
