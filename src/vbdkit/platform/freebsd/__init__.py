"""FreeBSD: the driver opens a device or a plain file itself, by ``physical-device-path`` (C4, O4).

Nothing is made and nothing to be undone; what there is to do is to know who else has it, and that is GEOM's to tell.
Elsewhere than on FreeBSD there is no GEOM to ask: then a target is itself only (``vbdkit try``).
"""

import posix

from vbdkit.platform import Backing
from vbdkit.platform.bsd import PLACE, identity_of
from vbdkit.platform.freebsd.geom import geoms
from vbdkit.platform.freebsd.stack import GeomChain, Stack, refuse_lost
from vbdkit.platform.programs import limit
from vbdkit.platform.target import FILE, SECTOR, Target, status_of
from vbdkit.platform.target import open_target as _open_target
from vbdkit.protocol.failure import Failure
from vbdkit.protocol.nodes import PHYSICAL_DEVICE_PATH
from vbdkit.storage.chain import ITSELF, Chain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vbdkit.storage.sharing import User

__all__ = [
    "MADE",
    "bind",
    "bound_to",
    "chain",
    "configure",
    "device",
    "driven",
    "explain",
    "identify",
    "limit",
    "local_users",
    "made_device",
    "nodes",
    "open_target",
    "owned",
    "plan",
    "published",
    "unbind",
    "unbind_unlabelled",
]

# No node names something that a script made: none makes anything.
MADE = None
REMOVES_BACKEND = False

# sys/disk.h: _IOR('d', 129, off_t)
_DIOCGMEDIASIZE = 0x40086481
# sys/stat.h: what chflags(1) calls uchg, uappnd, schg, sappnd
_UNCHANGEABLE = 0x00000002 | 0x00000004 | 0x00020000 | 0x00040000

configure = PLACE.configure


def open_target(text: bytes, writable: bool, smallest: int = SECTOR) -> Target:
    """Open what the user named; character devices are disks here. Raises Failure."""
    try:
        return _open_target(text, writable, smallest, character_devices=True)
    except Failure:
        if writable:
            _refuse_flags(text)
        raise


def _refuse_flags(path: bytes) -> None:
    """Raise Failure where a file's flags are why it cannot be written."""
    try:
        flags = getattr(posix.stat(path), "st_flags", 0)
    except (OSError, ValueError):
        return
    if flags & _UNCHANGEABLE:
        raise Failure(
            "{path} has a flag that lets nobody write to it; take it away (chflags noschg,nouchg,nosappnd,nouappnd "
            "{path}) or give the disk read-only (mode r)",
            path=path,
        )


def device(target: Target, writable: bool) -> Backing:
    """Use a device as it is. Raises Failure for one that is no disk, has no medium, or is read-only under a ``w``."""
    if PLACE.programs:
        stack = Stack(geoms(PLACE.programs))
        own = identity_of(target.stat, True)
        assert own is not None
        provider = stack.provider(own)
        if provider is None:
            _need_disk(target)
        elif not provider.size:
            raise Failure("{path} is a device without a medium (its size is 0)", path=target.path)
        locked = stack.read_only(own) if writable else None
        if locked is not None:
            raise Failure(
                "{path} is read-only, since /dev/{md} is; give the disk read-only (mode r), or make that one "
                "writable (mdconfig -d -u {md}, then mdconfig -a without -o readonly)",
                path=target.path,
                md=locked.name,
            )
    return Backing(target.path, None, {})


def _need_disk(target: Target) -> None:
    """Raise Failure where a device that GEOM does not know is no disk either (a zvol with volmode=dev is one)."""
    from fcntl import ioctl

    try:
        ioctl(target.fd, _DIOCGMEDIASIZE, bytes(8))
    except OSError:
        raise Failure("{path} is a device but no disk", path=target.path) from None


def plan(target: Target) -> "dict[str, str]":
    """Return nothing: a file is used as it is."""
    return {}


def bind(
    target: Target, writable: bool, owner: str, deadline: float, note: "Callable[[dict[str, str]], None]"
) -> Backing:
    """Use a file as it is."""
    return Backing(target.path, None, {})


def unbind(made: "dict[str, str]", owner: str) -> str:
    """Undo nothing: nothing was made."""
    return ""


def owned() -> "list[tuple[str, dict[str, str]]]":
    """Nothing is made."""
    return []


def made_device(made: "dict[str, str]", owner: str, going: bool = True) -> "tuple[bytes, tuple[int, int]] | None":
    """Nothing is made."""
    return None


def bound_to(dev: int, ino: int) -> "list[bytes]":
    """Return nothing: files are used as they are."""
    return []


def unbind_unlabelled(node: bytes, identity: "tuple[int, int] | None", params: bytes) -> str:
    """Undo nothing: no script makes anything here."""
    return ""


def chain(target: Target) -> Chain:
    """Return the chain of an open target. Raises OSError and Failure."""
    own = identity_of(target.stat, True)
    assert own is not None
    stack = Stack(geoms(PLACE.programs)) if PLACE.programs else None
    found = GeomChain(target.path, stack)
    found.add(own, target.path, ITSELF)
    if stack is not None:
        if target.kind == FILE:
            refuse_lost(stack, target.path, target.stat.st_size)
        found.trace(own, stack)
        for link in found.links.values():
            stack.describe(link)
    return found


def explain(chain: Chain) -> None:
    """Give all links of a chain their names: they have them."""


def local_users(chain: Chain, target: Target, known: "list[User]") -> "list[User]":
    """Return who in this domain uses the chain's devices, by GEOM's counts of access. Raises Failure."""
    return chain.stack.users(chain) if isinstance(chain, GeomChain) and chain.stack is not None else []


def identify(path: bytes) -> "tuple[int, int] | None":
    """Return the identity of what a path names, or None where it names no disk. Raises OSError."""
    status = status_of(path)
    return identity_of(status, True) if status is not None else None


def driven(name: bytes) -> bool | None:
    """Return None: the driver does not tell what it has open."""
    return None


def published(value: bytes) -> "tuple[int, int] | None":
    """Return None: ``physical-device`` means nothing here; physical-device-path says all."""
    return None


def nodes(backing: Backing) -> "list[tuple[bytes, bytes]]":
    """Return the node that wakes the driver (O4)."""
    return [(PHYSICAL_DEVICE_PATH, backing.device)]
