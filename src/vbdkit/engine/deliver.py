"""``write_dev``: a script hands over a device that it has made, to be checked and published (S1).

The counterpart of ``engine.attach`` for scripts that are not ours: the same lock, check, publication, record and
sentences, for the device that is given instead of the one that ``params`` names. However long it took to make the
device: the lock is held for check and publication only, unless the script itself holds it around more.
"""

import syslog

from vbdkit.engine import publish
from vbdkit.engine.attach import Request, asked, check, clear
from vbdkit.engine.lock import Lock
from vbdkit.platform.target import FILE
from vbdkit.protocol.failure import Failure, shown
from vbdkit.protocol.nodes import PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.script import Run
    from vbdkit.platform import Backing
    from vbdkit.platform.target import Target
    from vbdkit.protocol.mode import Mode

# What a toolstack sets that publishes by itself what a script has put into physical-device-path (G1).
_PATH_ONLY = (b"VBDKIT_PUBLISH", b"path")


def deliver(run: "Run", device: bytes, script: bytes, lock: "Lock | None") -> None:
    """Publish ``device`` as the disk of this run's vbd. ``lock`` is the sharing lock where the script holds it.

    Raises Failure, StoreError or OSError; nothing is published then, and what ``script`` made is its own to take back.
    """
    vbd, request = run.vbd, Request(run)
    if not device:
        raise Failure("{script} named no device for its disk (write_dev without a name)", script=script)
    number, path = request.number, request.path
    params, mode = asked(run, request, again=request.attached)
    target = run.platform.open_target(device, mode.writable)
    try:
        nodes = run.platform.nodes(_backing(run, target, mode))
        if request.attached:
            if (PHYSICAL_DEVICE, number) in nodes or (number is None and (PHYSICAL_DEVICE_PATH, path) in nodes):
                run.log(syslog.LOG_INFO, f"is attached already ({shown(device)})")
                return
            raise Failure(
                "the guest has its disk already, as {old}, and cannot get {device} in its place; detach it first",
                old=path or number,
                device=device,
            )
        published = number is not None or path is not None
        clear(run, (PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH) if published else ())  # the rest is the script's
        facts = {"datapath": "shell", "mode": str(mode)}
        for key, value in (("target", params), ("script", script), ("device", target.path)):
            facts[key] = value.decode("utf-8", "surrogateescape")
        record = run.records.begin(vbd.name, facts)
        try:
            if left_to_toolstack(run, nodes):
                publish_path(run, target.path)
                run.log(syslog.LOG_INFO, f"{shown(device)} is left to the toolstack to check and publish")
            elif lock is None:
                with Lock(run.lock_dir, run.deadline) as own:
                    _publish(run, target, mode, params, nodes, request.error is not None, own)
            else:
                _publish(run, target, mode, params, nodes, request.error is not None, lock)
        except BaseException as reason:
            from vbdkit.engine.doubt import came_through

            if run.unsure is None or not came_through(run, reason):
                if run.unsure is None:
                    record.remove()
                raise
        finally:
            record.close()
    finally:
        target.close()


def _backing(run: "Run", target: "Target", mode: "Mode") -> "Backing":
    """Return what the driver is to open: the device, or a file where the driver can open one."""
    if target.kind != FILE:
        return run.platform.device(target, mode.writable)  # type: ignore[no-any-return]
    if run.platform.plan(target):
        raise Failure(
            "{path} is a plain file, not the block device that a script hands over (losetup makes one of it)",
            path=target.path,
        )
    return run.platform.bind(target, mode.writable, "", run.deadline, run.note)  # type: ignore[no-any-return]


def _publish(
    run: "Run",
    target: "Target",
    mode: "Mode",
    params: bytes,
    nodes: "list[tuple[bytes, bytes]]",
    clear_error: bool,
    lock: "Lock",
) -> None:
    assert run.store is not None
    if mode.checked:
        check(run, run.store, target, mode)
    publish.connected(run, run.store, params, nodes, clear_error, lock)
    unchecked = "" if mode.checked else ", not checked for other users (!)"
    run.log(syslog.LOG_INFO, f"{shown(target.path)} attached for {shown(params)} ({mode}){unchecked}")


def left_to_toolstack(run: "Run", nodes: "list[tuple[bytes, bytes]]") -> bool:
    """Whether the toolstack checks and publishes what a script makes (G1). Never where the driver wakes at the path."""
    return run.environ.get(_PATH_ONLY[0]) == _PATH_ONLY[1] and nodes[-1][0] != PHYSICAL_DEVICE_PATH


def publish_path(run: "Run", device: bytes) -> None:
    """Leave a device to the toolstack to check and publish (G1). Raises Failure, StoreError."""
    store, vbd = run.store, run.vbd
    assert store is not None

    def body(tx: int) -> None:
        if not store.exists(vbd.path, tx):
            raise Failure("the toolstack removed {path} while the disk was being attached", path=vbd.path)
        store.write(vbd.node(PHYSICAL_DEVICE_PATH), device, tx)

    store.transaction(body)
