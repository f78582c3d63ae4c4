"""One run of a block script: arguments in, exit status out. Every way of calling comes through here.

Owns the frame: the deadline, the store, the log, and how a failure is told. What add and remove do is in
``engine.attach`` and ``engine.detach``.
"""

import posix
import sys
import syslog
import time

from vbdkit import platform
from vbdkit.engine import log, publish
from vbdkit.engine.guard import Guard
from vbdkit.engine.record import RUN_DIR, Records
from vbdkit.protocol.failure import Failure, printable, shown
from vbdkit.protocol.invocation import ADD, InvocationError, parse_invocation
from vbdkit.xenstore.client import Connection, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

    from vbdkit.engine.datapath import Datapath
    from vbdkit.protocol.vbd import Vbd

# Seconds. The toolstack kills a script at 40 (C6) and does not read hotplug-error then.
TIME_LIMIT = 30.0
# Seconds kept back from the limit for undoing and for telling.
_LAST_WORDS = 3.0
# Seconds before the limit at which a run is overdue that is in a call which does not return.
_OVERDUE = 1.5
# Seconds that a full pipe in the place of stderr is waited for.
_PATIENCE = 1.0

LOCK_DIR = b"/var/run/xen-hotplug"


class Run:
    """What one run works with. ``deadline`` and ``end`` are time.monotonic() values in seconds."""

    __slots__ = (
        "call",
        "command",
        "datapaths",
        "deadline",
        "doing",
        "end",
        "environ",
        "forget",
        "guard",
        "lock_dir",
        "name",
        "note",
        "platform",
        "records",
        "store",
        "unsure",
        "vbd",
    )

    def __init__(
        self,
        name: str,
        command: str,
        vbd: "Vbd",
        platform: "ModuleType",
        datapaths: "Callable[[str], Datapath]",
        records: Records,
        lock_dir: bytes,
        deadline: float,
        end: float,
        environ: "Mapping[bytes, bytes]",
    ) -> None:
        """Take the parts. ``name`` is the script's, for the log; ``datapaths`` gives a kind of storage by name."""
        self.name = name
        self.command = command
        self.vbd = vbd
        self.platform = platform
        self.datapaths = datapaths
        # None where the store is out of reach.
        self.store: Connection | None = None
        self.records = records
        self.lock_dir = lock_dir
        # What waits, ends at the deadline; between that and the end is time for undoing and telling.
        self.deadline = deadline
        self.end = end
        self.environ = environ
        self.guard = Guard()
        # For the sentence of a run that hangs: what, and with which file.
        self.doing: tuple[str, bytes] = ("reading the nodes of", vbd.path)
        # What a commit was to publish whose outcome is not known (yet).
        self.unsure: list[tuple[bytes, bytes]] | None = None
        # Adds to the record that an add has begun.
        self.note: Callable[[dict[str, str]], None] = lambda facts: None
        # Set once the nodes of an older attach of this vbd no longer say the truth.
        self.forget = False
        # The arguments of `block`, where this process is that script: another one may take over (engine.by_type).
        self.call: Sequence[bytes] = ()

    def log(self, priority: int, text: str) -> None:
        """Write a line to syslog: script, command and vbd first."""
        log.write(priority, printable(f"{self.name} {self.command} {self.vbd.name}: {text}"))


def run(
    argv: "Sequence[bytes]",
    environ: "Mapping[bytes, bytes]",
    datapaths: "Callable[[str], Datapath]",
    system: str = "",
    run_dir: bytes = RUN_DIR,
    lock_dir: bytes = LOCK_DIR,
    time_limit: float = TIME_LIMIT,
    own_process: bool = False,
    say: "Callable[[bytes, float], None] | None" = None,
    add: "Callable[[Run], None] | None" = None,
) -> int:
    """Do what a toolstack asks of a block script; return the exit status, 0 or 1. Raises nothing.

    ``argv`` with the script's name first and ``environ`` are as the toolstack gave them; ``datapaths``
    returns the kind of storage of a name (``vbdkit.datapaths.load``); ``system`` is
    one of ``platform.SYSTEMS``, or empty for the one that this runs on. ``own_process``: this process is this
    run and nothing else, so that signals and the time may end it (Guard). A toolstack, in whose process this
    runs, may take what else goes to stderr (``say``: the line, until when), and have something other than
    ``attach.add`` done at ``add``.
    """
    name = shown(argv[0].rpartition(b"/")[2]) if argv else "block"
    end = time.monotonic() + time_limit
    this = None
    try:
        system = system or platform.current()
        call = parse_invocation(system, argv, environ)
        deadline = end - min(_LAST_WORDS, time_limit / 4)
        records = Records(run_dir)
        system_package = platform.load(system)
        system_package.limit(deadline, end)
        this = Run(name, call.command, call.vbd, system_package, datapaths, records, lock_dir, deadline, end, environ)
        if call.command != ADD:
            this.guard.hold()  # what a remove does not finish would have to be done again
        if own_process:
            this.guard.arm()
            if name == "block":
                this.call = argv
        if call.command == ADD:
            from vbdkit.engine.attach import add as attach

            if own_process:
                this.guard.watch(end - min(_OVERDUE, time_limit / 8), lambda: _overdue(this, time_limit))
            this.store = Connection.open(deadline, environ)
            (add or attach)(this)
            this.guard.hold()
        else:
            from vbdkit.engine.detach import remove

            try:
                this.store = Connection.open(deadline, environ)
            except StoreError as error:
                this.log(syslog.LOG_WARNING, str(error))
            remove(this)
    except Exception as error:
        if this is not None and this.call and this.doing[0] == "opening" and isinstance(error, Failure):
            from vbdkit.engine.by_type import hand_over

            try:
                this.guard.hold()
                hand_over(this)
            except OSError as second:
                error = second
        vbd = error.vbd if isinstance(error, InvocationError) else this.vbd if this is not None else None
        if this is not None:
            this.guard.hold()
            this.guard.settle()
            # It may be in the middle of something, or broken.
            if this.store is not None:
                this.store.close()
        _tell(name, vbd, error, environ, end, this is not None and this.forget, say or _say)
        return 1
    if this.store is not None:
        this.store.close()
    return 0


def _overdue(run: Run, time_limit: float) -> None:
    """Tell that the time is up, while the main thread is in a call that does not return."""
    doing, what = run.doing
    error = Failure(
        "the time ({seconds} s) was up while {doing} {what}: the kernel did not answer; does that device or file "
        "system hang? What was begun is noted under {records} and goes with the next add or remove of this disk, or "
        "with vbdkit gc",
        seconds=f"{time_limit:g}",
        doing=doing,
        what=what,
        records=run.records.directory,
    )
    _tell(run.name, run.vbd, error, run.environ, run.end, run.forget, _say)


def _tell(
    name: str,
    vbd: "Vbd | None",
    error: Exception,
    environ: "Mapping[bytes, bytes]",
    deadline: float,
    forget: bool,
    say: "Callable[[bytes, float], None]",
) -> None:
    """Tell a failure to the store, over a new connection, to the toolstack's log and to syslog."""
    failure = as_failure(error)
    sentence = str(failure)
    if vbd is not None:
        try:
            with Connection.open(deadline, environ) as store:
                publish.failed(store, vbd, failure, forget)
        except (StoreError, Failure) as second:
            why = "for the same reason" if str(second) == str(error) else str(second)
            sentence += f" (this could not be written to xenstore: {why})"
    whole = printable(f"{name}: {vbd.name + ': ' if vbd is not None else ''}{sentence}")
    say(whole.encode("utf-8") + b"\n", min(deadline, time.monotonic() + _PATIENCE))
    log.write(syslog.LOG_ERR, whole)
    if not isinstance(error, (Failure, StoreError, OSError)):
        _log_traceback(error)


def _say(text: bytes, deadline: float) -> None:
    """Write to the toolstack's log. A pipe that is full, since nobody reads it, must not hold up the script."""
    import select

    try:
        ready = select.poll()
        ready.register(2, select.POLLOUT)
        # A pipe that is ready takes this much at once (PIPE_BUF).
        while text and ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
            text = text[posix.write(2, text[:4096]) :]
    except OSError:
        pass


def as_failure(error: BaseException) -> Failure:
    """Return any error as the one class that has a status and a sentence."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, StoreError):
        return Failure("{why}" if "xenstore" in error.operation else "xenstore: {why}", why=str(error))
    if isinstance(error, OSError):
        where = error.filename
        what = posix.strerror(error.errno) if error.errno else str(error)
        if where is None:
            return Failure("the system refused: {what}", what=what)
        return Failure("{where}: {what}", where=where if isinstance(where, bytes) else str(where), what=what)
    return Failure("vbdkit itself failed ({what}); the log has more", what=f"{type(error).__name__}: {error}")


def _log_traceback(error: Exception) -> None:
    """Log where a fault of our own lies, a line per frame: for the log, never for hotplug-error."""
    frame = error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        log.write(syslog.LOG_ERR, f"  {code.co_filename}:{frame.tb_lineno} {code.co_name}")
        frame = frame.tb_next


def main_environment() -> "tuple[list[bytes], Mapping[bytes, bytes]]":
    """Return this process's own argv and environment as bytes, as it was started."""
    return [text.encode("utf-8", "surrogateescape") for text in sys.argv], posix.environ


def fill_in() -> None:
    """Open what is closed of descriptors 0 to 2, lest words for stderr end in a disk image."""
    if sys.stdin is not None and sys.stdout is not None and sys.stderr is not None:
        return
    try:
        while (fd := posix.open("/dev/null", posix.O_RDWR)) <= 2:
            posix.set_inheritable(fd, True)
        posix.close(fd)
    except OSError:
        pass  # too few descriptors: then nothing else can be opened either
