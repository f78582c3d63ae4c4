"""Stores for tests: Debian's own C xenstored and oxenstored (realstore/), and the embedded one, in the same shape."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.need import need, need_program, need_root
from vbdkit.xenstore.client import Connection
from vbdkit.xenstore.embedded import EmbeddedStore

REALSTORE = Path(__file__).parent / "realstore" / "realstore"
KINDS = ("embedded", "c", "o")


@dataclass(frozen=True)
class Store:
    """One running store. ``kind``: "embedded", "c" (C xenstored) or "o" (oxenstored); ``pid`` 0 for embedded."""

    kind: str
    socket: Path
    pid: int = 0

    @property
    def environ(self) -> dict[bytes, bytes]:
        """What leads a client here."""
        return {b"XENSTORED_PATH": os.fsencode(self.socket)}

    def connect(self, seconds: float = 20) -> Connection:
        """A client's connection, good for so long."""
        return Connection.open(time.monotonic() + seconds, self.environ)


def need_real_stores() -> None:
    """Root, apt and a compiler: what realstore needs to get Debian's packages and to run their daemons."""
    need_root()
    for program in ("apt-get", "dpkg", "gcc", "unshare"):
        need_program(program)
    need(os.path.exists("/etc/debian_version"), "needs Debian, for its Xen packages")


def realstore(*arguments: str | Path) -> str:
    """Run realstore and return what it prints."""
    need_real_stores()
    done = subprocess.run([REALSTORE, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def real_store(kind: str, rundir: Path) -> Iterator[Store]:
    """Run C xenstored ("c") or oxenstored ("o") in ``rundir``; its socket is ``rundir/socket``."""
    pid = int(realstore("start", *(["-o"] if kind == "o" else []), rundir))
    try:
        yield Store(kind, rundir / "socket", pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            daemon = os.pidfd_open(pid)
            signal.pidfd_send_signal(daemon, signal.SIGTERM)
            select.select([daemon], [], [], 10)  # until it is gone: it writes into its folder
            os.close(daemon)


@contextmanager
def running_store(kind: str, rundir: Path) -> Iterator[Store]:
    """Run a store of any of KINDS."""
    if kind != "embedded":
        with real_store(kind, rundir) as store:
            yield store
        return
    with EmbeddedStore(os.fsencode(rundir / "socket")):
        yield Store(kind, rundir / "socket")
