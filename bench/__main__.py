"""`make bench`: how long `block add` and `block remove` take, ours and Xen's own, in one run on this machine.

Times are given as multiples of the floor, which is the interpreter that starts and does nothing (python3 -I -S -c
pass): what a script in Python cannot go below. Needs root, since it makes loop devices, and Debian's Xen packages,
which it downloads but does not install. `make bench-devd` (`devd`) is bench/devd.py's.
"""

import argparse
import signal
import sys

from . import devd, report
from .contenders import Bench
from .stage import CannotBench, Stage
from .timing import ProcessFailed

ROUNDS, QUICK_ROUNDS = 40, 8
OTHERS, QUICK_OTHERS = [0, 10, 100, 300, 1000], [0, 10, 100]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=["block", "devd"], default="block", help="the script (default), or the daemon"
    )
    parser.add_argument("--json", action="store_true", help="print every sample as JSON")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds, at most {QUICK_OTHERS[-1]} other guests"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help=f"how often each is measured ({ROUNDS})")
    options = parser.parse_args()
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    # Ended from outside, it still takes away its loop devices and its xenstored.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if options.what == "devd":
            print(devd.main(options.quick, _progress))
            return 0
        with Stage() as stage:
            bench = Bench(stage, _progress)
            bench.run(rounds, QUICK_OTHERS if options.quick else OTHERS)
            _progress("")
            form = report.as_json if options.json else report.as_table
            print(form(bench, stage.versions()))
    except (CannotBench, ProcessFailed) as reason:
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    return 0


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
