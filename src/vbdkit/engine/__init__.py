"""Attach and detach, for every way of asking: deadline, lock, record, scan, undo, publication, errors, log."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.datapath import Datapath
    from vbdkit.engine.lock import Lock
    from vbdkit.engine.record import Records
    from vbdkit.engine.script import Run, run

__all__ = ["Datapath", "Lock", "Records", "Run", "run"]

_WHERE = {"Datapath": "datapath", "Lock": "lock", "Records": "record", "Run": "script", "run": "script"}


def __getattr__(name: str) -> object:
    from vbdkit._lazy import load

    return load(__name__, _WHERE, name)
