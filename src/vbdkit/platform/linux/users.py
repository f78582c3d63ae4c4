"""Who in this domain uses a target: mounts, swap, locks on images, exclusive openers. The quick half.

Cheap questions first: all the mounts in one file, one lock query, an exclusive open per device. Only where a device
turns out to be held and none of these says by whom, vbdkit.platform.linux.holders looks further.
"""

import _stat
import errno
import posix
from _struct import Struct
from fcntl import F_WRLCK, fcntl

from vbdkit.platform.linux.kernel import read
from vbdkit.platform.linux.mounts import mounts_of, unescaped
from vbdkit.platform.target import Target
from vbdkit.storage.chain import ABOVE, BLOCK, HOST, ITSELF, Chain, block_identity, file_identity
from vbdkit.storage.sharing import LOCK, MOUNT, SWAP, User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.storage.chain import Link

# fcntl.h; Python's fcntl has it only from 3.9 on some systems
_F_OFD_GETLK = 36
_FREE = 2  # F_UNLCK
_LOCK = Struct("@hhqqi4x")
# QEMU (block/file-posix.c) locks a byte per permission that it has, from 100 on, and per one that it does not
# leave to others, from 200 on. Numbers of permissions: consistent read 0, write 1, unchanged write 2, resize 3.
_IMAGE_LOCKS = (100, 200)
_IMAGE_WRITERS = ((101, 1), (103, 1), (200, 1))


def local_users(chain: Chain, target: Target, guests: "list[User]") -> "list[User]":
    """Return who in this domain uses what is on the chain; ``guests`` change nothing in that. Raises OSError."""
    links = chain.links
    users = []
    devices = {}
    for identity, link in links.items():
        if link.place is ITSELF:
            users += _image_locks(target.fd, identity)
        elif identity[0] != BLOCK and link.place is not HOST and link.name:
            users += _file_locks(link)
        if identity[0] == BLOCK and link.place is not HOST:
            devices[identity[1]] = link
    users += _swaps(links)
    if devices:
        users += [
            User(MOUNT, block_identity(mount.rdev), mount.writable, mount.point)
            for mount in mounts_of(frozenset(devices))
        ]
    known = {user.identity for user in users if user.kind != LOCK}
    held = []
    for rdev, link in devices.items():
        if link.identity in known or not (link.place is ITSELF or link.place is ABOVE):
            continue  # what the target is carved from is held by that which makes the target of it
        path = b"/proc/self/fd/%d" % target.fd if link.place is ITSELF else link.name
        if is_held(path, rdev, users):
            held.append(link)
    if held:
        from vbdkit.platform.linux.holders import holders_of

        users += holders_of(chain, held, users)
    return users


def _file_locks(link: "Link") -> "list[User]":
    """Return the program that has locked a file of the chain, by the path that its loop device knows it by."""
    try:
        fd = posix.open(link.name, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | posix.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return []  # deleted or renamed: whoever has it open has it by a path that nobody knows
        raise
    try:
        status = posix.fstat(fd)
        return _image_locks(fd, link.identity) if (status.st_dev, status.st_ino) == link.identity else []
    finally:
        posix.close(fd)


def _image_locks(fd: int, identity: "tuple[int, int]") -> "list[User]":
    """Return the program that has locked an open file or device as QEMU does, if any."""
    first, last = _IMAGE_LOCKS[0], _IMAGE_LOCKS[1] + 100
    if not _locked(fd, first, last - first):
        return []
    writable = any(_locked(fd, start, length) for start, length in _IMAGE_WRITERS)
    from vbdkit.platform.linux.holders import lock_holder

    pid, program, domid = lock_holder(posix.fstat(fd))
    return [User(LOCK, identity, writable, domid=domid, pid=pid, program=program)]


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


def is_held(path: bytes, rdev: int, users: "list[User]") -> bool:
    """Whether somebody holds a block device exclusively: a mount anywhere, swap, md, device-mapper, a program.

    Adds to ``users`` who has locked it as an image. Raises OSError.
    """
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_EXCL | posix.O_CLOEXEC | posix.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        if error.errno == errno.ENOENT:
            from vbdkit.platform.linux.holders import held_by_number

            return held_by_number(rdev, users)
        if error.errno in (errno.ENXIO, errno.ENOMEDIUM):
            return False
        raise
    try:
        if posix.fstat(fd).st_rdev != rdev:
            raise OSError(errno.ESTALE, "is another device than a moment ago", path)
        users += _image_locks(fd, (BLOCK, rdev))
    finally:
        posix.close(fd)
    return False
