"""A commit whose reply was lost: done or not? Asked of the store itself, and decided for good."""

from vbdkit.engine.publish import tell
from vbdkit.engine.script import as_failure
from vbdkit.xenstore.client import Connection, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.script import Run


def came_through(run: "Run", reason: BaseException) -> bool:
    """Whether the nodes of ``run.unsure`` are published although their commit ended with ``reason``.

    Where they are not, the failure is written in their place, so that a commit which the store has yet to read
    meets a conflict and fails. ``run.unsure`` stays set where the store does not tell: then both may still be.
    """
    wanted, vbd = run.unsure, run.vbd
    assert wanted is not None

    def body(tx: int) -> bool:
        there = fresh.read_many([vbd.node(name) for name, _ in wanted], tx) == [value for _, value in wanted]
        if not there:
            tell(fresh, vbd, as_failure(reason), True, tx)
        return there

    try:
        if run.store is not None:
            run.store.close()
        with Connection.open(run.end, run.environ) as fresh:
            done: bool = fresh.transaction(body)
    except StoreError:
        return False
    run.unsure = None
    return done
