"""A disk of a type that ``block`` does not know: block-TYPE beside it, if there is one, takes the call over.

Xen's block script does so, at `add` only; but what block-TYPE has attached it alone can take back. ``type`` is the
toolstack's word for the kind of storage; xl always says ``phy``.
"""

import posix
import stat
import syslog

from vbdkit.protocol.failure import shown
from vbdkit.protocol.nodes import PARAMS, TYPE
from vbdkit.xenstore.client import StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal

    from vbdkit.engine.script import Run
else:
    import _signal  # signal itself imports enum

# What Python ignores and other programs count on.
_IGNORED = (_signal.SIGPIPE, _signal.SIGXFSZ)


def hand_over(run: "Run", script: str = "") -> None:
    """Become block-TYPE where that has to do with this run's disk, and never return; return where it has not.

    It has where ``params`` names no file or device, and where it is the ``script`` of the disk's record. Raises OSError
    where it cannot be started.
    """
    folder = run.call[0].rpartition(b"/")[0] if run.call else b""
    if run.store is None or run.store.broken:
        return
    try:
        kind, params = run.store.read_many([run.vbd.node(name) for name in (TYPE, PARAMS)])
    except StoreError:
        return
    if not folder or not kind or not params or b"/" in kind or b"\0" in kind + params:
        return
    own = folder + b"/block-" + kind
    if not _is_program(own):
        return
    if own != script.encode("utf-8", "surrogateescape"):
        try:
            if run.platform.identify(params if params.startswith(b"/") else b"/dev/" + params) is not None:
                return
        except OSError:
            return
    run.log(syslog.LOG_INFO, f"{shown(params)} is of the type {shown(kind)}: {shown(own)} goes on")
    run.guard.settle()
    for number in _IGNORED:
        _signal.signal(number, _signal.SIG_DFL)
    posix.execve(own, [own, *run.call[1:]], dict(run.environ))


def _is_program(path: bytes) -> bool:
    try:
        return stat.S_ISREG(posix.stat(path).st_mode) and posix.access(path, posix.X_OK)
    except OSError:
        return False
