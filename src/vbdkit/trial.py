"""Trying a block script without Xen, for its author's tests: a store, two guests, a toolstack and a backend driver.

with Trial("block-foo") as trial:
    disk = trial.attach(trial.image("a.img", b"hello"))
    assert disk.read().startswith(b"hello")
    trial.detach(disk)
    assert trial.left() == []

The script runs in a process of its own, as a toolstack starts it. Records and locks are in a temporary folder; nothing
of the host's own disks is touched. As root on Linux the driver opens real devices by number; elsewhere the script is
called the way FreeBSD does it, which needs no privilege.
"""

import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import vbdkit
from vbdkit.custom import Storage
from vbdkit.protocol.failure import Failure
from vbdkit.protocol.nodes import XENBUS_CONNECTED
from vbdkit.toolstack.driver import SECTOR, driver_for
from vbdkit.toolstack.lifecycle import Attached, Toolstack
from vbdkit.toolstack.loops import why_no_loops
from vbdkit.toolstack.nodes import Disk, Guest, create_guest, wait_for_state
from vbdkit.toolstack.settings import Settings
from vbdkit.toolstack.ways import MANIFEST, way_for
from vbdkit.xenstore.client import Connection
from vbdkit.xenstore.embedded import EmbeddedStore

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from vbdkit.toolstack.driver import Opened

__all__ = ["Failure", "Trial", "TrialDisk", "run_tests"]

# Seconds that the driver may take to open what a script has published.
_PATIENCE = 20.0
# Runs an author's file as it is, with records and locks somewhere else.
_STAND_IN = """\
import sys
sys.path.insert(0, {folder!r})
from vbdkit import custom
del sys.path[0]
main, ours = custom.main, {settings!r}
custom.main = lambda storage, **settings: main(storage, **settings | ours)
"""
_FILE = """\
with open({script!r}, "rb") as file:
    code = compile(file.read(), {script!r}, "exec")
exec(code, {{"__name__": "__main__", "__file__": {script!r}}})
"""
_CLASS = """\
custom.main({name!r}, folder={folder!r})
"""


class TrialDisk:
    """A disk that a guest has. ``output`` is what the script said, ``device`` what the driver has opened."""

    def __init__(self, attached: Attached, opened: "Opened") -> None:
        """Take both."""
        self.disk = attached.disk
        self.device = os.fsdecode(attached.device or b"")
        self.output = (attached.run.output if attached.run else b"").decode("utf-8", "replace")
        self._opened = opened

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self._opened.size

    def read(self, sector: int = 0, count: int = 1) -> bytes:
        """Return sectors of 512 bytes, as the guest would read them."""
        return self._opened.read(sector, count)

    def write(self, sector: int, data: bytes) -> None:
        """Write, as the guest would; zeros fill the last sector. Raises OSError where it may only read."""
        self._opened.write(sector, data.ljust(-len(data) // SECTOR * -SECTOR, b"\0"))


class Trial:
    """A host for one script; a context manager. ``folder`` is for images, and goes with all that is in it."""

    def __init__(
        self,
        script: "str | os.PathLike[str] | type[Storage]",
        system: str = "",
        time_limit: float | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Take the script's file, or a class of storage that can be imported.

        ``system`` is whose way of calling scripts to follow, ``time_limit`` when it is to give up, in seconds.
        ``environ`` is added to what it inherits.
        """
        self._script = script
        self.system = system or ("freebsd" if why_no_loops() else "linux")
        self._time_limit = time_limit
        self._environ = {**os.environ, **(environ or {})}
        self._stack = ExitStack()
        self._images: set[Path] = set()

    def __enter__(self) -> "Self":
        """Begin. Raises OSError, Failure, StoreError."""
        with ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vbdkit-trial-")))
            self.folder = place / "images"
            self._host = place / "host"
            for folder in (self.folder, self._host, self._host / "scripts"):
                folder.mkdir()
            socket = os.fsencode(place / "store")
            stack.enter_context(EmbeddedStore(socket, domid=0))
            environ = {**{os.fsencode(k): os.fsencode(v) for k, v in self._environ.items()}, b"XENSTORED_PATH": socket}
            self._driver = stack.enter_context(driver_for(self.system)(environ))
            self._store = stack.enter_context(Connection.open(time.monotonic() + 600, environ))
            self._settings = Settings(
                system=self.system,
                scripts_dir=os.fsencode(self._host / "scripts"),
                run_dir=os.fsencode(self._host / "run"),
                lock_dir=os.fsencode(self._host / "lock"),
            )
            self.script = self._stand_in()
            self._toolstack = Toolstack(self._store, self._settings, environ)
            for domid, name in ((1, b"alice"), (2, b"bob")):
                create_guest(self._store, Guest(domid, name, b"00000000-0000-4000-8000-%012d" % domid))
            self._attached: list[Disk] = []
            stack.callback(self._give_back)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: "TracebackType | None") -> None:
        """Take back what is attached still, and take all away."""
        self._stack.close()

    def image(self, name: str = "disk.img", begins: bytes = b"", size: int = 1 << 20) -> Path:
        """Make a file in the folder and return its path."""
        path = self.folder / name
        path.write_bytes(begins)
        os.truncate(path, size)
        self._images.add(path)
        return path

    def attach(self, target: str | os.PathLike[str], guest: int = 1, vdev: str = "xvda", mode: str = "w") -> TrialDisk:
        """Give guest 1 (alice) or 2 (bob) a disk: nodes, script, driver. Raises Failure with the script's reason."""
        script = os.fsencode(self.script)
        devid = 51712 + 16 * (ord(vdev[-1]) - ord("a"))
        disk = Disk(
            guest,
            os.fsencode(target),
            script,
            mode=mode.encode(),
            devid=devid,
            dev=vdev.encode(),
            way=way_for(script, self._settings),
        )
        attached = self._toolstack.attach(disk)
        self._attached.append(disk)
        wait_for_state(self._store, disk, {XENBUS_CONNECTED}, _PATIENCE)
        opened = self._driver.opened(disk.domid, disk.devid)
        assert opened is not None
        return TrialDisk(attached, opened)

    def detach(self, disk: TrialDisk) -> None:
        """Take a disk from its guest: driver, script, nodes. Raises Failure where the script fails."""
        self._toolstack.detach(disk.disk)
        self._attached.remove(disk.disk)

    def run(self, *words: str, disk: TrialDisk | None = None) -> "subprocess.CompletedProcess[str]":
        """Call the script by hand: ``--describe``, ``--check-host``, verbs; ``disk``: for that one."""
        environ = dict(self._environ)
        if disk is not None:
            environ["XENBUS_PATH"] = f"backend/vbd/{disk.disk.domid}/{disk.disk.devid}"
        environ["XENSTORED_PATH"] = str(self._host.parent / "store")
        return subprocess.run([self.script, *words], env=environ, capture_output=True, text=True, check=False)

    def left(self) -> list[str]:
        """Return what is there that no disk should leave: records, locks, nodes, files, loop devices. Best empty."""
        found = [f"{name}/{file}" for name in ("run", "lock") for file in self._files(name)]
        found += [str(path) for path in sorted(self.folder.iterdir()) if path not in self._images]
        for kind in (b"/local/domain/0/backend/vbd", b"/libxl/1/device/vbd", b"/libxl/2/device/vbd"):
            found += [os.fsdecode(kind + b"/" + name) for name in self._store.list_many([kind])[0] or ()]
        return found + [f"/dev/{name}" for name in self._loops()]

    def _files(self, name: str) -> list[str]:
        folder = self._host / name
        return sorted(path.name for path in folder.glob("[!.]*")) if folder.is_dir() else []

    def _loops(self) -> list[str]:
        # One that somebody looks at in the moment of its release goes when they have looked.
        end = time.monotonic() + 1
        while True:
            found: list[str] = []
            for path in Path("/sys/block").glob("loop*/loop/backing_file"):
                try:
                    if path.read_bytes().startswith(os.fsencode(self.folder)):
                        found.append(path.parts[3])
                except OSError:
                    continue
            if not found or time.monotonic() > end:
                return sorted(found)
            time.sleep(0.02)

    def _give_back(self) -> None:
        for disk in reversed(self._attached):
            self._toolstack.detach(disk, force=True)

    def _stand_in(self) -> Path:
        """Return the script to be run: one that runs the author's with records and locks of its own."""
        ours = {"run_dir": self._settings.run_dir, "lock_dir": self._settings.lock_dir, "system": self.system}
        if self._time_limit is not None:
            ours["time_limit"] = self._time_limit  # type: ignore[assignment]
        head = _STAND_IN.format(folder=str(Path(vbdkit.__file__).resolve().parents[1]), settings=ours)
        said = ""
        if isinstance(self._script, type):
            module = sys.modules[self._script.__module__]
            folder = Path(module.__file__ or "").resolve().parents[module.__name__.count(".")]
            name = f"block-{self._script.name or self._script.__name__.lower()}"
            first = f"#!{getattr(sys, '_base_executable', sys.executable)} -IS"
            body = _CLASS.format(name=f"{module.__name__}:{self._script.__qualname__}", folder=os.fsencode(folder))
        else:
            path = Path(self._script).resolve()
            text = path.read_text("utf-8", "surrogateescape")
            if "vbdkit.custom" not in text:
                return path
            name, first = path.name, text.partition("\n")[0]
            said = next((line for line in text.split("\n") if line.startswith(MANIFEST.decode())), "")
            body = _FILE.format(script=str(path))
        stand_in = self._host / "scripts" / name
        stand_in.write_text("\n".join([first, said, head + body]), "utf-8", "surrogateescape")
        stand_in.chmod(0o755)
        return stand_in


def run_tests(names: Mapping[str, object]) -> int:
    """Run the functions of a module that are named test..., telling each; return an exit status."""
    failed = 0
    for name, test in list(names.items()):
        if name.startswith("test") and callable(test):
            try:
                test()
            except Exception:
                failed += 1
                traceback.print_exc()
                print(f"failed  {name}", flush=True)
            else:
                print(f"ok      {name}", flush=True)
    return 1 if failed else 0
