"""``vbdkit check``: whether a guest may have a target, and who else has what of it. Attaches nothing.

Owns the arguments and the output; the verdict is the one that a block script reaches (engine/check.py).
"""

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING

from vbdkit import platform
from vbdkit.cli.report import Report, shown
from vbdkit.engine.check import Finding, examine
from vbdkit.engine.lock import Lock
from vbdkit.engine.record import RUN_DIR, Records
from vbdkit.engine.script import LOCK_DIR
from vbdkit.protocol.failure import Failure
from vbdkit.storage.chain import ABOVE, BELOW, BLOCK, HOST
from vbdkit.storage.sentence import use
from vbdkit.storage.sharing import meeting, meets, verdict
from vbdkit.xenstore.client import Connection, StoreError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from vbdkit.storage.chain import Link
    from vbdkit.storage.sharing import User

DESCRIPTION = """\
Say whether a guest may have TARGET as its disk: the verdict of the block script, without attaching anything. Shown are
all that the target is carved from and all that holds some of the same bytes, and who uses any of it."""

EPILOG = """\
examples:
  vbdkit check /srv/web.img                may a guest have it, read-write?
  vbdkit check --mode r /dev/vg0/iso       ... read-only?
  vbdkit check --domid 7 /srv/web.img      ... guest 7, whose own disks are no obstacle?

exit status: 0 free; 1 in use; 2 no disk can be made of it, or who uses it cannot be told; a sentence says why"""

FREE, IN_USE, UNUSABLE = "free", "in use", "unusable"
STATUS = {FREE: 0, IN_USE: 1, UNUSABLE: 2}
SECONDS = 30.0

# where a link stands -> what the one before it has to do with it
_RELATION = {BELOW: "carved from", ABOVE: "carved into", HOST: "lies on"}


def add_parser(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "check",
        help="whether a guest may have a file or device, and who has it",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="TARGET", help="a file or device, as in a guest's configuration")
    parser.add_argument("--mode", choices=("w", "r"), default="w", help="how the guest would have it (w)")
    parser.add_argument("--domid", type=_domid, default=-1, metavar="N", help="the guest that asks; else a new one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def _domid(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 15):
        raise argparse.ArgumentTypeError(f"{text!r} is no domain number")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks."""
    writable = arguments.mode == "w"
    finding: Finding | None = None
    reason = None
    try:
        finding, reason = _look(os.fsencode(arguments.target), writable, arguments.domid)
        answer = IN_USE if reason else FREE
    except (Failure, StoreError, OSError) as error:
        answer = UNUSABLE
        reason = str(error) if not isinstance(error, OSError) else _system(error)
    if arguments.json:
        json.dump(_as_object(arguments, answer, reason, finding), sys.stdout, indent=2)
        print()
    else:
        _draw(Report(), arguments, answer, reason, finding)
    return STATUS[answer]


def _look(text: bytes, writable: bool, domid: int) -> "tuple[Finding, str | None]":
    """Return what was found and the reason for a refusal. Raises Failure, StoreError and OSError."""
    system = platform.load(platform.current())
    target = system.open_target(text, writable)
    try:
        if target.kind == "device":
            system.device(target, writable)
        deadline = time.monotonic() + SECONDS
        # With the lock, since two that look at a device at the same time would each take the other for a user.
        with Connection.open(deadline, os.environb) as store, Lock(LOCK_DIR, deadline):
            finding = examine(store, system, target, Records(RUN_DIR), b"backend", domid)
        system.explain(finding.chain)
        refusal = finding.refusal(writable, system)
        return finding, str(refusal) if refusal else None
    finally:
        target.close()


def _system(error: OSError) -> str:
    where = f"{shown(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    return f"who uses it cannot be told: {where}{error.strerror or error}"


def _draw(
    report: Report, arguments: argparse.Namespace, answer: str, reason: str | None, found: Finding | None
) -> None:
    """Draw the chain as a tree, each user where it sits, and the verdict below it."""
    if found is not None:
        _branch(report, found, arguments.mode == "w", next(iter(found.chain.links.values())), "", "")
        report.line()
    style = {FREE: "green", IN_USE: "red", UNUSABLE: "yellow"}[answer]
    asked = "read-write" if arguments.mode == "w" else "read-only"
    report.line(report.paint(style, f"{answer}:") + f" {reason or f'a guest may have it {asked}'}")


def _branch(report: Report, found: Finding, writable: bool, link: "Link", lead: str, start: str) -> None:
    """Draw a link, who uses it, and what was found through it. ``start``: the first line's; ``lead``: the others'."""
    what = f" ({link.what})" if link.what else ""
    report.line(f"{start}{shown(link.name)}{report.paint('dim', what)}")
    users = [user for user in found.users if meeting(found.chain, user.identity) is link]
    links = [other for other in found.chain.links.values() if other.via == link.identity]
    left = len(users) + len(links)
    for user in users:
        left -= 1
        words, style = _use(found, writable, user)
        report.line(lead + ("├─ " if left else "└─ ") + report.paint(style, words))
    for other in links:
        left -= 1
        begin = lead + ("├─ " if left else "└─ ") + _RELATION[other.place] + " "
        _branch(report, found, writable, other, lead + ("│  " if left else "   "), begin)


def _use(found: Finding, writable: bool, user: "User") -> tuple[str, str]:
    """Return a use in words, with why it is no obstacle if it is none, and its colour."""
    words = shown(use(user))
    if _forbids(found, writable, user):
        return words, "red"
    if user.domid in found.same_vm:
        return words + ": the same guest, or one that is gone", "green"
    if meets(found.chain, user) is None:
        return words + ": that is how the file comes to be here", "dim"
    return words + ": readers only", "green"


def _forbids(found: Finding, writable: bool, user: "User") -> bool:
    return verdict(found.chain, writable, [user], found.same_vm) is not None


def _as_object(
    arguments: argparse.Namespace, answer: str, reason: str | None, found: Finding | None
) -> dict[str, object]:
    links = found.chain.links.values() if found is not None else ()
    users = found.users if found is not None else ()
    return {
        "target": shown(arguments.target),
        "mode": arguments.mode,
        "domid": arguments.domid if arguments.domid >= 0 else None,
        "verdict": answer,
        "reason": reason,
        "chain": [_link_object(link) for link in links],
        "users": [
            {
                "kind": user.kind,
                "of": _identity_object(user.identity),
                "mode": "w" if user.writable else "r",
                "domid": user.domid if user.domid >= 0 else None,
                "vdev": shown(user.vdev) or None,
                "name": shown(user.name) or None,
                "backend": shown(user.path) or None,
                "pid": user.pid or None,
                "program": shown(user.program) or None,
                "forbids": found is not None and _forbids(found, arguments.mode == "w", user),
            }
            for user in users
        ],
    }


def _link_object(link: "Link") -> dict[str, object]:
    return {
        "name": shown(link.name),
        "what": link.what,
        "place": link.place,
        "id": _identity_object(link.identity),
        "via": _identity_object(link.via) if link.via is not None else None,
    }


def _identity_object(identity: tuple[int, int]) -> dict[str, object]:
    first, second = identity
    if first == BLOCK:
        return {"device": f"{os.major(second)}:{os.minor(second)}"}
    return {"file": second, "on": f"{os.major(first)}:{os.minor(first)}"}
