"""``vbdkit install``: puts the block script where the toolstack looks for it, and keeps what was there.

Owns the checks and the telling; stub.py owns the files, interpreter.py the Python that runs them, trust.py who
could change them.
"""

import argparse
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import vbdkit
from vbdkit.cli import stub
from vbdkit.cli.interpreter import (
    Interpreter,
    check_import,
    compile_package,
    default_interpreter,
    probe,
)
from vbdkit.cli.report import CommandError, Report, shown
from vbdkit.cli.trust import Distrust, distrusted, distrusted_package
from vbdkit.engine.script import TIME_LIMIT
from vbdkit.platform import SYSTEMS, current, load
from vbdkit.toolstack.script import HOTPLUG_TIMEOUT
from vbdkit.toolstack.settings import default_scripts_dir

if TYPE_CHECKING:
    from argparse import _SubParsersAction

SHARED_PLACE = Path("/usr/local/lib/vbdkit")

DESCRIPTION = """\
Puts a small executable named `block` into the folder of Xen's hotplug scripts, and beside it the library that custom
scripts in shell source, `block-common.sh`. The toolstack starts `block` for
every disk that is a file or a device; it runs this installation of vbdkit under a fixed Python, without
site-packages and without looking at the environment. What was there stays under NAME.before-vbdkit, and
`vbdkit uninstall` brings it back. Install again after moving or updating vbdkit, as often as you like."""

EPILOG = """\
examples:
  vbdkit install --dry-run
  sudo vbdkit install
  sudo vbdkit install --python /usr/bin/python3 --scripts-dir /opt/xen/etc/xen/scripts

exit status: 0 installed; 1 not, and a sentence says why (nothing was changed); 2 wrong use"""


@dataclass(frozen=True)
class Plan:
    """What to install: where, under which Python, and what the script is told.

    ``settings`` are those that only this system has (its package's ``configure``).
    ``trusting`` leaves out the check of who else can write to the package; for scripts that only this process runs.
    """

    scripts_dir: Path
    python: Path
    package: Path
    system: str | None = None
    run_dir: Path | None = None
    lock_dir: Path | None = None
    deadline: float | None = None
    settings: Mapping[str, bytes] = field(default_factory=dict)
    trusting: bool = False


def this_package() -> Path:
    """Return the folder of the package that runs, links resolved."""
    return Path(os.path.realpath(vbdkit.__file__)).parent


def add_parser(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "install",
        help="put the block script where Xen's toolstack looks for it",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    here = current()
    parser.add_argument(
        "--scripts-dir",
        type=folder,
        metavar="DIR",
        help=f"Xen's folder of hotplug scripts (here {default_scripts_dir(here)})",
    )
    parser.add_argument(
        "--python",
        type=Path,
        default=default_interpreter(),
        metavar="PATH",
        help="the interpreter that runs the script (%(default)s); 3.11 or newer",
    )
    parser.add_argument("--system", choices=SYSTEMS, help=f"whose way of calling scripts to follow (here {here})")
    parser.add_argument("--run-dir", type=folder, metavar="DIR", help="where the script keeps a record per disk")
    parser.add_argument("--lock-dir", type=folder, metavar="DIR", help="where scripts that share disks lock")
    parser.add_argument(
        "--deadline",
        type=seconds,
        metavar="SECONDS",
        help=f"when the script gives up and says for what it waited ({TIME_LIMIT:g}; below the toolstack's "
        f"{HOTPLUG_TIMEOUT:g})",
    )
    parser.add_argument(
        "--physical-device",
        choices=["decimal", "hex"],
        help="NetBSD: the form of that node; its driver reads decimal, the protocol's document says hex major:minor",
    )
    parser.add_argument("--dry-run", action="store_true", help="check and tell, change nothing")
    parser.set_defaults(run=run)


def folder(text: str) -> Path:
    """Return the absolute path that an option names. An empty one is wrong use."""
    if not text:
        raise argparse.ArgumentTypeError("the name of a folder is empty")
    return Path(os.path.abspath(text))


def seconds(text: str) -> float:
    """Return the number of seconds that an option names, above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks."""
    system = arguments.system or current()
    load(system)  # a system that vbdkit does not serve gets its sentence here, not when a guest starts
    settings = {}
    if arguments.physical_device is not None:
        if system != "netbsd":
            raise CommandError(
                "--physical-device is NetBSD's: the drivers of the other systems read one form only",
                ["leave it out, or name the system too: --system netbsd"],
            )
        settings["physical_device"] = arguments.physical_device.encode()
    plan = Plan(
        scripts_dir=arguments.scripts_dir or default_scripts_dir(system),
        python=arguments.python,
        package=this_package(),
        system=None if system == sys.platform else system,  # what hot.start takes it for
        run_dir=arguments.run_dir,
        lock_dir=arguments.lock_dir,
        deadline=arguments.deadline,
        settings=settings,
    )
    report = Report()
    install(plan, report, dry_run=arguments.dry_run)
    return 0


def install(plan: Plan, report: Report, dry_run: bool = False) -> None:
    """Check, compile and put the script in place, telling each step to ``report``.

    Raises CommandError before anything is changed, or where the folder cannot be written to.
    """
    block = plan.scripts_dir / stub.NAME
    _check_folder(plan.scripts_dir)
    interpreter = probe(plan.python)
    as_root = os.geteuid() == 0 and not plan.trusting
    if as_root:
        _check_trust(plan, interpreter)
    check_import(interpreter, plan.package)
    report.item("package", f"{shown(plan.package)}{' (only root can change it)' if as_root else ''}")
    report.item("interpreter", f"{shown(interpreter.path)} ({'.'.join(map(str, interpreter.version))})")
    if as_root:
        for found in distrusted(plan.scripts_dir)[:1]:
            report.item("beware", f"others can replace the script: {shown(found.path)} {found.why}", "yellow")
    if plan.deadline is not None and plan.deadline >= HOTPLUG_TIMEOUT:
        report.item(
            "beware",
            f"the toolstack kills a script after {HOTPLUG_TIMEOUT:g} s and reads no error then; with a deadline of "
            f"{plan.deadline:g} s nobody will learn what it waited for",
            "yellow",
        )
    made = stub.Stub(
        interpreter.shebang,
        plan.package,
        plan.system,
        plan.run_dir,
        plan.lock_dir,
        plan.deadline,
        plan.settings,
        interpreter.path,
    )
    library = plan.scripts_dir / stub.LIBRARY
    texts = [(library, made.library(plan.scripts_dir), 0o644), (block, made.text(), 0o755)]
    if dry_run:
        for path, text, _ in texts:
            _tell_dry_run(report, path, text)
        return
    why_not = compile_package(interpreter, plan.package, plan.system or current())
    if why_not is None:
        report.item("compiled", "its modules, for this interpreter")
    else:
        report.item("not compiled", f"{why_not}; the script works, each start takes longer", "yellow")
    for path, text, mode in texts:
        _place(report, path, text, mode)


def _place(report: Report, path: Path, text: bytes, mode: int) -> None:
    try:
        before, moved = stub.place(path, text, mode)
    except OSError as error:
        raise CommandError(
            f"{shown(error.filename or path)} cannot be written: {error.strerror}",
            _writing_ways_out(error),
        ) from error
    if moved is not None:
        report.item("moved", f"the {stub.kept(path).name} of an earlier install to {shown(moved.name)}")
    if before == "kept":
        report.item("kept", f"the {path.name} that was there, as {shown(stub.kept(path))}")
    words = {"same": ("unchanged", " (it is there already)"), "replaced": ("replaced", " (an earlier one of vbdkit)")}
    word, note = words.get(before, ("wrote", ""))
    report.item(word, f"{shown(path)}{note}", "green")


def _check_folder(scripts_dir: Path) -> None:
    if not scripts_dir.is_dir():
        what = "is not a folder" if scripts_dir.exists() else "is not there"
        raise CommandError(
            f"the folder of Xen's block scripts, {shown(scripts_dir)}, {what}",
            [
                "is Xen's toolstack installed (Debian: xen-utils-common)?",
                "name another folder: vbdkit install --scripts-dir DIR",
            ],
        )
    for path in (scripts_dir / stub.NAME, scripts_dir / stub.LIBRARY):
        if stub.there(path):
            kind = path.lstat().st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
                raise CommandError(f"{shown(path)} is neither a file nor a link; move it away first")


def _check_trust(plan: Plan, interpreter: Interpreter) -> None:
    """Refuse to let root run what others can change."""
    package = distrusted_package(plan.package)
    python = distrusted(interpreter.path)
    for where in interpreter.folders:
        if where.exists():
            python += distrusted(where)
    found = list(dict.fromkeys(package + python))
    if not found:
        return
    first = found[0]
    above = f", above {shown(plan.package)}" if first.path in plan.package.parents else ""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise CommandError(
        f"root would run what others can change: {shown(first.path)} {first.why}{above}{more}",
        _trust_ways_out(plan, package, found),
    )


def _trust_ways_out(plan: Plan, package: list[Distrust], found: list[Distrust]) -> list[str]:
    lines = [f"{shown(one.path)} {one.why}" for one in found[1:6]]
    if len(found) > 6:
        lines.append(f"... and {len(found) - 6} more")
    if package:
        checkout = plan.package.parent.parent
        source = shown(checkout) if (checkout / "pyproject.toml").is_file() else "vbdkit"
        lines += [
            "install vbdkit where only root can write, and from there:",
            f"  sudo python3 -m pip install --target {SHARED_PLACE} {source}",
            f"  (or, without pip: sudo mkdir -p {SHARED_PLACE} && sudo cp -R {shown(plan.package)} {SHARED_PLACE}/)",
            f"  sudo env PYTHONPATH={SHARED_PLACE} {shown(plan.python)} -m vbdkit install",
        ]
    else:
        lines.append("name an interpreter of the system: vbdkit install --python /usr/bin/python3")
    own = [one.path for one in found if one.path == plan.package or plan.package in one.path.parents]
    if len(own) == len(found):
        tree = shown(plan.package)
        lines += [
            "or, where this is the place to keep it:",
            f"  sudo chown -R root: {tree} && sudo chmod -R go-w {tree}",
        ]
    return lines


def _tell_dry_run(report: Report, path: Path, text: bytes) -> None:
    kept = stub.kept(path)
    if stub.there(path) and not stub.is_ours(path):
        report.item("would keep", f"the {path.name} that is there, as {shown(kept)}")
        if stub.there(kept):
            report.item("", f"(the {kept.name} of an earlier install gets a number, unless it is the same)")
    lines = text.decode("utf-8", "backslashreplace").splitlines()
    report.item("would write", f"{shown(path)}:")
    for line in lines[:12]:
        report.line(f"    {line}")
    if len(lines) > 12:
        report.line(f"    ... and {len(lines) - 12} lines more")


def _writing_ways_out(error: OSError) -> list[str]:
    if isinstance(error, PermissionError) and os.geteuid() != 0:
        return ["run it as root: sudo vbdkit install"]
    return ["name another folder: vbdkit install --scripts-dir DIR"]
