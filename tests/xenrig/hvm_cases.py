"""A case: HVM guests boot from emulated hardware. What their qemu opens for that is what our script published."""

import itertools
import json
from pathlib import Path

from tests.bootsector import boot_cdrom, boot_image

from .domains import SVM
from .harness import (
    Guest,
    Neighbour,
    Verdicts,
    backend,
    image,
    loops,
    neighbours,
    node,
    nothing_left,
    run,
    traced_script,
    wait,
)
from .toolstack_cases import vbdkit

_SERIAL = Path("/tmp/hvm-serial")
# A PC with a serial line and no screen, which boots from its first hard disk.
_PC = ['type = "hvm"', 'boot = "c"', 'vga = "none"', f'serial = "file:{_SERIAL}"', *SVM]
_MOVES = "marker for a PC that moves"
_HDA, _SDB = 768, 2064  # devids (xen-vbd-interface)


def emulated(check: Verdicts) -> None:
    """A PC (HVM) boots from the path that our script wrote, opened by its qemu; no other guest gets the disk."""
    status, output = run("xl", "info", "virt_caps")
    print(f"     xl info virt_caps: {output}")
    check("Xen has HVM", status == 0 and "hvm" in output.split(), output)
    _, bob = neighbours()
    for hdtype in ("ide", "ahci"):
        marker = f"marker for a PC with {hdtype}"
        disk = boot_image(Path(f"/tmp/{hdtype}.img"), marker)
        scsi = image("/tmp/scsi.img")
        cdrom = boot_cdrom(Path("/tmp/cd.iso"), "marker of the CD-ROM")
        disks = [
            f"format=raw,vdev=hda,access=rw,script=block,target={disk}",
            f"format=raw,vdev=sdb,access=ro,script=block,target={scsi}",
            f"format=raw,vdev=hdc,access=ro,devtype=cdrom,target={cdrom}",
        ]
        _SERIAL.unlink(missing_ok=True)
        guest = Guest(f"pc-{hdtype}", disks, lines=[*_PC, f'hdtype = "{hdtype}"'], kernel=False)
        status, output = guest.create()
        check(f"{hdtype}: xl create", status == 0, output)
        told = _told_to_qemu(guest)
        print(f"     qemu is told: {' '.join(told)}")
        for vdev, devid in (("hda", _HDA), ("sdb", _SDB)):
            path = node(f"{backend(guest.domid, devid)}/physical-device-path")
            opened = [word for word in told if word.startswith(f"file={path},")]
            check(f"{hdtype}: qemu is told the path of {vdev} that our script wrote", bool(path and opened), told)
            held = path in _open_files(guest)
            check(f"{hdtype}: and has it open", held, _open_files(guest))
        boots = wait(lambda marker=marker: marker in _serial(), 120)  # type: ignore[misc]
        check(f"{hdtype}: its boot sector says on the serial line what the disk has", boots, _serial())
        run("xl", "pause", guest.name)  # it has no more to say, and would only use up time
        status, output = vbdkit("device-model-args", guest.name, "--hdtype", hdtype, "--json")
        ours = json.loads(output) if status == 0 else output
        check(f"{hdtype}: vbdkit device-model-args says the same, word for word", ours == told, f"{ours}\n{told}")
        for file in (disk, scsi):
            bob.may_not_have(check, file, rf"guest {guest.domid} \({guest.name}\)", "hda" if file == disk else "sdb")
        guest.destroy()
        nothing_left(check)
        bob.may_have(check, disk)
    nothing_left(check)


def migration(check: Verdicts) -> None:
    """xl migrate of a PC to the same host, with the file itself open in qemu, and with the device: no other gets it."""
    _, bob = neighbours()
    disk = boot_image(Path("/tmp/moves.img"), _MOVES)
    # By the default script libxl tells qemu the file itself, which it locks; by any other, what that published.
    _moves(check, bob, disk, f"target={disk}", str(disk))
    with traced_script() as (script, log):
        old, new = _moves(check, bob, disk, f"script={script},target={disk}", None)
        calls = log.read_text().splitlines()
        expected = [f"{verb} {domid} {_HDA}" for verb in ("add", "remove") for domid in (old, new)]
        check("add, add, remove, remove", calls == expected, calls)
    nothing_left(check)


def _moves(check: Verdicts, bob: Neighbour, disk: Path, words: str, opens: str | None) -> tuple[int, int]:
    """A PC boots, moves and is destroyed; its qemu opens `opens`, else the published path. Its domids."""
    _SERIAL.unlink(missing_ok=True)
    guest = Guest("pc", [f"format=raw,vdev=hda,access=rw,{words}"], lines=_PC, kernel=False)
    status, output = guest.create()
    check(f"{words}: xl create", status == 0, output)
    old = guest.domid
    check("its boot sector says what the disk has", wait(lambda: _MOVES in _serial(), 120), _serial())
    path = opens or node(f"{backend(old, _HDA)}/physical-device-path")
    check(f"its qemu has {path} open", path in _open_files(guest), _open_files(guest))
    bob.may_not_have(check, disk, rf"guest {old} \(pc\)")
    status, output = run("xl", "migrate", "-s", "", guest.name, "xl migrate-receive", limit=200)
    check("xl migrate", status == 0, output)
    guest.learn_domid()
    check("it is another domain now", guest.domid > old, (old, guest.domid))
    run("xl", "pause", guest.name)
    check("the old domid's disk is given back", wait(lambda: node(backend(old, _HDA)) is None))
    check("the new one has it", node(f"{backend(guest.domid, _HDA)}/hotplug-status") == "connected")
    check("and its qemu has it open", bool(_open_files(guest) & {str(disk), *loops()}), _open_files(guest))
    bob.may_not_have(check, disk, rf"guest {guest.domid} \(pc\)")
    guest.destroy()
    bob.may_have(check, disk)
    return old, guest.domid


def _qemu(guest: Guest) -> Path:
    """Where /proc has the guest's device model."""
    return Path("/proc", node(f"/local/domain/{guest.domid}/image/device-model-pid") or "none")


def _told_to_qemu(guest: Guest) -> list[str]:
    """The arguments of its qemu that are about disks."""
    words = (_qemu(guest) / "cmdline").read_text().split("\0")
    pairs = itertools.pairwise(words)
    return [word for pair in pairs if pair[0] in ("-drive", "-device") for word in pair]


def _open_files(guest: Guest) -> set[str]:
    return {str(link.readlink()) for link in (_qemu(guest) / "fd").iterdir()}


def _serial() -> str:
    return _SERIAL.read_text(errors="replace") if _SERIAL.exists() else ""
