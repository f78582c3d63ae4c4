"""What goes into a vbd's backend directory, each time in one transaction (O6, O7).

A directory that the toolstack has removed meanwhile is never made again by a write of ours.
"""

from vbdkit.protocol.failure import Failure
from vbdkit.protocol.nodes import CONNECTED, HOTPLUG_ERROR, HOTPLUG_STATUS, OUTPUT, PARAMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.protocol.vbd import Vbd
    from vbdkit.xenstore.client import Connection


def connected(store: "Connection", vbd: "Vbd", params: bytes, nodes: "list[tuple[bytes, bytes]]", clear: bool) -> None:
    """Publish success. ``params`` is the target that was attached; ``clear``: an old hotplug-error has to go.

    Raises StoreError, and Failure where the toolstack took the disk back meanwhile.
    """
    wanted = [(HOTPLUG_STATUS, CONNECTED), *nodes]

    def body(tx: int) -> None:
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

    store.transaction(body)


def failed(store: "Connection", vbd: "Vbd", failure: Failure, forget: bool) -> None:
    """Publish a failure: hotplug-error, hotplug-status (O7). ``forget``: nodes of an older attach go too."""

    def body(tx: int) -> None:
        if not store.exists(vbd.path, tx):
            return
        if forget:
            store.remove_many([vbd.node(name) for name in OUTPUT], tx)
        items = [(vbd.node(HOTPLUG_ERROR), failure.node_text()), (vbd.node(HOTPLUG_STATUS), failure.status)]
        store.write_many(items, tx)

    store.transaction(body)


def gone(store: "Connection", vbd: "Vbd") -> None:
    """Take back all that a script publishes, so that nobody takes a number for this vbd's that another has by then.

    No transaction: nothing waits for these to go, and a removal never makes a directory.
    """
    store.remove_many([vbd.node(name) for name in (*OUTPUT, HOTPLUG_STATUS, HOTPLUG_ERROR)])
