"""Whether a guest may have a target: the one place where store, platform and the sharing rule come together."""

from vbdkit.engine.guests import describe, disks_of, guests_among, same_vm
from vbdkit.storage.chain import ABOVE
from vbdkit.storage.sharing import verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from vbdkit.engine.guests import Disk
    from vbdkit.engine.record import Records
    from vbdkit.platform.target import Target
    from vbdkit.protocol.failure import InUse
    from vbdkit.storage.chain import Chain
    from vbdkit.storage.sharing import User
    from vbdkit.xenstore.client import Connection


class Finding:
    """What is known of a target: its chain, all who use something on it, and the domids that are the asking VM."""

    __slots__ = ("chain", "same_vm", "users")

    def __init__(self, chain: "Chain", users: "list[User]", same_vm: "frozenset[int]") -> None:
        """Take the facts."""
        self.chain = chain
        self.users = users
        self.same_vm = same_vm

    def idle(self) -> "list[bytes]":
        """Return the loop devices on the target that nobody uses: no obstacle, but worth a word."""
        used = {user.identity for user in self.users}
        return [
            link.name
            for link in self.chain.links.values()
            if link.place is ABOVE
            and link.identity not in used
            and link.name.startswith(b"/dev/loop")
            and link.name[9:].isdigit()
        ]

    def refusal(self, writable: bool, platform: "ModuleType") -> "InUse | None":
        """Return the reason why the target may not be had like this, or None: it may."""
        against = verdict(self.chain, writable, self.users, self.same_vm)
        if against is None:
            return None
        from vbdkit.storage.sentence import refusal

        platform.explain(self.chain)
        return refusal(self.chain, writable, *against)


def examine(
    store: "Connection",
    platform: "ModuleType",
    target: "Target",
    records: "Records",
    root: bytes,
    domid: int = -1,
    own: bytes = b"",
) -> Finding:
    """Find out who uses a target. Only with the lock held does the answer stay true.

    ``records`` are this host's, ``root`` is the directory of this domain's backends, ``domid`` the guest that asks
    (-1: none), ``own`` the path of its vbd, which is no other user. Raises StoreError, OSError, and Failure for what
    cannot be known.
    """
    chain: Chain = platform.chain(target)
    disks = disks_of(store, root, own, platform)
    users = guests_among(disks, root, chain)
    if users:
        describe(store, users)
    missed = _missed(records.names(), disks, root, own, platform)
    if missed:
        from vbdkit.engine.forgotten import forgotten

        users += forgotten(store, platform, records, missed, chain)
    holding = records.holding()
    if holding:
        from vbdkit.engine.holds import holders

        users += holders(store, platform, records, holding, root, _name(own, root), chain)
    users += platform.local_users(chain, target, users)
    return Finding(chain, users, same_vm(store, domid, users))


def _missed(
    names: "list[bytes]", disks: "list[Disk]", root: bytes, own: bytes, platform: "ModuleType"
) -> "list[bytes]":
    """Return the vbds that have a record, but no device as far as the store knows, and perhaps do have one."""
    asking = _name(own, root)
    others = [name for name in names if name != asking]
    if not others:
        return []
    connected = {_name(path, root): identity is not None for path, identity in disks}
    missed = []
    for name in others:
        known = connected.get(name)
        if not known:
            driven = platform.driven(name)
            # One that the store knows has no device yet, unless the driver says otherwise.
            if driven or (driven is None and known is None):
                missed.append(name)
    return missed


def _name(path: bytes, root: bytes) -> bytes:
    """Return a vbd's name, as its record has it, from its backend path."""
    return path[len(root) + 1 :].replace(b"/", b"-")
