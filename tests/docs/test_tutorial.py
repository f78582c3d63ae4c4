"""docs/tutorial-custom-script.md, run as it stands: its files are written, its commands run in order, outputs compared.

In a mount namespace of its own, where the folders that it names are empty; with a real xenstored and loop devices.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY, SOURCE
from tests.need import need_loop_devices, need_program
from tests.toolstack.xen import make_xen

PAGE = REPOSITORY / "docs" / "tutorial-custom-script.md"
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
# How `vbdkit attach` tells that a script waits.
WAITING = re.compile(r"vbdkit: .*, \d+ s so far(; it says: .*)?\n")
# The folders that are empty there, and the place of the author.
EMPTY = ("/usr/local/lib", "/usr/local/bin", "/run", "/srv", "/root")
HOME = "/root"
COMMAND = '#!/bin/sh\nexec env PYTHONPATH=/usr/local/lib/vbdkit /usr/bin/python3 -m vbdkit "$@"\n'
INFO = {
    "METADATA": "Metadata-Version: 2.1\nName: block-gz\nVersion: 1.0\n",
    "entry_points.txt": "[vbdkit.scripts]\nblock-gz = block_gz:Gz\n",
}


class Machine:
    """A machine as the tutorial's reader has it."""

    def __init__(self, process: "subprocess.Popen[bytes]", socket: Path) -> None:
        self._enter = ["nsenter", f"--mount=/proc/{process.pid}/ns/mnt"]
        self._socket = socket

    def run(self, command: str, stdin: str = "") -> str:
        """Run a command there and return what it says."""
        environ = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": HOME, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [*self._enter, "sh", "-c", f"cd {HOME}; {command}"],
            env={**environ, "XENSTORED_PATH": str(self._socket)},
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            umask=0o022,
        )
        return done.stdout

    def write(self, path: str, text: str) -> None:
        assert self.run(f"cat >{path}", text) == ""


@pytest.fixture
def machine(tmp_path: Path, store_socket: Path) -> Iterator[Machine]:
    need_loop_devices()
    for program in ("unshare", "nsenter", "gzip"):
        need_program(program)
    etc = tmp_path / "etc"
    shutil.copytree("/etc", etc, symlinks=True)
    mounts = [f"mount --bind {etc} /etc", *(f"mount -t tmpfs -o mode=755 tmpfs {folder}" for folder in EMPTY)]
    made = "mkdir -p /etc/xen/scripts /usr/local/lib/vbdkit"
    copy = f"cp -R {SOURCE} /usr/local/lib/vbdkit/ && chown -R root:root /usr/local/lib/vbdkit"
    script = " && ".join([*mounts, made, copy, "echo ready && exec sleep 600"])
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script], stdout=subprocess.PIPE, umask=0o022
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with make_xen(tmp_path, store_socket) as xen:
            there = Machine(process, xen.host.socket)
            there.write("/usr/local/bin/vbdkit", COMMAND)
            there.run("chmod 755 /usr/local/bin/vbdkit")
            yield there
            assert xen.nodes() == []
    finally:
        process.kill()
        process.communicate()


def as_pip_does(machine: Machine) -> None:
    """The module of chapter 10, made from the file as that says, with a package's metadata."""
    lines = machine.run("cat block-gz").splitlines(keepends=True)
    kept = [line for line in lines[1:] if not line.startswith(("main(", "sys.path", "import sys"))]
    place = "/usr/local/lib/vbdkit"
    machine.write(f"{place}/block_gz.py", "".join(kept))
    machine.run(f"mkdir {place}/block_gz-1.0.dist-info")
    for name, text in INFO.items():
        machine.write(f"{place}/block_gz-1.0.dist-info/{name}", text)


def matches(expected: str, said: str) -> bool:
    """Whether an output is the one of the page, where ``...`` stands for anything, as a line of its own for lines.

    On a machine that is busy there may be more to wait for than the page says.
    """
    lines = expected.splitlines(keepends=True)
    said = "".join(line for line in said.splitlines(keepends=True) if line in lines or not WAITING.fullmatch(line))
    patterns = [r"(.*\n)*" if line == "...\n" else ".*".join(map(re.escape, line.split("..."))) for line in lines]
    return re.fullmatch("".join(patterns), said) is not None


def test_all_of_it(machine: Machine) -> None:
    ran = 0
    for block in BLOCK.finditer(PAGE.read_text()):
        mark, kind, text = block["mark"] or "", block["kind"], block["text"]
        if mark.startswith("file: "):
            machine.write(mark.removeprefix("file: "), text)
        if "what pip does" in mark:
            as_pip_does(machine)
        if kind != "console":
            continue
        commands = re.split(r"^# ", text, flags=re.MULTILINE)
        assert commands[0] == "", "a block of commands begins with one"
        for one in commands[1:]:
            command, _, expected = one.partition("\n")
            said = machine.run(command)
            assert matches(expected, said), f"# {command}\n{said}"
            ran += 1
    assert ran > 25


def test_every_block_is_either_run_or_known_not_to_be() -> None:
    """A block of a kind that nobody runs would rot."""
    page = PAGE.read_text()
    kinds = [block["kind"] for block in BLOCK.finditer(page) if not (block["mark"] or "").startswith("file: ")]
    assert sorted(kinds) == ["", *["console"] * kinds.count("console"), "toml"]
    assert page.count("```") == 2 * len(list(BLOCK.finditer(page)))


def test_all_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGE.read_text()):
        assert os.path.exists(PAGE.parent / target), target
