"""A disk from which a PC boots and says what is on it: a boot sector that prints the next one to the serial line.

The same bytes boot as a hard disk and, in an ISO 9660 image with an El Torito record, as a CD-ROM. Standard library
only: the rig's dom0 uses this as well.
"""

import struct
from pathlib import Path

# 16-bit code at 0x7c00. It reads the second sector of the disk to 0x7e00 (a CD-ROM's is there already, and reading
# fails), prints it up to a zero byte, and ends qemu by the port of isa-debug-exit. Where that is not there (an HVM
# guest) it goes round in a circle, without interrupts: a hlt would be the end of the guest for Xen, and with interrupts
# QEMU's SVM, after a while, does nothing else than deliver them.
_CODE = bytes.fromhex(
    "31c0"  # xor ax, ax
    "8ed8"  # mov ds, ax
    "8ec0"  # mov es, ax
    "8ed0"  # mov ss, ax
    "bc0070"  # mov sp, 0x7000
    "bb007e"  # mov bx, 0x7e00
    "b80102"  # mov ax, 0x0201      read one sector
    "b90200"  # mov cx, 2           cylinder 0, sector 2
    "b600"  # mov dh, 0             of the drive in dl
    "cd13"  # int 0x13
    "be007e"  # mov si, 0x7e00
    "baf803"  # mov dx, 0x3f8
    "ac"  # next: lodsb
    "84c0"  # test al, al
    "7403"  # jz end
    "ee"  # out dx, al
    "ebf8"  # jmp next
    "fa"  # end: cli
    "e6f4"  # out 0xf4, al
    "ebfe"  # jmp to itself
)
_SECTOR = 2048  # of a CD-ROM


def boot_image(path: Path, marker: str, size: int = 1 << 20) -> Path:
    """Make a hard disk that says ``marker``."""
    path.write_bytes(_sectors(marker))
    with path.open("r+b") as file:
        file.truncate(size)
    return path


def boot_cdrom(path: Path, marker: str) -> Path:
    """Make a CD-ROM that says ``marker``: volume descriptors from sector 16 on, catalogue in 19, code in 20."""
    primary = b"\x01CD001\x01".ljust(_SECTOR, b"\0")
    boot = (b"\x00CD001\x01" + b"EL TORITO SPECIFICATION".ljust(64, b"\0") + struct.pack("<I", 19)).ljust(
        _SECTOR, b"\0"
    )
    end = b"\xffCD001\x01".ljust(_SECTOR, b"\0")
    validation = bytearray(b"\x01".ljust(30, b"\0") + b"\x55\xaa")
    # All its words add up to zero.
    struct.pack_into("<H", validation, 28, -sum(struct.unpack("<16H", validation)) & 0xFFFF)
    entry = struct.pack("<BBHBBHI20x", 0x88, 0, 0, 0, 0, 4, 20)
    catalogue = (bytes(validation) + entry).ljust(_SECTOR, b"\0")
    path.write_bytes(bytes(16 * _SECTOR) + primary + boot + end + catalogue + _sectors(marker).ljust(_SECTOR, b"\0"))
    return path


def _sectors(marker: str) -> bytes:
    assert len(marker) < 512
    return _CODE.ljust(510, b"\0") + b"\x55\xaa" + marker.encode().ljust(512, b"\0")
