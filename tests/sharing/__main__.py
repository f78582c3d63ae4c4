"""`make sharing`: every case of sharing before Xen's stock block script and before vbdkit's, as a Markdown table.

Needs root, since it makes loop devices, mounts and swap, and Debian's Xen packages, which it downloads but does not
install. With --readme the table goes into README.md; the exit status is 1 where vbdkit decided a case wrong.
"""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.host import Host
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
    cases = [(name, case) for name, case in CASES if options.only in name]
    rows = []
    with tempfile.TemporaryDirectory(prefix="vbdkit-sharing.", dir="/var/tmp") as name, ExitStack() as stack:
        folder = Path(name)
        stack.enter_context(stock_folders())
        sockets = {kind: stack.enter_context(real_store(kind, folder / kind)).socket for kind in "co"}
        for number, (title, case) in enumerate(cases):
            progress(f"{number + 1} of {len(cases)}: {title}")
            decisions = [decide(case, make, sockets, folder) for make in (StockHost, Host)]
            rows.append(Row(title, case.right, *decisions))
    progress("")
    print(table(rows))
    print(f"\n{count(rows)} (stock: Debian's Xen {stock_version()})")
    if options.readme:
        put_into_readme(rows)
    return 1 if any(row.vbdkit != row.right for row in rows) else 0


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
