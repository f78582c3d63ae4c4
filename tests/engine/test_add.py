"""`block add`: a file or a device becomes a guest's disk (C1, C3, I1-I5, O3, O6-O9)."""

import fcntl
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.host import Host, backing_file, bound_loops
from tests.images import losetup, make_image, mounted, take_back

LOOP_CTL_ADD = 0x4C80  # linux/loop.h


def published(nodes: dict[str, bytes]) -> str:
    """The device node that physical-device names, by number."""
    major, minor = (int(part, 16) for part in nodes["physical-device"].split(b":"))
    return os.path.realpath(f"/dev/block/{major}:{minor}") if major != 7 else f"/dev/loop{minor}"


def test_c1_o3_o7_o9_a_file_is_connected_through_a_loop_device(host: Host, image: Path) -> None:
    result = host.disk(5, image).add()
    assert (result.status, result.output) == (0, "")
    loop = result.nodes["node"].decode()
    number = os.stat(loop).st_rdev
    assert result.outcome == b"connected"
    assert result.nodes["physical-device"] == b"%x:%x" % (os.major(number), os.minor(number))
    assert result.nodes["physical-device-path"].decode() == loop
    assert "hotplug-error" not in result.nodes
    assert backing_file(loop) == str(image)
    with open(loop, "rb") as device:
        assert device.read(12) == b"first sector"


def test_c1_o3_a_block_device_is_connected_as_it_is(host: Host, loop_device: str) -> None:
    before = bound_loops()
    result = host.disk(5, loop_device).add()
    assert (result.status, result.output) == (0, "")
    number = os.stat(loop_device).st_rdev
    assert result.nodes["physical-device"] == b"%x:%x" % (os.major(number), os.minor(number))
    assert result.nodes["physical-device-path"].decode() == loop_device
    assert result.outcome == b"connected"
    assert "node" not in result.nodes, "node names what the script made (O9)"
    assert bound_loops() == before


def test_o3_numbers_are_lower_case_hexadecimal_without_padding(host: Host, image: Path) -> None:
    """A loop device with a minor over 9, so that hexadecimal and decimal differ."""
    if not os.path.exists("/sys/block/loop171"):
        with open("/dev/loop-control", "r+b", buffering=0) as control:
            fcntl.ioctl(control, LOOP_CTL_ADD, 171)
    device = "/dev/loop171"
    losetup(device, str(image))
    try:
        assert host.disk(5, device).add().nodes["physical-device"] == b"7:ab"
    finally:
        take_back("losetup", "-d", device)


def test_i1_a_relative_name_stands_under_dev(host: Host, loop_device: str) -> None:
    result = host.disk(5, loop_device.removeprefix("/dev/")).add()
    assert result.nodes["physical-device-path"].decode() == loop_device


@pytest.mark.parametrize(
    "name",
    [
        b"with space.img",
        b"two  spaces .img",
        b'it\'s "quoted".img',
        b"$HOME `id` $(id);id&.img",
        b"new\nline\n.img",
        "größe-日本.img".encode(),
        b"not-utf8-\xff\xfe.img",
        b"-r.img",
        b"a:b=c,d;e%20{}.img",
        b"back\\slash*?[a].img",
        b"tab\there \x01\x7f.img",
        b"n" * 250,
    ],
    ids=repr,
)
def test_i1_any_name_that_a_file_can_have(host: Host, tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    make_image(Path(os.fsdecode(path)))
    disk = host.disk(5, path)
    result = disk.add()
    assert (result.status, result.error) == (0, "")
    assert os.stat(path).st_ino == backing_inode(result.nodes["node"])
    assert disk.remove().status == 0
    assert result.nodes["node"].decode() not in bound_loops()


def backing_inode(loop: bytes) -> int:
    text = subprocess.run(
        ["losetup", "-n", "-O", "BACK-INO", loop.decode()], check=True, capture_output=True, text=True
    ).stdout
    return int(text)


def test_i1_symbolic_links_are_followed(host: Host, image: Path, loop_device: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.symlink_to(image)
    second.symlink_to("first")
    assert backing_inode(host.disk(5, second).add().nodes["node"]) == image.stat().st_ino
    device = tmp_path / "vg-lv"
    device.symlink_to(loop_device)
    result = host.disk(6, device).add()
    assert published(result.nodes) == loop_device
    assert result.nodes["physical-device-path"] == os.fsencode(device), "the name that the user chose stays"


@pytest.mark.parametrize("mode", ["w", "rw", "w!", "rw!"])
def test_i2_o8_a_writable_disk_can_be_written(host: Host, image: Path, mode: str) -> None:
    loop = host.disk(5, image, mode).add().nodes["node"].decode()
    with open(loop, "r+b", buffering=0) as device:
        device.write(b"W" * 512)
        os.fsync(device)
    assert image.read_bytes()[:512] == b"W" * 512


@pytest.mark.parametrize("mode", ["r", "ro", "r!", "ro!"])
def test_i2_o8_a_read_only_disk_is_read_only_in_fact(host: Host, image: Path, mode: str) -> None:
    loop = host.disk(5, image, mode).add().nodes["node"].decode()
    assert Path("/sys/block/" + loop.removeprefix("/dev/") + "/ro").read_text() == "1\n"
    with pytest.raises(OSError, match="not permitted"), open(loop, "r+b", buffering=0) as device:
        device.write(b"W" * 512)
    assert image.read_bytes()[:12] == b"first sector"


def test_o8_a_file_on_a_read_only_file_system_can_be_given_read_only(host: Host, tmp_path: Path) -> None:
    place = tmp_path / "ro"
    place.mkdir()
    with mounted(place, "-t", "tmpfs", "tmpfs"):
        image = make_image(place / "disk.img")
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        refused = host.disk(5, image, "w").add()
        assert (refused.status, refused.outcome) == (1, b"error")
        assert "cannot be opened for writing: Read-only file system" in refused.error
        disk = host.disk(6, image, "r")
        assert disk.add().status == 0
        disk.remove()


def test_o8_w_on_a_read_only_device_is_an_error_not_a_silent_r(host: Host, read_only_loop: str) -> None:
    refused = host.disk(5, read_only_loop, "w").add()
    assert (refused.status, refused.outcome) == (1, b"error")
    assert f"{read_only_loop} is a read-only device" in refused.error
    assert host.disk(6, read_only_loop, "r").add().status == 0


def test_guests_see_512_byte_sectors_also_on_a_file_system_of_4096(
    host: Host, tmp_path: Path, big_sectors: Path
) -> None:
    loop = host.disk(5, big_sectors).add().nodes["node"].decode()
    queue = Path("/sys/block") / loop.removeprefix("/dev/") / "queue"
    assert (queue / "logical_block_size").read_text() == "512\n"


def test_the_disk_grows_with_its_file(host: Host, image: Path) -> None:
    """No size limit is set, so a resize needs no more than LOOP_SET_CAPACITY."""
    loop = host.disk(5, image).add().nodes["node"].decode()
    os.truncate(image, 2 << 20)
    subprocess.run(["losetup", "-c", loop], check=True)
    assert Path("/sys/block/" + loop.removeprefix("/dev/") + "/size").read_text() == "4096\n"


def test_a_missing_node_of_a_free_loop_device_is_made(host: Host, image: Path) -> None:
    first = host.disk(5, image, "r")
    node = first.add().nodes["node"].decode()
    first.remove()
    os.unlink(node)
    result = host.disk(6, image).add()
    assert result.status == 0
    assert stat.S_ISBLK(os.stat(result.nodes["node"]).st_mode)
    assert os.path.exists(node), "the kernel offers the lowest free number again"


def test_i5_add_twice_is_one_attach(host: Host, image: Path) -> None:
    disk = host.disk(5, image)
    first = disk.add()
    disk.write(state=b"4")
    loops = bound_loops()
    second = disk.add()
    assert (second.status, second.nodes) == (0, first.nodes | {"state": b"4"})
    assert bound_loops() == loops


def test_i5_add_remove_add_in_quick_succession_with_domid_0(host: Host, image: Path) -> None:
    """The bootloader's way: a disk for dom0, then the guest's."""
    dom0, guest = host.vbd(0, image, "r"), host.disk(7, image)
    assert dom0.add().status == 0
    assert dom0.remove().status == 0
    result = guest.add()
    assert (result.status, result.error) == (0, "")


def test_o7_a_later_success_clears_an_old_error(host: Host, image: Path, tmp_path: Path) -> None:
    disk = host.disk(5, tmp_path / "missing.img")
    assert disk.add().error
    disk.write(params=os.fsencode(image))
    result = disk.add()
    assert (result.status, result.outcome) == (0, b"connected")
    assert "hotplug-error" not in result.nodes


def test_add_after_remove_without_a_clean_store_attaches_anew(host: Host, image: Path, tmp_path: Path) -> None:
    disk = host.disk(5, image)
    disk.add()
    disk.remove()
    other = make_image(tmp_path / "other.img")
    disk.write(params=os.fsencode(other))
    assert backing_file(disk.add().nodes["node"]) == str(other)


def test_c7_an_absolute_path_works_as_well(host: Host, image: Path) -> None:
    disk = host.disk(5, image)
    result = disk.run("add", extra={"XENBUS_PATH": "/local/domain/0/backend/vbd/5/51712"})
    assert (result.status, result.outcome) == (0, b"connected")


def test_c6_nothing_is_said_where_all_is_well_and_stdin_is_not_read(host: Host, image: Path) -> None:
    disk = host.disk(5, image)
    assert [disk.add().output, disk.remove().output] == ["", ""]
