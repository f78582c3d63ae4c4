"""The nodes that libxl writes for a guest and its disks, with libxl's permissions, and takes away again.

Owns what stands in the store and when; starts no script and opens no disk. Source: libxl_device.c
(libxl__device_generic_add, device removal) and libxl_disk.c of Xen; protocol.md I1-I3.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vbdkit.protocol.failure import Failure
from vbdkit.protocol.nodes import (
    BOOTABLE,
    CLOSED,
    CLOSING,
    DEV,
    DEVICE_TYPE,
    DISCARD_ENABLE,
    FRONTEND,
    FRONTEND_ID,
    INITIALISING,
    MODE,
    ONLINE,
    PARAMS,
    REMOVABLE,
    SCRIPT,
    SPECIFICATION,
    STATE,
    TYPE,
)
from vbdkit.protocol.vbd import backend_path, parse_backend_path
from vbdkit.toolstack.ways import BY_SCRIPT

if TYPE_CHECKING:
    from vbdkit.xenstore.client import Connection

# Seconds: libxl's LIBXL_INIT_TIMEOUT and LIBXL_DESTROY_TIMEOUT.
INIT_TIMEOUT = 10.0
DESTROY_TIMEOUT = 10.0
# Ours among libxl's own nodes of a disk: by which way it was attached.
WAY = b"vbdkit-way"


@dataclass(frozen=True)
class Guest:
    """A domain as its toolstack names it: domid, name, and the VM's UUID (the same one across a migration)."""

    domid: int
    name: bytes
    uuid: bytes

    @property
    def path(self) -> bytes:
        """Where its nodes are."""
        return b"/local/domain/%d" % self.domid


@dataclass(frozen=True)
class Disk:
    """One disk of one guest, by what libxl writes for it.

    ``params`` is the target verbatim; ``mode`` what stands in the node (r, w, w!, ...); ``devid`` and ``dev`` the
    virtual device by number and name (51712, xvda); ``type`` libxl's backend type (phy; vbd3 for tapback).
    ``way`` is who publishes (toolstack/ways.py), noted where only a toolstack looks, unless it is the script.
    """

    domid: int
    params: bytes
    script: bytes
    mode: bytes = b"w"
    devid: int = 51712
    dev: bytes = b"xvda"
    kind: bytes = b"vbd"
    type: bytes = b"phy"
    backend_domid: int = 0
    device_type: bytes = b"disk"
    removable: bool = False
    discard: bool = True
    direct_io_safe: bool = False
    trusted: bool = True
    way: bytes = BY_SCRIPT

    @property
    def backend(self) -> bytes:
        """The absolute backend path."""
        return backend_path(self.backend_domid, self.kind, self.domid, self.devid)

    @property
    def frontend(self) -> bytes:
        """The absolute frontend path."""
        return b"/local/domain/%d/device/vbd/%d" % (self.domid, self.devid)

    @property
    def libxl(self) -> bytes:
        """Where the toolstack keeps a copy that no backend can change."""
        return b"/libxl/%d/device/vbd/%d" % (self.domid, self.devid)


def create_guest(store: "Connection", guest: Guest) -> None:
    """Write a domain's own nodes: what scripts and the sharing check read of a guest. Raises StoreError."""
    vm = b"/vm/" + guest.uuid

    def body(tx: int) -> None:
        # The guest reads its own directory, the toolstack's domain owns it.
        for path in (guest.path, vm):
            _directory(store, path, 0, [guest.domid], tx)
        _directory(store, b"/libxl/%d" % guest.domid, 0, [], tx)
        store.write_many(
            [
                (guest.path + b"/domid", b"%d" % guest.domid),
                (guest.path + b"/name", guest.name),
                (guest.path + b"/vm", vm),
                (vm + b"/uuid", guest.uuid),
                (vm + b"/name", guest.name),
            ],
            tx,
        )

    store.transaction(body)


def destroy_guest(store: "Connection", guest: Guest) -> None:
    """Remove a domain's own nodes; the disks' backend nodes stay as they are. Raises StoreError."""

    def body(tx: int) -> None:
        for path in (guest.path, b"/vm/" + guest.uuid, b"/libxl/%d" % guest.domid):
            _remove(store, path, tx)

    store.transaction(body)


def add_disk(store: "Connection", disk: Disk) -> None:
    """Write backend, frontend and /libxl nodes of a disk in one transaction, both in state 1.

    Raises Failure where there is no such guest, or it has this disk already; StoreError.
    """
    back = [
        (FRONTEND_ID, b"%d" % disk.domid),
        (ONLINE, b"1"),
        (REMOVABLE, b"%d" % disk.removable),
        (BOOTABLE, b"1"),
        (STATE, INITIALISING),
        (DEV, disk.dev),
        (TYPE, disk.type),
        (MODE, disk.mode),
        (DEVICE_TYPE, disk.device_type),
        *([(b"direct-io-safe", b"1")] if disk.direct_io_safe else []),
        (DISCARD_ENABLE, b"%d" % disk.discard),
        (SPECIFICATION, b"xen"),
        (PARAMS, disk.params),
        (SCRIPT, disk.script),
    ]
    front = [
        (b"backend", disk.backend),
        (b"backend-id", b"%d" % disk.backend_domid),
        (STATE, INITIALISING),
        (b"virtual-device", b"%d" % disk.devid),
        (DEVICE_TYPE, disk.device_type),
        (b"trusted", b"%d" % disk.trusted),
    ]

    def body(tx: int) -> None:
        guest, taken = store.read_many([b"/local/domain/%d" % disk.domid, disk.libxl], tx)
        if guest is None:
            raise Failure("there is no guest {domid} (xl list shows them)", domid=disk.domid)
        if taken is not None:
            raise Failure("guest {domid} has a disk {dev} already", domid=disk.domid, dev=disk.dev)
        _directory(store, disk.frontend, disk.domid, [disk.backend_domid], tx)
        _directory(store, disk.backend, disk.backend_domid, [disk.domid], tx)
        _directory(store, disk.libxl, 0, [], tx)
        items = [(disk.frontend + b"/" + name, value) for name, value in front]
        items += [(disk.backend + b"/" + name, value) for name, value in [(FRONTEND, disk.frontend), *back]]
        items += [(disk.libxl + b"/" + name, value) for name, value in [(FRONTEND, disk.frontend), *back]]
        items.append((disk.libxl + b"/backend", disk.backend))
        if disk.way != BY_SCRIPT:
            items.append((disk.libxl + b"/" + WAY, disk.way))
        store.write_many(items, tx)

    store.transaction(body)


def find_disk(store: "Connection", domid: int, devid: int) -> Disk | None:
    """Return a guest's disk as its toolstack (libxl, or this one) noted it, or None. Raises StoreError.

    All comes from /libxl, which no backend domain can change; a backend of any kind is found.
    """
    libxl = b"/libxl/%d/device/vbd/%d" % (domid, devid)
    names = (b"backend", PARAMS, SCRIPT, MODE, DEV, TYPE, DEVICE_TYPE, REMOVABLE, WAY)
    path, params, script, mode, dev, kind, device_type, removable, way = store.read_many(
        [libxl + b"/" + name for name in names]
    )
    backend = None if path is None else parse_backend_path(path)
    if backend is None or backend.backend is None:
        return None
    return Disk(
        domid,
        params or b"",
        script or b"",
        mode=mode or b"",
        devid=devid,
        dev=dev or b"%d" % devid,
        kind=backend.kind,
        type=kind or b"",
        backend_domid=backend.backend,
        device_type=device_type or b"disk",
        removable=removable == b"1",
        way=way or BY_SCRIPT,
    )


def disks_of(store: "Connection", domid: int) -> list[Disk]:
    """Return all disks of a guest, by their numbers. Raises StoreError."""
    names = store.list_many([b"/libxl/%d/device/vbd" % domid])[0] or []
    found = (find_disk(store, domid, devid) for devid in sorted(int(name) for name in names if name.isdigit()))
    return [disk for disk in found if disk is not None]


def close_disk(store: "Connection", disk: Disk, force: bool = False) -> bool:
    """Ask the backend to let go: online 0, state 5, unless it is closed already. Raises StoreError.

    ``force`` takes the frontend away first, so that no guest is asked. Returns False where the backend's state is
    gone: libxl then runs no script (I4).
    """
    there = [True]

    def body(tx: int) -> None:
        if force:
            _remove_with_parents(store, disk.frontend, tx)
        state = store.read_many([disk.backend + b"/" + STATE], tx)[0]
        there[0] = state is not None
        if state is not None:
            items = [(disk.backend + b"/" + ONLINE, b"0")]
            if state != CLOSED:
                items.append((disk.backend + b"/" + STATE, CLOSING))
            store.write_many(items, tx)

    store.transaction(body)
    return there[0]


def remove_disk(store: "Connection", disk: Disk, backend: bool = True) -> None:
    """Delete all nodes of a disk, and the directories above them that are empty then. Raises StoreError.

    ``backend`` False leaves the backend's to the domain that serves it.
    """

    def body(tx: int) -> None:
        for path in (disk.frontend, disk.backend, disk.libxl):
            if backend or path != disk.backend:
                _remove_with_parents(store, path, tx)

    store.transaction(body)


def wait_for_state(
    store: "Connection", disk: Disk, wanted: Collection[bytes], timeout: float, gone: bool = False
) -> bytes:
    """Wait until the backend's state is one of ``wanted`` and return it.

    Raises Failure after ``timeout`` seconds, and where the state node is removed meanwhile (with ``gone`` that will
    do, too, and returns ``b""``); StoreError.
    """
    node = disk.backend + b"/" + STATE
    end = time.monotonic() + timeout
    token = b"state-%d-%d" % (disk.domid, disk.devid)
    store.watch(node, token)
    try:
        while True:
            state = store.read_many([node])[0]
            if state is None and gone:
                return b""
            if state is None:
                raise Failure("{node} was removed while the toolstack waited for it", node=node)
            if state in wanted:
                return state
            if store.next_event(end) is None:
                raise Failure(
                    "{node} is {state} after {timeout} s; the toolstack waits for {wanted}",
                    node=node,
                    state=state,
                    timeout=f"{timeout:g}",
                    wanted=b" or ".join(wanted),
                )
    finally:
        store.unwatch(node, token)


def _directory(store: "Connection", path: bytes, owner: int, readers: Sequence[int], tx: int) -> None:
    """Make an empty directory: its owner may do everything, ``readers`` may read. What is made inside inherits that."""
    _remove(store, path, tx)
    store.mkdir(path, tx)
    store.set_permissions(path, [b"n%d" % owner, *(b"r%d" % domid for domid in readers)], tx)


def _remove(store: "Connection", path: bytes, tx: int) -> None:
    if store.exists(path, tx):
        store.remove(path, tx)


def _remove_with_parents(store: "Connection", path: bytes, tx: int) -> None:
    """Remove a disk's directory, and the two above it (guest and kind, or kind and "device") where they are empty."""
    _remove(store, path, tx)
    for _ in range(2):
        path = path.rpartition(b"/")[0]
        if store.list_many([path], tx)[0] == []:
            _remove(store, path, tx)
