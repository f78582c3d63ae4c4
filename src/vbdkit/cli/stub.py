"""The installed script: its text, how it takes its place, and how what was there before comes back.

There is always a whole script under the name: what was there gets a second name first (link(2) never
overwrites), then rename(2) puts the new one in place. Nothing here judges or reports; callers do.
"""

import ast
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from vbdkit import __version__
from vbdkit.platform import current, load

NAME = "block"
KEPT = "block.before-vbdkit"
# A new script before it has its name; what a killed install leaves, the next one takes away.
_UNFINISHED = ".block.vbdkit-"
# What main of every script takes, whatever the system.
_EVERYWHERE = ("system", "run_dir", "lock_dir", "time_limit")
_MARKER = b"# Xen block script of vbdkit "


@dataclass(frozen=True)
class Stub:
    """What the script says: its first line, the package's folder, and what differs from main's defaults."""

    shebang: bytes
    package: Path
    system: str | None = None
    run_dir: Path | None = None
    lock_dir: Path | None = None
    deadline: float | None = None
    settings: Mapping[str, bytes] = field(default_factory=dict)

    def text(self) -> bytes:
        """Return the script."""
        arguments = f"{_literal(NAME)}" + "".join(
            f", {name}={_literal(value)}"
            for name, value in (
                ("system", self.system),
                ("run_dir", os.fsencode(self.run_dir) if self.run_dir else None),
                ("lock_dir", os.fsencode(self.lock_dir) if self.lock_dir else None),
                ("time_limit", self.deadline),
                *self.settings.items(),
            )
            if value is not None
        )
        folder = str(self.package.parent)
        # Which bytes a str stands for depends on the locale of whoever starts a guest; ASCII is the same in all.
        where = _literal(folder) if folder.isascii() else f'__import__("os").fsdecode({_literal(os.fsencode(folder))})'
        lines = [
            _MARKER.decode() + f"{__version__}, written by `vbdkit install`; `vbdkit uninstall` takes it away.",
            "import sys",
            f"sys.path.insert(0, {where})",
            "import vbdkit",
            "del sys.path[0]  # what else lies in that folder stays out",
            "from vbdkit.hot import start",
            f"start({arguments})",
        ]
        return self.shebang + b"\n" + "\n".join(lines).encode("ascii") + b"\n"


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
        return file.read(1024).partition(b"\n")[2].startswith(_MARKER)


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


def use(path: Path) -> dict[str, Any]:
    """Return what a script of ours is told, and take of that what only its system has for this process, too.

    So a program that does a script's work publishes and asks as the script would.
    """
    told = settings(path)
    own = {name: value for name, value in told.items() if name not in _EVERYWHERE}
    if own:
        load(told.get("system") or current()).configure(**own)
    return told


def there(path: Path) -> bool:
    """Whether the name exists, be it a link to nowhere."""
    return os.path.lexists(path)


def place(scripts_dir: Path, text: bytes) -> tuple[str, Path | None]:
    """Put ``text`` in place as the folder's block script, mode 0755.

    Returns what was done with the one before, "new", "same", "replaced" (ours) or "kept", and, where an older
    kept script had to make room, its new name. Raises OSError.
    """
    block, kept = scripts_dir / NAME, scripts_dir / KEPT
    moved = None
    with _alone(scripts_dir):
        if is_ours(block):
            same = block.read_bytes() == text and stat.S_IMODE(block.stat().st_mode) == 0o755
            before = "same" if same else "replaced"
        else:
            before = "kept" if there(block) else "new"
        if before != "same":
            unfinished = _write(scripts_dir, text)
            if before == "kept":
                moved = _keep(block, kept)
            unfinished.rename(block)
    return before, moved


def restore(scripts_dir: Path) -> bool:
    """Take our script away; whether one from before took its place. Raises OSError."""
    block, kept = scripts_dir / NAME, scripts_dir / KEPT
    with _alone(scripts_dir):
        brought_back = there(kept)
        if brought_back:
            kept.rename(block)
        else:
            block.unlink()
    return brought_back


def older(scripts_dir: Path) -> list[Path]:
    """Return the kept scripts that had to make room, in order."""
    numbered = [path for path in scripts_dir.glob(KEPT + ".*") if path.suffix[1:].isdigit()]
    return sorted(numbered, key=lambda path: int(path.suffix[1:]))


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


def _write(scripts_dir: Path, text: bytes) -> Path:
    path = scripts_dir / f"{_UNFINISHED}{os.getpid()}"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o700)
    with open(descriptor, "wb") as file:
        file.write(text)
        file.flush()
        os.fchmod(descriptor, 0o755)
        os.fsync(descriptor)
    return path


def _keep(block: Path, kept: Path) -> Path | None:
    """Give ``block`` its second name. A different script that has this name gets a number."""
    moved = None
    if there(kept):
        if _same(block, kept):
            return None  # an install that was killed between its two steps, or the same script come again
        moved = next(name for number in count(1) if not there(name := kept.with_name(f"{kept.name}.{number}")))
        _link(kept, moved)
        kept.unlink(missing_ok=True)
    _link(block, kept)
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
