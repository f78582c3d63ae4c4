"""Asking a system's own programs: several at once, no shell, a limit of time, their words in the error."""

import errno
import posix
import select
import time

from vbdkit.protocol.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Iterable
else:
    import _signal  # signal itself imports enum

# Where the base system of each BSD keeps them.
SYSTEM_PATH = b"/sbin:/usr/sbin:/bin:/usr/bin"
# Seconds that all programs of one question may take together. They ask the kernel and answer in milliseconds.
PATIENCE = 10.0
# Seconds in which one that was killed has to be gone; one that hangs in the kernel is not waited for.
_GONE_WITHIN = 1.0
# How often, in seconds, it is looked whether a program has ended although its pipes are open.
_LOOK = 0.05
_limits = [0.0, 0.0]
_NOT_HERE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)


class ProgramError(Failure):
    """A program did not do what it was asked; ``said`` is what it wrote to stderr."""

    def __init__(self, template: str, said: bytes = b"", **fields: object) -> None:
        """Keep what it said beside template and fields."""
        super().__init__(template, said=said, **fields)
        self.said = said


def limit(deadline: float, end: float) -> None:
    """Let all questions draw on a run's time: until ``deadline``, and what is asked after that (undoing) until ``end``.

    Both are time.monotonic() values. A limit that has passed belongs to a run that is over.
    """
    _limits[:] = deadline, end


def _until(seconds: float) -> float:
    now = time.monotonic()
    return min([now + seconds, *(when for when in _limits if when > now)])


def ask(path: bytes, *commands: "tuple[bytes, ...]", seconds: float = PATIENCE) -> "list[bytes]":
    """Run programs beside one another and return what each wrote to stdout.

    ``path`` has the folders to look in, ``commands`` are argument vectors. Raises ProgramError where one is not to
    be found, fails, or takes more than ``seconds`` or the run's time (``limit``); then none is left running, nor is
    what they have started.
    """
    deadline = _until(seconds)
    started: list[_Program] = []
    try:
        for command in commands:
            started.append(_Program(path, command))
        _read(started, deadline)
        return [program.result(deadline) for program in started]
    finally:
        for program in started:
            program.end()


class _Program:
    """One program that runs: its process id, the pipes from it, and what came through them."""

    __slots__ = ("command", "pid", "pipes", "status", "texts")

    def __init__(self, path: bytes, command: "tuple[bytes, ...]") -> None:
        self.command = command
        self.status: int | None = None
        self.texts = [b"", b""]
        output, output_end = posix.pipe()
        errors, errors_end = posix.pipe()
        self.pipes = [output, errors]
        try:
            self.pid = _spawn(path, command, output_end, errors_end)
        except BaseException:
            posix.close(output)
            posix.close(errors)
            raise
        finally:
            posix.close(output_end)
            posix.close(errors_end)

    def result(self, deadline: float) -> bytes:
        """Return its output once it has ended well. Raises ProgramError."""
        while not self.ended():
            # Its pipes are closed, so it is at its end.
            if time.monotonic() >= deadline:
                raise ProgramError("{command} does not come to an end, and was killed", command=b" ".join(self.command))
            time.sleep(0.0005)
        if self.status:
            said = self.texts[1].strip() or self.texts[0].strip()
            how = "exit {status}" if self.status > 0 else "ended by signal {status}"
            raise ProgramError(
                "{command}: " + how + (": {said}" if said else ", without a word"),
                said,
                command=b" ".join(self.command),
                status=abs(self.status),
            )
        return self.texts[0]

    def ended(self) -> bool:
        """Whether it has ended by now."""
        if self.status is None:
            pid, status = posix.waitpid(self.pid, posix.WNOHANG)
            if pid:
                self.status = posix.waitstatus_to_exitcode(status)
        return self.status is not None

    def end(self) -> None:
        """Close the pipes; where it still runs, kill it with all that it has started."""
        for pipe in self.pipes:
            posix.close(pipe)
        self.pipes = []
        if not self.ended():
            posix.killpg(self.pid, _signal.SIGKILL)
            until = time.monotonic() + _GONE_WITHIN
            while not self.ended() and time.monotonic() < until:
                time.sleep(0.0005)


def _spawn(path: bytes, command: "tuple[bytes, ...]", output: int, errors: int) -> int:
    """Start a program from the first folder that has it, and return its process id. Raises ProgramError."""
    actions = (
        (posix.POSIX_SPAWN_OPEN, 0, b"/dev/null", posix.O_RDONLY, 0),
        (posix.POSIX_SPAWN_DUP2, output, 1),
        (posix.POSIX_SPAWN_DUP2, errors, 2),
    )
    environment = {b"PATH": path, b"LC_ALL": b"C"}
    for folder in path.split(b":") if path else ():
        try:
            return posix.posix_spawn(
                folder + b"/" + command[0],
                command,
                environment,
                file_actions=actions,
                setpgroup=0,  # so that what it starts in turn can be ended with it
                setsigdef=[_signal.SIGPIPE],  # Python ignores it, and what ignores it stays so
            )
        except OSError as error:
            if error.errno not in _NOT_HERE:
                why = posix.strerror(error.errno or 0)
                raise ProgramError("{program} cannot be run: {why}", program=command[0], why=why) from None
    raise ProgramError(
        "the program {program} is not there" + (" (looked in {path})" if path else ": this system has none"),
        program=command[0],
        path=path,
    )


def _read(programs: "Iterable[_Program]", deadline: float) -> None:
    """Read all that the programs write until they close their pipes. Raises ProgramError when the time is up."""
    ready = select.poll()
    open_pipes = {}
    for program in programs:
        for number, pipe in enumerate(program.pipes):
            ready.register(pipe, select.POLLIN)
            open_pipes[pipe] = (program, number)
    while open_pipes:
        over = [program for program in programs if program.ended()]
        left = deadline - time.monotonic()
        if left <= 0:
            program = next(iter(open_pipes.values()))[0]
            raise ProgramError("{command} does not answer, and was killed", command=b" ".join(program.command))
        events = ready.poll(0 if over else min(left, _LOOK) * 1000)
        for pipe, _ in events:
            program, number = open_pipes[pipe]
            data = posix.read(pipe, 65536)
            program.texts[number] += data
            if not data:
                ready.unregister(pipe)
                del open_pipes[pipe]
        if not events:
            # What had ended before has written all that it will; whom it has left its pipes to is not waited for.
            for pipe in [pipe for pipe, (program, _) in open_pipes.items() if program in over]:
                ready.unregister(pipe)
                del open_pipes[pipe]
