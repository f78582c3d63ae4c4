"""`add` for a vbd that has a record while its driver waits (I5): is it the disk that it has, or what an old one left.

A driver that waits (state 2) may have opened the device already: blkback does so as soon as its number is written, and
waits for the guest from then on. It takes no other device after that. Imported only where there is an old record.
"""

from vbdkit.engine.forgotten import attached
from vbdkit.platform.target import DEVICE
from vbdkit.protocol.failure import Failure
from vbdkit.protocol.nodes import CONNECTED, HOTPLUG_STATUS, PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.engine.script import Run
    from vbdkit.protocol.mode import Mode


def has_it(run: "Run", facts: "dict[str, str]", params: bytes, mode: "Mode") -> bool:
    """Whether the vbd has what it asks for, published and in place, as its record (held by this run) says.

    The nodes are read here: the run that has written them may have ended just now. Raises Failure where the driver
    has another device than the one asked for, StoreError, OSError.
    """
    store, vbd = run.store, run.vbd
    assert store is not None
    names = (HOTPLUG_STATUS, PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH)
    status, number, path = store.read_many([vbd.node(name) for name in names])
    if status != CONNECTED or not (number or path):
        return False
    try:
        identity = attached(run.platform, facts, run.records.owner(vbd.name), going=False)
        published = (run.platform.published(number) if number else None) or run.platform.identify(path or b"")
    except ValueError:
        return False
    asked = facts.get("target") == params.decode("utf-8", "surrogateescape") and facts.get("mode") == str(mode)
    if identity is not None and identity == published and asked and _is_target(run, facts, params, mode):
        return True
    if run.platform.driven(vbd.name.encode("ascii")):
        raise Failure(
            "the guest has its disk already, as {old}, and the driver takes no other in its place; detach it first",
            old=path or number,
        )
    return False


def _is_target(run: "Run", facts: "dict[str, str]", params: bytes, mode: "Mode") -> bool:
    """Whether the name still means the file or device that was attached."""
    try:
        target = run.platform.open_target(params, mode.writable)
    except Failure:
        return False
    try:
        if target.kind == DEVICE:
            return facts.get("number") == str(target.stat.st_rdev)
        return facts.get("file") == f"{target.stat.st_dev} {target.stat.st_ino}"
    finally:
        target.close()
