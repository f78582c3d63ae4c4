"""Who in this domain uses a target: mounts, swap, locks on images, exclusive openers. The quick half.

Cheap questions first: all the mounts in one file, one lock query, an exclusive open per device. Only where a device
turns out to be held and none of these says by whom, vbdkit.platform.linux.holders looks further.
"""

import _stat
import errno
import posix
from _struct import Struct
from fcntl import F_WRLCK, fcntl

from vbdkit.platform.linux.kernel import device_folder, read
from vbdkit.platform.linux.loop import LOOP_MAJOR
from vbdkit.platform.linux.mounts import mounts_of, unescaped
from vbdkit.platform.target import Target
from vbdkit.storage.chain import BELOW, BLOCK, HOST, ITSELF, Chain, block_identity, file_identity
from vbdkit.storage.sharing import LOCK, MOUNT, SWAP, User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.storage.chain import Link

_F_OFD_GETLK = 36  # fcntl.h
_FREE = 2  # F_UNLCK
_LOCK = Struct("@hhqqi4x")
# QEMU (block/file-posix.c) locks a byte per permission that it has, from 100 on, and per one that it does not
# leave to others, from 200 on. Numbers of permissions: consistent read 0, write 1, unchanged write 2, resize 3.
_IMAGE_LOCKS = (100, 200)
_IMAGE_WRITERS = ((101, 1), (103, 1), (200, 1))
_NOT_BY_THAT_NAME = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENOMEDIUM)


def local_users(chain: Chain, target: Target, guests: "list[User]") -> "list[User]":
    """Return who in this domain uses what is on the chain; ``guests`` change nothing in that. Raises OSError."""
    links = chain.links
    users = _locks(links, target)
    devices = {identity[1]: link for identity, link in links.items() if identity[0] == BLOCK and link.place is not HOST}
    users += _swaps(links)
    if devices:
        users += [
            User(MOUNT, block_identity(mount.rdev), mount.writable, mount.point)
            for mount in mounts_of(frozenset(devices))
        ]
    known = {user.identity for user in users if user.kind != LOCK}
    held = []
    for rdev, link in devices.items():
        # What the target is carved from is held by that which makes the target of it; loop devices hold nothing.
        if link.identity in known or (link.place is BELOW and not _under_loop(link)):
            continue
        path = b"/proc/self/fd/%d" % target.fd if link.place is ITSELF else link.name or _node(rdev)
        if is_held(path, rdev):
            held.append(link)
    if held:
        from vbdkit.platform.linux.holders import holders_of

        users += holders_of(chain, held, users)
    return users


def _under_loop(link: "Link") -> bool:
    via = link.via
    return via is not None and via[0] == BLOCK and posix.major(via[1]) == LOOP_MAJOR


def _locks(links: "dict[tuple[int, int], Link]", target: Target) -> "list[User]":
    """Return the programs that have locked something on the chain as QEMU locks its images.

    A lock belongs to the inode by which it was taken: a file's, by whatever name, or a device's node's.
    """
    users = []
    own = (target.stat.st_dev, target.stat.st_ino)
    for identity, link in links.items():
        if link.place is ITSELF:
            users += _image_locks(target.fd, identity)
        if identity[0] != BLOCK:
            name = link.name
        elif link.place is HOST:
            continue  # what a mounted file system is on may be beyond even our reach (containers)
        else:
            name = _node(identity[1])
        if not name:
            continue
        try:
            fd = posix.open(name, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | posix.O_NOCTTY)
        except OSError as error:
            if error.errno in _NOT_BY_THAT_NAME:
                continue  # deleted or renamed: whoever has it open has it by a path that nobody knows
            raise
        try:
            status = posix.fstat(fd)
            inode = (status.st_dev, status.st_ino)
            if inode != own and identity in (inode, (BLOCK, status.st_rdev)):
                users += _image_locks(fd, identity)
        finally:
            posix.close(fd)
    return users


def _node(rdev: int) -> bytes:
    """Return the node that the kernel makes for a device; empty where sysfs does not know it."""
    try:
        return b"/dev/" + posix.readlink(device_folder(rdev)).rpartition(b"/")[2].replace(b"!", b"/")
    except FileNotFoundError:
        return b""


def _image_locks(fd: int, identity: "tuple[int, int]") -> "list[User]":
    """Return the programs that have locked an open file or device as QEMU does."""
    first, last = _IMAGE_LOCKS[0], _IMAGE_LOCKS[1] + 100
    if not _locked(fd, first, last - first):
        return []
    writable = any(_locked(fd, start, length) for start, length in _IMAGE_WRITERS)
    from vbdkit.platform.linux.holders import lock_holders

    return [
        User(LOCK, identity, writable, domid=domid, pid=pid, program=program)
        for pid, program, domid in lock_holders(posix.fstat(fd))
    ]


def _locked(fd: int, start: int, length: int) -> bool:
    """Whether anybody else has a lock on these bytes of an open file."""
    answer = fcntl(fd, _F_OFD_GETLK, _LOCK.pack(F_WRLCK, 0, start, length, 0))
    return bool(_LOCK.unpack(answer)[0] != _FREE)


def _swaps(links: "dict[tuple[int, int], Link]") -> "list[User]":
    """Return the swap space on the chain (proc(5): name, type, size, used, priority)."""
    try:
        lines = read(b"/proc/swaps").splitlines()[1:]
    except FileNotFoundError:
        return []  # a kernel without swap
    users = []
    for line in lines:
        name = unescaped(line.partition(b" ")[0].partition(b"\t")[0])
        try:
            status = posix.stat(name)
        except OSError:
            continue  # deleted; the device is held all the same, which is found below
        own = _stat.S_ISBLK(status.st_mode)
        identity = block_identity(status.st_rdev) if own else file_identity(status.st_dev, status.st_ino)
        if identity in links:
            users.append(User(SWAP, identity, True, name))
    return users


def is_held(path: bytes, rdev: int) -> bool:
    """Whether somebody holds a block device exclusively: a mount anywhere, swap, md, device-mapper, a program.

    Raises OSError.
    """
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_EXCL | posix.O_CLOEXEC | posix.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        if error.errno == errno.ENOENT:
            from vbdkit.platform.linux.holders import held_by_number

            return held_by_number(rdev)
        if error.errno in (errno.ENXIO, errno.ENOMEDIUM):
            return False
        raise
    try:
        if posix.fstat(fd).st_rdev != rdev:
            raise OSError(errno.ESTALE, "is another device than a moment ago", path)
    finally:
        posix.close(fd)
    return False
