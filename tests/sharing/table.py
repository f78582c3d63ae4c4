"""The table of cases: how storage stands, who has it, who asks with which mode, and what is right (O1, O2).

The rule behind each row: read-only beside read-only is fine; else two VMs may not reach one sector, nor may a VM reach
what this domain uses; and what cannot be known is not free.
"""

from dataclasses import dataclass

from tests.sharing import domains as who
from tests.sharing import storage as at
from tests.sharing import users as by
from tests.sharing.domains import Domains
from tests.sharing.storage import Builder, turned
from tests.sharing.users import User, guest, mounted, number, params, path, qemu

GRANTED, REFUSED = "granted", "refused"
WRITER, READER = guest("w"), guest("r")


@dataclass(frozen=True)
class Case:
    """One row. ``store``: "c", "o" (oxenstored), or "driver" for scripts that run in a driver domain."""

    name: str
    storage: Builder
    user: User
    mode: str
    right: str
    domains: Domains = who.two_guests
    store: str = "c"


SECTIONS: dict[str, list[Case]] = {
    "One file": [
        Case("has it read-write, asked for read-write", at.one_file, WRITER, "w", REFUSED),
        Case("has it read-write, asked for read-only", at.one_file, WRITER, "r", REFUSED),
        Case("has it read-only, asked for read-write", at.one_file, READER, "w", REFUSED),
        Case("has it read-only, asked for read-only", at.one_file, READER, "r", GRANTED),
        Case("asked for without a check (`w!`)", at.one_file, WRITER, "w!", GRANTED),
        Case("was given without a check (`w!`)", at.one_file, guest("w!"), "w", REFUSED),
        Case("spaces and quotes in its name", at.spaces, WRITER, "w", REFUSED),
        Case("letters in its name that are not ASCII", at.other_letters, WRITER, "w", REFUSED),
        Case("by a hard link", at.hard_link, WRITER, "w", REFUSED),
        Case("by a symbolic link", at.symbolic_link, WRITER, "w", REFUSED),
        Case("by a relative link and `..`", at.relative_link, WRITER, "w", REFUSED),
        Case("by a bind mount of the file", at.bind_mounted_file, WRITER, "w", REFUSED),
        Case("by a bind mount of its folder", at.bind_mounted_folder, WRITER, "w", REFUSED),
        Case("through `/proc/<pid>/root`", at.through_proc, WRITER, "w", REFUSED),
        Case("renamed since", at.renamed, WRITER, "w", REFUSED),
        Case("deleted since, but for a hard link", at.deleted_but_linked, WRITER, "w", REFUSED),
        Case("deleted since, another file of that name", at.replaced, WRITER, "w", GRANTED),
        Case("another file", at.two_files, WRITER, "w", GRANTED),
        Case("another file with the same inode number elsewhere", at.equal_inodes, WRITER, "w", GRANTED),
        Case("its guest's script is not done yet", at.one_file, by.waiting_guest, "w", GRANTED),
        Case("given back since", at.one_file, by.former_guest, "w", GRANTED),
    ],
    "One device": [
        Case("has it read-write, asked for read-write", at.one_device, WRITER, "w", REFUSED),
        Case("has it read-write, asked for read-only", at.one_device, WRITER, "r", REFUSED),
        Case("has it read-only, asked for read-write", at.one_device, READER, "w", REFUSED),
        Case("has it read-only, asked for read-only", at.one_device, READER, "r", GRANTED),
        Case("by its name below /dev", at.name_below_dev, WRITER, "w", REFUSED),
        Case("by a symbolic link", at.device_link, WRITER, "w", REFUSED),
        Case("by another node (mknod)", at.second_node, WRITER, "w", REFUSED),
        Case("its node deleted since", at.gone_node, WRITER, "w", REFUSED),
        Case("given back since", at.one_device, by.former_guest, "w", GRANTED),
        Case("another device", at.two_devices, WRITER, "w", GRANTED),
    ],
    "Loop devices": [
        Case("has a loop device, asked for its file", at.loop_and_file, WRITER, "w", REFUSED),
        Case("has a file, asked for a loop device on it", turned(at.loop_and_file), WRITER, "w", REFUSED),
        Case("the same, all read-only", turned(at.loop_and_file), READER, "r", GRANTED),
        Case("two loop devices on one file", at.two_loops, WRITER, "w", REFUSED),
        Case("two, and the first one's name for the file is gone", at.two_loops_on_links, WRITER, "w", REFUSED),
        Case("has a loop device, asked for its renamed file", at.loop_and_renamed_file, WRITER, "w", REFUSED),
        Case("its file replaced by a new one", at.loop_and_new_file_of_that_name, WRITER, "w", GRANTED),
        Case("has a device, asked for a loop device on it", at.loop_and_loop_on_it, WRITER, "w", REFUSED),
        Case("has a loop device on a device, asked for that", turned(at.loop_and_loop_on_it), WRITER, "w", REFUSED),
        Case("has a file, asked for a loop on its loop", at.file_and_loop_on_its_loop, WRITER, "w", REFUSED),
        Case("an idle loop device on the file", at.loop_and_file, by.nobody, "w", GRANTED),
        Case("two ranges that do not meet", at.ranges_apart, WRITER, "w", GRANTED),
        Case("two ranges that overlap", at.ranges_overlapping, WRITER, "w", REFUSED),
        Case("a range, and all behind it", at.range_and_rest, WRITER, "w", GRANTED),
        Case("has a range, asked for the file", at.range_and_file, WRITER, "w", REFUSED),
        Case("has the file, asked for a range", turned(at.range_and_file), WRITER, "w", REFUSED),
        Case("has a range, asked for a loop on all", at.range_and_whole_loop, WRITER, "w", REFUSED),
        Case("a range of a range, and the same sectors", at.range_of_a_range, WRITER, "w", REFUSED),
        Case("a range of a range, and others", at.range_beside_a_range_of_a_range, WRITER, "w", GRANTED),
    ],
    "Partitions": [
        Case("has a partition, asked for the disk", at.partition_and_disk, WRITER, "w", REFUSED),
        Case("has the disk, asked for a partition", turned(at.partition_and_disk), WRITER, "w", REFUSED),
        Case("the same, all read-only", turned(at.partition_and_disk), READER, "r", GRANTED),
        Case("two partitions", at.two_partitions, WRITER, "w", GRANTED),
        Case("has a partition, asked for the disk's file", at.partition_and_file, WRITER, "w", REFUSED),
        Case("has the disk's file, asked for a partition", turned(at.partition_and_file), WRITER, "w", REFUSED),
        Case("one partition by two disks on a file", at.one_partition_by_two_disks, WRITER, "w", REFUSED),
        Case("two partitions by two disks on a file", at.two_partitions_by_two_disks, WRITER, "w", GRANTED),
        Case("a loop range over the same sectors", at.partition_and_range, WRITER, "w", REFUSED),
        Case("a loop range beside it", at.partition_and_range_beside_it, WRITER, "w", GRANTED),
        Case("a loop device on it, asked for the disk", at.loop_on_partition_and_disk, WRITER, "w", REFUSED),
        Case("a loop device on it, the other one", at.loop_on_partition_and_other_partition, WRITER, "w", GRANTED),
    ],
    "File systems": [
        Case("has a device, asked for a file in it", at.file_system_and_file, guest("w!"), "w", REFUSED),
        Case("the same, read-only beside read-only", at.file_system_and_file, number(mode="r"), "r", GRANTED),
        Case("reads a device, asked for a file to write", at.file_system_and_file, number(mode="r"), "w", REFUSED),
        Case("has a device with btrfs, asked for a file in it", at.btrfs_and_file, guest("w!"), "w", REFUSED),
        Case("has a disk, a file on its partition", at.partition_with_file_system_and_file, guest("w!"), "w", REFUSED),
        Case("has an image, asked for an image in it", at.outer_file_and_inner_file, guest("w!"), "w", REFUSED),
        Case("two files in one", at.two_files_in_a_file_system, WRITER, "w", GRANTED),
        Case(
            "the device is mounted, a file of it in use",
            turned(at.file_system_and_file),
            by.both(WRITER, by.mounted_already("mnt")),
            "w",
            REFUSED,
        ),
        Case(
            "the image is mounted, a file of it in use",
            turned(at.outer_file_and_inner_file),
            by.both(WRITER, by.mounted_already("mnt")),
            "w",
            REFUSED,
        ),
        Case("one on another partition is mounted", at.file_systems_on_two_partitions, by.nobody, "w", GRANTED),
    ],
    "Other backends and their nodes": [
        Case("vbd3 has the device", at.one_device, number("vbd3"), "w", REFUSED),
        Case("tap has the device", at.one_device, number("tap"), "w", REFUSED),
        Case("an unknown kind has the device", at.one_device, number("foo"), "w", REFUSED),
        Case("an unknown kind has it by path", at.one_file, path("foo"), "w", REFUSED),
        Case("an unknown kind has it by params", at.one_file, params("foo"), "w", REFUSED),
        Case("vbd3 has the file by path", at.one_file, path("vbd3"), "w", REFUSED),
        Case("qdisk has the file: `aio:`", at.one_file, params("qdisk", "aio:"), "w", REFUSED),
        Case("qdisk has the file: `qcow2:`", at.one_file, params("qdisk", "qcow2:"), "w", REFUSED),
        Case("qdisk has the file: `vhd:`", at.one_file, params("qdisk", "vhd:"), "w", REFUSED),
        Case("qdisk has the file: `raw:`", at.one_file, params("qdisk", "raw:"), "w", REFUSED),
        Case("qdisk has the file, no driver", at.one_file, params("qdisk"), "w", REFUSED),
        Case("qdisk has the device: `aio:`", at.one_device, params("qdisk", "aio:"), "w", REFUSED),
        Case("qdisk has it by a hard link", at.hard_link, params("qdisk", "qcow2:"), "w", REFUSED),
        Case("qdisk and the asking one only read", at.one_file, params("qdisk", "aio:", "r"), "r", GRANTED),
        Case("tap has the file: `aio:`", at.one_file, params("tap", "aio:"), "w", REFUSED),
        Case("tap has the file: `tap:aio:`", at.one_file, params("tap", "tap:aio:"), "w", REFUSED),
        Case("its number has zeros in front", at.one_device, number(spelling="{:02x}:{:04x}"), "w", REFUSED),
        Case("its number in capitals", at.capital_number, number(spelling="{:X}:{:X}"), "w", REFUSED),
        Case("no number but a path (G2)", at.one_device, path(), "w", REFUSED),
        Case("no number but a path to a file (G2)", at.one_file, path(), "w", REFUSED),
        Case("an add that was killed after its number", at.one_device, number(state=b"2"), "w", REFUSED),
        Case("no mode beside the number", at.one_device, number(mode=""), "r", REFUSED),
        Case("a network card's nodes", at.one_device, number("vif"), "w", GRANTED),
        Case("that number in a driver domain", at.one_device, by.in_another_domain, "w", GRANTED),
        Case("no number at all in physical-device", at.one_device, by.malformed, "w", REFUSED),
    ],
    "This domain": [
        Case("device mounted, asked for read-write", at.one_device, mounted(), "w", REFUSED),
        Case("device mounted, asked for read-only", at.one_device, mounted(), "r", REFUSED),
        Case("mounted read-only, asked for read-write", at.one_device, mounted("ro"), "w", REFUSED),
        Case("mounted read-only, asked for read-only", at.one_device, mounted("ro"), "r", GRANTED),
        Case("mounted, asked for without a check (`w!`)", at.one_device, mounted(), "w!", GRANTED),
        Case("mounted on a point with spaces", at.one_device, mounted(point="mount point"), "w", REFUSED),
        Case("mounted writable, read-only at its point", at.one_device, by.mounted_to_read, "r", REFUSED),
        Case("a folder of it still mounted", at.one_device, by.mounted_in_part, "w", REFUSED),
        Case("unmounted lazily, still alive", at.one_device, by.unmounted_lazily, "w", REFUSED),
        Case("mounted by a node that is deleted", at.gone_node, mounted(), "w", REFUSED),
        Case("mounted by a node that is renamed", at.renamed_node, mounted(), "w", REFUSED),
        Case("mounted, asked for the file", at.loop_and_file, mounted(), "w", REFUSED),
        Case("mounted read-only, asked for the file", at.loop_and_file, mounted("ro"), "r", GRANTED),
        Case("mounted in another mount namespace", at.one_device, by.mounted_elsewhere, "w", REFUSED),
        Case("a partition mounted, asked for the disk", at.partition_and_disk, mounted(), "w", REFUSED),
        Case("a partition mounted, asked for the other", at.two_partitions, mounted(), "w", GRANTED),
        Case("a partition mounted, asked for the file", at.partition_and_file, mounted(), "w", REFUSED),
        Case("swap on the device", at.one_device, by.swap, "w", REFUSED),
        Case("swap on the device, asked for read-only", at.one_device, by.swap, "r", REFUSED),
        Case("swap on a partition, asked for the disk", at.partition_and_disk, by.swap, "w", REFUSED),
        Case("swap on the device, asked for its file", at.loop_and_file, by.swap, "w", REFUSED),
        Case("swap in the file", at.swap_file, by.swap, "w", REFUSED),
        Case("held by a program (O_EXCL)", at.one_device, by.exclusive, "w", REFUSED),
        Case("held by a program, asked for its file", at.loop_and_file, by.exclusive, "w", REFUSED),
        Case("a partition held, asked for the disk", at.partition_and_disk, by.exclusive, "w", REFUSED),
        Case("a partition held, asked for the other", at.two_partitions, by.exclusive, "w", GRANTED),
        Case("a program has the file open, no more", at.one_file, by.opened, "w", GRANTED),
        Case("a program has the device open, no more", at.one_device, by.opened, "w", GRANTED),
        Case("QEMU writes the image", at.one_file, qemu("--format=raw"), "w", REFUSED),
        Case("QEMU writes the image, asked for read-only", at.one_file, qemu("--format=raw"), "r", REFUSED),
        Case("QEMU reads the image", at.one_file, qemu("--format=raw", "--read-only"), "w", REFUSED),
        Case("QEMU reads it, asked for read-only", at.one_file, qemu("--format=raw", "--read-only"), "r", GRANTED),
        Case("QEMU writes it, asked for a hard link", at.hard_link, qemu("--format=raw"), "w", REFUSED),
        Case("QEMU writes it, asked for a loop device", turned(at.loop_and_file), qemu("--format=raw"), "w", REFUSED),
    ],
    "One VM": [
        Case("one guest, twice", at.one_file, WRITER, "w", GRANTED, who.one_guest),
        Case("one guest, twice, a device", at.one_device, WRITER, "w", GRANTED, who.one_guest),
        Case("one guest, a partition and its disk", at.partition_and_disk, WRITER, "w", GRANTED, who.one_guest),
        Case("domain 0 has it to boot another guest", at.one_device, WRITER, "w", REFUSED, who.domain_0_and_guest),
        Case("migration, file", at.one_file, WRITER, "w", GRANTED, who.local_migration("/vm/a", "/vm/a")),
        Case("migration, device", at.one_device, WRITER, "w", GRANTED, who.local_migration("/vm/a", "/vm/a")),
        Case("migration, `-1` leaving", at.one_device, WRITER, "w", GRANTED, who.local_migration("/vm/a-1", "/vm/a")),
        Case("migration, `-1` coming", at.one_device, WRITER, "w", GRANTED, who.local_migration("/vm/a", "/vm/a-1")),
        Case("migration, a third asks", at.one_device, by.migrating_guest, "w", REFUSED, who.a_third_in_a_migration),
        Case("guest, then its stub domain", at.one_device, WRITER, "w", GRANTED, who.guest_and_stub),
        Case("stub domain, then its guest", at.one_device, WRITER, "w", GRANTED, who.stub_and_guest),
        Case("guest, then another's stub domain", at.one_device, WRITER, "w", REFUSED, who.guest_and_stub_of_another),
        Case("stub domain, then another guest", at.one_device, WRITER, "w", REFUSED, who.stub_and_another_guest),
        Case("leftovers of a dead domain", at.one_device, by.dead_guest, "w", GRANTED),
        Case("leftovers of a dead domain, and a living one", at.one_device, by.dead_and_living_guest, "w", REFUSED),
        Case("a living guest without a vm node", at.one_device, WRITER, "w", REFUSED, who.one_without_vm),
        Case("two living guests without vm nodes", at.one_device, WRITER, "w", REFUSED, who.two_without_vm),
    ],
    "Driver domains and stores that do not tell": [
        Case("driver domain: another guest", at.one_device, WRITER, "w", REFUSED, store="driver"),
        Case("driver domain: another guest, file", at.one_file, WRITER, "w", REFUSED, store="driver"),
        Case("driver domain: one guest, twice", at.one_device, WRITER, "w", GRANTED, who.one_guest, "driver"),
        Case("driver domain: both only read", at.one_device, READER, "r", GRANTED, store="driver"),
        Case("the list may not be read", at.one_device, by.guest_in_a_hidden_list, "w", REFUSED, store="driver"),
        Case("oxenstored, 900 guests, one has it", at.one_device, by.guest_in_a_crowd, "w", REFUSED, store="o"),
        Case("oxenstored, 900 guests, none has it", at.one_device, by.crowd, "w", GRANTED, store="o"),
    ],
}
CASES = [(f"{section}: {case.name}", case) for section, cases in SECTIONS.items() for case in cases]
