"""What block-common.sh asks on behalf of a script, question by question. Owns the words, no pipes.

All rules are the engine's: the check, the lock, the publication, the record, how a failure is told.
"""

import posix
import syslog
import time

from vbdkit import platform
from vbdkit.datapaths import load
from vbdkit.engine import log, publish
from vbdkit.engine.check import examine
from vbdkit.engine.deliver import deliver
from vbdkit.engine.guests import same_vm
from vbdkit.engine.lock import NAME, Lock
from vbdkit.engine.record import Records
from vbdkit.engine.script import LOCK_DIR, TIME_LIMIT, Run, as_failure
from vbdkit.engine.underway import announce
from vbdkit.protocol.failure import Failure, InUse, printable, shown
from vbdkit.protocol.invocation import ADD, REMOVE
from vbdkit.protocol.nodes import (
    CONNECTED,
    HOTPLUG_ERROR,
    HOTPLUG_STATUS,
    PARAMS,
    PHYSICAL_DEVICE,
    PHYSICAL_DEVICE_PATH,
)
from vbdkit.protocol.vbd import parse_backend_path
from vbdkit.storage.sharing import GUEST, User, verdict
from vbdkit.xenstore.client import Connection, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vbdkit.engine.check import Finding
    from vbdkit.engine.record import Record
    from vbdkit.platform.target import Target

    # The status that the library gets, 0 or 1 (the script ends), and the text.
    Answer = tuple[int, bytes | None]

# Seconds that a question gets at least, however long ago the script began.
_AT_LEAST = 5.0
# What the time limit keeps back for the answer.
_LAST_WORDS = 3.0
# Of a line that does not end, what is kept.
_LINE = 4096
_LEVELS = {
    b"emerg": syslog.LOG_EMERG,
    b"alert": syslog.LOG_ALERT,
    b"crit": syslog.LOG_CRIT,
    b"err": syslog.LOG_ERR,
    b"error": syslog.LOG_ERR,
    b"warning": syslog.LOG_WARNING,
    b"warn": syslog.LOG_WARNING,
    b"notice": syslog.LOG_NOTICE,
    b"info": syslog.LOG_INFO,
    b"debug": syslog.LOG_DEBUG,
}


class Script:
    """One run of a script in shell, and what is known of it."""

    def __init__(
        self,
        command: str,
        script: bytes,
        path: bytes,
        run_dir: bytes,
        system: str,
        say: "Callable[[bytes], object]",
        environ: "Mapping[bytes, bytes]",
        lock_dir: bytes = LOCK_DIR,
        time_limit: float = TIME_LIMIT,
        **settings: bytes,
    ) -> None:
        """Take what the library was told. ``say`` writes to the toolstack's stderr and the log."""
        self._script = script
        self._say = say
        self._locks: dict[bytes, Lock] = {}
        self._heard = b""  # the last line on stderr since the last question
        self._unfinished = b""  # what has come of one that has not ended
        self._told = False  # a failure, and nothing good since
        self._before: list[bytes | None] = []  # status and error as they were, for another's words
        self._ended = False
        self._end = time.monotonic() + time_limit
        self._limit = time_limit
        self._record: Record | None = None
        self._announced = -1  # the open file that says what an add is at
        vbd = parse_backend_path(path)
        self._run: Run | None = None
        if vbd is not None:
            name = shown(script.rpartition(b"/")[2])
            here = platform.load(system or platform.current())
            if settings:
                here.configure(**settings)
            self._run = Run(name, command, vbd, here, load, Records(run_dir), lock_dir, 0.0, 0.0, environ)
            self._allow(self._run)
        self._path = path
        self._lock_dir = lock_dir

    # What the helper says.

    def begin(self, folder: bytes) -> None:
        """Start: a remove has the vbd's record from now on, as any run that works on a vbd.

        An add has no record until it has a device. Until it ends, a file in ``folder`` says what it is at.
        """
        if self._run is None:
            return
        try:
            if self._run.command == REMOVE:
                self._record = self._run.records.take(self._run.vbd.name, self._run.deadline)
            *self._before, params = self._outcome(self._run, PARAMS)
            if self._run.command == ADD and params is not None:
                self._announced = announce(folder, self._run.vbd.name, self._script, params)
        except (Failure, StoreError, OSError) as error:
            self._run.log(syslog.LOG_WARNING, str(error))

    def hear(self, text: bytes) -> None:
        """Note what tools said on stderr; a line may come in pieces (losetup, as all that use warn(3), writes so)."""
        *_, last = lines = (self._unfinished + text).splitlines(keepends=True) or [b""]
        self._unfinished = last[-_LINE:] if not last.endswith((b"\n", b"\r")) else b""
        said = [line for line in lines if line.strip()]
        if text and said:
            self._heard = said[-1].strip()

    def answer(self, fields: "list[bytes]") -> "Answer":
        """Answer one question. Raises nothing: what fails is told, and the script is to end."""
        verb, *rest = fields
        try:
            if self._run is None:
                raise Failure("XENBUS_PATH is {path}, not the backend path of a virtual disk", path=self._path)
            self._allow(self._run)
            text: bytes | None = getattr(self, "_do_" + verb.decode("ascii"))(self._run, *rest)
        except Exception as error:
            self.fail(error)
            return 1, None
        finally:
            if verb != b"log":
                self._heard = b""
        return 0, text

    def fail(self, error: Exception) -> None:
        """Tell a failure: hotplug-error, syslog, the toolstack, the log."""
        failure = as_failure(error)
        sentence = str(failure)
        self._told = True
        if self._run is not None:
            run = self._run
            try:
                run.deadline = run.end  # what was kept back is for this
                publish.failed(self._store(run), run.vbd, failure, False)
            except (StoreError, Failure) as second:
                why = "for the same reason" if str(second) == str(error) else str(second)
                sentence += f" (this could not be written to xenstore: {why})"
        where = f"{self._run.vbd.name}: " if self._run is not None else ""
        whole = printable(f"{shown(self._script.rpartition(b'/')[2])}: {where}{sentence}")
        self._say(whole.encode("utf-8") + b"\n")
        log.write(syslog.LOG_ERR, whole)

    def end(self) -> None:
        """The shell has ended, and all that it held ends with it."""
        try:
            if not self._ended and self._run is not None:
                self._allow(self._run)
                self._gone(self._run)
        except (StoreError, Failure, OSError) as error:
            log.write(syslog.LOG_WARNING, printable(str(error)))
        for lock in self._locks.values():
            lock.__exit__()
        if self._record is not None:
            self._record.close()
        if self._announced >= 0:
            posix.close(self._announced)
        if self._run is not None and self._run.store is not None:
            self._run.store.close()

    # Questions. Each takes its fields and returns the text of the answer.

    def _do_read(self, run: Run, *paths: bytes) -> bytes:
        values = self._store(run).read_many(paths)
        for path, value in zip(paths, values, strict=True):
            if not value:
                what = "is not in xenstore" if value is None else "is empty in xenstore"
                raise Failure("{path} " + what, path=path)
        return b"\n".join(value or b"" for value in values)

    def _do_default(self, run: Run, path: bytes, default: bytes) -> bytes:
        try:
            value: bytes = self._store(run).read(path)
        except StoreError as error:
            if error.name not in ("ENOENT", "EACCES"):
                raise
            return default
        return value

    def _do_write(self, run: Run, *fields: bytes) -> None:
        store, own = self._store(run), run.vbd.path + b"/"
        items = list(zip(fields[::2], fields[1::2], strict=True))

        def body(tx: int) -> None:
            wanted = items
            if not store.exists(run.vbd.path, tx):
                # What the toolstack took away is never made again.
                wanted = [item for item in items if not item[0].startswith(own)]
                if len(wanted) < len(items) and run.command == ADD:
                    raise Failure("{path} is not in xenstore (any more)", path=run.vbd.path)
            store.write_many(wanted, tx)

        store.transaction(body)

    def _do_success(self, run: Run) -> None:
        store, vbd = self._store(run), run.vbd

        def body(tx: int) -> None:
            if store.exists(vbd.path, tx):
                store.remove_many([vbd.node(HOTPLUG_ERROR)], tx)
                store.write(vbd.node(HOTPLUG_STATUS), CONNECTED, tx)

        store.transaction(body)
        self._told = False
        self._before = [CONNECTED, None]

    def _do_fatal(self, run: Run, text: bytes) -> None:
        raise Failure("{why}", why=_line(text))

    def _do_ebusy(self, run: Run, text: bytes) -> None:
        raise InUse("{why}", why=_line(text))

    def _do_failed(self, run: Run, what: bytes, status: bytes) -> None:
        """A command of the script failed, and the script ends. What is told already has better words."""
        now = self._outcome(run)
        if self._told or (now[1] is not None and now != self._before):  # perhaps by a script that this one called
            return
        raise Failure(
            "{what} failed ({why})",
            what=_line(what),
            why=self._heard or b"exit status " + status,
        )

    def _do_write_dev(self, run: Run, device: bytes) -> None:
        self._store(run)
        try:
            deliver(run, device, self._script, self._locks.get(NAME))
        except InUse:
            from vbdkit.engine.others import keep_beside

            try:
                keep_beside(run, self._store(run), self._script, device)
            except (Failure, StoreError, OSError) as error:
                run.log(syslog.LOG_WARNING, f"{shown(device)} could not be noted: {error}")
            raise
        finally:
            if run.store is not None and run.store.broken:
                run.store = None
        self._told = False

    def _do_spare(self, run: Run) -> bytes:
        """Before a remove: which other disk has what it would take back, if this one never got it."""
        if self._record is not None:
            return b""
        from vbdkit.engine.others import spared

        other = spared(run, self._store(run), self._script)
        if other:
            run.log(syslog.LOG_NOTICE, f"nothing was attached; what {other} has for the same target stays")
        return other.encode("ascii")

    def _do_lock(self, run: Run, name: bytes) -> None:
        if b"/" in name or name in (b"", b".", b".."):
            raise Failure("{name} is no name of a lock", name=name)
        if name not in self._locks:
            self._locks[name] = Lock(self._lock_dir, run.deadline, name).__enter__()

    def _do_unlock(self, run: Run, name: bytes) -> None:
        lock = self._locks.pop(name, None)
        if lock is not None:
            lock.__exit__()

    def _do_number(self, run: Run, device: bytes) -> bytes:
        return _number(device)

    def _do_sharing(self, run: Run, kind: bytes, device: bytes, mode: bytes, inode: bytes = b"") -> bytes:
        """What Xen's check_sharing prints: ``ok``, or ``guest`` or ``local`` and the device's number."""
        # A file by the numbers of its device and inode, as stat prints them.
        targets = run.platform.bound_to(int(device, 16), int(inode)) if kind == b"file" else [device]
        for one in targets:
            target = run.platform.open_target(one, False)
            try:
                found = self._examined(run, target)
            finally:
                target.close()
            against = verdict(found.chain, _writes(mode), found.users, found.same_vm)
            if against is not None:
                what = b"guest " if against[0].domid >= 0 else b"local "
                return what + _number(one)
        return b"ok"

    def _do_sentence(self, run: Run, path: bytes, mode: bytes) -> bytes:
        """Why a file or device may not be had; empty where it may."""
        target = run.platform.open_target(path, False)
        try:
            refusal = self._examined(run, target).refusal(_writes(mode), run.platform)
        finally:
            target.close()
        return b"" if refusal is None else str(refusal).encode("utf-8")

    def _do_same_vm(self, run: Run, asking: bytes, other: bytes) -> bytes:
        for domid in (asking, other):
            if not domid.isdigit():
                raise Failure("{domid} is no domain's number", domid=repr(shown(domid)))
        same = same_vm(self._store(run), int(asking), [User(GUEST, (0, 0), True, domid=int(other))])
        return b"yes" if int(other) in same else b"no"

    def _do_log(self, run: Run, level: bytes, text: bytes) -> None:
        run.log(_LEVELS.get(level, syslog.LOG_NOTICE), _line(text))

    def _do_exit(self, run: Run, status: bytes) -> None:
        """The script ends by itself."""
        self._ended = True
        if status == b"0":
            if run.command == REMOVE:
                self._forget(run)
        elif not self._told:
            self._do_failed(run, self._script.rpartition(b"/")[2], status)

    # The rest.

    def _gone(self, run: Run) -> None:
        """The script ended without a word: killed, or with a trap of its own in the place of the library's."""
        if run.command != ADD or self._told:
            return
        names = (HOTPLUG_STATUS, PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH)
        if not any(self._store(run).read_many([run.vbd.node(name) for name in names])):
            said = f" (it said: {shown(self._heard)})" if self._heard else ""
            self.fail(Failure("the script ended before the disk was attached{said}", said=said))

    def _outcome(self, run: Run, *more: bytes) -> "list[bytes | None]":
        return self._store(run).read_many([run.vbd.node(name) for name in (HOTPLUG_STATUS, HOTPLUG_ERROR, *more)])

    def _forget(self, run: Run) -> None:
        """After a remove: what was published here speaks of a device that may be another's now."""
        if self._record is not None and self._record.facts.get("datapath") == "shell":
            publish.gone(self._store(run), run.vbd)
            self._record.remove()

    def _examined(self, run: Run, target: "Target") -> "Finding":
        vbd = run.vbd
        return examine(self._store(run), run.platform, target, run.records, vbd.root, vbd.domid, vbd.path)

    def _store(self, run: Run) -> Connection:
        if run.store is None or run.store.broken:
            run.store = Connection.open(run.deadline, run.environ)
        run.store.deadline = run.deadline
        return run.store

    def _allow(self, run: Run) -> None:
        """Give a question its time: what is left of the run's, and a little at least."""
        run.end = max(self._end, time.monotonic() + min(_AT_LEAST, self._limit))
        run.deadline = run.end - min(_LAST_WORDS, self._limit / 4)


def _number(device: bytes) -> bytes:
    """Return a device's number as ``stat -c %t:%T`` prints it; empty for what is not there."""
    try:
        number = posix.stat(device).st_rdev
    except OSError:
        return b""
    return b"%x:%x" % (posix.major(number), posix.minor(number))


def _writes(mode: bytes) -> bool:
    return b"w" in mode


def _line(text: bytes) -> str:
    """Return a script's words as one line."""
    return " ".join(shown(line.strip()) for line in text.split(b"\n") if line.strip())
