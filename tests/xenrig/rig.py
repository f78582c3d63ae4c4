"""Boots dom0 on a real Xen under QEMU's emulation and runs one command there.

The first run boots, which takes half a minute, and keeps the machine as it is then; later runs resume it in two
seconds. Each run has its own overlay of the disk, so nothing that a run does is seen by another.

Time in there is counted in instructions, 250 million of them a second (QEMU's icount), and stands in no relation to the
host's: however busy the host is, a time limit of libxl ends after the same amount of work, as on a slow real machine.

The host and dom0 talk over two virtio serial ports (guest/rig-agent) and two raw disks: files go in as a tar on
/dev/vdb, what the command leaves in /rig/out comes back as a tar on /dev/vdc. /dev/vdd is dom0's root file system as
it was built, read-only: a driver domain boots from it.
"""

import fcntl
import hashlib
import io
import json
import os
import shlex
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXCHANGE_BYTES = 1 << 30  # size of the two raw disks; sparse files
BOOT_LIMIT = 300  # seconds until dom0 must be up; it takes about 30 on two idle cores
# -smap: QEMU 7.2 faults on an IRET from ring 3 to ring 3 with SMAP on, which is what PV kernels do.
# -xsave: with it (and so AVX) registers get mixed up between busy PV guests: wrong data, crashes, hangs.
CPU = "max,-smap,-xsave"
# 2^2 ns for each instruction; idle time is skipped. It needs QEMU's one-threaded emulation.
CLOCK = ["-accel", "tcg,thread=single,tb-size=512", "-icount", "shift=2,sleep=off"]
XEN = (
    "console=com1 com1=115200,8n1 loglvl=all guest_loglvl=all "
    "dom0_mem=1536M,max:1536M dom0_max_vcpus=1 spec-ctrl=no xpti=no"
)
LINUX = "root=/dev/vda console=hvc0 mitigations=off audit=0 clocksource=xen"


class RigError(Exception):
    """The rig itself failed, not the command in dom0; the message ends with the console's last lines."""


class Rig:
    """A way to boot dom0 from the image in `cache`, where the machine's state is kept as well.

    `memory` is in MB, for Xen as a whole; `xenstored` as in rig.xenstored= (guest/rig-init).

    `cold` boots for every run and keeps no machine state: for kinds of machine that are rarely used.
    """

    def __init__(self, cache: Path, *, memory: int = 3072, xenstored: str = "oxenstored", cold: bool = False):
        self.image = cache / "image"
        self.kept = cache / "resume"
        self.memory = memory
        self.xenstored = xenstored
        self.linux = f"{LINUX} rig.xenstored={xenstored}"
        self.cold = cold

    def run(
        self,
        command: list[str],
        files: dict[str, Path],
        *,
        limit: int,
        out: Path,
        on_output: Callable[[bytes], None],
    ) -> int:
        """Run `command` in dom0's /rig, where `files` (name -> file or folder) are; its exit status, 124 past `limit`.

        Its output goes to `on_output` as it comes, its /rig/out and dom0's logs to the folder `out` at the end.
        Raises RigError.
        """
        self.kept.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.kept.parent, prefix="run.") as name:
            work = Path(name)
            disk = work / "disk.qcow2"
            if self.cold:
                _overlay(disk, self.image / "dom0.img", "raw")
                booted = self._qemu(work, disk)
            else:
                kept = self._kept_machine()
                _overlay(disk, kept / "base.qcow2", "qcow2")
                booted = self._qemu(work, disk, ["-incoming", "defer"], ram=kept / "ram", share=False)
            with booted as machine:
                length = _pack(machine.to_dom0, files, command)
                if self.cold:
                    machine.wait_ready()
                else:
                    machine.resume(kept / "state")
                status = machine.command(length, limit, on_output)
            out.mkdir(parents=True, exist_ok=True)
            # dom0's clock may be ahead of ours.
            extract = ["tar", "-C", str(out), "--no-same-owner", "--warning=no-timestamp", "-xf"]
            subprocess.run([*extract, str(machine.from_dom0)], check=True)
            return status

    def _kept_machine(self) -> Path:
        """The folder with the state of a dom0 that is up, made now if there is none of this kind."""
        folder = self.kept / self._identity()
        with (self.kept / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                for old in self.kept.iterdir():
                    # Of an earlier image, or left by a run that was killed. The other store's machine stays.
                    if old.is_dir() and old.name.partition("-")[0] in (old.name, self.xenstored):
                        shutil.rmtree(old)
                self._keep(folder)
        return folder

    def _keep(self, folder: Path) -> None:
        new = folder.with_suffix(".new")
        new.mkdir()
        _overlay(new / "base.qcow2", self.image / "dom0.img", "raw")
        with self._qemu(new, new / "base.qcow2", ram=new / "ram", share=True) as machine:
            machine.wait_ready()
            time.sleep(1)  # dom0's own start-up comes to rest
            machine.save(new / "state")
        machine.to_dom0.unlink()
        machine.from_dom0.unlink()
        new.rename(folder)

    def _identity(self) -> str:
        """What kept state depends on: the image, the options, the host's CPU and QEMU."""
        cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
        parts = [
            (self.image / "stamp").read_text(),
            Path(__file__).read_text(),
            cpu,
            qemu,
            self.linux,
            str(self.memory),
        ]
        return f"{self.xenstored}-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    @contextmanager
    def _qemu(
        self,
        work: Path,
        disk: Path,
        more: list[str] | None = None,
        *,
        ram: Path | None = None,
        share: bool = False,
    ) -> Iterator["_Machine"]:
        to_dom0, from_dom0 = work / "vdb", work / "vdc"
        for path in (to_dom0, from_dom0):
            with path.open("wb") as file:
                file.truncate(EXCHANGE_BYTES)
        ours: dict[str, socket.socket] = {}
        theirs: dict[str, socket.socket] = {}
        for channel in ("control", "output", "qmp"):
            ours[channel], theirs[channel] = socket.socketpair()
        # setpriv: QEMU goes when we go, however that happens.
        command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", *CLOCK]
        command += ["-cpu", CPU, "-smp", "2", "-m", str(self.memory), "-nodefaults", "-no-user-config", "-no-reboot"]
        command += ["-display", "none", "-nic", "none", "-monitor", "none", "-serial", f"file:{work / 'console'}"]
        command += ["-kernel", str(self.image / "xen"), "-append", XEN]
        command += ["-initrd", f"{self.image / 'vmlinux'} {self.linux},{self.image / 'initrd'}"]
        if ram:
            backend = f"memory-backend-file,id=ram,size={self.memory}M,mem-path={ram},share={'on' if share else 'off'}"
            command += ["-machine", "pc,memory-backend=ram", "-object", backend]
        for number, (path, kind) in enumerate([(disk, "qcow2"), (to_dom0, "raw"), (from_dom0, "raw")]):
            command += ["-drive", f"file={path},format={kind},if=none,id=d{number},cache=unsafe"]
            command += ["-device", f"virtio-blk-pci,drive=d{number}"]
        command += ["-drive", f"file={self.image / 'dom0.img'},format=raw,if=none,id=root,readonly=on"]
        command += ["-device", "virtio-blk-pci,drive=root"]
        command += ["-device", "virtio-serial-pci"]
        for channel, end in theirs.items():
            command += ["-chardev", f"socket,id={channel},fd={end.fileno()}"]
        command += ["-device", "virtserialport,chardev=control,name=rig.ctl"]
        command += ["-device", "virtserialport,chardev=output,name=rig.out"]
        command += ["-mon", "chardev=qmp,mode=control", *(more or [])]
        process = subprocess.Popen(command, pass_fds=[s.fileno() for s in theirs.values()], stdin=subprocess.DEVNULL)
        for end in theirs.values():
            end.close()
        try:
            yield _Machine(ours, work / "console", to_dom0, from_dom0)
        finally:
            process.kill()
            process.wait()
            for end in ours.values():
                end.close()


class _Machine:
    """A running QEMU with its channels."""

    def __init__(self, channels: dict[str, socket.socket], console: Path, to_dom0: Path, from_dom0: Path):
        self.control = channels["control"]
        self.output = channels["output"]
        self.console = console
        self.to_dom0 = to_dom0
        self.from_dom0 = from_dom0
        self.lines = self.control.makefile("r")
        self.monitor = channels["qmp"].makefile("rw")
        self.monitor.readline()  # QMP's greeting
        self._qmp("qmp_capabilities")

    def wait_ready(self) -> None:
        if not self._answer(BOOT_LIMIT).startswith("ready"):
            raise self._broken("dom0 did not come up")

    def save(self, state: Path) -> None:
        """Stop and write everything but the memory, which lies in its own file, to `state`."""
        self._qmp("stop")
        self._migrate("migrate", f"exec:cat >{shlex.quote(str(state))}")
        self._qmp("quit")

    def resume(self, state: Path) -> None:
        self._migrate("migrate-incoming", f"exec:cat {shlex.quote(str(state))}")
        self._qmp("cont")

    def command(self, length: int, limit: int, on_output: Callable[[bytes], None]) -> int:
        """Have the agent unpack `length` bytes and run the command that lies there."""
        # The wall clock of a resumed machine stands still, so the agent is told the time.
        self.control.sendall(f"go {time.time():.3f} {length} {limit}\n".encode())

        def copy() -> None:
            while data := self.output.recv(65536):
                on_output(data)

        reader = threading.Thread(target=copy, daemon=True)
        reader.start()
        # `limit` is in dom0's time, of which a second can take several of ours.
        answer = self._answer(5 * limit)
        if not answer.startswith("rc "):
            raise self._broken("no exit status came back from dom0")
        self._qmp("quit")
        reader.join(5)
        return int(answer.split()[1])

    def _answer(self, limit: int) -> str:
        self.control.settimeout(limit)
        try:
            return self.lines.readline()
        except (TimeoutError, ConnectionError):
            return ""

    def _migrate(self, verb: str, uri: str) -> None:
        capability = {"capability": "x-ignore-shared", "state": True}
        self._qmp("migrate-set-capabilities", capabilities=[capability])
        self._qmp(verb, uri=uri)
        while (status := self._qmp("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled"):
                raise self._broken(f"{verb}: {status}")
            time.sleep(0.05)

    def _qmp(self, command: str, **arguments: Any) -> dict[str, Any]:
        try:
            self.monitor.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            self.monitor.flush()
        except ConnectionError:
            raise self._broken("QEMU went away") from None
        for line in self.monitor:
            answer = json.loads(line)
            if "error" in answer:
                raise self._broken(f"QEMU: {command}: {answer['error'].get('desc')}")
            if "return" in answer:
                result: dict[str, Any] = answer["return"]
                return result
        raise self._broken("QEMU went away")

    def _broken(self, what: str) -> RigError:
        tail = self.console.read_text(errors="replace")[-2000:] if self.console.exists() else ""
        return RigError(f"{what}\n{tail}".rstrip())


def _overlay(path: Path, backing: Path, kind: str) -> None:
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(backing), "-F", kind, str(path)]
    subprocess.run(command, check=True)


def _pack(disk: Path, files: dict[str, Path], command: list[str]) -> int:
    """Write `files` and the command (as .cmd, what rig-agent runs) as a tar over `disk`; its length in bytes."""
    with disk.open("r+b") as raw:
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for name, path in files.items():
                archive.add(path, arcname=name, filter=_without_bytecode)
            script = f"cd /rig && exec {shlex.join(command)}\n".encode()
            member = tarfile.TarInfo(".cmd")
            member.size = len(script)
            archive.addfile(member, io.BytesIO(script))
        return raw.tell()


def _without_bytecode(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if os.path.basename(member.name) == "__pycache__" else member
