"""What an administrator decides about the toolstack's half: places, limits, and who publishes (G1, G3).

One TOML file, all of whose keys may be left out. Unknown keys are refused: a typing mistake must not turn a check off
unseen.
"""

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from vbdkit.engine.record import RUN_DIR
from vbdkit.engine.script import LOCK_DIR
from vbdkit.platform import SYSTEMS, current
from vbdkit.protocol.failure import Failure
from vbdkit.toolstack.nodes import DESTROY_TIMEOUT, INIT_TIMEOUT
from vbdkit.toolstack.script import HOTPLUG_TIMEOUT
from vbdkit.toolstack.userdata import FOLDER

_T = TypeVar("_T")

DEFAULT = Path("/etc/vbdkit.toml")
# Where each system's Xen packages put block scripts (FreeBSD's ports under their own prefix).
SCRIPTS_DIRS = {
    "linux": Path("/etc/xen/scripts"),
    "freebsd": Path("/usr/local/etc/xen/scripts"),
    "netbsd": Path("/usr/pkg/etc/xen/scripts"),
}


def default_scripts_dir(system: str) -> Path:
    """Return Xen's folder of block scripts on a system; Linux's for one that vbdkit does not know."""
    return SCRIPTS_DIRS.get(system, SCRIPTS_DIRS["linux"])


@dataclass(frozen=True)
class Limits:
    """Seconds that each wait may take: backend ready for the script, the script itself, backend closed."""

    ready: float = INIT_TIMEOUT
    script: float = HOTPLUG_TIMEOUT
    close: float = DESTROY_TIMEOUT


@dataclass(frozen=True)
class Settings:
    """All that is decided. ``no_script``: files and plain devices are attached in this process (G3).

    ``path_only``: scripts, by absolute path, that write physical-device-path and leave the rest to us (G1).
    ``userdata_dir``: where libxl keeps its guests' configurations.
    """

    system: str = field(default_factory=current)
    scripts_dir: bytes = b""
    run_dir: bytes = RUN_DIR
    lock_dir: bytes = LOCK_DIR
    limits: Limits = Limits()
    no_script: bool = False
    path_only: frozenset[bytes] = frozenset()
    userdata_dir: bytes = FOLDER

    def script(self, name: bytes = b"block") -> bytes:
        """Return the absolute path of a script that a disk names."""
        return os.path.join(self.scripts_dir or os.fsencode(default_scripts_dir(self.system)), name)


def load_settings(path: Path | None = None) -> Settings:
    """Return what a file says, /etc/vbdkit.toml where ``path`` is None; that one need not be there. Raises Failure."""
    try:
        with (path or DEFAULT).open("rb") as file:
            said = tomllib.load(file)
    except FileNotFoundError:
        if path is None:
            return Settings()
        raise Failure("the configuration {path} does not exist", path=os.fsencode(path)) from None
    except OSError as error:
        raise Failure(
            "the configuration {path} cannot be read: {why}", path=os.fsencode(path or DEFAULT), why=error.strerror
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Failure(
            "the configuration {path} is no TOML: {why}", path=os.fsencode(path or DEFAULT), why=error
        ) from None
    return _Reader(path or DEFAULT, said).settings()


class _Reader:
    """Takes the keys out of one file's table, each with its type."""

    def __init__(self, path: Path, table: dict[str, object]) -> None:
        self.path = path
        self.table = table

    def settings(self) -> Settings:
        system = self.take("system", str, current())
        if system not in SYSTEMS:
            raise self.wrong("system", "one of " + ", ".join(SYSTEMS))
        scripts_dir = self.folder("scripts-dir", os.fsencode(default_scripts_dir(system)))
        names = self.take("path-only", list, [])
        if not all(isinstance(name, str) and name for name in names):
            raise self.wrong("path-only", "a list of scripts' names")
        limits = _Reader(self.path, self.take("limits", dict, {}))
        found = Settings(
            system=system,
            scripts_dir=scripts_dir,
            run_dir=self.folder("run-dir", RUN_DIR),
            lock_dir=self.folder("lock-dir", LOCK_DIR),
            limits=Limits(
                limits.seconds("ready", INIT_TIMEOUT),
                limits.seconds("script", HOTPLUG_TIMEOUT),
                limits.seconds("close", DESTROY_TIMEOUT),
            ),
            no_script=self.take("no-script", bool, False),
            path_only=frozenset(os.path.join(scripts_dir, os.fsencode(name)) for name in names),
            userdata_dir=self.folder("userdata-dir", FOLDER),
        )
        self.end()
        limits.end()
        return found

    def take(self, key: str, kind: type[_T], default: _T) -> _T:
        value = self.table.pop(key, default)
        if not isinstance(value, kind):
            raise self.wrong(key, _WORDS[kind])
        return value

    def folder(self, key: str, default: bytes) -> bytes:
        value = os.fsencode(self.take(key, str, os.fsdecode(default)))
        if not value.startswith(b"/"):
            raise self.wrong(key, "the absolute path of a folder")
        return value

    def seconds(self, key: str, default: float) -> float:
        value = self.table.pop(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 86400:
            raise self.wrong(key, "a number of seconds")
        return float(value)

    def end(self) -> None:
        for key in self.table:
            raise Failure("the configuration {path} has an unknown key: {key}", path=os.fsencode(self.path), key=key)

    def wrong(self, key: str, wanted: str) -> Failure:
        return Failure(
            "the configuration {path}: {key} has to be {wanted}", path=os.fsencode(self.path), key=key, wanted=wanted
        )


_WORDS = {str: "a text", bool: "true or false", list: "a list", dict: "a table"}
