"""What the commands that act on a guest's disk have in common: their arguments, the store, which guest and disk."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vbdkit.cli import stub
from vbdkit.cli.install import seconds
from vbdkit.cli.report import CommandError, shown
from vbdkit.cli.trust import distrusted
from vbdkit.engine.record import RUN_DIR
from vbdkit.engine.script import LOCK_DIR
from vbdkit.protocol import VdevError, parse_vdev
from vbdkit.toolstack.domains import RESERVED, described, find_domain
from vbdkit.toolstack.lifecycle import Toolstack
from vbdkit.toolstack.nodes import Disk, disks_of, find_disk
from vbdkit.toolstack.settings import DEFAULT, Settings, load_settings
from vbdkit.xenstore.client import Connection

# Seconds that connecting to the store may take.
_PATIENCE = 10.0
# Seconds after which a script's own words are passed on, and after which that is said of one that says nothing.
_SLOW = 1.0
_SILENT = 3.0


def add_domain(parser: argparse.ArgumentParser) -> None:
    """Add the DOMID argument: a number, or a name."""
    parser.add_argument("domain", type=_domain, metavar="DOMID", help="the guest, by its number or its name")


def add_settings(parser: argparse.ArgumentParser, limits: tuple[str, ...]) -> None:
    """Add --config and an option for each of ``limits`` (fields of toolstack.settings.Limits)."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"places, limits and ways (default {DEFAULT}, where that is there)"
    )
    for name in limits:
        parser.add_argument(
            f"--{name}-limit", type=seconds, metavar="SECONDS", help=f"the longest wait for {_LIMITS[name]}"
        )


_LIMITS = {
    "ready": "the backend driver to be ready for the script (10)",
    "script": "the script; it is killed then (40)",
    "close": "the guest to give the disk back (10)",
}


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return what configuration and options say, and for the folders what `vbdkit install` was told. Raises Failure."""
    if arguments.config is None and os.geteuid() == 0 and DEFAULT.exists():
        for found in distrusted(DEFAULT)[:1]:
            raise CommandError(
                f"others than root can change the configuration {DEFAULT}: {shown(found.path)} {found.why}",
                ["it says which scripts root runs; make it root's own, or name another with --config"],
            )
    settings = load_settings(arguments.config)
    told = stub.use(Path(os.fsdecode(settings.script())))
    if settings.run_dir == RUN_DIR:
        settings = replace(settings, run_dir=told.get("run_dir") or RUN_DIR)
    if settings.lock_dir == LOCK_DIR:
        settings = replace(settings, lock_dir=told.get("lock_dir") or LOCK_DIR)
    given = {name: getattr(arguments, f"{name}_limit", None) for name in _LIMITS}
    limits = replace(settings.limits, **{name: value for name, value in given.items() if value is not None})
    return replace(settings, limits=limits, no_script=settings.no_script or getattr(arguments, "no_script", False))


@contextmanager
def toolstack(arguments: argparse.Namespace) -> Iterator[Toolstack]:
    """Connect to the store of this host and be its toolstack. Raises StoreError."""
    settings = settings_of(arguments)
    with Connection.open(time.monotonic() + _PATIENCE) as store:
        stack = Toolstack(store, settings)
        stack.follow = _Meanwhile().look
        yield stack


class _Meanwhile:
    """Says on stderr, in one line, what a script is at that takes its time."""

    def __init__(self) -> None:
        self._told = False
        self._said = b""

    def look(self, seconds: float, said: bytes) -> None:
        """Hear from ``run_script``: its ``follow``."""
        lines = self._said.split(b"\n")[:-1]
        self._said = (self._said + said)[-4000:]  # for the next look: with its last words it may have ended
        if self._told or seconds < (_SLOW if lines else _SILENT):
            return
        self._told = True
        doing = shown(lines[-1]) if lines else f"the disk's script is at work, {seconds:.0f} s so far"
        print(f"vbdkit: {doing}", file=sys.stderr, flush=True)


def domid_of(stack: Toolstack, arguments: argparse.Namespace) -> int:
    """Return which guest is meant. Raises Failure."""
    return find_domain(stack.store, os.fsencode(arguments.domain))


def disk_of(stack: Toolstack, arguments: argparse.Namespace) -> Disk:
    """Return which of a guest's disks is meant by VDEV. Raises CommandError where it has none of that name."""
    domid = domid_of(stack, arguments)
    try:
        devid = parse_vdev(arguments.vdev).devid
    except VdevError as error:
        raise CommandError(str(error)) from error
    disk = find_disk(stack.store, domid, devid)
    if disk is None:
        disks = ", ".join(shown(one.dev) for one in disks_of(stack.store, domid))
        raise CommandError(
            f"{described(stack.store, domid)} has no disk {shown(arguments.vdev)}",
            [f"its disks are: {disks}" if disks else "it has no disks at all (xl list shows the guests)"],
        )
    return disk


def _domain(text: str) -> str:
    if not text or (text.isascii() and text.isdigit() and (len(text) > 5 or int(text) >= RESERVED)):
        raise argparse.ArgumentTypeError(
            f"{shown(text) or 'an empty text'} is no domain (numbers go from 0 to {RESERVED - 1}; xl list shows them)"
        )
    return text
