"""What must hold after any run of a block script, whatever it was given. And runs inside this process, for many.

The script's own code runs here, with real files, loop devices and a store on a socket; only the interpreter's start
is left out, so that hundreds of cheap examples fit where a process each would give tens.
"""

import os
import posix
import syslog
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.host import Disk, Host, Result, backing_file, bound_loops
from vbdkit.datapaths import load
from vbdkit.engine.script import run
from vbdkit.protocol.invocation import build_invocation

OUTPUT = {"physical-device", "physical-device-path", "node"}
LIMIT = 1024


def judge(disk: Disk, result: Result, command: str = "add") -> None:
    """Fail where a run broke one of the promises that hold for every input."""
    assert result.status in (0, 1), result
    error = result.nodes.get("hotplug-error", b"").decode("utf-8")
    for text in (error, result.output.rstrip("\n")):
        assert text.isprintable(), "one line of printable text"
        assert "Traceback" not in text
        assert "vbdkit itself failed" not in text
    assert len(error.encode()) <= LIMIT
    if command == "add" and result.status == 0:
        assert result.outcome == b"connected"
        assert "hotplug-error" not in result.nodes
        loop = result.nodes.get("node")
        assert attached(disk.host) == ([loop.decode()] if loop else [])
    else:
        assert result.outcome != b"connected"
        assert not OUTPUT & set(result.nodes)
        assert attached(disk.host, []) == [], "nothing stays attached"
    if command == "add" and result.status == 1:
        assert error or not result.nodes, "a failure says why"
        assert result.output, "in the toolstack's log too"
        assert left(disk.host) == []
    assert not list(disk.host.lock_dir.glob("*")), "no lock is left"


def attached(host: Host, expected: list[str] | None = None) -> list[str]:
    """The loop devices on files of this host.

    Where others are ``expected``, a moment is given: the kernel releases a device once another program on this
    machine, which looks at all of them, has closed it.
    """
    end = time.monotonic() + 10
    while (found := bound_loops(host.directory)) != expected and expected is not None and time.monotonic() < end:
        time.sleep(0.01)
    return found


def examples(usual: int) -> int:
    """How many examples to try: ``usual`` in `make check`, as many times that as VBDKIT_THOROUGH says elsewhere."""
    return usual * int(os.environ.get("VBDKIT_THOROUGH", "1"))


def left(host: Host) -> list[str]:
    """The names of the records that are there."""
    return sorted(path.name for path in host.run_dir.glob("*"))


def backing(result: Result) -> str:
    """The file that a guest really got."""
    return backing_file(result.nodes["physical-device-path"])


@dataclass
class Inside:
    """Runs the script's code in this process, on a host whose store is in this process too."""

    host: Host

    def run(self, disk: Disk, command: str, environ: Mapping[bytes, bytes] = {}, argv: Sequence[bytes] = ()) -> Result:
        """Run a command for a disk as the toolstack would; ``environ`` and ``argv`` replace what it would give."""
        host = self.host
        usual, added = build_invocation(
            host.system, b"/s/block", command, disk.kind.encode(), disk.domid, disk.devid, host.own_domid
        )
        environment = {b"XENSTORED_PATH": os.fsencode(host.socket), **added, **environ}
        with _stderr(host.directory / "stderr") as said:
            status = run(
                argv or usual, environment, load, host.system, os.fsencode(host.run_dir), os.fsencode(host.lock_dir)
            )
        return Result(status, said.read_text("utf-8"), disk.nodes())

    def add(self, disk: Disk) -> Result:
        """Run add and judge it."""
        result = self.run(disk, "add")
        judge(disk, result)
        return result

    def remove(self, disk: Disk) -> Result:
        """Run remove and judge it; with it goes the record."""
        result = self.run(disk, "remove")
        judge(disk, result, "remove")
        assert result.status == 0, result
        assert f"{disk.kind}-{disk.domid}-{disk.devid}" not in left(disk.host)
        return result

    def clear(self) -> None:
        """Empty the store, as for a new host."""
        with self.host.connect() as store:
            for tree in (b"/local", b"/vm", b"/libxl"):
                if store.exists(tree):
                    store.remove(tree)


@contextmanager
def _stderr(path: Path) -> Iterator[Path]:
    """Have this process's stderr in a file for a while, and its syslog lines judged and not sent."""
    saved = os.dup(2)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.dup2(fd, 2)
    os.close(fd)
    try:
        with patch.object(syslog, "syslog", _judge_line), warnings.catch_warnings():
            # The script leaves its connection to the end of its process.
            warnings.simplefilter("ignore", ResourceWarning)
            yield path
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _judge_line(priority: int, line: str) -> None:
    assert line.isprintable()
    line.encode("utf-8")


def no_execution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every way of starting a program fail loudly, for runs inside."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the script started a program")

    for name in ("fork", "forkpty", "execv", "execve", "posix_spawn", "posix_spawnp", "system"):
        for module in (os, posix):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, refuse)
