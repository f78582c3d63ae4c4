"""``python -m tests.stress [--rounds N] [--scripts N] [c|o]``: the long run, with its figures."""

import argparse
import sys
import time
import traceback

from tests.stress.farm import Figures, watch
from tests.stress.machine import live

NAMES = {"c": "C xenstored", "o": "oxenstored"}


def main() -> int:
    """Run on both stores, or on one."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__.partition(": ")[2])
    parser.add_argument("kind", nargs="?", choices=NAMES, help="the store (default: both, one after the other)")
    parser.add_argument("--rounds", type=int, default=200, help="per store (default: %(default)s)")
    parser.add_argument("--scripts", type=int, default=64, help="per round (default: %(default)s)")
    options = parser.parse_args()
    broken = 0
    for kind in [options.kind] if options.kind else NAMES:
        figures = Figures()
        begun = time.monotonic()

        def say(text: str, kind: str = kind, begun: float = begun) -> None:
            print(f"{NAMES[kind]}, {time.monotonic() - begun:.0f} s: {text}", flush=True)

        done = watch(figures, say, 60)
        try:
            live(kind, options.rounds, options.scripts, figures)
        except BaseException:
            traceback.print_exc()
            broken = 1
        finally:
            done.set()
        say(str(figures))
    return broken


if __name__ == "__main__":
    sys.exit(main())
