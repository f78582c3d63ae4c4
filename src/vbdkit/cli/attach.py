"""``vbdkit attach``: a running guest gets a disk; with ``--dry-run``, what the specification stands for.

Owns the arguments and the output. The syntax is protocol/disk.py's, names of virtual disks are protocol/vdev.py's, the
work is toolstack/lifecycle.py's.
"""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from vbdkit.cli.domain import add_domain, add_settings, domid_of, toolstack
from vbdkit.cli.report import CommandError, Report, shown
from vbdkit.protocol import Disk, DiskError, VdevError, disk_json, parse_disk, parse_vdev
from vbdkit.toolstack.choice import choose
from vbdkit.toolstack.domains import described

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from vbdkit.toolstack.lifecycle import Attached

DESCRIPTION = """\
Gives a running guest a disk, as `xl block-attach` does: writes the nodes, waits for the backend driver, runs the
block script, and says what came of it. xl lists such a disk and detaches it. When anything fails, all is taken
back. Disks that QEMU serves (qdisk: qcow2, vhd, empty CD-ROM drives) are left to xl.

The specification is read as xl reads it, in all forms of xl-disk-configuration(5)."""

EPILOG = """\
examples:
  vbdkit attach web /dev/vg/data,,xvdb
  vbdkit attach 5 'vdev=xvdb, access=ro, target=/srv/tools.img'
  vbdkit attach --no-script 5 /srv/data.img,,xvdc        without starting a script
  vbdkit attach --dry-run 5 /srv/install.iso raw hdc cdrom

exit status: 0 attached, or shown; 1 not, and a sentence says why; 2 wrong use"""


def add_parser(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "attach",
        help="give a guest a disk, or show what a disk specification stands for",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the disk as `xl -N block-attach` does and attach nothing; neither target nor guest need be there",
    )
    parser.add_argument(
        "--no-script", action="store_true", help="do a file's or device's block script's work in this process (G3)"
    )
    add_settings(parser, ("ready", "script"))
    add_domain(parser)
    parser.add_argument("parts", nargs="+", metavar="DISKSPEC", help="the disk; further ones go on where it ended")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks."""
    try:
        disk = parse_disk(*arguments.parts)
    except DiskError as error:
        raise CommandError(str(error), ["like this: /dev/vg/web,,xvda (man xl-disk-configuration)"]) from error
    if arguments.dry_run:
        # Bytes, as they came: a target need not be text in anybody's encoding.
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(f"disk: {disk_json(disk)}\n"))
        sys.stdout.buffer.flush()
    try:
        parse_vdev(disk.vdev or "")
    except VdevError as error:
        raise CommandError(f"no guest could have this disk: {error}") from error
    if not arguments.dry_run:
        _attach(arguments, disk)
    return 0


def _attach(arguments: argparse.Namespace, asked: Disk) -> None:
    with toolstack(arguments) as stack:
        domid = domid_of(stack, arguments)
        attached = stack.attach(choose(stack.store, asked, domid, stack.settings))
        Report().line(_done(attached, described(stack.store, domid)))
    for note in attached.notes:
        print(f"vbdkit: {note}", file=sys.stderr)


def _done(attached: "Attached", guest: str) -> str:
    disk = attached.disk
    through = f" (through {shown(attached.device)})" if attached.device and attached.device != disk.params else ""
    mode = "read-write" if b"w" in disk.mode else "read-only"
    return f"{guest} has {shown(disk.params)} as its disk {shown(disk.dev)}, {mode}{through}"
