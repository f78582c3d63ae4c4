"""A host for block scripts in tests: a store, the stub that `vbdkit install` writes, and a toolstack's hand.

Runs scripts as real processes with the environment of C3. What it binds or makes it takes back at the end.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.need import need_loop_devices
from vbdkit.protocol.invocation import build_invocation
from vbdkit.protocol.vbd import backend_path
from vbdkit.xenstore.client import Connection, StoreError

# The interpreter in the first line of the script under test; another one: VBDKIT_TEST_PYTHON=/path make test
PYTHON = os.environ.get("VBDKIT_TEST_PYTHON", "/usr/bin/python3")
SOURCE = Path(__file__).parent.parent / "src"
# Where this session's tests have their files (conftest.py says).
session_folder = Path("/")


@dataclass
class Result:
    """How one run of a script ended: its status, output, and the vbd's backend nodes after it."""

    status: int
    output: str
    nodes: dict[str, bytes]

    @property
    def error(self) -> str:
        """The sentence in hotplug-error, or ""."""
        return self.nodes.get("hotplug-error", b"").decode()

    @property
    def outcome(self) -> bytes:
        """hotplug-status, or b""."""
        return self.nodes.get("hotplug-status", b"")


@dataclass
class Host:
    """One host: where its store listens, and where its script keeps records and locks.

    With ``own_domid`` a driver domain: the toolstack writes below /local/domain/<own_domid>, and scripts are
    clients of ``script_socket``, where the store treats them as that domain.
    """

    directory: Path
    socket: Path
    system: str = "linux"
    own_domid: int = 0
    time_limit: float | None = None
    script_socket: Path | None = None
    lock_dir: Path = Path()
    # Settings of the stub that only this system has.
    settings: dict[str, bytes] = field(default_factory=dict)
    # Of this session at the start; and those in the own folder that others take back.
    loops: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Write the stub."""
        self.run_dir = self.directory / "run"
        if self.lock_dir == Path():
            self.lock_dir = self.directory / "lock"
        self.script = self.directory / "block"
        limit = "" if self.time_limit is None else f", time_limit={self.time_limit}"
        limit += "".join(f", {name}={value!r}" for name, value in self.settings.items())
        self.script.write_text(
            f"#!{PYTHON} -IS\nimport sys\nsys.path.insert(0, {str(SOURCE)!r})\n"
            "from vbdkit.hot import start\n"
            f"start('block', {self.system!r}, run_dir={os.fsencode(self.run_dir)!r}, "
            f"lock_dir={os.fsencode(self.lock_dir)!r}{limit})\n"
        )
        self.script.chmod(0o755)
        self.loops = set(bound_loops())
        self.kept |= set(bound_loops(self.directory))
        with self.connect() as store:
            for tree in (b"/local", b"/vm", b"/libxl"):
                if store.exists(tree):
                    store.remove(tree)
            self.init(store)

    def init(self, store: Connection) -> None:
        """Write what Xen's tools write once the store is up (xen-init-dom0), or libxl for a driver domain."""
        home = b"/local/domain/%d/" % self.own_domid
        name = b"driver" if self.own_domid else b"Domain-0"
        store.write_many([(home + b"domid", b"%d" % self.own_domid), (home + b"name", name)])

    def within(self, mounts: str) -> None:
        """From now on run the script where the shell command ``mounts`` was run: in mount namespaces of its own."""
        inner = self.directory / "within" / self.script.name
        inner.parent.mkdir()
        self.script.rename(inner)
        self.script.write_text(f'#!/bin/sh\nexec {unshared(mounts)} {inner} "$@"\n')
        self.script.chmod(0o755)

    def environment(self) -> dict[str, str]:
        """What every client on this host needs."""
        return {"XENSTORED_PATH": str(self.script_socket or self.socket), "PATH": os.environ["PATH"]}

    def connect(self, seconds: float = 10) -> Connection:
        """A connection of the toolstack's."""
        return Connection.open(time.monotonic() + seconds, {b"XENSTORED_PATH": os.fsencode(self.socket)})

    def domain(self, domid: int, name: str = "", vm: str | None = "", **more: str) -> int:
        """Make a live domain with a name and a vm path of its own; ``vm=None``: without that node."""
        base = b"/local/domain/%d/" % domid
        items = [(base + b"name", (name or f"guest{domid}").encode()), (base + b"domid", b"%d" % domid)]
        if vm is not None:
            items.append((base + b"vm", (vm or f"/vm/00000000-0000-0000-0000-{domid:012x}").encode()))
        items += [(base + key.encode(), value.encode()) for key, value in more.items()]
        with self.connect() as store:
            store.write_many(items)
        return domid

    def vbd(
        self,
        domid: int,
        params: bytes | str | Path | None,
        mode: bytes | str | None = "w",
        devid: int = 51712,
        kind: str = "vbd",
        state: str | None = "2",
        **more: bytes,
    ) -> "Disk":
        """Write the nodes that libxl writes before it calls the script (I1-I3); None leaves a node out."""
        disk = Disk(self, kind, domid, devid)
        front = b"/local/domain/%d/device/vbd/%d" % (domid, devid)
        nodes: dict[bytes, bytes | None] = {
            b"frontend": front,
            b"frontend-id": b"%d" % domid,
            b"script": os.fsencode(self.script),
            b"online": b"1",
            b"removable": b"0",
            b"bootable": b"1",
            b"dev": b"xvd" + bytes([97 + (devid - 51712) // 16]) if devid >= 51712 else b"hda",
            b"type": b"phy",
            b"device-type": b"disk",
            b"discard-enable": b"1",
            b"mode": mode.encode() if isinstance(mode, str) else mode,
            b"params": None if params is None else os.fsencode(params),
            b"state": None if state is None else state.encode(),
        }
        nodes |= {key.replace("_", "-").encode(): value for key, value in more.items()}
        with self.connect() as store:
            store.write_many([(disk.path + b"/" + key, value) for key, value in nodes.items() if value is not None])
        return disk

    def disk(self, domid: int, params: bytes | str | Path, mode: str = "w", devid: int = 51712) -> "Disk":
        """A live domain and its vbd, in one step."""
        self.domain(domid)
        return self.vbd(domid, params, mode, devid)

    def close(self) -> None:
        """Release the loop devices that were left behind on files of this host, and on no others of the machine."""
        for name in set(bound_loops(self.directory)) - self.kept:
            subprocess.run(["losetup", "-d", name], check=False)


@dataclass
class Disk:
    """One vbd on a host."""

    host: Host
    kind: str
    domid: int
    devid: int

    @property
    def path(self) -> bytes:
        """Its backend path as the toolstack's connection names it: relative in dom0, as libxl gives it."""
        return backend_path(self.host.own_domid or None, self.kind.encode(), self.domid, self.devid)

    def run(self, command: str, timeout: float = 60, extra: Mapping[str, str] = {}) -> Result:
        """Run the host's script as the toolstack does."""
        process = self.start(command, extra)
        output = process.communicate(timeout=timeout)[0].decode()
        return Result(process.returncode, output, self.nodes())

    def start(
        self, command: str, extra: Mapping[str, str] = {}, output: int = subprocess.PIPE
    ) -> "subprocess.Popen[bytes]":
        """Start the script and return the process; its stdout and stderr are one pipe, or what ``output`` says."""
        host = self.host
        argv, env = build_invocation(
            host.system, os.fsencode(host.script), command, self.kind.encode(), self.domid, self.devid, host.own_domid
        )
        environment = host.environment() | {os.fsdecode(k): os.fsdecode(v) for k, v in env.items()} | dict(extra)
        return subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )

    def add(self) -> Result:
        """Run ``add``."""
        return self.run("add")

    def remove(self) -> Result:
        """Run ``remove``."""
        return self.run("remove")

    def nodes(self) -> dict[str, bytes]:
        """All nodes of the backend directory; empty where there is no such directory."""
        with self.host.connect() as store:
            try:
                names = store.list(self.path)
            except StoreError as error:
                if error.name != "ENOENT":
                    raise
                return {}
            values = store.read_many([self.path + b"/" + name for name in names])
            return {name.decode(): value for name, value in zip(names, values, strict=True) if value is not None}

    def write(self, **nodes: bytes) -> None:
        """Write nodes into the backend directory; ``_`` in a name stands for ``-``."""
        with self.host.connect() as store:
            store.write_many(
                [(self.path + b"/" + key.replace("_", "-").encode(), value) for key, value in nodes.items()]
            )

    def forget(self) -> None:
        """Delete the whole backend directory, as the toolstack does."""
        with self.host.connect() as store:
            store.remove(self.path)


def unshared(mounts: str) -> str:
    """The beginning of a shell command that runs what follows it where ``mounts`` was run, unseen by all others."""
    return f'unshare --mount --propagation private /bin/sh -c \'{mounts} && exec "$0" "$@"\''


def bound_loops(under: Path | None = None) -> list[str]:
    """The loop devices that are bound to files of this test session, or to files in the folder ``under``.

    Others may come and go on the same machine. One that was given back and goes when its last opener closes it (any
    program may be looking at it just now) is none.
    """
    folder = session_folder if under is None else under
    found, given_back = {}, set()
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # released meanwhile
            name = f"/dev/{path.parts[3]}"
            found[name] = os.fsdecode(path.read_bytes()).rstrip("\n")
            if (path.parent / "autoclear").read_text() == "1\n":
                given_back.add(name)

    def ours(name: str) -> bool:
        file = found[name]
        return ours(file) if file in found else Path(file).is_relative_to(folder)

    return sorted(name for name in found if name not in given_back and ours(name))


def backing_file(loop: str | bytes) -> str:
    """The file behind a loop device, as the kernel names it."""
    path = Path("/sys/block") / os.fsdecode(loop).rpartition("/")[2] / "loop/backing_file"
    return os.fsdecode(path.read_bytes()).rstrip("\n")


@pytest.fixture
def host(tmp_path: Path, store_socket: Path) -> Iterator[Host]:
    """A Linux host with loop devices, as root."""
    need_loop_devices()
    made = Host(tmp_path, store_socket)
    yield made
    made.close()
