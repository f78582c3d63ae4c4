"""A driver domain's daemon: runs block scripts for the disks that this domain serves to others.

Where a disk's backend is in another domain than the toolstack's, nobody there can run the script; this does. It
watches its own backends of all kinds that have scripts, runs `add` where one waits for it (state InitWait), `remove`
where one is closed for good (Closed and offline), and then deletes the backend's directory, for which the toolstack
waits. What it knows of a disk is what its nodes and its record say, so it may be stopped and started, and the store
too, at any time; attached disks are left alone.

One thread, which waits for the store, its runs and signals, and never for a script (jobs.py). Source of the duties:
libxl_device.c of Xen (libxl_device_events_handler).
"""

import gc
import os
import select
import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import FrameType

from vbdkit import platform
from vbdkit.engine import publish
from vbdkit.engine.record import Records
from vbdkit.protocol.failure import Failure, printable, shown
from vbdkit.protocol.invocation import ADD, REMOVE
from vbdkit.protocol.nodes import (
    CLOSED,
    HOTPLUG_ERROR,
    HOTPLUG_STATUS,
    INIT_WAIT,
    INITIALISING,
    MODE,
    ONLINE,
    PARAMS,
    PHYSICAL_DEVICE,
    PHYSICAL_DEVICE_PATH,
    SCRIPT,
    SCRIPT_KINDS,
    STATE,
)
from vbdkit.protocol.vbd import Vbd, parse_backend_path
from vbdkit.toolstack.jobs import Done, Job, Jobs, Own
from vbdkit.toolstack.nodes import INIT_TIMEOUT
from vbdkit.toolstack.notify import PRIVATE, Notifier
from vbdkit.toolstack.script import HOTPLUG_TIMEOUT
from vbdkit.xenstore import codec
from vbdkit.xenstore.client import Connection, StoreError

# Runs at the same time. An unprivileged domain may have 10 transactions open (xenstored's quota), the kernel's
# backend drivers' included, and each run has at most one.
JOBS = 8
# Seconds that the store may take for what one turn of the loop asks it.
_PATIENCE = 10.0
# Seconds between attempts to reach the store: from, to.
_PAUSE = (0.1, 5.0)
# What the store itself answers; any other error means that the connection is of no more use.
_ANSWERS = frozenset(codec.ERROR_NUMBERS) - {"EIO"}
NEVER = float("inf")
# The names below a backend's directory whose change may mean work.
_TELLING = frozenset((STATE, ONLINE))
# What a line in the journal begins with (sd-daemon(3)).
INFO, WARNING, ERROR = 6, 4, 3


@dataclass(frozen=True)
class Seen:
    """What a backend's directory says; None for a node that is not there."""

    state: bytes | None
    online: bytes | None
    status: bytes | None
    script: bytes | None
    number: bytes | None
    path: bytes | None

    def wants(self, tried: bool) -> str | None:
        """Return the command that is due, or None. ``tried``: `add` was run for it, whatever that came to.

        A script need not leave hotplug-status, and a frontend that connects anew brings the state back to InitWait:
        so what is published counts as attached.
        """
        if self.state == CLOSED and self.online == b"0":
            return REMOVE
        published = self.number or self.path
        if self.state == INIT_WAIT and not (published or self.status or tried):
            return ADD
        return None

    @property
    def failed(self) -> bool:
        """Whether an `add` was run and has left nothing but words."""
        return self.state == INIT_WAIT and bool(self.status) and not (self.number or self.path)


_NODES = (STATE, ONLINE, HOTPLUG_STATUS, SCRIPT, PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH)


class DriverDomain:
    """The daemon. ``run`` returns when a signal has ended it.

    ``own`` tells whether a script (its path) is vbdkit's own, with its settings. ``say`` takes (level, line), a line
    per event. ``jobs`` is how many runs there may be at a time, ``limit`` the seconds after which one is killed,
    ``environ`` what leads to the store and what scripts inherit.
    """

    def __init__(
        self,
        own: Callable[[bytes], Own | None],
        say: Callable[[int, str], None],
        environ: Mapping[bytes, bytes],
        run_dir: bytes,
        system: str = "",
        jobs: int = JOBS,
        limit: float = HOTPLUG_TIMEOUT,
    ) -> None:
        """Take what it works with. ``run_dir`` has the records of scripts that are our own."""
        self._own = own
        self._say = say
        self._environ = environ
        self._records = Records(run_dir)
        self._notifier = Notifier(environ)
        self._most = jobs
        inherited = {name: value for name, value in environ.items() if name not in PRIVATE}
        self._system = system or platform.current()
        self._jobs = Jobs(self._system, inherited, limit, self._aside)
        self._queue: OrderedDict[bytes, Job] = OrderedDict()
        self._store: Connection | None = None
        self._root = b""
        self._domid = -1
        self._retry_at = 0.0
        self._pause = _PAUSE[0]
        self._told_loss = False
        # Backend paths: that this connection has shown, whose `add` was run, whose driver may take until then for it.
        self._seen: set[bytes] = set()
        self._tried: set[bytes] = set()
        self._slow: dict[bytes, float] = {}
        self._signals: set[int] = set()
        self._stopping = False

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then wait for what runs. Raises Failure in domain 0."""
        self._warm()
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
        before = {number: signal.signal(number, self._note) for number in numbers}
        wake, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        previous = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        try:
            self._serve(wake)
        finally:
            signal.set_wakeup_fd(previous)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(wake)
            os.close(self._wake)
            if self._store is not None:
                self._store.close()

    # The loop.

    def _serve(self, wake: int) -> None:
        alive = 0.0
        while True:
            self._obey()
            try:
                self._turn()
            except StoreError as error:
                self._lost(error)
            if self._stopping and not self._jobs:
                self._say(INFO, "stopped")
                return
            now = time.monotonic()
            if self._notifier.interval is not None and now >= alive:
                self._notifier.tell("WATCHDOG=1")
                alive = now + self._notifier.interval
            times = [self._jobs.next_deadline()]
            if self._notifier.interval is not None:
                times.append(alive)
            descriptors = [wake]
            if not self._stopping:
                if self._store is None:
                    times.append(self._retry_at)
                else:
                    descriptors.append(self._store.fileno())
                    times += self._slow.values()
            until = min(times)
            ready = select.select(descriptors, [], [], None if until == NEVER else max(until - now, 0.0))[0]
            if wake in ready:
                os.read(wake, 4096)

    def _turn(self) -> None:
        """Do all that is to be done now. Raises StoreError where the store was lost."""
        for done in self._jobs.reap():
            self._finish(done)
        if self._stopping:
            return
        if self._store is None and time.monotonic() >= self._retry_at:
            self._connect()
        # Until there is nothing: events that came with a reply wait in the connection, and no descriptor tells of them.
        while self._take_events() or self._start():
            pass
        self._complain_of_drivers()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.add(number)

    def _obey(self) -> None:
        """Do what signals ask."""
        noted, self._signals = self._signals, set()
        if noted & {signal.SIGTERM, signal.SIGINT}:
            if self._stopping:
                self._say(WARNING, f"asked to stop again: {len(self._jobs)} running scripts are ended")
                self._jobs.terminate()
            else:
                self._stopping = True
                self._notifier.tell("STOPPING=1", f"STATUS=waiting for {len(self._jobs)} scripts")
                self._queue.clear()
                if self._jobs:
                    self._say(INFO, f"stopping; waiting for {len(self._jobs)} running scripts")
        elif signal.SIGHUP in noted and self._store is not None and not self._stopping:
            self._say(INFO, "looking at all disks again, as SIGHUP asks")
            try:
                self._scan(self._store, True)
            except StoreError as error:
                self._lost(error)

    # The store.

    def _connect(self) -> None:
        """Connect, watch, and look at all that is there."""
        first = self._domid < 0
        store = Connection.open(time.monotonic() + _PATIENCE, self._environ)
        try:
            self._domid = self._own_domid(store)
            root = b"/local/domain/%d/backend" % self._domid
            store.watch(root, b"devd")
        except BaseException:
            store.close()
            raise
        self._store, self._root = store, root
        self._seen.clear()
        # Those whose `add` failed get another chance when the daemon starts, not when the store does.
        count = self._scan(store, first)
        self._pause, self._told_loss = _PAUSE[0], False
        self._say(INFO, f"{'watching' if first else 'again watching'} {shown(root)}: {count} disks")
        self._notifier.tell("READY=1", f"STATUS=watching {shown(root)}")

    def _own_domid(self, store: Connection) -> int:
        text = store.read(b"domid")
        if not text.isdigit():
            raise StoreError("EPROTO", "read", b"domid", f"it is {text!r}, no domain's number")
        if int(text) == 0:
            raise Failure(
                "this is domain 0, where the toolstack runs the scripts itself: with this daemon each disk would be "
                "attached twice; run it in a driver domain"
            )
        return int(text)

    def _lost(self, error: StoreError) -> None:
        """Go on without the store, and try to have it back later."""
        if self._store is not None:
            self._store.close()
            self._store = None
        self._slow.clear()
        if not self._told_loss:
            self._say(WARNING, f"{error}; trying again until it is back")
            self._notifier.tell("STATUS=xenstore is out of reach")
            self._told_loss = True
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, _PAUSE[1])

    def _take_events(self) -> bool:
        """Look at the disks that events speak of, each once; False where there were none. Raises StoreError."""
        store = self._store
        if store is None:
            return False
        store.deadline = time.monotonic() + _PATIENCE
        changed: dict[bytes, bool] = {}  # backend path, or one above; whether the directory itself came or went
        while (event := store.next_event(time.monotonic())) is not None:
            parts = event[0][len(self._root) + 1 :].split(b"/")
            if parts == [b""]:
                changed[self._root] = True
            elif parts[0] in SCRIPT_KINDS and (len(parts) <= 3 or (len(parts) == 4 and parts[3] in _TELLING)):
                path = b"/".join([self._root, *parts[:3]])
                changed[path] = changed.get(path, False) or len(parts) <= 3
        if not changed:
            return False
        vbds = {}
        for path, itself in changed.items():
            found = [vbd] if (vbd := parse_backend_path(path)) is not None else self._below(store, path)
            for vbd in found:
                vbds[vbd.path] = vbd
                if itself:  # another disk, perhaps
                    self._tried.discard(vbd.path)
        self._look(store, vbds.values())
        return True

    def _below(self, store: Connection, path: bytes) -> list[Vbd]:
        """Return the disks in the store below a directory, and those below it that went with it."""
        parts = path[len(self._root) + 1 :].split(b"/") if path != self._root else []
        paths = [path] if parts else [self._root + b"/" + kind for kind in SCRIPT_KINDS]
        for _ in range(3 - max(len(parts), 1)):
            lists = store.list_many(paths)
            paths = [above + b"/" + name for above, names in zip(paths, lists, strict=True) for name in names or ()]
        known = [each for each in self._seen if each.startswith(path + b"/")]
        return [vbd for each in dict.fromkeys([*paths, *known]) if (vbd := parse_backend_path(each)) is not None]

    def _scan(self, store: Connection, thoroughly: bool) -> int:
        """Look at everything and return how many disks there are.

        ``thoroughly``: run `add` anew where it failed, and `remove` for what only the records know, since its nodes
        were deleted while nobody watched. Not after a loss of the store: one that begins empty would take all disks.
        """
        there = self._below(store, self._root)
        found = {vbd.path: vbd for vbd in self._recorded()} if thoroughly else {}
        found |= {vbd.path: vbd for vbd in there}
        self._look(store, found.values(), thoroughly)
        return len(there)

    def _recorded(self) -> list[Vbd]:
        """Return the disks of which there are records."""
        try:
            names = os.listdir(self._records.directory)
        except OSError:
            return []
        paths = [self._root + b"/" + b"/".join(name.rsplit(b"-", 2)) for name in names]
        return [vbd for path in paths if (vbd := parse_backend_path(path)) is not None]

    # One disk.

    def _look(self, store: Connection, vbds: Collection[Vbd], again: bool = False) -> None:
        """See what these disks want, and put it into the queue."""
        for vbd, seen in self._read(store, vbds):
            if vbd.path in self._jobs:
                continue  # looked at when that has ended
            waiting = self._queue.pop(vbd.path, None)
            if seen.state is None:
                self._tried.discard(vbd.path)
                self._seen.discard(vbd.path)
                self._slow.pop(vbd.path, None)
                if self._has_record(vbd):
                    self._queue[vbd.path] = self._job(REMOVE, vbd, None)
                continue
            self._seen.add(vbd.path)
            if seen.state == INITIALISING:
                self._slow.setdefault(vbd.path, time.monotonic() + INIT_TIMEOUT)
            else:
                self._slow.pop(vbd.path, None)
            command = seen.wants(vbd.path in self._tried)
            if command is None and seen.failed and (again or (waiting is not None and waiting.command == ADD)):
                command = ADD
            if command is not None:
                self._queue[vbd.path] = self._job(command, vbd, seen.script)

    def _job(self, command: str, vbd: Vbd, script: bytes | None) -> Job:
        """Return what is to run. Where the node is gone, what has a record was attached by our own."""
        if script is not None:
            return Job(command, vbd, script, self._own(script))
        return Job(command, vbd, b"", Own(self._records.directory) if self._has_record(vbd) else None)

    def _has_record(self, vbd: Vbd) -> bool:
        return os.path.lexists(self._records.path(vbd.name))

    def _read(self, store: Connection, vbds: Collection[Vbd]) -> Iterable[tuple[Vbd, Seen]]:
        """Yield what the nodes of these disks say; a disk whose nodes cannot be read is told, the others go on."""
        try:
            values = store.read_many([vbd.node(name) for vbd in vbds for name in _NODES])
        except StoreError as error:
            if error.name not in _ANSWERS:
                raise
            if len(vbds) == 1:
                self._say(ERROR, str(error))
                return
            for vbd in vbds:
                yield from self._read(store, [vbd])
            return
        size = len(_NODES)
        for number, vbd in enumerate(vbds):
            yield vbd, Seen(*values[number * size : (number + 1) * size])

    def _start(self) -> bool:
        """Start what waits, as far as there is room; whether some could not be."""
        failed = False
        while self._queue and len(self._jobs) < self._most:
            _, job = self._queue.popitem(last=False)
            if job.command == ADD:
                self._tried.add(job.vbd.path)
            try:
                if not job.script.startswith(b"/") and job.own is None:
                    what = f"is {shown(job.script)!r}, which is no whole path" if job.script else "is missing"
                    raise Failure("{path}/script {what}", path=job.vbd.path, what=what)
                self._jobs.start(job)
            except Failure as failure:
                failed = True
                self._finish(Done(job, 1, False, 0.0, ""), failure)
        return failed

    def _finish(self, done: Done, failure: Failure | None = None) -> None:
        """Do what comes after a run, and tell of it also where the store is gone. ``failure``: it was not started."""
        vbd, store = done.job.vbd, self._store
        after = self._added if done.job.command == ADD else self._removed
        try:
            if store is not None:
                store.deadline = time.monotonic() + _PATIENCE
            self._tell(done, *after(store, done, failure))
            if store is not None:
                self._look(store, [vbd])
        except StoreError as error:
            if self._store is None:
                raise
            self._lost(error)
            self._tell(done, *after(None, done, failure))

    def _added(self, store: Connection | None, done: Done, failure: Failure | None) -> tuple[int, str]:
        """Return (level, what to say) of an `add`; publish a reason that nobody else has. Raises StoreError."""
        vbd = done.job.vbd
        names = (PARAMS, MODE, HOTPLUG_STATUS, HOTPLUG_ERROR, PHYSICAL_DEVICE_PATH, PHYSICAL_DEVICE)
        values: list[bytes | None] = [None] * len(names)
        if store is not None:
            values = store.read_many([vbd.node(name) for name in names])
        params, mode, status, error, path, number = values
        if done.status == 0:
            if store is None:
                return INFO, "done"
            target, device = shown(params or b"?"), shown(path or number or b"")
            what = f"{target} attached{f' as {device}' if device and device != target else ''} ({shown(mode or b'?')})"
            if device:
                return INFO, what
            return WARNING, what + "; but the script has published no device, so the guest will wait for its disk"
        why = str(failure) if failure is not None else ""
        if not why and not done.killed:
            why = shown(error) if error else done.said
        why = why or _ending(done)
        if store is not None and status is None and params is not None and not done.said:  # ours has tried itself
            # The toolstack does not see how a script ends here, and never will: this is where somebody may look.
            try:
                publish.failed(store, vbd, failure or Failure("{why}", why=why), forget=False)
            except StoreError as second:
                if second.name not in _ANSWERS:
                    raise
                why += f" (this could not be written to xenstore: {second})"
        return ERROR, f"not attached: {why}"

    def _removed(self, store: Connection | None, done: Done, failure: Failure | None) -> tuple[int, str]:
        """Delete the backend's directory and return (level, what to say). Raises StoreError.

        Whatever the script did: the toolstack waits for that. What could not be undone has its record.
        """
        self._tried.discard(done.job.vbd.path)
        what, level = "detached", INFO
        if done.status != 0:
            why = str(failure) if failure is not None else done.said or _ending(done)
            what, level = f"not detached: {why}", ERROR
        if store is not None:
            try:
                what += "; its nodes are deleted" if self._delete(store, done.job.vbd) else ""
            except StoreError as error:
                if error.name not in _ANSWERS:
                    raise
                what, level = f"{what}; its nodes stay: {error}", ERROR
        return level, what

    def _delete(self, store: Connection, vbd: Vbd) -> bool:
        """Delete a closed backend's directory and what is empty above it, below ``backend`` itself.

        Empty ones would count against this domain's quota of nodes for ever. False where it has gone, or is wanted
        again.
        """

        def body(tx: int) -> bool:
            state, online = store.read_many([vbd.node(STATE), vbd.node(ONLINE)], tx)
            if state != CLOSED or online != b"0":
                return False
            store.remove(vbd.path, tx)
            above = vbd.path
            for _ in range(2):
                above = above.rpartition(b"/")[0]
                if store.list_many([above], tx)[0] != []:
                    break
                try:
                    store.remove(above, tx)
                except StoreError as error:
                    if error.name not in _ANSWERS:
                        raise
                    break  # the toolstack's own
            return True

        return store.transaction(body)

    def _complain_of_drivers(self) -> None:
        """Say once which backends' drivers do not get ready: the toolstack does not see that either."""
        now = time.monotonic()
        for path in [path for path, until in self._slow.items() if until <= now]:
            self._slow[path] = NEVER
            vbd = parse_backend_path(path)
            if vbd is not None:
                self._say(
                    WARNING,
                    f"{vbd.name}: its driver has not taken it up for {INIT_TIMEOUT:g} s "
                    "(state 1); is the backend driver loaded?",
                )

    def _tell(self, done: Done, level: int, what: str) -> None:
        self._say(level, printable(f"{done.job.vbd.name} {done.job.command}: {what}, {done.seconds * 1000:.0f} ms"))

    # Processes.

    def _warm(self) -> None:
        """Import what each run needs, once for all that will be forked."""
        import vbdkit.datapaths.device
        import vbdkit.datapaths.file
        import vbdkit.engine.attach
        import vbdkit.engine.detach
        import vbdkit.storage.sentence  # noqa: F401

        platform.load(self._system)
        gc.collect()
        gc.freeze()  # a collection in a run would copy every page of this process

    def _aside(self) -> None:
        """Let go, in a forked process, of what is the daemon's."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.close(self._wake)
        if self._store is not None:
            self._store.close()


def _ending(done: Done) -> str:
    """Say how a script ended that has said nothing itself."""
    script = shown(done.job.script)
    if done.killed:
        return f"the script {script} was killed after {done.seconds:.0f} s"
    if done.status < 0:
        return f"the script {script} was ended by {signal.Signals(-done.status).name}"
    return f"the script {script} ended with status {done.status} and gave no reason"
