"""`make bench-devd`: a driver domain's daemon with hundreds of disks coming and going, on both of Xen's xenstoreds.

The bench is the toolstack and the backend driver: it writes the nodes, and the states that call for a script. What is
measured is the time from such a state to what the toolstack or the driver waits for: hotplug-status, or the
directory gone. Each disk is a file of its own, so each has a loop device.
"""

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from vbdkit.protocol.nodes import CLOSED, HOTPLUG_STATUS, INIT_WAIT
from vbdkit.toolstack.nodes import Disk, Guest, add_disk, create_guest, remove_disk
from vbdkit.xenstore.client import Connection

from .report import machine, percentile
from .stage import CHECKOUT, REALSTORE, CannotBench, output

DOMID = 7  # the driver domain
FIRST_GUEST = 100
IMAGE_BYTES = 1 << 20
PATIENCE = 300.0
STORES: dict[str, list[str]] = {"C xenstored": [], "oxenstored": ["-o"]}
# Started where no script is, so that it is the daemon's own.
SCRIPT = b"/none/block"


class DevdBench:
    """One daemon on one store; a context manager."""

    def __init__(self, options: list[str], count: int, progress: Callable[[str], None]) -> None:
        if os.geteuid() != 0:
            raise CannotBench("it needs root: it makes loop devices")
        self.folder = Path(tempfile.mkdtemp(prefix="vbdkit-bench.", dir="/var/cache"))
        self.options = options
        self.count = count
        self.progress = progress
        self.samples: dict[str, list[float]] = {}
        self.totals: dict[str, float] = {}
        self.memory: dict[str, int] = {}
        self.processor: dict[str, float] = {}  # seconds per disk that came and went
        self.store = 0
        self.daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "DevdBench":
        try:
            self._set_up()
        except BaseException:
            self._take_down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._take_down()

    def _set_up(self) -> None:
        self.store = int(output(str(REALSTORE), "start", *self.options, str(self.folder / "store")))
        environ = {b"XENSTORED_PATH": os.fsencode(self.folder / "store/socket")}
        self.toolstack = Connection.open(time.monotonic() + PATIENCE, environ)
        create_guest(self.toolstack, Guest(DOMID, b"driver", b"00000000-0000-4000-8000-000000000007"))
        # A socket's connection is domain 0's; this is where a program looks for its domain.
        self.toolstack.write(b"/local/domain/0/domid", b"%d" % DOMID)
        self.disks = [self._disk(number) for number in range(self.count)]
        with (self.folder / "log").open("wb") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "vbdkit", "devd", "--run-dir", self.folder / "run", "--lock-dir", self.folder],
                env={**os.environb, **environ, b"PYTHONPATH": os.fsencode(CHECKOUT / "src")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.watcher = Connection.open(time.monotonic() + PATIENCE, environ)
        self.watcher.watch(b"/local/domain/%d/backend" % DOMID, b"bench")
        self._until(lambda: b"watching" in (self.folder / "log").read_bytes())

    def _disk(self, number: int) -> Disk:
        image = self.folder / f"{number}.img"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        guest = FIRST_GUEST + number
        create_guest(self.toolstack, Guest(guest, b"guest-%d" % guest, b"00000000-0000-4000-8000-%012x" % guest))
        return Disk(guest, os.fsencode(image), SCRIPT, backend_domid=DOMID)

    def _take_down(self) -> None:
        if self.daemon is not None:
            self.daemon.terminate()
            self.daemon.wait()
        if self.store:
            with suppress(ProcessLookupError):
                os.kill(self.store, signal.SIGTERM)
        for bound in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):
                if bound.read_text().startswith(f"{self.folder}/"):
                    subprocess.run(["losetup", "-d", f"/dev/{bound.parts[3]}"], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, cycles: int) -> None:
        """All at once; then one by one and eight at a time, beside the others; then all gone at once."""
        self._weigh("at the start")
        self.progress(f"{self.count} disks at once")
        with Peak(self._daemon_pid()) as peak:
            self._measured("attach, all at once", self._attach, self.disks)
        self.memory["of all processes, at most"] = peak.kilobytes
        self._weigh(f"with {self.count} disks")
        chance = random.Random(1)  # noqa: S311  # the same ones each time
        for name, at_a_time in (("one by one", 1), ("eight at a time", 8)):
            groups = [chance.sample(self.disks, at_a_time) for _ in range(cycles // at_a_time)]
            for turn, group in enumerate(groups):
                self.progress(f"{name}: {turn + 1} of {len(groups)}")
                self._measured(f"detach, {name}", self._detach, group)
                self._measured(f"attach, {name}", self._attach, group)
        self.progress(f"{self.count} disks gone at once")
        self._measured("detach, all at once", self._detach, self.disks)
        self._weigh("after all are gone")
        log = (self.folder / "log").read_text()
        failed = [line for line in log.splitlines() if ": not " in line]
        if failed:
            raise CannotBench(f"{len(failed)} scripts failed: {failed[0]}")
        # Whatever else the machine does, this is what these disks cost.
        times = os.sysconf("SC_CLK_TCK")
        fields = Path(f"/proc/{self._daemon_pid()}/stat").read_text().rpartition(")")[2].split()
        for name, first in (("the daemon", 11), ("its scripts", 13)):
            self.processor[name] = (int(fields[first]) + int(fields[first + 1])) / times / log.count(" add: ")

    def _measured(self, name: str, act: Callable[[Iterable[Disk]], list[float]], disks: list[Disk]) -> None:
        begun = time.monotonic()
        self.toolstack.deadline = self.watcher.deadline = begun + PATIENCE
        self.samples.setdefault(name, []).extend(act(disks))
        self.totals[name] = self.totals.get(name, 0.0) + time.monotonic() - begun

    def _attach(self, disks: Iterable[Disk]) -> list[float]:
        for disk in disks:
            add_disk(self.toolstack, disk)
            self._drain()
        status = {disk.backend + b"/" + HOTPLUG_STATUS for disk in disks}
        return self._timed(disks, [(b"state", INIT_WAIT)], lambda path: path if path in status else None)

    def _detach(self, disks: Iterable[Disk]) -> list[float]:
        gone = {disk.backend for disk in disks}
        nodes = [(b"online", b"0"), (b"state", CLOSED)]
        seconds = self._timed(disks, nodes, lambda path: path if path in gone else None)
        for disk in disks:
            remove_disk(self.toolstack, disk)
        return seconds

    def _timed(
        self, disks: Iterable[Disk], nodes: list[tuple[bytes, bytes]], awaited: Callable[[bytes], bytes | None]
    ) -> list[float]:
        """Write the nodes of each and return the seconds until each has what is awaited: an event of that path."""
        self._drain()
        begun: dict[bytes, float] = {}
        seconds = []

        def heard(event: tuple[bytes, bytes]) -> None:
            path = awaited(event[0])
            backend = b"/".join(path.split(b"/")[:8]) if path is not None else b""
            if backend in begun:
                seconds.append(time.monotonic() - begun.pop(backend))

        for disk in disks:
            begun[disk.backend] = time.monotonic()
            self.toolstack.write_many([(disk.backend + b"/" + name, value) for name, value in nodes])
            while (event := self.watcher.next_event(time.monotonic())) is not None:
                heard(event)
        while begun:
            event = self.watcher.next_event()
            if event is None:
                raise CannotBench(f"{len(begun)} disks have had no answer in {PATIENCE:g} s")
            heard(event)
        return seconds

    def _drain(self) -> None:
        """Take the events that nobody waits for: oxenstored answers nobody while one client does not read."""
        while self.watcher.next_event(time.monotonic()) is not None:
            pass

    def _until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not true():
            if time.monotonic() >= end:
                raise CannotBench(f"the daemon does not come up: {(self.folder / 'log').read_text()}")
            time.sleep(0.01)

    def _daemon_pid(self) -> int:
        assert self.daemon is not None
        return self.daemon.pid

    def _weigh(self, when: str) -> None:
        self.memory[f"of the daemon {when}"] = _kilobytes(self._daemon_pid(), "status", "VmRSS")


class Peak:
    """How much memory a process and its children take together at most, looked at every few milliseconds."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.kilobytes = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.02):
            with suppress(OSError):
                children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
                # What n processes share counts as an n-th of it for each.
                whole = sum(_kilobytes(pid, "smaps_rollup", "Pss") for pid in [self.pid, *map(int, children)])
                self.kilobytes = max(self.kilobytes, whole)


def _kilobytes(pid: int, file: str, name: str) -> int:
    """One line of a process's file in /proc; 0 where it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return 0


def table(results: dict[str, DevdBench]) -> str:
    """Milliseconds from the state that calls for a script to what is waited for, and memory."""
    lines = [f"{name:8} {value}" for name, value in machine({}).items()]
    for store, bench in results.items():
        title = f"{store}, {bench.count} disks"
        lines += ["", f"{title:42}{'median':>9}{'p90':>9}{'max':>9}{'n':>6}{'per s':>8}   ms"]
        for name, values in bench.samples.items():
            numbers = (statistics.median(values), percentile(values, 90), max(values))
            rate = len(values) / bench.totals[name]
            row = "".join(f"{number * 1000:9.1f}" for number in numbers)
            lines.append(f"  {name:40}{row}{len(values):6}{rate:8.1f}")
        for name, kilobytes in bench.memory.items():
            lines.append(f"  memory {name:33}{kilobytes / 1024:9.1f}   MiB")
        for name, seconds in bench.processor.items():
            lines.append(f"  processor time of {name + ', per disk':23}{seconds * 1000:8.1f}   ms")
    return "\n".join(lines)


def _of(progress: Callable[[str], None], store: str, text: str) -> None:
    progress(f"{store}: {text}")


def main(quick: bool, progress: Callable[[str], None]) -> str:
    """Run on both stores and return the table."""
    results = {}
    for store, options in STORES.items():
        with DevdBench(options, 60 if quick else 500, partial(_of, progress, store)) as bench:
            bench.run(24 if quick else 200)
            results[store] = bench
    progress("")
    return table(results)
