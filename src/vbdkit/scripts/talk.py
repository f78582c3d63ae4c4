"""The conversation of a shell with a process of ours, over named pipes. Owns the bytes, not what they mean.

The library opens the pipes for each question and closes them again, so that no program that the script starts has any.
``turn`` has one byte in it while nobody speaks. A question on ``ask`` is fields with a NUL after each, their number
first; an answer on ``answer`` a line with the status (0, or 1: give up) and the number of lines that follow.
"""

import posix
import select

PIPES = (b"turn", b"ask", b"answer")
# Milliseconds after which an idle process looks whether a turn was taken and not used.
IDLE = 2500


class Talk:
    """Our side. ``ask`` is readable when there is something to take."""

    def __init__(self, folder: bytes) -> None:
        """Open the pipes of a folder. Raises OSError."""
        both = posix.O_RDWR | posix.O_NONBLOCK | posix.O_CLOEXEC  # so that opening never waits and none ever ends
        self._turn, self.ask, self._answer = [posix.open(folder + b"/" + name, both) for name in PIPES]
        self._heard = b""
        self._asked = 0  # pieces of questions so far
        self._missed = -1  # how many these were when the turn was found taken
        posix.write(self._turn, b"\n")

    def listen(self) -> "list[bytes] | None":
        """Return the fields of a question, or None: it is not whole yet."""
        self._heard += posix.read(self.ask, 65536)
        self._asked += 1
        count, mark, rest = self._heard.partition(b"\0")
        fields = rest.split(b"\0")
        if not mark or len(fields) <= int(count):
            return None
        self._heard = b""
        return fields[:-1]

    def reply(self, status: int, text: bytes | None, shell: int) -> None:
        """Write an answer, unless the shell (a pidfd, or -1) ends before it has read it."""
        lines = text.replace(b"\0", b"").split(b"\n") if text is not None else []
        whole = b"%d %d\n" % (status, len(lines)) + b"".join(line + b"\n" for line in lines)
        out = select.poll()
        out.register(self._answer, select.POLLOUT)
        if shell >= 0:
            out.register(shell, select.POLLIN)
        while whole:
            if shell in dict(out.poll()):
                return
            try:
                whole = whole[posix.write(self._answer, whole) :]
            except BlockingIOError:
                pass

    def look_for_turn(self) -> None:
        """Take the turn back from a process that was killed while it had it: one that lives uses it at once."""
        try:
            posix.read(self._turn, 1)
        except BlockingIOError:
            if self._asked != self._missed:
                self._missed = self._asked
                return  # taken a moment ago, perhaps
            self._heard = b""
            try:
                posix.read(self._answer, 1 << 20)
            except BlockingIOError:
                pass
        self._missed = -1
        posix.write(self._turn, b"\n")
