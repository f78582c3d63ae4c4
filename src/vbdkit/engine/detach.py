"""``remove``: a guest gives its disk back.

Works from the record, whatever else is gone; quiet when there is nothing (left) to do (I4). Without a
record it falls back to the nodes, for disks that another script attached.
"""

import syslog

from vbdkit.engine import publish
from vbdkit.protocol.failure import shown
from vbdkit.protocol.nodes import PARAMS, PHYSICAL_DEVICE
from vbdkit.xenstore.client import Connection, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.script import Run


def remove(run: "Run") -> None:
    """Detach the vbd of this run. Raises Failure or OSError where what was attached could not be taken back.

    The nodes go first: once the device is free, its number may be another's.
    """
    record = run.records.take(run.vbd.name, run.deadline)
    if run.call and (record is None or "script" in record.facts):
        from vbdkit.engine.by_type import hand_over

        hand_over(run, record.facts["script"] if record is not None else "")
    nodes: list[bytes | None] = [None, None, None]
    trouble: str | bool | None = None
    if run.store is None:
        trouble = _take_back_anew(run) and "xenstore cannot be reached"
    else:
        try:
            if record is None:
                names = (run.platform.MADE or PARAMS, PHYSICAL_DEVICE, PARAMS)
                nodes = run.store.read_many([run.vbd.node(name) for name in names])
            publish.gone(run.store, run.vbd)
        except StoreError as error:
            trouble = _take_back_anew(run) and str(error)
    if trouble:
        run.log(syslog.LOG_WARNING, f"{trouble}; going on from the record")
    if record is not None:
        run.doing = "releasing what is noted in", record.path
        done = run.datapaths(record.facts.get("datapath", "")).detach(run, record.facts)
        record.remove()
        record.close()
    else:
        done = _by_label(run) or _by_nodes(run, *nodes)
    if run.platform.REMOVES_BACKEND and run.store is not None and trouble is None:
        _remove_backend(run)
    run.log(syslog.LOG_INFO, "detached" + (": " + done if done else ""))


def _remove_backend(run: "Run") -> None:
    """Take the backend directory away; where that is not ours to do (a driver domain's), it stays."""
    assert run.store is not None
    try:
        publish.gone_whole(run.store, run.vbd)
    except StoreError as error:
        run.log(syslog.LOG_WARNING, f"{shown(run.vbd.path)} stays: {error}")


def _take_back_anew(run: "Run") -> bool:
    """Take the nodes back over a new connection, after the first one failed. Returns whether they stay."""
    try:
        with Connection.open(run.deadline, run.environ) as fresh:
            publish.gone(fresh, run.vbd)
    except StoreError:
        return True
    return False


def _by_label(run: "Run") -> str:
    """Release what bears this vbd's name although there is no record of it: somebody has cleaned up /run."""
    try:
        name = run.records.owner(run.vbd.name)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    made = [facts for owner, facts in run.platform.owned() if owner == name]
    done = [run.datapaths(facts["datapath"]).detach(run, facts) for facts in made]
    return ", ".join(done)


def _by_nodes(run: "Run", node: bytes | None, number: bytes | None, params: bytes | None) -> str:
    """Release a device that another script made for this vbd, if the nodes and the device agree on it."""
    if node is None or number is None or params is None or run.store is None:
        return ""
    from vbdkit.engine.guests import guests_of
    from vbdkit.engine.lock import Lock
    from vbdkit.storage.chain import ITSELF, Chain

    try:
        identity = run.platform.published(number)
    except ValueError:
        run.log(syslog.LOG_WARNING, f"{shown(node)} stays: physical-device was {shown(number)}, no device number")
        return ""
    chain = Chain(node)
    chain.add(identity, node, ITSELF)
    with Lock(run.lock_dir, run.deadline):
        others = guests_of(run.store, run.vbd.root, run.vbd.path, run.platform, chain)
        if others:
            run.log(syslog.LOG_WARNING, f"{shown(node)} stays: guest {others[0].domid} has it")
            return ""
        done: str = run.platform.unbind_unlabelled(node, identity, params)
    return done
