"""``vbdkit device-model-args``: what a guest's device model is told of its disks. Owns the arguments and the output."""

import argparse
import json
import os
import shlex
import sys
import time
from typing import TYPE_CHECKING

from vbdkit.cli.domain import add_domain
from vbdkit.toolstack.device_model import HDTYPES, IDE, device_model_arguments
from vbdkit.toolstack.domains import find_domain
from vbdkit.xenstore.client import Connection

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DESCRIPTION = """\
Prints the arguments that give a guest's device model (qemu) its disks as emulated hardware, as libxl builds them, from
the nodes in xenstore: what qemu opens is what each disk's script has published. One option with its value per line,
quoted for a shell."""

EPILOG = """\
examples:
  vbdkit device-model-args 5
  vbdkit device-model-args 5 | xargs qemu-system-i386 -xen-domid 5 ...
  vbdkit device-model-args 5 --hdtype ahci --json

exit status: 0 printed, and what is not emulated is named on stderr; 1 the guest cannot be started with these disks,
and a sentence says why; 2 wrong use"""

# Seconds that the store may take.
_PATIENCE = 10.0


def add_parser(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "device-model-args",
        help="show qemu's arguments for a guest's emulated disks",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_domain(parser)
    parser.add_argument("--hdtype", choices=HDTYPES, default=IDE, help="hardware of hd and xvd disks (%(default)s)")
    parser.add_argument(
        "--stub-domain",
        action="store_true",
        help="for a device model in a Linux stub domain, which opens the disks as its own /dev/xvda, ...",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON array of arguments")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks."""
    with Connection.open(time.monotonic() + _PATIENCE, os.environb) as store:
        domid = find_domain(store, os.fsencode(arguments.domain))
        found = device_model_arguments(store, domid, arguments.hdtype, arguments.stub_domain)
    for note in found.notes:
        print(f"vbdkit: {note}", file=sys.stderr)
    if arguments.json:
        text = json.dumps(found.arguments) + "\n"
    else:
        pairs = zip(found.arguments[::2], found.arguments[1::2], strict=True)
        text = "".join(f"{option} {shlex.quote(value)}\n" for option, value in pairs)
    # Bytes: a path need not be text in anybody's encoding.
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(text))
    sys.stdout.buffer.flush()
    return 0
