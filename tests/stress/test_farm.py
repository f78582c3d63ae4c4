"""A short run of the farm on each of Xen's stores; the long one is `make check-stress`."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import Disk, bound_loops
from tests.images import losetup
from tests.need import need_loop_devices
from tests.stores import need_real_stores
from tests.stress.farm import Farm, Figures, farm
from tests.stress.machine import live


@pytest.fixture(params=["c", "o"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Farm]:
    """A farm on each of the stores."""
    need_loop_devices()
    need_real_stores()
    with farm(request.param, tmp_path, Figures()) as made:
        yield made


@pytest.mark.parametrize("kind", ["c", "o"])
def test_many_at_once_with_kills(kind: str) -> None:
    need_loop_devices()
    need_real_stores()
    figures = Figures()
    live(kind, rounds=2, scripts=24, figures=figures, steps=2)
    assert figures.counts["rounds"] >= 2
    assert figures.counts["SIGKILL"] > 0
    assert figures.counts["leaks"] == 0


def test_the_store_is_killed_in_the_middle(small: Farm) -> None:
    """Adds in flight fail with a sentence; what had been attached is known by its record and goes with its remove."""
    small.kill_the_store(random.randrange(1 << 30), 12)
    small.remove_everything()
    small.check()
    assert small.figures.counts["stores killed"] == 1


def test_what_no_script_is_called_for_is_collected(small: Farm) -> None:
    small.round(random.randrange(1 << 30), 24)
    small.collect()
    small.check()


def test_nodes_that_are_lost_with_the_store(small: Farm) -> None:
    """A disk that was connected, after the store came back empty: the next add of its own is one attach."""
    disk = small.disks[0]
    small.nodes(disk, small.images[0], "w")
    assert small.script(disk, "add") == 0
    before = bound_loops(small.directory)
    small.kill_the_store(1, 0)
    assert bound_loops(small.directory) == before, "the guest has its disk all the while"
    small.nodes(disk, small.images[0], "w")
    assert small.script(disk, "add") == 0
    assert len(bound_loops(small.directory)) == 1
    assert small.figures.counts["kept from strangers"] == 1
    small.check()
    small.remove_everything()


def test_the_farm_notices_what_is_given_twice(small: Farm) -> None:
    one, two = (Disk(small.host, "vbd", domid, 51712) for domid in (1, 2))
    for disk, mode in ((one, "w"), (two, "w!")):
        small.nodes(disk, small.images[0], mode)
        assert small.script(disk, "add") == 0
    two.write(mode=b"w")
    with pytest.raises(AssertionError, match="given twice"):
        small.check()
    small.remove_everything()


def test_the_farm_notices_what_is_left(small: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.stress.farm.PATIENCE", 0.2)
    disk = small.disks[0]
    small.nodes(disk, small.images[0], "w")
    assert small.script(disk, "add") == 0
    (small.host.run_dir / "vbd-1-51712").unlink()
    with pytest.raises(AssertionError, match="there is no record of it"):
        small.check()
    small.remove_everything()
    losetup("--find", str(small.images[0]))
    with pytest.raises(AssertionError, match="a loop device is left"):
        small.remove_everything()
    assert small.figures.counts["leaks"] == 1
