"""Who else uses a target, and whether that forbids it (O1, O2). Pure: no I/O, one verdict for all callers."""

from vbdkit.storage.chain import BLOCK, HOST, Chain, Link

# How a thing is used.
GUEST = "guest"  # another domain's disk, as the store says
FORGOTTEN = "forgotten"  # another domain's disk that was never given back, though the store does not say so
MOUNT = "mount"  # a file system of this domain
SWAP = "swap"  # swap space of this domain
MEMBER = "member"  # part of another device of this domain: LVM, md, device-mapper, DRBD, bcache
LOCK = "lock"  # a program's lock on an image (qemu)
EXCLUSIVE = "exclusive"  # somebody in this domain holds the device exclusively


class User:
    """One use of one thing.

    ``identity`` is what is used, ``kind`` one of the above, ``writable`` whether it may be written.
    For a guest, forgotten or not: ``domid``, ``path`` of its backend directory, ``name`` and ``vdev`` as far as known.
    For a mount ``name`` is the mount point, for swap what swapon named, for a member the device that it is part of.
    ``pid`` is a process that has to do with it (0: none known) and ``program`` that process's name.
    """

    __slots__ = ("domid", "identity", "kind", "name", "path", "pid", "program", "vdev", "writable")

    def __init__(
        self,
        kind: str,
        identity: tuple[int, int],
        writable: bool,
        name: bytes = b"",
        domid: int = -1,
        vdev: bytes = b"",
        path: bytes = b"",
        pid: int = 0,
        program: bytes = b"",
    ) -> None:
        """Take the facts."""
        self.kind = kind
        self.identity = identity
        self.writable = writable
        self.name = name
        self.domid = domid
        self.vdev = vdev
        self.path = path
        self.pid = pid
        self.program = program


def meeting(chain: Chain, identity: tuple[int, int]) -> Link | None:
    """Return the link of the chain that a use of ``identity`` touches, or None.

    A file that is not on the chain may still lie on a device that is, which makes it a piece of that one; but two
    files of one file system do not meet.
    """
    link = chain.links.get(identity)
    if link is None and identity[0] != BLOCK:
        link = chain.links.get((BLOCK, identity[0]))
        if link is not None and link.place == HOST:
            return None
    return link


def meets(chain: Chain, user: User) -> Link | None:
    """Return the link of the chain through which ``user`` uses the target, or None.

    A mount under the target's own file is how that file comes to be there, so it is no use of the target; a guest
    that has what is under it, or a program that has it as an image, can write the target, so that is one.
    """
    link = meeting(chain, user.identity)
    if link is None or (link.place == HOST and user.kind not in (GUEST, FORGOTTEN, LOCK)):
        return None
    return link


def verdict(chain: Chain, writable: bool, users: "list[User]", same_vm: "frozenset[int]") -> "tuple[User, Link] | None":
    """Return the first user that forbids the target and the link through which they meet, or None: it is free.

    ``same_vm`` holds the domids that count as the asking VM. Readers bear readers; a writer bears nobody (O2).
    """
    for user in users:
        if user.domid in same_vm:
            continue
        link = meets(chain, user)
        if link is not None and (writable or user.writable):
            return user, link
    return None
