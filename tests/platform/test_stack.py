"""Storage stacks of Linux as sysfs and device-mapper tell them, and what devices are called; no real device needed."""

from pathlib import Path

import pytest

from tests.platform.sysfs import Sysfs
from vbdkit.platform.linux import dm, kernel, loop, names
from vbdkit.platform.linux.loop import Loop
from vbdkit.platform.linux.stack import Stack
from vbdkit.protocol.failure import Failure
from vbdkit.storage.chain import ABOVE, BELOW, ITSELF, Chain, block_identity

MIB = 2048  # sectors


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sysfs:
    """A host without loop devices."""
    made = Sysfs(tmp_path / "sys")
    monkeypatch.setattr(kernel, "SYSFS", bytes(made.root))
    monkeypatch.setattr(loop, "bound", list[Loop])
    monkeypatch.setattr(dm, "ioctl", made.ioctl)
    monkeypatch.setattr(dm, "_CONTROL", b"/dev/null")
    return made


def places(target: int) -> dict[str, str]:
    """Where everything stands that is on the chain of a device, by the kernel's names."""
    chain = Chain(b"/target")
    chain.add(block_identity(target), b"/target", ITSELF)
    stack = Stack()
    chain.trace(block_identity(target), stack)
    stack.close()
    called = {identity: names.device_name(identity[1])[0].decode().removeprefix("/dev/") for identity in chain.links}
    return {called[link.identity]: link.place for link in chain.links.values() if link.place != ITSELF}


def volumes(sysfs: Sysfs) -> tuple[int, int, int]:
    """A disk with one partition, a volume group in it, and two volumes of which the first has two segments."""
    sysfs.disk("sda", "8:0", bus="pci0/host0/block")
    part = sysfs.partition("sda", "sda1", "8:1", MIB, 100 * MIB)
    web = sysfs.mapped(
        0,
        "vg-web",
        "LVM-a",
        ("sda1",),
        f"0 {8 * MIB} linear 8:1 {2 * MIB}",
        f"{8 * MIB} {8 * MIB} linear 8:1 {30 * MIB}",
    )
    mail = sysfs.mapped(1, "vg-mail", "LVM-b", ("sda1",), f"0 {20 * MIB} linear 8:1 {10 * MIB}")
    return part, web, mail


def test_two_volumes_of_a_group_are_siblings(sysfs: Sysfs) -> None:
    _, web, mail = volumes(sysfs)
    assert places(web) == {"sda1": BELOW, "sda": BELOW}
    assert places(mail) == {"sda1": BELOW, "sda": BELOW}


def test_a_physical_volume_and_its_disk_have_all_volumes_above_them(sysfs: Sysfs) -> None:
    part, _, _ = volumes(sysfs)
    assert places(part) == {"sda": BELOW, "dm-0": ABOVE, "dm-1": ABOVE}
    assert places(kernel_number(sysfs, "sda")) == {"sda1": ABOVE, "dm-0": ABOVE, "dm-1": ABOVE}


def kernel_number(sysfs: Sysfs, name: str) -> int:
    return kernel.device_number((sysfs.root / "class/block" / name / "dev").read_bytes())


def test_a_mapping_by_hand_meets_the_volumes_whose_sectors_it_has(sysfs: Sysfs) -> None:
    _, web, mail = volumes(sysfs)
    by_hand = sysfs.mapped(2, "copy", "", ("sda1",), f"0 {MIB} linear 8:1 {37 * MIB}")
    assert places(by_hand) == {"sda1": BELOW, "sda": BELOW, "dm-0": ABOVE}
    assert places(web) == {"sda1": BELOW, "sda": BELOW, "dm-2": ABOVE}
    assert places(mail) == {"sda1": BELOW, "sda": BELOW}


def test_encryption_is_one_more_storey(sysfs: Sysfs) -> None:
    part, web, _ = volumes(sysfs)
    crypt = sysfs.mapped(3, "secret", "CRYPT-x", ("dm-0",), f"0 {15 * MIB} crypt aes-xts-plain64 0000 0 253:0 {MIB}")
    assert places(crypt) == {"dm-0": BELOW, "sda1": BELOW, "sda": BELOW}
    assert places(web) == {"dm-3": ABOVE, "sda1": BELOW, "sda": BELOW}
    assert places(part)["dm-3"] == ABOVE


def test_stripes_and_volumes_beside_them(sysfs: Sysfs) -> None:
    for letter, minor in (("b", 16), ("c", 32)):
        sysfs.disk(f"sd{letter}", f"8:{minor}")
    both = ("sdb", "sdc")
    striped = sysfs.mapped(0, "vg-fast", "LVM-a", both, f"0 {8 * MIB} striped 2 128 8:16 {MIB} 8:32 {MIB}")
    beside = sysfs.mapped(1, "vg-slow", "LVM-b", ("sdb",), f"0 {MIB} linear 8:16 {5 * MIB}")
    across = sysfs.mapped(2, "by-hand", "", ("sdb",), f"0 {MIB} linear 8:16 {4 * MIB}")
    assert places(striped) == {"sdb": BELOW, "sdc": BELOW, "dm-2": ABOVE}
    assert places(beside) == {"sdb": BELOW}
    assert places(across) == {"sdb": BELOW, "dm-0": ABOVE}


def thin(sysfs: Sysfs) -> tuple[int, int, int, int]:
    """A thin pool with two volumes, and an ordinary volume beside it."""
    sysfs.disk("sdb", "8:16")
    sysfs.mapped(0, "vg-pool_tmeta", "LVM-m-tmeta", ("sdb",), f"0 {MIB} linear 8:16 {MIB}")
    sysfs.mapped(1, "vg-pool_tdata", "LVM-d-tdata", ("sdb",), f"0 {50 * MIB} linear 8:16 {2 * MIB}")
    pool = sysfs.mapped(
        2, "vg-pool-tpool", "LVM-p-tpool", ("dm-0", "dm-1"), f"0 {50 * MIB} thin-pool 253:0 253:1 128 0 0"
    )
    one = sysfs.mapped(3, "vg-one", "LVM-1", ("dm-2",), f"0 {20 * MIB} thin 253:2 1")
    two = sysfs.mapped(4, "vg-two", "LVM-2", ("dm-2",), f"0 {20 * MIB} thin 253:2 2")
    plain = sysfs.mapped(5, "vg-plain", "LVM-3", ("sdb",), f"0 {5 * MIB} linear 8:16 {60 * MIB}")
    return pool, one, two, plain


def test_thin_volumes_are_siblings_of_each_other_and_of_plain_ones(sysfs: Sysfs) -> None:
    _, one, two, plain = thin(sysfs)
    below = {"dm-2": BELOW, "dm-1": BELOW, "dm-0": BELOW, "sdb": BELOW}
    assert places(one) == below
    assert places(two) == below
    assert places(plain) == {"sdb": BELOW}


def test_a_pool_and_its_parts_meet_all_thin_volumes(sysfs: Sysfs) -> None:
    pool, _, _, _ = thin(sysfs)
    assert places(pool) == {"dm-0": BELOW, "dm-1": BELOW, "sdb": BELOW, "dm-3": ABOVE, "dm-4": ABOVE}
    assert places(kernel_number(sysfs, "dm-1")) == {"sdb": BELOW, "dm-2": ABOVE, "dm-3": ABOVE, "dm-4": ABOVE}


def test_a_snapshot_and_its_origin_are_siblings_and_what_is_behind_them_meets_both(sysfs: Sysfs) -> None:
    sysfs.disk("sdb", "8:16")
    real = sysfs.mapped(0, "vg-web-real", "LVM-r-real", ("sdb",), f"0 {20 * MIB} linear 8:16 {MIB}")
    sysfs.mapped(1, "vg-snap-cow", "LVM-c-cow", ("sdb",), f"0 {5 * MIB} linear 8:16 {30 * MIB}")
    origin = sysfs.mapped(2, "vg-web", "LVM-o", ("dm-0",), f"0 {20 * MIB} snapshot-origin 253:0")
    snapshot = sysfs.mapped(3, "vg-snap", "LVM-s", ("dm-0", "dm-1"), f"0 {20 * MIB} snapshot 253:0 253:1 P 8")
    assert places(origin) == {"dm-0": BELOW, "sdb": BELOW}
    assert places(snapshot) == {"dm-0": BELOW, "dm-1": BELOW, "sdb": BELOW}
    assert places(real) == {"sdb": BELOW, "dm-2": ABOVE, "dm-3": ABOVE}


def test_paths_of_a_multipath_device_and_partitions_on_each(sysfs: Sysfs) -> None:
    for letter, minor in (("a", 0), ("b", 16)):
        sysfs.disk(f"sd{letter}", f"8:{minor}")
        sysfs.partition(f"sd{letter}", f"sd{letter}1", f"8:{minor + 1}", MIB, 10 * MIB)
        sysfs.partition(f"sd{letter}", f"sd{letter}2", f"8:{minor + 2}", 11 * MIB, 10 * MIB)
    path = "0 2 1 8:0 1 1 8:16 1 1"
    whole = sysfs.mapped(
        0, "mpatha", "mpath-36", ("sda", "sdb"), f"0 {100 * MIB} multipath 0 0 1 1 service-time {path}"
    )
    first = sysfs.mapped(1, "mpatha-part1", "part1-mpath-36", ("dm-0",), f"0 {10 * MIB} linear 253:0 {MIB}")
    sysfs.mapped(2, "mpatha-part2", "part2-mpath-36", ("dm-0",), f"0 {10 * MIB} linear 253:0 {11 * MIB}")
    paths = {"sda": ABOVE, "sdb": ABOVE}
    firsts, seconds = {"sda1": ABOVE, "sdb1": ABOVE}, {"sda2": ABOVE, "sdb2": ABOVE}
    assert places(whole) == paths | firsts | seconds | {"dm-1": ABOVE, "dm-2": ABOVE}
    assert places(first) == paths | firsts | {"dm-0": BELOW}
    sda = kernel_number(sysfs, "sda")
    assert places(sda) == {"dm-0": BELOW, "sdb": ABOVE, "dm-1": ABOVE, "dm-2": ABOVE} | firsts | seconds
    sda1 = kernel_number(sysfs, "sda1")
    assert places(sda1) == {"sda": BELOW, "dm-0": BELOW, "sdb": ABOVE, "sdb1": ABOVE, "dm-1": ABOVE}


def test_loop_devices_can_be_paths_of_a_multipath_device(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    rdevs = [sysfs.disk(f"loop{number}", f"7:{number}") for number in (0, 1)]
    info = loop._INFO.pack(0xFD00, 4711, 0, 0, 0, 0, 0, 0, 0, b"", b"", b"", 0, 0)
    monkeypatch.setattr(loop, "bound", lambda: [Loop(number, rdev, info) for number, rdev in enumerate(rdevs)])
    sysfs.disk("vda", "253:0")
    line = f"0 {MIB} multipath 0 0 1 1 service-time 0 2 1 7:0 1 1 7:1 1 1"
    whole = sysfs.mapped(7, "mpatha", "mpath-36", ("loop0", "loop1"), line)
    assert places(rdevs[0])["dm-7"] == BELOW
    assert places(rdevs[0])["loop1"] == ABOVE
    assert places(whole) == {"loop0": ABOVE, "loop1": ABOVE}


def test_an_array_over_partitions_with_partitions_of_its_own(sysfs: Sysfs) -> None:
    for letter, minor in (("a", 0), ("b", 16)):
        sysfs.disk(f"sd{letter}", f"8:{minor}")
        sysfs.partition(f"sd{letter}", f"sd{letter}1", f"8:{minor + 1}", MIB, 10 * MIB)
        sysfs.partition(f"sd{letter}", f"sd{letter}2", f"8:{minor + 2}", 11 * MIB, 10 * MIB)
    array = sysfs.disk("md0", "9:0", on=("sda1", "sdb1"), md__level="raid1")
    part = sysfs.partition("md0", "md0p1", "259:1", MIB, MIB)
    sysfs.partition("md0", "md0p2", "259:2", 2 * MIB, MIB)
    members = {"sda1": BELOW, "sdb1": BELOW, "sda": BELOW, "sdb": BELOW}
    assert places(array) == members | {"md0p1": ABOVE, "md0p2": ABOVE}
    assert places(part) == members | {"md0": BELOW}
    assert places(kernel_number(sysfs, "sda1")) == {"sda": BELOW, "md0": ABOVE, "md0p1": ABOVE, "md0p2": ABOVE}
    assert places(kernel_number(sysfs, "sda2")) == {"sda": BELOW}


def test_drbd_over_a_volume(sysfs: Sysfs) -> None:
    part, web, _ = volumes(sysfs)
    drbd = sysfs.disk("drbd0", "147:0", on=("dm-0",))
    assert places(drbd) == {"dm-0": BELOW, "sda1": BELOW, "sda": BELOW}
    assert places(web)["drbd0"] == ABOVE
    assert places(part)["drbd0"] == ABOVE


def test_a_table_of_ten_thousand_segments_is_read_whole(sysfs: Sysfs) -> None:
    sysfs.disk("sdb", "8:16")
    lines = [f"{i * 8} 8 linear 8:16 {i * 16}" for i in range(10_000)]
    odd = sysfs.mapped(0, "comb", "", ("sdb",), *lines)
    between = sysfs.mapped(1, "gap", "", ("sdb",), f"0 8 linear 8:16 {9_999 * 16 - 8}")
    last = sysfs.mapped(2, "tooth", "", ("sdb",), f"0 8 linear 8:16 {9_999 * 16}")
    assert places(between) == {"sdb": BELOW}
    assert places(last) == {"sdb": BELOW, "dm-0": ABOVE}
    assert places(odd) == {"sdb": BELOW, "dm-2": ABOVE}


def test_a_table_that_does_not_say_where_is_somewhere(sysfs: Sysfs) -> None:
    sysfs.disk("sdb", "8:16")
    cache = sysfs.mapped(0, "cached", "", ("sdb",), f"0 {MIB} writecache s 8:16 8:16 4096 0")
    over = sysfs.mapped(1, "some", "", ("sdb",), f"0 {MIB} linear 8:16 {9 * MIB}")
    assert places(cache) == {"sdb": BELOW, "dm-1": ABOVE}
    assert places(over) == {"sdb": BELOW, "dm-0": ABOVE}


@pytest.mark.parametrize("how", ["in sysfs", "in device-mapper"])
def test_a_volume_that_goes_while_the_others_are_looked_at_is_gone(sysfs: Sysfs, how: str) -> None:
    part, web, _ = volumes(sysfs)
    if how == "in sysfs":
        md = sysfs.disk("md9", "9:9", on=("sda1",))
        (sysfs.root / "class/block/md9").unlink()
        assert md
    else:
        del sysfs.tables[kernel_number(sysfs, "dm-1")]
    expected = {"sda": BELOW, "dm-0": ABOVE}
    assert places(part) == (expected | {"dm-1": ABOVE} if how == "in sysfs" else expected)
    assert places(web) == {"sda1": BELOW, "sda": BELOW}


def test_a_device_that_sysfs_does_not_know_is_an_error_not_a_free_one(sysfs: Sysfs) -> None:
    with pytest.raises(Failure, match="8:99"):
        places(kernel.device_number(b"8:99"))


@pytest.mark.parametrize("folder", ["slaves", "holders"])
def test_a_listing_that_fails_is_an_error_not_a_free_one(sysfs: Sysfs, folder: str) -> None:
    disk = sysfs.disk("sdb", "8:16")
    place = sysfs.root / "class/block/sdb" / folder
    place.rmdir()
    place.write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        places(disk)


def test_devices_are_named_as_what_they_are(sysfs: Sysfs) -> None:
    part, web, _ = volumes(sysfs)
    rbd = sysfs.root / "bus/rbd/devices/0"
    rbd.mkdir(parents=True)
    (rbd / "pool").write_text("rbd\n")
    (rbd / "name").write_text("web\n")
    mapped = {
        "vg--1-a--b": ("LVM-x", "LVM volume vg-1/a-b"),
        "secret": ("CRYPT-LUKS2-x", "encrypted device"),
        "mpatha": ("mpath-x", "multipath device"),
        "mpatha-part1": ("part1-mpath-x", "mapped partition"),
        "odd": ("", "device-mapper device"),
    }
    for number, (name, (uuid, what)) in enumerate(mapped.items(), 10):
        device = sysfs.mapped(number, name, uuid, ())
        assert names.device_name(device) == (f"/dev/dm-{number}".encode(), what)
    expected = {
        part: (b"/dev/sda1", "partition 1 of /dev/sda"),
        web: (b"/dev/dm-0", "LVM volume vg/web"),
        kernel_number(sysfs, "sda"): (b"/dev/sda", "disk"),
        sysfs.disk("md127", "9:127", md__level="raid5"): (b"/dev/md127", "md array raid5"),
        sysfs.disk("nbd0", "43:0", pid="4711"): (b"/dev/nbd0", "network block device served through process 4711"),
        sysfs.disk("nbd1", "43:1"): (b"/dev/nbd1", "network block device"),
        sysfs.disk("rbd0", "252:0"): (b"/dev/rbd0", "Ceph RBD image rbd/web"),
        sysfs.disk("drbd3", "147:3"): (b"/dev/drbd3", "DRBD volume"),
        sysfs.disk("zd16", "230:16"): (b"/dev/zd16", "ZFS volume"),
        sysfs.disk("nvme0n1", "259:0", bus="pci0/nvme/nvme0"): (b"/dev/nvme0n1", "NVMe namespace"),
        sysfs.disk("nvme1n1", "259:5", bus="virtual/nvme-subsystem/nvme-subsys1"): (
            b"/dev/nvme1n1",
            "NVMe multipath namespace",
        ),
        sysfs.partition("nvme0n1", "nvme0n1p2", "259:2", MIB, MIB): (b"/dev/nvme0n1p2", "partition 2 of /dev/nvme0n1"),
        sysfs.disk("cciss!c0d0", "104:0"): (b"/dev/cciss/c0d0", "disk"),
        kernel.device_number(b"8:99"): (b"device 8:99", "block device"),
    }
    assert {rdev: names.device_name(rdev) for rdev in expected} == expected
