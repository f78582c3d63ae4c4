"""NetBSD: files become vnds; xbdback opens devices by number, in decimal (C5, O5, O9).

A block device is never held open here, not even for a moment that is not needed: NetBSD lets it be opened once only
(spec_open in sys/miscfs/specfs), and the driver has to be the one.
"""

import errno
import posix

from vbdkit.platform import Backing
from vbdkit.platform.bsd import PLACE, identity_of, users_of
from vbdkit.platform.netbsd import vnd
from vbdkit.platform.netbsd.stack import Stack, VndChain
from vbdkit.platform.netbsd.system import Facts, file_under, vnds
from vbdkit.platform.programs import limit
from vbdkit.platform.target import SECTOR, Target, explained, status_of
from vbdkit.platform.target import open_target as _open_target
from vbdkit.protocol.failure import Failure
from vbdkit.protocol.nodes import PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH, VND
from vbdkit.storage.chain import ABOVE, BLOCK, HOST, ITSELF, Chain
from vbdkit.storage.sharing import EXCLUSIVE, User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MADE",
    "REMOVES_BACKEND",
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

MADE = VND
# The toolstack's side of NetBSD has always left this to the script.
REMOVES_BACKEND = True

# The forms of physical-device (O5): what xbdback reads, and what the document says.
DECIMAL, HEX = b"decimal", b"hex"
_form = DECIMAL


def configure(physical_device: bytes = DECIMAL, dev: bytes = b"", programs: bytes = b"") -> None:
    """Take the settings of the installed script. ``physical_device`` is DECIMAL or HEX. Raises Failure."""
    global _form  # noqa: PLW0603  # one setting, for one run
    if physical_device not in (DECIMAL, HEX):
        raise Failure("the form {form} of physical-device is neither decimal nor hex", form=physical_device)
    _form = physical_device
    PLACE.configure(dev, programs)


def open_target(text: bytes, writable: bool, smallest: int = SECTOR) -> Target:
    """Open what the user named; a device is only looked at. Raises Failure."""
    return _open_target(text, writable, smallest, open_devices=False)


def device(target: Target, writable: bool) -> Backing:
    """Use a block device as it is, having asked its raw side whether it gives what the mode asks. Raises Failure."""
    folder, _, name = target.path.rpartition(b"/")
    flags = posix.O_RDWR if writable else posix.O_RDONLY
    try:
        posix.close(posix.open(folder + b"/r" + name, flags | posix.O_NONBLOCK | posix.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise Failure("{path} is not configured: there is no disk behind it", path=target.path) from None
        if error.errno != errno.ENOENT:  # a name of somebody's own, without a raw side beside it
            raise explained(target.path, writable, error) from None
    return Backing(target.path, target.stat.st_rdev, {})


def plan(target: Target) -> "dict[str, str]":
    """Return what a record needs to know a vnd again that bind was about to set up."""
    return {"file": f"{target.stat.st_dev} {target.stat.st_ino}"}


def bind(
    target: Target, writable: bool, owner: str, deadline: float, note: "Callable[[dict[str, str]], None]"
) -> Backing:
    """Put a file under a vnd, read-only in fact where the disk is. Raises Failure."""
    file = (target.stat.st_dev, target.stat.st_ino)
    number, path = vnd.bind(target.path, file, not writable, deadline, note)
    status = status_of(path)
    if status is None:
        vnd.release(number, file)
        raise Failure("{path} is missing; make it (cd /dev && sh MAKEDEV vnd{number})", path=path, number=number)
    return Backing(path, status.st_rdev, {"vnd": str(number)})


def bound_to(dev: int, ino: int) -> "list[bytes]":
    """Return nothing: what asks for the vnds of a file by its numbers is Linux's own."""
    return []


def unbind(made: "dict[str, str]", owner: str) -> str:
    """Free the vnd that a record names, if the file that it names is under it. Returns what was done, in words."""
    noted = _noted(made)
    return f"vnd{noted[0]} released" if noted is not None and vnd.release(*noted) else ""


def _noted(made: "dict[str, str]") -> "tuple[int, tuple[int, int]] | None":
    """Return number and file of the vnd that a record names, None where it names none. Raises ValueError."""
    if not made.get("vnd") or "file" not in made:
        return None
    dev, _, ino = made["file"].partition(" ")
    return int(made["vnd"]), (int(dev), int(ino))


def owned() -> "list[tuple[str, dict[str, str]]]":
    """Return nothing: a vnd does not say whose it is, only a record does."""
    return []


def made_device(made: "dict[str, str]", owner: str, going: bool = True) -> "tuple[bytes, tuple[int, int]] | None":
    """Return path and identity of the vnd that a record names, if the record's file is under it."""
    noted = _noted(made)
    if noted is None:
        return None
    number, file = noted
    under, raw = vnds()
    path = vnd.node(number, raw)
    found = identify(path)
    return (path, found) if under.get(number) == file and found is not None else None


def unbind_unlabelled(node: bytes, identity: "tuple[int, int] | None", params: bytes) -> str:
    """Free a vnd that another script set up, where node, number and file agree. Returns what was done."""
    name = node.rpartition(b"/")[2]
    number = name[3:-1]
    if not name.startswith(b"vnd") or not number.isdigit() or identity is None or identify(node) != identity:
        return ""
    file = identify(params)
    if file is None or file[0] == BLOCK or file_under(int(number)) != file:
        return ""
    vnd.release(int(number), file)
    return f"vnd{int(number)} released (set up by another script)"


def chain(target: Target) -> Chain:
    """Return the chain of an open target. Raises OSError and Failure."""
    own = identity_of(target.stat, False)
    assert own is not None
    facts = Facts() if PLACE.programs else None
    found = VndChain(target.path, facts)
    found.add(own, target.path, ITSELF)
    if facts is not None:
        stack = Stack(facts)
        found.trace(own, stack)
        for link in found.links.values():
            stack.describe(link)
    return found


def explain(chain: Chain) -> None:
    """Give all links of a chain their names: they have them."""


def local_users(chain: Chain, target: Target, known: "list[User]") -> "list[User]":
    """Return who in this domain uses the chain's devices. Raises OSError.

    Mounts and swap by their lists; anything else by opening each device for a moment. Never one that a guest has:
    its driver may be about to open it, and would find it busy. A guest's device is taken for both of its users.
    """
    if not isinstance(chain, VndChain) or chain.facts is None:
        return []
    links = [link for link in chain.links.values() if link.place is not HOST]
    users = users_of(links, chain.facts.mounts, chain.facts.swaps, False)
    theirs = {user.identity: user.domid for user in known}
    named = {user.identity for user in users}
    for link in links:
        if link.identity[0] == BLOCK and link.place in (ITSELF, ABOVE) and link.identity not in named:
            if link.identity in theirs:
                if link.place is ITSELF:
                    users.append(User(EXCLUSIVE, link.identity, True, domid=theirs[link.identity]))
            elif _is_open(link.name):
                users.append(User(EXCLUSIVE, link.identity, True))
    return users


def _is_open(path: bytes) -> bool:
    """Whether somebody has a block device open. O_EXCL says on other systems what every open means on this one."""
    try:
        posix.close(posix.open(path, posix.O_RDONLY | posix.O_EXCL | posix.O_NONBLOCK | posix.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        if error.errno not in (errno.ENXIO, errno.ENODEV, errno.ENOENT, errno.EIO):
            raise
    return False


def identify(path: bytes) -> "tuple[int, int] | None":
    """Return the identity of what a path names, or None where it names no disk. Raises OSError."""
    status = status_of(path)
    return identity_of(status, False) if status is not None else None


def driven(name: bytes) -> bool | None:
    """Return None: the driver does not tell what it has open."""
    return None


def published(value: bytes) -> "tuple[int, int] | None":
    """Return the identity that a ``physical-device`` node names, in either form (O5). Raises ValueError."""
    major, colon, minor = value.partition(b":")
    try:
        if colon and major.isalnum() and minor.isalnum():
            return (BLOCK, posix.makedev(int(major, 16), int(minor, 16)))
    except OverflowError as error:
        raise ValueError(str(error)) from None
    if not value.isdigit() or len(value) > 20:
        raise ValueError("not a decimal number")
    return (BLOCK, int(value))


def nodes(backing: Backing) -> "list[tuple[bytes, bytes]]":
    """Return the nodes that xbdback and the toolstack read; physical-device, which wakes the driver, last (O5, O6)."""
    rdev = backing.rdev
    assert rdev is not None
    number = b"%d" % rdev if _form == DECIMAL else b"%x:%x" % (posix.major(rdev), posix.minor(rdev))
    wanted = [(PHYSICAL_DEVICE_PATH, backing.device), (PHYSICAL_DEVICE, number)]
    return [(VND, backing.device), *wanted] if backing.made else wanted
