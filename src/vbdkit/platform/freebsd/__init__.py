"""FreeBSD's convention: the driver opens a device or a plain file itself, by ``physical-device-path`` (O4).

Uses nothing that only FreeBSD has, so it also serves where nobody has privileges (``vbdkit try``).
"""

import _stat
import posix

from vbdkit.platform import Backing
from vbdkit.platform.target import Target, status_of
from vbdkit.platform.target import open_target as _open_target
from vbdkit.protocol.nodes import PHYSICAL_DEVICE_PATH
from vbdkit.storage.chain import ITSELF, Chain, block_identity, file_identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.storage.sharing import User

__all__ = [
    "bind",
    "chain",
    "device",
    "explain",
    "identify",
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


def open_target(text: bytes, writable: bool) -> Target:
    """Open what the user named; character devices are disks here."""
    return _open_target(text, writable, character_devices=True)


def device(target: Target, writable: bool) -> Backing:
    """Use a device as it is."""
    return Backing(target.path, None, {})


def plan(target: Target) -> "dict[str, str]":
    """Return nothing: a file is used as it is."""
    return {}


def bind(target: Target, writable: bool, owner: str, deadline: float) -> Backing:
    """Use a file as it is."""
    return Backing(target.path, None, {})


def unbind(made: "dict[str, str]", owner: str) -> str:
    """Undo nothing: nothing was made."""
    return ""


def owned() -> "list[tuple[str, dict[str, str]]]":
    """Nothing is made."""
    return []


def made_device(made: "dict[str, str]", owner: str) -> "tuple[bytes, tuple[int, int]] | None":
    """Nothing is made."""
    return None


def unbind_unlabelled(node: bytes, identity: "tuple[int, int] | None", params: bytes) -> str:
    """Undo nothing: no script makes anything here."""
    return ""


def chain(target: Target) -> Chain:
    """Return the chain of an open target: itself."""
    found = Chain(target.path)
    found.add(_identity(target.stat), target.path, ITSELF)
    return found


def explain(chain: Chain) -> None:
    """Give all links of a chain their names: the target has its own."""


def local_users(chain: Chain, target: Target) -> "list[User]":
    """Return who in this domain uses the chain's devices: not known in this convention's part so far."""
    return []


def identify(path: bytes) -> "tuple[int, int] | None":
    """Return the identity of what a path names, or None where it names no disk. Raises OSError."""
    status = status_of(path)
    return _identity(status) if status is not None else None


def _identity(status: posix.stat_result) -> "tuple[int, int]":
    if _stat.S_ISBLK(status.st_mode) or _stat.S_ISCHR(status.st_mode):
        return block_identity(status.st_rdev)
    return file_identity(status.st_dev, status.st_ino)


def published(value: bytes) -> "tuple[int, int] | None":
    """Return None: ``physical-device`` means nothing here; physical-device-path says all."""
    return None


def nodes(backing: Backing) -> "list[tuple[bytes, bytes]]":
    """Return the node that wakes the driver (O4)."""
    return [(PHYSICAL_DEVICE_PATH, backing.device)]
