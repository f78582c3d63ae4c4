"""`block remove`: a guest gives its disk back, whatever is gone by then (I4, I5, O7)."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.host import Disk, Host, backing_file, bound_loops
from tests.images import losetup, make_image


@pytest.fixture
def attached(host: Host, image: Path) -> Disk:
    """A guest with a file for a disk, in the state that libxl leaves before `remove`."""
    disk = host.disk(5, image)
    assert disk.add().status == 0
    disk.write(state=b"6", online=b"0")
    return disk


def gone(disk: Disk) -> None:
    """Remove ends well and quietly, and nothing is left."""
    result = disk.remove()
    assert (result.status, result.output) == (0, "")
    assert set(bound_loops()) <= disk.host.loops
    assert list(disk.host.run_dir.iterdir()) == []
    assert not disk.host.lock_dir.exists() or list(disk.host.lock_dir.iterdir()) == []


def test_everything_is_released(attached: Disk) -> None:
    gone(attached)
    assert not {"physical-device", "physical-device-path", "node", "hotplug-status"} & set(attached.nodes())


def test_without_a_record_the_label_leads_to_the_device(attached: Disk) -> None:
    """Somebody has cleaned up /run."""
    (attached.host.run_dir / "vbd-5-51712").unlink()
    gone(attached)


def test_a_device_that_was_there_stays(host: Host, loop_device: str) -> None:
    disk = host.disk(5, loop_device)
    disk.add()
    assert disk.remove().status == 0
    assert loop_device in bound_loops()


@pytest.mark.parametrize("names", [["params"], ["mode"], ["node"], ["state"], ["physical-device"], ["params", "node"]])
def test_i4_any_node_may_be_gone(attached: Disk, names: list[str]) -> None:
    with attached.host.connect() as store:
        for name in names:
            store.remove(attached.path + b"/" + name.encode())
    gone(attached)


def test_i4_the_whole_directory_may_be_gone_and_is_not_made_again(attached: Disk) -> None:
    attached.forget()
    gone(attached)
    assert attached.nodes() == {}
    with attached.host.connect() as store:
        assert not store.exists(attached.path)


def test_i4_twice(attached: Disk) -> None:
    gone(attached)
    gone(attached)


def test_i4_without_an_add(host: Host, image: Path) -> None:
    result = host.disk(5, image).remove()
    assert (result.status, result.output) == (0, "")


@pytest.mark.parametrize("how", ["deleted", "renamed", "replaced", "a directory now"])
def test_the_file_may_be_gone(attached: Disk, image: Path, how: str) -> None:
    if how == "renamed":
        image.rename(image.with_name("renamed.img"))
    else:
        image.unlink()
    if how == "replaced":
        make_image(image)
    elif how == "a directory now":
        image.mkdir()
    gone(attached)


def test_the_store_may_be_out_of_reach(attached: Disk, tmp_path: Path) -> None:
    result = attached.run("remove", extra={"XENSTORED_PATH": str(tmp_path / "none")})
    assert result.status == 0
    assert set(bound_loops()) <= attached.host.loops


def test_a_loop_number_that_has_become_anothers_is_left_alone(attached: Disk, tmp_path: Path) -> None:
    loop = attached.nodes()["node"].decode()
    losetup("-d", loop)
    other = make_image(tmp_path / "other.img")
    losetup(loop, str(other))
    assert attached.remove().status == 0
    assert backing_file(loop) == str(other)


def test_a_loop_number_that_another_vbd_has_by_now_is_left_alone(attached: Disk, image: Path) -> None:
    """The same file even, so that only the owner's label tells them apart."""
    loop = attached.nodes()["node"].decode()
    losetup("-d", loop)
    attached.host.domain(6)
    other = attached.host.vbd(6, image, "w!")
    assert other.add().nodes["node"].decode() == loop
    assert attached.remove().status == 0
    assert backing_file(loop) == str(image)
    assert other.remove().status == 0


def test_a_loop_device_that_is_still_open_goes_with_its_last_user(attached: Disk) -> None:
    loop = attached.nodes()["node"].decode()
    with open(loop, "rb"):
        assert attached.remove().status == 0
    subprocess.run(["udevadm", "settle"], check=False) if Path("/usr/bin/udevadm").exists() else None
    assert loop not in bound_loops()


def test_a_record_that_a_kill_cut_short_still_leads_to_the_device(attached: Disk) -> None:
    """Killed between LOOP_CONFIGURE and the line that notes its number."""
    record = attached.host.run_dir / "vbd-5-51712"
    lines = record.read_text().splitlines(keepends=True)
    assert lines[-1].startswith("loop ")
    record.write_text("".join(lines[:-1]))
    attached.forget()
    gone(attached)


def test_the_next_add_clears_what_a_killed_one_left(attached: Disk, image: Path) -> None:
    attached.forget()
    assert len(bound_loops()) == 1
    result = attached.host.vbd(5, image).add()
    assert result.status == 0
    assert bound_loops() == [result.nodes["node"].decode()]
    gone(attached)


def test_a_disk_that_another_script_attached_is_released_by_its_nodes(host: Host, image: Path) -> None:
    """As when vbdkit was installed while the guest ran."""
    loop = losetup("--find", "--show", str(image))
    number = os.stat(loop).st_rdev
    disk = host.disk(5, image)
    disk.write(node=loop.encode(), physical_device=b"%x:%x" % (os.major(number), os.minor(number)))
    assert disk.remove().status == 0
    assert loop not in bound_loops()


def test_another_scripts_disk_whose_file_was_deleted_is_released_too(host: Host, image: Path) -> None:
    loop = losetup("--find", "--show", str(image))
    number = os.stat(loop).st_rdev
    disk = host.disk(5, image)
    disk.write(node=loop.encode(), physical_device=b"%x:%x" % (os.major(number), os.minor(number)))
    image.unlink()
    assert disk.remove().status == 0
    assert loop not in bound_loops()


def test_another_scripts_loop_number_that_was_reused_is_left_alone(host: Host, image: Path, tmp_path: Path) -> None:
    loop = losetup("--find", "--show", str(make_image(tmp_path / "precious.img")))
    number = os.stat(loop).st_rdev
    disk = host.disk(5, image)
    disk.write(node=loop.encode(), physical_device=b"%x:%x" % (os.major(number), os.minor(number)))
    assert disk.remove().status == 0
    assert loop in bound_loops()
    losetup("-d", loop)


@pytest.mark.parametrize("number", [b"", b"nonsense", b"7", b"7:0x", b"-7:0", b"f" * 2000 + b":0", b"\xff\n:{0}"])
def test_another_scripts_disk_with_a_number_that_is_none_stays(host: Host, image: Path, number: bytes) -> None:
    loop = losetup("--find", "--show", str(image))
    disk = host.disk(5, image)
    disk.write(node=loop.encode(), physical_device=number)
    result = disk.remove()
    assert (result.status, result.output) == (0, "")
    assert backing_file(loop) == str(image)
    losetup("-d", loop)


@pytest.mark.parametrize("line", [b"file x y", b"file 5", b"loop x", b"loop "])
def test_a_record_whose_numbers_are_none_is_named_and_kept(attached: Disk, line: bytes) -> None:
    record = attached.host.run_dir / "vbd-5-51712"
    record.write_bytes(record.read_bytes() + line + b"\n")
    result = attached.remove()
    assert result.status == 1
    assert f"the record {record} is not one that this vbdkit can read" in result.error
    assert record.exists()
