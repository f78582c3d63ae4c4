"""block-lvm, on a model of LVM's programs whose volumes are loop devices (lvm_model.py; the rig has the real ones)."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.datapaths.conftest import LvmHost, read
from tests.host import Disk, Result
from tests.images import losetup
from tests.waiting import until
from tests.xenrig.lvm_facts import facts
from vbdkit.datapaths import load
from vbdkit.engine.leftovers import COLLECTED, Collection

NOTHING: tuple[list[str], list[str]] = ([], [])
WEB = "vg--0-web"


def device_of(done: Result) -> str:
    """The device that was published, after seeing that the number is that device's."""
    assert (done.status, done.outcome) == (0, b"connected"), done.output
    device = done.nodes["physical-device-path"].decode()
    number = os.stat(device).st_rdev
    assert done.nodes["physical-device"] == b"%x:%x" % (os.major(number), os.minor(number))
    return device


def quiet(done: Result) -> None:
    """The script succeeded without a word, but for what it had to wait for on a busy machine."""
    assert done.status == 0
    assert [line for line in done.output.splitlines() if ": waiting for " not in line] == []


def refused(done: Result, *words: str) -> None:
    """The script refused with one sentence that has these words; the guest has nothing."""
    assert done.status == 1
    assert [word for word in words if word not in done.error] == [], done.error
    assert "\n" not in done.error
    assert not {"physical-device", "physical-device-path"} & set(done.nodes)


class TestVolume:
    def test_it_is_active_while_a_guest_has_it(self, lvm: LvmHost) -> None:
        disk = lvm.disk("vg-0/web")
        device = device_of(disk.add())
        assert device.endswith("/" + WEB)
        assert read(device, 7) == b"the web"
        assert lvm.active() == [WEB]
        assert (disk.remove().status, disk.remove().status) == (0, 0)
        assert lvm.left() == NOTHING

    def test_what_was_active_before_stays_so(self, lvm: LvmHost) -> None:
        with lvm.model as model:
            model.activate("vg-0", "web")
        disk = lvm.disk("vg-0/web")
        device_of(disk.add())
        assert disk.remove().status == 0
        assert lvm.left() == ([WEB], [])

    @pytest.mark.parametrize(
        ("target", "name"),
        [
            ("/dev/vg-0/web", WEB),
            ("/dev/mapper/vg--0-web", WEB),
            ("vg-0/my-data", "vg--0-my--data"),
            ("/dev/mapper/vg--0-my--data", "vg--0-my--data"),
        ],
    )
    def test_however_it_is_written(self, lvm: LvmHost, target: str, name: str) -> None:
        assert device_of(lvm.disk(target).add()).endswith("/" + name)

    def test_without_udev_the_node_is_made(self, lvm: LvmHost) -> None:
        (lvm.model.folder / "no-nodes").touch()
        for mode in "wr":
            disk = lvm.disk("vg-0/web", mode=mode)
            assert read(device_of(disk.add()), 7) == b"the web"
            assert disk.remove().status == 0
        assert lvm.left() == NOTHING

    def test_a_node_of_that_name_that_is_another_device_is_not_published(self, lvm: LvmHost, tmp_path: Path) -> None:
        other = losetup("--find", "--show", str(tmp_path / "lvm/state"))
        (lvm.model.folder / "no-nodes").touch()
        os.mknod(lvm.model.mapper / WEB, 0o060600, os.stat(other).st_rdev)
        assert read(device_of(lvm.disk("vg-0/web").add()), 7) == b"the web"

    def test_add_anew(self, lvm: LvmHost) -> None:
        """I5: the old one is taken back first, and what was inactive before the first is not taken for active."""
        disk = lvm.disk("vg-0/web")
        assert [disk.add().status for _ in range(3)] == [0, 0, 0]
        assert disk.remove().status == 0
        assert lvm.left() == NOTHING


class TestReadOnly:
    def test_o8_the_device_cannot_be_written(self, lvm: LvmHost) -> None:
        disk = lvm.disk("vg-0/web", mode="r")
        device = device_of(disk.add())
        assert read(device, 7) == b"the web"
        loop = Path(f"/sys/dev/block/{os.major(os.stat(device).st_rdev)}:{os.minor(os.stat(device).st_rdev)}")
        assert (loop / "ro").read_text() == "1\n"
        with pytest.raises(PermissionError):
            Path(device).write_bytes(b"x")
        assert disk.remove().status == 0
        assert lvm.left() == NOTHING

    def test_an_active_volume_stays_writable_for_dom0(self, lvm: LvmHost) -> None:
        with lvm.model as model:
            model.activate("vg-0", "web")
        disk = lvm.disk("vg-0/web", mode="r")
        device = device_of(disk.add())
        with pytest.raises(PermissionError):
            Path(device).write_bytes(b"x")
        (lvm.model.mapper / WEB).write_bytes(b"x")
        assert disk.remove().status == 0
        assert lvm.left() == ([WEB], [])

    def test_a_read_only_volume_needs_no_view(self, lvm: LvmHost) -> None:
        with lvm.model as model:
            model.get("vg-0/web")["permission"] = "r"
        disk = lvm.disk("vg-0/web", mode="r")
        assert device_of(disk.add()).endswith("/" + WEB)
        assert disk.remove().status == 0
        refused(lvm.disk("vg-0/web").add(), "vg-0/web is read-only", "lvchange --permission rw vg-0/web")
        assert lvm.left() == NOTHING

    @pytest.mark.parametrize("first", [5, 6])
    def test_readers_share_and_the_last_one_takes_back(self, lvm: LvmHost, first: int) -> None:
        disks = {domid: lvm.disk("vg-0/web", domid, "r") for domid in (5, 6)}
        assert [disks[domid].add().status for domid in (5, 6)] == [0, 0]
        assert disks.pop(first).remove().status == 0
        assert WEB in lvm.active()
        ((_, last),) = disks.items()
        assert read(last.nodes()["physical-device-path"], 7) == b"the web"
        assert last.remove().status == 0
        assert lvm.left() == NOTHING


class TestSharing:
    @pytest.mark.parametrize(
        ("modes", "other"), [("ww", "vg-0/web"), ("wr", "/dev/vg-0/web"), ("rw", "/dev/mapper/vg--0-web")]
    )
    def test_o1_a_second_guest_is_refused(self, lvm: LvmHost, other: str, modes: str) -> None:
        first = lvm.disk("vg-0/web", 5, modes[0])
        device_of(first.add())
        second = lvm.disk(other, 6, modes[1])
        before = lvm.left()
        refused(second.add(), "is in use by guest 5 (guest5) as its disk xvda")
        assert lvm.left() == before
        assert (second.remove().status, first.remove().status) == (0, 0)
        assert lvm.left() == NOTHING

    def test_o1_a_renamed_one_too(self, lvm: LvmHost) -> None:
        first = lvm.disk("vg-0/web")
        device_of(first.add())
        with lvm.model as model:
            model.rename("vg-0/web", "www")
        refused(lvm.disk("vg-0/www", 6).add(), "is in use by guest 5 (guest5)")
        assert first.remove().status == 0
        assert lvm.left() == NOTHING

    def test_o1_against_block(self, lvm: LvmHost, tmp_path: Path) -> None:
        ours = lvm.host.script
        with lvm.model as model:
            model.activate("vg-0", "web")
        lvm.host.script = tmp_path / "block"
        block = lvm.disk(str(lvm.model.mapper / WEB), 6)
        assert block.add().status == 0
        lvm.host.script = ours
        refused(lvm.disk("vg-0/web").add(), "guest 6 (guest6)")
        assert block.remove().status == 0
        assert lvm.left() == ([WEB], [])

    def test_the_same_vm_may_and_the_last_one_takes_back(self, lvm: LvmHost) -> None:
        """Migration on one host: the new domain has it before the old one gives it back."""
        for domid in (5, 6):
            lvm.host.domain(domid, vm="/vm/one")
        old, new = (lvm.host.vbd(domid, "vg-0/web") for domid in (5, 6))
        assert (old.add().status, new.add().status) == (0, 0)
        assert old.remove().status == 0
        assert lvm.active() == [WEB]
        assert new.remove().status == 0
        assert lvm.left() == NOTHING

    def test_five_at_once_come_and_go(self, lvm: LvmHost) -> None:
        """Readers that come and go together: whoever is last, the volume is as it was before the first."""
        disks = [lvm.disk("vg-0/web", domid, "r") for domid in range(5, 10)]
        for command in ("add", "remove"):
            running = [disk.start(command) for disk in disks]
            said = [process.communicate(timeout=120)[0] for process in running]
            assert [process.returncode for process in running] == [0] * 5, said
        assert lvm.left() == NOTHING

    def test_a_reader_that_leaves_while_another_lets_the_volume_go(self, lvm: LvmHost) -> None:
        """Its view keeps the volume from going, and is gone by the time that anybody looks: the other tries again."""
        disks = [lvm.disk("vg-0/web", domid, "r") for domid in (5, 6)]
        for disk in disks:
            device_of(disk.add())
        slow, held_slow = held_at(lvm, disks[0], "remove", "before", "dmsetup-remove")
        quick, held_quick = held_at(lvm, disks[1], "remove", "after", "lvchange")
        held_slow.unlink()
        with_view = f"{disks[0].domid}-51712"
        until(lambda: not any(name.endswith(with_view) for name in lvm.active()), "the view goes")
        held_quick.unlink()
        for process in (quick, slow):
            said = process.communicate(timeout=60)[0]
            assert process.returncode == 0, said
        assert lvm.left() == NOTHING


class TestSnapshot:
    @pytest.mark.parametrize("target", ["vg-0/golden@", "vg-0/web@:4M", "vg-0/web@:33.3%", "vg-0/golden@:4m"])
    def test_a_throw_away_copy(self, lvm: LvmHost, target: str) -> None:
        before = lvm.volumes()
        volume = target.partition("@")[0]
        with lvm.model as model:
            original = model.data(volume)
        for _ in range(2):
            disk = lvm.disk(target)
            device = device_of(disk.add())
            assert device.endswith(f"vg--0-{volume[5:]}--vbd--5--51712")
            assert read(device, 64) == original
            Path(device).write_bytes(b"scratch")
            assert disk.remove().status == 0
            assert (lvm.volumes(), lvm.left()) == (before, NOTHING)
        with lvm.model as model:
            assert model.data(volume) == original

    def test_one_target_for_many_guests(self, lvm: LvmHost) -> None:
        disks = [lvm.disk("vg-0/web@:4M", domid) for domid in (5, 6, 7)]
        assert len({device_of(disk.add()) for disk in disks}) == 3
        assert WEB in lvm.active(), "a snapshot that is not thin is there with its origin"
        for disk in disks:
            assert WEB in lvm.active()
            assert disk.remove().status == 0
        assert lvm.left() == NOTHING

    def test_of_a_volume_that_a_guest_has(self, lvm: LvmHost) -> None:
        first, second = lvm.disk("vg-0/web"), lvm.disk("vg-0/web@:4M", 6)
        assert (first.add().status, second.add().status) == (0, 0)
        assert first.remove().status == 0
        assert read(second.nodes()["physical-device-path"], 7) == b"the web"
        assert second.remove().status == 0
        assert (lvm.left(), lvm.volumes()) == (NOTHING, ["golden", "my-data", "pool", "pool_tdata", "web"])

    def test_an_origin_that_was_active_stays_so(self, lvm: LvmHost) -> None:
        with lvm.model as model:
            model.activate("vg-0", "web")
        disk = lvm.disk("vg-0/web@:4M")
        assert (disk.add().status, disk.remove().status) == (0, 0)
        assert lvm.left() == ([WEB], [])

    def test_with_a_name(self, lvm: LvmHost) -> None:
        disk = lvm.disk("vg-0/golden@try-1")
        assert device_of(disk.add()).endswith("/vg--0-try--1")
        refused(lvm.disk("vg-0/golden@try-1", 6).add(), "vg-0/try-1 is there already", "made for vbd-5-51712")
        assert "try-1" in lvm.volumes(), "the refused one took the other's"
        assert disk.remove().status == 0
        assert "try-1" not in lvm.volumes()

    def test_a_volume_of_somebody_elses_is_never_removed(self, lvm: LvmHost) -> None:
        disk = lvm.disk("vg-0/golden@web")
        refused(disk.add(), "vg-0/web is there already; say another name behind the @", "lvremove vg-0/web")
        assert disk.remove().status == 0
        assert "web" in lvm.volumes()
        assert lvm.left() == NOTHING

    def test_o8_read_only(self, lvm: LvmHost) -> None:
        disk = lvm.disk("vg-0/golden@", mode="r")
        device = device_of(disk.add())
        assert read(device) == b"golden image"
        with pytest.raises(PermissionError):
            Path(device).write_bytes(b"x")
        assert disk.remove().status == 0
        assert lvm.left() == NOTHING

    def test_removed_or_renamed_by_the_administrator(self, lvm: LvmHost) -> None:
        for domid in (5, 6):
            assert lvm.disk("vg-0/golden@", domid).add().status == 0
        subprocess.run([lvm.model.folder / "bin/lvremove", "--yes", "vg-0/golden-vbd-5-51712"], check=True)
        with lvm.model as model:
            model.rename("vg-0/golden-vbd-6-51712", "mine-now")
            model.state["groups"]["vg-1"] = model.state["groups"].pop("vg-0")
        for domid in (5, 6):
            done = lvm.disk("vg-0/golden@", domid).remove()
            quiet(done)
        with lvm.model as model:
            assert sorted(model.state["groups"]["vg-1"]["volumes"]) == [
                "golden",
                "my-data",
                "pool",
                "pool_tdata",
                "web",
            ]
        assert lvm.left() == NOTHING

    def test_what_an_earlier_boot_left_makes_room(self, lvm: LvmHost) -> None:
        """Volumes outlive a boot, records do not, and domids begin anew."""
        disk = lvm.disk("vg-0/golden@")
        assert disk.add().status == 0
        boot(lvm)
        disk = lvm.disk("vg-0/golden@")
        device = device_of(disk.add())
        assert read(device) == b"golden image"
        assert disk.remove().status == 0
        assert "golden-vbd-5-51712" not in lvm.volumes()

    def test_cleanup_removes_what_earlier_boots_left_and_nothing_else(self, lvm: LvmHost) -> None:
        for target, domid in (("vg-0/golden@old", 5), ("vg-0/golden@elsewhere", 6)):
            assert lvm.disk(target, domid).add().status == 0
        boot(lvm)
        with lvm.model as model:
            model.get("vg-0/elsewhere")["tags"] = ["vbdkit:vbd-6-51712:another-host:0-0-0"]
        assert lvm.disk("vg-0/golden@now", 7).add().status == 0
        done = subprocess.run([lvm.host.script, "cleanup"], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "vg-0/old removed\n", "")
        assert {"elsewhere", "now", "golden"} <= set(lvm.volumes())
        again = subprocess.run([lvm.host.script, "cleanup", "vg-0"], capture_output=True, text=True)
        assert (again.returncode, again.stdout) == (0, "nothing to remove\n")


def boot(lvm: LvmHost) -> None:
    """As after a boot: no records, another boot id in the snapshots' tags, nothing active, no backend nodes."""
    for path in lvm.host.run_dir.iterdir():
        path.unlink()
    with lvm.model as model:
        for name, volume in model.state["groups"]["vg-0"]["volumes"].items():
            model.deactivate("vg-0", name)
            volume["tags"] = [tag.rpartition(":")[0] + ":an-earlier-boot" for tag in volume["tags"]]
    for domid in (5, 6):
        lvm.disk("vg-0/golden@", domid).forget()


class TestRefusals:
    @pytest.mark.parametrize(
        ("target", "words"),
        [
            ("web", ["the target web is not of the form VG/LV[@[SNAPSHOT][:SIZE]], for example vg0/web"]),
            ("vg-0/no", ["vg-0/no cannot be had: Failed to find logical volume", "lvs vg-0 shows what there is"]),
            ("nogroup/web", ["the volume group nogroup cannot be had here: Volume group", "not found"]),
            ("vg-0/pool", ["vg-0/pool is a part of LVM's own (a pool)", "lvs vg-0"]),
            ("vg-0/pool_tdata", ["vg-0/pool_tdata is a part of LVM's own (private thin pool data)"]),
            ("/dev/mapper/vg--0-pool-tpool", ["/dev/mapper/vg--0-pool-tpool is not the name of a logical volume"]),
            ("@all/web", ["@all in the target @all/web is no name in LVM"]),
            ("vg-0/web@:", ["is no size such as 2G"]),
            ("vg-0/web@-f:2G", ["begins with a hyphen"]),
            ("vg-0/we b", ["we b in the target vg-0/we b is no name in LVM"]),
            ("vg-0/$(reboot)", ["is no name in LVM"]),
            ("-vg/web", ["begins with a hyphen"]),
            ("vg-0/web@", ["vg-0/web is not thin", "vg-0/web@:2G"]),
            ("vg-0/web@:much", ["much in the target vg-0/web@:much is no size"]),
            ("vg-0/web@snapshot1:4M", ['Names starting "snapshot" are reserved']),
        ],
    )
    def test_a_wrong_target(self, lvm: LvmHost, target: str, words: list[str]) -> None:
        disk = lvm.disk(target)
        refused(disk.add(), *words)
        assert disk.remove().status == 0
        assert lvm.left() == NOTHING

    def test_an_exported_group(self, lvm: LvmHost) -> None:
        with lvm.model as model:
            model.state["groups"]["vg-0"]["exported"] = True
        refused(lvm.disk("vg-0/web").add(), "the volume group vg-0 is exported", "vgimport vg-0")

    def test_a_group_without_room(self, lvm: LvmHost) -> None:
        with lvm.model as model:
            model.volume("vg-0/big", size=28 << 20)
        refused(
            lvm.disk("vg-0/big@:90%").add(),
            'no snapshot of vg-0/big can be made: Volume group "vg-0" has insufficient free space',
            "vgs vg-0 shows what room there is",
        )
        assert lvm.left() == NOTHING

    def test_a_full_pool(self, lvm: LvmHost) -> None:
        with lvm.model as model:
            model.get("vg-0/pool")["state"] = "full"
        refused(lvm.disk("vg-0/golden@").add(), "reached threshold", "lvs vg-0/pool shows how full its pool is")
        assert lvm.left() == NOTHING

    def test_a_snapshot_that_has_overflowed(self, lvm: LvmHost) -> None:
        with lvm.model as model:
            model.volume("vg-0/copy", kind="s", origin="web", state="I", role="public,snapshot,thicksnapshot")
        refused(lvm.disk("vg-0/copy").add(), "vg-0/copy is a snapshot that had no room left", "lvremove vg-0/copy")

    def test_a_volume_whose_disk_is_missing(self, lvm: LvmHost) -> None:
        with lvm.model as model:
            model.get("vg-0/web")["state"] = "p"
        refused(lvm.disk("vg-0/web").add(), "vg-0/web cannot be activated: Refusing activation of partial LV")
        assert lvm.left() == NOTHING

    def test_an_activation_that_lvm_conf_prevents(self, lvm: LvmHost) -> None:
        (lvm.model.folder / "not-activated").touch()
        refused(lvm.disk("vg-0/web").add(), "is not active: does lvm.conf keep it from that (activation/volume_list)?")
        assert lvm.left() == NOTHING

    def test_a_host_without_lvm2(self, lvm: LvmHost) -> None:
        (lvm.model.folder / "bin/lvs").unlink()
        refused(lvm.disk("vg-0/web").add(), "the program lvs is not there (the package lvm2 has it)")

    def test_a_group_that_another_command_has_locked(self, lvm: LvmHost) -> None:
        lvm.stub(time_limit=1.5)
        (lvm.model.folder / "hold-before-lvs").touch()
        refused(lvm.disk("vg-0/web").add(), "was not done after", "may hold the lock of vg-0 (lslocks shows which)")
        assert lvm.left() == NOTHING


class TestTakingBack:
    def test_a_volume_that_dom0_uses_by_now_stays_active(self, lvm: LvmHost) -> None:
        disk = lvm.disk("vg-0/web")
        device = device_of(disk.add())
        with Path(device).open("rb"):
            done = disk.remove()
            assert done.status == 0
            assert "vg-0/web stays active: it is in use here" in done.output
        assert lvm.left() == ([WEB], [])

    def test_a_renamed_volume(self, lvm: LvmHost) -> None:
        disk = lvm.disk("vg-0/web", mode="r")
        device_of(disk.add())
        with lvm.model as model:
            model.rename("vg-0/web", "www")
        assert disk.remove().status == 0
        assert lvm.left() == NOTHING

    def test_a_volume_that_is_gone(self, lvm: LvmHost) -> None:
        disk = lvm.disk("vg-0/web")
        device_of(disk.add())
        for program in (["lvchange", "-an"], ["lvremove", "--yes"]):
            subprocess.run([lvm.model.folder / "bin" / program[0], *program[1:], "vg-0/web"], check=True)
        disk.forget()
        done = disk.remove()
        quiet(done)
        assert lvm.left() == NOTHING

    @pytest.mark.parametrize("target", ["vg-0/web", "vg-0/golden@"])
    def test_gc_after_a_guest_that_nobody_took_back(self, lvm: LvmHost, target: str) -> None:
        volumes = lvm.volumes()
        disk = lvm.disk(target, mode="r")
        device_of(disk.add())
        disk.forget()
        with lvm.host.connect() as store:
            store.write(b"domid", b"0")
        environ = {os.fsencode(key): os.fsencode(value) for key, value in lvm.host.environment().items()}
        found = list(
            Collection(load, environ, run_dir=bytes(lvm.host.run_dir), lock_dir=bytes(lvm.host.lock_dir), time_limit=30)
        )
        assert [(item.vbd, item.outcome) for item in found] == [("vbd-5-51712", COLLECTED)], found[0].note
        assert (lvm.left(), lvm.volumes()) == (NOTHING, volumes)


# Where an add can be cut short: the target, its mode, the program at which it waits, before or after its work.
CUTS = [
    ("vg-0/web", "w", "lvchange"),
    ("vg-0/web", "r", "dmsetup-create"),
    ("vg-0/web@:4M", "w", "lvchange"),
    ("vg-0/web@:4M", "w", "lvcreate"),
    ("vg-0/golden@", "r", "lvcreate"),
]


class TestCutShort:
    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize(("target", "mode", "program"), CUTS)
    def test_killed(self, lvm: LvmHost, target: str, mode: str, program: str, when: str) -> None:
        """C6: the script is killed and its program goes on; the remove waits for that, and nothing is left."""
        volumes = lvm.volumes()
        disk, adding, held = begin(lvm, target, mode, program, when)
        adding.kill()
        adding.communicate(timeout=30)
        removing = disk.start("remove")
        if when == "before":
            assert removing.stdout is not None
            assert b"waiting for the end of process" in removing.stdout.readline()
        held.unlink()
        said = removing.communicate(timeout=60)[0]
        assert removing.returncode == 0, said
        assert (lvm.volumes(), lvm.active()) == (volumes, [])
        assert [name for name in lvm.records() if name.startswith("vbd-")] == []

    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize(("target", "mode", "program"), CUTS)
    def test_told_to_end(self, lvm: LvmHost, target: str, mode: str, program: str, when: str) -> None:
        """SIGTERM undoes all at once."""
        volumes = lvm.volumes()
        _, adding, _ = begin(lvm, target, mode, program, when)
        adding.terminate()
        said = adding.communicate(timeout=60)[0].decode()
        assert adding.returncode == 1
        assert "SIGTERM" in said
        assert (lvm.volumes(), lvm.left()) == (volumes, NOTHING)


def begin(
    lvm: LvmHost, target: str, mode: str, program: str, when: str
) -> tuple[Disk, "subprocess.Popen[bytes]", Path]:
    """Start an add and return once its program waits; it goes on when the file that is returned is gone."""
    disk = lvm.disk(target, mode=mode)
    return disk, *held_at(lvm, disk, "add", when, program)


def held_at(lvm: LvmHost, disk: Disk, command: str, when: str, program: str) -> tuple["subprocess.Popen[bytes]", Path]:
    """Start a command of a disk's and return once its program waits, as ``begin`` does."""
    (lvm.model.folder / f"hold-{when}-{program}").touch()
    running = disk.start(command)
    held = lvm.model.folder / f"held-{program}"
    until(lambda: held.exists() or running.poll() is not None, "the program waits")
    assert held.exists(), running.communicate()[0]
    return running, held


def test_the_model_is_held_to_what_lvm2_does(lvm: LvmHost) -> None:
    """The same is asked of the real lvm2 in the rig (tests/xenrig/lvm_cases.py)."""
    with lvm.model as model:
        model.volume("vg-0/big", size=28 << 20)

    def run(program: str, *words: str) -> tuple[int, str]:
        done = subprocess.run([lvm.model.folder / "bin" / program, *words], stdout=-1, stderr=subprocess.STDOUT)
        return done.returncode, done.stdout.decode()

    asked = list(facts(run, str(lvm.model.mapper)))
    assert [(what, said) for what, so, said in asked if not so] == []
    assert len(asked) > 40


def test_the_manifest(lvm: LvmHost) -> None:
    done = subprocess.run([lvm.host.script, "--describe"], capture_output=True, text=True, check=True)
    manifest = json.loads(done.stdout)
    assert (manifest["name"], manifest["example"], manifest["path-only"]) == ("lvm", "vg0/web", True)
    assert manifest["tools"] | {"lvs": "lvm2", "dmsetup": "dmsetup"} == manifest["tools"]
    assert manifest["verbs"] == ["add", "remove", "cleanup"]
    checked = subprocess.run([lvm.host.script, "--check-host"], capture_output=True, text=True)
    assert str(lvm.model.folder / "bin/lvcreate") in checked.stdout
