"""A NetBSD to try things on, on Linux: the programs that its block script asks, played with loop devices.

For `vbdkit try` and tests. A folder with ``bin`` (the programs), ``dev`` (vnd nodes) and ``says`` (what the programs
print that only tell). What they print is said by NetBSD's sources and manual pages. Needs root and loop devices.
"""

import os
from pathlib import Path

from vbdkit.toolstack import vnconfig

# The letter of the partition that is a whole disk, on every NetBSD that runs Xen (amd64, i386).
RAW = vnconfig.RAW

# These only tell: they print a file of ``says``, and something of their own where there is none.
_TELLING = {
    "sysctl": 'echo 3; echo "$([ -e disks ] && /bin/cat disks)" $(cd ../dev && for n in vnd*d; do echo "${n%d}"; done)',
    "mount": "echo '/dev/wd9a on / type ffs (local)'; [ ! -e mount ] || exec /bin/cat mount",
    "swapctl": "[ -e swapctl ] && exec /bin/cat swapctl; echo 'no swap devices configured'",
    "disklabel": '[ -e "disklabel-$1" ] && exec /bin/cat "disklabel-$1"; '
    'printf "# /dev/r%sd:\\nbytes/sector: 512\\n1 partitions:\\n d: 2048 0 unused 0 0\\n" "$1"',
    "dkctl": '[ -e "dkctl-$1-$2" ] && exec /bin/cat "dkctl-$1-$2"; echo "/dev/r$1d: no wedges configured"',
}
_VNCONFIG = """#!{python} -IS
import sys
sys.path[:0] = [{package!r}, {package!r} + "/vbdkit/toolstack"]
from vnconfig import main
main({dev!r}, sys.argv[1:])
"""


def make(folder: Path, python: Path, vnds: int = 4) -> dict[str, bytes]:
    """Make the folder's programs and the nodes of so many vnds; return what the installed script has to be told."""
    for part in ("bin", "dev", "says"):
        (folder / part).mkdir(parents=True)
    texts = {
        name: f"#!/bin/sh\ncd '{folder}/says' || exit 1\n{lines}\n".replace("vnd*d;", f"vnd*{RAW};")
        for name, lines in _TELLING.items()
    }
    texts["vnconfig"] = _VNCONFIG.format(
        python=python, package=str(Path(__file__).parents[2]), dev=os.fsencode(folder / "dev")
    )
    for name, text in texts.items():
        path = folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    for number in range(vnds):
        # vnconfig -l goes by the raw nodes that there are.
        (folder / "dev" / f"rvnd{number}{RAW}").touch()
    return {"dev": os.fsencode(folder / "dev"), "programs": os.fsencode(folder / "bin")}


def take_away(folder: Path) -> None:
    """Free all vnds that are still set up."""
    for node in (folder / "dev").glob(f"vnd*{RAW}"):
        vnconfig.free(os.fsencode(node))
