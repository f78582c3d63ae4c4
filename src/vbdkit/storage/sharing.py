"""Who else uses a target, and whether that forbids it (O1, O2). Pure: no I/O, one verdict for all callers."""

from vbdkit.storage.chain import BELOW, Chain, Link

# How a thing is used.
GUEST = "guest"  # another domain's disk, as the store says
MOUNT = "mount"  # a file system of this domain
EXCLUSIVE = "exclusive"  # somebody in this domain holds the device exclusively


class User:
    """One use of one thing.

    ``identity`` is what is used, ``kind`` GUEST, MOUNT or EXCLUSIVE, ``writable`` whether it may be written.
    For a guest: ``domid``, ``path`` of its backend directory, ``name`` and ``vdev`` as far as known.
    For a mount ``name`` is the mount point.
    """

    __slots__ = ("domid", "identity", "kind", "name", "path", "vdev", "writable")

    def __init__(
        self,
        kind: str,
        identity: tuple[int, int],
        writable: bool,
        name: bytes = b"",
        domid: int = -1,
        vdev: bytes = b"",
        path: bytes = b"",
    ) -> None:
        """Take the facts."""
        self.kind = kind
        self.identity = identity
        self.writable = writable
        self.name = name
        self.domid = domid
        self.vdev = vdev
        self.path = path


def meets(chain: Chain, user: User) -> Link | None:
    """Return the link of the chain that ``user`` uses, or None.

    A mount below the target is how the target comes to be (a file lives in a mounted file system), so it
    is no use of the target; a guest that has what is below can write the target, so it is one.
    """
    link = chain.links.get(user.identity)
    if link is None or (link.place == BELOW and user.kind != GUEST):
        return None
    return link


def verdict(chain: Chain, writable: bool, users: "list[User]", same_vm: "frozenset[int]") -> "tuple[User, Link] | None":
    """Return the first user that forbids the target and the link through which they meet, or None: it is free.

    ``same_vm`` holds the domids that count as the asking VM. Readers bear readers; a writer bears nobody (O2).
    """
    for user in users:
        if user.kind == GUEST and user.domid in same_vm:
            continue
        link = meets(chain, user)
        if link is not None and (writable or user.writable):
            return user, link
    return None
