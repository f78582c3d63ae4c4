"""Xen's own tools and its store test program, unmodified, with the embedded store."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stores import realstore
from vbdkit.xenstore.embedded import EmbeddedStore


class Tools:
    """The xenstore-* commands with one store."""

    def __init__(self, folder: str, socket: Path) -> None:
        self.folder = folder
        self.environ = {**os.environ, "XENSTORED_PATH": str(socket)}

    def run(self, tool: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [f"{self.folder}/{tool}", *arguments]
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60)

    def __call__(self, tool: str, *arguments: str) -> str:
        """Run xenstore-<tool>, which must succeed, and return what it prints."""
        done = self.run(f"xenstore-{tool}", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def xenstore(tmp_path: Path) -> Iterator[Tools]:
    folder = realstore("bin")
    with EmbeddedStore(str(tmp_path / "socket")):
        yield Tools(folder, tmp_path / "socket")


def test_write_read_list_exists_rm(xenstore: Tools) -> None:
    xenstore("write", "/a/b", "one", "/a/c", "two", "rel", "three")
    assert xenstore("read", "/a/b", "/a/c", "/local/domain/0/rel") == "one\ntwo\nthree\n"
    assert xenstore("list", "/a") == "b\nc\n"
    xenstore("exists", "/a/b")
    xenstore("rm", "/a/b")
    assert xenstore.run("xenstore-exists", "/a/b").returncode == 1
    assert "couldn't read path /a/b" in xenstore.run("xenstore-read", "/a/b").stderr


def test_rm_with_its_empty_parents_is_one_transaction(xenstore: Tools) -> None:
    xenstore("write", "/a/b/c", "")
    xenstore("rm", "-t", "/a/b/c")
    assert xenstore("list", "/") == "tool\n"


def test_chmod_and_ls(xenstore: Tools) -> None:
    xenstore("write", "/a/b", "1")
    xenstore("chmod", "-r", "/a", "n0", "r5")
    assert xenstore("ls", "-f", "-p", "/a").split() == ["/a/b", "=", '"1"', "(n0,r5)"]


def test_ls_past_one_packet(xenstore: Tools) -> None:
    names = [f"child-{number:05}" for number in range(1000)]
    for at in range(0, 1000, 250):
        xenstore("write", *(word for name in names[at : at + 250] for word in (f"/many/{name}", "x")))
    assert xenstore("list", "/many").split() == names


def test_watch(xenstore: Tools) -> None:
    watching = subprocess.Popen(
        [f"{xenstore.folder}/xenstore-watch", "-n", "3", "/a"],
        env=xenstore.environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    with watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "/a\n"
        xenstore("write", "/a/b", "1")
        xenstore("rm", "/a")
        assert watching.stdout.read() == "/a/b\n/a\n"
        assert watching.wait(10) == 0


def test_xen_s_test_program(xenstore: Tools) -> None:
    done = xenstore.run("test-xenstore", "-i", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ta rmw" in done.stdout
    assert "failed" not in (done.stdout + done.stderr).lower()


def test_xen_s_test_program_at_random(xenstore: Tools) -> None:
    done = xenstore.run("test-xenstore", "-r", "2")
    assert done.returncode == 0, done.stdout + done.stderr
