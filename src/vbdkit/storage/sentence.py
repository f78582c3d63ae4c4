"""A refusal in words: what was asked, who has it, through which identity, and what to do."""

from vbdkit.protocol.failure import InUse
from vbdkit.storage.chain import ITSELF, Chain, Link
from vbdkit.storage.sharing import FORGOTTEN, GUEST, LOCK, MEMBER, MOUNT, SWAP, User

# What needs no words beside the name.
_PLAIN = ("", "file", "disk", "loop device", "vnd")


def refusal(chain: Chain, writable: bool, user: User, link: Link) -> InUse:
    """Return the error that says why ``user`` forbids the target."""
    fields: dict[str, object] = {
        "target": chain.target,
        "via": link.name or "what it is carved from",
        "what": link.what,
        "asked": _mode(writable),
        "mode": "w" if writable else "r",
        "has": _mode(user.writable),
        "point": user.name,
        "name": user.name,
        "pid": user.pid,
        "program": user.program or "a program",
    }
    through = ""
    if link.place != ITSELF:
        through = " (through {via}" + (", {what}" if link.what not in _PLAIN else "") + ")"
    if user.kind == GUEST:
        return _guest(writable, user, through, fields)
    if user.kind == FORGOTTEN:
        return InUse(_FORGOTTEN.replace("{through}", through), domid=user.domid, vdev=user.vdev, **fields)
    state, way_out = _LOCAL.get(user.kind, _HELD)
    if user.kind == MOUNT and user.pid:
        state, way_out = _MOUNTED_ELSEWHERE
    elif user.kind not in _LOCAL and user.pid:
        state, way_out = _HELD_BY
    elif user.kind == LOCK and not user.pid:
        state, way_out = _LOCKED
    way_out = chain.ways_out.get(user.kind, way_out)
    return InUse(
        "{target} is " + state.format(through=through) + ", so no guest may have it {asked}; " + way_out, **fields
    )


# kind of use -> how the target is used, what to do. The text of ``through`` comes first, the fields later.
_LOCAL = {
    MOUNT: ("mounted{through} on {{point}} ({{has}}) in this domain", "unmount it first (umount {point})"),
    SWAP: ("swap space{through} of this domain ({{name}})", "take it out of use first (swapoff {name})"),
    MEMBER: (
        "part{through} of {{name}} in this domain",
        "take that out of use first (vgchange -an, mdadm --stop, dmsetup remove, drbdadm down)",
    ),
    LOCK: (
        "locked{through} by {{program}}, process {{pid}}, which has it {{has}}",
        "end that first (a running machine or image tool)",
    ),
}
_MOUNTED_ELSEWHERE = (
    "mounted{through} on {{point}} ({{has}}) in another mount namespace, that of process {{pid}} ({{program}})",
    "unmount it there first (nsenter -t {pid} -m umount {point}) or end what runs there",
)
_LOCKED = ("locked{through} by a program that has it {{has}}", "find and end it first (lslocks, fuser -v {target})")
_HELD_BY = (
    "held exclusively{through} in this domain; process {{pid}} ({{program}}) has it open",
    "end that first",
)
_HELD = (
    "held exclusively{through} by something in this domain",
    "look for swap, LVM, md, ZFS or a program (lsblk, fuser -v {target}) and release it first",
)


_FORGOTTEN = (
    "{target} was attached for guest {domid} as its disk {vdev}, {has}{through}, and never given back, but xenstore "
    "knows nothing of that (was it started anew?), so another guest may not have it {asked}; once guest {domid} has "
    "ended, vbdkit gc takes it back, and where that keeps it, a restart of this host (mode {mode}! skips the check)"
)


def _mode(writable: bool) -> str:
    return "read-write" if writable else "read-only"


def _guest(writable: bool, user: User, through: str, fields: "dict[str, object]") -> InUse:
    who = "guest {domid}" + (" ({name})" if user.name else "")
    disk = " as its disk {vdev}" if user.vdev else ""
    give = "detach it there first (xl block-detach {domid} {disk})"
    if not writable:
        give += " or give it to that guest read-only too"
    elif not user.writable:
        give += " or ask for it read-only"
    return InUse(
        "{target} is in use by " + who + disk + ", {has}" + through + ", "
        "so another guest may not have it {asked}; " + give,
        domid=user.domid,
        vdev=user.vdev,
        disk=user.vdev or user.path.rpartition(b"/")[2],
        **fields,
    )


def use(user: User) -> bytes:
    """Return one use in a few words: "guest 5 (web) as its disk xvda, read-write"."""
    mode = _mode(user.writable).encode()
    process = b" by process %d (%s)" % (user.pid, user.program) if user.pid else b""
    if user.kind == GUEST:
        name = b" (" + user.name + b")" if user.name else b""
        return b"guest %d%s as its disk %s, %s" % (user.domid, name, user.vdev, mode)
    if user.kind == FORGOTTEN:
        return b"guest %d's disk %s, %s, as its record says and xenstore does not" % (user.domid, user.vdev, mode)
    if user.kind == MOUNT:
        where = b" in the mount namespace of process %d (%s)" % (user.pid, user.program) if user.pid else b""
        return b"mounted on %s%s, %s" % (user.name, where, mode)
    if user.kind == SWAP:
        return b"swap space of this domain"
    if user.kind == MEMBER:
        return b"part of " + user.name
    if user.kind == LOCK:
        return b"locked as an image%s, %s" % (process, mode)
    return b"held exclusively" + (process.replace(b" by", b", perhaps by", 1) or b" by something in this domain")
