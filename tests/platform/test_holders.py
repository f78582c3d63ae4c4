"""Who holds a device, on storage that this machine does not have."""

from pathlib import Path

import pytest

from tests.platform.sysfs import Sysfs
from vbdkit.platform.linux import dm, kernel, loop
from vbdkit.platform.linux.holders import holders_of
from vbdkit.platform.linux.loop import Loop
from vbdkit.platform.linux.stack import Stack
from vbdkit.storage.chain import ABOVE, ITSELF, Chain, block_identity
from vbdkit.storage.sharing import MEMBER


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sysfs:
    """A host with a disk that is seen twice, and the multipath device for it."""
    made = Sysfs(tmp_path / "sys")
    monkeypatch.setattr(kernel, "SYSFS", bytes(made.root))
    monkeypatch.setattr(loop, "bound", list[Loop])
    monkeypatch.setattr(dm, "ioctl", made.ioctl)
    monkeypatch.setattr(dm, "_CONTROL", b"/dev/null")
    made.disk("sda", "8:0")
    made.disk("sdb", "8:16")
    made.mapped(0, "mpatha", "mpath-36", ("sda", "sdb"), "0 2048 multipath 0 0 1 1 service-time 0 2 1 8:0 1 1 8:16 1 1")
    return made


def holders(number: str) -> list[tuple[str, bytes]]:
    """Kind and name of the users of a device when all that is made of others, or others of it, is held."""
    chain = Chain(b"/target")
    chain.add(block_identity(kernel.device_number(number.encode())), b"/target", ITSELF)
    chain.trace(next(iter(chain.links)), Stack())
    last = block_identity(kernel.device_number(b"253:1"))
    held = [link for link in chain.links.values() if link.place in (ITSELF, ABOVE) and link.identity != last]
    return [(user.kind, user.name) for user in holders_of(chain, held, [])]


def test_a_multipath_device_is_not_in_use_by_itself_through_its_paths(sysfs: Sysfs) -> None:
    sysfs.mapped(1, "vg-web", "LVM-a", ("dm-0",), "0 1024 linear 253:0 1024")
    assert holders("253:0") == [(MEMBER, b"/dev/dm-1 (LVM volume vg/web)")]


def test_what_holds_a_path_is_the_multipath_device_that_it_is_carved_from(sysfs: Sysfs) -> None:
    assert holders("8:0") == []
