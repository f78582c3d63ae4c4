"""Watches: who is told of which change, and under which name.

Owns the match between a changed path and a watch. Whether the watcher may know of it is asked of permissions.py.
"""

from dataclasses import dataclass

from vbdkit.xenstore import codec
from vbdkit.xenstore.embedded.permissions import Caller, Permissions, Refused
from vbdkit.xenstore.embedded.tree import Change

INTRODUCE_DOMAIN = b"@introduceDomain"
RELEASE_DOMAIN = b"@releaseDomain"


@dataclass(frozen=True, slots=True)
class Watch:
    """``path`` is absolute; ``prefix`` is what a watch on a relative path takes off its events' paths again."""

    path: bytes
    token: bytes
    prefix: bytes = b""

    def event(self, changed: bytes) -> bytes:
        """Return a WATCH_EVENT's payload for a change at ``changed``."""
        return codec.terminated((changed.removeprefix(self.prefix), self.token))

    def first_event(self) -> bytes:
        """Return the payload of the event that comes when the watch is set."""
        return self.event(self.path)

    def concerns(self, changed: bytes, exact: bool) -> bool:
        """Tell whether a change at ``changed`` is at the watched node or below it; ``exact``: at it."""
        if exact or changed == self.path:
            return changed == self.path
        return self.path == b"/" or changed.startswith(self.path + b"/")


class Watches:
    """One connection's watches, in the order in which they were set."""

    def __init__(self) -> None:
        self._watches: list[Watch] = []

    def add(self, watch: Watch, caller: Caller) -> None:
        """Set a watch. Refuses the same path and token twice (EEXIST), and what is over the quota (E2BIG)."""
        if any((other.path, other.token) == (watch.path, watch.token) for other in self._watches):
            raise Refused("EEXIST")
        if not caller.privileged and len(self._watches) >= caller.quota.watches:
            raise Refused("E2BIG")
        self._watches.append(watch)

    @property
    def newest(self) -> Watch:
        """The watch that was set last."""
        return self._watches[-1]

    def drop(self, path: bytes, token: bytes) -> None:
        """End a watch. Refuses (ENOENT) where there is none such."""
        for index, watch in enumerate(self._watches):
            if (watch.path, watch.token) == (path, token):
                del self._watches[index]
                return
        raise Refused("ENOENT")

    def clear(self) -> None:
        """End all."""
        self._watches.clear()

    def events(self, change: Change, caller: Caller) -> list[bytes]:
        """Return the payloads of the events that a change means to this connection."""
        if not may_know(caller, change.readers):
            return []
        events = [watch.event(change.path) for watch in self._watches if watch.concerns(change.path, change.exact)]
        # As in C xenstored, one that fits no packet is not sent.
        return [event for event in events if len(event) <= codec.PAYLOAD_MAX]


def may_know(caller: Caller, readers: tuple[Permissions, ...]) -> bool:
    """Tell whether the caller may read the node or, failing that, its parent."""
    return any(caller.rights(permissions)[0] for permissions in readers)
