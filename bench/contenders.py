"""What is compared, and in which order.

Every contender is measured once in each round, in turn, so that whatever else the machine does hits all alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .stage import LOCK, PYTHON, Stage
from .timing import Command, duration, lock_held

# What an `add` may import before its own modules: all of it is in the interpreter or one small file away.
ALLOWED = "sys, posix, errno, time, stat, fcntl, _socket, struct, select, syslog"
FLOOR = "python -ISc pass"
# A custom script in shell, with the library of Xen and with ours ("first": no helper waits for it), and one in Python.
CUSTOM, FIRST, IN_PYTHON = "custom script", "custom script, first", "custom script, Python"
IMPORTS = "python, the allowed imports"


@dataclass
class Figures:
    """Samples in seconds by what was measured; no sample where there was nothing to measure."""

    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float | None) -> None:
        kept = self.samples.setdefault(name, [])
        if seconds is not None:
            kept.append(seconds)


Measure = Callable[[Command], float | None]


class Bench:
    """One run of everything on a stage. Figures are named "<who> <command> <what>"."""

    def __init__(self, stage: Stage, progress: Callable[[str], None]):
        self.stage = stage
        self.progress = progress
        self.times = Figures()
        self.locks = Figures()
        self.growth: dict[int, Figures] = {}
        self.growth_locks: dict[int, Figures] = {}

    def run(self, rounds: int, others: list[int]) -> None:
        """`rounds` of each measurement; of the growth fewer, the more other guests there are."""
        self._warm_up()
        for number in range(rounds):
            self.progress(f"times: round {number + 1} of {rounds}")
            self._bare(self.times)
            for who, script in self._in_turn(number):
                for what in ("file", "device"):
                    self._cycle(self.times, who, script, what, duration)
                self._custom(self.times, who, script.with_name("block-custom"))
        for number in range(rounds):
            self.progress(f"lock: round {number + 1} of {rounds}")
            self._locks(self.locks, number)
        for count in others:
            self.progress(f"{count} other guests")
            self.stage.set_others(count)
            figures = self.growth[count] = Figures()
            locks = self.growth_locks[count] = Figures()
            enough = max(5, rounds * 50 // (count + 50))
            for number in range(min(enough, rounds)):
                self.progress(f"{count} other guests: round {number + 1} of {min(enough, rounds)}")
                self._bare(figures)
                for who, script in self._in_turn(number):
                    for what in ("file", "device"):
                        self._cycle(figures, who, script, what, duration)
                self._locks(locks, number)

    def _locks(self, figures: Figures, number: int) -> None:
        for who, script in self._in_turn(number):
            for what in ("file", "device"):
                self._cycle(figures, who, script, what, lambda command: lock_held(command, LOCK))

    def _custom(self, figures: Figures, who: str, script: Path) -> None:
        """A script that reads two nodes and calls write_dev, and one in Python that does as much."""
        if who == "stock":
            self._cycle(figures, who, script, CUSTOM, duration)
            return
        self.stage.nobody_waits()
        self._cycle(figures, who, script, FIRST, duration)
        figures.samples.pop(f"{who} remove {FIRST}")  # which is not the first one any more
        self.stage.somebody_waits()
        self._cycle(figures, who, script, CUSTOM, duration)
        self._cycle(figures, who, script.with_name("block-python"), IN_PYTHON, duration)

    def _warm_up(self) -> None:
        """One round that is not kept: files come into the page cache."""
        unkept = Figures()
        self._bare(unkept)
        for who, script in self._in_turn(0):
            for what in ("file", "device"):
                self._cycle(unkept, who, script, what, duration)
            self._custom(unkept, who, script.with_name("block-custom"))

    def _in_turn(self, number: int) -> Iterator[tuple[str, Path]]:
        both = [("stock", self.stage.stock / "block"), ("ours", self.stage.ours / "block")]
        yield from both if number % 2 else reversed(both)

    def _bare(self, figures: Figures) -> None:
        floor = [PYTHON, "-I", "-S", "-c", "pass"]
        imports = [PYTHON, "-I", "-S", str(self._imports())]
        for name, argv in ((FLOOR, floor), (IMPORTS, imports)):
            figures.add(name, duration(Command(argv, {}, self.stage.log)))

    def _imports(self) -> Path:
        script = self.stage.folder / "imports"
        if not script.exists():
            script.write_text(f"import {ALLOWED}\n")
        return script

    def _cycle(self, figures: Figures, who: str, script: Path, what: str, measure: Measure) -> None:
        """Nodes, add, remove, no nodes: with what an add must leave looked at each time."""
        environment = self.stage.environment(script)
        self.stage.new_disk(str(self.stage.file) if what == "file" else self.stage.loop)
        figures.add(f"{who} add {what}", measure(Command([str(script), "add"], environment, self.stage.log)))
        self.stage.check_attached()
        self.stage.closed()
        figures.add(f"{who} remove {what}", measure(Command([str(script), "remove"], environment, self.stage.log)))
        self.stage.no_disk()
