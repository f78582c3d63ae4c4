"""What vbdkit made and no living vbd uses, and its collection: the toolstack does not always call ``remove`` (I4).

Nothing is collected on a guess. A record that somebody holds belongs to a run in progress; a vbd lives while its
backend directory and its guest are in the store; and what the store does not tell ends the whole collection.
"""

import os
import syslog
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext

from vbdkit import platform
from vbdkit.engine import publish
from vbdkit.engine.flock import at, close, free
from vbdkit.engine.forgotten import knows_itself
from vbdkit.engine.guests import gone, guests_of
from vbdkit.engine.lock import Lock
from vbdkit.engine.record import NEW, RUN_DIR, Busy, Record, Records
from vbdkit.engine.script import LOCK_DIR, TIME_LIMIT, Run
from vbdkit.protocol.failure import Failure
from vbdkit.protocol.vbd import Vbd, parse_name
from vbdkit.storage.chain import ITSELF, Chain
from vbdkit.xenstore.client import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.datapath import Datapath

_DRIVEN = "the backend driver has it open, whatever the store says"

COLLECTED, WOULD_COLLECT, KEPT = "collected", "would collect", "kept"


class Leftover:
    """One thing found. ``device`` and ``target`` are empty, ``age`` (seconds) is None where that is unknown.

    ``outcome`` is one of the three above; ``reason`` says why it is one, ``note`` what was done or is in the way.
    """

    def __init__(self, vbd: str, facts: Mapping[str, str], device: bytes, age: float | None, reason: str) -> None:
        """Take the facts of a record."""
        self.vbd = vbd
        self.datapath = facts.get("datapath", "")
        self.target = os.fsencode(facts.get("target", ""))
        self.mode = facts.get("mode", "")
        self.device = device
        self.age = age
        self.reason = reason
        self.outcome = WOULD_COLLECT
        self.note = ""
        self.in_use = False

    def keep(self, why: object) -> "Leftover":
        """Note why it stays."""
        self.outcome, self.note = KEPT, str(why)
        return self


class Collection:
    """The leftovers of one installation; iterate it once. ``dry_run`` changes nothing.

    Iterating raises StoreError, Failure and OSError: whatever was to come stays then.
    """

    def __init__(
        self,
        datapaths: "Callable[[str], Datapath]",
        environ: Mapping[bytes, bytes],
        system: str = "",
        run_dir: bytes = RUN_DIR,
        lock_dir: bytes = LOCK_DIR,
        time_limit: float = TIME_LIMIT,
        dry_run: bool = False,
    ) -> None:
        """Take what a script is told as well."""
        self._datapaths = datapaths
        self._environ = environ
        self._platform = platform.load(system or platform.current())
        self._records = Records(run_dir)
        self._lock_dir = lock_dir
        self._time_limit = time_limit
        self._dry_run = dry_run

    def __iter__(self) -> Iterator[Leftover]:
        """Yield each leftover once its outcome is known."""
        try:
            files = sorted(os.listdir(self._records.directory))
            # Other installations have their own place, and so other names for what they make.
            ending = self._records.owner("")
        except (FileNotFoundError, NotADirectoryError):
            return
        made: dict[str, list[dict[str, str]]] = {}
        for owner, facts in self._platform.owned():
            name, at_sign, place = owner.partition("@")
            if at_sign + place == ending:
                made.setdefault(name, []).append(facts)
        with Connection.open(time.monotonic() + self._time_limit, self._environ) as store:
            if not knows_itself(store):
                raise Failure(
                    "xenstore does not know this domain (it has no node domid), so which disks are in use cannot be "
                    "told; was xenstored started anew?"
                )
            for name in sorted({os.fsdecode(file) for file in files if not file.endswith(NEW)} | set(made)):
                vbd = parse_name(os.fsencode(name))
                if vbd is not None:
                    yield from self._of_vbd(store, vbd, made.get(name, []))
        for file in files:
            if file.endswith(NEW):
                yield from self._unfinished(file)

    def _of_vbd(self, store: Connection, vbd: Vbd, made: list[dict[str, str]]) -> Iterator[Leftover]:
        store.deadline = time.monotonic() + self._time_limit
        run = self._run(store, vbd)
        try:
            record = self._records.take(vbd.name, 0)
        except Busy:
            return
        except Failure as error:
            yield Leftover(vbd.name, {}, b"", self._age(vbd.name), "its record cannot be read").keep(error)
            return
        if record is None:
            for facts in made:
                yield from self._of_no_record(run, facts)
            return
        with closing(record):
            others = [facts for facts in made if not _is_of(facts, record.facts)]
            why = why_dead(store, vbd)
            if why and self._driven(store, vbd):
                yield Leftover(vbd.name, record.facts, b"", self._age(vbd.name), why).keep(_DRIVEN)
            elif why:
                yield self._collect(run, record.facts, why, vbd.path, record)
            for facts in others:
                yield from self._unless_in_use(self._collect(run, facts, "its record speaks of another device", b""))

    def _of_no_record(self, run: Run, facts: dict[str, str]) -> Iterator[Leftover]:
        """What bears a vbd's name of which there is no record: it gets one first, so that no run comes in between."""
        reason = "there is no record of it"
        assert run.store is not None
        if self._driven(run.store, run.vbd):
            yield Leftover(run.vbd.name, facts, b"", None, reason).keep(_DRIVEN)
            return
        if self._dry_run:
            yield from self._unless_in_use(self._collect(run, facts, reason, b""))
            return
        try:
            record = self._records.begin(run.vbd.name, facts, first=True)
        except Failure:
            return  # a run in progress
        with closing(record):
            item = self._collect(run, facts, reason, b"", record)
            if item.outcome == KEPT:
                record.remove()
            yield from self._unless_in_use(item)

    def _driven(self, store: Connection, vbd: Vbd) -> bool:
        """Whether the driver has a disk of which the store knows nothing: a store that came back empty."""
        return bool(self._platform.driven(os.fsencode(vbd.name))) and not store.exists(vbd.path)

    def _unless_in_use(self, item: Leftover) -> Iterator[Leftover]:
        """A device without a record that a guest has is no leftover."""
        if not item.in_use:
            yield item

    def _collect(
        self, run: Run, facts: dict[str, str], reason: str, own: bytes, record: Record | None = None
    ) -> Leftover:
        """Take back what ``facts`` speak of, and remove the record. ``own`` is the vbd's path where it is dead."""
        name = run.vbd.name
        assert run.store is not None
        found = self._platform.made_device(facts, self._records.owner(name))
        age = None if record is None or not own else self._age(name)
        device = found[0] if found else os.fsencode(facts.get("device", ""))
        item = Leftover(name, facts, device, age, reason)
        try:
            with nullcontext() if self._dry_run else Lock(self._lock_dir, run.deadline):
                if found:
                    chain = Chain(found[0])
                    chain.add(found[1], found[0], ITSELF)
                    users = guests_of(run.store, run.vbd.root, own, self._platform, chain)
                    if users:
                        item.in_use = True
                        return item.keep(f"guest {users[0].domid} has it")
                if self._dry_run:
                    return item
                if own:
                    publish.gone(run.store, run.vbd)
                datapath = self._datapaths(facts.get("datapath", ""))
                if not datapath.slow:
                    done = datapath.detach(run, facts)
            if datapath.slow:
                done = datapath.detach(run, facts)
            if record is not None:
                record.remove()
        except (Failure, OSError) as error:
            return item.keep(error)
        item.outcome = COLLECTED
        item.note = done or "nothing was attached any more"
        run.log(syslog.LOG_NOTICE, f"{reason}: {item.note}")
        return item

    def _unfinished(self, file: bytes) -> Iterator[Leftover]:
        """A record that a kill left before it had its name: nothing had been done."""
        path = self._records.directory + b"/" + file
        item = Leftover(os.fsdecode(file.removesuffix(NEW)), {}, b"", None, "a record that was never finished")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if not free(fd) or at(fd, path) is None:
                    return  # a run in progress
                if not self._dry_run:
                    os.unlink(path)
                    item.outcome, item.note = COLLECTED, "nothing had been attached"
            finally:
                close(fd)
        except FileNotFoundError:
            return
        except OSError as error:
            item.keep(error)
        yield item

    def _run(self, store: Connection, vbd: Vbd) -> Run:
        end = time.monotonic() + self._time_limit
        run = Run(
            "gc", "", vbd, self._platform, self._datapaths, self._records, self._lock_dir, end, end, self._environ
        )
        run.store = store
        return run

    def _age(self, name: str) -> float | None:
        try:
            return max(time.time() - os.lstat(self._records.path(name)).st_mtime, 0.0)
        except OSError:
            return None


def _is_of(facts: dict[str, str], record: dict[str, str]) -> bool:
    """Whether a device that was found is the one that a record speaks of."""
    return facts["file"] == record.get("file") and facts["loop"] == record.get("loop", facts["loop"])


def why_dead(store: Connection, vbd: Vbd) -> str:
    """Return why a vbd uses nothing any more; empty where it lives. Raises StoreError where that cannot be told."""
    if not store.exists(vbd.path):
        return "its backend is gone from xenstore"
    return f"guest {vbd.domid} is gone" if gone(store, vbd.domid) else ""
