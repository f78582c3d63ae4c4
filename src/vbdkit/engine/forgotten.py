"""Disks that were attached and never given back, of which the store knows nothing: unknown is not free.

A store that is killed comes back empty while the guests run on. What survives it are the records, the backend driver's
own list where the kernel shows it, and whether the store can be believed about who is gone. Imported only where a
record and the store disagree.
"""

import os

from vbdkit.engine.guests import gone
from vbdkit.protocol.mode import parse_mode
from vbdkit.protocol.vbd import parse_name
from vbdkit.storage.chain import BLOCK
from vbdkit.storage.sharing import FORGOTTEN, User, meeting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from vbdkit.engine.record import Records
    from vbdkit.protocol.vbd import Vbd
    from vbdkit.storage.chain import Chain
    from vbdkit.xenstore.client import Connection


def forgotten(
    store: "Connection", platform: "ModuleType", records: "Records", names: "list[bytes]", chain: "Chain"
) -> "list[User]":
    """Return the vbds among ``names`` that may still use something on the chain. Raises StoreError, OSError, Failure.

    Each has a record, and the store knows of no device that it has.
    """
    users = []
    for name in sorted(names):
        vbd = parse_name(name)
        if vbd is None:
            continue  # somebody else's file
        if not may_have(store, platform, vbd):
            continue
        facts = records.look(vbd.name)
        if facts is None:
            continue  # given back just now
        try:
            identity = attached(platform, facts, records.owner(vbd.name))
        except ValueError:
            raise records.unreadable(vbd.name, "its numbers are none") from None
        if identity is not None and meeting(chain, identity) is not None:
            mode = parse_mode(os.fsencode(facts.get("mode", "")))
            writable = mode is None or mode.writable
            devid = b"%d" % vbd.devid
            users.append(User(FORGOTTEN, identity, writable, domid=vbd.domid, vdev=devid, path=vbd.path))
    return users


def may_have(store: "Connection", platform: "ModuleType", vbd: "Vbd") -> bool:
    """Whether a vbd that the store does not know may have its device still. Raises StoreError, OSError.

    Where the driver tells, its word counts; else it has, unless its guest is known to be gone: by a store that knows
    this domain at least.
    """
    driven: bool | None = platform.driven(os.fsencode(vbd.name))
    return not (knows_itself(store) and gone(store, vbd.domid)) if driven is None else driven


def knows_itself(store: "Connection") -> bool:
    """Whether the store knows the domain that asks, as it does once Xen's tools have set it up (xen-init-dom0)."""
    return store.exists(b"domid")


def attached(
    platform: "ModuleType", facts: "dict[str, str]", owner: str, going: bool = True
) -> "tuple[int, int] | None":
    """Return the identity of what a record says was attached; None for what is there no more. Raises ValueError."""
    found: tuple[int, int] | None = None
    made = platform.made_device(facts, owner, going)
    if made is not None:
        found = made[1]
    elif "number" in facts:
        found = (BLOCK, int(facts["number"]))
    elif "file" in facts:
        dev, _, ino = facts["file"].partition(" ")
        # Where a file is made into a device, that has just been looked for.
        found = None if platform.MADE else (int(dev), int(ino))
    elif "device" in facts:
        found = platform.identify(os.fsencode(facts["device"]))
    return found
