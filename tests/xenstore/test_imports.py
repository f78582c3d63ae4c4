"""The client is on the hot path: it costs few modules and little time to import."""

import subprocess
from pathlib import Path

PYTHON = "/usr/bin/python3"
SOURCE = Path(__file__).parents[2] / "src"
ALLOWED = {
    *("sys", "posix", "errno", "time", "stat", "_stat", "fcntl", "_socket", "struct", "_struct", "select", "syslog")
}


def imported(program: str) -> set[str]:
    """The modules that a bare interpreter imports for ``program``."""
    done = subprocess.run(
        [PYTHON, "-IS", "-X", "importtime", "-c", program], capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines[1:]}


def test_the_client_imports_what_is_on_the_list() -> None:
    program = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import vbdkit.xenstore.client"
    modules = imported(program) - imported("import sys")
    own = {name for name in modules if name.split(".")[0] == "vbdkit"}
    assert own == {
        f"vbdkit{name}" for name in ("", ".xenstore", ".xenstore.client", ".xenstore.codec", ".xenstore.link")
    }
    assert modules - own - ALLOWED == set()
