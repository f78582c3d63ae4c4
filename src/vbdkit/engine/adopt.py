"""``add`` for a device that a path-only script made: checked and published here (G1, G2).

The counterpart of ``engine.attach``: the same lock, check, publication and sentences, for what
``physical-device-path`` names instead of what ``params`` does. Nothing is made here, so nothing is recorded: taking
the device apart is its script's work.
"""

import syslog

from vbdkit.engine import publish
from vbdkit.engine.attach import Request, asked, check
from vbdkit.engine.doubt import came_through
from vbdkit.engine.lock import Lock
from vbdkit.platform.target import DEVICE
from vbdkit.protocol.failure import Failure, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.script import Run


def adopt(run: "Run") -> None:
    """Publish the device at ``physical-device-path``. Raises Failure, StoreError or OSError; nothing is made."""
    store, vbd, request = run.store, run.vbd, Request(run)
    assert store is not None
    path = request.path
    if request.number is not None:
        raise Failure(
            "the script said that it leaves {path}/physical-device to the toolstack (path-only), but wrote {number}: "
            "nobody has checked that device",
            path=vbd.path,
            number=request.number,
        )
    params, mode = asked(run, request)
    if not path:
        raise Failure("the script ended well, but left {path}/physical-device-path unwritten", path=vbd.path)
    target = run.platform.open_target(path, mode.writable)
    try:
        if target.kind != DEVICE:
            raise Failure(
                "{path}, which the script has published, is a plain file; a path-only script makes a block device",
                path=path,
            )
        backing = run.platform.device(target, mode.writable)
        with Lock(run.lock_dir, run.deadline) as lock:
            if mode.checked:
                check(run, store, target, mode)
            publish.connected(run, store, params, run.platform.nodes(backing), request.error is not None, lock)
    except BaseException as reason:
        if run.unsure is None or not came_through(run, reason):
            raise
    finally:
        target.close()
    run.log(syslog.LOG_INFO, f"{shown(path)} published for the script ({mode})")
