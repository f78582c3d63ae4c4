"""Cases: block scripts of other people as their Debian packages have them, with vbdkit's block-common.sh (S1, S2).

Each gives a real guest a disk, refuses it to a second one whatever it is called, lets the first one keep it when the
refused disk is detached, and leaves nothing.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from .harness import (
    ANSWER,
    MARKER,
    READ_AND_ANSWER,
    SCRIPTS,
    XVDA,
    XVDB,
    Guest,
    Neighbour,
    Verdicts,
    answer,
    backend,
    hex_number,
    image,
    loop_device,
    loops,
    neighbours,
    node,
    nothing_left,
    run,
    wait,
)
from .stacks import PORTAL, drbd, iscsi_target, marked, tool

_IQN = "iqn.2026-11.rig:disk"


def dummy(check: Verdicts) -> None:
    """Xen's block-dummy, which makes a loop device of a file."""
    _unchanged(check, "block-dummy", "xen-utils-common")
    alice, bob = neighbours()
    file = image("/tmp/disk.img")
    target, script = f"dummy:{file}", "script=block-dummy,"
    _boots(check, "block-dummy", target, file, lambda device: loops().get(str(device)) == str(file))
    with alice.having(check, target, reads=True, more=script):
        [device] = loops()
        bob.may_not_have(check, target, r"\(alice\) as its disk xvdb", f"through {device}", more=script)
        for path in (device, file):
            bob.may_not_have(check, path, r"\(alice\) as its disk xvdb")
        _still(check, alice, file)
    nothing_left(check)
    with alice.having(check, file):
        bob.may_not_have(check, target, r"\(alice\) as its disk xvdb", more=script)
    nothing_left(check)
    with alice.having(check, target, "r", reads=True, more=script):
        bob.may_have(check, target, "r", script)
        bob.may_not_have(check, target, r"\(alice\)", more=script)
    nothing_left(check)


def iscsi(check: Verdicts) -> None:
    """Xen's block-iscsi, with a target of dom0's own (LIO) and open-iscsi."""
    _unchanged(check, "block-iscsi", "xen-utils-common")
    alice, bob = neighbours()
    file = image("/tmp/lun.img")
    target, script = f"iqn={_IQN},portal={PORTAL}", "script=block-iscsi,"
    with iscsi_target(_IQN, file):
        _boots(check, "block-iscsi", target, file, lambda device: device == _lun())
        _logged_out(check)
        with alice.having(check, target, reads=True, more=script):
            device = _lun()
            bob.may_not_have(check, target, "Device already opened", more=script)
            _still(check, alice, device)
            for path in (device, f"/dev/disk/by-path/ip-{PORTAL}:3260-iscsi-{_IQN}-lun-0"):
                bob.may_not_have(check, path, r"\(alice\) as its disk xvdb")
            _still(check, alice, device)
        _logged_out(check)
        nothing_left(check)
        _at_once(check, alice, bob, target, script)
        _logged_out(check)
        with bob.having(check, target, reads=True, more=script):
            pass
        _logged_out(check)
    with loop_device(file) as disk, iscsi_target(_IQN, disk):
        with alice.having(check, target, reads=True, more=script):
            bob.may_not_have(check, disk, "held exclusively by something in this domain")
            _still(check, alice, disk)
        _logged_out(check)
        nothing_left(check, {str(disk)})


def linbits(check: Verdicts) -> None:
    """LINBIT's block-drbd, which makes a resource Primary, by both forms of xl's disk specification."""
    _unchanged(check, "block-drbd", "drbd-utils")
    alice, bob = neighbours()
    file = image("/tmp/drbd.img", mib=32)
    script = "script=block-drbd,"
    with loop_device(file) as disk, drbd(disk, "secondary") as device:
        tool("drbdadm", "primary", "rig")
        marked(device)
        tool("drbdadm", "secondary", "rig")
        _boots(check, "block-drbd", "rig", file, lambda own: own == device)
        check("the resource is Secondary again", wait(lambda: _role() == "Secondary"), _role())
        status, output = run("xl", "block-attach", alice.name, "drbd:rig,xvdb,w")
        check("alice gets drbd:rig,xvdb,w", status == 0, output)
        read = wait(lambda: alice.console().rstrip().endswith(f"xvdb {MARKER}"), 60)
        check("alice reads it", read, alice.console()[-300:])
        status, output = alice.detach()
        check("alice gives it back", status == 0, output)
        with alice.having(check, "rig", reads=True, more=script):
            check("the resource is Primary", _role() == "Primary", _role())
            bob.may_not_have(check, "rig", f"Device {device} is mounted in a guest domain", more=script)
            for path in (device, disk, file):
                bob.may_not_have(check, path, r"\(alice\) as its disk xvdb")
            _still(check, alice, device)
        check("the resource is Secondary in the end", _role() == "Secondary", _role())
        nothing_left(check, {str(disk)})
    with loop_device(file) as disk:
        # What its own check is blind to: the disk under the resource.
        with alice.having(check, disk), drbd(disk, "secondary"):
            bob.may_not_have(check, "rig", r"\(alice\) as its disk xvdb", f"through {disk}", more=script)
            _still(check, alice, disk)
        nothing_left(check, {str(disk)})


def _unchanged(check: Verdicts, script: str, package: str) -> None:
    """See that the script is the package's own, and whatever lies beside it, but for block and block-common.sh."""
    listed = run("dpkg-query", "-W", "-f", "${Conffiles}", package)[1]
    theirs = dict(re.findall(rf"({SCRIPTS}/\S+) (\w+)", listed))
    made = {name: hashlib.md5(Path(name).read_bytes(), usedforsecurity=False).hexdigest() for name in theirs}
    ours = {f"{SCRIPTS}/block", f"{SCRIPTS}/block-common.sh"} & theirs.keys()
    changed = {name for name in theirs if theirs[name] != made[name]}
    known = f"{SCRIPTS}/{script}" in theirs
    check(
        f"{script} is as {package} has it, and {len(theirs) - len(ours) - 1} more", known and changed == ours, changed
    )


def _boots(check: Verdicts, script: str, target: str, disk: Path, right: Callable[[Path], bool]) -> None:
    """A guest with the disk reads and writes it and powers itself off; `right` tells whether it got its device."""
    guest = Guest("custom", [f"script={script},format=raw,vdev=xvda,access=w,target={target}"], READ_AND_ANSWER)
    status, output = guest.create()
    check(f"xl create with script={script}", status == 0, output)
    path = Path(node(f"{backend(guest.domid, XVDA)}/physical-device-path") or "/missing")
    check("it gets its device", path.is_block_device() and right(path), path)
    number = node(f"{backend(guest.domid, XVDA)}/physical-device")
    check("by its number", path.is_block_device() and number == hex_number(path), number)
    check("the guest reads what dom0 wrote", guest.says(f"domU: read {MARKER}"), guest.console())
    check("and writes", guest.says("domU: wrote"), guest.console())
    check("it powers itself off, its backend goes", guest.gone())
    check("what it wrote is on the disk", answer(disk) == ANSWER, answer(disk))


def _at_once(check: Verdicts, alice: Neighbour, bob: Neighbour, target: str, script: str) -> None:
    """Both ask at once and one gets it; what is done at once for the other one's sake leaves it alone."""
    seen = {guest.name: guest.console().count(f"xvdb {MARKER}") for guest in (alice, bob)}
    attach = f"{script}format=raw,vdev=xvdb,access=w,target={target}"
    both = f"for g in alice bob; do (xl block-attach $g {attach} || xl block-detach $g xvdb) 2>&1 & done; wait"
    output = run("sh", "-c", both)[1]
    have = [guest for guest in (alice, bob) if node(f"{backend(guest.domid, XVDB)}/hotplug-status") == "connected"]
    check("one of two that ask at once gets it", len(have) == 1, output)
    for guest in have:
        reads = wait(lambda guest=guest: guest.console().count(f"xvdb {MARKER}") > seen[guest.name], 60)  # type: ignore[misc]
        check("and reads it", reads, guest.console()[-300:])
        _still(check, guest, _lun())
    for guest in (alice, bob):
        guest.detach()


def _still(check: Verdicts, guest: Neighbour, disk: Path) -> None:
    """See that a guest has its xvdb still: it reads what dom0 writes there now."""
    for word in ("written-a-moment", MARKER):
        with disk.open("r+b", buffering=0) as writer:
            writer.write(word.encode())
            run("sync", "-d", str(disk))
        found = wait(lambda word=word: guest.console().rstrip().endswith(f"xvdb {word}"), 60)  # type: ignore[misc]
        check(f"{guest.name} has it still, and reads {word}", found, guest.console()[-300:])


def _lun() -> Path:
    """The disk of the target, as udev names it."""
    return Path(f"/dev/disk/by-path/ip-{PORTAL}:3260-iscsi-{_IQN}-lun-0").resolve()


def _logged_out(check: Verdicts) -> None:
    gone = wait(lambda: run("iscsiadm", "-m", "session")[0] == 21, 10)  # ISCSI_ERR_NO_OBJS_FOUND
    check("no session is left", gone, run("iscsiadm", "-m", "session")[1])


def _role() -> str:
    """The resource's role here."""
    return run("drbdadm", "role", "rig")[1].partition("/")[0]
