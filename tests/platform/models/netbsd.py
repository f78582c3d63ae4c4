"""A model of NetBSD for tests: the one that `vbdkit try` has, with disks that the tests make up."""

import os
import stat
from pathlib import Path

from tests.host import PYTHON
from tests.need import need_loop_devices
from vbdkit.platform.linux import loop
from vbdkit.toolstack import netbsd_host


class Netbsd:
    """One host: its vnds, and the disks that it is told of."""

    def __init__(self, folder: Path, vnds: int = 4) -> None:
        need_loop_devices()
        self.folder = folder
        self.settings = netbsd_host.make(folder, Path(PYTHON), vnds)
        self.dev, self.bin, self.says = folder / "dev", folder / "bin", folder / "says"
        self._number = 0

    def node(self, name: str, rdev: int = 0, kind: int = stat.S_IFBLK) -> Path:
        """A device node; without ``rdev`` of a number that no driver of this machine has."""
        self._number += 1
        os.mknod(self.dev / name, 0o600 | kind, rdev or os.makedev(240, self._number))
        return self.dev / name

    def disk(self, name: str, partitions: dict[str, tuple[int, int]], wedges: tuple[str, ...] = ()) -> None:
        """A disk with a label: letter -> start and size in sectors. Each has a node, so has ``d``, all of it."""
        lines = [f"# /dev/r{name}d:", "bytes/sector: 512", f"{len(partitions) + 1} partitions:"]
        lines += ["#        size    offset     fstype [fsize bsize cpg/sgs]"]
        for letter, (start, size) in {**partitions, "d": (0, 1 << 20)}.items():
            lines.append(f" {letter}: {size:9} {start:9}     4.2BSD   2048 16384     0  # (Cyl.      0 -      9)")
            self.node(name + letter)
        self.say(f"disklabel-{name}", *lines)
        self._known(name)
        if wedges:
            self.say(
                f"dkctl-{name}-listwedges",
                f"/dev/r{name}d: {len(wedges)} wedges:",
                *(
                    f"{wedge}: part {wedge}, 1024 blocks at {i * 1024 + 64}, type: ffs"
                    for i, wedge in enumerate(wedges)
                ),
            )
        for i, wedge in enumerate(wedges):
            self.node(wedge)
            self.say(
                f"dkctl-{wedge}-getwedgeinfo",
                f"{wedge} at {name}: part {wedge}",
                f"{wedge}: 1024 blocks at {i * 1024 + 64}, type: ffs",
            )
            self._known(wedge)

    def _known(self, disk: str) -> None:
        with (self.says / "disks").open("a") as file:
            print(disk, file=file)

    def say(self, what: str, *lines: str) -> None:
        """Let a program print these lines."""
        (self.says / what).write_text("".join(line + "\n" for line in lines))

    def program(self, name: str, text: str) -> None:
        """Put another executable in a program's place; the model's own moves to NAME.real."""
        path = self.bin / name
        if not (self.bin / f"{name}.real").exists():
            path.rename(self.bin / f"{name}.real")
        path.write_text(text)
        path.chmod(0o755)

    def vnds(self) -> dict[str, str]:
        """The vnds that are set up, and the names of the files under them."""
        found = {}
        for path in sorted(self.dev.glob("vnd*d")):
            number = os.minor(path.stat().st_rdev)
            found[path.name[:-1]] = os.fsdecode(loop.backing_name(number))
        return found

    def set_up(self, vnd: str, file: Path) -> Path:
        """What an administrator does by hand."""
        assert os.spawnv(os.P_WAIT, self.bin / "vnconfig", ["vnconfig", "-c", vnd, str(file)]) == 0
        return self.dev / f"{vnd}d"
