"""A PC in QEMU that boots from a disk of tests/bootsector.py."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.need import need, need_program


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
