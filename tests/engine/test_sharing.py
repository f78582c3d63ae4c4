"""Sharing: the same device or file, by number, in the store or mounted in this domain (O1, O2, I5, G2)."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.host import Host, Result, bound_loops
from tests.images import losetup, make_image

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


@pytest.mark.parametrize(("first", "second", "allowed"), [("w", "w", 0), ("w", "r", 0), ("r", "w", 0), ("r", "r", 1)])
def test_o1_o2_the_same_target(host: Host, target: str, first: str, second: str, allowed: int) -> None:
    one = host.disk(A, target, first)
    assert one.add().status == 0
    loops = bound_loops()
    result = host.disk(B, target, second).add()
    if allowed:
        assert (result.status, result.outcome) == (0, b"connected")
    else:
        has = "read-write" if first == "w" else "read-only"
        refused(result, f"{target} is in use by guest 5 (guest5) as its disk xvda", has, "xl block-detach 5 xvda")
        assert bound_loops() == loops, "the loop device of the refused one is gone again"
    assert one.remove().status == 0
    assert host.disk(7, target, "w").add().status == (1 if allowed else 0)


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


def test_a_disk_that_was_given_unchecked_counts_for_the_next(host: Host, target: str) -> None:
    host.disk(A, target, "w!").add()
    refused(host.disk(B, target).add())


@pytest.mark.parametrize("name", ["hard link", "symbolic link", "renamed", "another mount"])
def test_the_same_file_by_another_name(host: Host, image: Path, tmp_path: Path, name: str) -> None:
    other = tmp_path / "other.img"
    host.disk(A, image).add()
    if name == "hard link":
        os.link(image, other)
    elif name == "symbolic link":
        other.symlink_to(image)
    elif name == "renamed":
        image.rename(other)
    else:
        other.touch()
        subprocess.run(["mount", "--bind", image, other], check=True)
    try:
        refused(host.disk(B, other).add(), f"{other} is in use by guest 5")
    finally:
        if name == "another mount":
            subprocess.run(["umount", other], check=True)


def test_the_same_device_by_another_name(host: Host, loop_device: str, tmp_path: Path) -> None:
    node, link = tmp_path / "node", tmp_path / "link"
    os.mknod(node, 0o60600, os.stat(loop_device).st_rdev)
    link.symlink_to(loop_device)
    host.disk(A, loop_device).add()
    refused(host.disk(B, node).add())
    refused(host.disk(7, link).add())


def test_a_file_and_a_loop_device_on_it_are_one(host: Host, image: Path) -> None:
    loop = losetup("--find", "--show", str(image))
    try:
        one = host.disk(A, loop)
        one.add()
        refused(host.disk(B, image).add(), loop)
        one.remove()
        one.forget()
        host.disk(7, image).add()
        refused(host.disk(8, loop).add(), "guest 7")
    finally:
        losetup("-d", loop)


def test_two_loop_devices_on_one_file_are_one(host: Host, image: Path) -> None:
    first, second = (losetup("--find", "--show", str(image)) for _ in "12")
    try:
        host.disk(A, first).add()
        refused(host.disk(B, second).add())
    finally:
        losetup("-d", first, second)


def test_a_loop_device_on_a_block_device_is_that_device(host: Host, loop_device: str) -> None:
    upper = losetup("--find", "--show", loop_device)
    try:
        host.disk(A, loop_device).add()
        refused(host.disk(B, upper).add())
    finally:
        losetup("-d", upper)


def test_an_idle_loop_device_on_the_file_is_no_user(host: Host, image: Path) -> None:
    loop = losetup("--find", "--show", str(image))
    try:
        assert host.disk(A, image).add().status == 0
    finally:
        losetup("-d", loop)


def test_another_file_and_another_device_are_free(host: Host, image: Path, loop_device: str, tmp_path: Path) -> None:
    host.disk(A, image).add()
    assert host.disk(B, make_image(tmp_path / "b.img")).add().status == 0
    assert host.disk(7, loop_device).add().status == 0


def other_disk(host: Host, kind: str, **nodes: bytes) -> None:
    """Another guest's disk as some other backend's tools wrote it."""
    host.domain(9, "other")
    base = b"backend/%s/9/51712/" % kind.encode()
    with host.connect() as store:
        store.write_many([(base + key.replace("_", "-").encode(), value) for key, value in nodes.items()])


@pytest.mark.parametrize("kind", ["vbd", "vbd3", "tap", "qdisk", "some_day"])
@pytest.mark.parametrize("spelling", ["{:x}:{:x}", "{:02x}:{:02x}", "{:X}:{:X}", "{:04x}:{:08x}"])
def test_numbers_are_compared_as_numbers_in_every_backend(
    host: Host, loop_device: str, kind: str, spelling: str
) -> None:
    number = os.stat(loop_device).st_rdev
    text = spelling.format(os.major(number), os.minor(number)).encode()
    other_disk(host, kind, physical_device=text, mode=b"w")
    refused(host.disk(B, loop_device).add(), "guest 9 (other)")


def test_g2_without_a_number_the_path_is_asked(host: Host, target: str) -> None:
    other_disk(host, "vbd", physical_device_path=target.encode(), mode=b"w")
    refused(host.disk(B, target).add(), "guest 9")


@pytest.mark.parametrize("driver", ["aio:", "qcow2:", "vhd:", "raw:", ""])
def test_a_qdisk_is_known_by_its_params(host: Host, target: str, driver: str) -> None:
    other_disk(host, "qdisk", params=driver.encode() + target.encode(), mode=b"w")
    refused(host.disk(B, target).add(), "guest 9")


def test_a_vbd_that_has_params_only_has_nothing_yet(host: Host, target: str) -> None:
    """Else two scripts at once for one target would refuse each other, and neither guest would get it."""
    host.disk(A, target)
    assert host.disk(B, target).add().status == 0


def test_a_killed_add_that_published_counts(host: Host, target: str) -> None:
    disk = host.disk(A, target)
    disk.add()
    with host.connect() as store:
        store.remove(disk.path + b"/hotplug-status")
    refused(host.disk(B, target).add(), "guest 5")


@pytest.mark.parametrize("value", [b"", b"7", b"loop0", b"7:", b":1", b"7:zz", b"-1:2", b"\xff:1", b"1:2:3"])
def test_a_malformed_number_of_another_guest_is_unknown_and_unknown_is_not_free(
    host: Host, target: str, value: bytes
) -> None:
    other_disk(host, "vbd", physical_device=value, mode=b"w")
    result = host.disk(B, target).add()
    assert (result.status, result.outcome) == (1, b"error")
    assert "backend/vbd/9/51712/physical-device of another guest is" in result.error


@pytest.mark.parametrize("mode", [None, b"", b"x"])
def test_a_user_whose_mode_is_unknown_is_a_writer(host: Host, target: str, mode: bytes | None) -> None:
    other_disk(host, "vbd", physical_device_path=target.encode(), **({} if mode is None else {"mode": mode}))
    refused(host.disk(B, target, "r").add(), "guest 9 (other)", "read-write")


def test_devices_that_are_no_disks_do_not_matter(host: Host, loop_device: str) -> None:
    other_disk(host, "vif", physical_device=b"nonsense")
    assert host.disk(B, loop_device).add().status == 0


# The same VM (I5).


def test_i5_the_same_guest_twice(host: Host, target: str) -> None:
    host.disk(A, target).add()
    assert host.vbd(A, target, devid=51728).add().status == 0


def test_i5_a_guest_and_its_stub_domain(host: Host, target: str) -> None:
    host.disk(A, target).add()
    host.domain(8, "stub", vm="/vm/of-the-stub", target="5")
    assert host.vbd(8, target).add().status == 0
    refused(host.disk(9, target).add())


def test_i5_a_stub_domain_and_then_its_guest(host: Host, target: str) -> None:
    host.domain(8, "stub", vm="/vm/of-the-stub", target="5")
    host.vbd(8, target).add()
    assert host.disk(A, target).add().status == 0


@pytest.mark.parametrize(("old", "new"), [("/vm/x", "/vm/x"), ("/vm/x-1", "/vm/x"), ("/vm/x", "/vm/x-1")])
def test_i5_a_migration_to_the_same_host(host: Host, target: str, old: str, new: str) -> None:
    host.domain(A, "guest", vm=old)
    host.vbd(A, target).add()
    host.domain(B, "guest--incoming", vm=new)
    assert host.vbd(B, target).add().status == 0
    refused(host.disk(7, target).add())


def test_two_live_domains_without_a_vm_node_are_two_vms(host: Host, target: str) -> None:
    host.domain(A, vm=None)
    host.vbd(A, target).add()
    host.domain(B, vm=None)
    refused(host.vbd(B, target).add())


def test_leftovers_of_a_dead_domain_do_not_count(host: Host, loop_device: str) -> None:
    disk = host.disk(A, loop_device)
    disk.add()
    with host.connect() as store:
        store.remove(b"/local/domain/5")
    assert host.disk(B, loop_device).add().status == 0


def test_a_dead_domain_beside_a_live_one_hides_nothing(host: Host, loop_device: str) -> None:
    host.disk(A, loop_device).add()
    with host.connect() as store:
        store.remove(b"/local/domain/5")
    host.disk(B, loop_device).add()
    refused(host.disk(7, loop_device).add(), "guest 6")


# This domain.


@pytest.fixture
def file_system(host: Host, tmp_path: Path) -> Path:
    """An image with a file system."""
    image = make_image(tmp_path / "fs.img", size=8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    return image


@pytest.mark.parametrize("options", ["rw", "ro"])
@pytest.mark.parametrize("mode", ["w", "r"])
@pytest.mark.parametrize("as_file", [True, False])
def test_o2_mounted_in_this_domain(
    host: Host, file_system: Path, tmp_path: Path, options: str, mode: str, as_file: bool
) -> None:
    loop = losetup("--find", "--show", str(file_system))
    point = tmp_path / "mount point"
    point.mkdir()
    subprocess.run(["mount", "-o", options, loop, point], check=True)
    try:
        result = host.disk(B, file_system if as_file else loop, mode).add()
        if (options, mode) == ("ro", "r"):
            assert result.status == 0
        else:
            refused(result, f"is mounted{f' (through {loop})' if as_file else ''} on {point}", f"umount {point}")
            assert host.disk(7, file_system if as_file else loop, mode + "!").add().status == 0
    finally:
        subprocess.run(["umount", point], check=True)
        losetup("-d", loop)


def test_o2_held_exclusively_in_this_domain(host: Host, target: str, loop_device: str) -> None:
    """As by swap, LVM, md, a mount in another namespace, or a careful program."""
    loop = loop_device if target == loop_device else losetup("--find", "--show", target)
    holder = os.open(loop, os.O_RDONLY | os.O_EXCL)
    try:
        refused(host.disk(B, target).add(), "is held exclusively")
    finally:
        os.close(holder)
        if loop != loop_device:
            losetup("-d", loop)


def test_the_file_system_that_an_image_lives_on_is_no_user_of_it(host: Host, big_sectors: Path) -> None:
    assert host.disk(B, big_sectors).add().status == 0


def test_a_guest_that_has_the_device_below_can_write_the_file(host: Host, big_sectors: Path) -> None:
    number = os.stat(big_sectors).st_dev
    other_disk(host, "vbd", physical_device=b"%x:%x" % (os.major(number), os.minor(number)), mode=b"w")
    refused(host.disk(B, big_sectors).add(), "guest 9")


def test_many_at_once_one_wins(host: Host, target: str) -> None:
    """The lock makes check and publication one step."""
    disks = [host.disk(domid, target) for domid in range(10, 26)]
    processes = [disk.start("add") for disk in disks]
    for process in processes:
        process.communicate(timeout=60)
    assert sorted(process.returncode for process in processes) == [0] + [1] * 15
    assert [disk.nodes()["hotplug-status"] for disk in disks].count(b"connected") == 1
