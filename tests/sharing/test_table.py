"""vbdkit decides each case of the table right, says who is in the way, and leaves nothing behind after a refusal."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.host import Host
from tests.need import need_loop_devices
from tests.sharing.table import CASES, REFUSED, Case
from tests.sharing.trial import driver_domain, trial
from tests.stores import real_store


@pytest.fixture(scope="session")
def oxenstored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with real_store("o", tmp_path_factory.mktemp("oxs")) as store:
        yield store.socket


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES])
def test_o1_o2(case: Case, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    need_loop_devices()
    with ExitStack() as stack:
        if case.store == "driver":
            host = stack.enter_context(driver_domain(tmp_path))
        else:
            socket = request.getfixturevalue({"c": "store_socket", "o": "oxenstored"}[case.store])
            host = Host(tmp_path, socket)
        stack.callback(host.close)
        outcome = trial(case, host)
        assert outcome.decision == case.right, outcome.result
        if case.right == REFUSED:
            assert outcome.result.outcome in (b"busy", b"error")
            assert outcome.unsaid == [], outcome.result.error
            assert outcome.left == [], "a refusal leaves nothing"
        assert not host.lock_dir.exists() or os.listdir(host.lock_dir) == []
        assert not host.run_dir.exists() or os.listdir(host.run_dir) == []
