"""``python -m tests.fuzz [--seconds N] [TARGET...]``: run the targets under atheris, each in a process of its own.

Begins with the corpus that ``seeds`` makes; what is found on the way is thrown away again. Prints a line per target
and fails where an input broke one: that input is kept, and the line says how to run it again.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.seeds import SEEDS


def main() -> int:
    """Run the targets that were named, or all; 0 where no input broke one."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(SEEDS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together (default: %(default)s)")
    parser.add_argument("--again", type=Path, metavar="FILE", help="run one target on this input only")
    options = parser.parse_args()
    wanted = options.targets or list(SEEDS)
    if unknown := [name for name in wanted if name not in SEEDS]:
        parser.error(f"there is no target {', '.join(unknown)}")
    if options.again:
        from tests.fuzz.targets import TARGETS

        TARGETS[wanted[0]](options.again.read_bytes())
        return 0
    return max([_run(name, max(1, options.seconds // len(wanted))) for name in wanted])


def _run(name: str, seconds: int) -> int:
    """Fuzz one target for so long and print how it went."""
    broken = Path(tempfile.gettempdir(), f"vbdkit-fuzz-{os.getpid()}-{name}-")
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS[name]):
            Path(corpus, f"seed-{number}").write_bytes(seed)
        flags = [
            f"-max_total_time={seconds}",
            "-max_len=8192",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.inside", name, *flags, f"-artifact_prefix={broken}", corpus],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        found = len(list(Path(corpus).iterdir())) - len(SEEDS[name])
    runs = re.search(r"stat::number_of_executed_units: *(\d+)", done.stdout)
    if done.returncode == 0 and runs is not None:
        inputs = f"{int(runs[1]):,} inputs from {len(SEEDS[name])} seeds"
        print(f"{name:7} {seconds} s: {inputs}, {found} that go new ways, 0 that break it", flush=True)
        return 0
    print(done.stdout[-4000:])
    for artifact in broken.parent.glob(broken.name + "*"):
        print(f"{name} was broken; again: {sys.executable} -m tests.fuzz --again {artifact} {name}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
