"""What vbdkit made for one vbd, kept outside the store: one small file per vbd under /run/vbdkit.

Written by rename before the first side effect (the intent), then lengthened by a line for what was made. A
file of lines ``key value`` in ASCII; values are escaped as in URLs; the first line names the
version; a last line without its newline was cut by a kill and does not count.

Whoever works on a vbd has flock on its record's file, and the kernel lets go of it when that process ends, however it
ends. So of two runs for one vbd the second waits, and a record that nobody has belongs to no run in progress.
"""

import errno
import posix
import sys

from vbdkit.engine.flock import at, close, free, wait
from vbdkit.protocol.failure import Failure

VERSION = "vbdkit 1"
# Emptied at each boot, as what it speaks of is. Only Linux has /run.
RUN_DIR = b"/run/vbdkit" if sys.platform == "linux" else b"/var/run/vbdkit"
# The fact that names what a custom script holds, and the folder that says whose records have it (engine.holds).
HOLDS = "holds"
_HOLDING = b"/.holds"
# How a record is named before it is whole.
NEW = b".new"
# Not through a link, and without waiting for the other end of a FIFO that stands in a record's place.
_SAFELY = posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK
_READ = posix.O_RDONLY | _SAFELY
_WRITE = posix.O_WRONLY | posix.O_CREAT | _SAFELY


class Records:
    """The records of one host. ``directory`` is made on first use, for root only."""

    __slots__ = ("directory",)

    def __init__(self, directory: bytes) -> None:
        """Name the directory; it need not exist."""
        self.directory = directory

    def path(self, name: str) -> bytes:
        """Return the path of a vbd's record (``Vbd.name``)."""
        return self.directory + b"/" + name.encode("ascii")

    def owner(self, name: str) -> str:
        """Return by which name a vbd labels what it makes.

        Where the records are not in the usual place, that place is part of it: what one installation has made is
        none of another's business.
        """
        if self.directory == RUN_DIR:
            return name
        place = posix.stat(self.directory)
        return f"{name}@{place.st_dev:x}:{place.st_ino:x}"

    def holding(self) -> "list[bytes]":
        """Return the names of all vbds whose script holds files or devices (``engine.holds``). Raises OSError."""
        try:
            return posix.listdir(self.directory + _HOLDING)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def hold(self, name: str) -> None:
        """Say that a vbd's record has HOLDS. Raises OSError."""
        folder = self.directory + _HOLDING
        try:
            posix.mkdir(folder, 0o700)
        except FileExistsError:
            pass
        posix.close(posix.open(folder + b"/" + name.encode("ascii"), _WRITE, 0o600))

    def names(self) -> "list[bytes]":
        """Return the names of all vbds that have a record. Raises OSError."""
        try:
            files = posix.listdir(self.directory)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [file for file in files if not (file.startswith(b".") or file.endswith(NEW))]

    def look(self, name: str) -> "dict[str, str] | None":
        """Return what a vbd's record says at this moment, whoever holds it, or None where there is none.

        Raises Failure for one that cannot be understood.
        """
        path = self.path(name)
        try:
            fd = posix.open(path, _READ)
            try:
                return self.facts(fd, name)
            finally:
                close(fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failure("read", path, error) from None

    def take(self, name: str, deadline: float) -> "Record | None":
        """Return a vbd's record, held until it is closed, or None where there is none.

        Waits while another run has it, until ``deadline`` (time.monotonic()); one in the past does not wait. Raises
        Failure, also for one that cannot be understood, and Busy where the other run still has it.
        """
        path = self.path(name)
        while True:
            try:
                fd = posix.open(path, _READ)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                raise _failure("read", path, error) from None
            try:
                wait(fd, deadline)
                status = at(fd, path)
                if status is not None:
                    record = Record(path, fd, self.facts(fd, name))
                    fd = -1
                    return record
            except TimeoutError:
                from vbdkit.engine.holder import holder

                raise Busy(
                    "another run for this disk is at work: {path} is held by {holder}; try again when that has ended",
                    path=path,
                    holder=holder(path),
                ) from None
            except OSError as error:
                raise _failure("read", path, error) from None
            finally:
                if fd >= 0:
                    close(fd)

    def begin(self, name: str, facts: "dict[str, str]", first: bool = False) -> "Record":
        """Write a new record in one step and return it, held and open for what is to be added.

        Takes the place of an older one, unless it has to be the ``first``. Raises Failure, Busy.
        """
        path = self.path(name)
        fresh = path + NEW
        try:
            try:
                fd = posix.open(fresh, _WRITE, 0o600)
            except FileNotFoundError:
                try:
                    posix.mkdir(self.directory, 0o700)
                except FileExistsError:
                    pass  # another script was faster
                fd = posix.open(fresh, _WRITE, 0o600)
            try:
                status = at(fd, fresh) if free(fd) else None
                if status is None:
                    close(fd)
                    raise Busy("another run for this disk is at work on {path}; try again when it has ended", path=path)
                if status.st_uid != posix.geteuid():
                    close(fd)
                    raise Failure("{path} belongs to another user; see whose it is and remove it", path=fresh)
                if status.st_size:  # a kill has left one
                    posix.ftruncate(fd, 0)
                _write(fd, f"{VERSION}\n{lines(facts)}")
                if first:
                    posix.link(fresh, path)
                    posix.unlink(fresh)
                else:
                    posix.rename(fresh, path)
            except OSError:
                close(fd)
                posix.unlink(fresh)
                raise
        except OSError as error:
            raise _failure("write", path, error) from None
        return Record(path, fd, facts)

    def unreadable(self, name: str, why: str) -> Failure:
        """Return the failure for a record that says what no record says."""
        return Failure(
            "the record {path} is not one that this vbdkit can read ({why}); "
            "see what it says, undo that by hand and remove it",
            path=self.path(name),
            why=why,
        )

    def facts(self, fd: int, name: str) -> "dict[str, str]":
        """Return what an open record says. Raises Failure where it is not one, OSError."""
        text = posix.read(fd, 65536)
        if posix.fstat(fd).st_uid != posix.geteuid():
            raise self.unreadable(name, "it belongs to another user")
        whole, _, _ = text.rpartition(b"\n")
        version, *rest = whole.decode("ascii", "replace").split("\n")
        if version != VERSION:
            raise self.unreadable(name, f"it begins with {version[:40]!r}" if text else "it is empty")
        try:
            return read_lines(rest)
        except ValueError as error:
            raise self.unreadable(name, f"{error} is no line of one") from None


class Busy(Failure):
    """Another run has the record."""


class Record:
    """A record that this process holds. ``facts`` is what it says, as text."""

    __slots__ = ("_fd", "facts", "path")

    def __init__(self, path: bytes, fd: int, facts: "dict[str, str]") -> None:
        """Own the descriptor, which has the lock."""
        self.path = path
        self._fd = fd
        self.facts = facts

    def add(self, facts: "dict[str, str]") -> None:
        """Add facts, in one write. Raises OSError."""
        self.facts = self.facts | facts
        _write(self._fd, lines(facts))

    def remove(self) -> None:
        """Remove the file; one that is not there is no error. Raises OSError."""
        folder, _, name = self.path.rpartition(b"/")
        for path in (folder + _HOLDING + b"/" + name, self.path) if HOLDS in self.facts else (self.path,):
            try:
                posix.unlink(path)
            except (FileNotFoundError, NotADirectoryError):
                pass

    def close(self) -> None:
        """Let go of the file, which stays."""
        close(self._fd)


def _failure(verb: str, path: bytes, error: OSError) -> Failure:
    return Failure(
        "the record {path} cannot be {verb}: {why}; nothing is attached without one",
        path=path,
        verb="read" if verb == "read" else "written",
        why=posix.strerror(error.errno or 0),
    )


def _write(fd: int, text: str) -> None:
    data = text.encode("ascii")
    if posix.write(fd, data) != len(data):
        raise OSError(errno.ENOSPC, posix.strerror(errno.ENOSPC))


def lines(facts: "dict[str, str]") -> str:
    """Return facts as the lines of a record."""
    return "".join(f"{key} {_escaped(value)}\n" for key, value in facts.items())


def read_lines(text: "list[str]") -> "dict[str, str]":
    """Return the facts in lines of a record. Raises ValueError for a line that is none."""
    found = {}
    for line in text:
        key, _, value = line.partition(" ")
        try:
            found[key] = _unescaped(value)
        except ValueError:
            raise ValueError(repr(line[:40])) from None
    return found


def _escaped(text: str) -> str:
    """Escape what is not printable ASCII, and ``%``, as in an URL."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text
    data = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if 32 <= byte < 127 and byte != 37 else f"%{byte:02x}" for byte in data)


def _unescaped(text: str) -> str:
    if "%" not in text:
        return text
    head, *rest = text.encode("ascii").split(b"%")
    data = head + b"".join(bytes((int(part[:2], 16),)) + part[2:] for part in rest)
    return data.decode("utf-8", "surrogateescape")
