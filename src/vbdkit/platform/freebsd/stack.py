"""How the disks and files of a FreeBSD host are carved from one another, and who has them open: by GEOM.

The interface is vbdkit.storage.chain.Stack. A provider is the number of its node below /dev; of a memory disk (md(4))
on a file GEOM tells the path, so the file is whatever that names now.
"""

from vbdkit.platform.bsd import PLACE, WAYS_OUT, identity_of, users_of
from vbdkit.platform.programs import ask
from vbdkit.platform.target import status_of
from vbdkit.protocol.failure import Failure, shown
from vbdkit.storage.chain import ABOVE, BLOCK, ITSELF, Chain, Piece, run
from vbdkit.storage.sharing import EXCLUSIVE, MEMBER, MOUNT, SWAP, User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.platform.freebsd.geom import Consumer, Geom, Provider
    from vbdkit.storage.chain import Link

    Identity = tuple[int, int]

# In an identity: a provider without a node below /dev, by its address in the kernel.
_NODELESS = -2
_END = 1 << 63
# Classes whose geoms are this domain's use of a provider. VFS does not exclude writers when it only reads
# (geom_vfs.c), SWAP never does (swapongeom in vm/swap_pager.c).
_VFS, _SWAP = b"VFS", b"SWAP"
# Those whose consumers stand for what is built on top: that is on the chain itself.
_SEEN_THROUGH = (b"PART", b"LABEL", b"MBR", b"BSD", b"GPT", b"MBREXT", b"DEV")
# class -> what its providers are
_WHAT = {
    b"DISK": "disk",
    b"PART": "partition",
    b"MD": "memory disk",
    b"LABEL": "label",
    b"MIRROR": "mirror",
    b"STRIPE": "stripe set",
    b"CONCAT": "concatenation",
    b"RAID": "RAID volume",
    b"RAID3": "RAID3 volume",
    b"ELI": "encrypted device",
    b"MULTIPATH": "multipath device",
    b"ZFS::ZVOL": "ZFS volume",
}


class GeomChain(Chain):
    """A chain that remembers where it comes from."""

    __slots__ = ("stack",)

    ways_out = WAYS_OUT

    def __init__(self, target: bytes, stack: "Stack | None") -> None:
        """``stack`` is None where there was no system to ask."""
        super().__init__(target)
        self.stack = stack


class Stack:
    """The facts of this host at one moment."""

    def __init__(self, geoms: "list[Geom]") -> None:
        """Find the nodes of all providers. Raises OSError."""
        self._providers: dict[Identity, Provider] = {}
        self._identities: dict[bytes, Identity] = {}
        self._consumers: dict[Identity, list[Consumer]] = {}
        self._file_of: dict[Identity, Identity] = {}
        self._on_file: dict[Identity, list[Identity]] = {}
        # Memory disks whose file cannot be found by the path that GEOM has.
        self.lost: list[Provider] = []
        for geom in geoms:
            for provider in geom.providers:
                self._add(provider)
        for geom in geoms:
            for consumer in geom.consumers:
                identity = self._identities.get(consumer.provider)
                if identity is not None:
                    self._consumers.setdefault(identity, []).append(consumer)

    def _add(self, provider: "Provider") -> None:
        status = status_of(PLACE.dev + b"/" + provider.name)
        found = None if status is None else identity_of(status, True)
        own = found if found is not None and found[0] == BLOCK else (_NODELESS, int(provider.key, 16))
        self._providers[own] = provider
        self._identities[provider.key] = own
        path = provider.facts.get(b"file")
        if path is not None and provider.geom.kind == b"MD" and provider.facts.get(b"type") == b"vnode":
            status = status_of(path)
            file = None if status is None else identity_of(status, True)
            if file is None:
                self.lost.append(provider)
            else:
                self._file_of[own] = file
                self._on_file.setdefault(file, []).append(own)

    def provider(self, identity: "Identity") -> "Provider | None":
        """Return the provider behind a device, or None where GEOM has no part in it."""
        return self._providers.get(identity)

    def below(self, identity: "Identity") -> "list[Piece]":
        """Return what this thing is carved from."""
        provider = self._providers.get(identity)
        if provider is None:
            # A file's st_dev is the number of the provider that its file system is on (ufs_getattr); ZFS has none.
            under = (BLOCK, identity[0])
            return [Piece(identity, under, None, True)] if under in self._providers else []
        file = self._file_of.get(identity)
        if file is not None:
            return [Piece(identity, file, run(0, provider.size))]
        lowers = (self._identities.get(consumer.provider) for consumer in provider.geom.consumers)
        return [Piece(identity, lower, _extents(provider)) for lower in lowers if lower is not None]

    def above(self, identity: "Identity") -> "list[Piece]":
        """Return what is carved from this thing."""
        found = [Piece(own, identity, run(0, self._providers[own].size)) for own in self._on_file.get(identity, ())]
        if identity in self._providers:
            for consumer in self._consumers.get(identity, ()):
                found += [
                    Piece(self._identities[upper.key], identity, _extents(upper)) for upper in consumer.geom.providers
                ]
            found += [Piece(file, identity, None, True) for file in self._on_file if (BLOCK, file[0]) == identity]
        return found

    def describe(self, link: "Link") -> None:
        """Give a link its name, and say what it is."""
        provider = self._providers.get(link.identity)
        if provider is not None:
            link.what = _WHAT.get(provider.geom.kind, "device of " + shown(provider.geom.kind))
            link.name = link.name or PLACE.dev + b"/" + provider.name
        elif link.identity[0] != BLOCK:
            link.what = "file"
            on = self._on_file.get(link.identity)
            link.name = link.name or (self._providers[on[0]].facts[b"file"] if on else b"")

    def read_only(self, identity: "Identity") -> "Provider | None":
        """Return the memory disk that keeps a device from being written: itself or one that it is carved from."""
        found = [identity]
        for node in found:
            provider = self._providers.get(node)
            if provider is not None and provider.facts.get(b"access") == b"read-only":
                return provider
            found += [piece.lower for piece in self.below(node) if not piece.hosted]
        return None

    def users(self, chain: Chain) -> "list[User]":
        """Return who in this domain has a device of the chain open so that others may not. Raises ProgramError."""
        users: list[User] = []
        mounted: list[Link] = []
        swapped: list[Link] = []
        for link in chain.links.values():
            if link.place is not ITSELF and link.place is not ABOVE:
                continue
            for consumer in self._consumers.get(link.identity, ()):
                reads, writes, excludes = consumer.mode
                kind = consumer.geom.kind
                if kind == _VFS and reads:
                    mounted.append(link)
                elif kind == _SWAP and reads + writes:
                    swapped.append(link)
                elif excludes and kind not in _SEEN_THROUGH:
                    users.append(User(MEMBER, link.identity, True, _member(consumer)))
                elif excludes and kind == b"DEV":
                    users.append(User(EXCLUSIVE, link.identity, True))
        if mounted or swapped:
            users = self._named(mounted, swapped) + users
        return users

    def _named(self, mounted: "list[Link]", swapped: "list[Link]") -> "list[User]":
        """Return the users that mounted file systems and swap space are, with their names where these are known."""
        links = mounted + swapped
        mounts, swaps = ask(PLACE.programs, (b"mount",), (b"swapctl", b"-l"))
        found = users_of(links, mounts, swaps, True)
        named = {user.identity for user in found}
        for link in links:
            if link.identity not in named:
                kind = MOUNT if link in mounted else SWAP
                writable = any(
                    consumer.mode[1] for consumer in self._consumers[link.identity] if consumer.geom.kind == _VFS
                )
                found.append(User(kind, link.identity, writable or kind == SWAP, b"a place that mount does not list"))
        return found


def _extents(provider: "Provider") -> "tuple[tuple[int, int, int, int], ...]":
    """Return where a provider lies in what its geom consumes."""
    offset, length = provider.number(b"offset"), provider.number(b"length")
    if offset is not None and length is not None and provider.geom.kind != b"MD":
        return run(offset, length)
    if len(provider.geom.consumers) == 1:
        return run(0, provider.size)
    # A mirror, stripes, ...: any byte may be on any member.
    return ((0, provider.size or _END, 0, _END),)


def _member(consumer: "Consumer") -> bytes:
    geom = consumer.geom
    kind = geom.kind
    name = geom.providers[0].name if geom.providers else geom.facts.get(b"name", b"")
    return b"%s (%s)" % (name, kind)


def refuse_lost(stack: Stack, target: bytes, size: int) -> None:
    """Raise Failure where a memory disk may be on the target under a name that the target no longer has.

    Unknown is not free; but a memory disk of another size is on another file.
    """
    for provider in stack.lost:
        if abs(provider.size - size) < 512:
            raise Failure(
                "/dev/{md} is on a file that was {was} and is not there under that name any more; it is as long as "
                "{target} and may be that very file: detach the memory disk first (mdconfig -d -u {md})",
                md=provider.name,
                was=provider.facts[b"file"],
                target=target,
            )
