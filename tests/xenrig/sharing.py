"""Cases: no two guests share a sector, whatever dom0's kernel has put between them and the disk (O1, O2).

alice has one layer of a stack, bob asks for another one. A writer beside her on any way to the same sectors is refused,
with a sentence that names her and the layer through which they meet; siblings, which share none, are free. In
`dom0s_own` it is dom0 itself that has the other layer.
"""

import re
import signal
import subprocess
from pathlib import Path

from .harness import Neighbour, Verdicts, image, loop_device, neighbours, nothing_left, run, wait
from .stacks import crypt, drbd, mapped, marked, mounted, nbd, partitions, raid1, tool, two_paths, volume, volume_group


def partitioned(check: Verdicts) -> None:
    """Partitions: siblings are free; their disk, or its file, is not, in either order; readers share."""
    alice, bob = neighbours()
    file = image("/tmp/table.img")
    with loop_device(file) as disk, partitions(disk) as (first, second):
        with alice.having(check, marked(first), reads=True):
            bob.may_have(check, second)
            bob.may_not_have(check, first, "alice")
            bob.may_not_have(check, disk, "alice", f"through {first}")
            bob.may_not_have(check, disk, "alice", f"through {first}", access="r")
            bob.may_not_have(check, file, "alice", f"through {first}")
        for path in (disk, file):
            with alice.having(check, path):
                bob.may_not_have(check, second, "alice")
        with alice.having(check, first, access="r"):
            bob.may_have(check, disk, access="r")
            bob.may_not_have(check, disk, "alice", "read-only")
        nothing_left(check, {str(disk)})


def device_mapper(check: Verdicts) -> None:
    """Device-mapper: linear devices on one disk are siblings, unless they overlap; what is stacked on one is not."""
    alice, bob = neighbours()
    file = image("/tmp/disk.img")
    with loop_device(file) as disk:
        low, high = f"0 16384 linear {disk} 0", f"0 16384 linear {disk} 16384"
        with mapped("low", low) as lower, mapped("high", high) as higher:
            with alice.having(check, marked(lower), reads=True):
                bob.may_have(check, higher)
                bob.may_not_have(check, disk, "alice", "through .*low")
                bob.may_not_have(check, file, "alice", "through .*low")
                with mapped("other", f"0 1024 linear {disk} 8192") as overlapping:
                    bob.may_not_have(check, overlapping, "alice")
            with mapped("top", f"0 8192 linear {higher} 4096") as top, alice.having(check, top):
                bob.may_have(check, lower)
                bob.may_not_have(check, higher, "alice", "through .*top")
                bob.may_not_have(check, disk, "alice", "through .*top")
        # The other way round: device-mapper takes a disk that a guest has without a word.
        with alice.having(check, disk), mapped("low", low) as lower:
            bob.may_not_have(check, lower, "alice", f"through {disk}")
        two = mapped("high", high), mapped("top", "0 8192 linear /dev/mapper/high 4096")
        with alice.having(check, file), two[0], two[1] as top:
            bob.may_not_have(check, top, "alice")
        nothing_left(check, {str(disk)})


def multipath(check: Verdicts) -> None:
    """Multipath: the device and all of its paths are one and the same disk."""
    alice, bob = neighbours()
    with two_paths() as (first, second):
        table = f"0 32768 multipath 0 0 1 1 round-robin 0 2 1 {first} 1000 {second} 1000"
        with mapped("paths", table) as both, alice.having(check, marked(both), reads=True):
            bob.may_not_have(check, first, "alice", "through .*paths")
            bob.may_not_have(check, second, "alice", "through .*paths")
        with alice.having(check, first), mapped("paths", table) as both:
            bob.may_not_have(check, both, "alice", f"through {first}")
            bob.may_not_have(check, second, "alice", f"through {first}|multipath")
        nothing_left(check)


def lvm(check: Verdicts) -> None:
    """LVM: volumes, a snapshot and its origin, and thin volumes of one pool are siblings; the group's disk is not."""
    alice, bob = neighbours()
    file = image("/tmp/pv.img", mib=100)
    with loop_device(file) as disk, volume_group("rig", disk):
        linear, other = volume("rig", "linear", "-L8M", "rig"), volume("rig", "other", "-L8M", "rig")
        tool("lvcreate", "-q", "-y", "-Zn", "--type", "thin-pool", "-L16M", "-n", "pool", "rig")
        thin, twin = volume("rig", "thin", "-V32M", "-T", "rig/pool"), volume("rig", "twin", "-V32M", "-T", "rig/pool")
        marked(linear)
        snapshot = volume("rig", "copy", "-s", "-L8M", "rig/linear")
        below = (disk, file)
        with alice.having(check, linear, reads=True):
            bob.may_not_have(check, "/dev/mapper/rig-linear", "alice")
            for sibling in (other, snapshot, thin):
                bob.may_have(check, sibling)
            for path in below:
                bob.may_not_have(check, path, "alice", "through .*linear")
        with alice.having(check, snapshot, reads=True):
            bob.may_have(check, linear)
            bob.may_not_have(check, disk, "alice", "through .*copy")
        with alice.having(check, marked(thin), reads=True):
            bob.may_have(check, twin)
            bob.may_have(check, linear)
            bob.may_not_have(check, disk, "alice", "through .*thin")
        # The other way round: alice gets the disk while the group is down, then dom0 brings the group up.
        tool("vgchange", "-q", "-an", "rig")
        for path in below:
            with alice.having(check, path):
                # With the file she has a loop device of her own, on which LVM finds the group again.
                tool("vgchange", "-q", "--devices", str(disk), "-ay", "rig")
                wait(linear.exists)
                for volume_of_hers in (linear, thin, snapshot):
                    bob.may_not_have(check, volume_of_hers, "alice")
                tool("vgchange", "-q", "-an", "rig")
        nothing_left(check, {str(disk)})


def raid(check: Verdicts) -> None:
    """md: an array and each of its members are one and the same."""
    alice, bob = neighbours()
    files = [image(f"/tmp/member{number}.img") for number in (1, 2)]
    with loop_device(files[0]) as one, loop_device(files[1]) as two:
        with raid1("md9", one, two) as array:
            with alice.having(check, marked(array), reads=True):
                for path in (one, two, files[1]):
                    bob.may_not_have(check, path, "alice", "through .*md9")
            tool("mdadm", "--stop", str(array))
            with alice.having(check, two):
                tool("mdadm", "--assemble", "--run", str(array), str(one), str(two))
                wait(array.exists)
                bob.may_not_have(check, array, "alice", f"through {two}")
        nothing_left(check, {str(one), str(two)})


def encrypted(check: Verdicts) -> None:
    """dm-crypt: the plain and the encrypted device are one and the same."""
    alice, bob = neighbours()
    file = image("/tmp/secret.img")
    with loop_device(file) as disk:
        with crypt("plain", disk) as plain, alice.having(check, marked(plain), reads=True):
            for path in (disk, file):
                bob.may_not_have(check, path, "alice", "through .*plain")
        with alice.having(check, disk), crypt("plain", disk) as plain:
            bob.may_not_have(check, plain, "alice", f"through {disk}")
        nothing_left(check, {str(disk)})


def network_block_device(check: Verdicts) -> None:
    """nbd: a device that qemu-nbd serves from an image; its lock on the image tells of it."""
    alice, bob = neighbours()
    file = image("/tmp/nbd.img")
    with nbd(file) as device, alice.having(check, marked(device), reads=True):
        bob.may_not_have(check, device, "alice")
        bob.may_not_have(check, file, "qemu-nbd", _process("qemu-nbd"))
        bob.may_not_have(check, file, "qemu-nbd", access="r")
    bob.may_have(check, file)
    nothing_left(check)


def replicated(check: Verdicts) -> None:
    """DRBD: a Primary and the disk under it are one and the same."""
    alice, bob = neighbours()
    file = image("/tmp/drbd.img", mib=32)
    with loop_device(file) as disk:
        with drbd(disk) as device, alice.having(check, marked(device), reads=True):
            bob.may_not_have(check, device, "alice")
            for path in (disk, file):
                bob.may_not_have(check, path, "alice", "through /dev/drbd0")
        with alice.having(check, disk), drbd(disk) as device:
            bob.may_not_have(check, device, "alice", f"through {disk}")
        nothing_left(check, {str(disk)})


def dom0s_own(check: Verdicts) -> None:
    """What dom0 itself uses: file systems, swap, LVM, md, dm-crypt, another mount namespace, qemu's image lock."""
    _, bob = neighbours()
    file = image("/tmp/pv.img", mib=64)
    with loop_device(file) as disk, volume_group("rig", disk):
        linear, other = volume("rig", "linear", "-L16M", "rig"), volume("rig", "other", "-L8M", "rig")
        bob.may_not_have(check, disk, "LVM volume rig/")
        with mounted(linear, "/mnt/a place"):
            bob.may_not_have(check, linear, "mounted on .*/mnt/a place")
            bob.may_not_have(check, linear, "mounted on .*/mnt/a place", access="r")
            bob.may_not_have(check, disk, "/mnt/a place")
            bob.may_not_have(check, file, "/mnt/a place")
            bob.may_have(check, other)
        with mounted(linear, "/mnt/looked at", "-o", "ro"):
            bob.may_have(check, linear, access="r")
            bob.may_not_have(check, linear, "mounted on .*/mnt/looked at")
        _swap(check, bob, linear, disk)
        with crypt("plain", other):
            bob.may_not_have(check, other, "plain")
        _elsewhere(check, bob, linear)
        nothing_left(check, {str(disk)})
    files = [image(f"/tmp/member{number}.img") for number in (1, 2)]
    with loop_device(files[0]) as one, loop_device(files[1]) as two, raid1("md9", one, two) as array:
        bob.may_not_have(check, one, "md9")
        bob.may_not_have(check, files[1], "md9")
        bob.may_have(check, array)
        with mounted(array, "/mnt/array"):
            bob.may_not_have(check, array, "mounted on /mnt/array")
        nothing_left(check, {str(one), str(two)})
    file = image("/tmp/table.img")
    with loop_device(file) as disk, partitions(disk) as (first, second), mounted(first, "/mnt/first"):
        bob.may_not_have(check, disk, "mounted .*on /mnt/first", f"through {first}")
        bob.may_have(check, second)
        nothing_left(check, {str(disk)})


def _swap(check: Verdicts, bob: Neighbour, device: Path, disk: Path) -> None:
    tool("mkswap", str(device))
    tool("swapon", str(device))
    bob.may_not_have(check, device, "swap space")
    bob.may_not_have(check, disk, r"swap space")
    tool("swapoff", str(device))


def _elsewhere(check: Verdicts, bob: Neighbour, device: Path) -> None:
    """A mount that is to be seen in the mount namespace of one process only."""
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", str(device))
    Path("/mnt/elsewhere").mkdir(exist_ok=True)
    command = f"mount -t ext4 {device} /mnt/elsewhere && echo mounted && exec sleep 1000"
    other = subprocess.Popen(["unshare", "-m", "sh", "-c", command], stdout=subprocess.PIPE, text=True)
    assert other.stdout
    try:
        check("mounted in another namespace", other.stdout.readline() == "mounted\n")
        check("which dom0's does not show", "/mnt/elsewhere" not in Path("/proc/mounts").read_text())
        bob.may_not_have(check, device, "mounted on /mnt/elsewhere", rf"\b{other.pid}\b")
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    bob.may_have(check, device)


def _process(name: str) -> str:
    """A regular expression of the process id of a program that runs once."""
    found = re.findall(r"\d+", run("pidof", name)[1])
    return rf"\b({'|'.join(found) or 'no such process'})\b"
