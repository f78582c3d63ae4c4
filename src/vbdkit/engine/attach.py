"""``add``: a guest gets its disk.

Read what is asked, attach it, and under the shared lock check that nobody else has it and publish. The lock
is held for the last two only. Whatever fails, what was done is undone and the reason told.
"""

import syslog

from vbdkit.engine import publish
from vbdkit.engine.check import examine
from vbdkit.engine.lock import Lock
from vbdkit.protocol.failure import Failure, shown
from vbdkit.protocol.mode import SPELLINGS, Mode, parse_mode
from vbdkit.protocol.nodes import (
    CONNECTED,
    HOTPLUG_ERROR,
    HOTPLUG_STATUS,
    INIT_WAIT,
    MODE,
    PARAMS,
    PHYSICAL_DEVICE,
    PHYSICAL_DEVICE_PATH,
    STATE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.check import Finding
    from vbdkit.engine.datapath import Datapath
    from vbdkit.engine.record import Record
    from vbdkit.engine.script import Run
    from vbdkit.platform import Backing
    from vbdkit.platform.target import Target
    from vbdkit.xenstore.client import Connection

# What an add goes by, in the order in which a Request takes them.
_REQUEST = (PARAMS, MODE, STATE, HOTPLUG_STATUS, HOTPLUG_ERROR, PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH)


class Request:
    """A vbd's nodes as an add finds them: what is asked, and how things stand. Each is None where it is not there."""

    __slots__ = ("error", "mode", "number", "params", "path", "state", "status")

    def __init__(self, run: "Run") -> None:
        """Read them in one round trip. Raises StoreError."""
        assert run.store is not None
        self.params, self.mode, self.state, self.status, self.error, self.number, self.path = run.store.read_many(
            [run.vbd.node(name) for name in _REQUEST]
        )

    @property
    def published(self) -> bytes:
        """The device that the nodes name, which an earlier add published; empty where none did."""
        return self.number or self.path or b""

    @property
    def attached(self) -> bool:
        """Whether this is `add` again for a disk that the guest has (I5): the driver refuses a change then."""
        return self.published != b"" and self.status == CONNECTED and self.state != INIT_WAIT


def add(run: "Run") -> None:
    """Attach the vbd of this run. Raises Failure, StoreError or OSError; then nothing is left attached."""
    store, vbd, request = run.store, run.vbd, Request(run)
    assert store is not None
    if request.attached:
        run.log(syslog.LOG_INFO, f"is attached already ({shown(request.published)})")
        return
    params, mode = asked(run, request)
    if clear(run, publish.ALL if request.published else (), params, mode):
        run.log(syslog.LOG_INFO, f"is attached already ({shown(params)})")
        return
    run.doing = "opening", params
    target = run.platform.open_target(params, mode.writable)
    try:
        datapath = run.datapaths(target.kind)
        facts = {"datapath": target.kind, "target": params.decode("utf-8", "surrogateescape"), "mode": str(mode)}
        made = datapath.plan(run, target)
        run.guard.hold()  # until the failure of what follows would be undone
        record = run.records.begin(vbd.name, facts | made)

        def note(facts: "dict[str, str]") -> None:
            made.update(facts)
            record.add(facts)

        run.note = note
        try:
            run.guard.resume()
            run.doing = "attaching", params
            backing = datapath.attach(run, target, mode)
            made |= backing.made
            if backing.made:
                record.add(backing.made)
            run.doing = "checking who else uses", params
            with Lock(run.lock_dir, run.deadline) as lock:
                found = check(run, store, target, mode) if mode.checked else None
                run.forget = True  # from here on a failure may leave nodes behind
                publish.connected(run, store, params, run.platform.nodes(backing), request.error is not None, lock)
        except BaseException as reason:
            if run.unsure is None or not _came_through(run, reason):
                undo(run, datapath, made, record)
                raise
        finally:
            record.close()
    finally:
        target.close()
    run.log(syslog.LOG_INFO, summary(params, mode, backing, found))


def asked(run: "Run", request: Request, again: bool = False) -> tuple[bytes, Mode]:
    """Return params and the mode, having seen that the toolstack wrote all that a script needs (I1-I3). Raises Failure.

    ``again``: the driver need not be waiting.
    """
    path, params, text, state = run.vbd.path, request.params, request.mode, request.state
    if params is None and text is None and state is None:
        raise Failure(
            "there is no disk at {path} in xenstore; the toolstack writes it before it calls the script", path=path
        )
    if not params:
        what = "missing" if params is None else "empty"
        raise Failure("{path}/params is {what}: it has to name the disk's file or device", path=path, what=what)
    if not text:
        what = "missing" if text is None else "empty"
        raise Failure("{path}/mode is {what}: it has to be r or w", path=path, what=what)
    mode = parse_mode(text)
    if mode is None:
        known = ", ".join(word.decode("ascii") for word in SPELLINGS)
        raise Failure("{path}/mode is {text}, which is none of {known}", path=path, text=repr(shown(text)), known=known)
    if state != INIT_WAIT and not again:
        raise Failure(
            "{path}/state is {state}, not 2 (InitWait): the backend driver is not waiting for a disk; "
            "is the backend driver loaded?",
            path=path,
            state="missing" if state is None else repr(shown(state)),
        )
    return params, mode


def clear(run: "Run", nodes: "tuple[bytes, ...]", params: bytes = b"", mode: Mode | None = None) -> bool:
    """Undo what an earlier `add` of this vbd left behind, or return True: that is what ``params`` and ``mode`` ask for.

    The driver waits (state 2): what it does not have yet it does not use.
    """
    old = run.records.take(run.vbd.name, run.deadline)
    try:
        if old is not None and mode is not None and _has_it(run, old.facts, params, mode):
            return True
        if nodes and run.store is not None:
            publish.gone(run.store, run.vbd, nodes)  # before what they name is released: that may be another's then
        if old is None:
            return False
        run.doing = "releasing", old.path
        run.guard.hold()
        done = run.datapaths(old.facts.get("datapath", "")).detach(run, old.facts)
        old.remove()
    finally:
        if old is not None:
            old.close()
    run.log(syslog.LOG_NOTICE, "an earlier attach was left over" + (": " + done if done else ""))
    run.guard.resume()
    return False


def _has_it(run: "Run", facts: "dict[str, str]", params: bytes, mode: Mode) -> bool:
    from vbdkit.engine.again import has_it

    return has_it(run, facts, params, mode)


def check(run: "Run", store: "Connection", target: "Target", mode: Mode) -> "Finding":
    """Raise InUse where somebody else has the target (O1, O2)."""
    found = examine(store, run.platform, target, run.records, run.vbd.root, run.vbd.domid, run.vbd.path)
    refusal = found.refusal(mode.writable, run.platform)
    if refusal is not None:
        raise refusal
    return found


def _came_through(run: "Run", reason: BaseException) -> bool:
    from vbdkit.engine.doubt import came_through

    return came_through(run, reason)


def undo(run: "Run", datapath: "Datapath", made: "dict[str, str]", record: "Record") -> None:
    """Take back what an add has made so far, after a failure; the record goes only when that worked."""
    if run.unsure is not None:
        # A driver may take the device by its number at any moment, so that number must not become another's.
        run.log(syslog.LOG_ERR, f"may have been published: what was attached and its record {shown(record.path)} stay")
        return
    try:
        done = datapath.detach(run, made)
        record.remove()
    except (Failure, OSError) as error:
        run.log(syslog.LOG_ERR, f"could not be undone, the record {shown(record.path)} stays: {error}")
    else:
        if done:
            run.log(syslog.LOG_INFO, "undone: " + done)


def summary(params: bytes, mode: Mode, backing: "Backing", found: "Finding | None") -> str:
    """Return what an add has done, for the log."""
    what = shown(params)
    device = shown(backing.device)
    text = f"{what} attached{'' if device == what else ' as ' + device} ({mode})"
    if found is None:
        return text + ", not checked for other users (!)"
    idle = [shown(name) for name in found.idle() if name != backing.device]
    return text + (f"; {', '.join(idle)} on it too, in nobody's use" if idle else "")
