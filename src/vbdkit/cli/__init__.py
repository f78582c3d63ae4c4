"""The ``vbdkit`` command: its parser, exit statuses, and how it ends. One module a subcommand does the work.

Exit statuses: 0 done; 1 not done, with a sentence on stderr; 2 wrong use; 130 interrupted; 141 nobody reads.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from vbdkit import __version__

__all__ = ["main"]

DESCRIPTION = "vbdkit gives Xen guests their disks: a block script for the toolstack, and what goes with it."

EPILOG = """\
first steps:
  vbdkit try                   two guests and a disk image, on any machine, without Xen
  vbdkit check /srv/web.img    may a guest have it, and who has it now?
  vbdkit install --dry-run     what would be put into /etc/xen/scripts
  sudo vbdkit install          put it there; `sudo vbdkit uninstall` brings back what was there

exit status: 0 done, 1 not done (a sentence on stderr says why), 2 wrong use, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. ``argv`` is without the program's name; None reads sys.argv."""
    from vbdkit.cli import attach, check, detach, devd, device_model, gc, install, new_script, run, try_, uninstall
    from vbdkit.cli.report import shown
    from vbdkit.protocol.failure import Failure
    from vbdkit.xenstore.client import StoreError

    parser = argparse.ArgumentParser(
        prog="vbdkit",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vbdkit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for module in (try_, check, install, uninstall, attach, detach, run, new_script, device_model, gc, devd):
        module.add_parser(commands)
    try:
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help(sys.stderr)
            print("\nvbdkit: say which command", file=sys.stderr)
            return 2
        # Whoever ends us politely gets the same clean-up as Ctrl-C gives.
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _end)
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except (Failure, StoreError) as error:
        _flush_or_forget()
        print(f"vbdkit: {error}", file=sys.stderr)
        for line in getattr(error, "way_out", ()):
            print(f"  {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _flush_or_forget()
        return 130
    except BrokenPipeError:
        _forget_stdout()
        return 141
    except OSError as error:  # a full disk, a folder without permission: what no step has expected
        _flush_or_forget()
        where = f"{shown(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        print(f"vbdkit: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except SystemExit as end:  # argparse, and _end below
        _flush_or_forget()
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return status


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _flush_or_forget() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _forget_stdout()


def _forget_stdout() -> None:
    """Let the interpreter's last flush go nowhere: it would complain about the closed pipe."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass
