"""Scripts run as libxl runs them: arguments, environment, descriptors, and the end of one that hangs (C3-C6)."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from vbdkit.protocol.invocation import ADD, REMOVE
from vbdkit.toolstack.nodes import Disk, add_disk
from vbdkit.toolstack.script import run_script
from vbdkit.xenstore.client import Connection

Environ = dict[bytes, bytes]


def write(path: Path, body: str) -> bytes:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return os.fsencode(path)


@pytest.fixture
def said(tmp_path: Path) -> bytes:
    """A script that says how it was called."""
    return write(tmp_path / "block", 'echo "$#:$*:$XENBUS_PATH:$XENBUS_TYPE:$XENBUS_BASE_PATH:$script:$HERE"')


@pytest.mark.parametrize(
    ("system", "command", "expected"),
    [
        ("linux", ADD, b"1:add:backend/vbd/5/51712:vbd:backend:%s:here"),
        ("linux", REMOVE, b"1:remove:backend/vbd/5/51712:vbd:backend:%s:here"),
        ("freebsd", ADD, b"2:/local/domain/0/backend/vbd/5/51712 add:::::here"),
        ("netbsd", ADD, b"2:/local/domain/0/backend/vbd/5/51712 2:::::here"),
        ("netbsd", REMOVE, b"2:/local/domain/0/backend/vbd/5/51712 6:::::here"),
    ],
)
def test_it_is_called_as_on_that_system(
    store: Connection, environ: Environ, said: bytes, system: str, command: str, expected: bytes
) -> None:
    run = run_script(store, system, said, command, 5, 51712, environ={**environ, b"HERE": b"here"})
    assert run.output == (expected % said if b"%s" in expected else expected) + b"\n"
    assert (run.status, run.killed, run.error) == (0, False, None)


def test_stdin_is_empty_and_both_outputs_come_in_order(store: Connection, environ: Environ, tmp_path: Path) -> None:
    script = write(tmp_path / "block", "cat; echo out; echo err >&2; echo out again")
    assert run_script(store, "linux", script, ADD, 5, 51712, environ=environ).output == b"out\nerr\nout again\n"


def test_the_reason_is_read_after_a_failure_only(
    store: Connection, environ: Environ, disk: Disk, tmp_path: Path
) -> None:
    add_disk(store, disk)
    store.write(disk.backend + b"/hotplug-error", b"the disk is in use")
    failing, succeeding = write(tmp_path / "no", "exit 3"), write(tmp_path / "yes", "exit 0")
    run = run_script(store, "linux", failing, ADD, 5, 51712, environ=environ)
    assert (run.status, run.error) == (3, b"the disk is in use")
    assert run_script(store, "linux", succeeding, ADD, 5, 51712, environ=environ).error is None


def test_one_that_hangs_is_killed_alone_and_its_reason_not_read(
    store: Connection, environ: Environ, disk: Disk, tmp_path: Path
) -> None:
    add_disk(store, disk)
    store.write(disk.backend + b"/hotplug-error", b"of an earlier run")
    child = tmp_path / "child"
    script = write(tmp_path / "block", f"sleep 60 & echo $! >{child}; echo waiting; wait")
    begun = time.monotonic()
    run = run_script(store, "linux", script, ADD, 5, 51712, environ=environ, timeout=0.5)
    pid = int(child.read_text())
    try:
        os.kill(pid, 0)  # it is alive, with the script's outputs in its hands
        assert 0.5 <= time.monotonic() - begun < 10
        assert (run.status, run.killed, run.error) == (-signal.SIGKILL, True, None)
        assert run.output == b"waiting\n"
    finally:
        os.kill(pid, signal.SIGKILL)


def test_one_that_others_kill_was_not_killed_for_its_time(store: Connection, environ: Environ, tmp_path: Path) -> None:
    run = run_script(store, "linux", write(tmp_path / "block", "kill -9 $$"), ADD, 5, 51712, environ=environ)
    assert (run.status, run.killed) == (-signal.SIGKILL, False)


def test_one_that_is_not_there_is_an_error_of_the_caller(store: Connection, environ: Environ) -> None:
    with pytest.raises(FileNotFoundError):
        run_script(store, "linux", b"/etc/xen/scripts/none", ADD, 5, 51712, environ=environ)


def test_an_interrupt_while_it_is_started_ends_it(
    store: Connection, environ: Environ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def interrupted(*arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
        started.append(start(*arguments, **options))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)  # the interpreter looks for signals
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_script(store, "linux", write(tmp_path / "block", "exec sleep 60"), ADD, 5, 51712, environ=environ)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert started[0].returncode == -signal.SIGKILL
