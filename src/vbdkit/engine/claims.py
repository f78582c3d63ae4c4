"""What other vbds' records say that they have, and what a killed run of a vbd may still be doing.

Two attaches of one image through qemu-nbd, or of one share of a network, are two devices with two numbers. Their
datapath gives them an identity; it stands in the record from before the first side effect until the remove. And what
several disks have in common, an active volume or a session, the last one takes back: their records tell who that is.
"""

import errno
import posix
import time

from vbdkit.engine.flock import close
from vbdkit.engine.forgotten import may_have
from vbdkit.engine.holds import look
from vbdkit.engine.record import NEW
from vbdkit.protocol.failure import Failure
from vbdkit.protocol.mode import parse_mode
from vbdkit.protocol.nodes import PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH
from vbdkit.protocol.vbd import parse_name
from vbdkit.storage.sharing import FORGOTTEN, GUEST, User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from vbdkit.engine.lock import Lock
    from vbdkit.engine.script import Run
    from vbdkit.protocol.vbd import Vbd
    from vbdkit.xenstore.client import Connection

# The first number of the identity of what only a name tells: no device of files has it.
_NAMED = -2
FACT = "identity"
# Of the name of a lock; file systems take 255.
_NAME_MAX = 200
# In the record of a vbd that is about to give back what it has.
LEAVING = "leaving"


def named_identity(text: str) -> tuple[int, int]:
    """Return the identity of what a name stands for."""
    return (_NAMED, int.from_bytes(text.encode("utf-8", "surrogateescape"), "big"))


def claimants(run: "Run", store: "Connection", claim: str, identity: tuple[int, int]) -> "list[User]":
    """Return the other vbds whose record has this claim, each as a user of ``identity``.

    A run of theirs that is still under way and has published nothing is none: it comes to this question itself, and
    then sees what we have published. Raises StoreError, OSError.
    """
    users = []
    for vbd, facts, under_way in others(run):
        path = run.vbd.root + b"/%s/%d/%d" % (vbd.kind, vbd.domid, vbd.devid)
        if facts.get(FACT) != claim:
            continue
        known = store.exists(path)
        if not known and (under_way or not may_have(store, run.platform, vbd)):
            continue
        if under_way and not any(
            store.read_many([path + b"/" + name for name in (PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH)])
        ):
            continue
        mode = parse_mode(facts.get("mode", "w").encode("ascii", "replace"))
        kind = GUEST if known else FORGOTTEN
        user = User(kind, identity, mode is None or mode.writable, domid=vbd.domid, vdev=b"%d" % vbd.devid, path=path)
        users.append(user)
    return users


def other_records(run: "Run") -> "list[dict[str, str]]":
    """Return what the records of all other vbds say. Raises Failure for one that cannot be read, OSError."""
    return [facts for _, facts, _ in others(run)]


def leave(run: "Run") -> None:
    """Say in this vbd's record that it is about to give back what it has, before it looks who else has that.

    So of two that go at one time, the one that looks second knows that it is the last.
    """
    try:
        fd = posix.open(run.records.path(run.vbd.name), posix.O_WRONLY | posix.O_APPEND | posix.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        raise
    try:
        posix.write(fd, f"{LEAVING} 1\n".encode("ascii"))
    finally:
        close(fd)


def resource_lock(run: "Run", name: str) -> "Lock":
    """Return a lock for what disks of one kind have in common; it is beside the one that all scripts share."""
    from vbdkit.engine.lock import Lock

    text = "".join(letter if letter.isalnum() or letter in "-_." else f"%{ord(letter):02x}" for letter in name)
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > _NAME_MAX:
        from binascii import crc32

        data = data[:_NAME_MAX] + b"%%%08x" % crc32(data)
    return Lock(run.lock_dir, run.deadline, b"vbdkit-" + data)


def process(pid: int) -> str:
    """Return what tells a running process from all that ever had its number; empty where the system does not say."""
    try:
        fd = posix.open(b"/proc/%d/stat" % pid, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            text = posix.read(fd, 4096)
        finally:
            close(fd)
        state, *rest = text.rpartition(b") ")[2].split()
        return "" if state == b"Z" else f"{pid} {int(rest[18])}"  # starttime, proc_pid_stat(5)
    except (OSError, ValueError, IndexError):
        return ""


def wait_for_orphan(run: "Run", tool: str) -> None:
    """See that a program is at its end that a killed run of this vbd had started: it goes on without its script (C6).

    What it makes could not be taken back before. It has half of the time that is left; then it is killed, as it would
    have been at the end of its script's time. Raises Failure where it lives on even so.
    """
    pid = tool.partition(" ")[0]
    if not pid.isdigit() or process(int(pid)) != tool:
        return
    from vbdkit.engine.tool import end, tell, wait_until

    def ended() -> bool:
        return process(int(pid)) != tool

    what = f"the end of process {pid}, which a killed run of this script had begun"
    try:
        wait_until(run, ended, what, (run.deadline - time.monotonic()) / 2)
    except Failure as error:
        if not ended():
            tell(run, f"{error}: it is killed")
            end(int(pid))
            wait_until(run, ended, what, 2)


def others(run: "Run") -> "Iterator[tuple[Vbd, dict[str, str], bool]]":
    """Yield each other vbd that has a record, what that says now, and whether a run of it is under way.

    Raises Failure for a record that cannot be read, OSError.
    """
    try:
        files = posix.listdir(run.records.directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    for file in files:
        if file.endswith(NEW) or file.startswith(b".") or file == run.vbd.name.encode("ascii"):
            continue
        vbd = parse_name(file)
        if vbd is not None:
            yield vbd, *look(run.records, vbd.name)
