"""The lock that old and new scripts share (S4): flock on a file that its holder unlinks.

You hold it when the inode behind your descriptor is the one at the path. Waiting draws on the deadline, and
a wait that fails says who holds the lock.
"""

import posix
import time

from vbdkit.engine.flock import at, close, timed_out, wait
from vbdkit.protocol.failure import Failure

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
            from vbdkit.engine.holder import holder

            raise Failure(
                "the time was up while waiting for the lock {path}, held by {holder}; try again when that has ended",
                path=self.path,
                holder=holder(self.path),
            ) from None
        except OSError as error:
            raise Failure(
                "the lock {path} cannot be taken: {why}", path=self.path, why=posix.strerror(error.errno or 0)
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock back: unlink while holding, so that a waiter sees that its inode is gone.

        No failure: a file that cannot be unlinked serves the next one as well, and what was published is.
        """
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                if at(fd, self.path) is not None:
                    posix.unlink(self.path)
            except OSError:
                pass
            close(fd)

    def check(self) -> None:
        """See that it is still ours: somebody may have removed the file. Raises Failure."""
        if at(self._fd, self.path) is None:
            raise Failure(
                "the lock {path} was removed or replaced while this script held it, so another one may be at work; "
                "try again",
                path=self.path,
            )

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
            wait(fd, self._deadline)
            if at(fd, self.path) is not None:
                self._fd, fd = fd, -1
        finally:
            if fd >= 0:
                close(fd)
        if self._fd < 0 and time.monotonic() >= self._deadline:
            raise timed_out()
