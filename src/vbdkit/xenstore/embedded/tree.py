"""The nodes, and the operations on them as one caller sees them.

Owns what READ, DIRECTORY, WRITE, MKDIR, RM, GET_PERMS and SET_PERMS mean. They work on a ``View``: the tree itself,
or a transaction's own picture of it (transactions.py). Knows no connection and sends no event: a view notes what
has to be told.

The order of things (which nodes an operation looks at) is C xenstored's, since it decides which transactions
conflict; tests/xenstore compares the two operation by operation.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from vbdkit.xenstore import codec
from vbdkit.xenstore.embedded.permissions import Caller, Permission, Permissions, Refused, parse_permissions


@dataclass(frozen=True, slots=True)
class Node:
    """One node as it is at one time; a change makes another. ``generation`` differs after every change."""

    value: bytes
    children: tuple[bytes, ...]
    permissions: Permissions
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A change that watches are told of. ``exact``: only those on this very path (its parent's event says the rest).

    ``readers``: permission lists, one of which must let a watcher read: the node's; the tree adds its parent's.
    """

    path: bytes
    exact: bool
    readers: tuple[Permissions, ...]


class View(Protocol):
    """What operations work on."""

    def get(self, path: bytes) -> Node | None:
        """Return a node; a transaction notes that it was looked at."""

    def put(self, path: bytes, node: Node) -> None:
        """Make or change a node."""

    def drop(self, path: bytes) -> None:
        """Take a node away."""

    def owned(self, domid: int) -> int:
        """Return how many nodes a domain owns."""

    def changed(self, change: Change) -> None:
        """Note what watches have to be told."""


class Tree:
    """The store's nodes. Changes collect in ``changes`` until someone takes them."""

    def __init__(self) -> None:
        """A tree with what a store has at its start."""
        self._nodes: dict[bytes, Node] = {}
        self._owned: Counter[int] = Counter()
        self._generation = 0
        self.changes: list[Change] = []
        first = (Permission(0, False, False),)
        self.put(b"/", Node(b"", (b"tool",), first))
        self.put(b"/tool", Node(b"", (b"xenstored",), first))
        self.put(b"/tool/xenstored", Node(b"", (), first))

    def get(self, path: bytes) -> Node | None:
        return self._nodes.get(path)

    def put(self, path: bytes, node: Node) -> None:
        self._generation += 1
        old = self._nodes.get(path)
        if old is not None:
            self._owned[old.permissions[0].domid] -= 1
        self._owned[node.permissions[0].domid] += 1
        self._nodes[path] = replace(node, generation=self._generation)

    def drop(self, path: bytes) -> None:
        old = self._nodes.pop(path, None)
        if old is not None:
            self._owned[old.permissions[0].domid] -= 1

    def owned(self, domid: int) -> int:
        return self._owned[domid]

    def changed(self, change: Change) -> None:
        parent = self._nodes.get(parent_of(change.path))
        if parent is not None:
            change = replace(change, readers=(*change.readers, parent.permissions))
        self.changes.append(change)


def parent_of(path: bytes) -> bytes:
    """Return the path of the node that ``path`` is a child of; the root is its own."""
    return path.rpartition(b"/")[0] or b"/"


def _seek(view: View, caller: Caller, path: bytes, write: bool = False, own: bool = False) -> Node | None:
    """Return the node if the caller has the right, None where it is not there and the caller may know that.

    Refuses with EACCES otherwise. Who may know: one who has the right to the nearest node above that exists.
    """
    node = view.get(path)
    at = path
    found = node
    while found is None and at != b"/":
        at = parent_of(at)
        found = view.get(at)
    rights = caller.rights(found.permissions) if found is not None else (False, False, False)
    if not rights[2 if own else 1 if write else 0]:
        raise Refused("EACCES")
    return node


def _need(node: Node | None) -> Node:
    if node is None:
        raise Refused("ENOENT")
    return node


def read(view: View, caller: Caller, path: bytes) -> bytes:
    """Return a node's value."""
    return _need(_seek(view, caller, path)).value


def children(view: View, caller: Caller, path: bytes) -> Node:
    """Return the node whose children the caller may list."""
    return _need(_seek(view, caller, path))


def get_permissions(view: View, caller: Caller, path: bytes) -> bytes:
    """Return the permissions as the wire has them."""
    return codec.terminated(map(bytes, _need(_seek(view, caller, path)).permissions))


def write(view: View, caller: Caller, path: bytes, value: bytes) -> None:
    """Set a value; the node and its parents are made where they are missing."""
    node = _seek(view, caller, path, write=True)
    if node is None:
        node = _create(view, caller, path, value)
    else:
        caller.check_node_size(value, node.children, node.permissions)
        view.put(path, replace(node, value=value))
    view.changed(Change(path, False, (node.permissions,)))


def mkdir(view: View, caller: Caller, path: bytes) -> None:
    """Make an empty node; one that exists is left alone, without an event."""
    if _seek(view, caller, path, write=True) is None:
        node = _create(view, caller, path, b"")
        view.changed(Change(path, False, (node.permissions,)))


def _create(view: View, caller: Caller, path: bytes, value: bytes) -> Node:
    missing = [path]
    while (parent := view.get(parent_of(missing[-1]))) is None:
        missing.append(parent_of(missing[-1]))
    permissions = parent.permissions
    if not caller.privileged:
        # Others own what they make; the rest is inherited.
        permissions = (replace(permissions[0], domid=caller.domid), *permissions[1:])
        if view.owned(caller.domid) + len(missing) > caller.quota.nodes:
            raise Refused("ENOSPC")
    above = parent_of(missing[-1])
    names = (*parent.children, missing[-1].rpartition(b"/")[2])
    caller.check_node_size(parent.value, names, parent.permissions)
    caller.check_node_size(value, (), permissions)
    view.put(above, replace(parent, children=names))
    for at, below in zip(missing[:0:-1], missing[-2::-1], strict=True):
        view.put(at, Node(b"", (below.rpartition(b"/")[2],), permissions))
    node = Node(value, (), permissions)
    view.put(path, node)
    return node


def remove(view: View, caller: Caller, path: bytes) -> None:
    """Remove a node with all below it. A missing node is no error if its parent is there."""
    node = _seek(view, caller, path, write=True)
    if node is None:
        _need(view.get(parent_of(path)))
        return
    if path == b"/":
        raise Refused("EINVAL")
    above = parent_of(path)
    parent = _need(view.get(above))
    for at, below in _walk(view, path, node):
        view.drop(at)
        view.changed(Change(at, at != path, (below.permissions,)))
    name = path.rpartition(b"/")[2]
    view.put(above, replace(parent, children=tuple(child for child in parent.children if child != name)))


def _walk(view: View, top: bytes, node: Node) -> Iterator[tuple[bytes, Node]]:
    """All nodes from ``top`` down, children before their parents. No recursion: paths may be a thousand deep."""
    stack: list[tuple[bytes, Node, bool]] = [(top, node, False)]
    while stack:
        path, node, entered = stack.pop()
        if entered or not node.children:
            yield path, node
            continue
        stack.append((path, node, True))
        for name in reversed(node.children):
            below = path + b"/" + name
            stack.append((below, _need(view.get(below)), False))


def set_permissions(view: View, caller: Caller, path: bytes, texts: list[bytes]) -> None:
    """Change a node's permissions; only its owner may, and only dom0 may give it another owner (EPERM)."""
    wanted = parse_permissions(texts, caller)
    node = _need(_seek(view, caller, path, own=True))
    if not caller.privileged and wanted[0].domid != node.permissions[0].domid:
        raise Refused("EPERM")
    caller.check_node_size(node.value, node.children, wanted)
    view.put(path, replace(node, permissions=wanted))
    view.changed(Change(path, False, (node.permissions,)))
