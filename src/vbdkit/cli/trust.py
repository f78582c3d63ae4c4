"""Who but root can change what root will run: a path, the folders above it, and a package's files.

Reads modes and owners only. Root's scripts are started for every disk of every guest, so whoever can write
one of these owns the host.
"""

import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Distrust:
    """One path that others than root can change, and why, as the end of a sentence."""

    path: Path
    why: str


def distrusted(path: Path) -> list[Distrust]:
    """Return what makes an absolute ``path`` unsafe: itself, or a folder on the way, links followed.

    Raises OSError where it is not there.
    """
    return [found for step in _steps(path) if (found := _judge(step))]


def distrusted_package(package: Path) -> list[Distrust]:
    """Return what makes a package folder unsafe: the way to it, and every folder and file in it."""
    found = distrusted(package)
    for folder, folders, files in os.walk(package):
        for name in sorted([*folders, *files]):
            inside = Path(folder, name)
            found.extend(distrusted(inside) if inside.is_symlink() else filter(None, [_judge(inside)]))
    return list(dict.fromkeys(found))


def _steps(path: Path) -> Iterator[Path]:
    """Every folder that the kernel goes through to reach ``path``, and where it ends; links themselves left out.

    A link is as safe as the folder that holds it.
    """
    at = Path("/")
    yield at
    rest = list(path.parts[1:])
    links = 0
    while rest:
        name = rest.pop(0)
        if name == "..":
            at = at.parent
            continue
        step = at / name
        if stat.S_ISLNK(step.lstat().st_mode):
            links += 1
            if links > 40:
                raise OSError(f"{path}: too many symbolic links")
            target = step.readlink()
            if target.is_absolute():
                at = Path("/")
            rest = [part for part in target.parts if part != "/"] + rest
            continue
        at = step
        yield at


def _judge(path: Path) -> Distrust | None:
    found = path.lstat()
    if found.st_uid != 0:
        try:
            owner = pwd.getpwuid(found.st_uid).pw_name
        except KeyError:
            owner = f"user {found.st_uid}"
        return Distrust(path, f"belongs to {owner}")
    if found.st_mode & 0o022:
        who = "everybody" if found.st_mode & 0o002 else "its group"
        # A sticky folder keeps names from being taken away, but not from being taken first after a clean-up.
        return Distrust(path, f"can be written to by {who}")
    return None
