"""Running a program for a datapath: no shell, within the run's time, its own words in the error, waits that show.

Its output goes to files in memory, not pipes: a daemon that it leaves behind keeps a pipe open, and reading that
would not end.
"""

import errno
import posix
import select
import syslog
import time

from vbdkit.engine.claims import process
from vbdkit.protocol.failure import Failure, printable, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Mapping, Sequence

    from vbdkit.engine.script import Run
else:
    import _signal  # signal itself imports enum

# A script's caller may have any PATH; what root runs does not depend on it.
PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Seconds after which a wait is told, each time it is still going on.
_TOLD_AFTER = (1, 3, 6, 10, 15, 20, 30, 60, 120, 240, 600)
_NOT_HERE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)


class ToolError(Failure):
    """A program failed. ``exit_status``: its own, negative for a signal; ``said``: the end of its stderr."""

    def __init__(self, template: str, exit_status: int = 0, said: str = "", **fields: object) -> None:
        """Keep what happened beside template and fields."""
        super().__init__(template, said=said, **fields)
        self.exit_status = exit_status
        self.said = said


def find(program: bytes) -> bytes | None:
    """Return the path of a program, or None where this host has none of this name."""
    names = [program] if program.startswith(b"/") else [folder + b"/" + program for folder in PATH.split(b":")]
    for name in names:
        if posix.access(name, posix.X_OK):
            return name
    return None


def run_tool(
    run: "Run",
    argv: "Sequence[bytes]",
    seconds: float | None = None,
    stdin: bytes = b"",
    environ: "Mapping[bytes, bytes] | None" = None,
    package: str = "",
) -> bytes:
    """Run a program and return its stdout once it has ended; what it leaves in the background lives on.

    ``seconds`` limits it beyond the run's deadline; ``package`` is where it comes from, for the error where it is not
    there. Raises ToolError, and Failure when a signal ends the script; the program is not left running then.
    """
    words = shown(b" ".join(argv))
    path = find(argv[0])
    if path is None:
        raise ToolError(
            "the program {program} is not there" + (" (the package {package} has it)" if package else ""),
            127,
            program=argv[0],
            package=package,
        )
    began = time.monotonic()
    deadline = run.deadline if seconds is None else min(run.deadline, began + seconds)
    if began >= deadline:
        raise ToolError("there is no time left for {command}", command=words)
    run.doing = f"waiting for {words} for", run.vbd.path
    files = [_file(run), _file(run)]
    try:
        held = run.guard.held
        pid = 0
        run.guard.hold()  # until its end would be seen to
        try:
            try:
                pid = _spawn(run, path, argv, stdin, files, environ or {})
            finally:
                if not held:
                    run.guard.resume()
            run.note({"tool": process(pid)})  # a kill ends the script, and not what it has started
            status = _wait(run, pid, words, began, deadline, files[1])
        except BaseException:
            if pid:
                end(pid)
            raise
        said = _last_words(files[1]) or _last_words(files[0])
        if status is None:
            end(pid)
            raise ToolError(
                "{command} was not done after {seconds} s" + (": {said}" if said else ""),
                said=said,
                command=words,
                seconds=f"{time.monotonic() - began:.0f}",
            )
        if status:
            how = "exit status {status}" if status > 0 else "signal {status}"
            raise ToolError(
                "{command} failed: " + ("{said}" if said else how), status, said, command=words, status=abs(status)
            )
        return _content(files[0])
    finally:
        for file in files:
            posix.close(file)


def _spawn(
    run: "Run",
    path: bytes,
    argv: "Sequence[bytes]",
    stdin: bytes,
    files: "list[int]",
    environ: "Mapping[bytes, bytes]",
) -> int:
    source = _file(run)
    try:
        posix.write(source, stdin)
        posix.lseek(source, 0, 0)
        return posix.posix_spawn(
            path,
            list(argv),
            {b"PATH": PATH, b"LC_ALL": b"C", **environ},
            file_actions=[
                (posix.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((source, files[0], files[1]))
            ],
            setpgroup=0,  # so that what it starts in turn ends with it
            setsigmask=(),
            setsigdef=[_signal.SIGPIPE],  # Python ignores it, and what ignores it stays so
        )
    except OSError as error:
        why = posix.strerror(error.errno or 0)
        raise ToolError("{program} cannot be run: {why}", 126, program=path, why=why) from None
    finally:
        posix.close(source)


def _file(run: "Run") -> int:
    """Return a new file without a name."""
    if hasattr(posix, "memfd_create"):
        return posix.memfd_create("vbdkit", posix.MFD_CLOEXEC)
    name = run.records.directory + b"/.tool-%d" % posix.getpid()
    fd = posix.open(name, posix.O_RDWR | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600)
    posix.unlink(name)
    return fd


def _wait(run: "Run", pid: int, words: str, began: float, deadline: float, errors: int) -> int | None:
    """Wait for a program and return how it ended, or None at the deadline; tell what is waited for."""
    told = [began + after for after in _TOLD_AFTER]
    handle = posix.pidfd_open(pid) if hasattr(posix, "pidfd_open") else -1
    try:
        while True:
            ended, status = posix.waitpid(pid, posix.WNOHANG)
            if ended:
                return posix.waitstatus_to_exitcode(status)
            now = time.monotonic()
            if now >= deadline:
                return None
            if told and now >= told[0]:
                told.pop(0)
                said = _last_words(errors)
                tell(run, f"waiting for {words}, {now - began:.0f} s so far" + (f"; it says: {said}" if said else ""))
            until = min(deadline, told[0] if told else deadline) - time.monotonic()
            if handle >= 0:
                ready = select.poll()
                ready.register(handle, select.POLLIN)
                ready.poll(max(0.0, until) * 1000 + 1)
            else:
                time.sleep(min(max(until, 0.0), 0.005))
    finally:
        if handle >= 0:
            posix.close(handle)


def wait_until(run: "Run", condition: "Callable[[], object]", what: str, seconds: float) -> None:
    """Wait until ``condition()`` is true. Raises Failure when ``seconds``, or the run's time, are up."""
    began = time.monotonic()
    deadline = min(run.deadline, began + seconds)
    told = [began + after for after in _TOLD_AFTER]
    run.doing = f"waiting for {what} for", run.vbd.path
    pause = 0.001
    while not condition():
        now = time.monotonic()
        if now >= deadline:
            raise Failure("{what}: not after {seconds} s", what=what, seconds=f"{now - began:.0f}")
        if told and now >= told[0]:
            told.pop(0)
            tell(run, f"waiting for {what}, {now - began:.0f} s so far")
        time.sleep(min(pause, deadline - now))
        pause = min(pause * 1.5, 0.1)


def tell(run: "Run", text: str) -> None:
    """Say what goes on: to the log, and to the toolstack's log for whoever looks there meanwhile."""
    run.log(syslog.LOG_INFO, text)
    try:
        ready = select.poll()
        ready.register(2, select.POLLOUT)
        if ready.poll(0):
            posix.write(2, printable(f"{run.name}: {run.vbd.name}: {text}").encode("utf-8")[:4000] + b"\n")
    except OSError:
        pass


def end(pid: int) -> None:
    """Kill a program, with what it has started and not set free."""
    for kill, number in ((posix.killpg, pid), (posix.kill, pid)):
        try:
            kill(number, _signal.SIGKILL)
        except OSError:
            pass
    # One that hangs in the kernel does not end; it is not waited for.
    until = time.monotonic() + 1
    try:
        while not posix.waitpid(pid, posix.WNOHANG)[0] and time.monotonic() < until:
            time.sleep(0.002)
    except ChildProcessError:
        pass


def _content(fd: int) -> bytes:
    size = posix.fstat(fd).st_size
    return posix.pread(fd, size, 0)


def _last_words(fd: int) -> str:
    """Return the end of what is in a file, as one line of at most 500 characters."""
    size = posix.fstat(fd).st_size
    tail = posix.pread(fd, 2000, max(0, size - 2000))
    lines = [shown(line.strip()) for line in tail.splitlines() if line.strip()]
    return "; ".join(lines)[-500:]
