"""``vbdkit attach --dry-run``: what a disk specification stands for, as `xl -N block-attach` shows it.

Owns the arguments and the output. The syntax is protocol/disk.py's, names of virtual disks are protocol/vdev.py's.
"""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from vbdkit.cli.report import CommandError, shown
from vbdkit.protocol import DiskError, VdevError, disk_json, parse_disk, parse_vdev

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DESCRIPTION = """\
Reads a disk specification as Xen's xl reads it, in all forms of xl-disk-configuration(5), and prints the disk
in the layout and with the field names of `xl -N block-attach`. Nothing is attached, and neither the target nor
the domain need be there. So far that is all it does: --dry-run must be given."""

EPILOG = """\
examples:
  vbdkit attach --dry-run 5 /dev/vg/web,,xvda
  vbdkit attach --dry-run 5 /srv/install.iso raw hdc cdrom
  vbdkit attach --dry-run 5 'vdev=xvdb, script=block-rbd, target=pool/image'

exit status: 0 a disk; 1 none, or one that no guest could have, and a sentence says why; 2 wrong use"""

# Xen's domains go up to here; higher numbers have other meanings (DOMID_FIRST_RESERVED in xen/include/public/xen.h).
RESERVED = 0x7FF0


def add_parser(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "attach",
        help="show what a disk specification stands for (--dry-run)",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dry-run", action="store_true", required=True, help="print the disk, attach nothing")
    parser.add_argument("domid", type=_domid, metavar="DOMID", help="the guest, by its number")
    parser.add_argument("parts", nargs="+", metavar="DISKSPEC", help="the disk; further ones go on where it ended")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks."""
    try:
        disk = parse_disk(*arguments.parts)
    except DiskError as error:
        raise CommandError(str(error), ["like this: /dev/vg/web,,xvda (man xl-disk-configuration)"]) from error
    # Bytes, as they came: a target need not be text in anybody's encoding.
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(f"disk: {disk_json(disk)}\n"))
    sys.stdout.buffer.flush()
    try:
        parse_vdev(disk.vdev or "")
    except VdevError as error:
        raise CommandError(f"no guest could have this disk: {error}") from error
    return 0


def _domid(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) < RESERVED):
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is no domain's number (0 to {RESERVED - 1}; xl list shows them)"
        )
    return int(text)
