"""From a disk specification to the vbd that gets it: libxl's defaults, and its choice of a backend.

Of libxl's backends this toolstack serves phy, the one with block scripts; what libxl would give to another one is
refused with the reason. Source: libxl_disk.c (libxl__device_disk_setdefault) and libxl_device.c (disk_try_backend,
libxl__device_disk_set_backend) of Xen 4.17.
"""

import os
from typing import TYPE_CHECKING

from vbdkit import platform
from vbdkit.protocol.disk import Disk as Specification
from vbdkit.protocol.failure import Failure
from vbdkit.protocol.vdev import parse_vdev
from vbdkit.toolstack.domains import find_domain, own_domid
from vbdkit.toolstack.nodes import Disk
from vbdkit.toolstack.ways import BY_SCRIPT, way_for

if TYPE_CHECKING:
    from vbdkit.toolstack.settings import Settings
    from vbdkit.xenstore.client import Connection


def choose(store: "Connection", asked: Specification, domid: int, settings: "Settings") -> Disk:
    """Return the disk of guest ``domid`` that a specification asks for. Nothing is written.

    Raises VdevError, StoreError, and Failure where the target is not there or phy cannot serve it.
    """
    vdev = parse_vdev(asked.vdev or "")
    own = own_domid(store)
    backend = find_domain(store, os.fsencode(asked.backend_domname)) if asked.backend_domname else own
    reason = _not_phy(store, asked, domid)
    if reason:
        raise Failure(
            "vbdkit does not serve the disk {vdev}: {reason}; xl block-attach does",
            vdev=asked.vdev,
            reason=reason,
        )
    params = os.fsencode(asked.pdev_path or "")
    if backend == own and asked.script is None:
        # Names what is not there now, before a node is written. The script opens it again for itself.
        platform.load(settings.system).open_target(params, asked.readwrite).close()
    script = settings.script(os.fsencode(asked.script or "block"))
    return Disk(
        domid,
        params,
        script,
        mode=b"w" if asked.readwrite else b"r",
        devid=vdev.devid,
        dev=os.fsencode(asked.vdev or ""),
        backend_domid=backend,
        device_type=b"cdrom" if asked.is_cdrom else b"disk",
        removable=asked.removable,
        discard=asked.readwrite if asked.discard_enable is None else asked.discard_enable,
        direct_io_safe=asked.direct_io_safe,
        trusted=asked.trusted is not False,
        way=way_for(script, settings) if backend == own else BY_SCRIPT,
    )


def _not_phy(store: "Connection", asked: Specification, domid: int) -> str:
    """Return why libxl would not choose phy, in words; empty where it would, as far as that shows in the words."""
    if asked.specification == "virtio":
        return "a virtio disk is served by a program of its own, not by a block script"
    if asked.colo_enable:
        return "a COLO disk is served by QEMU (qdisk), not by a block script"
    if asked.backend not in ("unknown", "phy"):
        by = {"qdisk": "QEMU", "tap": "tapback", "standalone": "a program of its own"}[asked.backend]
        return f"backendtype={asked.backend} is served by {by}, not by a block script"
    if asked.format == "empty":
        return "an empty drive is served by QEMU (qdisk), not by a block script"
    if asked.format != "raw":
        return f"the format {asked.format} is read by QEMU (qdisk), not by a block script"
    if asked.is_cdrom and store.read_many([b"/libxl/%d/dm-version" % domid])[0] == b"qemu_xen":
        return "the CD-ROM drives of a guest with a device model are served by that (qdisk), not by a block script"
    return ""
