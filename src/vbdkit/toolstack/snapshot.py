"""The store as it is at one moment, and what has changed between two: for people who watch a script work."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vbdkit.xenstore.client import StoreError

if TYPE_CHECKING:
    from vbdkit.xenstore.client import Connection

# How many nodes are asked for at once: many for few round trips, few enough for a store's buffers.
_BATCH = 500


@dataclass(frozen=True)
class Change:
    """One node that is not as it was: ``before`` None for a new one, ``after`` None for one that is gone."""

    path: bytes
    before: bytes | None
    after: bytes | None


def take(store: "Connection", roots: "list[bytes]") -> dict[bytes, bytes]:
    """Return all nodes below (and at) ``roots`` with their values, as far as this domain may read. Raises StoreError.

    Not one moment's truth in a busy store: the nodes are read one after the other.
    """
    found: dict[bytes, bytes] = {}
    todo = list(roots)
    while todo:
        now, todo = todo[:_BATCH], todo[_BATCH:]
        values, listings = _read(store, now)
        for path, value, names in zip(now, values, listings, strict=True):
            if value is not None:
                found[path] = value
            todo += [path.rstrip(b"/") + b"/" + name for name in names or ()]
    return found


def changes(before: dict[bytes, bytes], after: dict[bytes, bytes]) -> list[Change]:
    """Return what is different, by path. A directory that came or went is told by what is in it, where that is all."""
    every = [
        Change(path, before.get(path), after.get(path))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
    told = {change.path for change in every}
    return [change for change in every if not _only_a_directory(change, told)]


def _only_a_directory(change: Change, told: set[bytes]) -> bool:
    empty = change.before in (None, b"") and change.after in (None, b"")
    return empty and any(path.startswith(change.path + b"/") for path in told)


def _read(store: "Connection", paths: list[bytes]) -> tuple["list[bytes | None]", "list[list[bytes] | None]"]:
    """Read and list in two batches; where something in them is not for us to read, one by one."""
    try:
        return store.read_many(paths), store.list_many(paths)
    except StoreError as error:
        if error.name != "EACCES":
            raise
    values: list[bytes | None] = []
    listings: list[list[bytes] | None] = []
    for path in paths:
        try:
            values += store.read_many([path])
            listings += store.list_many([path])
        except StoreError as error:
            if error.name != "EACCES":
                raise
            values = [*values[: len(listings)], None]
            listings.append(None)
    return values, listings
