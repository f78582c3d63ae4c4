"""``vbdkit devd``: runs the block scripts of a driver domain.

Owns the arguments, which scripts are vbdkit's own, and the form of a line. What it does is toolstack/devd.py's.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vbdkit.cli import stub
from vbdkit.cli.install import folder, seconds
from vbdkit.cli.report import shown

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from vbdkit.toolstack.jobs import Own

DESCRIPTION = """\
Serves the disks of a driver domain, in place of `xl devd`: runs the block script when the backend driver waits for a
disk, and again when the disk is closed for good, and then deletes the disk's nodes. Attached disks are left alone when
it stops and starts, and nothing is missed meanwhile. Stays in the foreground, prints a line per event, and tells
systemd when it is ready. SIGHUP makes it try again where a disk could not be attached; SIGTERM ends it once the
running scripts are done."""

EPILOG = """\
examples:
  vbdkit devd
  systemctl enable --now vbdkit-devd      with the unit from share/vbdkit/

Network cards and disks that QEMU serves (qdisk) are left to others.

exit status: 0 asked to stop; 1 cannot serve, and a sentence says why; 2 wrong use"""


def add_parser(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "devd",
        help="run the block scripts of a driver domain",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--jobs", type=_count, default=8, metavar="N", help="scripts that may run at the same time (%(default)s)"
    )
    parser.add_argument(
        "--script-timeout",
        type=seconds,
        default=40.0,
        metavar="SECONDS",
        help="how long a script may take before it is killed (40, as for xl)",
    )
    parser.add_argument("--run-dir", type=folder, metavar="DIR", help="where records are kept (what install was told)")
    parser.add_argument(
        "--lock-dir", type=folder, metavar="DIR", help="where scripts that share disks lock (what install was told)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks."""
    from vbdkit.engine.record import RUN_DIR
    from vbdkit.engine.script import LOCK_DIR
    from vbdkit.platform import current
    from vbdkit.toolstack.devd import DriverDomain
    from vbdkit.toolstack.settings import default_scripts_dir

    # What install was told, lest the two take each other's disks for unused.
    told = stub.use(default_scripts_dir(current()) / stub.NAME)
    run_dir = os.fsencode(arguments.run_dir or told.get("run_dir") or RUN_DIR)
    lock_dir = os.fsencode(arguments.lock_dir or told.get("lock_dir") or LOCK_DIR)
    DriverDomain(
        lambda script: own(script, run_dir, lock_dir),
        Lines(_is_journal(1)),
        os.environb,
        run_dir,
        jobs=arguments.jobs,
        limit=arguments.script_timeout,
    ).run()
    return 0


def own(script: bytes, run_dir: bytes, lock_dir: bytes) -> "Own | None":
    """Return the settings of a script that is vbdkit's own: one that `vbdkit install` wrote.

    ``block`` is also vbdkit's where nothing is at its path: the path is the one of the toolstack's domain, and no
    script need be installed in this one.
    """
    from vbdkit.toolstack.jobs import Own

    path = Path(os.fsdecode(script))
    if not path.is_absolute():
        return None
    if stub.is_ours(path) or (path.name == stub.NAME and not stub.there(path)):
        return Own(run_dir, lock_dir)
    return None


class Lines:
    """Prints a line per event; for the journal, which asks for no more, with its level first (sd-daemon(3))."""

    def __init__(self, journal: bool) -> None:
        """Say whether stdout is the journal."""
        self._journal = journal

    def __call__(self, level: int, line: str) -> None:
        """Print it. That nobody reads is no reason to serve no more disks."""
        try:
            print(f"<{level}>{line}" if self._journal else line, flush=True)
        except OSError:
            pass


def _is_journal(descriptor: int) -> bool:
    """Whether a descriptor leads to systemd's journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no number from 1 to 1000")
    return int(text)
