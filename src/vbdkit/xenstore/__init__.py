"""Xenstore: the wire protocol's codec (no I/O), a blocking client, and a store daemon for hosts without Xen."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.xenstore.client import Connection, StoreError

__all__ = ["Connection", "StoreError"]

_WHERE = {"Connection": "client", "StoreError": "client"}


def __getattr__(name: str) -> object:
    from vbdkit._lazy import load

    return load(__name__, _WHERE, name)
