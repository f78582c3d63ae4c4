"""A host with many guests, a toolstack that keeps them busy, and an enemy who kills what runs.

A vbd is one thread's affair, as in libxl: its scripts run one after another. Between vbds everything is at once.
What a round does follows from its seed; what comes of it depends on the machine, so what is checked holds for every
outcome.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.host import SOURCE, Disk, Host, bound_loops
from tests.images import make_image
from tests.stores import Store, real_store
from vbdkit.engine import Lock
from vbdkit.engine.record import Records
from vbdkit.platform.linux import loop
from vbdkit.xenstore.client import StoreError

GUESTS = range(1, 13)
DEVIDS = (51712, 51728)
IMAGES = 8
AT_ONCE = 16
# A script takes some 20 ms alone and, among so many on two cores, some 150: kills come at any point of it, or too late.
KILL_WITHIN = 0.25
# The toolstack kills at 40 s; nothing here may take as long.
TOO_LONG = 40.0
PATIENCE = 10.0


@dataclass
class Figures:
    """What was done and seen, for printing."""

    counts: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """One line."""
        wanted = (
            "rounds",
            "scripts",
            "connected",
            "refused",
            "SIGKILL",
            "SIGTERM",
            "stores killed",
            "kept from strangers",
            "collected",
            "leaks",
        )
        return ", ".join(f"{self.counts[name]:,} {name}" for name in wanted)


class Farm:
    """See the module. ``kind`` of store: "c" or "o"; ``directory``: an empty folder."""

    def __init__(self, kind: str, directory: Path, figures: Figures) -> None:
        """Start the store and make images and guests."""
        self.kind = kind
        self.directory = directory
        self.figures = figures
        self._stack = ExitStack()
        self.store = self._start()
        self.host = Host(directory, self.store.socket)
        self.records = Records(os.fsencode(self.host.run_dir))
        self.images = [make_image(directory / f"disk{number}.img") for number in range(IMAGES)]
        self.spare = make_image(directory / "spare.img")
        self.disks = [Disk(self.host, "vbd", domid, devid) for domid in GUESTS for devid in DEVIDS]
        self._domains()

    def _start(self) -> Store:
        """Start the store's daemon."""
        return self._stack.enter_context(real_store(self.kind, self.directory / "store"))

    def _domains(self) -> None:
        for domid in (0, *GUESTS, 99):
            self.host.domain(domid)

    def close(self) -> None:
        """Stop the store and take back what is left."""
        self.host.close()
        self._stack.close()

    # What happens.

    def round(self, seed: int, scripts: int) -> None:
        """Run so many adds and removes of random vbds, and kill some."""
        chance = random.Random(seed)
        queues: dict[int, list[int]] = {}
        for _ in range(scripts):
            queues.setdefault(chance.randrange(len(self.disks)), []).append(chance.getrandbits(64))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            jobs = [pool.submit(self._play, self.disks[which], seeds) for which, seeds in queues.items()]
            for job in jobs:
                job.result()
        self.figures.counts["rounds"] += 1

    def _play(self, disk: Disk, seeds: list[int]) -> None:
        for seed in seeds:
            chance = random.Random(seed)
            kill = None
            if chance.random() < 0.4:
                number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
                kill = (chance.uniform(0, KILL_WITHIN), number)
            if chance.random() < 0.6:
                self._ask(disk, chance)
                self.script(disk, "add", kill)
            else:
                self._close(disk)
                ended = self.script(disk, "remove", kill)
                assert ended is None or ended == 0, "a remove that nobody killed ends well"
                if chance.random() < 0.7:
                    self._forget(disk)

    def _ask(self, disk: Disk, chance: random.Random) -> None:
        """Write the nodes for an add: of a new disk, or once more of one that is attached (I5).

        Sometimes the toolstack has deleted the nodes without a remove (I4). It never changes those of an attached disk.
        """
        now = disk.nodes()
        if "physical-device" in now and chance.random() < 0.5:
            self.nodes(disk, Path(os.fsdecode(now["params"])), now["mode"].decode())
        else:
            self._forget(disk)
            self.nodes(disk, chance.choice(self.images), chance.choice("rrw"))

    def nodes(self, disk: Disk, image: Path, mode: str) -> None:
        """Write the nodes for an add, as the toolstack does while the driver waits."""
        self.host.vbd(disk.domid, image, mode, disk.devid)

    def _close(self, disk: Disk) -> None:
        """Have the driver let go, where there are nodes."""
        if "state" in disk.nodes():
            disk.write(state=b"6", online=b"0")

    def _forget(self, disk: Disk) -> None:
        try:
            disk.forget()
        except StoreError as error:
            if error.name != "ENOENT":
                raise

    def script(self, disk: Disk, command: str, kill: tuple[float, int] | None = None) -> int | None:
        """Run one script to its end; its exit status, None where it was killed. What it says must be a sentence."""
        begun = time.monotonic()
        process = disk.start(command)
        counts = self.figures.counts
        counts["scripts"] += 1
        killed = None
        if kill is not None:
            try:
                process.wait(kill[0])
            except subprocess.TimeoutExpired:
                killed = signal.Signals(kill[1])
                process.send_signal(killed)
                counts[killed.name] += 1
        output = process.communicate(timeout=TOO_LONG)[0].decode()
        assert time.monotonic() - begun < TOO_LONG, f"{command} took too long"
        status: int = process.returncode
        if status == 0:
            counts["connected"] += command == "add"
            assert output == "", output
            return 0
        if killed is not None and (killed is signal.SIGKILL or status < 0):
            return None
        assert status == 1, (status, output)
        assert output.startswith(f"block: {disk.kind}-{disk.domid}-{disk.devid}: "), output
        assert output.rstrip("\n").isprintable(), output
        assert "itself failed" not in output, output
        assert "Traceback" not in output, output
        counts["refused"] += " in use by " in output
        return None if killed is not None else 1

    # What holds.

    def check(self) -> None:
        """Fail where something was given twice, is connected to nothing, is bound without a record, or hangs."""
        settled(self.unrecorded, "a loop device is bound and there is no record of it")
        uses: dict[tuple[int, int], list[tuple[Disk, bool]]] = {}
        for disk in self.disks:
            nodes = disk.nodes()
            number = nodes.get("physical-device")
            if number is None:
                assert nodes.get("hotplug-status") != b"connected", f"{disk.path!r} is connected to nothing"
                continue
            # The status may be `error`: of an add that was ended before it looked at what was there.
            there = loop.query(int(number.partition(b":")[2], 16))
            assert there is not None, f"{disk.path!r} has a loop device that is bound to nothing"
            name = f"vbd-{disk.domid}-{disk.devid}"
            assert there.owner == self.records.owner(name).encode(), (
                f"{disk.path!r} has the loop device of {there.owner!r}"
            )
            assert there.path == nodes["node"] == nodes["physical-device-path"]
            record = (self.host.run_dir / name).read_text().splitlines()
            assert f"file {there.backing[0]} {there.backing[1]}" in record, (
                f"{name} is bound to another file than recorded"
            )
            mode = "r" if there.read_only else "w"
            assert {f"mode {mode}", f"mode {mode}!"} & set(record), disk.path
            uses.setdefault(there.backing, []).append((disk, not there.read_only))
        for identity, users in uses.items():
            domids = {disk.domid for disk, _ in users}
            who = [f"{disk.path.decode()} ({'w' if writes else 'r'})" for disk, writes in users]
            assert len(domids) == 1 or not any(writes for _, writes in users), f"{identity} was given twice: {who}"
        self.fresh()

    def unrecorded(self) -> list[str]:
        """The vbds that have a loop device here and no record."""
        records = {path.name for path in self.host.run_dir.glob("vbd-*")}
        owners = [loop.query(int(name.removeprefix("/dev/loop"))) for name in self.loops()]
        return [name for bound in owners if bound and (name := bound.owner.decode().partition("@")[0]) not in records]

    def fresh(self) -> None:
        """No lock is stuck: a guest that has nothing to do with all this gets a disk and gives it back."""
        disk = Disk(self.host, "vbd", 99, 51712)
        self.nodes(disk, self.spare, "w")
        assert self.script(disk, "add") == 0
        self._close(disk)
        assert self.script(disk, "remove") == 0
        disk.forget()

    def remove_everything(self) -> None:
        """Remove all vbds, as a toolstack does that ends all guests; then nothing may be left."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for job in [pool.submit(self._remove, disk) for disk in self.disks]:
                job.result()
        self._nothing_left()

    def collect(self) -> None:
        """The toolstack deletes all nodes and calls no script (I4); `vbdkit gc` finds it all, and nothing is left."""
        for disk in self.disks:
            self._forget(disk)
        places = ["--run-dir", str(self.host.run_dir), "--lock-dir", str(self.host.lock_dir)]
        done = subprocess.run(
            [sys.executable, "-m", "vbdkit", "gc", *places],
            env=self.host.environment() | {"PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.figures.counts["collected"] += 1
        self._nothing_left()

    def _nothing_left(self) -> None:
        records = sorted(path.name for path in self.host.run_dir.glob("*"))
        self.figures.counts["leaks"] += len(records)
        try:
            settled(self.loops, "a loop device is left")
        except AssertionError:
            self.figures.counts["leaks"] += len(self.loops())
            raise
        assert records == [], "a record is left"
        with Lock(os.fsencode(self.host.lock_dir), time.monotonic() + 5):
            pass
        assert list(self.host.lock_dir.iterdir()) == [], "a lock is left"

    def _remove(self, disk: Disk) -> None:
        self._close(disk)
        assert self.script(disk, "remove") == 0
        self._forget(disk)

    def loops(self) -> list[str]:
        """The loop devices on files of this farm."""
        return bound_loops(self.directory)

    # The store's death.

    def kill_the_store(self, seed: int, scripts: int) -> None:
        """Kill the store's daemon while adds run; start another, empty one. Adds fail with a sentence or were done."""
        chance = random.Random(seed)
        disks = chance.sample(self.disks, min(scripts, len(self.disks)))
        for disk in disks:
            self._close(disk)
            assert self.script(disk, "remove") == 0
            self.nodes(disk, chance.choice(self.images), "r")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            jobs = [pool.submit(self.script, disk, "add") for disk in disks]
            time.sleep(chance.uniform(0, KILL_WITHIN))
            os.kill(self.store.pid, signal.SIGKILL)
            self.figures.counts["stores killed"] += 1
            for job in jobs:
                assert job.result() in (0, 1)
        self._stack.close()
        self.store = self._start()
        self._domains()
        for disk in self.disks:
            assert disk.nodes() == {}, "the new store knows nothing of the old one's disks"
        self.stranger()

    def stranger(self) -> None:
        """A guest of the new store's asks for each image: it gets none that a guest of the old one has."""
        before = self.loops()
        owners = [loop.query(int(name.removeprefix("/dev/loop"))) for name in before]
        held = {bound.backing for bound in owners if bound is not None and not bound.autoclear}
        disk = Disk(self.host, "vbd", 99, 51712)
        for image in self.images:
            self.nodes(disk, image, "w")
            there = image.stat()
            given = self.script(disk, "add") == 0
            assert given == ((there.st_dev, there.st_ino) not in held), f"{image} was {given=}"
            self.figures.counts["kept from strangers"] += not given
            self._remove(disk)
        settled(lambda: [name for name in self.loops() if name not in before], "a loop device is left")


def settled(found: Callable[[], list[str]], what: str) -> None:
    """Fail where something is found, and found again for some seconds.

    The kernel releases a loop device when its last opener closes it, and programs on this machine look at all of them.
    """
    end = time.monotonic() + PATIENCE
    while there := found():
        assert time.monotonic() < end, f"{what}: {there}"
        time.sleep(0.01)


@contextmanager
def farm(kind: str, directory: Path, figures: Figures) -> Iterator[Farm]:
    """A farm for a while."""
    made = Farm(kind, directory, figures)
    try:
        yield made
    finally:
        made.close()


def watch(figures: Figures, say: Callable[[str], None], seconds: float) -> threading.Event:
    """Say the figures now and then, until the event that is returned is set."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(seconds):
            say(str(figures))

    threading.Thread(target=run, daemon=True).start()
    return done
