"""What FreeBSD and NetBSD have in common: where devices and programs are, and what mount and swapctl print."""

import _stat
import sys

from vbdkit.platform.programs import SYSTEM_PATH
from vbdkit.platform.target import status_of
from vbdkit.storage.chain import block_identity, file_identity
from vbdkit.storage.sharing import EXCLUSIVE, MEMBER, MOUNT, SWAP, User

TYPE_CHECKING = False
if TYPE_CHECKING:
    import posix

    from vbdkit.storage.chain import Link

# What to do about a local user, in the words of storage.sentence.
WAYS_OUT = {
    MOUNT: "unmount it first (umount {point})",
    SWAP: "take it out of use first (swapctl -d {name})",
    MEMBER: "take that out of use first",
    EXCLUSIVE: "look for what has it open (mount, swapctl -l, fstat {target}) and end that first",
}


class Place:
    """Where things are. ``programs`` has the folders of the system's programs, empty where there are none to ask.

    That is so when the script runs elsewhere than on its system, as in ``vbdkit try``.
    """

    __slots__ = ("dev", "programs")

    def __init__(self) -> None:
        """Take the system's own places."""
        self.dev = b"/dev"
        self.programs = SYSTEM_PATH if sys.platform.startswith(("freebsd", "netbsd")) else b""

    def configure(self, dev: bytes = b"", programs: bytes = b"") -> None:
        """Take other places: where a model of the system stands."""
        self.dev = dev or self.dev
        self.programs = programs or self.programs


PLACE = Place()


def identity_of(status: "posix.stat_result", character_devices: bool) -> "tuple[int, int] | None":
    """Return the identity of what has this status, or None where it is no disk."""
    mode = status.st_mode
    if _stat.S_ISBLK(mode) or (character_devices and _stat.S_ISCHR(mode)):
        return block_identity(status.st_rdev)
    return file_identity(status.st_dev, status.st_ino) if _stat.S_ISREG(mode) else None


def mounted(text: bytes) -> "list[tuple[bytes, bytes, bool]]":
    """Return (source, mount point, whether it may be written) of each line that mount(8) prints.

    FreeBSD: ``/dev/ada0p2 on / (ufs, local)``; NetBSD: ``/dev/wd0a on / type ffs (local)``. Both say "read-only".
    """
    found = []
    for line in text.splitlines():
        left, _, options = line.rpartition(b" (")
        source, _, point = left.partition(b" on ")
        if point:
            before, kind, _ = point.rpartition(b" type ")
            writable = b"read-only" not in options.rstrip(b")").split(b", ")
            found.append((source, before if kind else point, writable))
    return found


def swapping(text: bytes) -> "list[bytes]":
    """Return the devices and files that ``swapctl -l`` lists.

    A path, which may have spaces, then as many numbers as the first line has headings behind its own.
    """
    lines = text.splitlines()
    columns = len(lines[0].split()) - 1 if lines else 0
    return [line.rsplit(None, columns)[0] for line in lines[1:] if line.startswith(b"/")]


def users_of(links: "list[Link]", mounts: bytes, swaps: bytes, character_devices: bool) -> "list[User]":
    """Return the mounts and swap spaces among what mount(8) and swapctl(8) print that are these links' own."""
    wanted = {link.identity for link in links}
    named = [(MOUNT, source, point, writable) for source, point, writable in mounted(mounts) if source[:1] == b"/"]
    named += [(SWAP, path, path, True) for path in swapping(swaps)]
    users = []
    for kind, path, name, writable in named:
        status = status_of(path)
        identity = None if status is None else identity_of(status, character_devices)
        if identity is not None and identity in wanted:
            users.append(User(kind, identity, writable, name))
    return users
