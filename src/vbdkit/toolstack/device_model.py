"""Emulated disks: the arguments that give a guest's device model (qemu) the disks that its scripts attached (G4).

An HVM guest boots from emulated hardware, before it has paravirtual drivers; what qemu opens for that is what the
script published. Owns the choice of path, controller and unit, in the forms of libxl_dm.c of Xen
(libxl__build_device_model_args_new), and reads the toolstack's own copy of the nodes, which no backend can change.

Unlike libxl, paths may hold commas (qemu's options would end there), and a disk of the default script is opened by
its published path as well: a loop device that is read-only in fact, and the same cache as the backend driver's.
"""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

from vbdkit.protocol.failure import Failure, shown
from vbdkit.protocol.mode import parse_mode
from vbdkit.protocol.nodes import PHYSICAL_DEVICE_PATH, SCRIPT_KINDS
from vbdkit.protocol.vdev import VdevError, parse_vdev
from vbdkit.toolstack.nodes import Disk, disks_of

if TYPE_CHECKING:
    from vbdkit.xenstore.client import Connection

IDE, AHCI = "ide", "ahci"
HDTYPES = (IDE, AHCI)

# The disks that a controller has room for, from the first.
_IDE_DISKS = 4
_AHCI_DISKS = 6
# A stub domain's own disks are /dev/xvda to /dev/xvdz.
_STUB_DISKS = 26
# qdisk's params are FORMAT:FILE, in blktap's words; qemu's for them (libxl__qemu_disk_format_string).
_FORMATS = {b"aio": "raw", b"qcow": "qcow", b"qcow2": "qcow2", b"vhd": "vpc", b"qed": "qed"}
_CDROM = b"cdrom"
_ADVICE = "the guest has it through paravirtual drivers only"


@dataclass
class Emulation:
    """``arguments`` for qemu; ``notes`` name the disks that are not emulated, and why."""

    arguments: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _NotEmulated(Exception):
    """A reason for a note."""


def device_model_arguments(store: "Connection", domid: int, hdtype: str = IDE, stub_domain: bool = False) -> Emulation:
    """Return what the device model of guest ``domid`` is told of its disks. ``hdtype``: IDE or AHCI, as in xl.cfg(5).

    ``stub_domain``: it runs in a Linux stub domain, which has the guest's disks as its own, whoever serves them.

    Raises StoreError, and Failure where libxl would not start the guest: a read-only disk that cannot be emulated.
    """
    result = Emulation()
    disks = disks_of(store, domid)
    if not disks and not store.exists(b"/local/domain/%d" % domid):
        raise Failure("there is no guest {domid} (xl list shows them)", domid=domid)
    # Where libxl puts it: ahead of all others, so on the same PCI slot each time.
    if any(_is_scsi(disk) for disk in disks):
        result.arguments += ["-device", "lsi53c895a"]
    if hdtype == AHCI:
        result.arguments += ["-device", "ahci,id=ahci0"]
    paths = store.read_many([disk.backend + b"/" + PHYSICAL_DEVICE_PATH for disk in disks])
    for disk, path in zip(disks, paths, strict=True):
        try:
            result.arguments += _arguments(disk, path, hdtype, stub_domain)
        except (_NotEmulated, VdevError) as reason:
            result.notes.append(f"{shown(disk.dev)} is not emulated: {reason}; {_ADVICE}")
    return result


def _is_scsi(disk: Disk) -> bool:
    return disk.dev.startswith(b"sd") and disk.device_type != _CDROM


def _arguments(disk: Disk, path: bytes | None, hdtype: str, stub_domain: bool) -> list[str]:
    """Return the arguments for one disk, whose script has published ``path``.

    Raises _NotEmulated, VdevError, and Failure where there is no such hardware.
    """
    vdev = parse_vdev(shown(disk.dev))
    number = vdev.disk
    if number is None:
        raise _NotEmulated("its number stands for no disk of a controller")
    file, form = _file_in_stub_domain(disk, number) if stub_domain else _file(disk, path)
    if disk.device_type == _CDROM:
        if number >= _IDE_DISKS:
            raise _NotEmulated("only the first four disks may be CD-ROMs")
        name = f"ide-{vdev.devid}"
        medium = {} if file is None else {"file": file, "format": form}
        drive = _options({"if": "none", "readonly": "on", "id": name, **medium})
        return ["-drive", drive, "-device", f"ide-cd,id={name},drive={name},bus=ide.{number // 2},unit={number % 2}"]
    if file is None:
        raise _NotEmulated("a disk that is no CD-ROM has to have a medium")
    writable = _is_writable(disk)
    if _is_scsi(disk):
        name = f"scsi0-hd{number}"
        readonly = "off" if writable else "on"
        facts = {"file": file, "id": name, "format": form, "if": "none", "readonly": readonly, "cache": "writeback"}
        return ["-drive", _options(facts), "-device", f"scsi-hd,drive={name},scsi-id={number}"]
    controller = "AHCI" if hdtype == AHCI and number < _AHCI_DISKS else "IDE"
    if number >= _IDE_DISKS and controller == "IDE":
        room = "six disks, by AHCI" if hdtype == AHCI else "four disks, by IDE"
        raise _NotEmulated(f"there is room for the first {room}")
    if not writable:
        raise Failure(
            "{name} is read-only, and qemu has no read-only {controller} disks, so the guest cannot be started with "
            "it; give it as a SCSI disk (vdev sda), as a CD-ROM (devtype=cdrom), or read-write",
            name=disk.dev,
            controller=controller,
        )
    if controller == "AHCI":
        name = f"ahcidisk-{number}"
        facts = {"file": file, "if": "none", "id": name, "format": form, "cache": "writeback"}
        return ["-drive", _options(facts), "-device", f"ide-hd,bus=ahci0.{number},unit=0,drive={name}"]
    facts = {"file": file, "if": "ide", "index": str(number), "media": "disk", "format": form, "cache": "writeback"}
    return ["-drive", _options(facts)]


def _is_writable(disk: Disk) -> bool:
    mode = parse_mode(disk.mode)
    if mode is None:
        raise Failure("{node} is {mode}, which is no access mode", node=disk.libxl + b"/mode", mode=shown(disk.mode))
    return mode.writable


def _file(disk: Disk, path: bytes | None) -> tuple[str | None, str]:
    """Return what qemu opens, None for a drive without a medium, and its format. Raises _NotEmulated."""
    if disk.backend_domid != 0:
        raise _NotEmulated(f"domain {disk.backend_domid} serves it, and this one has nothing to open")
    if disk.kind == b"qdisk":
        form, colon, target = disk.params.partition(b":")
        if disk.params and (not colon or (target and form not in _FORMATS)):
            raise _NotEmulated(f"{shown(disk.params)} names no format that qemu knows from Xen")
        return (os.fsdecode(target), _FORMATS[form]) if target else (None, "raw")
    if disk.kind not in SCRIPT_KINDS:
        raise _NotEmulated(f"nothing is known of backends of kind {shown(disk.kind)}")
    if not disk.params:
        return None, "raw"
    node = disk.backend + b"/" + PHYSICAL_DEVICE_PATH
    if path is None:
        raise _NotEmulated(f"there is no {shown(node)}: its script has not attached it")
    if not path.startswith(b"/"):
        # Else qemu would take what is before a colon for a protocol.
        raise _NotEmulated(f"{shown(node)} is {shown(path)}, which is no path")
    if disk.kind == b"vbd3":
        return "nbd+unix:///?socket=" + quote(path), "raw"
    return os.fsdecode(path), "raw"


def _file_in_stub_domain(disk: Disk, number: int) -> tuple[str | None, str]:
    """Return what qemu opens there, as `_file` does. The number that the guest sees names the device."""
    if not (disk.params.partition(b":")[2] if disk.kind == b"qdisk" else disk.params):
        return None, "host_device"
    if number >= _STUB_DISKS:
        raise _NotEmulated(f"a stub domain has room for the first {_STUB_DISKS} disks")
    return f"/dev/xvd{chr(ord('a') + number)}", "host_device"


def _options(facts: dict[str, str]) -> str:
    """Return ``facts`` as an option of qemu's, in which a comma is doubled."""
    return ",".join(f"{name}={value.replace(',', ',,')}" for name, value in facts.items())
