"""Xen's own block script in tests: Debian's file, unmodified and not installed (realstore brings it)."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.host import Host
from tests.stores import realstore

# Compiled into the script: it fails where the first is missing, and takes its lock in the second.
LOGS, LOCKS = Path("/var/log/xen"), Path("/run/xen-hotplug")


class StockHost(Host):
    """A host whose script is Xen's. What it needs beside that, `stock_folders` provides."""

    def __post_init__(self) -> None:
        super().__post_init__()
        scripts = self.directory / "stock"
        if not scripts.exists():
            realstore("scripts", scripts)
        self.script = scripts / "block"

        self._tools = Path(realstore("bin")).parent / "root/usr"

    def environment(self) -> dict[str, str]:
        """Where the store is, and its tools, which the script runs."""
        return super().environment() | {
            "PATH": f"{self._tools}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LD_LIBRARY_PATH": f"{self._tools}/lib/x86_64-linux-gnu",
        }


@contextmanager
def stock_folders() -> Iterator[None]:
    """Let the two folders be there; what was not there before goes again."""
    with ExitStack() as stack:
        for folder in (LOGS, LOCKS):
            if not folder.exists():
                folder.mkdir(parents=True)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield


def stock_version() -> str:
    """The version of Debian's package."""
    package = next((Path(realstore("bin")).parent / "debs").glob("xen-utils-common_*"))
    return os.fsdecode(package).rpartition("/")[2].split("_")[1].replace("%3a", ":")
