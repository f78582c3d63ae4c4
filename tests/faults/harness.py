"""Runs of `block` that are hurt at one point, and what must hold after each.

After any fault: the target is never with two guests; one that is free can be had by anyone; the same guest can have it;
no lock is stuck; a failure is told and never exits 0; a success leaves no error; and after a failure at once, after a
kill once `remove`, the next `add` or `vbdkit gc` came by, there is no loop device and no record left.
"""

import fcntl
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.faults.points import Call, Point, calls
from tests.host import PYTHON, SOURCE, Disk, Host, Result
from tests.images import losetup, make_image
from vbdkit import datapaths
from vbdkit.engine.leftovers import KEPT, Collection

FILE, DEVICE = "file", "device"
ADD, REMOVE = "add", "remove"
SCENES = [(command, kind) for command in (ADD, REMOVE) for kind in (FILE, DEVICE)]
# Seconds. Nothing here has to wait; what does is told as hung.
_LIMIT, _HUNG = 8.0, 25.0
# How often a point is tried where other scripts on this machine take the loop device that was to be ours.
_TRIES = 5


class Violation(Exception):
    """What must hold does not."""


@dataclass(frozen=True)
class Ended:
    """How a hurt run ended. ``status`` is negative for a signal; ``reached``: the fault was injected."""

    status: int
    output: str
    nodes: dict[str, bytes]
    reached: bool

    @property
    def holds(self) -> bool:
        """Whether the guest has the disk as far as anyone can see: its number is published."""
        return "physical-device" in self.nodes


class Bench:
    """One host with a file and a block device, on which scenes are run one after the other."""

    def __init__(self, place: Path, socket: Path) -> None:
        """Install a script there, as `vbdkit install` does: with its modules in one file. The store is this bench's."""
        place.mkdir(parents=True, exist_ok=True)
        self.host = Host(place, socket, time_limit=_LIMIT)
        self._first, self._second = 5, 6
        library = place / "library"
        shutil.copytree(SOURCE / "vbdkit", library / "vbdkit", ignore=shutil.ignore_patterns("__pycache__"))
        self._place = place
        for command in (("-m", "compileall", "-q", str(library)), (str(library / "vbdkit/hot.py"), "linux")):
            subprocess.run([PYTHON, "-IS", *command], check=True, stdout=subprocess.DEVNULL)
        self.host.script.write_text(self.host.script.read_text().replace(str(SOURCE), str(library)))
        self.image = make_image(place / "disk.img")
        self.backing = make_image(place / "device.img")
        self.device = losetup("--find", "--show", str(self.backing))
        self._trace = place / "trace"
        for domid in (self._first, self._second):
            self.host.domain(domid)
        with self.host.connect() as store:
            store.write(b"domid", b"0")

    def close(self) -> None:
        """Take back what is left."""
        for loop in [*self.loops(), self.device]:
            losetup("-d", loop)

    def loops(self) -> list[str]:
        """The loop devices that a script made here and that nobody has given back."""
        lines = losetup("-n", "-O", "NAME,AUTOCLEAR", "-j", str(self.image)).splitlines()
        # One that is only waiting for its last user's close is given back: any other script may be asking it just now.
        return [name for name, autoclear in (line.split() for line in lines) if autoclear == "0"]

    def records(self) -> list[str]:
        """The names of all records, unfinished ones too."""
        return sorted(os.listdir(self.host.run_dir)) if self.host.run_dir.exists() else []

    def record(self, command: str, kind: str) -> list[Call]:
        """Return the calls of a run that nothing hurts."""
        own_loop = self._set_up(command, kind)
        ended = self._run(command, ["-e", "trace=all"])
        if ended.status != 0:
            raise Violation(f"{command} failed without a fault: {ended.output}")
        own_loop = ended.nodes.get("node", os.fsencode(own_loop)).decode() if command == ADD else own_loop
        found = calls(self._trace, self._place, own_loop)
        self._take_down()
        return found

    def hurt(self, command: str, kind: str, point: Point) -> bool:
        """Run one scene with one fault, twice for a kill. Returns whether it was reached. Raises Violation."""
        reached = False
        for by_collection in (False, True) if point.how == "KILL" else (False,):
            for _ in range(_TRIES):
                own_loop = self._set_up(command, kind)
                ended = self._run(command, point.options(self._place, own_loop))
                if reached := ended.reached:
                    break
                self._take_down()  # another script took the number that was to be ours
            else:
                return False
            try:
                self._look(command, kind, point, ended, by_collection)
            except Violation as reason:
                raise Violation(f"{command} {kind}, {point}\n    {reason}\n    {ended}") from None
            finally:
                self._take_down()
        return reached

    # The steps of a scene.

    def _disk(self, domid: int, kind: str) -> Disk:
        return self.host.vbd(domid, self.image if kind == FILE else self.device)

    def _set_up(self, command: str, kind: str) -> str:
        """Return the loop device that the script is about to make or to release."""
        disk = self._disk(self._first, kind)
        if command == ADD:
            return losetup("--find") if kind == FILE else self.device
        result = disk.add()
        _well(result)
        disk.write(state=b"6", online=b"0")
        return result.nodes["physical-device-path"].decode()

    def _take_down(self) -> None:
        """Leave nothing to the next scene, whatever went wrong."""
        for domid in (self._first, self._second):
            disk = Disk(self.host, "vbd", domid, 51712)
            if disk.nodes():
                disk.forget()
        for loop in self.loops():
            losetup("-d", loop)
        for place in (self.host.run_dir, self.host.lock_dir):
            shutil.rmtree(place, ignore_errors=True)

    def _run(self, command: str, options: list[str]) -> Ended:
        disk = Disk(self.host, "vbd", self._first, 51712)
        self._trace.unlink(missing_ok=True)
        argv = ["strace", "-qq", "-y", "-s", "300", "-o", str(self._trace), *options, str(self.host.script), command]
        environment = self.host.environment() | {"XENBUS_PATH": disk.path.decode()}
        try:
            done = subprocess.run(
                argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_HUNG,
            )
        except subprocess.TimeoutExpired:
            raise Violation(f"{command} did not end: {options}") from None
        trace = self._trace.read_text(errors="replace")
        reached = "(INJECTED)" in trace or "SIGTERM" in trace or done.returncode == -signal.SIGKILL
        return Ended(done.returncode, done.stdout.decode(errors="replace"), disk.nodes(), reached)

    def _look(self, command: str, kind: str, point: Point, ended: Ended, by_collection: bool) -> None:
        """See that all holds."""
        mine, other = Disk(self.host, "vbd", self._first, 51712), None
        self._told(command, point, ended)
        self._no_lock_is_held()
        if point.how != "KILL" and (command == ADD) == (ended.status != 0):
            self._nothing_left("right after it")
        # Never with two guests; free for others where the first has nothing.
        other = self._disk(self._second, kind)
        result = other.add()
        if ended.holds and result.status == 0:
            raise Violation(f"two guests have it: {mine.nodes()} and {result.nodes}")
        if not ended.holds and result.status != 0:
            raise Violation(f"it is free, but the other guest did not get it: {result.error or result.output}")
        _well(other.remove())
        if by_collection:
            mine.forget()
            self._collect()
            self._nothing_left("after gc")
            mine = self._disk(self._first, kind)
        elif command == REMOVE:
            _well(mine.remove())
            self._nothing_left("after remove again")
            mine = self._disk(self._first, kind)
        _well(mine.add())
        result = other.add()
        if result.status == 0:
            raise Violation(f"two guests have it at last: {mine.nodes()} and {result.nodes}, {losetup('-l')}")
        _well(mine.remove())
        _well(other.remove())
        self._nothing_left("at the end")

    def _told(self, command: str, point: Point, ended: Ended) -> None:
        status = ended.nodes.get("hotplug-status", b"")
        if "Traceback" in ended.output or "vbdkit itself failed" in ended.output:
            raise Violation("the script broke")
        if ended.status == 0:
            if command == ADD and not (ended.holds and status == b"connected"):
                raise Violation("a success without its nodes")
            if command == REMOVE and ended.holds:
                raise Violation("its nodes speak of what it has given back")
            if "hotplug-error" in ended.nodes:
                raise Violation("a success with an error")
        elif ended.status == 1:
            if not (ended.nodes.get("hotplug-error") or ended.output.strip()):
                raise Violation("a failure without a sentence")
            if command == ADD and (ended.holds or status == b"connected"):
                raise Violation("a failure that published")
        elif (point.how, ended.status) not in (("KILL", -9), ("TERM", -15)):
            raise Violation(f"it ended with {ended.status}")

    def _no_lock_is_held(self) -> None:
        path = self.host.lock_dir / "block"
        if path.exists():
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise Violation("the lock is stuck") from None

    def _nothing_left(self, when: str) -> None:
        if self.loops() or self.records():
            raise Violation(f"left {when}: {self.loops()} {self.records()}")

    def _collect(self) -> None:
        run_dir, lock_dir = os.fsencode(self.host.run_dir), os.fsencode(self.host.lock_dir)
        store = {b"XENSTORED_PATH": os.fsencode(self.host.socket)}
        found = Collection(datapaths.load, store, run_dir=run_dir, lock_dir=lock_dir)
        kept = [item for item in found if item.outcome == KEPT]
        if kept:
            raise Violation(f"gc kept {[(item.vbd, item.note) for item in kept]}")


def _well(result: Result) -> None:
    if result.status != 0:
        raise Violation(f"a run without a fault failed: {result.error or result.output}")
