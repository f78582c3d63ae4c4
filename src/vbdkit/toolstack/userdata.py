"""libxl's own configuration of a guest, from which xl saves, migrates and reboots it.

A disk that is not in there is gone after that, whatever the store says; so one is written there before its nodes, as
libxl does it. One in there that has no nodes is passed over by libxl, so a failed attach or a detach leaves it alone.
Source: libxl_disk.c (device_disk_add), libxl_dom.c (libxl__userdata_path, libxl__userdata_store), libxl_internal.c
(libxl__lock_domain_userdata) and libxl_domain.c (libxl_retrieve_domain_configuration) of Xen.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vbdkit.engine.lock import Lock
from vbdkit.protocol.disk import Disk as Specification
from vbdkit.protocol.disk import disk_json
from vbdkit.protocol.failure import shown
from vbdkit.protocol.mode import parse_mode
from vbdkit.toolstack.domains import name_of, own_domid

if TYPE_CHECKING:
    from vbdkit.toolstack.nodes import Disk
    from vbdkit.toolstack.settings import Settings
    from vbdkit.xenstore.client import Connection

# Xen's XEN_LIB_DIR.
FOLDER = b"/var/lib/xen"


@contextmanager
def remembered(store: "Connection", disk: "Disk", settings: "Settings") -> Iterator[list[str]]:
    """Write a new disk into its guest's configuration, and hold that's lock while the nodes are written.

    Gives sentences about what did not work; where libxl knows nothing of the guest there is nothing to do. Raises
    Failure where somebody else holds the lock for too long; StoreError.
    """
    vm = store.read_many([b"/local/domain/%d/vm" % disk.domid])[0] or b""
    name = b"%d.%s" % (disk.domid, vm.removeprefix(b"/vm/"))
    path = b"%s/userdata-d.%s.libxl-json" % (settings.userdata_dir, name)
    if not vm.startswith(b"/vm/") or b"/" in name or b"\0" in name or not os.path.exists(path):
        yield []
        return
    with Lock(settings.userdata_dir, store.deadline, b"userdata-l.%s.domain-userdata-lock" % name):
        notes = []
        # Of a disk that the guest has already, its toolstack's words stay.
        if not store.exists(disk.libxl):
            try:
                new = b"%s/userdata-n.%s.libxl-json" % (settings.userdata_dir, name)
                _write(path, new, json.loads(disk_json(_specification(store, disk, settings))))
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                notes.append(
                    f"xl save, migrate and reboot will leave the disk {shown(disk.dev)} out: "
                    f"it could not be added to {shown(path)}: {why}"
                )
        yield notes


def _specification(store: "Connection", disk: "Disk", settings: "Settings") -> Specification:
    """Return what xl would have been told of the disk."""
    mode = parse_mode(disk.mode)
    writable = mode is not None and mode.writable
    found = Specification(
        pdev_path=os.fsdecode(disk.params),
        vdev=os.fsdecode(disk.dev),
        format="raw",
        script=None if disk.script == settings.script() else os.fsdecode(disk.script),
        removable=disk.removable,
        readwrite=writable,
        is_cdrom=disk.device_type == b"cdrom",
        direct_io_safe=disk.direct_io_safe,
        discard_enable=None if disk.discard == writable else disk.discard,
        trusted=None if disk.trusted else False,
    )
    if disk.backend_domid != own_domid(store):
        # By name: on the next host, or after a reboot, it has another number.
        found.backend_domname = os.fsdecode(name_of(store, disk.backend_domid)) or None
        found.backend_domid = 0 if found.backend_domname else disk.backend_domid
    return found


def _write(path: bytes, new: bytes, entry: dict[str, object]) -> None:
    """Put a disk into the configuration, in place of one of its name. Raises OSError, and ValueError for what is none.

    Text that is no UTF-8 is refused (UnicodeError is a ValueError, too): libxl would not read the file again.
    """
    with open(path, "rb") as file:
        configuration = json.loads(file.read().rstrip(b"\0").decode("utf-8"))
    disks = configuration.get("disks", []) if isinstance(configuration, dict) else None
    if not isinstance(disks, list) or not all(isinstance(one, dict) for one in disks):
        raise ValueError("it is no configuration of libxl's")
    configuration["disks"] = [one for one in disks if one.get("vdev") != entry["vdev"]] + [entry]
    text = json.dumps(configuration, indent=4, ensure_ascii=False).encode("utf-8")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb") as file:
        # With the end of a C string, as libxl reads it.
        file.write(text + b"\0")
    os.rename(new, path)
