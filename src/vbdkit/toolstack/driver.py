"""Model backend drivers: what a kernel's block backend does with the nodes, where there is no such kernel.

For trying, testing and the conformance kit. A driver watches its backend directories and reacts as the real one
does; it opens what the script published and reads or writes it as a guest would. It moves no data by itself and
plays the frontend's part of the states too: Connected follows from the open.

Source: drivers/block/xen-blkback/xenbus.c of Linux, sys/dev/xen/blkback/blkback.c of FreeBSD, and
sys/arch/xen/xen/xbdback_xenbus.c of NetBSD (protocol.md, the table of who reads what). Linux's nodes are compared with
what the real driver wrote (tests/toolstack/blkback.txt).
"""

import errno
import os
import re
import select
import stat
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vbdkit.protocol.failure import Failure
from vbdkit.protocol.nodes import (
    CLOSED,
    CLOSING,
    DISCARD_ENABLE,
    ERROR,
    HOTPLUG_ERROR,
    HOTPLUG_STATUS,
    INIT_WAIT,
    INITIALISING,
    MODE,
    ONLINE,
    PHYSICAL_DEVICE,
    PHYSICAL_DEVICE_PATH,
    STATE,
    XENBUS_CONNECTED,
)
from vbdkit.protocol.vbd import backend_path, parse_backend_path

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from vbdkit.protocol.vbd import Vbd
    from vbdkit.xenstore.client import Connection

# The unit of a block request on the ring (blkif.h), whatever the device's own sectors are.
SECTOR = 512
# info: what kind of disk (vdisk_info in blkif.h).
READ_ONLY = 4
# Seconds that the store may take for what one event makes the driver do.
_PATIENCE = 10.0


class Opened:
    """A device or file that the driver has open for one vbd."""

    def __init__(self, descriptor: int, what: bytes, writable: bool) -> None:
        """Own ``descriptor``; ``what`` is the node value that named it."""
        self.descriptor = descriptor
        self.what = what
        self.writable = writable

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return os.lseek(self.descriptor, 0, os.SEEK_END)

    def read(self, sector: int, count: int) -> bytes:
        """Return ``count`` sectors of 512 bytes from ``sector`` on. Raises OSError; short past the end."""
        return os.pread(self.descriptor, count * SECTOR, sector * SECTOR)

    def write(self, sector: int, data: bytes) -> None:
        """Write whole sectors. Raises OSError, EROFS where the guest has the disk read-only."""
        if not self.writable:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if len(data) % SECTOR or os.pwrite(self.descriptor, data, sector * SECTOR) != len(data):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fsync(self.descriptor)


class ModelDriver:
    """A backend driver of domain ``domid``, in a thread of its own with its own connection; a context manager.

    ``environ`` says where the store is, as for any client. What a kernel would write to its log is in ``log``.
    """

    # The node whose appearance makes the driver open the device (O6).
    wakes_on = b""
    kinds: tuple[bytes, ...] = (b"vbd",)
    # What it can do, written before InitWait.
    offers: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, environ: Mapping[bytes, bytes], domid: int = 0) -> None:
        """Take where and for whom; nothing runs yet."""
        self.log: list[str] = []
        self._environ = environ
        self._domid = domid
        self._opened: dict[bytes, Opened] = {}
        # backend path -> what could not be opened there
        self._refused: dict[bytes, bytes] = {}
        self._lock = threading.Lock()
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, name="model backend driver", daemon=True)
        self._store: Connection | None = None

    def __enter__(self) -> "Self":
        """Connect, watch and start. Raises StoreError."""
        from vbdkit.xenstore.client import Connection

        self._store = Connection.open(_soon(), self._environ)
        for kind in self.kinds:
            self._store.watch(b"/local/domain/%d/backend/%s" % (self._domid, kind), b"driver")
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: "TracebackType | None") -> None:
        """End, and close every device."""
        os.close(self._stop)
        self._thread.join()
        os.close(self._wake)
        with self._lock:
            for opened in self._opened.values():
                os.close(opened.descriptor)
            self._opened.clear()
        if self._store is not None:
            self._store.close()

    def opened(self, domid: int, devid: int, kind: bytes = b"vbd") -> Opened | None:
        """Return what is open for a vbd, or None."""
        with self._lock:
            return self._opened.get(backend_path(self._domid, kind, domid, devid))

    def open_count(self) -> int:
        """How many devices are open."""
        with self._lock:
            return len(self._opened)

    def open_device(self, value: bytes, writable: bool) -> int:
        """Return a descriptor for what the waking node says. Raises OSError, or ValueError for a malformed value."""
        raise NotImplementedError

    def fail(self, store: "Connection", vbd: "Vbd", error: OSError) -> None:
        """Tell the store that the device could not be opened."""
        raise NotImplementedError

    def may_write(self, mode: bytes) -> bool:
        """Whether a mode lets the guest write: blkback looks for a w anywhere in it."""
        return b"w" in mode

    def describe(self, opened: Opened, asks_discard: bool) -> list[tuple[bytes, bytes]]:
        """Return the nodes that tell the guest about the disk, written before Connected."""
        return [
            (b"sectors", b"%d" % (opened.size // SECTOR)),
            (b"info", b"%d" % (0 if opened.writable else READ_ONLY)),
            (b"sector-size", b"%d" % SECTOR),
        ]

    def _run(self) -> None:
        from vbdkit.xenstore.client import StoreError

        store = self._store
        assert store is not None
        try:
            while True:
                # Events first: some may have come with a reply, and no descriptor tells of those.
                while (event := store.next_event(time.monotonic())) is not None:
                    store.deadline = _soon()
                    self._react(store, event[0])
                if self._wake in select.select([store.fileno(), self._wake], [], [])[0]:
                    return
        except StoreError as error:
            self.log.append(f"the store ended: {error}")

    def _react(self, store: "Connection", path: bytes) -> None:
        root = b"/local/domain/%d/backend/" % self._domid
        parts = path.removeprefix(root).split(b"/")
        # A whole directory came or went: also the first event of a watch, which tells what is there.
        for each in [root + b"/".join(parts[:3])] if len(parts) >= 3 else self._known(store, root):
            vbd = parse_backend_path(each)
            if vbd is not None:
                self._look(store, vbd)

    def _known(self, store: "Connection", root: bytes) -> list[bytes]:
        """Return the backend paths of what is in the store and of what is open."""
        found = set(self._opened)
        for kind in self.kinds:
            kind_path = root + kind
            for domid in store.list_many([kind_path])[0] or ():
                domid_path = kind_path + b"/" + domid
                found.update(domid_path + b"/" + devid for devid in store.list_many([domid_path])[0] or ())
        return sorted(found)

    def _look(self, store: "Connection", vbd: "Vbd") -> None:
        """Bring one vbd to where its nodes want it."""
        names = (STATE, ONLINE, MODE, self.wakes_on, DISCARD_ENABLE)
        state, online, mode, value, discard = store.read_many([vbd.node(name) for name in names])
        with self._lock:
            opened = self._opened.get(vbd.path)
        if state is None or state in {CLOSING, CLOSED}:
            self._close(vbd)
            self._refused.pop(vbd.path, None)
            if state == CLOSING and online == b"0":
                self._switch(store, vbd, CLOSED)
        elif state == INITIALISING:
            self._switch(store, vbd, INIT_WAIT, self.offers)
        elif value is not None and opened is not None:
            if value != opened.what:
                # blkback keeps the device it has and only complains.
                self._say(vbd, f"changing the device from {opened.what!r} to {value!r} is not supported")
        elif value is not None and self._refused.get(vbd.path) != value:
            writable = self.may_write(mode or b"")
            try:
                descriptor = self.open_device(value, writable)
            except (OSError, ValueError) as error:
                failure = error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
                self._refused[vbd.path] = value
                self._say(vbd, f"cannot open {value!r}: {failure.strerror}")
                self.fail(store, vbd, failure)
                return
            opened = Opened(descriptor, value, writable)
            with self._lock:
                self._opened[vbd.path] = opened
            self._switch(store, vbd, XENBUS_CONNECTED, self.describe(opened, discard != b"0"))

    def _close(self, vbd: "Vbd") -> None:
        with self._lock:
            opened = self._opened.pop(vbd.path, None)
        if opened is not None:
            os.close(opened.descriptor)

    def _say(self, vbd: "Vbd", text: str) -> None:
        self.log.append(f"{vbd.name}: {text}")

    @staticmethod
    def _switch(store: "Connection", vbd: "Vbd", state: bytes, nodes: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Write nodes and a state, unless the toolstack has removed the directory: a write must not bring it back."""

        def body(tx: int) -> None:
            if store.exists(vbd.node(STATE), tx):
                store.write_many([(vbd.node(name), value) for name, value in (*nodes, (STATE, state))], tx)

        store.transaction(body)


class LinuxDriver(ModelDriver):
    """xen-blkback: opens the device *by number* from ``physical-device``; a path means nothing to it."""

    wakes_on = PHYSICAL_DEVICE
    offers = (
        (b"feature-max-indirect-segments", b"256"),
        (b"multi-queue-max-queues", b"1"),
        (b"max-ring-page-order", b"4"),
    )

    def describe(self, opened: Opened, asks_discard: bool) -> list[tuple[bytes, bytes]]:
        """Tell also what the device can do, as its queue says."""
        rdev = os.fstat(opened.descriptor).st_rdev
        device = Path(f"/sys/dev/block/{os.major(rdev)}:{os.minor(rdev)}")
        flushes = b"%d" % (_fact(device, "queue/write_cache") == b"write back")
        nodes = [
            *super().describe(opened, asks_discard)[:2],
            (b"sector-size", _fact(device, "queue/logical_block_size")),
            (b"physical-sector-size", _fact(device, "queue/physical_block_size")),
            (b"feature-flush-cache", flushes),
            (b"feature-barrier", flushes),
            (b"feature-persistent", b"1"),
        ]
        if asks_discard and _fact(device, "queue/discard_max_bytes") != b"0":
            nodes += [
                (b"feature-discard", b"1"),
                (b"discard-granularity", _fact(device, "queue/discard_granularity")),
                (b"discard-alignment", _fact(device, "discard_alignment")),
                (b"discard-secure", b"0"),
            ]
        return nodes

    def open_device(self, value: bytes, writable: bool) -> int:
        """Open ``%x:%x``."""
        found = re.match(rb"([0-9a-fA-F]+):([0-9a-fA-F]+)", value)
        if found is None:
            raise ValueError(f"{value!r} is not a device number")
        return open_by_number(int(found[1], 16), int(found[2], 16), writable)

    def fail(self, store: "Connection", vbd: "Vbd", error: OSError) -> None:
        """Write the error where the kernel's xenbus_dev_fatal does, and close."""
        node = b"/local/domain/%d/error/backend/%s/error" % (self._domid, vbd.path.partition(b"/backend/")[2])
        store.write_many([(node, b"%d creating vbd structure" % (error.errno or 0))])
        self._switch(store, vbd, CLOSING)


class FreebsdDriver(ModelDriver):
    """FreeBSD's blkback: opens the device *or plain file* at ``physical-device-path`` itself."""

    wakes_on = PHYSICAL_DEVICE_PATH
    offers = ((b"feature-barrier", b"1"), (b"feature-flush-cache", b"1"), (b"max-ring-page-order", b"3"))

    def open_device(self, value: bytes, writable: bool) -> int:
        """Open the path."""
        descriptor = os.open(value, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK)
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISREG(kind) or stat.S_ISBLK(kind) or stat.S_ISCHR(kind):
            return descriptor
        os.close(descriptor)
        raise OSError(errno.EINVAL, "neither a device nor a plain file")

    def fail(self, store: "Connection", vbd: "Vbd", error: OSError) -> None:
        """Write the error into the backend directory and take the disk offline, as xbb_attach_failed does."""
        sentence = f"cannot open the disk: {error.strerror}".encode()
        items = [(HOTPLUG_ERROR, sentence), (HOTPLUG_STATUS, ERROR), (ONLINE, b"0"), (STATE, CLOSING)]

        def body(tx: int) -> None:
            if store.exists(vbd.node(STATE), tx):
                store.write_many([(vbd.node(name), text) for name, text in items], tx)

        store.transaction(body)


class NetbsdDriver(ModelDriver):
    """NetBSD's xbdback: opens the device by number from ``physical-device``, one decimal dev_t, and as the only one."""

    wakes_on = PHYSICAL_DEVICE

    def may_write(self, mode: bytes) -> bool:
        """Whether a mode lets the guest write: xbdback looks at its first character."""
        return mode[:1] == b"w"

    def open_device(self, value: bytes, writable: bool) -> int:
        """Open a decimal dev_t. Block devices are opened once only there, which O_EXCL is here."""
        if not value.isdigit():
            raise ValueError(f"{value!r} is not a decimal number")
        return open_by_number(os.major(int(value)), os.minor(int(value)), writable, os.O_EXCL)

    def describe(self, opened: Opened, asks_discard: bool) -> list[tuple[bytes, bytes]]:
        """Tell also that it flushes."""
        return [*super().describe(opened, asks_discard), (b"feature-flush-cache", b"1")]

    def fail(self, store: "Connection", vbd: "Vbd", error: OSError) -> None:
        """Tell the store nothing: xbdback prints to the console and stays in InitWait."""


DRIVERS: dict[str, type[ModelDriver]] = {"linux": LinuxDriver, "freebsd": FreebsdDriver, "netbsd": NetbsdDriver}


def _fact(device: Path, name: str) -> bytes:
    """Return what sysfs tells of a block device; a partition has its disk's queue."""
    for folder in (device, device / ".."):
        if (folder / name).exists():
            return (folder / name).read_bytes().strip()
    return b"0"


def open_by_number(major: int, minor: int, writable: bool, flags: int = 0) -> int:
    """Open a block device by its number alone, as the kernel does, with more ``flags`` of open(2). Raises OSError.

    A node is made for the moment in a folder of our own below /dev: there, unlike in /tmp, devices are allowed
    in every distribution, and no name that others made is trusted. Needs root.
    """
    device = os.makedev(major, minor)
    with tempfile.TemporaryDirectory(prefix=".vbdkit-", dir="/dev") as folder:
        node = Path(folder, "device")
        os.mknod(node, 0o600 | stat.S_IFBLK, device)
        try:
            return os.open(node, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | flags)
        finally:
            node.unlink()


def driver_for(system: str) -> type[ModelDriver]:
    """Return the model driver of a system. Raises Failure where there is none."""
    if system not in DRIVERS:
        raise Failure("there is no model backend driver for {system}", system=system)
    return DRIVERS[system]


def _soon() -> float:
    """Return a deadline for the store's replies."""
    return time.monotonic() + _PATIENCE
