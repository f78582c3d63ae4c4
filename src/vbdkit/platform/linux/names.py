"""What a block device is called and what it is, for people: by sysfs, never by what its node is called."""

import posix

from vbdkit.platform.linux import kernel
from vbdkit.platform.linux.kernel import device_folder, exists, numbers, read
from vbdkit.protocol.failure import shown
from vbdkit.storage.chain import BLOCK, ITSELF

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vbdkit.storage.chain import Chain

# the kernel's name up to its number -> what it is
_KINDS = {
    b"loop": "loop device",
    b"nbd": "network block device",
    b"rbd": "Ceph RBD image",
    b"drbd": "DRBD volume",
    b"zd": "ZFS volume",
    b"md": "md array",
    b"nvme": "NVMe namespace",
    b"sr": "CD-ROM drive",
    b"zram": "compressed RAM disk",
    b"bcache": "bcache device",
    b"ram": "RAM disk",
}
# how a device-mapper device's uuid begins -> what it is
_MAPPED = {
    b"LVM-": "LVM volume",
    b"CRYPT-": "encrypted device",
    b"mpath-": "multipath device",
    b"part": "mapped partition",
}


def name_links(chain: "Chain") -> None:
    """Say of each link of a chain what it is and, but for the target itself, how it is called."""
    for identity, link in chain.links.items():
        if identity[0] == BLOCK:
            name, link.what = device_name(identity[1])
        else:
            name = link.name or b"file %d of device %d:%d" % (identity[1], *numbers(identity[0]))
            link.what = "file"
        if link.place != ITSELF:
            link.name = name


def device_name(rdev: int) -> "tuple[bytes, str]":
    """Return the path of a device and what it is ("LVM volume vg0/web"); what sysfs does not tell is left general."""
    folder = device_folder(rdev)
    try:
        place = posix.readlink(folder).split(b"/")
    except OSError:
        return b"device %d:%d" % numbers(rdev), "block device"
    name = _text(folder + b"/dm/name")
    if name:
        mapped = b"/dev/mapper/" + name
        path = mapped if exists(mapped) else b"/dev/" + place[-1]
        return path, _mapped_kind(name, _text(folder + b"/dm/uuid"))
    partition = _text(folder + b"/partition")
    if partition:
        return _node(place[-1]), (b"partition %s of %s" % (partition, _node(place[-2]))).decode(
            "utf-8", "backslashreplace"
        )
    return _node(place[-1]), _kind(folder, place)


def _mapped_kind(name: bytes, uuid: bytes) -> str:
    what = next((words for start, words in _MAPPED.items() if uuid.startswith(start)), "device-mapper device")
    if uuid.startswith(b"LVM-"):
        # LVM doubles the hyphens within names: vg--a-lv--b is vg-a/lv-b.
        group, _, volume = name.replace(b"--", b"\0").partition(b"-")
        what += " " + shown((group + b"/" + volume).replace(b"\0", b"-"))
    return what


def _kind(folder: bytes, place: "list[bytes]") -> str:
    name = place[-1]
    what = next((words for start, words in _KINDS.items() if name.startswith(start)), "disk")
    more = b""
    if name.startswith(b"md"):
        more = _text(folder + b"/md/level")
    elif name.startswith(b"nbd"):
        server = _text(folder + b"/pid")
        more = b"served through process " + server if server else b""
    elif name.startswith(b"rbd"):
        image = b"%s/bus/rbd/devices/%s" % (kernel.SYSFS, name[3:])
        more = _text(image + b"/pool") + b"/" + _text(image + b"/name")
    elif b"nvme-subsystem" in place:
        what = "NVMe multipath namespace"
    return what + (" " + shown(more) if more.strip(b"/") else "")


def _node(name: bytes) -> bytes:
    return b"/dev/" + name.replace(b"!", b"/")


def _text(path: bytes) -> bytes:
    try:
        return read(path).strip()
    except OSError:
        return b""
