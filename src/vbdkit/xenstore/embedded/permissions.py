"""Who may do what: permission lists, the caller that they are asked about, and the quotas of the unprivileged.

Owns the rules and nothing that changes. Source: "Permissions" in docs/misc/xenstore.txt of Xen; the quota figures
are C xenstored's defaults.
"""

import re
from dataclasses import dataclass

from vbdkit.xenstore import codec

_LETTERS = {b"n": (False, False), b"r": (True, False), b"w": (False, True), b"b": (True, True)}
_NUMBER = re.compile(rb"[ \t-\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_LETTER_OF = {rights: letter for letter, rights in _LETTERS.items()}


class Refused(Exception):
    """An operation that the store answers with an error. ``name`` is one of codec.ERROR_NUMBERS."""

    def __init__(self, name: str) -> None:
        """``name``: "ENOENT", "EACCES", ..."""
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, slots=True)
class Permission:
    """What one domain may do with a node; the first of a list names the owner and what everybody else may do."""

    domid: int
    read: bool
    write: bool

    @classmethod
    def parse(cls, text: bytes) -> "Permission":
        """Read ``b"n0"``, ``b"r5"``, ``b"w5"`` or ``b"b5"``. Refuses all else with EINVAL.

        The number is what C xenstored's strtol makes of it, in 32 bits.
        """
        rights = _LETTERS.get(text[:1])
        number = _NUMBER.fullmatch(text, 1)
        if rights is None or number is None:
            raise Refused("EINVAL")
        sign, digits = number.groups()
        base = 10 if digits[:1] != b"0" else 16 if digits[1:2] in (b"x", b"X") else 8
        value = int(digits, base) if base != 10 or len(digits) < 40 else 1 << 63
        value = max(-value, -1 << 63) if sign == b"-" else min(value, (1 << 63) - 1)
        return cls((value + (1 << 31)) % (1 << 32) - (1 << 31), *rights)

    def __bytes__(self) -> bytes:
        """Return the form that ``parse`` reads."""
        return _LETTER_OF[self.read, self.write] + b"%d" % self.domid


Permissions = tuple[Permission, ...]


@dataclass(frozen=True, slots=True)
class Quota:
    """What one unprivileged domain may use."""

    nodes: int = 1000
    node_size: int = 2048
    watches: int = 128
    transactions: int = 10
    nodes_per_transaction: int = 1024
    permissions_per_node: int = 5


@dataclass(frozen=True, slots=True)
class Caller:
    """The domain on whose behalf an operation is done. ``target``: the domain that a stub domain serves."""

    domid: int
    target: int | None = None
    quota: Quota = Quota()

    @property
    def privileged(self) -> bool:
        """Dom0 may do everything."""
        return self.domid == 0

    def rights(self, permissions: Permissions) -> tuple[bool, bool, bool]:
        """Return (may read, may write, owns)."""
        mine = {self.domid} if self.target is None else {self.domid, self.target}
        if self.privileged or permissions[0].domid in mine:
            return True, True, True
        for entry in permissions[1:]:
            if entry.domid in mine:
                return entry.read, entry.write, False
        return permissions[0].read, permissions[0].write, False

    def check_node_size(self, value: bytes, children: tuple[bytes, ...], permissions: Permissions) -> None:
        """Refuse (ENOSPC) a node over the quota, counted as C xenstored does: the record with its header."""
        if self.privileged:
            return
        size = 24 + 8 * len(permissions) + len(value) + sum(len(name) + 1 for name in children)
        if size >= self.quota.node_size:
            raise Refused("ENOSPC")


def parse_permissions(texts: list[bytes], caller: Caller) -> Permissions:
    """Read a whole list. Refuses an empty one (EINVAL) and one over the quota (ENOSPC)."""
    if not texts:
        raise Refused("EINVAL")
    if not caller.privileged and len(texts) > caller.quota.permissions_per_node:
        raise Refused("ENOSPC")
    return tuple(Permission.parse(text) for text in texts)


def path_length_allowed(path: bytes) -> bool:
    """Tell whether an absolute path is short enough: 2048 bytes, not counting a leading ``/local/domain/<n>/``.

    That is what C xenstored and oxenstored take by default, less than the protocol's 3072.
    """
    own = path
    parts = path.split(b"/", 4)
    if len(parts) == 5 and parts[1:3] == [b"local", b"domain"] and parts[3].isdigit() and len(parts[3]) <= 5:
        own = parts[4]
    return len(own) <= codec.RELATIVE_PATH_MAX
