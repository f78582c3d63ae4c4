"""Stores for all tests."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REALSTORE = Path(__file__).parent / "realstore" / "realstore"


@pytest.fixture(scope="session")
def store_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    rundir = tmp_path_factory.mktemp("xs")
    pid = int(subprocess.run([REALSTORE, "start", rundir], check=True, capture_output=True, text=True).stdout)
    yield rundir / "socket"
    os.kill(pid, signal.SIGTERM)
