"""Names and words of the protocol as they stand in xenstore. Bytes, since xenstore is bytes.

Owns no rule and does no I/O. Clauses are those of docs/protocol.md.
"""

# Written by the toolstack before the script runs (I1-I3).
PARAMS = b"params"
MODE = b"mode"
FRONTEND = b"frontend"
FRONTEND_ID = b"frontend-id"
SCRIPT = b"script"
TYPE = b"type"
STATE = b"state"
ONLINE = b"online"
DEV = b"dev"
DEVICE_TYPE = b"device-type"
REMOVABLE = b"removable"
BOOTABLE = b"bootable"
DISCARD_ENABLE = b"discard-enable"
SPECIFICATION = b"specification"

# Written by the script (O3-O9).
PHYSICAL_DEVICE = b"physical-device"
PHYSICAL_DEVICE_PATH = b"physical-device-path"
HOTPLUG_STATUS = b"hotplug-status"
HOTPLUG_ERROR = b"hotplug-error"
NODE = b"node"
VND = b"vnd"  # what node is on Linux, as NetBSD has it

# What a script leaves in a backend directory: the list that `remove` and a failed `add` take back.
OUTPUT = (PHYSICAL_DEVICE, PHYSICAL_DEVICE_PATH, NODE, VND)

# hotplug-status (O7).
CONNECTED = b"connected"
ERROR = b"error"
BUSY = b"busy"

# Xenbus states (xen/include/public/io/xenbus.h).
INITIALISING = b"1"
INIT_WAIT = b"2"
INITIALISED = b"3"
XENBUS_CONNECTED = b"4"
CLOSING = b"5"
CLOSED = b"6"

# A driver domain's node is at most 2,048 bytes; this leaves room and stays readable in a log (design: 1,024).
HOTPLUG_ERROR_LIMIT = 1024

# Backend kinds that hold a disk. The first two have block scripts (C3); the others are served by a program
# that opens `params` itself, so their `params` is all that says what they use.
SCRIPT_KINDS = (b"vbd", b"vbd3")
# Kinds known to be no disks: never read by a scan for users of a disk.
NOT_DISKS = frozenset(
    (
        b"vif",
        b"vkb",
        b"vfb",
        b"vtpm",
        b"vusb",
        b"qusb",
        b"pci",
        b"console",
        b"9pfs",
        b"pvcalls",
        b"vsnd",
        b"vdispl",
        b"vscsi",
    )
)


def is_disk_kind(kind: bytes) -> bool:
    """Whether backend directories of this kind may stand for a disk. An unknown kind may."""
    return kind not in NOT_DISKS
