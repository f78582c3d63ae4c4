"""Storage stacks of dom0's kernel, each made by its own tools for the length of a `with` and then taken down.

Each gives the device that it makes. The tools are in build.STORAGE_PACKAGES.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .harness import MARKER, run, wait


def tool(*command: str) -> str:
    """Run a tool that must succeed; its output."""
    status, output = run(*command)
    if status:
        raise RuntimeError(f"{' '.join(command)}: status {status}: {output}")
    return output


def marked(device: Path) -> Path:
    """The device, with MARKER at its start."""
    wait(device.is_block_device)
    with device.open("r+b") as writer:
        writer.write(MARKER.encode())
    return device


@contextmanager
def partitions(disk: Path) -> Iterator[tuple[Path, Path]]:
    """Two partitions of 6 MB on a loop device, which is made to look for them."""
    table = Path("/tmp/partition-table")
    table.write_text("start=2048, size=12288\nstart=14336, size=12288\n")
    tool("sh", "-c", f"sfdisk -q --no-reread --no-tell-kernel {disk} <{table}")
    tool("partx", "-a", str(disk))
    first, second = Path(f"{disk}p1"), Path(f"{disk}p2")
    try:
        wait(lambda: first.exists() and second.exists())
        yield first, second
    finally:
        run("partx", "-d", str(disk))


@contextmanager
def mapped(name: str, table: str) -> Iterator[Path]:
    """A device-mapper device with this table (dmsetup's form)."""
    tool("dmsetup", "create", name, "--table", table)
    try:
        yield Path(f"/dev/mapper/{name}")
    finally:
        _until_free("dmsetup", "remove", name)


@contextmanager
def two_paths() -> Iterator[tuple[Path, Path]]:
    """One disk of 16 MB that the kernel sees twice, as it does a disk behind two host adapters (scsi_debug)."""
    tool("modprobe", "scsi_debug", "dev_size_mb=16", "add_host=2", "per_host_store=0")
    try:
        wait(lambda: len(_debug_disks()) == 2)
        first, second = _debug_disks()
        yield first, second
    finally:
        _until_free("modprobe", "-r", "scsi_debug")


def _debug_disks() -> list[Path]:
    models = Path("/sys/block").glob("sd*/device/model")
    return sorted(Path("/dev") / path.parts[3] for path in models if path.read_text().strip() == "scsi_debug")


@contextmanager
def volume_group(name: str, device: Path) -> Iterator[None]:
    """An LVM volume group with this device as its physical volume; it is down and gone at the end."""
    tool("vgcreate", "-q", "-y", name, str(device))
    try:
        yield
    finally:
        run("vgchange", "-q", "-an", name)
        _until_free("vgremove", "-q", "-ff", "-y", name)
        run("pvremove", "-q", "-ff", "-y", str(device))


def volume(group: str, name: str, *how: str) -> Path:
    """A logical volume, made with lvcreate's options `how`."""
    tool("lvcreate", "-q", "-y", "-n", name, *how)
    path = Path(f"/dev/{group}/{name}")
    wait(path.exists)
    return path


@contextmanager
def raid1(name: str, *members: Path) -> Iterator[Path]:
    """An md array; the members are left blank."""
    device = Path(f"/dev/{name}")
    options = ["--run", "--level=1", "--metadata=1.2", "--assume-clean", f"--raid-devices={len(members)}"]
    tool("mdadm", "--create", str(device), *options, *map(str, members))
    try:
        wait(device.exists)
        yield device
    finally:
        _until_free("mdadm", "--stop", str(device))
        run("mdadm", "--zero-superblock", *map(str, members))


@contextmanager
def crypt(name: str, device: Path) -> Iterator[Path]:
    """A dm-crypt device over another, with a key of no importance."""
    key = Path("/tmp/key")
    key.write_bytes(b"k" * 32)
    options = ["--type", "plain", "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256", "--key-file", str(key)]
    tool("cryptsetup", "-q", "open", *options, str(device), name)
    try:
        yield Path(f"/dev/mapper/{name}")
    finally:
        _until_free("cryptsetup", "close", name)


@contextmanager
def nbd(file: Path) -> Iterator[Path]:
    """A network block device that qemu-nbd serves from a raw image."""
    tool("modprobe", "nbd")
    device = Path("/dev/nbd0")
    tool("qemu-nbd", "-f", "raw", "-c", str(device), str(file))
    try:
        wait(lambda: Path("/sys/block/nbd0/size").read_text().strip() != "0")
        yield device
    finally:
        run("qemu-nbd", "-d", str(device))
        wait(lambda: Path("/sys/block/nbd0/size").read_text().strip() == "0")


@contextmanager
def drbd(disk: Path, role: str = "primary") -> Iterator[Path]:
    """A DRBD resource, rig, on this disk, whose peer is away; it is Primary here, or in the end what `role` says."""
    tool("modprobe", "drbd")
    host = Path("/proc/sys/kernel/hostname").read_text().strip()
    Path("/etc/drbd.d/rig.res").write_text(
        f"resource rig {{ device /dev/drbd0; disk {disk}; meta-disk internal;\n"
        f"on {host} {{ address 127.0.0.1:7789; }} on elsewhere {{ address 127.0.0.2:7789; }} }}\n"
    )
    tool("drbdadm", "create-md", "--force", "rig")
    try:
        tool("drbdadm", "up", "rig")
        tool("drbdadm", "primary", "--force", "rig")
        tool("drbdadm", role, "rig")
        yield Path("/dev/drbd0")
    finally:
        _until_free("drbdadm", "down", "rig")


_TARGETS = Path("/sys/kernel/config/target")
PORTAL = "127.0.0.1"


@contextmanager
def iscsi_target(iqn: str, backing: Path) -> Iterator[None]:
    """A target of Linux' own (LIO) for any initiator, with a file or a block device behind its LUN 0.

    The initiator's daemon runs, and has no session.
    """
    tool("modprobe", "-a", "iscsi_target_mod", "target_core_file", "target_core_iblock", "iscsi_tcp")
    if not _TARGETS.exists():
        tool("mount", "-t", "configfs", "configfs", str(_TARGETS.parent))
        # The target's own database, which targetcli would make.
        Path("/etc/target").mkdir(exist_ok=True)
    device = backing.is_block_device()
    store = _TARGETS / "core" / ("iblock_0" if device else "fileio_0") / "rig"
    group = _TARGETS / "iscsi" / iqn / "tpgt_1"
    lun, portal = group / "lun/lun_0", group / f"np/{PORTAL}:3260"
    for folder in (store, lun, portal):
        folder.mkdir(parents=True)
    options = f"udev_path={backing}" if device else f"fd_dev_name={backing},fd_dev_size={backing.stat().st_size}"
    settings = {store / "control": options, store / "enable": "1"}
    attributes = {"authentication": 0, "generate_node_acls": 1, "demo_mode_write_protect": 0, "cache_dynamic_acls": 1}
    settings |= {group / "attrib" / name: str(value) for name, value in attributes.items()}
    try:
        for path, value in settings.items():
            path.write_text(value)
        (lun / "rig").symlink_to(store)
        (group / "enable").write_text("1")
        tool("iscsid")
        yield
    finally:
        run("iscsiadm", "-m", "session", "--logout")
        run("iscsiadm", "-k", "0")
        (group / "enable").write_text("0")
        (lun / "rig").unlink(missing_ok=True)
        for folder in (lun, portal, group, group.parent, store):
            folder.rmdir()


@contextmanager
def mounted(device: Path, point: str, *options: str) -> Iterator[Path]:
    """A new ext4 file system on the device, mounted."""
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", str(device))
    Path(point).mkdir(parents=True, exist_ok=True)
    tool("mount", "-t", "ext4", *options, str(device), point)
    try:
        yield Path(point)
    finally:
        _until_free("umount", point)


def _until_free(*command: str) -> None:
    """Run a command that takes something down, again while udev's looking at it keeps it busy."""
    end = time.monotonic() + 20
    while True:
        status, output = run(*command)
        if status == 0:
            return
        if time.monotonic() > end:
            raise RuntimeError(f"{' '.join(command)}: {output}")
        time.sleep(0.3)
