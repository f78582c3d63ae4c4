"""Cases: block-lvm, a datapath of vbdkit's own, with the real lvm2 and device-mapper of dom0."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .harness import (
    ANSWER,
    READ_AND_ANSWER,
    SCRIPTS,
    XVDA,
    XVDB,
    Guest,
    Neighbour,
    Verdicts,
    answer,
    backend,
    image,
    loop_device,
    neighbours,
    node,
    nothing_left,
    run,
    wait,
)
from .lvm_facts import GROUP, facts
from .stacks import marked, tool, volume_group
from .toolstack_cases import vbdkit

SCRIPT = "block-lvm"
WEB = Path("/dev/mapper/vg--0-web")


def block_lvm(check: Verdicts) -> None:
    """block-lvm: a guest boots with a volume, no other gets it; read-only; snapshots; kills; nothing is left."""
    alice, bob = neighbours()
    with loop_device(image("/tmp/pv.img", mib=68)) as disk, volume_group(GROUP, disk):
        # Or else what udev does when the group's disk changes would make its volumes active behind our backs.
        tool("vgchange", "-q", "--setautoactivation", "n", GROUP)
        for name, *how in (("web", "-L4M"), ("big", "-L28M")):
            tool("lvcreate", "-q", "-y", "-Wn", "-n", name, *how, GROUP)
        tool(
            "lvcreate",
            "-q",
            "-y",
            "-Zn",
            "--type",
            "thin-pool",
            "-L12M",
            "--poolmetadatasize",
            "4M",
            "-n",
            "pool",
            GROUP,
        )
        tool("lvcreate", "-q", "-y", "-V16M", "-n", "golden", "-T", f"{GROUP}/pool")
        for name in ("web", "golden"):
            marked(Path(f"/dev/{GROUP}/{name}"))
        tool("vgchange", "-q", "-an", GROUP)
        for what, so, said in facts(run, "/dev/mapper"):
            check(f"lvm2: {what}", so, said)
        before = _volumes()
        with _script(check, alice, bob):
            _boots(check)
            _one_guest_only(check, alice, bob)
            _read_only(check, alice, bob)
            _snapshots(check, alice, bob)
            _refusals(check, alice)
            _killed(check, alice)
        check("the volumes are those of before, and inactive", _volumes() == before, _volumes())
        nothing_left(check, {str(disk)})


@contextmanager
def _script(check: Verdicts, *guests: Neighbour) -> Iterator[None]:
    """block-lvm in the script folder; the guests' disks come through it."""
    status, output = vbdkit("install", SCRIPT, "--python", "/usr/bin/python3")
    check(f"vbdkit install {SCRIPT}", status == 0, output)
    for guest in guests:
        guest.script = SCRIPT
    try:
        yield
    finally:
        for guest in guests:
            guest.script = ""
        status, output = vbdkit("uninstall", SCRIPT)
        check(f"vbdkit uninstall {SCRIPT}", status == 0, output)


def _boots(check: Verdicts) -> None:
    guest = Guest("lvm", [f"format=raw,vdev=xvda,access=w,script={SCRIPT},target={GROUP}/web"], READ_AND_ANSWER)
    status, output = guest.create()
    check("xl create", status == 0, output)
    path = node(f"{backend(guest.domid, XVDA)}/physical-device-path")
    check("physical-device-path is the volume's", path == str(WEB), path)
    check("the guest reads and writes", guest.says("domU: wrote"), guest.console())
    check("the guest is gone", guest.gone())
    check("the volume is inactive again", wait(lambda: not _devices(), 10), _devices())
    tool("lvchange", "-ay", f"{GROUP}/web")
    check("what the guest wrote is in it", answer(WEB) == ANSWER, answer(WEB))
    tool("lvchange", "-an", f"{GROUP}/web")


def _one_guest_only(check: Verdicts, alice: Neighbour, bob: Neighbour) -> None:
    with alice.having(check, f"{GROUP}/web", reads=True):
        check("it is active", _devices() == ["vg--0-web"], _devices())
        for name in (f"{GROUP}/web", str(WEB)):
            bob.may_not_have(check, name, "alice")
        bob.may_not_have(check, f"{GROUP}/web", "alice", access="r")
        bob.script = ""
        bob.may_not_have(check, WEB, "alice")
        bob.script = SCRIPT
    check("it is inactive after her", wait(lambda: not _devices(), 10), _devices())
    tool("lvchange", "-ay", f"{GROUP}/web")
    with alice.having(check, f"{GROUP}/web"):
        pass
    check("what was active before her stays so", _devices() == ["vg--0-web"], _devices())
    tool("lvchange", "-an", f"{GROUP}/web")


def _read_only(check: Verdicts, alice: Neighbour, bob: Neighbour) -> None:
    with alice.having(check, f"{GROUP}/web", "r", reads=True):
        device = Path(node(f"{backend(alice.domid, XVDB)}/physical-device-path") or "/missing")
        check("the device is read-only in fact (O8)", _read_only_flag(device) == "1", device)
        bob.may_have(check, f"{GROUP}/web", "r")
        bob.may_not_have(check, f"{GROUP}/web", "alice", "read-only")
    check("nothing is active after her", wait(lambda: not _devices(), 10), _devices())
    # The one who came first goes first, and the last one takes back.
    alice.attach(f"{GROUP}/web", "r")
    wait(lambda: node(f"{backend(alice.domid, XVDB)}/state") == "4")
    with bob.having(check, f"{GROUP}/web", "r", reads=True):
        status, output = alice.detach()
        check("alice goes first", status == 0, output)
        check("bob has it still", "vg--0-web" in _devices(), _devices())
    check("and nothing is active after him", wait(lambda: not _devices(), 10), _devices())


def _snapshots(check: Verdicts, alice: Neighbour, bob: Neighbour) -> None:
    before = _volumes()
    for target in (f"{GROUP}/web@:4M", f"{GROUP}/golden@"):
        with alice.having(check, target, reads=True):
            name = f"{target.partition('@')[0][5:]}-vbd-{alice.domid}-{XVDB}"
            check(f"she has {name}", name in _volumes(), _volumes())
            bob.may_have(check, target)
            if target.startswith(f"{GROUP}/golden"):
                bob.may_have(check, f"{GROUP}/golden")
        gone = wait(lambda: _volumes() == before and not _devices(), 10)
        check(f"nothing is left of {target}", gone, (_volumes(), _devices()))
    with alice.having(check, f"{GROUP}/golden@kept", "r", reads=True):
        device = Path(node(f"{backend(alice.domid, XVDB)}/physical-device-path") or "/missing")
        check("a read-only one is so in fact (O8)", _read_only_flag(device) == "1", device)
        bob.may_not_have(check, f"{GROUP}/golden@kept", "vg-0/kept is there already", f"made for vbd-{alice.domid}-")
    check("nothing is left of kept", wait(lambda: _volumes() == before, 10), _volumes())


def _refusals(check: Verdicts, alice: Neighbour) -> None:
    for target, words in {
        f"{GROUP}/missing": "vg-0/missing cannot be had: Failed to find logical volume .*lvs vg-0 shows",
        "missing/web": 'the volume group missing cannot be had here: Volume group "missing" not found',
        f"{GROUP}/pool": "vg-0/pool is a part of LVM's own",
        f"{GROUP}/pool_tmeta": "vg-0/pool_tmeta is a part of LVM's own",
        f"{GROUP}/golden@web": "vg-0/web is there already; say another name",
        f"{GROUP}/web@": "vg-0/web is not thin",
        f"{GROUP}/big@:90%": "insufficient free space .*vgs vg-0 shows what room there is",
    }.items():
        alice.may_not_have(check, target, words)
    check("nothing is active after the refusals", wait(lambda: not _devices(), 10), _devices())


def _killed(check: Verdicts, alice: Neighbour) -> None:
    """SIGKILL while lvcreate is at work, which then goes on: the remove waits for it and takes the snapshot away."""
    before = _volumes()
    held = Path("/tmp/lvcreate-held")
    wrapper = Path("/usr/local/sbin/lvcreate")
    wrapper.write_text(f'#!/bin/sh\ntouch {held}\nwhile [ -e {held} ]; do sleep 0.1; done\nexec /sbin/lvcreate "$@"\n')
    wrapper.chmod(0o755)
    try:
        disk = f"script={SCRIPT},format=raw,vdev=xvdb,access=w,target={GROUP}/web@:4M"
        attaching = subprocess.Popen(
            ["xl", "block-attach", alice.name, disk], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        check("lvcreate is at work", wait(held.exists, 30))
        for pid in re.findall(r"\d+", run("pgrep", "-f", f"{SCRIPTS / SCRIPT} add")[1]):
            os.kill(int(pid), signal.SIGKILL)
        said = attaching.communicate(timeout=60)[0].decode(errors="replace")
        check("xl block-attach fails", attaching.returncode != 0, said)
        detaching = subprocess.Popen(
            ["xl", "block-detach", alice.name, "xvdb"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        held.unlink()
        said = detaching.communicate(timeout=100)[0].decode(errors="replace")
        check("xl block-detach", detaching.returncode == 0, said)
    finally:
        held.unlink(missing_ok=True)
        wrapper.unlink()
    gone = wait(lambda: _volumes() == before and not _devices(), 20)
    check("nothing is left of a killed add", gone, (_volumes(), _devices()))


def _volumes() -> list[str]:
    """The group's volumes."""
    return run("lvs", "--noheadings", "-o", "lv_name", GROUP)[1].split()


def _devices() -> list[str]:
    """What device-mapper has."""
    return sorted(
        line.split()[0] for line in run("dmsetup", "ls")[1].splitlines() if line.startswith(("vg--0", "vbdkit"))
    )


def _read_only_flag(device: Path) -> str:
    return Path(f"/sys/block/{device.resolve().name}/ro").read_text().strip()
