"""What the sharing check makes of other guests' nodes and of modes, and what a refusal means for the next who asks.

Who may have what beside whom is in tests/sharing, case by case.
"""

from pathlib import Path

import pytest

from tests.host import Host, Result

A, B = 5, 6


def refused(result: Result, *says: str) -> None:
    assert (result.status, result.outcome) == (1, b"busy"), result
    for part in says:
        assert part in result.error
    assert not {"physical-device", "physical-device-path", "node"} & set(result.nodes)


@pytest.fixture(params=["file", "device"])
def target(request: pytest.FixtureRequest, image: Path, loop_device: str) -> str:
    """A file, and a block device."""
    return str(image) if request.param == "file" else loop_device


def test_a_refused_guest_gets_the_disk_once_it_is_free(host: Host, target: str) -> None:
    one, two = host.disk(A, target), host.disk(B, target)
    one.add()
    refused(two.add())
    one.remove()
    one.forget()
    result = two.add()
    assert (result.status, result.outcome) == (0, b"connected")
    assert "hotplug-error" not in result.nodes


@pytest.mark.parametrize("mode", ["w!", "r!", "rw!"])
def test_i2_an_exclamation_mark_skips_the_check(host: Host, target: str, mode: str) -> None:
    host.disk(A, target).add()
    assert host.disk(B, target, mode).add().status == 0


def other_disk(host: Host, **nodes: bytes) -> None:
    """Another guest's disk as some other tool wrote it."""
    host.domain(9, "other")
    with host.connect() as store:
        base = b"backend/vbd/9/51712/"
        store.write_many([(base + key.replace("_", "-").encode(), value) for key, value in nodes.items()])


@pytest.mark.parametrize("value", [b"", b"7", b"loop0", b"7:", b":1", b"7:zz", b"-1:2", b"\xff:1", b"1:2:3"])
def test_a_malformed_number_of_another_guest_is_unknown_and_unknown_is_not_free(
    host: Host, target: str, value: bytes
) -> None:
    other_disk(host, physical_device=value, mode=b"w")
    result = host.disk(B, target).add()
    assert (result.status, result.outcome) == (1, b"error")
    assert "backend/vbd/9/51712/physical-device of another guest is" in result.error


@pytest.mark.parametrize("mode", [None, b"", b"x"])
def test_a_user_whose_mode_is_unknown_is_a_writer(host: Host, target: str, mode: bytes | None) -> None:
    other_disk(host, physical_device_path=target.encode(), **({} if mode is None else {"mode": mode}))
    refused(host.disk(B, target, "r").add(), "guest 9 (other)", "read-write")
