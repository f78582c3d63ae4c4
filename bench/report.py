"""Prints what was measured: as a table for people, or as JSON. Measures nothing."""

import json
import os
import platform
import statistics
from pathlib import Path

from .contenders import CUSTOM, FLOOR, Bench, Figures

# What vbdkit set out to reach, in multiples of the floor or in milliseconds; shown beside the results.
GOALS = {"ours add file": 1.4, "ours add device": 1.4, "ours remove file": 1.3, "ours remove device": 1.3}
LOCK_GOAL_MS = 1.0
CUSTOM_GOAL = 0.5
GROWTH_GOALS = {1000: 6.5}  # files and devices alike


def machine(versions: dict[str, str]) -> dict[str, str]:
    """Where the figures come from."""
    models = (
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line
    )
    return {
        "cpu": f"{next(models, platform.machine())}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        **versions,
    }


def as_json(bench: Bench, versions: dict[str, str]) -> str:
    """All of it, with every sample, in seconds."""
    growth = {str(count): _summaries(figures) for count, figures in bench.growth.items()}
    locks = {str(count): _summaries(figures) for count, figures in bench.growth_locks.items()}
    whole = {"machine": machine(versions), "times": _summaries(bench.times), "lock": _summaries(bench.locks)}
    return json.dumps({**whole, "other guests": growth, "lock beside other guests": locks}, indent=1)


def as_table(bench: Bench, versions: dict[str, str]) -> str:
    """Medians with the 90th percentile, in milliseconds."""
    lines = [f"{name:8} {value}" for name, value in machine(versions).items()]
    head = f"{'':30}{'median':>9}{'p90':>9}{'min':>9}{'n':>5}"
    lines += ["", f"{head}{'x floor':>9}{'goal':>9}"]
    lines += _rows(bench.times, GOALS)
    share = _share(bench.times)
    lines += [f"a custom script with our library takes {share:.2f} of what it takes with Xen's (goal {CUSTOM_GOAL})"]
    lines += ["", f"{head}{'':>9}{'goal':>9}   the lock is held, ms"]
    lines += _lock_rows(bench.locks, LOCK_GOAL_MS)
    lines += ["", f"{head}{'x floor':>9}{'goal':>9}   add beside other guests' loop devices"]
    for count, figures in bench.growth.items():
        goal = GROWTH_GOALS.get(count)
        goals = dict.fromkeys(("ours add file", "ours add device"), goal) if goal else {}
        lines += [f"{count} others", *("  " + row for row in _rows(_adds(figures), goals))]
    lines += ["", f"{head}{'':>9}{'goal':>9}   the lock is held beside them, ms"]
    for count, figures in bench.growth_locks.items():
        lines += [f"{count} others", *("  " + row for row in _lock_rows(_adds(figures)))]
    return "\n".join(lines)


def _share(figures: Figures) -> float:
    """The median of a custom script with our library, as a part of that with Xen's."""
    ours, stock = [statistics.median(figures.samples[f"{who} add {CUSTOM}"]) for who in ("ours", "stock")]
    return ours / stock


def _adds(figures: Figures) -> Figures:
    return Figures({name: values for name, values in figures.samples.items() if " add " in name or name == FLOOR})


def _lock_rows(figures: Figures, goal: float | None = None) -> list[str]:
    rows = []
    for name, values in figures.samples.items():
        shown = f"{goal:.1f}" if goal is not None and name.startswith("ours") else ""
        rows.append((f"{_row(name, values)}{'':>9}{shown:>9}" if values else f"{name:30} takes no lock").rstrip())
    return rows


def _rows(figures: Figures, goals: dict[str, float]) -> list[str]:
    floor = statistics.median(figures.samples[FLOOR])
    rows = []
    for name, values in figures.samples.items():
        goal = f"{goals[name]:.1f}" if name in goals else ""
        rows.append(f"{_row(name, values)}{statistics.median(values) / floor:9.2f}{goal:>9}".rstrip())
    return rows


def _row(name: str, values: list[float]) -> str:
    numbers = (statistics.median(values), percentile(values, 90), min(values))
    return f"{name:30}" + "".join(f"{number * 1000:9.3f}" for number in numbers) + f"{len(values):5}"


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def _summaries(figures: Figures) -> dict[str, dict[str, object]]:
    return {
        name: {"median": statistics.median(values), "p90": percentile(values, 90), "n": len(values), "samples": values}
        for name, values in figures.samples.items()
        if values
    }
