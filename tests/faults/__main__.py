"""`make check-faults`: every fault at every system call of add and remove, of a file and of a device.

Prints how many points were tried and how many violations were found; exits 1 where there is one, or where too many
points were out of reach because other scripts on this machine took the loop devices.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import Queue
from types import FrameType
from typing import NoReturn

from tests.faults.harness import SCENES, Bench, Violation
from tests.faults.points import Point, points, short
from tests.stores import real_store

_BENCHES = 2
# Of a hundred points, how many may be out of reach.
_OUT_OF_REACH = 5


def main() -> int:
    """Run all; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="only the selection that `make check` runs")
    parser.add_argument("--scene", choices=["-".join(scene) for scene in SCENES], help="only this one")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    begun = time.monotonic()
    violations: list[str] = []
    tried = missed = 0
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="vbdkit-faults-", dir="/run"))
        benches: Queue[Bench] = Queue()
        made = []
        try:
            for number in range(_BENCHES):
                place = Path(name) / str(number)
                store = stack.enter_context(real_store("c", place / "store"))
                made.append(Bench(place, store.socket))
                benches.put(made[-1])
            for command, kind in SCENES:
                if options.scene not in (None, f"{command}-{kind}"):
                    continue
                calls = made[0].record(command, kind)
                every = (short if options.short else points)(calls)

                def hurt(point: Point, command: str = command, kind: str = kind) -> bool:
                    bench = benches.get()
                    try:
                        reached = bench.hurt(command, kind, point)
                        if not reached:
                            print(f"not reached: {command} {kind}, {point}", flush=True)
                        return reached
                    except Violation as reason:
                        violations.append(str(reason))
                        print(f"VIOLATION {reason}", flush=True)
                        return True
                    finally:
                        benches.put(bench)

                with ThreadPoolExecutor(_BENCHES) as pool:
                    reached = list(pool.map(hurt, every))
                tried += sum(reached)
                missed += len(every) - sum(reached)
                print(f"block {command}, a {kind}: {len(calls)} system calls, {sum(reached)} points", flush=True)
        finally:
            for bench in made:
                bench.close()
    seconds = time.monotonic() - begun
    print(f"{tried} points tried in {seconds:.0f} s, {missed} not reached; violations found: {len(violations)}")
    return 1 if violations or missed * 100 > _OUT_OF_REACH * (tried + missed) else 0


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("faults: it needs root: it makes loop devices")
    sys.exit(main())
