"""``vbdkit uninstall``: takes installed block scripts away and brings back what was there before."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vbdkit.cli import offers, stub
from vbdkit.cli.install import folder
from vbdkit.cli.report import CommandError, Report, shown
from vbdkit.engine.record import RUN_DIR
from vbdkit.platform import current
from vbdkit.toolstack.settings import default_scripts_dir

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DESCRIPTION = """\
Takes away what `vbdkit install` wrote: `block`, `block-common.sh` and all custom scripts, or those that are named.
Where others were there before, they are back afterwards: the same files or links, with their modes and owners. What is
not vbdkit's is not touched."""

EPILOG = """\
examples:
  sudo vbdkit uninstall
  sudo vbdkit uninstall --scripts-dir /opt/xen/etc/xen/scripts
  sudo vbdkit uninstall block-lvm

exit status: 0 gone; 1 not, and a sentence says why (nothing was changed); 2 wrong use"""


def add_parser(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "uninstall",
        help="take the block script away, bring back what was there",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a script (default: all that vbdkit installed)")
    default = default_scripts_dir(current())
    parser.add_argument(
        "--scripts-dir",
        type=folder,
        default=default,
        metavar="DIR",
        help="Xen's folder of hotplug scripts (here %(default)s)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks."""
    uninstall(arguments.scripts_dir, Report(), arguments.names)
    return 0


def uninstall(scripts_dir: Path, report: Report, names: Sequence[str] = ()) -> None:
    """Take scripts of ``scripts_dir`` away, all of ours where no names are given, telling ``report``.

    Raises CommandError where none is ours, or one that is named is not; then nothing is changed.
    """
    block = scripts_dir / stub.NAME
    if names:
        ours = [scripts_dir / name for name in dict.fromkeys(names)]
        for path in ours:
            if path.parent != scripts_dir or not stub.is_ours(path):
                raise _nothing(path)
        library = scripts_dir / stub.LIBRARY
        if block in ours and library not in ours and stub.is_ours(library):
            ours.append(library)  # they came together
    else:
        custom = (scripts_dir / name for name in offers.installed(scripts_dir))
        ours = [path for path in (*custom, block, scripts_dir / stub.LIBRARY) if stub.is_ours(path)]
        if not ours or (not stub.there(block) and stub.there(stub.kept(block))):
            raise _nothing(block)
    told = stub.settings(block) or stub.settings(ours[0])
    run_dir = Path(os.fsdecode(told.get("run_dir") or RUN_DIR))
    for path in ours:
        try:
            brought_back = stub.restore(path)
        except OSError as error:
            way_out = ["run it as root: sudo vbdkit uninstall"] if os.geteuid() != 0 else []
            raise CommandError(f"{shown(path)} cannot be taken away: {error.strerror}", way_out) from error
        report.item("took away", shown(path), "green")
        if brought_back:
            report.item("brought back", f"the {path.name} from before")
        elif path == block:
            report.item("nothing", f"was there before: file: and phy: disks have no {stub.NAME} now", "yellow")
    for path in ours:
        for name in stub.older(path):
            report.item("left", f"{shown(name)}, from an earlier install")
    if not names and block not in ours and stub.there(block):
        report.item("left", f"{shown(block)}, which is not vbdkit's", "yellow")
    _tell_of_records(run_dir, ours, report, everything=not names)


def _tell_of_records(run_dir: Path, gone: list[Path], report: Report, everything: bool) -> None:
    """Tell of disks that are attached still: all, or those that only the scripts which are gone could take back."""
    try:
        found = sorted(path for path in run_dir.iterdir() if not path.name.startswith("."))
        scripts = {f"script {path}" for path in gone}
        if not everything and not any(path.name == stub.NAME for path in gone):
            found = [path for path in found if scripts & set(path.read_text("ascii", "replace").splitlines())]
    except OSError:
        found = []
    if found:
        whose = "that vbdkit attached" if everything else "that they attached and only they can take back"
        report.item(
            "left",
            f"{len(found)} {'entry' if len(found) == 1 else 'entries'} in {shown(run_dir)}: "
            f"disks {whose}; detach them, or install again",
            "yellow",
        )


def _nothing(block: Path) -> CommandError:
    """Why there is nothing to take away."""
    kept = stub.kept(block)
    what = "is not vbdkit's" if stub.there(block) else "is not there"
    way_out = []
    if stub.there(kept):
        way_out = [f"the one from before vbdkit is {shown(kept)}"]
        if not stub.there(block):
            way_out.append(f"bring it back: mv {shown(kept)} {shown(block)}")
    elif not stub.there(block):
        way_out = ["was it installed elsewhere? vbdkit uninstall --scripts-dir DIR"]
    return CommandError(f"{shown(block)} {what}; nothing to take away", way_out)
