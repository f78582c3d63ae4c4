"""What a target is, as identities: itself, what it is carved from and what is carved from it. Pure data.

An identity is a number, never a name: a block device is ``(BLOCK, rdev)``, a file ``(st_dev, st_ino)``.
"""

BLOCK = -1

# Where a link stands, seen from the target.
ITSELF = "itself"
BELOW = "below"  # the target is carved from it: a loop device's file, a file's file system
ABOVE = "above"  # it is carved from the target: a loop device on the file


def block_identity(rdev: int) -> tuple[int, int]:
    """Return the identity of the block device with this number (st_rdev)."""
    return (BLOCK, rdev)


def file_identity(dev: int, ino: int) -> tuple[int, int]:
    """Return the identity of the file with this inode on this device (st_dev, st_ino)."""
    return (dev, ino)


class Link:
    """One thing on the chain.

    ``place`` is ITSELF, BELOW or ABOVE; ``name`` how a person knows it ("/dev/loop3", b"/srv/a.img").
    """

    __slots__ = ("identity", "name", "place")

    def __init__(self, identity: tuple[int, int], name: bytes, place: str) -> None:
        """Take the three facts."""
        self.identity = identity
        self.name = name
        self.place = place


class Chain:
    """The links of one target, by identity. ``target`` is the text that a user would recognise."""

    __slots__ = ("links", "target")

    def __init__(self, target: bytes) -> None:
        """Start a chain without links."""
        self.target = target
        self.links: dict[tuple[int, int], Link] = {}

    def add(self, identity: tuple[int, int], name: bytes, place: str) -> None:
        """Add a link; what is known already stays as it is."""
        if identity not in self.links:
            self.links[identity] = Link(identity, name, place)
