"""The Python that installed scripts run under: which one, whether it fits, and its compiled modules.

Everything is asked of that interpreter itself, started as the script will start it: `-IS`, no site, no environment.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vbdkit.cli.report import CommandError, shown

OLDEST = (3, 11)
# Linux cut the first line of a script at 127 bytes until 5.1 (fs/binfmt_script.c), the "#!" included.
SHEBANG_LIMIT = 127

_PROBE = """
import sys
print(list(sys.version_info[:3]))
print([list(folder.encode("utf-8", "surrogateescape")) for folder in sys.path])
"""
# What the script itself does first.
_IMPORT = """
import sys
sys.path.insert(0, sys.argv[1])
import vbdkit
del sys.path[0]
from vbdkit.hot import start
from vbdkit.scripts.block import main
"""
# What a custom script does first, and then says of itself.
_DESCRIBE = """
import sys
sys.path.insert(0, sys.argv[1])
import vbdkit
del sys.path[0]
import json, os
from vbdkit.scripts.author import describe
from vbdkit.scripts.custom import storage_class
found = storage_class(sys.argv[2], os.fsencode(sys.argv[3]))
files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
print(json.dumps([describe(found), [list(os.fsencode(file)) for file in files if file]]))
"""


@dataclass(frozen=True)
class Interpreter:
    """``path`` as it stands in the first line of a script, ``version``, and the folders that it imports from."""

    path: Path
    version: tuple[int, ...]
    folders: tuple[Path, ...]

    @property
    def shebang(self) -> bytes:
        """The first line of a script, without its newline."""
        return b"#!" + os.fsencode(self.path) + b" -IS"


def default_interpreter() -> Path:
    """Return the interpreter that runs, out of its virtual environment.

    An unversioned name beside it that means the same file is preferred: it survives the system's next Python.
    """
    # The base interpreter's path has no public name (CPython Lib/venv/__init__.py reads this one too).
    base = Path(getattr(sys, "_base_executable", "") or sys.executable)
    stable = base.with_name("python3")
    return stable if stable.exists() and stable.samefile(base) else base


def probe(path: Path) -> Interpreter:
    """Return what ``path`` is, having run it. Raises CommandError where scripts cannot run under it."""
    name = shown(path)
    if not path.is_absolute():
        raise CommandError(f"--python {name}: a script names its interpreter by its whole path")
    if any(letter.isspace() for letter in os.fsdecode(path)):
        raise CommandError(
            f"the path of the interpreter {name!r} has a space in it, and the first line of a script ends there",
            ["name another one: vbdkit install --python /usr/bin/python3"],
        )
    if len(b"#!" + os.fsencode(path) + b" -IS") > SHEBANG_LIMIT:
        raise CommandError(
            f"the first line of the script would be longer than {SHEBANG_LIMIT} bytes with the interpreter {name}",
            ["name one with a shorter path: vbdkit install --python /usr/bin/python3"],
        )
    run = _run(path, "-c", _PROBE)
    lines = run.stdout.splitlines()
    if run.returncode or len(lines) != 2:
        raise CommandError(
            f"{name} does not run as Python 3 does: {_last(run)}",
            ["name another one: vbdkit install --python /usr/bin/python3"],
        )
    version = tuple(json.loads(lines[0]))
    if version < OLDEST:
        raise CommandError(
            f"{name} is Python {'.'.join(map(str, version))}; the scripts need {'.'.join(map(str, OLDEST))} or newer",
            ["name another one: vbdkit install --python /path/to/python3.11"],
        )
    folders = tuple(Path(os.fsdecode(bytes(folder))) for folder in json.loads(lines[1]))
    return Interpreter(path, version, folders)


def check_import(interpreter: Interpreter, package: Path) -> None:
    """Raise CommandError where the interpreter cannot import the block script of ``package`` as a script would."""
    run = _run(interpreter.path, "-c", _IMPORT, str(package.parent))
    if run.returncode:
        raise CommandError(f"{shown(interpreter.path)} cannot import {shown(package)}: {_last(run)}")


def describe(
    interpreter: Interpreter, package: Path, storage: str, folder: Path | None
) -> tuple[dict[str, object], list[Path]]:
    """Return the manifest of a class of storage, and the files that were loaded for it.

    Raises CommandError where the interpreter cannot import it as an installed script would.
    """
    run = _run(interpreter.path, "-c", _DESCRIBE, str(package.parent), storage, str(folder or ""))
    if run.returncode:
        where = f" from {shown(folder)}" if folder else ""
        raise CommandError(
            f"{shown(interpreter.path)} cannot import {storage}{where}: {_last(run)}",
            ["a script sees that folder and the standard library, and no .pth file (pip install -e makes one)"]
            if folder
            else [],
        )
    manifest, files = json.loads(run.stdout.splitlines()[-1])
    return manifest, [Path(os.fsdecode(bytes(file))) for file in files]


def compile_package(interpreter: Interpreter, package: Path, system: str) -> str | None:
    """Compile the package's modules, and what scripts load first, for the interpreter; None, or why that cannot be.

    Not compiled means slower, not broken.
    """
    for arguments in (("-m", "compileall", "-q", str(package)), (str(package / "hot.py"), system)):
        run = _run(interpreter.path, *arguments)
        if run.returncode:
            # access(2) also sees a read-only file system, for root too.
            return "the folder is read-only" if not os.access(package, os.W_OK) else _last(run)
    return None


def _run(path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            [path, "-IS", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            cwd="/",
            timeout=300,
            check=False,
            umask=0o022,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = error.strerror if isinstance(error, OSError) else "it does not end"
        raise CommandError(
            f"{shown(path)} cannot be run: {why}", ["name another one: vbdkit install --python /usr/bin/python3"]
        ) from error


def _last(run: "subprocess.CompletedProcess[str]") -> str:
    lines = (run.stderr.strip() or run.stdout.strip()).splitlines()
    return shown(lines[-1].strip()) if lines else f"exit status {run.returncode}, and not a word"
