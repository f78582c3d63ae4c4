"""What the rig runs in dom0: put the wheel in place, run `vbdkit install`, run the named cases.

    python3 -m tests.xenrig.dom0 [--wheel FILE] CASE...

Without a wheel, Xen's own scripts stay. dom0 has no pip: a wheel is a zip file whose packages lie at its top.
"""

import argparse
import os
import sys
import time
import traceback
import zipfile
from pathlib import Path

from .cases import CASES
from .harness import LIBRARY, Verdicts, run

PYTHON = "/usr/bin/python3"


def _install(wheel: Path) -> bool:
    check = Verdicts("install")
    zipfile.ZipFile(wheel).extractall(LIBRARY)
    os.environ["PYTHONPATH"] = str(LIBRARY)
    status, output = run(PYTHON, "-m", "vbdkit", "install", "--python", PYTHON)
    del os.environ["PYTHONPATH"]
    check("vbdkit install", status == 0, output)
    block = Path("/etc/xen/scripts/block")
    check("/etc/xen/scripts/block is ours", block.read_text().startswith(f"#!{PYTHON} "), block.read_text()[:80])
    return not check.failed


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("case", nargs="+", choices=CASES)
    options = parser.parse_args()
    if options.wheel and not _install(options.wheel):
        return 1
    failed = 0
    for name in options.case:
        check = Verdicts(name)
        began = time.monotonic()
        try:
            CASES[name](check)
        except Exception as error:  # whatever it is, the other cases can still run
            traceback.print_exc()
            check("ran to its end", False, f"{type(error).__name__}: {error}")
        print(f"     {name}: {time.monotonic() - began:.0f} s of dom0's time", flush=True)
        failed += check.failed
        if check.failed:
            _start_over()
    return bool(failed)


def _start_over() -> None:
    """After a failure, take away what it may have left: the next case's verdicts are to be about itself."""
    listed = run("xl", "list")[1].splitlines()[2:]
    for line in listed:
        run("xl", "destroy", line.split()[0])
    run("losetup", "-D")
    run("xenstore-rm", "/local/domain/0/backend/vbd")


if __name__ == "__main__":
    sys.exit(main())
