"""What a BSD's `block` must leave behind."""

from tests.host import Disk


def refused(disk: Disk, *words: str) -> None:
    """The disk is refused as busy, with these words, and no trace of it stays."""
    done = disk.add()
    assert (done.status, done.outcome) == (1, b"busy"), done
    assert [word for word in words if word not in done.error] == [], done.error
    nothing_left(disk)


def nothing_left(disk: Disk) -> None:
    """No output node, record or lock of this disk is left."""
    assert not {"physical-device", "physical-device-path", "node", "vnd"} & set(disk.nodes())
    assert list(disk.host.run_dir.glob(f"vbd-{disk.domid}-*")) == []
    assert [path.name for path in disk.host.lock_dir.glob("*")] == []
