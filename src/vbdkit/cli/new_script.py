"""``vbdkit new-script``: a custom script in Python to begin with, and a test of it that passes. Owns both texts."""

import argparse
import keyword
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbdkit.cli import stub
from vbdkit.cli.install import this_package
from vbdkit.cli.interpreter import default_interpreter, probe
from vbdkit.cli.report import CommandError, Report, shown
from vbdkit.cli.trust import distrusted_package
from vbdkit.platform import current
from vbdkit.toolstack.settings import default_scripts_dir

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DESCRIPTION = """\
Writes a custom block script in Python that works as it is, `block-NAME`, and beside it a test, `test_block_NAME.py`,
that runs it without Xen and passes. The script gives each guest a copy of a template; what is to be changed for another
kind of storage is said in it. docs/tutorial-custom-script.md goes on from there."""

EPILOG = """\
examples:
  vbdkit new-script tape
  ./test_block_tape.py                      (as root with real loop devices; else the way FreeBSD does it)
  sudo cp block-tape /etc/xen/scripts/      then, for a guest: script=block-tape,vdev=xvda,target=/srv/debian.img

exit status: 0 written; 1 not, and a sentence says why (a file that is there is not overwritten); 2 wrong use"""

_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
_LONGEST = 40

SCRIPT = '''\
#!{python} -IS
# block-script: {{"path-only": true}}
"""A custom block script: {script} --help tells what it does, ./{test} tries it."""

import os
import sys

sys.path.append({folder})  # where vbdkit is
from vbdkit.custom import Storage, main


class {kind}(Storage):
    """A copy of a template for each guest, thrown away with the disk."""

    syntax = "TEMPLATE"  # of the target; words in capitals are its fields: "VG/LV[@SNAPSHOT]" has three
    example = "/srv/templates/debian.img"
    tools = {{"cp": "coreutils"}}  # the programs that it needs, and the packages that have them

    def attach(self, target, mode):
        """Make the target into a device or a file and return its path."""
        copy = f"{{target['template']}}.{{self.vbd}}"  # no other disk on this host has the name vbd-5-51712
        self.note(copy=copy)  # before it is made: then detach knows of it, whatever ends this script
        self.tool("cp", target["template"], copy)  # no shell; where it fails, what it said is the error
        return copy

    def detach(self, made):
        """Take back what is there of it: after a failed attach, after a kill, when the target is gone."""
        if "copy" in made and os.path.exists(made["copy"]):
            os.remove(made["copy"])


main({kind}{settings})
'''

TEST = '''\
#!{python} -I
"""Tries {script} without Xen: ./{test}, or pytest."""

import sys
from pathlib import Path

sys.path.append({folder})  # where vbdkit is
from vbdkit.trial import Failure, Trial, run_tests

SCRIPT = Path(__file__).resolve().with_name({script!r})


def test_a_guest_reads_and_writes_its_disk():
    with Trial(SCRIPT) as trial:
        disk = trial.attach(trial.image("template.img", b"hello"))
        assert disk.read(0).startswith(b"hello")
        disk.write(1, b"world")
        assert disk.read(1).startswith(b"world")
        trial.detach(disk)
        assert trial.left() == []


def test_each_guest_has_a_copy_of_its_own():
    with Trial(SCRIPT) as trial:
        template = trial.image("template.img", b"hello")
        alice, bob = trial.attach(template, guest=1), trial.attach(template, guest=2)
        alice.write(0, b"alice was here")
        assert bob.read(0).startswith(b"hello")


def test_a_failure_says_why_and_leaves_nothing():
    with Trial(SCRIPT) as trial:
        try:
            trial.attach("/no/such/template.img")
        except Failure as reason:
            assert "No such file or directory" in str(reason)
        else:
            raise AssertionError("it was attached")
        assert trial.left() == []


def test_this_host_can_serve_it():
    with Trial(SCRIPT) as trial:
        assert trial.run("--check-host").returncode == 0


if __name__ == "__main__":
    sys.exit(run_tests(globals()))
'''


def add_parser(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "new-script",
        help="write a custom block script in Python, and its test",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="its name without block-: tape, or my-storage")
    parser.add_argument(
        "--folder", type=Path, default=Path(), metavar="DIR", help="where to write the two files (default: here)"
    )
    parser.add_argument(
        "--python",
        type=Path,
        default=default_interpreter(),
        metavar="PATH",
        help="the interpreter that runs the script (%(default)s); 3.11 or newer",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks."""
    name = arguments.name.removeprefix("block-")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise CommandError(
            f"{shown(arguments.name) or 'an empty text'} is no name for a script",
            [f"like this: tape, my-storage (a-z, 0-9 and single hyphens; it begins with a letter; at most {_LONGEST})"],
        )
    folder = arguments.folder.absolute()
    if not folder.is_dir():
        raise CommandError(f"{shown(folder)} is not a folder; make it, or name another one with --folder")
    script = folder / f"block-{name}"
    test = folder / f"test_block_{name.replace('-', '_')}.py"
    for path in (script, test):
        if os.path.lexists(path):
            raise CommandError(f"{shown(path)} is there already, and is not overwritten")
    interpreter = probe(arguments.python)
    kind = "".join(part.capitalize() for part in re.split("[_-]", name))
    if keyword.iskeyword(kind) or kind in ("Storage", "Failure"):
        kind += "Disk"
    words = {
        "python": str(interpreter.path),
        "folder": stub.folder_literal(this_package().parent),
        "script": script.name,
        "test": test.name,
        "kind": kind,
        "settings": _settings(stub.settings(default_scripts_dir(current()) / stub.NAME)),
    }
    report = Report()
    for path, text in ((script, SCRIPT), (test, TEST)):
        _write(path, text.format(**words))
        report.item("wrote", shown(path), "green")
    report.item("try it", shown(test))
    if os.geteuid() == 0 and (found := distrusted_package(this_package())):
        report.item(
            "beware", f"others can change the vbdkit that it runs: {shown(found[0].path)} {found[0].why}", "yellow"
        )
    return 0


def _settings(told: Mapping[str, Any]) -> str:
    """Return what the installed block was told and this script has to be told too: they share disks."""
    return "".join(f", {name}={told[name]!r}" for name in ("run_dir", "lock_dir") if name in told)


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o777)
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
