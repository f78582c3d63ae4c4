"""``vbdkit gc``: collects what vbdkit made and no living disk uses. Owns the arguments and the output."""

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from vbdkit import datapaths
from vbdkit.cli import stub
from vbdkit.cli.install import folder, seconds
from vbdkit.cli.report import CommandError, Report, shown
from vbdkit.engine.leftovers import COLLECTED, KEPT, Collection, Leftover
from vbdkit.engine.record import RUN_DIR
from vbdkit.engine.script import LOCK_DIR, TIME_LIMIT
from vbdkit.platform import current
from vbdkit.toolstack.settings import default_scripts_dir
from vbdkit.xenstore.client import StoreError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DESCRIPTION = """\
Collect what vbdkit made for disks that are gone: the toolstack calls no `remove` when a backend does not close, and a
script may be killed. A disk lives while its backend and its guest are in xenstore; what a living disk uses, what a
script is at work on and what vbdkit did not make is never touched. Where xenstore cannot be read, nothing is."""

EPILOG = """\
examples:
  vbdkit gc --dry-run        show what would be collected
  vbdkit gc                  collect it; fit for a timer, see vbdkit(1)
  vbdkit gc --json           the same for programs

exit status: 0 nothing is left over, or would be; 1 something stays or xenstore cannot be read, and a sentence says
why; 2 wrong use"""

_STYLES = {COLLECTED: "green", KEPT: "red"}


def add_parser(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "gc",
        help="collect what was made for disks that are gone",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dry-run", action="store_true", help="show, change nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--run-dir", type=folder, metavar="DIR", help="where the script keeps its records (what install was told)"
    )
    parser.add_argument(
        "--lock-dir", type=folder, metavar="DIR", help="where scripts that share disks lock (what install was told)"
    )
    parser.add_argument(
        "--deadline",
        type=seconds,
        default=TIME_LIMIT,
        metavar="SECONDS",
        help="how long to wait for xenstore and the lock, for each disk (%(default)g)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks."""
    told = stub.use(default_scripts_dir(current()) / stub.NAME)
    collection = Collection(
        datapaths.load,
        os.environb,
        run_dir=os.fsencode(arguments.run_dir or told.get("run_dir") or RUN_DIR),
        lock_dir=os.fsencode(arguments.lock_dir or told.get("lock_dir") or LOCK_DIR),
        time_limit=arguments.deadline,
        dry_run=arguments.dry_run,
    )
    found = []
    report = Report()
    try:
        for item in collection:
            found.append(item)
            if not arguments.json:
                _tell(report, item)
    except StoreError as error:
        raise CommandError(
            f"what is in use cannot be told, so nothing more was collected: xenstore: {error}"
        ) from error
    finally:
        # Also where the store ended in the middle: what was done by then was done.
        if arguments.json:
            json.dump({"dry_run": arguments.dry_run, "leftovers": [_as_object(item) for item in found]}, sys.stdout)
            print()
    if not found and not arguments.json:
        report.line("Nothing is left over.")
    return 1 if any(item.outcome == KEPT for item in found) else 0


def _tell(report: Report, item: Leftover) -> None:
    device = shown(item.device) if item.device else "no device"
    age = "" if item.age is None else f", {_duration(item.age)} old"
    target = f" ({shown(item.target)})" if item.target else ""
    report.item(item.outcome, f"{item.vbd}: {device}{target}{age}: {item.reason}", _STYLES.get(item.outcome, "yellow"))
    if item.note:
        report.item("", shown(item.note))


def _as_object(item: Leftover) -> dict[str, object]:
    return {
        "vbd": item.vbd,
        "device": shown(item.device) or None,
        "datapath": item.datapath or None,
        "target": shown(item.target) or None,
        "mode": item.mode or None,
        "age_seconds": None if item.age is None else round(item.age, 1),
        "reason": item.reason,
        "outcome": item.outcome,
        "note": item.note or None,
    }


def _duration(seconds: float) -> str:
    """Return an age in its two largest units: "3 d 4 h"."""
    left = int(seconds)
    parts: list[str] = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2])
