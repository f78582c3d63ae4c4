"""Files and devices that custom scripts have in their hands for a vbd, though its device does not lie on them.

A script may unpack a file, or have a program serve it: what the guest gets is another device, and no number leads from
that to the file. So what its storage named (``identity``, ``parts``) stands in the record, and a file of the vbd's
name in a folder beside the records says so: where there is no such folder, nobody holds anything so. Imported only
where there is one.
"""

import posix

from vbdkit.engine.flock import close, free
from vbdkit.engine.forgotten import may_have
from vbdkit.engine.guests import describe
from vbdkit.engine.record import HOLDS
from vbdkit.protocol.nodes import PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH
from vbdkit.protocol.vbd import parse_name
from vbdkit.storage.sharing import FORGOTTEN, GUEST, User, meeting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from vbdkit.engine.record import Records
    from vbdkit.storage.chain import Chain
    from vbdkit.xenstore.client import Connection

    # An identity, and whether it is written.
    Hold = tuple[tuple[int, int], bool]


def hold_text(holds: "list[Hold]") -> str:
    """Return holds as a record has them."""
    return ",".join(f"{first} {second} {'w' if writable else 'r'}" for (first, second), writable in holds)


def parse(value: str) -> "list[Hold]":
    """Return the holds that a record has. Raises ValueError for what are none."""
    found = []
    for part in value.split(",") if value else ():
        first, second, mode = part.split(" ")
        found.append(((int(first), int(second)), mode != "r"))
    return found


def holders(
    store: "Connection",
    platform: "ModuleType",
    records: "Records",
    names: "list[bytes]",
    root: bytes,
    own: bytes,
    chain: "Chain",
) -> "list[User]":
    """Return the vbds among ``names`` but ``own`` that hold something on the chain.

    One whose run is under way counts, though it has nothing yet: it may be writing. Only for another that holds as
    much it does not: of these two the one that publishes first has it.
    Raises StoreError, OSError, Failure.
    """
    users = []
    for name in sorted(names):
        vbd = parse_name(name)
        if vbd is None or name == own:
            continue
        facts, under_way = look(records, vbd.name)
        try:
            found = [hold for hold in parse(facts.get(HOLDS, "")) if meeting(chain, hold[0]) is not None]
        except ValueError:
            raise records.unreadable(vbd.name, "its numbers are none") from None
        if not found:
            continue
        path = root + b"/%s/%d/%d" % (vbd.kind, vbd.domid, vbd.devid)
        known = store.exists(path)
        if not known and (under_way or not may_have(store, platform, vbd)):
            continue
        nodes = [path + b"/" + node for node in (PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH)]
        if under_way and own in names and not any(store.read_many(nodes)):
            continue
        for identity, writable in found:
            kind = GUEST if known else FORGOTTEN
            user = User(kind, identity, writable, domid=vbd.domid, vdev=b"%d" % vbd.devid, path=path)
            describe(store, [user])
            user.writable = writable  # a part may be only read where the disk is written
            users.append(user)
    return users


def look(records: "Records", name: str) -> "tuple[dict[str, str], bool]":
    """Return what a vbd's record says now, and whether a run of it is under way; nothing where there is none.

    Raises Failure for one that cannot be read, OSError.
    """
    try:
        fd = posix.open(records.path(name), posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK)
    except FileNotFoundError:
        return {}, False
    try:
        facts: dict[str, str] = records.facts(fd, name)
        return facts, not free(fd)
    finally:
        close(fd)
