"""Whether a guest may have a target: the one place where store, platform and the sharing rule come together."""

from vbdkit.engine.guests import describe, guests_of, same_vm
from vbdkit.storage.chain import ABOVE
from vbdkit.storage.sharing import verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

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
    store: "Connection", platform: "ModuleType", target: "Target", root: bytes, domid: int = -1, own: bytes = b""
) -> Finding:
    """Find out who uses a target. Only with the lock held does the answer stay true.

    ``root`` is the directory of this domain's backends, ``domid`` the guest that asks (-1: none), ``own`` the path of
    its vbd, which is no other user. Raises StoreError, OSError, and Failure for what cannot be known.
    """
    chain: Chain = platform.chain(target)
    users = guests_of(store, root, own, platform, chain)
    if users:
        describe(store, users)
    users += platform.local_users(chain, target, users)
    return Finding(chain, users, same_vm(store, domid, users))
