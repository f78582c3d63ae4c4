"""A disk from which a PC boots and says what is on it: a boot sector that prints the next one to the serial line.

The same bytes boot as a hard disk and, in an ISO 9660 image with an El Torito record, as a CD-ROM.
"""

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.need import need, need_program

# 16-bit code at 0x7c00. It reads the second sector of the disk to 0x7e00 (a CD-ROM's is there already, and reading
# fails), prints it up to a zero byte, and ends qemu by the port of isa-debug-exit.
_CODE = bytes.fromhex(
    "31c0"  # xor ax, ax
    "8ed8"  # mov ds, ax
    "8ec0"  # mov es, ax
    "8ed0"  # mov ss, ax
    "bc007c"  # mov sp, 0x7c00
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
    "e6f4"  # end: out 0xf4, al
    "f4"  # hlt
    "ebfd"  # jmp to the hlt
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


def need_qemu() -> str:
    """Return the path of the emulator of a PC, which needs its BIOS."""
    folders = ("/usr/share/seabios", "/usr/share/qemu")
    need(any(Path(folder, "bios-256k.bin").exists() for folder in folders), "needs SeaBIOS, the PC's BIOS")
    return need_program("qemu-system-x86_64")


def boot(arguments: Sequence[str], order: str = "c") -> str:
    """Boot a PC with these arguments and return what it prints on the serial line; qemu's own words where it fails."""
    machine = ["-machine", "pc,accel=tcg", "-m", "32", "-nodefaults", "-no-user-config", "-display", "none"]
    ending = ["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-boot", order, "-no-reboot"]
    done = subprocess.run(
        [need_qemu(), *machine, *arguments, *ending], stdin=subprocess.DEVNULL, capture_output=True, timeout=120
    )
    return (done.stdout or done.stderr).decode("utf-8", "replace")


def _sectors(marker: str) -> bytes:
    assert len(marker) < 512
    return _CODE.ljust(510, b"\0") + b"\x55\xaa" + marker.encode().ljust(512, b"\0")
