"""Whose storage the ``remove`` of a script in shell would take back: perhaps another vbd's.

A script that finds its target in use ends in its own words (block-iscsi: "Device already opened"). The toolstack has it
take that disk back all the same (I4), and it would: log out of the target under the guest that has it.
"""

import posix

from vbdkit.engine.claims import others
from vbdkit.engine.flock import close, wait
from vbdkit.engine.holder import holder
from vbdkit.engine.record import read_lines
from vbdkit.engine.underway import UNDER_WAY
from vbdkit.protocol.failure import Failure
from vbdkit.protocol.nodes import MODE, PARAMS, PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.script import Run
    from vbdkit.xenstore.client import Connection

# What the record's ``datapath`` says of what a script in shell handed over (engine.deliver).
SHELL = "shell"


def spared(run: "Run", store: "Connection", script: bytes) -> str:
    """Return which vbd has the target of this run's vbd, by the same script, while this vbd never got it; or nothing.

    Only for a vbd that has no record. Waits for runs that are at work on the same target. Raises Failure, StoreError,
    OSError.
    """
    names = (PARAMS, PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH)
    params, *published = store.read_many([run.vbd.node(name) for name in names])
    if params is None or any(published):
        return ""
    _let_them_end(run, {"script": _text(script), "target": _text(params)})
    return _other(run, store, script, params, patient=True)[0]


def keep_beside(run: "Run", store: "Connection", script: bytes, device: bytes) -> None:
    """After a device was not to be had: note it, if it is another one than a vbd has for the same target.

    Its script has made it for this vbd then, and is to take it back. Raises Failure, StoreError, OSError.
    """
    params, mode = store.read_many([run.vbd.node(name) for name in (PARAMS, MODE)])
    if params is None:
        return
    other, others_device = _other(run, store, script, params)
    if other and run.platform.identify(device) not in (None, run.platform.identify(others_device)):
        facts = {"mode": _text(mode or b""), "target": _text(params), "script": _text(script), "device": _text(device)}
        run.records.begin(run.vbd.name, {"datapath": SHELL} | facts).close()


def _other(run: "Run", store: "Connection", script: bytes, target: bytes, patient: bool = False) -> tuple[str, bytes]:
    """Return another living vbd for which this script has attached this target, and the device; or two empty strings.

    ``patient``: once a run of its own that is under way has ended.
    """
    from vbdkit.engine.forgotten import may_have
    from vbdkit.engine.leftovers import why_dead

    wanted = {"datapath": SHELL, "script": _text(script), "target": _text(target)}.items()
    for vbd, facts, under_way in others(run):
        if not wanted <= facts.items():
            continue
        if patient and under_way:
            record = run.records.take(vbd.name, run.deadline)
            if record is None:
                continue
            record.close()
        if not why_dead(store, vbd) or (not store.exists(vbd.path) and may_have(store, run.platform, vbd)):
            return vbd.name, facts.get("device", "").encode("utf-8", "surrogateescape")
    return "", b""


def _let_them_end(run: "Run", wanted: "dict[str, str]") -> None:
    """Wait for each `add` of another vbd that is at the same target. Raises Failure where the time is up, OSError."""
    for entry in posix.listdir(run.records.directory):
        path = run.records.directory + b"/" + entry + b"/" + UNDER_WAY
        try:
            fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            facts = read_lines(posix.read(fd, 65536).decode("ascii", "replace").splitlines())
            if facts.get("vbd") != run.vbd.name and wanted.items() <= facts.items():
                wait(fd, run.deadline)
        except TimeoutError:
            raise Failure(
                "the time was up while another disk was attached from the same target: {path} is held by {holder}; try "
                "again when that has ended",
                path=path,
                holder=holder(path),
            ) from None
        finally:
            close(fd)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
