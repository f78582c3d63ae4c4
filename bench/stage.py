"""What a block script finds when libxl starts it: a C xenstored with the nodes of guests, a disk, the environment.

xenstored and the stock scripts are Debian's own, brought by tests/realstore; nothing is installed. The disks are real:
a file, and a loop device that is bound to another file. A Stage takes away all that it made.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

CHECKOUT = Path(__file__).parents[1]
REALSTORE = CHECKOUT / "tests/realstore/realstore"
PYTHON = "/usr/bin/python3"
LOCK = Path("/run/xen-hotplug/block")
LOGS = Path("/var/log/xen")  # compiled into the stock scripts; they fail where it is missing
GUEST = 7  # domid of the guest whose disk is attached
DEVID = 51712
LOOP_CTL_REMOVE = 0x4C81  # linux/loop.h
FIRST_OTHER = 1000  # domid of the first of the other guests
IMAGE_BYTES = 64 << 20
OTHER_BYTES = 1 << 20  # of each other guest's disk
# The same in both folders: what counts is the library beside it.
CUSTOM = """#!/bin/bash
dir=$(dirname "$0")
. "$dir/block-common.sh"
device=$(xenstore_read "$XENBUS_PATH/params")
mode=$(xenstore_read "$XENBUS_PATH/mode")
[ "$command" = remove ] || [ -z "$mode" ] || write_dev "$device"
"""
# The same in Python.
IN_PYTHON = """#!{python} -IS
import sys
sys.path.insert(0, {library!r})
from vbdkit.custom import Storage, main

class Python(Storage):
    def attach(self, target, mode):
        return target["target"]

main(Python, run_dir={records!r})
"""
# Arguments of one xenstore-write: far below the kernel's limit.
NODES_AT_ONCE = 1500


class CannotBench(Exception):
    """The machine lacks something; the message is one line for people."""


class Stage:
    """A context manager; everything is under `folder`, a temporary one."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise CannotBench("it needs root: it makes loop devices")
        # On a disk, and only root's from / on.
        self.folder = Path(tempfile.mkdtemp(prefix="vbdkit-bench.", dir="/var/cache"))
        # In memory, as /run/vbdkit is.
        self.records = Path(tempfile.mkdtemp(prefix="vbdkit-bench.", dir="/run"))
        self.store = 0  # xenstored's pid
        self.others = 0
        self.loop = ""
        self._loops_before = _loop_numbers()
        self._made_logs = not LOGS.exists()
        self._made_locks = not LOCK.parent.exists()

    def __enter__(self) -> "Stage":
        try:
            self._set_up()
        except BaseException:
            self._take_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._take_down()

    def _set_up(self) -> None:
        self.tools = Path(output(str(REALSTORE), "bin")).parent / "root/usr"
        self.stock = self.folder / "stock"
        output(str(REALSTORE), "scripts", str(self.stock))
        self.log = self.folder / "log"
        self.socket = self.folder / "store/socket"
        self.store = int(output(str(REALSTORE), "start", str(self.socket.parent)))
        self.ours = self.folder / "ours"
        self.ours.mkdir()
        # A copy, since the checkout may lie where others than root can write, which install refuses.
        library = self.folder / "library"
        shutil.copytree(CHECKOUT / "src/vbdkit", library / "vbdkit")
        install = [PYTHON, "-m", "vbdkit", "install", "--scripts-dir", str(self.ours), "--python", PYTHON]
        install += ["--run-dir", str(self.records)]
        output(*install, environment={**os.environ, "PYTHONPATH": str(library)})
        for folder in (self.stock, self.ours):
            (folder / "block-custom").write_text(CUSTOM)
            (folder / "block-custom").chmod(0o755)
        script = self.ours / "block-python"
        script.write_text(IN_PYTHON.format(python=PYTHON, library=str(library), records=os.fsencode(self.records)))
        script.chmod(0o755)
        self.file = self.folder / "file.img"
        backing = self.folder / "device.img"
        for path in (self.file, backing):
            with path.open("wb") as image:
                image.truncate(IMAGE_BYTES)
        self.loop = output("losetup", "-f", "--show", str(backing))
        for path in (LOGS, LOCK.parent):
            path.mkdir(parents=True, exist_ok=True)
        self._write({"/local/domain/0/domid": "0", "/local/domain/0/name": "Domain-0"} | _domain(GUEST))

    def _take_down(self) -> None:
        if self.store:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.store, signal.SIGTERM)
                while True:  # until it is gone
                    time.sleep(0.01)
                    os.kill(self.store, 0)
        for bound in Path("/sys/block").glob("loop*/loop/backing_file"):
            if bound.read_text().startswith(f"{self.folder}/"):
                subprocess.run(["losetup", "-d", f"/dev/{bound.parts[3]}"], check=False)
        _remove_loops(_loop_numbers() - self._loops_before)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.records, ignore_errors=True)
        if self._made_logs:
            shutil.rmtree(LOGS, ignore_errors=True)
        if self._made_locks:
            with contextlib.suppress(OSError):
                LOCK.parent.rmdir()

    def nobody_waits(self) -> None:
        """Let the next custom script of ours start its helper."""
        shutil.rmtree(self.records / ".sh", ignore_errors=True)

    def somebody_waits(self) -> None:
        """Let the helper of the last custom script of ours be ready for the next one."""
        end = time.monotonic() + 10
        while not (self.records / ".sh/pid").exists():
            if time.monotonic() > end:
                raise CannotBench("no helper waits for the next script")
            time.sleep(0.002)

    def environment(self, script: Path) -> dict[str, str]:
        """What libxl gives a script (C3), and where the store and its tools are.

        LD_LIBRARY_PATH is for the tools, which are not installed; it costs each process some 45 us.
        """
        return {
            "PATH": f"{self.tools}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LD_LIBRARY_PATH": f"{self.tools}/lib/x86_64-linux-gnu",
            "XENSTORED_PATH": str(self.socket),
            "XENBUS_PATH": f"backend/vbd/{GUEST}/{DEVID}",
            "XENBUS_TYPE": "vbd",
            "XENBUS_BASE_PATH": "backend",
            "script": str(script),
        }

    def new_disk(self, target: str) -> None:
        """The nodes that libxl writes before `add`, the backend driver's state 2 among them (I1, I3)."""
        frontend = f"/local/domain/{GUEST}/device/vbd/{DEVID}"
        nodes = {"frontend": frontend, "params": target, "script": "/etc/xen/scripts/block", "frontend-id": str(GUEST)}
        nodes |= {"online": "1", "removable": "0", "bootable": "1", "state": "2", "dev": "xvda", "type": "phy"}
        nodes |= {"mode": "w", "device-type": "disk", "discard-enable": "1"}
        self._write({f"{_backend(GUEST)}/{name}": value for name, value in nodes.items()})
        self._write({f"{frontend}/backend": _backend(GUEST), f"{frontend}/backend-id": "0", f"{frontend}/state": "1"})

    def check_attached(self) -> None:
        """Whether `add` did its work: a script that does nothing is fast."""
        status, number = self._read("hotplug-status", "physical-device")
        if status != "connected" or ":" not in number:
            raise CannotBench(f"add left hotplug-status {status!r}, physical-device {number!r}")

    def closed(self) -> None:
        """As the backend driver leaves the nodes before `remove`."""
        self._write({f"{_backend(GUEST)}/state": "6", f"{_backend(GUEST)}/online": "0"})

    def no_disk(self) -> None:
        """The nodes go, as after `remove`; the file must not be bound any more."""
        for path in (_backend(GUEST), f"/local/domain/{GUEST}/device"):
            self._tool("rm", path)
        bound = output("losetup", "-j", str(self.file))
        if bound:
            raise CannotBench(f"remove left a loop device: {bound}")

    def set_others(self, count: int) -> None:
        """Let there be `count` other guests, with a loop device on a file each. Their number can only grow."""
        nodes: dict[str, str] = {}
        for domid in range(FIRST_OTHER + self.others, FIRST_OTHER + count):
            path = self.folder / f"{domid}.img"
            with path.open("wb") as image:
                image.truncate(OTHER_BYTES)
            device = output("losetup", "-f", "--show", str(path))
            number = os.stat(device).st_rdev
            disk = {"frontend": f"/local/domain/{domid}/device/vbd/{DEVID}", "frontend-id": str(domid), "mode": "w"}
            disk |= {"params": str(path), "type": "file", "state": "4", "online": "1", "dev": "xvda", "node": device}
            disk |= {"physical-device": f"{os.major(number):x}:{os.minor(number):x}", "physical-device-path": device}
            disk |= {"hotplug-status": "connected", "script": "/etc/xen/scripts/block"}
            nodes |= _domain(domid) | {f"{_backend(domid)}/{name}": value for name, value in disk.items()}
        self._write(nodes)
        self.others = count

    def _write(self, nodes: dict[str, str]) -> None:
        pairs = [word for pair in nodes.items() for word in pair]
        for start in range(0, len(pairs), NODES_AT_ONCE * 2):
            self._tool("write", *pairs[start : start + NODES_AT_ONCE * 2])

    def _read(self, *names: str) -> list[str]:
        return self._tool("read", *(f"{_backend(GUEST)}/{name}" for name in names)).splitlines()

    def _tool(self, verb: str, *arguments: str) -> str:
        command = f"{self.tools}/bin/xenstore-{verb}"
        return output(command, *arguments, environment=self.environment(Path("/none")))

    def versions(self) -> dict[str, str]:
        """Of what is compared: Debian's package, the interpreter."""
        package = next((self.tools.parents[1] / "debs").glob("xen-utils-common_*"))
        return {
            "xen": output("dpkg-deb", "-f", str(package), "Version"),
            "python": output(PYTHON, "--version"),
            "syslog": "yes" if Path("/dev/log").exists() else "no (logging costs more in a dom0 that has one)",
        }


def _loop_numbers() -> set[int]:
    """The loop devices that there are, bound or not."""
    return {int(path.name.removeprefix("loop")) for path in Path("/sys/block").glob("loop*")}


def _remove_loops(numbers: set[int]) -> None:
    """Have the kernel forget loop devices, but those in use: a thousand idle ones slow the next run down."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for number in numbers:
            with contextlib.suppress(OSError):
                fcntl.ioctl(control, LOOP_CTL_REMOVE, number)
    finally:
        os.close(control)


def _backend(domid: int) -> str:
    return f"/local/domain/0/backend/vbd/{domid}/{DEVID}"


def _domain(domid: int) -> dict[str, str]:
    """The nodes of a running guest that a sharing check may read."""
    uuid = f"00000000-0000-4000-8000-{domid:012x}"
    path = f"/local/domain/{domid}"
    return {
        f"{path}/vm": f"/vm/{uuid}",
        f"{path}/name": f"guest-{domid}",
        f"{path}/domid": str(domid),
        f"/vm/{uuid}/name": f"guest-{domid}",
        f"/vm/{uuid}/uuid": uuid,
    }


def output(*command: str, environment: dict[str, str] | None = None) -> str:
    """Run a command and return what it prints. Raises CannotBench with its words where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        name = " ".join(command[:2])
        raise CannotBench(f"{name} failed: {(done.stderr or done.stdout).strip() or done.returncode}")
    return done.stdout.strip()
