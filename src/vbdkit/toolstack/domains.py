"""Domains as people name them: by number, or by the name that the toolstack gave them (as xl's DOMID argument)."""

from typing import TYPE_CHECKING

from vbdkit.protocol.failure import Failure

if TYPE_CHECKING:
    from vbdkit.xenstore.client import Connection

# Xen's domains go up to here; higher numbers have other meanings (DOMID_FIRST_RESERVED in xen/include/public/xen.h).
RESERVED = 0x7FF0


def own_domid(store: "Connection") -> int:
    """Return the domain that this runs in. Raises StoreError."""
    said = store.read_many([b"domid"])[0]
    return int(said) if said and said.isdigit() else 0


def find_domain(store: "Connection", text: bytes) -> int:
    """Return the domid that ``text`` means: all digits are the number itself, all else is a name.

    A number is not looked up: what is left of a dead domain has one, too. Raises Failure for a name that no domain,
    or more than one, has; StoreError.
    """
    if text.isdigit():
        domid = int(text)
        if domid >= RESERVED:
            raise Failure(
                "{text} is no domain's number (0 to {last}; xl list shows them)", text=text, last=RESERVED - 1
            )
        return domid
    domids = [name for name in store.list_many([b"/local/domain"])[0] or () if name.isdigit()]
    names = store.read_many([b"/local/domain/%s/name" % domid for domid in domids])
    found = [int(domid) for domid, name in zip(domids, names, strict=True) if name == text]
    if len(found) != 1:
        raise Failure(
            "there is no domain named {text} (xl list shows them)"
            if not found
            else "there are {count} domains named {text}; say which by its number",
            text=text,
            count=len(found),
        )
    return found[0]


def name_of(store: "Connection", domid: int) -> bytes:
    """Return a domain's name, empty where it has none. Raises StoreError."""
    return store.read_many([b"/local/domain/%d/name" % domid])[0] or b""


def described(store: "Connection", domid: int) -> str:
    """Return a domain in words: "guest 5 (web)". Raises StoreError."""
    from vbdkit.protocol.failure import shown

    name = name_of(store, domid)
    return f"guest {domid}" + (f" ({shown(name)})" if name else "")
