"""Transactions: a picture of the nodes that one connection has looked at, and what it wants changed.

Owns isolation and conflict. As in C xenstored a node is fixed when it is first looked at (not at the start), and the
commit fails when any of those, changed by the transaction or only read, has changed meanwhile; whoever commits first
wins. Transactions that looked at different nodes do not meet.
"""

from dataclasses import dataclass

from vbdkit.xenstore.embedded.permissions import Caller, Refused
from vbdkit.xenstore.embedded.tree import Change, Node, Tree


@dataclass(slots=True)
class _Access:
    """One node: as it was when first looked at, as it is in here, and what watches are to be told."""

    before: Node | None
    now: Node | None
    modified: bool = False
    change: Change | None = None


class Transaction:
    """A view (tree.View) of the tree that shows no change until ``commit``."""

    def __init__(self, tree: Tree, caller: Caller) -> None:
        self._tree = tree
        self._caller = caller
        self._accesses: dict[bytes, _Access] = {}

    def get(self, path: bytes) -> Node | None:
        return self._access(path).now

    def _access(self, path: bytes) -> _Access:
        access = self._accesses.get(path)
        if access is None:
            if not self._caller.privileged and len(self._accesses) >= self._caller.quota.nodes_per_transaction:
                raise Refused("ENOSPC")
            node = self._tree.get(path)
            access = self._accesses[path] = _Access(node, node)
        return access

    def put(self, path: bytes, node: Node) -> None:
        access = self._access(path)
        access.now, access.modified = node, True

    def drop(self, path: bytes) -> None:
        access = self._access(path)
        access.now, access.modified = None, True

    def owned(self, domid: int) -> int:
        count = self._tree.owned(domid)
        for access in self._accesses.values():
            if access.modified:
                count -= access.before is not None and access.before.permissions[0].domid == domid
                count += access.now is not None and access.now.permissions[0].domid == domid
        return count

    def changed(self, change: Change) -> None:
        """Keep the last word on each node: events come at the commit, one per node."""
        self._access(change.path).change = change

    def commit(self) -> None:
        """Put the changes into the tree. Refuses with EAGAIN, and changes nothing, on a conflict."""
        for path, access in self._accesses.items():
            node = self._tree.get(path)
            if (node and node.generation) != (access.before and access.before.generation):
                raise Refused("EAGAIN")
        for path, access in self._accesses.items():
            if not access.modified:
                continue
            if access.now is not None:
                self._tree.put(path, access.now)
            else:
                self._tree.drop(path)
            # What was made and removed in here was never there for anyone else.
            if access.change is not None and (access.before is not None or access.now is not None):
                self._tree.changed(access.change)
