"""Who holds a device or has locked a file: the slow half, for when a target is in use and a person asks by whom.

Reads /proc of all processes and sysfs; what cannot be read is not said.
"""

import _stat
import posix

from vbdkit.platform.linux.kernel import device_folder, device_number, exists, read
from vbdkit.platform.linux.mounts import companions, mounts_of
from vbdkit.platform.linux.names import device_name
from vbdkit.storage.chain import ABOVE, BLOCK, Chain, Link
from vbdkit.storage.sharing import EXCLUSIVE, MEMBER, MOUNT, User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def holders_of(chain: Chain, held: "list[Link]", known: "list[User]") -> "list[User]":
    """Return the users behind devices of the chain that are held exclusively; ``known`` are explained already."""
    users: list[User] = []
    unexplained = []
    for link in held:
        place = device_folder(link.identity[1])
        uppers = _numbers(place + b"/holders")
        # A path of a multipath device is held by what the target is carved from, and so are its partitions.
        if any(_carries(chain, rdev) for rdev in uppers + _numbers(place + b"/../holders")):
            continue
        found = [_member(link, rdev) for rdev in uppers] or _mounts(link)
        users += found
        if not found:
            unexplained.append(link)
    for link in reversed(unexplained):  # the farthest first
        # A disk counts as held when one of its partitions is: then that one is the reason.
        reasons = [chain.links.get(user.identity) for user in users + known]
        if not any(reason is not None and reason.via == link.identity for reason in reasons):
            users.append(_opener(link))
    return users


def _carries(chain: Chain, rdev: int) -> bool:
    """Whether this device is the target (a multipath device holds its paths), or what the target is carved from."""
    link = chain.links.get((BLOCK, rdev))
    return link is not None and link.place != ABOVE


def _member(link: Link, upper: int) -> User:
    """Return the user that a device made of this one is: a volume, an array, DRBD."""
    name, what = device_name(upper)
    try:
        writable = read(device_folder(upper) + b"/ro").strip() != b"1"
    except OSError:
        writable = True
    return User(MEMBER, link.identity, writable, b"%s (%s)" % (name, what.encode()))


def _mounts(link: Link) -> "list[User]":
    """Return mounts that this process does not see: in another mount namespace, or as a further device of btrfs."""
    rdev = link.identity[1]
    wanted = frozenset([rdev, *companions(rdev)])
    seen = set()
    for pid in _processes():
        try:
            namespace = posix.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            for mount in mounts_of(wanted, b"%d" % pid):
                return [
                    User(MOUNT, link.identity, mount.writable, mount.point, pid=_elsewhere(pid), program=_program(pid))
                ]
        except OSError:
            continue  # ended meanwhile
    return []


def _elsewhere(pid: int) -> int:
    """Return the process id if it sees other mounts than this process, else 0."""
    return pid if posix.readlink(f"/proc/{pid}/ns/mnt") != posix.readlink("/proc/self/ns/mnt") else 0


def _opener(link: Link) -> User:
    """Return a user for a device that a program, or nobody knows what, holds; with a process that has it open.

    Who holds a whole disk holds its partitions.
    """
    place = device_folder(link.identity[1])
    rdevs = {link.identity[1]}
    if exists(place + b"/partition"):
        rdevs.add(device_number(read(place + b"/../dev")))
    for pid, _, status in _open_files():
        if status.st_rdev in rdevs and _stat.S_ISBLK(status.st_mode):
            return User(EXCLUSIVE, link.identity, True, pid=pid, program=_program(pid))
    return User(EXCLUSIVE, link.identity, True)


def lock_holders(file: posix.stat_result) -> "list[tuple[int, bytes, int]]":
    """Return process id, program and guest (domid, -1: none) of each that has locked a file: (0, b"", -1) if unseen.

    The kernel shows a lock of an open file description in the fdinfo of its descriptors only (proc(5)).
    """
    want = (file.st_dev, file.st_ino)
    found = {}
    for pid, fd, status in _open_files():
        if (status.st_dev, status.st_ino) == want and pid not in found:
            try:
                if b"\nlock:" in read(b"/proc/%d/fdinfo/%d" % (pid, fd)):
                    found[pid] = (pid, _program(pid), _served_domid(pid))
            except OSError:
                continue
    return list(found.values()) or [(0, b"", -1)]


def _served_domid(pid: int) -> int:
    """Return the guest that a device model serves, as libxl tells it (-xen-domid N); -1 for any other program."""
    words = read(b"/proc/%d/cmdline" % pid).split(b"\0")
    for word, following in zip(words, words[1:], strict=False):  # noqa: RUF007  # itertools is a file to load
        if word == b"-xen-domid" and following.isdigit():
            return int(following)
    return -1


def held_by_number(rdev: int) -> bool:
    """Whether a device is held exclusively whose node is not where its name says. Raises OSError."""
    from vbdkit.platform.linux.users import is_held

    node = b"/dev/.vbdkit-%d" % posix.getpid()
    posix.mknod(node, 0o060600, rdev)
    try:
        return is_held(node, rdev)
    finally:
        posix.unlink(node)


def _open_files() -> "Iterator[tuple[int, int, posix.stat_result]]":
    """Yield (process id, descriptor, status) of all open files of all other processes, as far as they may be seen."""
    for pid in _processes():
        folder = f"/proc/{pid}/fd"
        try:
            descriptors = posix.listdir(folder)
        except OSError:
            continue
        for fd in descriptors:
            try:
                yield pid, int(fd), posix.stat(f"{folder}/{fd}")
            except OSError:
                continue


def _processes() -> "list[int]":
    """Return the ids of all other processes."""
    return [int(name) for name in posix.listdir("/proc") if name.isdigit() and int(name) != posix.getpid()]


def _program(pid: int) -> bytes:
    try:
        return read(b"/proc/%d/comm" % pid).rstrip(b"\n")
    except OSError:
        return b""


def _numbers(folder: bytes) -> "list[int]":
    """Return the device numbers of what a folder of sysfs lists."""
    try:
        return [device_number(read(folder + b"/" + name + b"/dev")) for name in posix.listdir(folder)]
    except OSError:
        return []
