"""Who has disks, as the store says: one pipelined scan over the backends that this domain serves.

Costs a handful of round trips however many vbds there are; what it finds is compared by number.
"""

from vbdkit.protocol.failure import Failure, shown
from vbdkit.protocol.mode import parse_mode
from vbdkit.protocol.nodes import DEV, MODE, PARAMS, PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH, SCRIPT_KINDS, is_disk_kind
from vbdkit.storage.sharing import FORGOTTEN, GUEST, LOCK, User, meeting
from vbdkit.xenstore.client import StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

    from vbdkit.storage.chain import Chain
    from vbdkit.xenstore.client import Connection

    Disk = tuple[bytes, tuple[int, int] | None]

_USUAL_KINDS = (*SCRIPT_KINDS, b"qdisk")


def guests_of(store: "Connection", root: bytes, own: bytes, platform: "ModuleType", chain: "Chain") -> "list[User]":
    """Return the vbds but ``own`` that use something on the chain; ``root`` is the directory of the backends.

    Raises StoreError, and Failure for a malformed node.
    """
    return guests_among(disks_of(store, root, own, platform), root, chain)


def guests_among(disks: "list[Disk]", root: bytes, chain: "Chain") -> "list[User]":
    """Return those of the vbds that ``disks_of`` found which use something on the chain."""
    users = []
    for path, identity in disks:
        if identity is not None and meeting(chain, identity) is not None:
            domid, _, devid = path[len(root) + 1 :].partition(b"/")[2].partition(b"/")
            users.append(User(GUEST, identity, True, domid=int(domid), vdev=devid, path=path))
    return users


def disks_of(store: "Connection", root: bytes, own: bytes, platform: "ModuleType") -> "list[Disk]":
    """Return (backend path, identity) of every vbd in the store but ``own``; None for one that has no device yet.

    Raises StoreError, and Failure for a malformed node.
    """
    return list(_identities(store, root, [path for path in _backends(store, root) if path != own], platform))


def _identities(store: "Connection", root: bytes, paths: "list[bytes]", platform: "ModuleType") -> "Iterable[Disk]":
    silent = []
    for path, value in zip(paths, store.read_many([path + b"/" + PHYSICAL_DEVICE for path in paths]), strict=True):
        if value is None:
            silent.append(path)
            continue
        try:
            identity = platform.published(value)
        except ValueError:
            # Unknown is not free.
            raise Failure(
                "{path}/physical-device of another guest is {value}, which is no device number: whether that guest "
                "has the disk cannot be told; put that node right or detach that disk",
                path=path,
                value=repr(shown(value)),
            ) from None
        if identity is None:
            silent.append(path)
        else:
            yield path, identity
    wanted = [path + b"/" + name for path in silent for name in (PHYSICAL_DEVICE_PATH, PARAMS)]
    values = iter(store.read_many(wanted))
    for path in silent:
        name, params = next(values), next(values)
        identity = platform.identify(name) if name else None
        yield path, identity
        if identity is None and (name or path[len(root) + 1 :].partition(b"/")[0] not in SCRIPT_KINDS):
            # Served by a program, which takes what it opens from params.
            for possible in _named_by(params or b""):
                identity = platform.identify(possible)
                if identity is not None:
                    yield path, identity


def _named_by(params: bytes) -> "list[bytes]":
    """Return what a program may open for these params: ``file``, ``driver:file`` or ``tap:driver:file``."""
    _, _, behind = params.partition(b":")
    names = (params, behind, behind.partition(b":")[2])
    return [name if name.startswith(b"/") else b"/dev/" + name for name in names if name]


def _backends(store: "Connection", root: bytes) -> "list[bytes]":
    """Return the paths of all disk backends of this domain."""
    # The usual kinds are asked for along with the list of kinds: a round trip less with the lock held.
    usual = [root + b"/" + kind for kind in _USUAL_KINDS]
    kinds, *lists = store.list_many([root, *usual])
    others = [root + b"/" + kind for kind in kinds or () if is_disk_kind(kind) and kind not in _USUAL_KINDS]
    lists += store.list_many(others)
    domains = [
        kind + b"/" + domid
        for kind, found in zip(usual + others, lists, strict=True)
        for domid in found or ()
        if domid.isdigit()
    ]
    return [
        domain + b"/" + devid
        for domain, found in zip(domains, store.list_many(domains), strict=True)
        for devid in found or ()
    ]


def describe(store: "Connection", users: "list[User]") -> None:
    """Fill in mode, vdev and the guest's name for these few users (in place). Raises StoreError."""
    for user in users:
        if user.kind != GUEST:
            continue  # the store has forgotten it
        mode = _optional(store, user.path + b"/" + MODE)
        known = parse_mode(mode) if mode is not None else None
        user.writable = known is None or known.writable
        user.vdev = _optional(store, user.path + b"/" + DEV) or user.vdev
        user.name = _optional(store, b"/local/domain/%d/name" % user.domid) or b""


def same_vm(store: "Connection", asking: int, users: "list[User]") -> "frozenset[int]":
    """Return the domids among ``users`` that are the VM of domain ``asking``, or no VM any more. Raises StoreError.

    The same VM: the same domain, an equal ``vm`` (migration on one host, an old ``-1`` ending dropped), or a
    guest and its stub domain (``target``). Leftovers of a domain that is gone do not count, unless its device model
    still has the image locked, or nobody can tell that it is gone (``engine.forgotten``).
    What cannot be read (a driver domain may not) makes another VM.
    """
    others = {user.domid for user in users if user.domid >= 0}
    if not others:
        return frozenset()
    mine = _vms(store, asking) if asking >= 0 else set()
    running = {user.domid for user in users if user.kind in (LOCK, FORGOTTEN)}
    same = set()
    for domid in others:
        if domid == asking or (mine & _vms(store, domid)) or (domid not in running and gone(store, domid)):
            same.add(domid)
    return frozenset(same)


def _vms(store: "Connection", domid: int) -> "set[bytes]":
    """Return what names the VM of a domain: its own vm, and its target's where it is a stub domain."""
    target = _optional(store, b"/local/domain/%d/target" % domid)
    found = set()
    for path in (
        b"/local/domain/%d/vm" % domid,
        b"/local/domain/%s/vm" % target if target and target.isdigit() else None,
    ):
        vm = _optional(store, path) if path is not None else None
        if vm:
            found.add(vm.removesuffix(b"-1"))
    return found


def gone(store: "Connection", domid: int) -> bool:
    """Whether the store has nothing of a domain; False where that may not be seen. Raises StoreError."""
    try:
        store.read(b"/local/domain/%d" % domid)
    except StoreError as error:
        if error.name == "ENOENT":
            return True
        if error.name != "EACCES":
            raise
    return False


def _optional(store: "Connection", path: bytes) -> bytes | None:
    """Read a node that may be missing or, in a driver domain, unreadable."""
    try:
        value: bytes = store.read(path)
    except StoreError as error:
        if error.name in ("ENOENT", "EACCES"):
            return None
        raise
    return value
