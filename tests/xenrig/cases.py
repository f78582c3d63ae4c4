"""The cases: what vbdkit's `block` must do for a real toolstack, a real backend driver and real guests.

Each is a function of one argument, the Verdicts that it fills; CASES names them in the order in which they run. They
run in dom0 (dom0.py), with whatever script is /etc/xen/scripts/block.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from . import author_cases, devd_cases, domains, hvm_cases, lvm_cases, nbd_cases, script_cases, sharing, toolstack_cases
from .harness import (
    ANSWER,
    MARKER,
    READ,
    READ_AND_ANSWER,
    XVDA,
    Guest,
    Verdicts,
    answer,
    backend,
    hex_number,
    image,
    loop_device,
    loops,
    node,
    nothing_left,
    run,
    traced_script,
    wait,
)

Case = Callable[[Verdicts], None]


def file_disk(check: Verdicts) -> None:
    """A guest reads and writes a file: disk; nodes as O3, O7 and O9 say; all gone after power-off."""
    file = image("/tmp/disk.img")
    guest = Guest("file", [f"file:{file},xvda,w"], READ_AND_ANSWER)
    status, output = guest.create()
    check("xl create", status == 0, output)
    nodes = {name: node(f"{backend(guest.domid, XVDA)}/{name}") for name in _OUTPUT_NODES}
    device = Path(nodes["node"] or "/missing")
    check("node is the loop device of the file (O9)", loops().get(str(device)) == str(file), (nodes, loops()))
    check("physical-device is its number in hex (O3)", _is_number_of(nodes["physical-device"], device), nodes)
    path = Path(nodes["physical-device-path"] or "/missing")
    check("physical-device-path is that device (O3)", _is_number_of(nodes["physical-device"], path), nodes)
    check("hotplug-status is connected, no hotplug-error (O7)", _connected(nodes), nodes)
    _used_and_gone(check, guest, file)
    nothing_left(check)


def device_disk(check: Verdicts) -> None:
    """A guest reads and writes a phy: disk; nodes as O3 and O7 say; the device stays dom0's."""
    file = image("/tmp/disk.img")
    with loop_device(file) as device:
        guest = Guest("device", [f"phy:{device},xvda,w"], READ_AND_ANSWER)
        status, output = guest.create()
        check("xl create", status == 0, output)
        nodes = {name: node(f"{backend(guest.domid, XVDA)}/{name}") for name in _OUTPUT_NODES}
        check("physical-device is its number in hex (O3)", _is_number_of(nodes["physical-device"], device), nodes)
        path = Path(nodes["physical-device-path"] or "/missing")
        check("physical-device-path is that device (O3)", _is_number_of(nodes["physical-device"], path), nodes)
        check("hotplug-status is connected, no hotplug-error (O7)", _connected(nodes), nodes)
        _used_and_gone(check, guest, device)
        check("the device is still bound", loops().get(str(device)) == str(file), loops())
        nothing_left(check, {str(device)})


def refused(check: Verdicts) -> None:
    """A second guest asking for a disk in use, by its own or another name, is refused with a sentence (O1, O7)."""
    file = image("/tmp/disk.img")
    alias = Path("/tmp/another-name.img")
    alias.unlink(missing_ok=True)
    alias.hardlink_to(file)
    holder = Guest("holder", [f"file:{file},xvda,w"], f"{READ}; while [ ! -e /stop ]; do sleep 1; done")
    status, output = holder.create()
    check("xl create of the first", status == 0, output)
    for path in (file, alias):
        thief = Guest("thief", [f"file:{path},xvda,w"])
        status, output = thief.create()
        check(f"xl create of a second with {path} fails", status != 0)
        said = re.search(r"script: (.*)", output)
        check("xl shows a sentence that names the first", bool(said and "holder" in said[1]), output)
        if said:
            print(f"     xl says: {said[1]}")
        if status == 0:
            thief.destroy()
    check("the first has its disk still", holder.says(f"domU: read {MARKER}") and len(loops()) == 1, loops())
    holder.destroy()
    alias.unlink()
    nothing_left(check)


def read_only(check: Verdicts) -> None:
    """A read-only disk cannot be written, and two guests may share it; a writer beside them is refused (O2, O8)."""
    file = image("/tmp/disk.img")
    script = f"{READ}; cat /sys/block/xvda/ro; echo no | dd of=/dev/xvda bs=512 2>/dev/null || echo domU: not written"
    guests = [Guest(name, [f"file:{file},xvda,r"], f"{script}; sleep 1000") for name in ("reader", "second")]
    for guest in guests:
        status, output = guest.create()
        check(f"xl create of {guest.name}", status == 0, output)
        device = node(f"{backend(guest.domid, XVDA)}/node") or "/dev/missing"
        flag = Path(f"/sys/block/{Path(device).name}/ro")
        check(f"{guest.name}: its loop device is read-only (O8)", flag.exists() and flag.read_text() == "1\n", device)
    for guest in guests:
        check(f"{guest.name} reads", guest.says(f"domU: read {MARKER}"), guest.console())
        check(f"{guest.name} cannot write", guest.says("domU: not written"), guest.console())
    status, output = Guest("writer", [f"file:{file},xvda,w"]).create()
    check("xl create of a writer fails", status != 0)
    check("xl shows why", bool(re.search("script: .*(reader|second)", output)), output)
    check("the file is as it was", file.read_bytes()[: len(MARKER)] == MARKER.encode())
    for guest in guests:
        guest.destroy()
    nothing_left(check)


def attach_detach(check: Verdicts) -> None:
    """xl block-attach and block-detach on a running guest, a file and a device, both with a space in their names."""
    file = image("/tmp/a folder/my disk.img")
    other = image("/tmp/disk.img")
    look = "n=$(dd if=/dev/xvdb bs=16 count=1 2>/dev/null || echo none)"
    guest = Guest("idle", [], f'while :; do {look}; [ "$n" = "$o" ] || echo "domU: xvdb $n"; o=$n; sleep 0.3; done')
    status, output = guest.create()
    check("xl create", status == 0, output)
    check("the guest has no xvdb", guest.says("domU: xvdb none"), guest.console())
    with loop_device(other) as device:
        link = Path("/tmp/a folder/my device")
        link.unlink(missing_ok=True)
        link.symlink_to(device)
        for times, path in enumerate((file, link), 1):
            disk = f"format=raw,vdev=xvdb,access=rw,target={path}"
            status, output = run("xl", "block-attach", guest.name, disk)
            check(f"xl block-attach of '{path}'", status == 0, output)
            sees = wait(lambda times=times: guest.console().count(f"domU: xvdb {MARKER}") == times)  # type: ignore[misc]
            check("the guest reads it", sees, guest.console())
            status, output = run("xl", "block-detach", guest.name, "xvdb")
            check("xl block-detach", status == 0, output)
            lost = wait(lambda times=times: guest.console().count("domU: xvdb none") == times + 1)  # type: ignore[misc]
            check("the guest has lost it", lost, guest.console())
            nothing_left(check, {str(device)})
        link.unlink()
    guest.destroy()


def pygrub(check: Verdicts) -> None:
    """bootloader = "pygrub" with script=: add and remove for dom0, then add for the guest, of one disk (I5)."""
    tree = Path("/tmp/root/boot/grub")
    tree.mkdir(parents=True, exist_ok=True)
    kernel = next(Path("/boot").glob("vmlinuz-*"))
    shutil.copy(kernel, tree.parent / "vmlinuz")
    shutil.copy("/rigguest/initrd", tree.parent / "initrd")
    entry = "linux /boot/vmlinuz console=hvc0 quiet\n  initrd /boot/initrd"
    (tree / "grub.cfg").write_text(f'set default=0\nmenuentry "rig" {{\n  {entry}\n}}\n')
    file = image("/tmp/root.img")
    with file.open("r+b") as disk:
        disk.truncate(48 << 20)
    status, output = run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", "/tmp/root", str(file))
    check("a disk with a kernel inside", status == 0, output)
    with traced_script() as (script, log):
        disk_specification = f"format=raw,vdev=xvda,access=w,script={script},target={file}"
        guest = Guest("grub", [disk_specification], lines=['bootloader = "pygrub"'], kernel=False)
        status, output = guest.create()
        check("xl create", status == 0, output)
        dom0s = next((line.split()[2] for line in log.read_text().splitlines()), "none")
        expected = [f"add 0 {dom0s}", f"remove 0 {dom0s}", f"add {guest.domid} {XVDA}"]
        check("add and remove for dom0, add for the guest", log.read_text().splitlines() == expected, log.read_text())
        state = f"{backend(guest.domid, XVDA)}/state"
        check("the guest's kernel, which was in the disk, has the disk", wait(lambda: node(state) == "4"), node(state))
        thief = Guest("thief", [disk_specification], lines=['bootloader = "pygrub"'], kernel=False)
        status, output = thief.create()
        check("a second guest is refused before pygrub looks", status != 0 and "grub" in output, output)
        guest.destroy()
    # After a refused add for domain 0 libxl itself leaves those nodes; they are no doing of the script.
    run("xenstore-rm", "/local/domain/0/backend/vbd/0")
    nothing_left(check)


def save_restore(check: Verdicts) -> None:
    """xl save calls remove for the old domid, xl restore add for the new one; the guest goes on writing."""
    file = image("/tmp/disk.img")
    ticks = "i=0; while :; do i=$((i+1)); printf tick%012d $i | dd of=/dev/xvda bs=512 seek=8 conv=fsync 2>/dev/null"
    with traced_script() as (script, log):
        disk = f"format=raw,vdev=xvda,access=w,script={script},target={file}"
        guest = Guest("sleeper", [disk], f"{ticks} || echo domU: write error; sleep 0.3; done")
        status, output = guest.create()
        check("xl create", status == 0, output)
        check("the guest writes", wait(lambda: answer(file).startswith("tick")))
        old = guest.domid
        status, output = run("xl", "save", guest.name, "/tmp/saved")
        check("xl save", status == 0, output)
        nothing_left(check)
        before = answer(file)
        status, output = run("xl", "restore", "/tmp/saved")
        check("xl restore", status == 0, output)
        guest.learn_domid()
        check("the guest writes on", wait(lambda: answer(file) > before), answer(file))
        check("without an error", "write error" not in guest.console(), guest.console())
        guest.destroy()
        expected = [f"add {old}", f"remove {old}", f"add {guest.domid}", f"remove {guest.domid}"]
        calls = log.read_text().splitlines()
        check("add, remove, add, remove", calls == [f"{call} {XVDA}" for call in expected], calls)
    nothing_left(check)


def storm(check: Verdicts) -> None:
    """Eight guests with three disks each are started at once: does every one come up?"""
    guests = []
    for number in range(8):
        disks = [f"file:{image(f'/tmp/{number}-{letter}.img')},xvd{letter},w" for letter in "abc"]
        look = "for d in xvda xvdb xvdc; do dd if=/dev/$d bs=16 count=1 2>/dev/null; echo; done | sort | uniq -c"
        guests.append(Guest(f"storm{number}", disks, f"echo domU: $({look}); sleep 1000"))
    began = time.monotonic()
    commands = [["xl", "create", "-q", str(guest.config)] for guest in guests]
    with Path("/rig/out/storm.xl").open("wb") as log:
        running = [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
        statuses = [process.wait(400) for process in running]
    took = time.monotonic() - began
    created = [guest for guest, status in zip(guests, statuses, strict=True) if status == 0]
    up = [guest for guest in created if guest.says(f"domU: 3 {MARKER}", 300)]
    print(f"FIGURE storm: {len(up)} of {len(guests)} guests up with all disks, last xl create done after {took:.0f} s")
    check("every guest is up with its three disks", len(up) == len(guests), statuses)
    for guest in created:
        run("xl", "destroy", guest.name)
    wait(lambda: not loops(), 120)
    nothing_left(check)


_OUTPUT_NODES = ("physical-device", "physical-device-path", "hotplug-status", "hotplug-error", "node")


def _is_number_of(value: str | None, device: Path) -> bool:
    return device.is_block_device() and value == hex_number(device)


def _connected(nodes: dict[str, str | None]) -> bool:
    return nodes["hotplug-status"] == "connected" and nodes["hotplug-error"] is None


def _used_and_gone(check: Verdicts, guest: Guest, disk: Path) -> None:
    check("the guest reads what dom0 wrote", guest.says(f"domU: read {MARKER}"), guest.console())
    check("and writes", guest.says("domU: wrote"), guest.console())
    check("it powers itself off, its backend goes", guest.gone())
    check("dom0 reads what the guest wrote", answer(disk) == ANSWER, answer(disk))


CASES: dict[str, Case] = {
    "file": file_disk,
    "refused": refused,
    "device": device_disk,
    "read-only": read_only,
    "attach": attach_detach,
    "pygrub": pygrub,
    "save": save_restore,
    "migrate": domains.migration,
    "qdisk": domains.qemu_disk,
    "driver": domains.driver_domain,
    "hvm": hvm_cases.emulated,
    "hvm-migrate": hvm_cases.migration,
    "devd": devd_cases.in_place_of_xl_devd,
    "partitions": sharing.partitioned,
    "dm": sharing.device_mapper,
    "multipath": sharing.multipath,
    "lvm": sharing.lvm,
    "md": sharing.raid,
    "crypt": sharing.encrypted,
    "nbd": sharing.network_block_device,
    "drbd": sharing.replicated,
    "dom0": sharing.dom0s_own,
    "block-dummy": script_cases.dummy,
    "block-iscsi": script_cases.iscsi,
    "block-drbd": script_cases.linbits,
    "block-lvm": lvm_cases.block_lvm,
    "tutorial": author_cases.tutorial,
    "new-script": author_cases.written,
    "toolstack": toolstack_cases.beside_xl,
    "ways": toolstack_cases.three_ways,
    "along": toolstack_cases.taken_along,
    "served": toolstack_cases.served_elsewhere,
    "block-nbd": nbd_cases.images,
    "nbd-uri": nbd_cases.servers,
    "nbd-killed": nbd_cases.killed,
    "storm": storm,
}
SHORT = ("file", "refused")
# Cases that need a machine of their own: more memory than the others.
OWN_MACHINE = ("storm",)
