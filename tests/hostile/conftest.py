"""Fixtures of these tests: hosts with a real store as elsewhere, and one whose script runs inside this process."""

from collections.abc import Iterator

import pytest

from tests.host import Host, host
from tests.hostile.judge import Inside, no_execution
from tests.images import image, loop_device
from tests.need import need_loop_devices
from tests.stores import running_store

__all__ = ["host", "image", "loop_device"]


@pytest.fixture(scope="module", params=["linux", "freebsd"])
def inside(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    """Runs inside this process, against an embedded store; no program can be started meanwhile."""
    need_loop_devices()
    place = tmp_path_factory.mktemp("inside")
    with running_store("embedded", place) as store, pytest.MonkeyPatch.context() as patch:
        made = Host(place, store.socket, request.param)
        no_execution(patch)
        yield Inside(made)
        patch.undo()
        made.close()
