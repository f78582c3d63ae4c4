"""How storage stands: two names, of which a case gives the first to its user and asks for the second.

Each function builds it on a machine. What happens between the two is `then`.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

from tests.need import need_program
from tests.sharing.machine import Machine, run


class Storage(NamedTuple):
    """``one`` gets the user, then ``then`` happens, then ``other`` is asked for."""

    one: str
    other: str
    then: Callable[[], object] = lambda: None


Builder = Callable[[Machine], Storage]


def turned(build: Builder) -> Builder:
    """The same storage in the other order."""

    def build_turned(machine: Machine) -> Storage:
        one, other, _ = build(machine)
        return Storage(other, one)

    return build_turned


# One file under several names.


def one_file(machine: Machine) -> Storage:
    path = machine.image()
    return Storage(path, path)


def spaces(machine: Machine) -> Storage:
    path = machine.image("disk 1 'of' 2.img")
    return Storage(path, path)


def other_letters(machine: Machine) -> Storage:
    path = machine.image("größe.img")
    return Storage(path, path)


def two_files(machine: Machine) -> Storage:
    return Storage(machine.image(), machine.image("b.img"))


def hard_link(machine: Machine) -> Storage:
    one, other = machine.image(), machine.path("link.img")
    os.link(one, other)
    return Storage(one, other)


def symbolic_link(machine: Machine) -> Storage:
    one, other = machine.image(), machine.path("link.img")
    os.symlink(one, other)
    return Storage(one, other)


def relative_link(machine: Machine) -> Storage:
    one = machine.image()
    os.mkdir(machine.path("folder"))
    os.symlink("../disk.img", machine.path("folder/link.img"))
    return Storage(one, machine.path("folder/../folder//link.img"))


def bind_mounted_file(machine: Machine) -> Storage:
    one = machine.image()
    return Storage(one, machine.mount(one, "bound.img", "--bind"))


def bind_mounted_folder(machine: Machine) -> Storage:
    os.mkdir(machine.path("folder"))
    one = machine.image("folder/disk.img")
    return Storage(one, machine.mount(machine.path("folder"), "bound", "--bind") + "/disk.img")


def through_proc(machine: Machine) -> Storage:
    one = machine.image()
    return Storage(one, f"/proc/{os.getpid()}/root{one}")


def renamed(machine: Machine) -> Storage:
    one, other = machine.image(), machine.path("renamed.img")
    return Storage(one, other, lambda: os.rename(one, other))


def deleted_but_linked(machine: Machine) -> Storage:
    one, other, _ = hard_link(machine)
    return Storage(one, other, lambda: os.unlink(one))


def replaced(machine: Machine) -> Storage:
    one = machine.image()

    def replace() -> None:
        os.unlink(one)
        machine.image()

    return Storage(one, one, replace)


def equal_inodes(machine: Machine) -> Storage:
    """Two file systems made alike, so that a file has the same inode number in both."""
    names = []
    for letter in "ab":
        machine.mount(machine.loop(machine.file_system(machine.image(f"{letter}.fs"))), letter)
        names.append(machine.image(f"{letter}/disk.img", 1 << 20))
    one, other = names
    assert os.stat(one).st_ino == os.stat(other).st_ino
    return Storage(one, other)


# One device under several names.


def one_device(machine: Machine) -> Storage:
    path = machine.loop(machine.image())
    return Storage(path, path)


def two_devices(machine: Machine) -> Storage:
    return Storage(machine.loop(machine.image()), machine.loop(machine.image("b.img")))


def name_below_dev(machine: Machine) -> Storage:
    path = machine.loop(machine.image())
    return Storage(path, path.removeprefix("/dev/"))


def device_link(machine: Machine) -> Storage:
    one, other = machine.loop(machine.image()), machine.path("link")
    os.symlink(one, other)
    return Storage(one, other)


def second_node(machine: Machine) -> Storage:
    one = machine.loop(machine.image())
    return Storage(one, machine.node(one))


def gone_node(machine: Machine) -> Storage:
    """The name under which it came into use goes."""
    device = machine.loop(machine.image())
    node = machine.node(device)
    return Storage(node, device, lambda: os.unlink(node))


def renamed_node(machine: Machine) -> Storage:
    device = machine.loop(machine.image())
    node = machine.node(device)
    return Storage(node, device, lambda: os.rename(node, machine.path("renamed")))


def capital_number(machine: Machine) -> Storage:
    """A device whose number has a letter in hex: 7:a0 and so on."""
    path = machine.numbered_loop(machine.image(), range(0xA0, 0x100))
    return Storage(path, path)


# Loop devices.


def loop_and_file(machine: Machine) -> Storage:
    file = machine.image()
    return Storage(machine.loop(file), file)


def two_loops(machine: Machine) -> Storage:
    file = machine.image()
    return Storage(machine.loop(file), machine.loop(file))


def two_loops_on_links(machine: Machine) -> Storage:
    """The first one's name for the file is gone."""
    file, link, _ = hard_link(machine)
    old = machine.loop(file)
    os.unlink(file)
    return Storage(old, machine.loop(link))


def loop_and_renamed_file(machine: Machine) -> Storage:
    file, name = machine.image(), machine.path("renamed.img")
    device = machine.loop(file)
    os.rename(file, name)
    return Storage(device, name)


def loop_and_new_file_of_that_name(machine: Machine) -> Storage:
    file = machine.image()
    device = machine.loop(file)
    os.unlink(file)
    return Storage(device, machine.image())


def loop_and_loop_on_it(machine: Machine) -> Storage:
    lower = machine.loop(machine.image())
    return Storage(lower, machine.loop(lower))


def file_and_loop_on_its_loop(machine: Machine) -> Storage:
    file = machine.image()
    return Storage(file, machine.loop(machine.loop(file)))


def ranges_apart(machine: Machine) -> Storage:
    file = machine.image()
    return Storage(machine.range(file, 0, 2), machine.range(file, 2, 2))


def ranges_overlapping(machine: Machine) -> Storage:
    file = machine.image()
    return Storage(machine.range(file, 0, 2), machine.range(file, 1, 2))


def range_and_file(machine: Machine) -> Storage:
    file = machine.image()
    return Storage(machine.range(file, 1, 2), file)


def range_and_whole_loop(machine: Machine) -> Storage:
    file = machine.image()
    return Storage(machine.range(file, 1, 2), machine.loop(file))


def range_and_rest(machine: Machine) -> Storage:
    """The rest: from an offset to the end, however long."""
    file = machine.image()
    return Storage(machine.range(file, 0, 2), machine.loop(file, "--offset", str(2 << 20)))


def range_of_a_range(machine: Machine) -> Storage:
    """MiB 2 of the file, once by way of a range from 1 on, once directly."""
    file = machine.image()
    return Storage(machine.range(machine.range(file, 1, 3), 1, 1), machine.range(file, 2, 1))


def range_beside_a_range_of_a_range(machine: Machine) -> Storage:
    file = machine.image()
    return Storage(machine.range(machine.range(file, 1, 3), 1, 1), machine.range(file, 1, 1))


# Partitions.


def partition_and_disk(machine: Machine) -> Storage:
    disk = machine.loop(machine.image())
    return Storage(machine.partition(disk, 1, 1), disk)


def partition_and_file(machine: Machine) -> Storage:
    file = machine.image()
    return Storage(machine.partition(machine.loop(file), 1, 1), file)


def two_partitions(machine: Machine) -> Storage:
    disk = machine.loop(machine.image())
    return Storage(machine.partition(disk, 1, 1), machine.partition(disk, 2, 2))


def one_partition_by_two_disks(machine: Machine) -> Storage:
    file = machine.image()
    one, other = (machine.partition(machine.loop(file), 1, 1) for _ in "12")
    return Storage(one, other)


def two_partitions_by_two_disks(machine: Machine) -> Storage:
    file = machine.image()
    return Storage(machine.partition(machine.loop(file), 1, 1), machine.partition(machine.loop(file), 1, 2))


def partition_and_range(machine: Machine) -> Storage:
    file = machine.image()
    return Storage(machine.partition(machine.loop(file), 1, 1), machine.range(file, 1, 1))


def partition_and_range_beside_it(machine: Machine) -> Storage:
    file = machine.image()
    return Storage(machine.partition(machine.loop(file), 1, 1), machine.range(file, 2, 1))


def loop_on_partition_and_disk(machine: Machine) -> Storage:
    disk = machine.loop(machine.image())
    return Storage(machine.loop(machine.partition(disk, 1, 1)), disk)


def loop_on_partition_and_other_partition(machine: Machine) -> Storage:
    disk = machine.loop(machine.image())
    return Storage(machine.loop(machine.partition(disk, 1, 1)), machine.partition(disk, 2, 2))


# File systems.


def file_system_and_file(machine: Machine) -> Storage:
    """A device whose file system is mounted here, and a file in it."""
    device = machine.loop(machine.file_system(machine.image("fs.img")))
    machine.mount(device)
    return Storage(device, machine.image("mnt/disk.img", 1 << 20))


def btrfs_and_file(machine: Machine) -> Storage:
    """The same; files of btrfs do not tell their device's number."""
    device = machine.loop(machine.file_system(machine.image("fs.img", 128 << 20), "btrfs"))
    machine.mount(device)
    return Storage(device, machine.image("mnt/disk.img", 1 << 20))


def btrfs_of_two_devices_and_file(machine: Machine) -> Storage:
    """The second device, which no list of mounts names."""
    devices = [machine.loop(machine.image(f"{name}.img", 128 << 20)) for name in "ab"]
    run(need_program("mkfs.btrfs"), "-q", "-f", *devices)
    run("btrfs", "device", "scan", *devices)
    machine.mount(devices[0])
    return Storage(devices[1], machine.image("mnt/disk.img", 1 << 20))


def btrfs_subvolume_twice(machine: Machine) -> Storage:
    """A file in a subvolume, which is mounted by itself too."""
    device = machine.loop(machine.file_system(machine.image("fs.img", 128 << 20), "btrfs"))
    machine.mount(device)
    run("btrfs", "subvolume", "create", machine.path("mnt/sub"))
    machine.mount(device, "sub", "-o", "subvol=sub")
    return Storage(machine.image("mnt/sub/disk.img", 1 << 20), machine.path("sub/disk.img"))


def partition_with_file_system_and_file(machine: Machine) -> Storage:
    disk = machine.loop(machine.image("fs.img", 8 << 20))
    machine.mount(machine.file_system(machine.partition(disk, 1, 1, 6)))
    return Storage(disk, machine.image("mnt/disk.img", 1 << 20))


def outer_file_and_inner_file(machine: Machine) -> Storage:
    """An image with a file system that is mounted here, and an image in it."""
    outer = machine.file_system(machine.image("fs.img"))
    machine.mount(machine.loop(outer))
    return Storage(outer, machine.image("mnt/disk.img", 1 << 20))


def two_files_in_a_file_system(machine: Machine) -> Storage:
    machine.mount(machine.loop(machine.file_system(machine.image("fs.img"))))
    return Storage(machine.image("mnt/a.img", 1 << 20), machine.image("mnt/b.img", 1 << 20))


def file_systems_on_two_partitions(machine: Machine) -> Storage:
    """One is mounted here, the other is asked for."""
    one, other, _ = two_partitions(machine)
    machine.mount(machine.file_system(one))
    return Storage(one, other)


# Swap.


def swap_file(machine: Machine) -> Storage:
    """A file without holes, which swapon wants."""
    path = machine.path("swap.img")
    with open(path, "wb") as file:
        file.write(bytes(1 << 20))
        os.fsync(file.fileno())
    os.chmod(path, 0o600)
    return Storage(path, path)


def swap_file_and_link(machine: Machine) -> Storage:
    path, link = swap_file(machine).one, machine.path("link.img")
    os.link(path, link)
    return Storage(path, link)


def swap_file_and_loop(machine: Machine) -> Storage:
    path = swap_file(machine).one
    return Storage(path, machine.loop(path))
