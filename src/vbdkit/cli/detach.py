"""``vbdkit detach``: a guest gives a disk back. Owns the arguments and the output."""

import argparse
import sys
from typing import TYPE_CHECKING

from vbdkit.cli.domain import add_domain, add_settings, disk_of, toolstack
from vbdkit.cli.report import Report, shown
from vbdkit.toolstack.domains import described

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DESCRIPTION = """\
Takes a disk from a guest, as `xl block-detach` does, whoever attached it: asks the guest to let go, waits until the
backend driver has closed the device, runs the block script's remove, and deletes the nodes. Where the guest keeps
the disk or the script fails, the nodes stay and it can be tried again."""

EPILOG = """\
examples:
  vbdkit detach web xvdb
  vbdkit detach 5 xvdb --force      also from a guest that does not answer

exit status: 0 detached (with --force, what did not work is said on stderr); 1 not, and a sentence says why;
2 wrong use"""


def add_parser(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "detach",
        help="take a disk from a guest",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--force", action="store_true", help="go on to the end whatever fails, and say it; the guest may lose data"
    )
    add_settings(parser, ("close", "script"))
    add_domain(parser)
    parser.add_argument("vdev", metavar="VDEV", help="the disk, by its name in the guest (xvdb) or its number")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks."""
    with toolstack(arguments) as stack:
        disk = disk_of(stack, arguments)
        guest = described(stack.store, disk.domid)
        problems = stack.detach(disk, arguments.force)
    for problem in problems:
        print(f"vbdkit: {problem}", file=sys.stderr)
    Report().line(f"{guest} no longer has {shown(disk.params)} as its disk {shown(disk.dev)}")
    return 0
