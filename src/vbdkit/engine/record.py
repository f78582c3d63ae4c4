"""What vbdkit made for one vbd, kept outside the store: one small file per vbd under /run/vbdkit.

Written by rename before the first side effect (the intent), then lengthened by a line for what was made. A
file of lines ``key value`` in ASCII; values are escaped as in URLs; the first line names the
version; a last line without its newline was cut by a kill and does not count.
"""

import errno
import posix

from vbdkit.protocol.failure import Failure

VERSION = "vbdkit 1"
# Not through a link, and without waiting for the other end of a FIFO that stands in a record's place.
_SAFELY = posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK
_READ = posix.O_RDONLY | _SAFELY
_WRITE = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | _SAFELY


class Records:
    """The records of one host. ``directory`` is made on first use, for root only."""

    __slots__ = ("directory",)

    def __init__(self, directory: bytes) -> None:
        """Name the directory; it need not exist."""
        self.directory = directory

    def path(self, name: str) -> bytes:
        """Return the path of a vbd's record (``Vbd.name``)."""
        return self.directory + b"/" + name.encode("ascii")

    def load(self, name: str) -> "dict[str, str] | None":
        """Return a vbd's record, or None where there is none. Raises Failure for one that cannot be understood."""
        try:
            fd = posix.open(self.path(name), _READ)
            try:
                text = posix.read(fd, 65536)
            finally:
                posix.close(fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failure("read", name, error) from None
        whole, _, _ = text.rpartition(b"\n")
        lines = whole.decode("ascii", "replace").split("\n")
        if lines[0] != VERSION:
            raise self.unreadable(name, f"it begins with {lines[0][:40]!r}")
        found = {}
        try:
            for line in lines[1:]:
                key, _, value = line.partition(" ")
                found[key] = _unescaped(value)
        except ValueError:
            raise self.unreadable(name, f"{line[:40]!r} is no line of one") from None
        return found

    def unreadable(self, name: str, why: str) -> Failure:
        """Return the failure for a record that says what no record says."""
        return Failure(
            "the record {path} is not one that this vbdkit can read ({why}); "
            "see what it says, undo that by hand and remove it",
            path=self.path(name),
            why=why,
        )

    def begin(self, name: str, facts: "dict[str, str]") -> "Record":
        """Write a new record in one step and return it, open for what is to be added. Raises Failure."""
        path = self.path(name)
        fresh = path + b".new"
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
                _write(fd, f"{VERSION}\n{_lines(facts)}")
                posix.rename(fresh, path)
            except OSError:
                posix.close(fd)
                posix.unlink(fresh)
                raise
        except OSError as error:
            raise self._failure("write", name, error) from None
        return Record(path, fd)

    def remove(self, name: str) -> None:
        """Remove a vbd's record; one that is not there is no error."""
        try:
            posix.unlink(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            pass

    def _failure(self, verb: str, name: str, error: OSError) -> Failure:
        return Failure(
            "the record {path} cannot be {verb}: {why}; nothing is attached without one",
            path=self.path(name),
            verb="read" if verb == "read" else "written",
            why=posix.strerror(error.errno or 0),
        )


class Record:
    """A record that is being made."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: bytes, fd: int) -> None:
        """Own the descriptor."""
        self.path = path
        self._fd = fd

    def add(self, facts: "dict[str, str]") -> None:
        """Add facts, in one write. Raises OSError."""
        _write(self._fd, _lines(facts))

    def close(self) -> None:
        """Close the file; the record stays."""
        posix.close(self._fd)


def _write(fd: int, text: str) -> None:
    data = text.encode("ascii")
    if posix.write(fd, data) != len(data):
        raise OSError(errno.ENOSPC, posix.strerror(errno.ENOSPC))


def _lines(facts: "dict[str, str]") -> str:
    return "".join(f"{key} {_escaped(value)}\n" for key, value in facts.items())


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
