"""A refusal in words: what was asked, who has it, through which identity, and what to do."""

from vbdkit.protocol.failure import InUse
from vbdkit.storage.chain import ITSELF, Chain, Link
from vbdkit.storage.sharing import EXCLUSIVE, MOUNT, User


def refusal(chain: Chain, writable: bool, user: User, link: Link) -> InUse:
    """Return the error that says why ``user`` forbids the target."""
    asked = "read-write" if writable else "read-only"
    has = "read-write" if user.writable else "read-only"
    through = "" if link.place == ITSELF else " (through {via})"
    fields: dict[str, object] = {"target": chain.target, "via": link.name, "asked": asked, "has": has}
    if user.kind == MOUNT:
        return InUse(
            "{target} is mounted" + through + " on {point} ({has}) in this domain, so no guest may have it {asked}; "
            "unmount it first (umount {point})",
            point=user.name,
            **fields,
        )
    if user.kind == EXCLUSIVE:
        return InUse(
            "{target} is held exclusively" + through + " by something in this domain, so no guest may have it {asked}; "
            "look for swap, LVM, md, another mount namespace or a program (lsblk, fuser -v) and release it first",
            **fields,
        )
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
        name=user.name,
        vdev=user.vdev,
        disk=user.vdev or user.path.rpartition(b"/")[2],
        **fields,
    )
