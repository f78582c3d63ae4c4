"""Custom scripts: what an author says of one kind of storage (Storage), and all that is done for it.

``add`` is the counterpart of ``engine.attach`` for a target that has to be made into a device first, which may take
long: it is looked at before and again, with the lock held, when the device is there.
"""

import posix
import syslog
import time

from vbdkit.engine import publish
from vbdkit.engine.attach import Request, asked, clear, summary, undo
from vbdkit.engine.check import Finding, examine
from vbdkit.engine.claims import (
    FACT,
    LEAVING,
    claimants,
    leave,
    named_identity,
    other_records,
    resource_lock,
    wait_for_orphan,
)
from vbdkit.engine.datapath import Datapath
from vbdkit.engine.deliver import left_to_toolstack, publish_path
from vbdkit.engine.doubt import came_through
from vbdkit.engine.guests import describe, guests_of, same_vm
from vbdkit.engine.holds import hold_text, holders
from vbdkit.engine.lock import Lock
from vbdkit.engine.record import HOLDS
from vbdkit.platform.target import FILE
from vbdkit.protocol.failure import Failure, shown
from vbdkit.protocol.syntax import parse_target
from vbdkit.storage.chain import BLOCK, ITSELF, Chain
from vbdkit.xenstore.client import Connection, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import TypeVar

    from vbdkit.engine.script import Run
    from vbdkit.platform import Backing
    from vbdkit.platform.target import Target
    from vbdkit.protocol.mode import Mode

    Method = TypeVar("Method", bound="Callable[..., str | None]")

# What the record's ``datapath`` says of all of them.
CUSTOM = "custom"
# Seconds beyond its time after which an attach is ended that is not waiting for a program.
_LATE = 0.2
# Of a run's time, what is kept for taking back what an attach has begun.
_FOR_UNDO = 0.2
# Of what is kept for the last words, what an undo that hangs leaves of it.
_AFTER_UNDO = 0.6
_PACKAGE = __file__.rpartition("engine/")[0]
# An author's facts in a record, apart from ours.
_OWN = "x."


def verb(method: "Method") -> "Method":
    """Make a method of a Storage a word that its script takes: ``script WORD ARGUMENT...`` (S3).

    It gets the arguments as text and returns text to print, or None. ``_`` in its name is ``-`` in the word.
    """
    method.is_verb = True  # type: ignore[attr-defined]
    return method


class Storage:
    """One kind of storage, as its author describes it: a subclass, which ``vbdkit.custom.main`` makes a block script.

    To say: ``name`` (as in ``script=block-NAME``), ``syntax`` and ``example`` of the target (protocol.syntax),
    ``tools`` (program -> the package that has it) and ``modules`` (of the kernel) that it needs. To define:
    ``attach``; mostly ``detach``; perhaps ``parse``, ``identity``, ``check_host``, and methods under ``verb``. The rest
    is there to be used.
    """

    name = ""
    syntax = "TARGET"
    example = ""
    tools: "Mapping[str, str]" = {}
    modules: "tuple[str, ...]" = ()
    # Whether the toolstack may check and publish what this attaches (G1).
    path_only = True
    # Whether detach is to be called only when the program has ended that a killed run of this script was waiting for,
    # and that goes on without it. Else detach itself sees to that.
    waits = True

    def __init__(self, run: "Run | None" = None) -> None:
        """Belong to one run of a script; None where there is no vbd (``--check-host``)."""
        self._run = run

    # To be defined.

    def parse(self, text: str) -> "dict[str, str]":
        """Return what a target consists of, as text by name. Raises Failure for one that is none."""
        return parse_target(text, self.syntax, self.example)

    def identity(self, target: "dict[str, str]") -> str | None:
        """Return by what two targets are known to be the same storage, though their devices differ.

        A path stands for the file or device that is there now; any other text, for itself. None: the device tells.
        """
        return None

    def parts(self, target: "dict[str, str]") -> "Iterable[tuple[str, bool]]":
        """Return the paths of what attach uses besides, and whether the guest, if it may write at all, writes there.

        A backing image, say: other guests may have that too, as long as none may write to it.
        """
        return ()

    def attach(self, target: "dict[str, str]", mode: "Mode") -> str | bytes:
        """Make the target into a device and return its path; a plain file is served as ``block`` serves one.

        ``mode.writable`` says whether the guest may write. Raises Failure; ``detach`` is called then, too.
        """
        raise NotImplementedError

    def detach(self, made: "dict[str, str]") -> None:
        """Take back what ``attach`` did, as far as it is there; nothing left to take back is no error.

        ``made`` has what ``parse`` returned and what was noted, and ``device`` where attach came to its end. The
        target may be gone by now. Raises Failure; then the record stays.
        """

    def check_host(self) -> "list[str]":
        """Return what this host lacks besides tools and modules, a sentence each."""
        return []

    # To be used.

    @property
    def folder(self) -> str:
        """A folder, for root only and empty at each boot, for what all disks of this kind keep here, as sockets."""
        records = self._of_run().records.directory.decode("utf-8", "surrogateescape")
        path = f"{records}/.{self.name}"
        try:
            posix.mkdir(path, 0o700)
        except FileExistsError:
            pass
        return path

    @property
    def domid(self) -> int:
        """The guest."""
        return self._of_run().vbd.domid

    @property
    def devid(self) -> int:
        """The number of its disk."""
        return self._of_run().vbd.devid

    @property
    def vbd(self) -> str:
        """The disk's name, as in records and logs: ``vbd-5-51712``. No other on this host has it."""
        return self._of_run().vbd.name

    def tool(self, *argv: str | bytes, seconds: float | None = None, stdin: str = "", **environ: str) -> str:
        """Run a program, without a shell, and return what it wrote to stdout.

        ``seconds`` limits it beyond the script's own time; ``environ`` adds to PATH and LC_ALL=C. Raises ToolError (a
        Failure) with what it said on stderr where it fails or takes too long. A wait is told in the log.
        """
        from vbdkit.engine.tool import run_tool

        words = [_bytes(word) for word in argv]
        more = {_bytes(name): _bytes(value) for name, value in environ.items()}
        package = self.tools.get(words[0].decode("utf-8", "replace"), "")
        output = run_tool(self._of_run(), words, seconds, _bytes(stdin), more, package)
        return output.decode("utf-8", "surrogateescape")

    def note(self, **facts: str) -> None:
        """Note facts for ``detach``, before the step that they are needed to take back: it may be killed."""
        self._of_run().note({_OWN + name: value for name, value in facts.items()})

    def alone(self, name: str) -> "Lock":
        """Return a lock to be held in a ``with``: what two disks of this kind must not do at one time to ``name``.

        It bars no other kind of storage. Taking it raises Failure when the script's time is up.
        """
        return resource_lock(self._of_run(), f"{self.name} {name}")

    def others(self, **facts: str) -> "list[dict[str, str]]":
        """Return what the other disks of this kind have noted, of those that noted these facts.

        So several can have one thing that the first makes and the last takes back (``alone`` keeps them apart). Those
        that are about to end have ``leaving`` among their facts.
        """
        wanted = {("kind", self.name), *((_OWN + name, value) for name, value in facts.items())}
        return [own_facts(record) for record in other_records(self._of_run()) if wanted <= record.items()]

    def wait(self, condition: "Callable[[], object]", what: str, seconds: float = 30.0) -> None:
        """Wait until ``condition()`` is true. Raises Failure when ``seconds`` or the script's own time is up."""
        from vbdkit.engine.tool import wait_until

        wait_until(self._of_run(), condition, what, seconds)

    def log(self, text: str) -> None:
        """Write a line to the log, and to the toolstack's."""
        from vbdkit.engine.tool import tell

        tell(self._of_run(), text)

    def _of_run(self) -> "Run":
        assert self._run is not None, "outside a run of the script"
        return self._run


class Custom(Datapath):
    """Any custom script's storage, as the engine's clean-up sees it: ``storage`` where this process is that script."""

    name = CUSTOM
    slow = True

    def __init__(self, storage: "type[Storage] | None" = None) -> None:
        """Take the class of the storage whose script runs."""
        self._storage = storage

    def detach(self, run: "Run", made: "dict[str, str]") -> str:
        """Take back what the record speaks of, unless another guest has it by now."""
        done = ""
        if "file" in made:
            done = run.platform.unbind(made, run.records.owner(run.vbd.name))
        if "begun" not in made:
            return done
        device = made.get("device", "")
        leave(run)
        other = _other_guest(run, _bytes(device)) if device else None
        if other is not None:
            return f"{device} stays, guest {other} has it"
        if self._storage is None or made.get("kind") != self._storage.name:
            from vbdkit.engine.by_script import detach

            detach(run, made)
        else:
            run.doing = "taking back", _bytes(made.get("target", ""))
            take_back(run, self._storage, made)
        return done or device or made.get("target", "")


def take_back(run: "Run", storage: "type[Storage]", made: "dict[str, str]") -> None:
    """Have a storage take back what a record of its own speaks of. Raises Failure, OSError."""
    if storage.waits and "tool" in made and "device" not in made:
        wait_for_orphan(run, made["tool"])
    with Authors("detach"):
        storage(run).detach(own_facts(made))


def own_facts(made: "dict[str, str]") -> "dict[str, str]":
    """Return what a storage's own ``detach`` gets of a record."""
    facts = {name.removeprefix(_OWN): value for name, value in made.items() if name.startswith(_OWN)}
    return facts | {name: made[name] for name in ("device", LEAVING) if name in made}


def add(run: "Run", storage: "Storage", script: bytes) -> None:
    """Attach the vbd of this run. Raises Failure, StoreError or OSError; then nothing is left attached."""
    store, vbd, request = run.store, run.vbd, Request(run)
    assert store is not None
    if request.attached:
        run.log(syslog.LOG_INFO, f"is attached already ({shown(request.published)})")
        return
    params, mode = asked(run, request)
    with Authors("parse"):
        target = storage.parse(params.decode("utf-8", "surrogateescape"))
    clear(run, publish.ALL if request.published else ())
    facts = {"datapath": CUSTOM, "kind": storage.name}
    for key, value in (("script", script), ("target", params)):
        facts[key] = value.decode("utf-8", "surrogateescape")
    facts["mode"] = str(mode)
    made = {_OWN + name: value for name, value in target.items()}
    claim = Claim(run, storage, target, params, mode)
    whole = run.deadline
    try:
        facts |= claim.facts
        run.guard.hold()  # until the failure of what follows would be undone
        record = run.records.begin(vbd.name, facts | made)

        def note(more: "dict[str, str]") -> None:
            made.update(more)
            record.add(more)

        run.note = note
        opened: Target | None = None
        try:
            run.guard.resume()
            if HOLDS in facts:
                run.records.hold(vbd.name)  # before the look at what others hold
            if mode.checked:
                claim.check(store, local=True)
            run.deadline -= _FOR_UNDO * max(0.0, run.deadline - time.monotonic())
            run.doing = "attaching", params
            note({"begun": "1"})
            # A program's own time is up before that; this ends what waits without one.
            run.guard.limit(run.deadline + _LATE, Late())
            try:
                with Authors("attach"):
                    device = _path(storage.attach(target, mode))
            finally:
                run.guard.limit(0.0, None)
            note({"device": device.decode("utf-8", "surrogateescape")})
            opened = run.platform.open_target(device, mode.writable)
            backing = _backing(run, opened, mode, note)
            run.doing = "checking who else uses", params
            with Lock(run.lock_dir, run.deadline) as lock:
                found = None
                if mode.checked:
                    claim.check(store)
                    found = examine(store, run.platform, opened, run.records, vbd.root, vbd.domid, vbd.path)
                    _refuse(run, found, mode.writable)
                run.forget = True  # from here on a failure may leave nodes behind
                nodes = run.platform.nodes(backing)
                if left_to_toolstack(run, nodes):
                    publish_path(run, backing.device)
                    run.guard.settle()
                else:
                    publish.connected(run, store, params, nodes, request.error is not None, lock)
        except BaseException as reason:
            if run.unsure is None or not came_through(run, reason):
                # Not to the very end: one that takes too long must not hide the reason (engine.script's watch).
                run.deadline = run.end - _AFTER_UNDO * (run.end - whole)
                undo(run, Custom(type(storage)), facts | made, record)
                raise
        finally:
            record.close()
            if opened is not None:
                opened.close()
    finally:
        claim.close()
    run.log(syslog.LOG_INFO, summary(params, mode, backing, found))


class Late(Failure):
    """An author's method waits for something that no program is asked for, and the time is up."""

    def __init__(self) -> None:
        """The sentence is made where it is known what waits."""
        super().__init__("the time is up")


class Authors:
    """Around what an author has written: an error that is nobody's answer names the method and the line."""

    def __init__(self, method: str) -> None:
        """Say which method is called."""
        self._method = method

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: "TracebackType | None") -> None:
        """Raise Failure in the place of an error in the code."""
        late = isinstance(error, Late)
        if not late and (isinstance(error, (Failure, OSError)) or not isinstance(error, Exception)):
            return
        where = ""
        while trace is not None:
            file = trace.tb_frame.f_code.co_filename
            if not file.startswith(_PACKAGE) or file.startswith(_PACKAGE + "datapaths/"):
                where = f"line {trace.tb_lineno} of {file}"
            trace = trace.tb_next
        raise Failure(
            "the script's {method} "
            + ("was not done in time: it waits in {where}" if late else "has a fault: {what}")
            + (" ({where})" if where and not late else ""),
            method=self._method,
            what=f"{type(error).__name__}: {error}",
            where=where,
        ) from None


class Claim:
    """What a storage's ``identity`` and ``parts`` say, and whether somebody else has that.

    ``facts``: what others have to know of it, for the record.
    """

    def __init__(self, run: "Run", storage: Storage, target: "dict[str, str]", params: bytes, mode: "Mode") -> None:
        """Ask for it, and open the files and devices that it names."""
        self._run = run
        self._claimed: list[_Claimed] = []
        self._holds: list[tuple[tuple[int, int], bool]] = []
        self.facts: dict[str, str] = {}
        try:
            with Authors("identity"):
                said = storage.identity(target)
            if said is not None:
                claimed = self._claim(said, storage.name, params, mode.writable)
                self.facts[FACT] = claimed.name
            if mode.checked:
                with Authors("parts"):
                    for path, written in storage.parts(target):
                        self._claim(path, storage.name, _bytes(path), mode.writable and written)
        except BaseException:
            self.close()
            raise
        if self._holds:
            self.facts[HOLDS] = hold_text(self._holds)

    def _claim(self, said: str, kind: str, shown_as: bytes, writable: bool) -> "_Claimed":
        opened = None
        if said.startswith("/"):
            opened = self._run.platform.open_target(_bytes(said), False, 1)
            status = opened.stat
            identity = (BLOCK, status.st_rdev) if opened.kind != FILE else (status.st_dev, status.st_ino)
            said = f"{identity[0]} {identity[1]}"
            self._holds.append((identity, writable))
        else:
            said = f"{kind} {said}"
        claimed = _Claimed(said, shown_as, writable, opened)
        self._claimed.append(claimed)
        return claimed

    def check(self, store: "Connection", local: bool = False) -> None:
        """Raise InUse where another guest has any of it; ``local``: or somebody in this domain."""
        for claimed in self._claimed:
            self._check(store, claimed, local)

    def _check(self, store: "Connection", claimed: "_Claimed", local: bool) -> None:
        run = self._run
        users = claimants(run, store, claimed.name, claimed.identity)
        if users:
            describe(store, users)
            _refuse(run, Finding(claimed.chain, users, same_vm(store, run.vbd.domid, users)), claimed.writable)
        if claimed.opened is None:
            return
        if local:
            found = examine(store, run.platform, claimed.opened, run.records, run.vbd.root, run.vbd.domid, run.vbd.path)
        else:  # what uses it here by now may well be what the attach has started
            chain = run.platform.chain(claimed.opened)
            users = guests_of(store, run.vbd.root, run.vbd.path, run.platform, chain)
            describe(store, users)
            own = run.vbd.name.encode("ascii")
            users += holders(store, run.platform, run.records, run.records.holding(), run.vbd.root, own, chain)
            found = Finding(chain, users, same_vm(store, run.vbd.domid, users))
        _refuse(run, found, claimed.writable)

    def close(self) -> None:
        """Close what was opened."""
        for claimed in self._claimed:
            if claimed.opened is not None:
                claimed.opened.close()


class _Claimed:
    """One thing that an attach uses: by which ``name`` records have it, and the file or device where it is one here."""

    __slots__ = ("chain", "identity", "name", "opened", "writable")

    def __init__(self, name: str, shown_as: bytes, writable: bool, opened: "Target | None") -> None:
        """Take the facts."""
        self.name = name
        self.writable = writable
        self.opened = opened
        self.identity = named_identity(name)
        self.chain = Chain(shown_as)
        self.chain.add(self.identity, shown_as, ITSELF)


def _refuse(run: "Run", found: Finding, writable: bool) -> None:
    refusal = found.refusal(writable, run.platform)
    if refusal is not None:
        raise refusal


def _backing(run: "Run", target: "Target", mode: "Mode", note: "Callable[[dict[str, str]], None]") -> "Backing":
    """Return what the driver is to open: the device that an attach has made, or a loop device on its file."""
    if target.kind != FILE:
        return run.platform.device(target, mode.writable)  # type: ignore[no-any-return]
    planned = run.platform.plan(target)
    if planned:
        note(planned)
    backing: Backing = run.platform.bind(target, mode.writable, run.records.owner(run.vbd.name), run.deadline, note)
    if backing.made:
        note(backing.made)
    return backing


def _other_guest(run: "Run", device: bytes) -> int | None:
    """Return the guest that has a device which this vbd is to give back, if any. Raises Failure."""
    identity = run.platform.identify(device)
    if identity is None:
        return None
    chain = Chain(device)
    chain.add(identity, device, ITSELF)
    try:
        with Connection.open(run.deadline, run.environ) as store:
            users = guests_of(store, run.vbd.root, run.vbd.path, run.platform, chain)
    except StoreError as error:
        raise Failure(
            "{device} stays: whether another guest has it by now cannot be told ({why}); vbdkit gc takes it back later",
            device=device,
            why=error,
        ) from None
    return users[0].domid if users else None


def _path(said: object) -> bytes:
    """Return the path of a device that an author's ``attach`` returned. Raises Failure for what is none."""
    path = _bytes(said) if isinstance(said, (str, bytes)) else b""
    if not path.startswith(b"/"):
        raise Failure("the script's attach returned {it}, and not the path of a device or file", it=repr(said))
    return path


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
