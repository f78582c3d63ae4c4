"""The storage chain of a target: what it is carved from, and what else holds some of the same sectors. No I/O.

An identity is a number, never a name: a block device is ``(BLOCK, rdev)``, a file ``(st_dev, st_ino)``. How things
are carved from one another is told by Pieces, which a platform looks up as they are asked for.
"""

BLOCK = -1

# Where a link stands, seen from the target.
ITSELF = "itself"
BELOW = "below"  # the target is carved from it: a partition's disk, a volume's members, a loop device's file
ABOVE = "above"  # it is carved from the target, or holds some of the same sectors beside it
HOST = "host"  # a mounted file system stands between: the device that the target's file lives on, and what is under it

_END = 1 << 63
# All of a thing, as spans: ranges (start, end) in bytes. None for spans: somewhere in it.
WHOLE = ((0, _END),)


def block_identity(rdev: int) -> tuple[int, int]:
    """Return the identity of the block device with this number (st_rdev)."""
    return (BLOCK, rdev)


def file_identity(dev: int, ino: int) -> tuple[int, int]:
    """Return the identity of the file with this inode on this device (st_dev, st_ino)."""
    return (dev, ino)


class Piece:
    """What one thing (``upper``) takes of another (``lower``), both identities.

    ``extents``: tuple of (start and end in upper, start and end in lower), bytes; where the lengths differ, any byte
    of the one may be any of the other (stripes). None: somewhere in it, where the layer between puts nobody else
    (two files of one file system, two thin volumes of a pool). ``hosted``: that layer is a mounted file system.
    """

    __slots__ = ("extents", "hosted", "lower", "upper")

    def __init__(
        self,
        upper: tuple[int, int],
        lower: tuple[int, int],
        extents: "tuple[tuple[int, int, int, int], ...] | None" = None,
        hosted: bool = False,
    ) -> None:
        """Take the facts."""
        self.upper = upper
        self.lower = lower
        self.extents = extents
        self.hosted = hosted


def run(start: int, length: int = 0) -> "tuple[tuple[int, int, int, int], ...]":
    """Return the extents of a thing that is ``length`` bytes from ``start`` of another, in one run (0: to its end)."""
    length = length or _END - start
    return ((0, length, start, start + length),)


class Link:
    """One thing on the chain.

    ``place`` is ITSELF, BELOW, ABOVE or HOST; ``via`` the identity through which it was found (None: the target
    itself); ``name`` how a person knows it ("/dev/loop3", b"/srv/a.img"), empty until somebody asks; ``what`` its
    kind in words ("LVM volume"), likewise.
    """

    __slots__ = ("identity", "name", "place", "via", "what")

    def __init__(self, identity: tuple[int, int], name: bytes, place: str, via: tuple[int, int] | None = None) -> None:
        """Take the facts."""
        self.identity = identity
        self.name = name
        self.place = place
        self.via = via
        self.what = ""


class Chain:
    """The links of one target, by identity. ``target`` is the text that a user would recognise."""

    __slots__ = ("links", "target")

    # kind of user (storage.sharing) -> what to do about one, where a system says it otherwise than Linux
    ways_out: "dict[str, str]" = {}

    def __init__(self, target: bytes) -> None:
        """Start a chain without links."""
        self.target = target
        self.links: dict[tuple[int, int], Link] = {}

    def add(self, identity: tuple[int, int], name: bytes, place: str, via: tuple[int, int] | None = None) -> None:
        """Add a link; what is known already stays as it is."""
        if identity not in self.links:
            self.links[identity] = Link(identity, name, place, via)

    def trace(self, start: "tuple[int, int]", stack: "Stack") -> None:
        """Add all that shares a sector with ``start``, which is on the chain already, as far as ``stack`` tells."""
        # thing, what the target has of it, by which piece (None: nothing is below), where it stands
        found: list[Found] = [(start, WHOLE, None, ITSELF)]
        for node, spans, _, place in found:
            for piece in stack.below(node):
                part = _lower_part(piece, spans)
                if part != ():
                    where = HOST if piece.hosted or place is HOST else BELOW
                    self.add(piece.lower, b"", where, node)
                    found.append((piece.lower, part, piece, where))
        seen = set()
        for node, spans, way, place in found:
            where = HOST if place is HOST else ABOVE
            for piece in stack.above(node):
                if piece is way:
                    continue
                # What lies somewhere in a thing as the target does has the same layer to thank.
                part = _upper_part(piece, spans, way is not None and piece.hosted is way.hosted)
                if part != () and (piece.upper, part) not in seen:
                    seen.add((piece.upper, part))
                    self.add(piece.upper, b"", where, node)
                    found.append((piece.upper, part, None, where))


def _lower_part(piece: Piece, spans: "tuple[tuple[int, int], ...] | None") -> "tuple[tuple[int, int], ...] | None":
    """Return which part of the lower thing belongs to ``spans`` of the upper one; () for none."""
    if piece.extents is None:
        return None
    return _mapped([(us, ue, ls, le) for us, ue, ls, le in piece.extents], spans)


def _upper_part(
    piece: Piece, spans: "tuple[tuple[int, int], ...] | None", sibling: bool
) -> "tuple[tuple[int, int], ...]":
    """Return which part of the upper thing lies in ``spans`` of the lower one; () for none.

    ``sibling``: one layer gives both the target and the upper thing their parts of the lower one. Two parts that both
    lie somewhere in it do not meet then.
    """
    if piece.extents is None:
        return () if sibling and spans is None else WHOLE
    return _mapped([(ls, le, us, ue) for us, ue, ls, le in piece.extents], spans)


def _mapped(
    extents: "list[tuple[int, int, int, int]]", spans: "tuple[tuple[int, int], ...] | None"
) -> "tuple[tuple[int, int], ...]":
    found = []
    for start, end, to, to_end in extents:
        for first, last in WHOLE if spans is None else spans:
            low, high = max(first, start), min(last, end)
            if low < high:
                exact = end - start == to_end - to
                found.append((to + low - start, to + high - start) if exact else (to, to_end))
    return tuple(found)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    Found = tuple[tuple[int, int], tuple[tuple[int, int], ...] | None, Piece | None, str]

    class Stack(Protocol):
        """How the things of one host are carved from one another."""

        def below(self, identity: tuple[int, int]) -> Iterable[Piece]:
            """Return the pieces whose upper thing this is."""

        def above(self, identity: tuple[int, int]) -> Iterable[Piece]:
            """Return the pieces whose lower thing this is."""
