"""What other vbds' records say that they have: for storage that no device number tells apart.

Two attaches of one image through qemu-nbd, or of one share of a network, are two devices with two numbers. Their
datapath gives them an identity; it stands in the record from before the first side effect until the remove.
"""

import posix

from vbdkit.engine.flock import close, free
from vbdkit.engine.forgotten import may_have
from vbdkit.engine.record import NEW
from vbdkit.protocol.mode import parse_mode
from vbdkit.protocol.nodes import PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH
from vbdkit.protocol.vbd import parse_name
from vbdkit.storage.sharing import FORGOTTEN, GUEST, User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from vbdkit.engine.script import Run
    from vbdkit.protocol.vbd import Vbd
    from vbdkit.xenstore.client import Connection

# The first number of the identity of what only a name tells: no device of files has it.
_NAMED = -2
FACT = "identity"


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
            yield vbd, *_look(run, vbd, file)


def _look(run: "Run", vbd: "Vbd", file: bytes) -> "tuple[dict[str, str], bool]":
    """Return what a record says now, and whether somebody holds it. Raises Failure for one that cannot be read."""
    try:
        fd = posix.open(
            run.records.directory + b"/" + file, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK
        )
    except FileNotFoundError:
        return {}, False
    try:
        facts: dict[str, str] = run.records.facts(fd, vbd.name)
        return facts, not free(fd)
    finally:
        close(fd)
