"""`make check-xen`: vbdkit's block script on a real Xen with real guests.

Builds the rig if it is not built, makes a wheel of this checkout, installs it in dom0 with `vbdkit install` and runs
the cases (cases.py). Every check prints a line; the last line is "N passed, N failed". The exit status is 1 if any
failed.

The short form boots a small image; whatever is beyond it boots one with LVM, md, DRBD and the like in dom0.

Where the rig cannot be built (not root, no apt, no network) it says so and ends with 0; with CI=true in
the environment that is a failure. $RIG names the cache, by default ~/.cache/vbdkit-xenrig (5 GB, 2 GB with the small
image only).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import build
from .cases import CASES, OWN_MACHINE, SHORT
from .rig import Rig, RigError

CHECKOUT = Path(__file__).parents[2]


class NoWheel(Exception):
    """pip could not make it: a fault of the checkout or of the network, and no reason to skip."""


class Tally:
    """Passes dom0's output on as it comes and keeps the verdicts in it."""

    def __init__(self) -> None:
        self.rest = b""
        self.verdicts: list[str] = []

    def __call__(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace").rstrip("\r")
            print(text, flush=True)
            if text.startswith(("PASS ", "FAIL ")):
                self.verdicts.append(text)

    def fail(self, case: str, what: str) -> None:
        self(f"FAIL {case}: {what}\n".encode())

    def about(self, case: str) -> bool:
        return any(line[5:].startswith(f"{case}: ") for line in self.verdicts)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.xenrig", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help=f"only {' and '.join(SHORT)}: what CI runs")
    parser.add_argument(
        "--case", action="append", choices=CASES, metavar="NAME", help="only this case; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    parser.add_argument("--stock", action="store_true", help="leave Xen's own scripts in place, to compare")
    parser.add_argument(
        "--xenstored",
        choices=("xenstored", "oxenstored"),
        default="oxenstored",
        help="which of Xen's two store daemons",
    )
    options = parser.parse_args()
    if options.list:
        for name, case in CASES.items():
            print(f"{name:11} {(case.__doc__ or '').strip()}")
        return 0
    names = options.case or (SHORT if options.short else list(CASES))
    cache = Path(os.environ.get("RIG") or Path.home() / ".cache/vbdkit-xenrig")
    cache.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    if set(names) <= set(SHORT):
        home, packages = cache, []
    else:
        home, packages = cache / "storage", build.STORAGE_PACKAGES
        home.mkdir(exist_ok=True)
    together = [name for name in names if name not in OWN_MACHINE]
    with tempfile.TemporaryDirectory() as folder:
        try:
            build.ensure_built(home, packages)
            wheel = None if options.stock else _wheel(Path(folder))
        except build.CannotBuild as reason:
            print(f"skipped: {reason}")
            return int(os.environ.get("CI") == "true")
        except NoWheel as reason:
            print(f"failed: {reason}")
            return 1
        if together:
            _run(tally, Rig(home, xenstored=options.xenstored), together, wheel, cache / "logs")
        for name in names:
            if name in OWN_MACHINE:
                big = Rig(home, xenstored=options.xenstored, memory=8192, cold=True)
                _run(tally, big, [name], wheel, cache / "logs" / name)
    return _summary(tally, cache / "logs")


def _wheel(folder: Path) -> Path:
    """This checkout as a wheel, made the way `make wheel` makes it. Raises NoWheel."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "-w", str(folder), str(CHECKOUT)], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        errors = [line.strip() for line in lines if "Error: " in line or "ERROR: " in line]
        raise NoWheel(f"no wheel of this checkout: {(errors or lines)[-1]}")
    return next(folder.glob("*.whl"))


def _run(tally: Tally, rig: Rig, names: list[str], wheel: Path | None, logs: Path) -> None:
    files = {f"tests/{name}": CHECKOUT / "tests" / name for name in ("xenrig", "bootsector.py")}
    files["tests/tutorial.md"] = CHECKOUT / "docs" / "tutorial-custom-script.md"
    command = ["python3", "-m", "tests.xenrig.dom0"]
    if wheel:
        files["vbdkit.whl"] = wheel
        command += ["--wheel", "vbdkit.whl"]
    began = time.monotonic()
    try:
        rig.run([*command, *names], files, limit=300 + 120 * len(names), out=logs, on_output=tally)
    except RigError as error:
        tally.fail(names[0], f"the rig: {error}")
    for name in names:
        if not tally.about(name):
            tally.fail(name, "did not run")
    print(f"     {', '.join(names)}: {time.monotonic() - began:.0f} s with the boot of dom0")


def _summary(tally: Tally, logs: Path) -> int:
    failed = [line for line in tally.verdicts if line.startswith("FAIL")]
    if failed:
        print(f"\nlogs of dom0 are in {logs}; what failed:", *failed, sep="\n")
    print(f"{len(tally.verdicts) - len(failed)} passed, {len(failed)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
