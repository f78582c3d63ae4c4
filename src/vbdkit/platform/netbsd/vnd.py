"""vnd(4): files as disks. A vnd bears no mark of whose it is, so the record does, and vnconfig has to agree with it."""

import time

from vbdkit.platform.bsd import PLACE
from vbdkit.platform.netbsd import system
from vbdkit.protocol.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Identity = tuple[int, int]

# Seconds that a driver which is about to go may still have a vnd open. xbdback tells the toolstack first (state 6)
# and closes the device then (xbdback_xenbus_destroy).
_CLOSING = 3.0


def node(number: int, raw: bytes) -> bytes:
    """Return the path of a vnd: the partition that is all of it."""
    return PLACE.dev + b"/vnd%d" % number + raw


def bind(
    path: bytes, file: "Identity", read_only: bool, deadline: float, note: "Callable[[dict[str, str]], None]"
) -> "tuple[int, bytes]":
    """Put the file at ``path`` under a free vnd; return its number and path. Raises Failure.

    Each number is noted before it is tried, so that a kill leaves none that nobody knows of; and taken back from the
    record where another was faster, since that one's may have the same file under it.
    """
    tried: set[int] = set()
    while True:
        all_of_them, raw = system.vnds()
        free = [number for number in sorted(all_of_them) if all_of_them[number] is None and number not in tried]
        if not free:
            raise Failure(
                "no vnd is free for {path}: all {count} are in use; make another (cd /dev && sh MAKEDEV vnd{next})",
                path=path,
                count=len(all_of_them),
                next=max(all_of_them, default=-1) + 1,
            )
        number = free[0]
        note({"vnd": str(number)})
        if system.set_up(number, path, read_only):
            break
        note({"vnd": ""})
        tried.add(number)
        if time.monotonic() >= deadline:
            raise Failure("no vnd could be had for {path} until the time was up: others were faster", path=path)
    if system.file_under(number) != file:
        system.take_down(number)
        raise Failure("{path} changed while it was put under vnd{number}; try again", path=path, number=number)
    return number, node(number, raw)


def release(number: int, file: "Identity") -> bool:
    """Free a vnd that has this file under it; False where it has not. Raises Failure where somebody keeps it open."""
    end = time.monotonic() + _CLOSING
    while system.file_under(number) == file:
        if system.take_down(number):
            return True
        if time.monotonic() >= end:
            raise Failure(
                "vnd{number} is still open, by the backend driver or a program (fstat /dev/vnd{number}*, mount); it is "
                "kept in the record, for the next remove or vbdkit gc",
                number=number,
            )
        time.sleep(0.05)
    return False
