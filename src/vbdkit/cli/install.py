"""``vbdkit install``: puts block scripts where the toolstack looks for them, and keeps what was there.

Owns the checks and the telling; stub.py owns the files, offers.py what there is, interpreter.py the Python that runs
them, trust.py who could change them.
"""

import argparse
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import vbdkit
from vbdkit.cli import offers, stub
from vbdkit.cli.interpreter import (
    Interpreter,
    check_import,
    compile_package,
    default_interpreter,
    describe,
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
`vbdkit uninstall` brings it back. Install again after moving or updating vbdkit, as often as you like; the custom
scripts that were installed before are brought up to date with it.

With names, those custom scripts are installed and nothing else: vbdkit's own, and those that other packages offer
(`--list` shows them). What is not said on the command line is then as for the `block` that is installed."""

EPILOG = """\
examples:
  vbdkit install --dry-run
  sudo vbdkit install
  sudo vbdkit install --python /usr/bin/python3 --scripts-dir /opt/xen/etc/xen/scripts
  vbdkit install --list
  sudo vbdkit install block-lvm

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
        help="put block scripts where Xen's toolstack looks for them",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    here = current()
    parser.add_argument("names", nargs="*", metavar="NAME", help="a custom script, such as block-lvm (default: block)")
    parser.add_argument("--list", action="store_true", help="show what can be installed, and what is")
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


@dataclass(frozen=True)
class _File:
    """One file to be put in place."""

    path: Path
    text: bytes
    mode: int = 0o755


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
    scripts_dir = arguments.scripts_dir or default_scripts_dir(arguments.system or current())
    if arguments.list:
        _list(scripts_dir, Report())
        return 0
    # Scripts that share disks have to look for each other's records and locks in the same places.
    told = stub.settings(scripts_dir / stub.NAME) if arguments.names else {}
    system = arguments.system or told.get("system") or current()
    load(system)  # a system that vbdkit does not serve gets its sentence here, not when a guest starts
    settings = stub.own_settings(told)
    if arguments.physical_device is not None:
        if system != "netbsd":
            raise CommandError(
                "--physical-device is NetBSD's: the drivers of the other systems read one form only",
                ["leave it out, or name the system too: --system netbsd"],
            )
        settings["physical_device"] = arguments.physical_device.encode()
    plan = Plan(
        scripts_dir=scripts_dir,
        python=arguments.python,
        package=this_package(),
        system=None if system == sys.platform else system,  # what hot.start takes it for
        run_dir=arguments.run_dir or _place_in(told, "run_dir"),
        lock_dir=arguments.lock_dir or _place_in(told, "lock_dir"),
        deadline=arguments.deadline,
        settings=settings,
    )
    report = Report()
    install(plan, report, arguments.names, dry_run=arguments.dry_run)
    return 0


def _place_in(told: Mapping[str, bytes], name: str) -> Path | None:
    return Path(os.fsdecode(told[name])) if name in told else None


def _list(scripts_dir: Path, report: Report) -> None:
    """Show what there is, and what of it is installed."""
    every = offers.offers()
    report.line(f"{shown(scripts_dir)}:")
    rows = [(stub.NAME, offers.state(scripts_dir / stub.NAME), f"vbdkit {vbdkit.__version__}, with {stub.LIBRARY}")]
    for offer in every:
        state = "unusable" if offer.trouble else offers.state(scripts_dir / offer.name, offer)
        rows.append((offer.name, state, f"{offer.source} ({offer.storage})" if not offer.trouble else offer.trouble))
    known = {offer.name for offer in every}
    rows += [
        (name, "installed", "no package offers it any more")
        for name in offers.installed(scripts_dir)
        if name not in known
    ]
    width = max(len(name) for name, _, _ in rows)
    for name, state, source in rows:
        column = f"{state:<18}"
        if state != "not installed":
            column = report.paint("green" if state == "installed" else "yellow", column)
        report.line(f"  {shown(name):<{width}}  {column}  {shown(source)}")


def install(plan: Plan, report: Report, names: Sequence[str] = (), dry_run: bool = False) -> None:
    """Check, compile and put scripts in place, telling each step to ``report``.

    Without names: ``block``, its library, and what was installed before. Raises CommandError before anything is
    changed, or where the folder cannot be written to.
    """
    wanted = [offers.find(name) for name in dict.fromkeys(names) if name not in (stub.NAME, stub.LIBRARY)]
    main = not names or len(wanted) < len(set(names))
    _check_folder(plan.scripts_dir, [stub.NAME, stub.LIBRARY] if main else [])
    _check_folder(plan.scripts_dir, [offer.name for offer in wanted])
    interpreter = probe(plan.python)
    as_root = os.geteuid() == 0 and not plan.trusting
    if as_root:
        _check_trust(plan, interpreter)
    check_import(interpreter, plan.package)
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
    files = [_custom(plan, made, interpreter, offer, as_root) for offer in wanted]
    if main:
        files += [
            _File(plan.scripts_dir / stub.LIBRARY, made.library(plan.scripts_dir), 0o644),
            _File(plan.scripts_dir / stub.NAME, made.text()),
        ]
    report.item("package", f"{shown(plan.package)}{' (only root can change it)' if as_root else ''}")
    report.item("interpreter", f"{shown(interpreter.path)} ({'.'.join(map(str, interpreter.version))})")
    for offer in wanted:
        if offer.folder is not None:
            report.item("package", f"{shown(offer.top)} ({shown(offer.source)})")
    if not names:
        files = [*_up_to_date(plan, made, interpreter, report, as_root), *files]
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
    if dry_run:
        for file in files:
            _tell_dry_run(report, file.path, file.text)
        return
    why_not = compile_package(interpreter, plan.package, plan.system or current())
    if why_not is None:
        report.item("compiled", "its modules, for this interpreter")
    else:
        report.item("not compiled", f"{why_not}; the script works, each start takes longer", "yellow")
    for file in files:
        _place(report, file.path, file.text, file.mode)


def _custom(plan: Plan, made: stub.Stub, interpreter: Interpreter, offer: offers.Offer, as_root: bool) -> _File:
    """Return the script of an offer. Raises CommandError where it cannot be imported, or root should not."""
    if as_root and offer.folder is not None:
        _check_trust_of(offer, distrusted(offer.folder) + (distrusted_package(offer.top) if offer.top.exists() else []))
    manifest, loaded = describe(interpreter, plan.package, offer.storage, offer.folder)
    if as_root and offer.folder is not None:
        _check_trust_of(offer, [found for file in loaded if file.exists() for found in distrusted(file)])
    return _File(plan.scripts_dir / offer.name, made.custom(offer.storage, offer.folder, manifest))


def _up_to_date(plan: Plan, made: stub.Stub, interpreter: Interpreter, report: Report, as_root: bool) -> list[_File]:
    """Return the custom scripts of an earlier install anew; one that cannot be had any more is told of, and stays."""
    files = []
    for name in offers.installed(plan.scripts_dir):
        limit = plan.deadline or stub.settings(plan.scripts_dir / name).get("time_limit")
        try:
            files.append(_custom(plan, replace(made, deadline=limit), interpreter, offers.find(name), as_root))
        except CommandError as error:
            report.item("left", f"{name} as it was: {error}", "yellow")
    return files


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


def _check_folder(scripts_dir: Path, names: Sequence[str]) -> None:
    if not scripts_dir.is_dir():
        what = "is not a folder" if scripts_dir.exists() else "is not there"
        raise CommandError(
            f"the folder of Xen's block scripts, {shown(scripts_dir)}, {what}",
            [
                "is Xen's toolstack installed (Debian: xen-utils-common)?",
                "name another folder: vbdkit install --scripts-dir DIR",
            ],
        )
    for path in (scripts_dir / name for name in names):
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


def _check_trust_of(offer: offers.Offer, found: list[Distrust]) -> None:
    """Refuse to let root run another package that others can change."""
    if not found:
        return
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    project = offer.source.rpartition(" ")[0]
    raise CommandError(
        f"root would run what others can change for {offer.name}: {shown(found[0].path)} {found[0].why}{more}",
        [
            f"install {shown(project)} where only root can write, and from there:",
            f"  sudo python3 -m pip install --target {SHARED_PLACE} {shown(project)}",
            f"  sudo env PYTHONPATH={SHARED_PLACE} python3 -m vbdkit install {offer.name}",
        ],
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
