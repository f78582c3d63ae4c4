"""Stores for all tests."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import host
from tests.stores import real_store

# A shell's background job and nohup start their programs with these ignored, and so would each script be started.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGQUIT, signal.SIGHUP):
    signal.signal(_number, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _session_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the loop devices that other programs of this machine make be none of the tests' business."""
    host.session_folder = tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def store_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a C xenstored that all tests share."""
    with real_store("c", tmp_path_factory.mktemp("xs")) as store:
        yield store.socket
