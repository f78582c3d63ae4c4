"""Scripts of other people, unchanged, with our library: attached, refused to a second guest, taken back.

Xen's and LINBIT's come from Debian's packages at test time. What they drive (iSCSI, DRBD, blktap, NBD) are programs of
ours here, which have loop devices for disks.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import Disk, Host, Result, bound_loops
from tests.images import make_image
from tests.shell.conftest import WAIT, Scripts
from tests.stores import realstore
from tests.waiting import until
from tests.xenrig import script_cases
from tests.xenrig.cases import CASES

HERE = Path(__file__).parent / "wild"
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def wild(host: Host) -> Iterator[Scripts]:
    """A folder with our library and Xen's commands; loop devices that the scripts leave go at the end."""
    scripts = Scripts(host)
    path = scripts.folder / "hotplugpath.sh"
    path.write_text(path.read_text() + f"sbindir={realstore('bin')}\n")
    yield scripts
    host.close()


def take(wild: Scripts, name: str) -> None:
    """Let the host's disks be served by a script of this name, from wherever it comes."""
    source = HERE / name
    if name == "block-drbd":
        source = Path(realstore("package", "drbd-utils")) / "etc/xen/scripts" / name
    elif not source.exists():
        stock = wild.host.directory / "stock"
        if not stock.exists():
            realstore("scripts", stock)
        source = stock / name
    shutil.copy(source, wild.folder / name)
    wild.host.script = wild.folder / name


def add(disk: Disk) -> Result:
    """Add a disk, again where a script that asks for a free loop device finds another program faster at binding it."""
    end = time.monotonic() + WAIT
    while (done := disk.add()).error.endswith(": Device or resource busy)") and time.monotonic() < end:
        pass
    return done


def attached(disk: Disk) -> str:
    """Add a disk, and return the device that its guest has."""
    done = add(disk)
    assert (done.status, done.outcome, done.error) == (0, b"connected", ""), done.output
    device = done.nodes["physical-device-path"].decode()
    number = os.stat(device).st_rdev
    assert done.nodes["physical-device"] == b"%x:%x" % (os.major(number), os.minor(number))
    return device


def refused(disk: Disk, sentence: str = "", outcome: bytes = b"busy") -> None:
    done = add(disk)
    assert (done.status != 0, done.outcome) == (True, outcome), done.output
    assert sentence in done.error
    assert "physical-device" not in done.nodes


def taken_back(disk: Disk) -> None:
    disk.write(state=b"6", online=b"0")
    done = disk.remove()
    assert done.status == 0, done.output
    assert "physical-device" not in done.nodes


def refused_to_block(wild: Scripts, device: str) -> None:
    """The block script, which knows the disk by another way, sees who has it."""
    own, wild.host.script = wild.host.script, wild.host.directory / "block"
    refused(wild.host.disk(31, device), "is in use by guest 5")
    wild.host.script = own


def test_xens_block_dummy(wild: Scripts, image: Path) -> None:
    take(wild, "block-dummy")
    first, second = wild.host.disk(5, f"dummy:{image}"), wild.host.disk(6, f"dummy:{image}")
    device = attached(first)
    assert first.nodes()["node"].decode() == device
    refused(second, "in use by guest 5 (guest5) as its disk xvda")
    taken_back(second)
    refused_to_block(wild, str(image))
    taken_back(first)
    until(lambda: bound_loops(wild.host.directory) == [], "the release of its loop device")
    assert attached(wild.host.disk(6, f"dummy:{image}"))


def test_xens_block_dummy_with_two_readers(wild: Scripts, image: Path) -> None:
    take(wild, "block-dummy")
    for domid in (5, 6):
        attached(wild.host.disk(domid, f"dummy:{image}", mode="r"))
    refused(wild.host.disk(7, f"dummy:{image}"), "in use by guest 5")


def test_xens_block_dummy_when_losetup_knows_no_free_device(wild: Scripts, image: Path) -> None:
    """Then it calls a function that Xen has in another script only."""
    take(wild, "block-dummy")
    wild.program("losetup", '#!/bin/sh\n[ "$1" != -f ] || exit 1\nexec /sbin/losetup "$@"\n')
    disk = wild.host.disk(5, f"dummy:{image}")
    attached(disk)
    taken_back(disk)


def test_xens_block_dummy_without_its_file(wild: Scripts, tmp_path: Path) -> None:
    take(wild, "block-dummy")
    refused(wild.host.disk(5, f"dummy:{tmp_path}/none"), f"{tmp_path}/none does not exist.", b"error")


ISCSIADM = r"""#!/bin/sh
# Targets are images in $STORE; a session is a loop device with a link where udev makes one.
store=STORE
link() { echo "/dev/disk/by-path/ip-10.0.0.1:3260-iscsi-$1-lun-0"; }
case "$*" in
  "-m session") cat "$store"/*.session 2>/dev/null || { echo "iscsiadm: No active sessions." >&2; exit 21; } ;;
  "-m discovery -t st -p 10.0.0.1") for i in "$store"/iqn*.img; do i=${i##*/}; echo "10.0.0.1:3260,1 ${i%.img}"; done ;;
  "-m node --targetname "*" -p 10.0.0.1 --login")
    mkdir -p /dev/disk/by-path
    ln -s "$(/sbin/losetup -f --show "$store/$4.img")" "$(link "$4")"
    echo "tcp: [1] 10.0.0.1:3260,1 $4" >"$store/$4.session" ;;
  "-m node --targetname "*" -p 10.0.0.1 --logout")
    rm "$store/$4.session" && /sbin/losetup -d "$(readlink -f "$(link "$4")")" && rm "$(link "$4")" ;;
  *) echo "iscsiadm: unknown: $*" >&2; exit 7 ;;
esac
"""


@pytest.fixture
def iqn(wild: Scripts) -> Iterator[str]:
    """A target that no other run of this test has."""
    name = f"iqn.2026-11.test:{os.getpid()}"
    make_image(wild.host.directory / f"{name}.img")
    wild.program("iscsiadm", ISCSIADM.replace("STORE", str(wild.host.directory)))
    take(wild, "block-iscsi")
    yield name
    for left in Path("/dev/disk/by-path").glob(f"*{name}*"):
        left.unlink()


def test_xens_block_iscsi(wild: Scripts, iqn: str) -> None:
    params = f"iqn={iqn},portal=10.0.0.1"
    first, second = wild.host.disk(5, params), wild.host.disk(6, params)
    device = attached(first)
    refused(second, "Device already opened", b"error")
    taken_back(second)
    assert os.path.exists(device), "its remove logs out of the target: not under the guest that has it"
    refused_to_block(wild, device)
    refused_to_block(wild, str(wild.host.directory / f"{iqn}.img"))
    taken_back(first)
    until(lambda: bound_loops(wild.host.directory) == [], "the release of its loop device")
    second = wild.host.disk(6, params)
    attached(second)
    taken_back(second)


def test_xens_block_iscsi_whose_device_another_guest_has_by_another_name(wild: Scripts, iqn: str) -> None:
    """What its own look at the sessions cannot see, and Xen's library never looked for."""
    iscsi, wild.host.script = wild.host.script, wild.host.directory / "block"
    image = wild.host.directory / f"{iqn}.img"
    other = wild.host.disk(7, image)
    assert other.add().status == 0
    wild.host.script = iscsi
    disk = wild.host.disk(5, f"iqn={iqn},portal=10.0.0.1")
    refused(disk, "is in use by guest 7 (guest7) as its disk xvda")
    taken_back(disk)


def test_xens_block_iscsi_with_an_unknown_target(wild: Scripts, iqn: str) -> None:
    refused(wild.host.disk(5, "iqn=iqn.none,portal=10.0.0.1"), "No matching target iqn found", b"error")


TAP_CTL = r"""#!/bin/sh
# A tapdisk is a loop device, and a process that holds what it inherited, as a daemon does.
store=STORE
case "$1" in
  check) ;;
  create)
    dev=$(/sbin/losetup -f --show "${3#*:}")
    sleep 600 >/dev/null 2>&1 &
    echo "$dev" >"$store/tap.$!"; echo "$dev" ;;
  list)
    for t in "$store"/tap.*; do
      [ "$(/sbin/losetup -nO BACK-FILE "$(cat "$t")")" != "$5" ] || echo "pid=${t##*.} minor=0 state=0 args=$3:$5"
    done ;;
  destroy) kill "$3"; /sbin/losetup -d "$(cat "$store/tap.$3")"; rm "$store/tap.$3" ;;
esac
"""


def test_xens_block_tap(wild: Scripts, image: Path) -> None:
    take(wild, "block-tap")
    wild.program("modprobe", "#!/bin/sh\n")
    wild.program("tap-ctl", TAP_CTL.replace("STORE", str(wild.host.directory)))
    first, second = wild.host.disk(5, f"aio:{image}"), wild.host.disk(6, f"aio:{image}")
    try:
        attached(first)
        refused(second, "in use by guest 5")
        [daemon, *_] = [int(path.suffix[1:]) for path in wild.host.directory.glob("tap.*")]
        inherited = [os.readlink(entry) for entry in Path(f"/proc/{daemon}/fd").iterdir()]
        assert [name for name in inherited if str(wild.host.lock_dir) in name or str(wild.host.run_dir) in name] == []
        taken_back(first)
    finally:
        for path in wild.host.directory.glob("tap.*"):
            subprocess.run(["kill", path.suffix[1:]], check=False)


def test_xens_block_nbd(wild: Scripts, devices: list[str]) -> None:
    """No toolstack passes what it wants (server and port), so it is called by hand here."""
    node = Path(f"/dev/nbd-test-{os.getpid()}")
    wild.program("nbd-client", f'#!/bin/sh\n[ "$1" = -d ] || [ "$1 $2 $3" = "server 10809 {node}" ]\n')
    take(wild, "block-nbd")
    node.symlink_to(devices[0])
    try:
        for disk, status, outcome in ((wild.host.disk(5, "x"), 0, b"connected"), (wild.host.disk(6, "x"), 1, b"busy")):
            env = wild.host.environment() | {"XENBUS_PATH": disk.path.decode()}
            done = subprocess.run([wild.host.script, "add", "server", "10809"], env=env)
            assert (done.returncode, disk.nodes()["hotplug-status"]) == (status, outcome)
        refused(wild.host.disk(7, "x"), "block-nbd failed (exit status 1)", b"error")
        assert disk.remove().status == 0
    finally:
        node.unlink()


DRBDADM = r"""#!/bin/sh
# A resource's role is a word in a file.
role=STORE/$2.role
case "$1" in
  role) echo "$(cat "$role")/Secondary" ;;
  sh-dev) echo DEVICE ;;
  primary) echo Primary >"$role" ;;
  secondary) echo Secondary >"$role" ;;
esac
"""


@pytest.mark.parametrize("params", ["r0", "drbd:r0"])
def test_linbits_block_drbd(wild: Scripts, devices: list[str], params: str) -> None:
    take(wild, "block-drbd")
    role = wild.host.directory / "r0.role"
    role.write_text("Secondary")
    wild.program("drbdadm", DRBDADM.replace("STORE", str(wild.host.directory)).replace("DEVICE", devices[0]))
    first, second = wild.host.disk(5, params), wild.host.disk(6, params)
    assert attached(first) == devices[0]
    assert role.read_text() == "Primary\n"
    refused(second, f"Device {devices[0]} is mounted")
    taken_back(second)
    assert role.read_text() == "Primary\n"
    refused_to_block(wild, devices[0])
    assert list(wild.host.lock_dir.iterdir()) == []
    taken_back(first)
    assert role.read_text() == "Secondary\n"


def test_linbits_block_drbd_whose_device_qemu_has(wild: Scripts, devices: list[str]) -> None:
    """Its own copy of the sharing check knows its own kind of backend only; write_dev knows all."""
    take(wild, "block-drbd")
    (wild.host.directory / "r0.role").write_text("Secondary")
    wild.program("drbdadm", DRBDADM.replace("STORE", str(wild.host.directory)).replace("DEVICE", devices[0]))
    wild.host.domain(7)
    wild.host.vbd(7, f"aio:{devices[0]}", kind="qdisk", state="4")
    refused(wild.host.disk(5, "r0"), "in use by guest 7 (guest7)")


def test_like_suses_block_dmmd(wild: Scripts, devices: list[str]) -> None:
    take(wild, "block-dmmd")
    log = wild.host.directory / "layers"
    wild.program("layer", f'#!/bin/sh\n[ "$3" != /dev/bad ] || exit 5\necho "$*" >>{log}\n')
    params = f"md;/dev/md7;lvm;{devices[0]}"
    first, second = wild.host.disk(5, params), wild.host.disk(6, f"dmmd:{params}")
    assert attached(first) == devices[0]
    refused(second, "in use by guest 5")
    taken_back(first)
    up, down = ["on md /dev/md7", f"on lvm {devices[0]}"], [f"off lvm {devices[0]}", "off md /dev/md7"]
    assert log.read_text().splitlines() == [*up, *up, *down]
    log.unlink()
    refused(wild.host.disk(7, "md;/dev/md7;lvm;/dev/bad"), "cannot activate lvm /dev/bad", b"error")
    assert log.read_text().splitlines() == ["on md /dev/md7", "off md /dev/md7"]
    assert list(wild.host.lock_dir.iterdir()) == []


def test_like_cephs_block_rbd(wild: Scripts, devices: list[str]) -> None:
    take(wild, "block-rbd")
    unmap = '[ "$2" = pool/image ] || { echo "rbd: no map" >&2; exit 2; }'
    wild.program("rbd", f'#!/bin/sh\ncase "$1" in device) echo {devices[0]};; unmap) {unmap};; esac\n')
    first, second = wild.host.disk(5, "pool:image"), wild.host.disk(6, "pool:image")
    assert attached(first) == devices[0]
    refused(second, "in use by guest 5")
    taken_back(first)
    attached(second)
    second.write(params=b"pool:other")
    assert second.remove().error == "rbd unmap pool/other failed (rbd: no map)"


def test_like_xapis_block(wild: Scripts, devices: list[str], tmp_path: Path) -> None:
    take(wild, "block-xapi")
    link = tmp_path / "a link"
    link.symlink_to(devices[0])
    first, second = wild.host.disk(5, link), wild.host.disk(6, devices[0])
    assert attached(first) == devices[0]
    with wild.host.connect() as store:
        assert store.read(b"/xapi/a-uuid/hotplug/5/vbd/51712/hotplug") == b"online"
        refused(second, "in use by guest 5")
        assert not store.exists(b"/xapi/a-uuid/hotplug/6")
        taken_back(first)
        store.remove(b"/xapi")


def test_the_chain_of_xens_block_to_a_helper(wild: Scripts, devices: list[str]) -> None:
    """A disk of a type that it does not know goes to block-TYPE, and what that one says stays said."""
    wild.write(
        'p=$(xenstore_read "$XENBUS_PATH/params"); [ "$command" = remove ] || write_dev "/dev/$p"', "block-mystore"
    )
    take(wild, "block")
    name = devices[0].removeprefix("/dev/")
    # As Xen's script finds it neither file nor device in its own folder.
    disks = [wild.host.vbd(wild.host.domain(domid), name, type=b"mystore") for domid in (5, 6)]
    assert attached(disks[0]) == devices[0]
    refused(disks[1], "in use by guest 5 (guest5)")
    assert disks[1].remove().status == 0


class TestOurBlocksChain:
    """vbdkit's block in the place of Xen's: block-TYPE has the disks of that type, at remove too."""

    BODY = """
    p=$(xenstore_read "$XENBUS_PATH/params")
    if [ "$command" = add ]; then write_dev "/dev/${p#store:}"; else echo "$p" >>REMOVED; fi
    grep SigIgn /proc/self/status >IGNORED
    """

    @pytest.fixture
    def removed(self, wild: Scripts) -> Path:
        """Where block-mystore notes what it took back; from now on the host's disks are block's."""
        folder = wild.host.directory
        wild.write(
            self.BODY.replace("REMOVED", f"'{folder}/removed'").replace("IGNORED", f"'{folder}/ignored'"),
            "block-mystore",
        )
        wild.use((folder / "block").read_text(), "block")
        return folder / "removed"

    def disk(self, wild: Scripts, domid: int, params: str, kind: bytes = b"mystore") -> Disk:
        return wild.host.vbd(wild.host.domain(domid), params, type=kind)

    def test_to_a_helper_and_back(self, wild: Scripts, devices: list[str], removed: Path) -> None:
        params = f"store:{devices[0].removeprefix('/dev/')}"
        first, second = self.disk(wild, 5, params), self.disk(wild, 6, params)
        assert attached(first) == devices[0]
        refused(second, "in use by guest 5 (guest5)")
        taken_back(second)
        assert not removed.exists(), "guest 5 has it"
        taken_back(first)
        assert removed.read_text() == f"{params}\n"
        assert wild.records() == []
        attached(second := self.disk(wild, 6, params))
        taken_back(second)
        ignored = int((wild.host.directory / "ignored").read_text().split()[1], 16)
        assert ignored & 1 << (signal.SIGPIPE - 1) == 0

    def test_a_type_without_a_helper(self, wild: Scripts, removed: Path) -> None:
        for kind in (b"other", b"../scripts/block-mystore", b"phy"):
            refused(self.disk(wild, 5, "store:x", kind), "/dev/store:x does not exist", b"error")
        assert self.disk(wild, 5, "store:x", b"other").remove().status == 0
        assert not removed.exists()

    def test_what_block_can_open_it_has_itself(self, wild: Scripts, image: Path, removed: Path) -> None:
        first, second = self.disk(wild, 5, str(image)), self.disk(wild, 6, str(image))
        assert attached(first).startswith("/dev/loop")
        refused(second, "in use by guest 5")
        for disk in (second, first, first):
            taken_back(disk)
        assert not removed.exists()

    def test_a_helper_that_cannot_be_started_is_told(self, wild: Scripts, removed: Path) -> None:
        (wild.folder / "block-mystore").write_text("no program")
        disk = self.disk(wild, 5, "store:x")
        refused(disk, "Exec format error", b"error")
        assert disk.remove().status == 1


def test_xens_block_itself(wild: Scripts, image: Path) -> None:
    """The stock script, with our library in the place of its own."""
    take(wild, "block")
    first, second = wild.host.disk(5, image), wild.host.disk(6, image)
    attached(first)
    refused(second)
    taken_back(second)
    taken_back(first)
    until(lambda: bound_loops(wild.host.directory) == [], "the release of its loop device")


def test_readmes_table_names_what_there_is() -> None:
    section = README.read_text().partition("## Scripts of other people\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    tests = [re.findall(r"`(test_\w+)`", row[2]) for row in rows]
    assert all(tests)
    assert {name for row in tests for name in row} <= set(re.findall(r"def (test_\w+)\(", Path(__file__).read_text()))
    cases = {name for row in rows for name in re.findall(r"case `([\w-]+)`", row[3])}
    assert cases == {name for name, case in CASES.items() if case.__module__ == script_cases.__name__}
