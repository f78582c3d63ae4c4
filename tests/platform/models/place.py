"""What the models of both systems are made of: a folder of programs, a folder of nodes, and what the programs print."""

import os
import stat
import sys
from pathlib import Path

from tests.need import need_root

# A program prints a file of the model's, named by how it was called; what it was asked is kept.
PROGRAM = """#!{python} -IS
import os, sys
folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
called = " ".join([os.path.basename(__file__), *sys.argv[1:]])
with open(folder + "/asked", "a") as file:
    print(called, file=file)
try:
    file = open(folder + "/says/" + called.replace("/", "|"), "rb")
except FileNotFoundError:
    sys.exit(called + ": nobody told the model what to say")
data = file.read()
if data.startswith(b"exit "):
    status, _, words = data.partition(b"\\n")
    sys.stderr.buffer.write(words)
    sys.exit(int(status[5:]))
sys.stdout.buffer.write(data)
"""
# Devices that every Linux has and that can be opened; they stand for disks.
OPENABLE = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}


class Place:
    """A folder with ``bin``, ``dev`` and what each program says."""

    def __init__(self, folder: Path, programs: list[str]) -> None:
        need_root()
        self.folder = folder
        self.bin, self.dev, self.says = folder / "bin", folder / "dev", folder / "says"
        for part in (self.bin, self.dev, self.says):
            part.mkdir(parents=True)
        self._numbers = 100
        for name in programs:
            self.program(name, PROGRAM.format(python=sys.executable))

    @property
    def settings(self) -> dict[str, bytes]:
        """What the installed script is told."""
        return {"dev": os.fsencode(self.dev), "programs": os.fsencode(self.bin)}

    def program(self, name: str, text: str) -> None:
        """Put an executable on the path."""
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def say(self, called: str, text: str | bytes) -> None:
        """Let a program print this when it is called so; a text that begins with "exit 1" is its failure."""
        data = text if isinstance(text, bytes) else text.encode()
        (self.says / called.replace("/", "|")).write_bytes(data)

    def asked(self) -> list[str]:
        """How the programs were called so far."""
        path = self.folder / "asked"
        return path.read_text().splitlines() if path.exists() else []

    def node(self, name: str, stands_for: str = "", kind: int = stat.S_IFCHR) -> Path:
        """Make a device node: one that can be opened where it stands for one of OPENABLE, else one of no driver."""
        path = self.dev / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if stands_for:
            number = os.makedev(1, OPENABLE[stands_for])
        else:
            self._numbers += 1
            number = os.makedev(240, self._numbers)
        os.mknod(path, 0o600 | kind, number)
        return path
