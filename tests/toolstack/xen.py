"""A host with everything but Xen: a real xenstored, our script, real loop devices, and the model of blkback."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.host import Host
from tests.need import need_loop_devices
from tests.stores import Store, real_store
from vbdkit.protocol import parse_disk
from vbdkit.toolstack.choice import choose
from vbdkit.toolstack.driver import ModelDriver, driver_for
from vbdkit.toolstack.lifecycle import Attached, Toolstack
from vbdkit.toolstack.nodes import Guest, create_guest, find_disk
from vbdkit.toolstack.settings import Settings
from vbdkit.xenstore.client import Connection

UUID = b"00000000-0000-0000-0000-%012d"


@dataclass
class Xen:
    """What a test works with. Guests 5 (web) and 6 (mail) are there."""

    host: Host
    stack: Toolstack
    driver: ModelDriver

    @property
    def store(self) -> Connection:
        return self.stack.store

    def attach(self, text: str, domid: int = 5) -> Attached:
        """Attach by a disk specification, with the settings that hold now."""
        return self.stack.attach(choose(self.store, parse_disk(text), domid, self.stack.settings))

    def detach(self, vdev_number: int = 51712, domid: int = 5, force: bool = False) -> list[str]:
        disk = find_disk(self.store, domid, vdev_number)
        assert disk is not None
        return self.stack.detach(disk, force)

    def settings(self, **changes: object) -> None:
        """Change settings; ``limits`` may be a dict."""
        if isinstance(changes.get("limits"), dict):
            changes["limits"] = replace(self.stack.settings.limits, **changes["limits"])  # type: ignore[arg-type]
        self.stack.settings = replace(self.stack.settings, **changes)  # type: ignore[arg-type]

    def script(self, name: str, text: str) -> Path:
        """Write a block script into the scripts' folder."""
        path = self.host.directory / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def read(self, path: str) -> bytes | None:
        return self.store.read_many([path.encode()])[0]

    def nodes(self) -> list[bytes]:
        """All nodes that belong to a disk."""
        return [path for path, _ in everything(self.store) if b"vbd" in path]

    def left(self) -> list[object]:
        """All that a disk may leave behind: nodes, records, the lock, open devices, loop devices."""
        files = [path for folder in (self.host.run_dir, self.host.lock_dir) for path in folder.glob("*")]
        opened = [self.driver.open_count()] if self.driver.open_count() else []
        return [*self.nodes(), *files, *self._loops(), *opened]

    def _loops(self) -> list[Path]:
        """Our loop devices; one that a program on this machine is just looking at goes when that has done so."""
        end = time.monotonic() + 5
        while True:
            found = [path for path in Path("/sys/block").glob("loop*/loop/backing_file") if self._ours(path)]
            if not found or time.monotonic() > end:
                return found
            time.sleep(0.02)

    def _ours(self, path: Path) -> bool:
        try:
            return path.read_bytes().startswith(os.fsencode(self.host.directory))
        except OSError:
            return False


def everything(store: Connection) -> list[tuple[bytes, bytes | None]]:
    """All nodes and values, but for the store's own."""
    found = []
    todo = [b"/local", b"/libxl", b"/vm"]
    while todo:
        listed = store.list_many(todo)
        found += list(zip(todo, store.read_many(todo), strict=True))
        todo = [path + b"/" + name for path, names in zip(todo, listed, strict=True) for name in names or ()]
    return sorted(found)


@pytest.fixture(scope="session")
def oxenstored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with real_store("o", tmp_path_factory.mktemp("oxs")) as store:
        yield store


@pytest.fixture(params=["xenstored", "oxenstored"])
def xen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Xen]:
    """The host, on each of Xen's two stores."""
    need_loop_devices()
    if request.param == "xenstored":
        socket = request.getfixturevalue("store_socket")
    else:
        socket = request.getfixturevalue("oxenstored").socket
    with make_xen(tmp_path, socket) as made:
        yield made


@contextmanager
def make_xen(directory: Path, socket: Path, system: str = "linux") -> Iterator[Xen]:
    """The host on one store, as on ``system``."""
    host = Host(directory, socket, system)
    environ = {b"XENSTORED_PATH": os.fsencode(socket), b"PATH": os.environb[b"PATH"]}
    settings = Settings(
        system=system,
        scripts_dir=os.fsencode(directory),
        run_dir=os.fsencode(host.run_dir),
        lock_dir=os.fsencode(host.lock_dir),
    )
    with Connection.open(time.monotonic() + 120, environ) as store:  # for as long as a test lasts
        store.mkdir(b"/local/domain/0/backend")
        for domid, name in ((5, b"web"), (6, b"mail")):
            create_guest(store, Guest(domid, name, UUID % domid))
        made = Xen(host, Toolstack(store, settings, environ), driver_for(system)(environ))
        made.driver.__enter__()
        try:
            yield made
        finally:
            made.driver.__exit__(None, None, None)
            host.close()
