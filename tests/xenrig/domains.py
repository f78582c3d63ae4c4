"""Cases: which domain is who. A VM that migrates, a guest whose disk is qemu's, guests of a driver domain."""

import base64
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .harness import (
    LIBRARY,
    MARKER,
    READ_AND_ANSWER,
    SCRIPTS,
    XVDA,
    XVDB,
    Guest,
    Verdicts,
    answer,
    backend,
    held_after_add,
    image,
    loop_device,
    neighbours,
    node,
    nothing_left,
    run,
    traced_script,
    wait,
)

# QEMU's SVM takes an intercepted rdtscp for rdtsc, and Xen then kills the guest.
SVM = ['tsc_mode = "native"']
PVH = ['type = "pvh"', *SVM, "memory = 192"]
TICKS = "i=0; while :; do i=$((i+1)); printf tick%012d $i | dd of=/dev/xvda bs=512 seek=8 conv=fsync 2>/dev/null"


def migration(check: Verdicts) -> None:
    """xl migrate to the same host (PVH): the VM's new domid gets its disk, no other guest does, during it or after."""
    _, bob = neighbours()
    file = image("/tmp/disk.img")
    with traced_script() as (script, log):
        disk = f"format=raw,vdev=xvda,access=w,script={script},target={file}"
        guest = Guest("mover", [disk], f"{TICKS} || echo domU: write error; sleep 0.3; done", PVH)
        status, output = guest.create()
        check("xl create", status == 0, output)
        check("the guest writes", wait(lambda: answer(file).startswith("tick"), 60))
        old = guest.domid
        bob.may_not_have(check, file, rf"guest {old} \(mover\)")
        with held_after_add() as held:
            # With -s '' xl runs the "host" as the command that receives.
            command = ["xl", "migrate", "-s", "", guest.name, "xl migrate-receive"]
            sending = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            added = wait(held.exists, 60)
            check("the new domid's add ends well, while the old one has the disk", added, log.read_text())
            check("both have it", len(_published(file)) == 2, _published(file))
            bob.may_not_have(check, file, r"guest \d+ \(mover")
        output = sending.communicate(timeout=100)[0].decode(errors="replace")
        check("xl migrate", sending.returncode == 0, output)
        guest.learn_domid()
        before = answer(file)
        check("the guest writes on", wait(lambda: answer(file) > before, 60), answer(file))
        check("without an error", "write error" not in guest.console(), guest.console())
        gone = wait(lambda: node(backend(old, XVDA)) is None)
        check("the old domid's disk is given back", gone and _published(file) == [guest.domid], _published(file))
        bob.may_not_have(check, file, rf"guest {guest.domid} \(mover\)")
        guest.destroy()
        bob.may_have(check, file)
        expected = [f"add {old}", f"add {guest.domid}", f"remove {old}", f"remove {guest.domid}"]
        calls = log.read_text().splitlines()
        check("add, add, remove, remove", calls == [f"{call} {XVDA}" for call in expected], calls)
    nothing_left(check)


def qemu_disk(check: Verdicts) -> None:
    """qdisk, which calls no script: a vbd of the same qcow2 file, or of what a raw disk lies on, is refused."""
    _, bob = neighbours()
    raw = image("/tmp/raw.img")
    file = Path("/tmp/image.qcow2")
    status, output = run("qemu-img", "convert", "-O", "qcow2", str(raw), str(file))
    check("a qcow2 image", status == 0, output)
    alias = Path("/tmp/another-name.qcow2")
    alias.unlink(missing_ok=True)
    alias.hardlink_to(file)
    guest = Guest("qemu", [f"format=qcow2,vdev=xvda,access=rw,target={file}"], f"{READ_AND_ANSWER}; sleep 1000")
    status, output = guest.create()
    check("xl create", status == 0, output)
    check("the guest reads and writes", guest.says(f"read {MARKER}") and guest.says("domU: wrote"), guest.console())
    for path in (file, alias):
        bob.may_not_have(check, path, rf"guest {guest.domid} \(qemu\)", "xvda")
    bob.may_not_have(check, file, rf"guest {guest.domid} \(qemu\)", access="r")
    bob.may_have(check, raw)
    guest.destroy()
    alias.unlink()
    bob.may_have(check, file)
    with loop_device(raw) as device:
        look = f"{READ_AND_ANSWER}; sleep 1000"
        guest = Guest("qemu", [f"backendtype=qdisk,format=raw,vdev=xvda,access=rw,target={device}"], look)
        status, output = guest.create()
        check("xl create with a raw disk by qdisk", status == 0 and guest.says("domU: wrote"), guest.console())
        for path in (device, raw):
            bob.may_not_have(check, path, rf"guest {guest.domid} \(qemu\)")
        guest.destroy()
        nothing_left(check, {str(device)})


def driver_domain(check: Verdicts) -> None:
    """A driver domain (xl devd): it may not see who its guests are, and still gives a disk to one of them only."""
    alice, bob = neighbours()
    disk = image("/tmp/served.img")
    with _driver(disk) as driver:
        check("the driver domain and its xl devd are up", driver.says("driver: xl devd runs", 200), driver.console())
        bob.may_not_have(check, disk, rf"guest {driver.domid} \(driver\)")
        status, output = driver.does(
            f"printf {MARKER} >/tmp/own.img; truncate -s 16M /tmp/own.img; ln /tmp/own.img /tmp/alias.img"
        )
        check("it makes an image of its own", status == 0, output)
        status, output = driver.does(f"xenstore-read /local/domain/{alice.domid}/vm")
        check("it cannot read whose guest asks", status != 0, output)
        for target, another_name in (("/dev/xvdc", "/dev/xvdc"), ("/tmp/own.img", "/tmp/alias.img")):
            seen = alice.console().count(f"xvdb {MARKER}")
            check(f"alice gets its {target}", driver.serves(alice, target) == "connected", driver.said(alice))
            reads = wait(lambda seen=seen: alice.console().count(f"xvdb {MARKER}") > seen, 60)  # type: ignore[misc]
            check("alice reads it", reads, alice.console()[-300:])
            check(f"bob does not get {another_name}", driver.serves(bob, another_name) == "busy", driver.said(bob))
            print(f"     the driver domain says: {driver.said(bob)}")
            check("bob is told why", f"guest {alice.domid}" in driver.said(bob), driver.said(bob))
            driver.takes_back(bob)
            check(
                f"alice gets {another_name} as another disk as well",
                driver.serves(alice, another_name, "xvdc") == "connected",
            )
            driver.takes_back(alice, "xvdc")
            driver.takes_back(alice)
            check(f"bob gets {target} after her", driver.serves(bob, target) == "connected", driver.said(bob))
            driver.takes_back(bob)
        # alice is there still, so nothing of the above could have been left by a domain that is gone.
        look = "find /run/vbdkit /run/xen-hotplug -type f; losetup -a; xenstore-ls -f backend | grep params"
        left = driver.does(f"{{ {look}; }} 2>/dev/null")[1]
        check("nothing is left in the driver domain", not left, left)
    nothing_left(check)


class _DriverDomain(Guest):
    """A guest with dom0's root file system and script, whose xl devd serves disks; /tmp/served.img is its xvdc."""

    def __init__(self, served: Path):
        files = Path("/tmp/driver.tar")
        what = [str(path) for path in (SCRIPTS, LIBRARY) if path.exists()]
        status, output = run("tar", "-C", "/", "-cf", str(files), *what)
        if status:
            raise RuntimeError(output)
        disks = ["phy:/dev/vdd,xvda,r", f"file:{files},xvdb,r", f"file:{served},xvdc,w"]
        boot = ['kernel = "/rigguest/vmlinux"', 'ramdisk = "/rigguest/driver-initrd"']
        boot += ['extra = "console=hvc0 quiet mitigations=off"', "memory = 384", "driver_domain = 1"]
        super().__init__("driver", disks, lines=boot, kernel=False)
        self.commands = 0

    def does(self, command: str) -> tuple[int, str]:
        """Run a shell command there: its status and the end of its output (guest/driver-init)."""
        self.commands += 1
        data = f"/local/domain/{self.domid}/data"
        encoded = base64.b64encode(command.encode()).decode()
        run("xenstore-write", f"{data}/command", f"{self.commands} {encoded}")
        if not wait(lambda: (node(f"{data}/done") or "").startswith(f"{self.commands} ")):
            return 124, "the driver domain does not answer"
        output = (node(f"{data}/output") or "").encode().decode("unicode_escape")
        return int((node(f"{data}/done") or "").split()[1]), output.strip()

    def serves(self, guest: Guest, target: str, vdev: str = "xvdb") -> str:
        """Give the guest one of its disks; hotplug-status once its script has spoken. xl itself does not wait."""
        disk = f"backend={self.name},format=raw,vdev={vdev},access=rw,target={target}"
        status, output = run("xl", "block-attach", guest.name, disk)
        if status:
            return output
        path = self._backend(guest, vdev)
        wait(lambda: node(f"{path}/hotplug-status") is not None, 60)
        said = node(f"{path}/hotplug-status") or "no hotplug-status"
        if said == "connected":
            wait(lambda: node(f"{path}/state") == "4")
        return said

    def said(self, guest: Guest) -> str:
        """hotplug-error of what it gave the guest last."""
        return node(f"{self._backend(guest, 'xvdb')}/hotplug-error") or ""

    def takes_back(self, guest: Guest, vdev: str = "xvdb") -> None:
        run("xl", "block-detach", guest.name, vdev)
        wait(lambda: node(f"{self._backend(guest, vdev)}/params") is None)

    def _backend(self, guest: Guest, vdev: str) -> str:
        return f"/local/domain/{self.domid}/backend/vbd/{guest.domid}/{_DEVIDS[vdev]}"


_DEVIDS = {"xvdb": XVDB, "xvdc": XVDB + 16}


@contextmanager
def _driver(served: Path) -> Iterator[_DriverDomain]:
    driver = _DriverDomain(served)
    status, output = driver.create()
    if status:
        raise RuntimeError(output)
    try:
        yield driver
    finally:
        driver.destroy()


def _published(file: Path) -> list[int]:
    """The domids to which the file has been given, as dom0's store says."""
    found = []
    for line in run("xenstore-ls", "-f", "/local/domain/0/backend/vbd")[1].splitlines():
        path, _, value = line.partition(" = ")
        if path.endswith("/params") and value == f'"{file}"':
            path = path.removesuffix("/params")
            if node(f"{path}/physical-device"):
                found.append(int(path.split("/")[-2]))
    return found
