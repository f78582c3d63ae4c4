"""``vbdkit run``: one block script by hand, and all that it did. Owns the arguments and the output."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vbdkit.cli.domain import add_domain, add_settings, disk_of, toolstack
from vbdkit.cli.report import CommandError, Report, shown
from vbdkit.protocol.invocation import ADD, REMOVE, build_invocation
from vbdkit.protocol.nodes import HOTPLUG_ERROR, STATE
from vbdkit.toolstack.domains import described
from vbdkit.toolstack.snapshot import Change, changes, take
from vbdkit.toolstack.ways import BY_SCRIPT, PATH_ONLY, PUBLISH

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from vbdkit.toolstack.nodes import Disk

DESCRIPTION = """\
Runs the block script of a disk once, as the toolstack calls it (arguments, environment, empty stdin, time limit), and
shows how it was called, the nodes that it found, what it says while it runs, how it ended and when, and what has
changed in the whole store meanwhile. The nodes have to be there: a failed `xl block-attach` leaves them, and a disk
that a guest has has them. Nothing else is done: no node is made, no state is waited for, nothing is taken back.

`remove` takes the device from under a guest that still uses the disk."""

EPILOG = """\
examples:
  vbdkit run add web xvdb
  vbdkit run --script ./block-new add 5 xvdb      another script than the nodes name

exit status: 0 the script ended with 0; 1 it did not, or could not be run, and a sentence says why; 2 wrong use"""


def add_parser(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "run",
        help="run one block script by hand and show what it did",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--script", type=Path, metavar="FILE", help="run this one in place of the disk's own")
    add_settings(parser, ("script",))
    parser.add_argument("verb", choices=(ADD, REMOVE), help="what to ask of it")
    add_domain(parser)
    parser.add_argument("vdev", metavar="VDEV", help="the disk, by its name in the guest (xvdb) or its number")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks."""
    report = Report()
    with toolstack(arguments) as stack:
        disk = disk_of(stack, arguments)
        script = disk.script if arguments.script is None else os.fsencode(os.path.abspath(arguments.script))
        if not script:
            raise CommandError(
                f"the nodes of the disk name no script (it is served by {shown(disk.kind)})",
                ["name one: vbdkit run --script FILE ..."],
            )
        # By hand it is always a process, also for a disk that was attached without one.
        disk = replace(disk, script=script, way=PATH_ONLY if disk.way == PATH_ONLY else BY_SCRIPT)
        _tell_call(
            report, stack.settings.system, disk, arguments.verb, stack.own_domid, described(stack.store, disk.domid)
        )
        stack.allow()
        before = take(stack.store, [b"/"])
        nodes = {path: value for path, value in before.items() if path.startswith(disk.backend + b"/")}
        report.line("nodes")
        for path, value in sorted(nodes.items()):
            report.line(f"  {shown(path.removeprefix(disk.backend + b'/'))} = {shown(value)}")
        if not nodes:
            report.line("  none")
        report.line("output")
        live = _Live(report)
        stack.follow = live.more
        done = stack.start_script(disk, arguments.verb)
        live.end(done.output)
        stack.allow()
        after = take(stack.store, [b"/"])
    report.line("changes in the store")
    found = changes(before, after)
    for change in found:
        report.line("  " + _told(report, change, disk))
    if not found:
        report.line("  none")
    ended = f"exit {done.status}" if done.status >= 0 else f"ended by signal {-done.status}"
    if done.killed:
        ended = f"killed after {stack.settings.limits.script:g} s (C6)"
    report.line(f"{report.paint('red' if done.status else 'green', ended)} after {done.seconds * 1000:.1f} ms")
    if done.status:
        raise CommandError(shown(done.error) if done.error else f"{shown(script)} {arguments.verb}: {ended}")
    return 0


class _Live:
    """Shows a script's output line by line while it comes."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._shown = 0
        self._rest = b""

    def more(self, seconds: float, said: bytes) -> None:
        self._shown += len(said)
        *lines, self._rest = (self._rest + said).split(b"\n")
        for line in lines:
            self._report.line(f"  {shown(line)}")

    def end(self, output: bytes) -> None:
        """Show what is left of all ``output``."""
        if not output:
            self._report.line("  none")
        self.more(0, output[self._shown :])
        if self._rest:
            self._report.line(f"  {shown(self._rest)}")


def _tell_call(report: Report, system: str, disk: "Disk", verb: str, own_domid: int, guest: str) -> None:
    argv, environ = build_invocation(system, disk.script, verb, disk.kind, disk.domid, disk.devid, own_domid)
    if disk.way == PATH_ONLY:
        environ = {**environ, **PUBLISH}
    report.line(f"{guest}, disk {shown(disk.dev)}: {' '.join(shown(word) for word in argv)}")
    for name, value in environ.items():
        report.line(f"  {shown(name)}={shown(value)}")


def _told(report: Report, change: Change, disk: "Disk") -> str:
    path = shown(change.path)
    if change.path == disk.backend + b"/" + STATE:
        path += " (by the backend driver, not the script)"
    if change.before is None:
        style = "red" if change.path.endswith(b"/" + HOTPLUG_ERROR) else "green"
        return report.paint(style, f"+ {path} = {shown(change.after or b'')}")
    if change.after is None:
        return report.paint("yellow", f"- {path} (was {shown(change.before)})")
    return f"~ {path} = {shown(change.after)} (was {shown(change.before)})"
