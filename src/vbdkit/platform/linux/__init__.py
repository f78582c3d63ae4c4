"""Linux: files become loop devices; blkback opens devices by number (O3, O8, O9)."""

import _stat
import posix
import sys
from fcntl import ioctl

import vbdkit.platform.linux.loop as loops
from vbdkit.platform import Backing
from vbdkit.platform.linux.kernel import device_folder, driven, numbers, read
from vbdkit.platform.linux.mounts import devices_under
from vbdkit.platform.linux.stack import Stack
from vbdkit.platform.linux.users import local_users
from vbdkit.platform.target import FILE, Target, open_target, status_of
from vbdkit.protocol.failure import Failure
from vbdkit.protocol.nodes import NODE, PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH
from vbdkit.storage.chain import BLOCK, ITSELF, Chain, block_identity, file_identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# linux/fs.h, where a pointer has 8 bytes
_BLKGETSIZE64 = 0x80081272

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

MADE = NODE
REMOVES_BACKEND = False


def configure() -> None:
    """Take this system's own settings: there are none."""


def limit(deadline: float, end: float) -> None:
    """Nothing here waits for a program."""


def device(target: Target, writable: bool) -> Backing:
    """Use a block device as it is. Raises Failure where ``w`` is asked of one that cannot be written (O8)."""
    if not int.from_bytes(ioctl(target.fd, _BLKGETSIZE64, bytes(8)), sys.byteorder) and not _removable(target.stat):
        raise Failure("{path} is a device without a medium or a connection (its size is 0)", path=target.path)
    if writable and int.from_bytes(ioctl(target.fd, loops.BLKROGET, bytes(4)), sys.byteorder):
        raise Failure(
            "{path} is a read-only device; give the disk read-only (mode r), or make it writable "
            "(blockdev --setrw {path})",
            path=target.path,
        )
    return Backing(target.path, target.stat.st_rdev, {})


def _removable(status: posix.stat_result) -> bool:
    """Whether a device is a drive that may be empty for now, as for a guest's CD-ROM."""
    try:
        return read(device_folder(status.st_rdev) + b"/removable").startswith(b"1")
    except OSError:
        return False


def plan(target: Target) -> "dict[str, str]":
    """Return what a record needs to find a loop device again that bind was about to make."""
    return {"file": f"{target.stat.st_dev} {target.stat.st_ino}"}


def bind(
    target: Target, writable: bool, owner: str, deadline: float, note: "Callable[[dict[str, str]], None]"
) -> Backing:
    """Make a file a loop device, read-only in fact where the disk is (O8). Raises Failure.

    Nothing to note beforehand: the device carries its owner's name.
    """
    loop = loops.bind(target.fd, owner, deadline)
    if writable and loop.read_only:
        loops.release(loop.number, loop.backing, owner)
        raise Failure("{path} gives a read-only loop device; give the disk read-only (mode r)", path=target.path)
    return Backing(loop.path, loop.rdev, {"loop": str(loop.number)})


def unbind(made: "dict[str, str]", owner: str) -> str:
    """Take back what ``plan`` announced and ``bind`` made, as far as it is there. Returns what was done, in words.

    Without a loop number (the script was killed before it could note it), the device is found by its label.
    """
    if "file" not in made:
        return ""
    dev, _, ino = made["file"].partition(" ")
    backing = (int(dev), int(ino))
    if "loop" in made:
        numbers = [int(made["loop"])]
    else:
        label = owner.encode("ascii")
        numbers = [loop.number for loop in loops.bound() if loop.owner == label and loop.backing == backing]
    done = []
    for number in numbers:
        free = loops.release(number, backing, owner)
        if free is not None:
            done.append(f"/dev/loop{number} " + ("released" if free else "goes when its last user closes it"))
    return ", ".join(done)


def owned() -> "list[tuple[str, dict[str, str]]]":
    """Return all that vbdkit has made on this host: whose it is, and what a record of it says."""
    return [
        (
            loop.owner.decode("ascii", "replace"),
            {
                "datapath": FILE,
                "target": loops.backing_name(loop.number).decode("utf-8", "surrogateescape"),
                "mode": "r" if loop.read_only else "w",
                "file": _backing(loop),
                "loop": str(loop.number),
            },
        )
        for loop in loops.owned()
    ]


def _backing(loop: "loops.Loop") -> str:
    device, inode = loop.backing
    return f"{device} {inode}"


def made_device(made: "dict[str, str]", owner: str, going: bool = True) -> "tuple[bytes, tuple[int, int]] | None":
    """Return path and identity of what a record says was made, if it is there and still the owner's.

    ``going``: also one that was released and goes when its last opener closes it.
    """
    for loop in loops.owned():
        if loop.autoclear and not going:
            continue
        noted = made.get("loop", str(loop.number)) == str(loop.number)
        if loop.owner == owner.encode("ascii") and noted and made.get("file") == _backing(loop):
            return loop.path, block_identity(loop.rdev)
    return None


def bound_to(dev: int, ino: int) -> "list[bytes]":
    """Return the loop devices on the file with these numbers, whoever made them."""
    return [loop.path for loop in loops.bound() if loop.backing == (dev, ino)]


def unbind_unlabelled(node: bytes, identity: "tuple[int, int]", params: bytes) -> str:
    """Release a loop device that another script made, where node, number and file agree. Returns what was done."""
    name = node.rpartition(b"/")[2]
    number = name[4:]
    if not (name.startswith(b"loop") and number.isdigit()):
        return ""
    loop = loops.query(int(number))
    if loop is None or loop.owner or block_identity(loop.rdev) != identity:
        return ""
    # The file may be deleted or replaced: the kernel still knows by which name it was bound.
    if loop.backing != identify(params) and loops.backing_name(loop.number).removesuffix(b" (deleted)") != params:
        return ""
    loops.release(loop.number, loop.backing, "")
    return f"{loop.path.decode('ascii')} released (made by another script)"


def chain(target: Target) -> Chain:
    """Return the chain of an open target: all on this host that shares a sector with it. Raises OSError and Failure."""
    found = Chain(target.path)
    stack = Stack()
    status = target.stat
    try:
        if target.kind == FILE:
            own = file_identity(status.st_dev, status.st_ino)
            if posix.major(status.st_dev) == 0:
                stack.lies_on(status.st_dev, devices_under(target.fd))
        else:
            own = block_identity(status.st_rdev)
        found.add(own, target.path, ITSELF)
        found.trace(own, stack)
    finally:
        stack.close()
    for identity, link in found.links.items():
        if not link.name:
            link.name = stack.name(identity)
    return found


def explain(chain: Chain) -> None:
    """Give all links of a chain their names and say what they are, for people."""
    from vbdkit.platform.linux.names import name_links

    name_links(chain)


def identify(path: bytes) -> "tuple[int, int] | None":
    """Return the identity of what a path names, or None where it names no disk. Raises OSError."""
    status = status_of(path)
    if status is None:
        return None
    if _stat.S_ISBLK(status.st_mode):
        return block_identity(status.st_rdev)
    return file_identity(status.st_dev, status.st_ino) if _stat.S_ISREG(status.st_mode) else None


def published(value: bytes) -> "tuple[int, int] | None":
    """Return the identity that a ``physical-device`` node names: hex in any spelling. Raises ValueError."""
    major, _, minor = value.partition(b":")
    if not (major.isalnum() and minor.isalnum()):
        raise ValueError("not two numbers")  # int() would take a sign or an underscore
    try:
        return (BLOCK, posix.makedev(int(major, 16), int(minor, 16)))
    except OverflowError as error:
        raise ValueError(str(error)) from None


def nodes(backing: Backing) -> "list[tuple[bytes, bytes]]":
    """Return the nodes that blkback and the toolstack read; physical-device, which wakes the driver, last (O3, O6)."""
    assert backing.rdev is not None
    number = b"%x:%x" % numbers(backing.rdev)
    wanted = [(PHYSICAL_DEVICE_PATH, backing.device), (PHYSICAL_DEVICE, number)]
    return [(NODE, backing.device), *wanted] if backing.made else wanted
