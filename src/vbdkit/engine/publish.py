"""What goes into a vbd's backend directory, each time in one transaction (O6, O7).

A directory that the toolstack has removed meanwhile is never made again by a write of ours.
"""

from vbdkit.protocol.failure import Failure
from vbdkit.protocol.nodes import CONNECTED, HOTPLUG_ERROR, HOTPLUG_STATUS, OUTPUT, PARAMS
from vbdkit.xenstore.client import StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.lock import Lock
    from vbdkit.engine.script import Run
    from vbdkit.protocol.vbd import Vbd
    from vbdkit.xenstore.client import Connection

# All that a script may have left in a backend directory.
ALL = (*OUTPUT, HOTPLUG_STATUS, HOTPLUG_ERROR)


def connected(
    run: "Run", store: "Connection", params: bytes, nodes: "list[tuple[bytes, bytes]]", clear: bool, lock: "Lock"
) -> None:
    """Publish success. ``params`` is the target that was attached; ``clear``: an old hotplug-error has to go.

    Raises StoreError, and Failure where the toolstack took the disk back meanwhile, the lock is lost or a signal came.
    From the commit on nothing comes in between any more; ``run.unsure`` is set where its outcome stayed open.
    """
    vbd = run.vbd
    wanted = [(HOTPLUG_STATUS, CONNECTED), *nodes]

    def body(tx: int) -> None:
        run.unsure = None
        now = store.read_many([vbd.node(PARAMS)], tx)[0]
        if now != params:
            raise Failure(
                "the toolstack "
                + ("removed" if now is None else "changed")
                + " {path} while the disk was being attached",
                path=vbd.path,
            )
        if clear:
            store.remove_many([vbd.node(HOTPLUG_ERROR)], tx)
        store.write_many([(vbd.node(name), value) for name, value in wanted], tx)
        lock.check()
        run.guard.settle()
        run.unsure = wanted

    try:
        store.transaction(body)
    except StoreError:
        if not store.broken:
            run.unsure = None  # the store said no
        raise


def failed(store: "Connection", vbd: "Vbd", failure: Failure, forget: bool) -> None:
    """Publish a failure: hotplug-error, hotplug-status (O7). ``forget``: nodes of an older attach go too."""
    store.transaction(lambda tx: tell(store, vbd, failure, forget, tx))


def tell(store: "Connection", vbd: "Vbd", failure: Failure, forget: bool, tx: int) -> None:
    """As ``failed``, within a transaction."""
    if not store.exists(vbd.path, tx):
        return
    if forget:
        store.remove_many([vbd.node(name) for name in OUTPUT], tx)
    items = [(vbd.node(HOTPLUG_ERROR), failure.node_text()), (vbd.node(HOTPLUG_STATUS), failure.status)]
    store.write_many(items, tx)


def gone(store: "Connection", vbd: "Vbd", names: "tuple[bytes, ...]" = ALL) -> None:
    """Take back what a script publishes, so that nobody takes a number for this vbd's that another has by then.

    No transaction: nothing waits for these to go, and a removal never makes a directory.
    """
    store.remove_many([vbd.node(name) for name in names])


def gone_whole(store: "Connection", vbd: "Vbd") -> None:
    """Take the whole backend directory away, as NetBSD's toolstack expects of its script. Raises StoreError."""
    store.remove_many([vbd.path])
