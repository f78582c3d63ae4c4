"""The installed script and library: their text, how they take their place, how what was there before comes back.

There is always a whole script under the name: what was there gets a second name first (link(2) never
overwrites), then rename(2) puts the new one in place. Nothing here judges or reports; callers do.
"""

import ast
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from vbdkit import __version__
from vbdkit.engine.record import RUN_DIR
from vbdkit.platform import current, load
from vbdkit.toolstack.ways import MANIFEST

NAME = "block"
LIBRARY = "block-common.sh"
# What one that was there before is called.
KEPT = ".before-vbdkit"
# A new script before it has its name; what a killed install leaves, the next one takes away.
_UNFINISHED = ".block.vbdkit-"
# What main of every script takes, whatever the system.
_EVERYWHERE = ("system", "run_dir", "lock_dir", "time_limit", "storage", "folder")
_MARKER = b"# Xen block script of vbdkit "
_LIBRARY_MARKER = b"# Library of Xen block scripts, of vbdkit "
# Of a script's first 4,096 bytes, what a manifest may take.
_LONGEST = 3000
_WRITTEN = f"{__version__}, written by `vbdkit install`; `vbdkit uninstall` takes it away."


@dataclass(frozen=True)
class Stub:
    """What the script says: its first line, the package's folder, and what differs from main's defaults.

    ``python`` is the interpreter for the shell library, which has no first line of the kind.
    """

    shebang: bytes
    package: Path
    system: str | None = None
    run_dir: Path | None = None
    lock_dir: Path | None = None
    deadline: float | None = None
    settings: Mapping[str, bytes] = field(default_factory=dict)
    python: Path = Path("/usr/bin/python3")

    def text(self) -> bytes:
        """Return the script ``block``."""
        return self._script(*self._start(NAME))

    def custom(self, storage: str, folder: Path | None, manifest: Mapping[str, object]) -> bytes:
        """Return a custom script: the class ``storage`` (``module:Class``), which lies in ``folder`` unless it is ours.

        The manifest stands where toolstacks look for it (toolstack/ways.py).
        """
        said = json.dumps(manifest)
        if len(said) > _LONGEST:
            said = json.dumps({name: manifest[name] for name in ("name", "path-only")})
        more = [("storage", storage), ("folder", folder_setting(folder))]
        return self._script(MANIFEST.decode() + said, *self._start("custom", more))

    def _script(self, *lines: str) -> bytes:
        whole = [_MARKER.decode() + _WRITTEN, *lines]
        return self.shebang + b"\n" + "\n".join(whole).encode("ascii") + b"\n"

    def library(self, scripts_dir: Path) -> bytes:
        """Return the library for scripts in shell, as it lies in ``scripts_dir``."""
        head = [
            b"# shellcheck shell=dash",
            _LIBRARY_MARKER + _WRITTEN.encode("ascii"),
            b"_vbdkit_python=" + _quoted(os.fsencode(self.python)),
            b"_vbdkit_run=" + _quoted(os.fsencode(self.run_dir) if self.run_dir else RUN_DIR),
            b"_vbdkit_folder=" + _quoted(os.fsencode(scripts_dir)),
            b"_vbdkit_start=" + _quoted("\n".join(self._start("common")).encode("ascii")),
        ]
        return b"\n".join(head) + b"\n\n" + (self.package / "scripts" / "shell" / LIBRARY).read_bytes()

    def _start(self, name: str, more: Sequence[tuple[str, str | bytes | None]] = ()) -> list[str]:
        """Return the lines of Python that start a script of the package; ``more`` is what its ``main`` is told."""
        arguments = f"{_literal(name)}" + "".join(
            f", {name}={_literal(value)}"
            for name, value in (
                *more,
                ("system", self.system),
                ("run_dir", os.fsencode(self.run_dir) if self.run_dir else None),
                ("lock_dir", os.fsencode(self.lock_dir) if self.lock_dir else None),
                ("time_limit", self.deadline),
                *self.settings.items(),
            )
            if value is not None
        )
        return [
            "import sys",
            f"sys.path.insert(0, {folder_literal(self.package.parent)})",
            "import vbdkit",
            "del sys.path[0]  # what else lies in that folder stays out",
            "from vbdkit.hot import start",
            f"start({arguments})",
        ]


def folder_literal(folder: Path) -> str:
    """Return the Python for a folder's name as text.

    Which bytes a str stands for depends on the locale of whoever starts a guest; ASCII is the same in all.
    """
    text = str(folder)
    return _literal(text) if text.isascii() else f'__import__("os").fsdecode({_literal(os.fsencode(text))})'


def folder_setting(folder: Path | None) -> bytes | None:
    """Return what a custom script is told of where its class lies."""
    return None if folder is None else os.fsencode(folder)


def _quoted(text: bytes) -> bytes:
    """Return text as a word of a shell."""
    return b"'" + text.replace(b"'", b"'\\''") + b"'"


def _literal(value: str | bytes | float) -> str:
    text = repr(value)
    return text if '"' in text else text.replace("'", '"')


def is_ours(path: Path) -> bool:
    """Whether ``path`` is a script that `vbdkit install` wrote. A link to one is not."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        return file.read(1024).partition(b"\n")[2].startswith((_MARKER, _LIBRARY_MARKER))


def settings(path: Path) -> dict[str, Any]:
    """Return what a script of ours is told beyond main's defaults; nothing where there is none."""
    if not is_ours(path):
        return {}
    try:
        calls = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call)]
        (call,) = [one for one in calls if isinstance(one.func, ast.Name) and one.func.id == "start"]
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (OSError, ValueError, SyntaxError):
        return {}


def own_settings(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a script's settings only its system has."""
    return {name: value for name, value in told.items() if name not in _EVERYWHERE}


def use(path: Path) -> dict[str, Any]:
    """Return what a script of ours is told, and take of that what only its system has for this process, too.

    So a program that does a script's work publishes and asks as the script would.
    """
    told = settings(path)
    own = own_settings(told)
    if own:
        load(told.get("system") or current()).configure(**own)
    return told


def there(path: Path) -> bool:
    """Whether the name exists, be it a link to nowhere."""
    return os.path.lexists(path)


def kept(path: Path) -> Path:
    """Return the name under which what was there before is kept."""
    return path.with_name(path.name + KEPT)


def place(path: Path, text: bytes, mode: int) -> tuple[str, Path | None]:
    """Put ``text`` in place as the script or library at ``path``.

    Returns what was done with the one before, "new", "same", "replaced" (ours) or "kept", and, where an older
    kept one had to make room, its new name. Raises OSError.
    """
    moved = None
    with _alone(path.parent):
        if is_ours(path):
            same = path.read_bytes() == text and stat.S_IMODE(path.stat().st_mode) == mode
            before = "same" if same else "replaced"
        else:
            before = "kept" if there(path) else "new"
        if before != "same":
            unfinished = _write(path.parent, text, mode)
            if before == "kept":
                moved = _keep(path, kept(path))
            unfinished.rename(path)
    return before, moved


def restore(path: Path) -> bool:
    """Take our script or library away; whether one from before took its place. Raises OSError."""
    with _alone(path.parent):
        brought_back = there(kept(path))
        if brought_back:
            kept(path).rename(path)
        else:
            path.unlink()
    return brought_back


def older(path: Path) -> list[Path]:
    """Return the kept ones that had to make room, in order."""
    numbered = [one for one in path.parent.glob(kept(path).name + ".*") if one.suffix[1:].isdigit()]
    return sorted(numbered, key=lambda one: int(one.suffix[1:]))


@contextmanager
def _alone(scripts_dir: Path) -> Iterator[None]:
    """Keep other installs out, take away what killed ones have left, and see that what was done lasts."""
    descriptor = os.open(scripts_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            for leftover in scripts_dir.glob(_UNFINISHED + "*"):
                leftover.unlink(missing_ok=True)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(scripts_dir: Path, text: bytes, mode: int) -> Path:
    path = scripts_dir / f"{_UNFINISHED}{os.getpid()}"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o700)
    with open(descriptor, "wb") as file:
        file.write(text)
        file.flush()
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    return path


def _keep(path: Path, second: Path) -> Path | None:
    """Give ``path`` its second name. A different script that has this name gets a number."""
    moved = None
    if there(second):
        if _same(path, second):
            return None  # an install that was killed between its two steps, or the same script come again
        moved = next(name for number in count(1) if not there(name := second.with_name(f"{second.name}.{number}")))
        _link(second, moved)
        second.unlink(missing_ok=True)
    _link(path, second)
    return moved


def _link(old: Path, new: Path) -> None:
    try:
        os.link(old, new, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        # No hard links on this file system: for a moment the script has only its new name.
        old.rename(new)


def _same(one: Path, other: Path) -> bool:
    """Whether two names stand for the same script: content, kind, mode and owner."""
    first, second = one.lstat(), other.lstat()
    if (first.st_mode, first.st_uid, first.st_gid) != (second.st_mode, second.st_uid, second.st_gid):
        return False
    if stat.S_ISLNK(first.st_mode):
        return one.readlink() == other.readlink()
    return os.path.samestat(first, second) or one.read_bytes() == other.read_bytes()
