"""``vbdkit try``: two guests, one image, and all that happens in between, on a host without Xen.

Owns what it is given, the preparations and that nothing stays behind; scene.py plays and tells the story.
"""

import argparse
import io
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vbdkit import __version__
from vbdkit.cli.install import Plan, install, this_package
from vbdkit.cli.interpreter import default_interpreter, probe
from vbdkit.cli.report import CommandError, Report, shown
from vbdkit.cli.scene import Scene
from vbdkit.platform import SYSTEMS
from vbdkit.toolstack import netbsd_host
from vbdkit.toolstack.driver import SECTOR, driver_for
from vbdkit.toolstack.loops import loops_of, why_no_loops
from vbdkit.xenstore.client import Connection
from vbdkit.xenstore.embedded import EmbeddedStore

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DESCRIPTION = """\
Shows a guest getting its disk, without Xen and without changing this machine: an embedded xenstore, the block
script in a process of its own, a model of the kernel's backend driver, and this command in the part of the
toolstack. A second guest asks for the same image and is refused. Then all is taken apart again, and looked
whether anything is left.

As root on Linux the image becomes a real loop device. Elsewhere the script is called the way FreeBSD does it,
where the driver opens the file itself, which needs no privilege. NetBSD's way, with a vnd, can be had too: its
programs (vnconfig and others) are then played by models of them."""

EPILOG = """\
examples:
  vbdkit try
  sudo vbdkit try
  sudo vbdkit try --system netbsd
  sudo vbdkit try /var/lib/xen/images/guest.img     it is read from, never written to

exit status: 0 each step went as it should and nothing is left; 1 not; 2 wrong use; 130 interrupted
(what was made is taken away in any case)"""

# The made-up image: sparse, and recognisable at its start.
IMAGE_SIZE = 4 << 20
GREETING = b"vbdkit try: the first sector of this disk\n"
_NAMES = {"linux": "Linux", "netbsd": "NetBSD"}
# sockaddr_un holds 104 bytes on the BSDs, 108 on Linux.
_SOCKET_LIMIT = 100


def add_parser(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "try",
        help="show a guest getting its disk, without Xen",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="a disk image or block device (default: one is made)")
    parser.add_argument(
        "--system", choices=SYSTEMS, help="whose way of calling scripts to follow (linux and netbsd need root)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks."""
    report = Report()
    begun = time.monotonic()
    image = None if arguments.image is None else _users_image(arguments.image)
    system, why = _system(arguments.system)
    stack = ExitStack()
    try:
        place = Path(tempfile.mkdtemp(prefix="vbdkit-try-", dir=_temporary()))
        stack.callback(shutil.rmtree, place)
        scene = _prepare(stack, report, place, image, system, why)
        scene.play()
        scene.look_back()
    finally:
        with _undisturbed():
            stack.close()
    # The folder is gone with all that was in it; a loop device would have outlived it.
    left = loops_of(image) if image is not None else set()
    if os.path.lexists(place) or left - scene.loops_before:
        scene.problem(f"left behind: {' '.join([shown(place), *sorted(left)])}")
    report.line()
    if scene.problems:
        for problem in scene.problems:
            report.line(report.paint("red", f"Not as it should be: {problem}"))
        return 1
    report.line(report.paint("green", f"All went as it should, in {time.monotonic() - begun:.1f} s. Nothing is left."))
    report.line(f"For real guests: {'' if os.geteuid() == 0 else 'sudo '}vbdkit install")
    return 0


def _prepare(stack: ExitStack, report: Report, place: Path, image: Path | None, system: str, why: str) -> Scene:
    """Make the stage: image, store, installed script, driver. Each is on ``stack`` to be taken away."""
    what = "" if image is None else "yours; it is only read from"
    if image is None:
        image = place / "disk.img"
        with image.open("wb") as file:
            file.write(GREETING)
            file.truncate(IMAGE_SIZE)
        what = f"{IMAGE_SIZE >> 20} MiB, made for this"
    python = _script_python()
    for name in ("scripts", "records", "locks"):
        (place / name).mkdir()
    report.line(report.paint("bold", f"vbdkit {__version__}: two guests and one disk image, without Xen"))
    report.line()
    report.item("image", f"{shown(image)} ({what})")
    report.item("store", f"{shown(place / 'store')} (embedded; it speaks Xen's wire protocol)")
    report.item("script", f"{shown(place / 'scripts' / 'block')} (installed there; runs under {shown(python)})")
    device = image.is_block_device()
    settings = {}
    if system == "linux":
        what = "the device" if device else "a loop device"
        report.item("called", f"as on Linux: the driver opens {what} by its number")
    elif system == "netbsd":
        what = "the device" if device else "a vnd"
        report.item("called", f"as on NetBSD: the driver opens {what} by its number (a vnd is played by a loop device)")
        settings = netbsd_host.make(place / "netbsd", python)
        stack.callback(netbsd_host.take_away, place / "netbsd")
    else:
        what = "device" if device else "file"
        report.item("called", f"as on FreeBSD: the driver opens the {what} itself" + (f" ({why})" if why else ""))
    quiet = Report(io.StringIO())
    install(
        Plan(
            scripts_dir=place / "scripts",
            python=python,
            package=this_package(),
            system=system,
            run_dir=place / "records",
            lock_dir=place / "locks",
            settings=settings,
            trusting=True,  # it runs once, with the rights and from the place that this command has already
        ),
        quiet,
    )
    socket = place / "store"
    stack.enter_context(EmbeddedStore(os.fsencode(socket), domid=0))
    environ = {**os.environb, b"XENSTORED_PATH": os.fsencode(socket)}
    driver = stack.enter_context(driver_for(system)(environ))
    # The deadline of a connection covers all that is said on it: the longest that all scripts together may take.
    store = stack.enter_context(Connection.open(time.monotonic() + 600, environ))
    scene = Scene(report, system, image, place, store, driver, environ)
    stack.callback(scene.clean_up)
    return scene


def _users_image(name: str) -> Path:
    """Return the user's image. Raises CommandError where a guest could not be given it."""
    path = Path(os.path.abspath(name))
    try:
        path.stat()
        if path.is_dir():
            raise CommandError(f"{shown(path)} is a folder; a guest's disk is an image file or a block device")
        if not (path.is_file() or path.is_block_device()):
            raise CommandError(f"{shown(path)} is neither a file nor a block device")
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < SECTOR:
                raise CommandError(f"{shown(path)} is smaller than one sector ({SECTOR} bytes)")
    except OSError as error:
        raise CommandError(f"{shown(path)} cannot be read: {error.strerror}") from error
    loops = sorted(loops_of(path))
    if loops:
        raise CommandError(
            f"{shown(path)} is in use: {', '.join(loops)} {'is' if len(loops) == 1 else 'are'} bound to it",
            ["try it on a copy, or without an image: vbdkit try"],
        )
    return path


def _system(asked: str | None) -> tuple[str, str]:
    """Return whose convention to follow, and why it is not this system's own where it could have been."""
    if asked == "freebsd" or (asked is None and sys.platform != "linux"):
        return "freebsd", ""
    reason = why_no_loops()
    if asked is None:
        return ("freebsd", f"no loop device: {reason}") if reason else ("linux", "")
    if reason:
        raise CommandError(
            f"the {_NAMES[asked]} way needs a real loop device: {reason}",
            [f"as root: sudo vbdkit try --system {asked}", "without privilege: vbdkit try --system freebsd"],
        )
    return asked, ""


def _script_python() -> Path:
    """Return the system's Python where it is new enough, else the one that runs."""
    system = Path("/usr/bin/python3")
    try:
        return probe(system).path
    except CommandError:
        return default_interpreter()


def _temporary() -> str:
    """Return where to make the folder: the user's choice, unless a socket's path would be too long there."""
    chosen = tempfile.gettempdir()
    return chosen if len(os.fsencode(chosen)) + len("/vbdkit-try-12345678/store") < _SOCKET_LIMIT else "/tmp"  # noqa: S108


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Take apart to the end, however often somebody presses Ctrl-C. Each step in it is bounded."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
