"""A driver domain in tests: its `vbdkit devd` as a process, and the toolstack of the domain that has the guests.

On the embedded store it has the rights, quotas and relative paths of its own domid; the sockets of the real ones are
domain 0's, whose `domid` node then says otherwise.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.host import SOURCE, bound_loops
from tests.stores import Store, running_store
from tests.waiting import PATIENCE, until
from vbdkit.protocol.nodes import CLOSED, HOTPLUG_STATUS, INIT_WAIT, STATE
from vbdkit.toolstack.nodes import Disk, Guest, add_disk, create_guest, remove_disk
from vbdkit.xenstore.client import Connection, StoreError
from vbdkit.xenstore.embedded import EmbeddedStore
from vbdkit.xenstore.embedded.permissions import Quota

DOMID = 7
# Where no script is: what is called so is vbdkit's own there.
BLOCK = b"/none/scripts/block"


class DriverDomain:
    """The domain, its folder, the store, and the daemon where one runs."""

    def __init__(self, folder: Path, store: Store, environ: dict[bytes, bytes]) -> None:
        self.folder = folder
        self.store = store
        # What clients in the driver domain need.
        self.environ = environ
        self.run_dir = folder / "run"
        self.lock_dir = folder / "lock"
        self.log = folder / "devd.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.toolstack = store.connect(300)
        self.prepare()

    def prepare(self) -> None:
        """Write what a toolstack has written when a driver domain is up."""
        self.toolstack.remove_many([b"/local", b"/vm", b"/libxl"])
        create_guest(self.toolstack, Guest(DOMID, b"driver", b"00000000-0000-0000-0000-000000000007"))
        backend = b"/local/domain/%d/backend" % DOMID
        self.toolstack.mkdir(backend)
        self.toolstack.set_permissions(backend, [b"n%d" % DOMID])
        if self.store.kind != "embedded":
            self.toolstack.write(b"/local/domain/0/domid", b"%d" % DOMID)

    # The daemon.

    def start(self, *options: str, environ: Mapping[bytes, bytes] = {}, before: str = "", ready: bool = True) -> None:
        """Start the daemon. ``before`` is Python that its process runs first; ``ready``: wait until it watches."""
        code = f"{before}\nimport sys\nfrom vbdkit.cli import main\nsys.exit(main())"
        where = ["--run-dir", str(self.run_dir), "--lock-dir", str(self.lock_dir)]
        base = {b"PYTHONPATH": os.fsencode(SOURCE), b"PATH": os.environb[b"PATH"]}
        self.log.write_bytes(b"")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, "devd", *where, *options],
                env={**base, **self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if ready:
            self.says(r"watching ")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the daemon and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(60)
        self.process = None
        return status

    def said(self) -> list[str]:
        """All lines so far."""
        return self.log.read_text().splitlines()

    def says(self, pattern: str, times: int = 1) -> str:
        """Wait for ``times`` lines that have the pattern and return the last of them."""

        def found() -> list[str]:
            return [line for line in self.said() if re.search(pattern, line)]

        end = time.monotonic() + PATIENCE
        while len(found()) < times:
            assert time.monotonic() < end, f"no {pattern!r} in {self.said()[-20:]}"
            assert self.process is None or self.process.poll() in {None, 0}, self.said()[-20:]
            time.sleep(0.005)
        return found()[times - 1]

    # The toolstack.

    def guest(self, domid: int) -> int:
        """Make a guest."""
        uuid = b"00000000-0000-0000-0000-%012x" % domid
        create_guest(self.toolstack, Guest(domid, b"guest%d" % domid, uuid))
        return domid

    def disk(
        self, domid: int, target: Path | str, devid: int = 51712, script: bytes = BLOCK, mode: bytes = b"w"
    ) -> Disk:
        """Write the nodes of a disk, in state 1."""
        disk = Disk(domid, os.fsencode(target), script, mode, devid, backend_domid=DOMID)
        add_disk(self.toolstack, disk)
        return disk

    def waiting_disk(
        self, domid: int, target: Path | str, devid: int = 51712, script: bytes = BLOCK, mode: bytes = b"w"
    ) -> Disk:
        """A disk whose driver waits for the script (there is no driver)."""
        disk = self.disk(domid, target, devid, script, mode)
        self.write(disk, state=INIT_WAIT)
        return disk

    def write(self, disk: Disk, **nodes: bytes) -> None:
        """Write nodes of a backend."""
        self.toolstack.write_many(
            [(disk.backend + b"/" + name.replace("_", "-").encode(), value) for name, value in nodes.items()]
        )

    def closed(self, disk: Disk) -> None:
        """Do what toolstack and driver come to when a disk is detached."""
        self.write(disk, online=b"0", state=CLOSED)

    def nodes(self, disk: Disk) -> dict[str, bytes]:
        """All nodes of a backend; empty where it is gone."""
        try:
            names = self.toolstack.list(disk.backend)
        except StoreError:
            return {}
        values = self.toolstack.read_many([disk.backend + b"/" + name for name in names])
        return {name.decode(): value for name, value in zip(names, values, strict=True) if value is not None}

    def status(self, disk: Disk) -> bytes:
        """hotplug-status, b"" where there is none."""
        return self.toolstack.read_many([disk.backend + b"/" + HOTPLUG_STATUS])[0] or b""

    def becomes(self, disk: Disk, status: bytes) -> None:
        """Wait for a hotplug-status."""
        until(lambda: self.status(disk) == status, f"{disk.backend!r} {status!r}: {self.said()[-5:]}")

    def gone(self, disk: Disk) -> None:
        """Wait until the backend's directory is deleted, and do the rest of the toolstack's part."""
        until(lambda: not self.toolstack.exists(disk.backend), f"{disk.backend!r} deleted: {self.said()[-5:]}")
        remove_disk(self.toolstack, disk)

    def state(self, disk: Disk) -> bytes | None:
        """The backend's state."""
        return self.toolstack.read_many([disk.backend + b"/" + STATE])[0]

    def records(self) -> list[str]:
        """The names of all records."""
        return sorted(path.name for path in self.run_dir.iterdir()) if self.run_dir.exists() else []

    def connect(self) -> Connection:
        """A client's connection in the driver domain."""
        return Connection.open(time.monotonic() + PATIENCE, self.environ)

    def close(self) -> None:
        """End what runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.toolstack.close()
        for name in bound_loops(self.folder):
            subprocess.run(["losetup", "-d", name], check=False)


@contextmanager
def driver_domain(folder: Path, kind: str) -> Iterator[DriverDomain]:
    """A driver domain beside a store of one of KINDS."""
    if kind == "embedded":
        # As much as dom0's administrator gives a domain that serves many disks.
        with EmbeddedStore(os.fsencode(folder / "socket"), quota=Quota(nodes=10000)) as embedded:
            embedded.listen(os.fsencode(folder / "driver"), DOMID)
            environ = {b"XENSTORED_PATH": os.fsencode(folder / "driver")}
            yield from _until_closed(DriverDomain(folder, Store(kind, folder / "socket"), environ))
        return
    with running_store(kind, folder) as store:
        yield from _until_closed(DriverDomain(folder, store, dict(store.environ)))


def _until_closed(domain: DriverDomain) -> Iterator[DriverDomain]:
    try:
        yield domain
    finally:
        domain.close()
