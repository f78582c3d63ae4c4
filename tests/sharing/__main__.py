"""`make sharing`: every case of sharing before Xen's stock block script and before vbdkit's, as a Markdown table.

Needs root, since it makes loop devices, mounts and swap, and Debian's Xen packages, which it downloads but does not
install. With --readme the table goes into README.md; the exit status is 1 where vbdkit decided a case wrong.
"""

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.host import Host
from tests.need import need_loop_devices
from tests.sharing.readme import Row, count, put_into_readme, table
from tests.sharing.table import CASES, GRANTED, Case
from tests.sharing.trial import Outcome, driver_domain, trial
from tests.stock import StockHost, stock_folders, stock_version
from tests.stores import real_store


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sharing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    parser.add_argument("--only", metavar="TEXT", default="", help="the cases that have this in their names")
    options = parser.parse_args()
    if options.readme and options.only:
        parser.error("README.md shows all cases: --readme and --only exclude each other")
    # Ended from outside, it still takes away its mounts, its loop devices and its stores.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        rows = decisions([(name, case) for name, case in CASES if options.only in name])
    except pytest.skip.Exception as reason:
        print(f"sharing: {reason.msg}", file=sys.stderr)
        return 1
    print(table(rows))
    print(f"\n{count(rows)} (stock: Debian's Xen {stock_version()})")
    if options.readme:
        put_into_readme(rows)
    return 1 if any(row.vbdkit != row.right for row in rows) else 0


def decisions(cases: list[tuple[str, Case]]) -> list[Row]:
    """Every case before both scripts. Raises pytest.skip.Exception where the machine lacks something."""
    need_loop_devices()
    rows = []
    with tempfile.TemporaryDirectory(prefix="vbdkit-sharing.", dir="/var/tmp") as name, ExitStack() as stack:
        folder = Path(name)
        stack.enter_context(stock_folders())
        sockets = {kind: stack.enter_context(real_store(kind, folder / kind)).socket for kind in "co"}
        for number, (title, case) in enumerate(cases):
            progress(f"{number + 1} of {len(cases)}: {title}")
            stock, ours = (decide(case, make, sockets, folder) for make in (StockHost, Host))
            rows.append(Row(title, case.right, stock, ours))
    progress("")
    return rows


def decide(case: Case, make: type[Host], sockets: dict[str, Path], folder: Path) -> str:
    """What a script makes of a case."""
    for _ in range(5):
        outcome = _try(case, make, sockets, folder)
        # Xen's script asks for a free loop device, then binds it: another program may have been faster.
        if not (outcome.decision != GRANTED and "losetup" in outcome.result.error and "failed" in outcome.result.error):
            break
    return outcome.decision


def _try(case: Case, make: type[Host], sockets: dict[str, Path], folder: Path) -> Outcome:
    with tempfile.TemporaryDirectory(dir=folder) as place, ExitStack() as stack:
        if case.store == "driver":
            host = stack.enter_context(driver_domain(Path(place), make))
        else:
            host = make(Path(place), sockets[case.store])
        stack.callback(host.close)
        return trial(case, host)


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
