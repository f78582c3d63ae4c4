"""NetBSD's `block`, whole, on a model of the system: real processes, files and C xenstored; a vnd is a loop device."""

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import Host
from tests.images import losetup, make_image
from tests.need import need_root
from tests.platform.models.netbsd import Netbsd
from tests.platform.outcome import nothing_left, refused
from vbdkit import datapaths
from vbdkit.engine.leftovers import Collection
from vbdkit.platform import bsd
from vbdkit.platform.netbsd import published, system
from vbdkit.protocol.failure import Failure
from vbdkit.toolstack import netbsd_host


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Netbsd]:
    """A NetBSD with four vnds, all of them free."""
    made = Netbsd(tmp_path / "model")
    yield made
    netbsd_host.take_away(made.folder)


@pytest.fixture
def host(tmp_path: Path, store_socket: Path, machine: Netbsd) -> Host:
    """A host with its script."""
    return Host(tmp_path, store_socket, "netbsd", settings=machine.settings)


class TestFile:
    def test_becomes_a_vnd(self, host: Host, machine: Netbsd, image: Path) -> None:
        """C5, O5, O9: physical-device is one decimal dev_t, vnd the node."""
        done = host.disk(5, image).add()
        assert (done.status, done.output, done.outcome) == (0, "", b"connected")
        node = machine.dev / "vnd0d"
        assert done.nodes["vnd"] == done.nodes["physical-device-path"] == os.fsencode(node)
        assert done.nodes["physical-device"] == b"%d" % node.stat().st_rdev
        assert "node" not in done.nodes
        assert machine.vnds() == {"vnd0": str(image)}

    def test_is_given_back_with_the_backend_directory(self, host: Host, machine: Netbsd, image: Path) -> None:
        """The toolstack there leaves the directory to the script."""
        disk = host.disk(5, image)
        disk.add()
        done = disk.remove()
        assert (done.status, done.output, done.nodes) == (0, "", {})
        assert machine.vnds() == {}
        nothing_left(disk)
        with host.connect() as store:
            assert not store.exists(disk.path)

    def test_is_given_back_when_params_and_the_file_are_gone(self, host: Host, machine: Netbsd, image: Path) -> None:
        """Xen's own script reads params first, and dies of its absence."""
        disk = host.disk(5, image)
        disk.add()
        image.unlink()
        with host.connect() as store:
            store.remove(disk.path + b"/params")
        assert disk.remove().status == 0
        assert machine.vnds() == {}
        assert disk.nodes() == {}

    def test_is_given_back_when_all_nodes_are_gone(self, host: Host, machine: Netbsd, image: Path) -> None:
        disk = host.disk(5, image)
        disk.add()
        disk.forget()
        assert disk.remove().status == 0
        assert machine.vnds() == {}

    def test_add_again_and_remove_again(self, host: Host, machine: Netbsd, image: Path) -> None:
        disk = host.disk(5, image)
        assert [disk.add().status, disk.add().status] == [0, 0]
        assert len(machine.vnds()) == 1, "the first one was taken back: the driver still waited"
        assert [disk.remove().status, disk.remove().status] == [0, 0]
        assert machine.vnds() == {}

    def test_add_again_for_a_disk_that_the_guest_has(self, host: Host, machine: Netbsd, image: Path) -> None:
        disk = host.disk(5, image)
        before = disk.add().nodes
        disk.write(state=b"4")
        assert disk.add().nodes == {**before, "state": b"4"}
        assert len(machine.vnds()) == 1

    def test_a_second_guest_is_refused_and_its_vnd_taken_back(
        self, host: Host, machine: Netbsd, image: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other name.img"
        other.hardlink_to(image)
        host.disk(5, image).add()
        refused(host.disk(6, other), str(other), "guest 5 (guest5) as its disk xvda, read-write", "vnd0d)")
        assert list(machine.vnds()) == ["vnd0"]

    def test_readers_have_a_read_only_vnd_each(self, host: Host, machine: Netbsd, image: Path) -> None:
        disks = [host.disk(5, image, "r"), host.disk(6, image, "r")]
        assert [disk.add().status for disk in disks] == [0, 0]
        assert list(machine.vnds()) == ["vnd0", "vnd1"]
        for disk in disks:
            rdev = int(disk.nodes()["physical-device"])
            flag = Path(f"/sys/dev/block/{os.major(rdev)}:{os.minor(rdev)}/ro").read_text()
            assert flag == "1\n", "read-only in fact: vnconfig -r"
        refused(host.disk(7, image, "w"), "read-only")

    def test_that_is_mounted_through_a_vnd_is_refused(self, host: Host, machine: Netbsd, image: Path) -> None:
        node = machine.set_up("vnd2", image)
        machine.say("mount", f"{node} on /mnt/old disk type ffs (local)")
        refused(host.disk(5, image), "is mounted", "on /mnt/old disk (read-write)", "umount /mnt/old disk")
        assert list(machine.vnds()) == ["vnd2"], "the administrator's own stays"

    def test_that_is_swap_space_is_refused(self, host: Host, machine: Netbsd, image: Path) -> None:
        heading = "Device      512-blocks     Used    Avail Capacity  Priority"
        machine.say("swapctl", heading, f"{image}      2048        0     2048     0%    0")
        refused(host.disk(5, image), "swap space", f"swapctl -d {image}")

    def test_under_an_idle_vnd_is_no_obstacle(self, host: Host, machine: Netbsd, image: Path) -> None:
        machine.set_up("vnd0", image)
        assert host.disk(5, image).add().nodes["vnd"].endswith(b"/vnd1d")

    def test_and_no_vnd_is_free(self, host: Host, machine: Netbsd, image: Path, tmp_path: Path) -> None:
        for number in range(4):
            machine.set_up(f"vnd{number}", make_image(tmp_path / f"{number}.img"))
        disk = host.disk(5, image)
        done = disk.add()
        assert (done.status, done.outcome) == (1, b"error")
        assert "all 4 are in use" in done.error
        assert "MAKEDEV vnd4" in done.error
        nothing_left(disk)

    def test_a_vnd_that_is_taken_at_that_moment_is_left_alone(
        self, host: Host, machine: Netbsd, image: Path, tmp_path: Path
    ) -> None:
        """Somebody is faster with vnd0, between vnconfig -l and ours: EBUSY, and the next one."""
        other = make_image(tmp_path / "other.img")
        real = machine.bin / "vnconfig.real"
        machine.program(
            "vnconfig",
            f'#!/bin/sh\ncase "$*" in *"-c vnd0"*) {real} -c vnd0 {other} || exit 1;; esac\nexec {real} "$@"\n',
        )
        disk = host.disk(5, image)
        assert disk.add().status == 0
        assert machine.vnds() == {"vnd0": str(other), "vnd1": str(image)}
        assert disk.remove().status == 0
        assert machine.vnds() == {"vnd0": str(other)}

    def test_four_at_once_have_a_vnd_each(self, host: Host, machine: Netbsd, tmp_path: Path) -> None:
        disks = [host.disk(5 + number, make_image(tmp_path / f"{number}.img")) for number in range(4)]
        processes = [disk.start("add") for disk in disks]
        for process in processes:
            assert process.communicate(timeout=60)[0] == b""
        assert sorted(machine.vnds().values()) == [str(tmp_path / f"{number}.img") for number in range(4)]
        assert len({disk.nodes()["physical-device"] for disk in disks}) == 4
        for disk in disks:
            assert machine.vnds()[disk.nodes()["vnd"].decode()[:-1].rpartition("/")[2]].endswith(
                f"{disk.domid - 5}.img"
            )

    def test_four_at_once_on_one_file(self, host: Host, machine: Netbsd, image: Path) -> None:
        disks = [host.disk(5 + number, image) for number in range(4)]
        processes = [disk.start("add") for disk in disks]
        for process in processes:
            process.communicate(timeout=60)
        won = [disk for disk, process in zip(disks, processes, strict=True) if process.returncode == 0]
        assert len(won) == 1
        assert [f"{name}d" for name in machine.vnds()] == [won[0].nodes()["vnd"].decode().rpartition("/")[2]]
        for disk in [disk for disk in disks if disk is not won[0]]:
            assert disk.nodes()["hotplug-status"] == b"busy"
            nothing_left(disk)

    def test_that_is_replaced_meanwhile_is_not_attached(
        self, host: Host, machine: Netbsd, image: Path, tmp_path: Path
    ) -> None:
        """vnconfig opens the name anew; what it got is compared with what was checked."""
        trap = make_image(tmp_path / "trap.img")
        real = machine.bin / "vnconfig.real"
        machine.program(
            "vnconfig", f'#!/bin/sh\ncase "$*" in *"-c vnd"*) /bin/mv {trap} {image};; esac\nexec {real} "$@"\n'
        )
        disk = host.disk(5, image)
        done = disk.add()
        assert (done.status, done.outcome) == (1, b"error")
        assert "changed while" in done.error
        assert machine.vnds() == {}
        nothing_left(disk)

    def test_with_a_strange_name_is_one_argument(self, host: Host, machine: Netbsd, tmp_path: Path) -> None:
        """No shell sees it, and since it begins with a slash, no program takes it for an option."""
        folder = tmp_path / "-r -u vnd0; $(touch canary)\n'\"%s ü"
        folder.mkdir()
        disk = host.disk(5, make_image(folder / "-F"))
        assert disk.add().status == 0
        assert machine.vnds() == {"vnd0": str(folder / "-F")}
        assert disk.remove().status == 0
        assert machine.vnds() == {}
        relative = host.disk(6, "-u")
        done = relative.add()
        assert (done.status, done.error) == (1, "/dev/-u does not exist")

    def test_that_vnconfig_does_not_want(self, host: Host, machine: Netbsd, image: Path) -> None:
        machine.program(
            "vnconfig",
            '#!/bin/sh\ncase "$*" in *-c*) echo "vnconfig: /dev/rvnd0d: VNDIOCSET: File too large" >&2; exit 1;; esac\n'
            f'exec {machine.bin}/vnconfig.real "$@"\n',
        )
        disk = host.disk(5, image)
        done = disk.add()
        assert (done.status, done.outcome) == (1, b"error")
        assert "VNDIOCSET: File too large" in done.error
        nothing_left(disk)


class TestRelease:
    def test_a_number_that_has_another_file_by_now_is_left_alone(
        self, host: Host, machine: Netbsd, image: Path, tmp_path: Path
    ) -> None:
        disk = host.disk(5, image)
        disk.add()
        subprocess.run([machine.bin / "vnconfig", "-u", "vnd0"], check=True)
        other = make_image(tmp_path / "other.img")
        machine.set_up("vnd0", other)
        assert disk.remove().status == 0
        assert machine.vnds() == {"vnd0": str(other)}

    def test_waits_for_a_driver_that_is_about_to_close(self, host: Host, machine: Netbsd, image: Path) -> None:
        disk = host.disk(5, image)
        disk.add()
        opened = os.open(machine.dev / "vnd0d", os.O_RDONLY | os.O_EXCL)
        fifo = machine.folder / "fifo"
        os.mkfifo(fifo)
        once = f"[ -e {fifo}.read ] || {{ : >{fifo}.read; echo now >{fifo}; }}"
        machine.program(
            "vnconfig", f'#!/bin/sh\ncase "$*" in -u*) {once};; esac\nexec {machine.bin}/vnconfig.real "$@"\n'
        )
        process = disk.start("remove")
        assert fifo.read_text() == "now\n"
        os.close(opened)
        assert process.communicate(timeout=30)[0] == b""
        assert process.returncode == 0
        assert machine.vnds() == {}

    def test_says_who_keeps_it_and_keeps_the_record(self, host: Host, machine: Netbsd, image: Path) -> None:
        disk = host.disk(5, image)
        disk.add()
        opened = os.open(machine.dev / "vnd0d", os.O_RDONLY | os.O_EXCL)
        done = disk.remove()
        os.close(opened)
        assert done.status == 1
        assert "vnd0 is still open" in done.output
        assert list(machine.vnds()) == ["vnd0"]
        assert disk.remove().status == 0
        assert machine.vnds() == {}

    def test_what_xens_script_set_up(self, host: Host, machine: Netbsd, image: Path) -> None:
        """Without a record: where vnd, number and file agree."""
        node = machine.set_up("vnd1", image)
        disk = host.disk(5, image)
        disk.write(vnd=os.fsencode(node), physical_device=b"%d" % node.stat().st_rdev, hotplug_status=b"connected")
        assert disk.remove().status == 0
        assert machine.vnds() == {}
        assert disk.nodes() == {}

    @pytest.mark.parametrize("lie", ["number", "file"])
    def test_what_the_nodes_do_not_agree_on_stays(
        self, host: Host, machine: Netbsd, image: Path, tmp_path: Path, lie: str
    ) -> None:
        node = machine.set_up("vnd1", image)
        target = make_image(tmp_path / "other.img") if lie == "file" else image
        disk = host.disk(5, target)
        number = node.stat().st_rdev + (lie == "number")
        disk.write(vnd=os.fsencode(node), physical_device=b"%d" % number, hotplug_status=b"connected")
        assert disk.remove().status == 0
        assert list(machine.vnds()) == ["vnd1"]

    @pytest.mark.parametrize("moment", ["-c vnd0", "-l vnd0"])
    def test_a_kill_in_the_middle_leaves_nothing_that_is_not_found_again(
        self, host: Host, machine: Netbsd, image: Path, moment: str
    ) -> None:
        """SIGKILL when vnconfig has just set the vnd up, or is asked about it: `remove` frees it by the record."""
        fifo = machine.folder / "fifo"
        os.mkfifo(fifo)
        real = machine.bin / "vnconfig.real"
        machine.program(
            "vnconfig",
            f'#!/bin/sh\n{real} "$@" || exit 1\n'
            f'case "$*" in *"{moment}"*) echo done >{fifo}; exec /bin/sleep 30;; esac\n',
        )
        disk = host.disk(5, image)
        process = disk.start("add")
        assert fifo.read_text() == "done\n"
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()
        assert list(machine.vnds()) == ["vnd0"]
        real.replace(machine.bin / "vnconfig")
        assert disk.remove().status == 0
        assert machine.vnds() == {}
        assert list(host.run_dir.glob("*")) == []

    def test_a_signal_in_the_middle_is_undone(self, host: Host, machine: Netbsd, image: Path) -> None:
        fifo = machine.folder / "fifo"
        os.mkfifo(fifo)
        real = machine.bin / "vnconfig.real"
        machine.program(
            "vnconfig",
            f'#!/bin/sh\n{real} "$@" || exit 1\n'
            f'case "$*" in *"-c vnd0"*) echo done >{fifo}; exec /bin/sleep 30;; esac\n',
        )
        disk = host.disk(5, image)
        process = disk.start("add")
        assert fifo.read_text() == "done\n"
        process.send_signal(signal.SIGTERM)
        assert b"SIGTERM" in process.communicate(timeout=30)[0]
        assert process.returncode == 1
        assert machine.vnds() == {}
        nothing_left(disk)


class TestCollection:
    """`vbdkit gc` on what a guest that is gone has left."""

    @pytest.fixture(autouse=True)
    def _place(self, machine: Netbsd, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bsd.PLACE, "dev", machine.settings["dev"])
        monkeypatch.setattr(bsd.PLACE, "programs", machine.settings["programs"])

    def collect(self, host: Host) -> list[str]:
        environ = {b"XENSTORED_PATH": os.fsencode(host.socket)}
        run_dir, lock_dir = os.fsencode(host.run_dir), os.fsencode(host.lock_dir)
        return [item.outcome for item in Collection(datapaths.load, environ, "netbsd", run_dir, lock_dir)]

    def test_a_vnd_whose_guest_is_gone(self, host: Host, machine: Netbsd, image: Path) -> None:
        host.domain(0)
        disk, living = host.disk(5, image, "r"), host.disk(6, image, "r")
        assert [disk.add().status, living.add().status] == [0, 0]
        with host.connect() as store:
            store.remove(b"/local/domain/5")
        disk.forget()
        assert self.collect(host) == ["collected"]
        assert list(machine.vnds()) == ["vnd1"], "the living guest's stays"
        nothing_left(disk)

    def test_a_vnd_that_is_another_files_by_now(self, host: Host, machine: Netbsd, image: Path, tmp_path: Path) -> None:
        host.domain(0)
        disk = host.disk(5, image)
        disk.add()
        disk.forget()
        with host.connect() as store:
            store.remove(b"/local/domain/5")
        subprocess.run([machine.bin / "vnconfig", "-u", "vnd0"], check=True)
        other = make_image(tmp_path / "other.img")
        machine.set_up("vnd0", other)
        self.collect(host)
        assert machine.vnds() == {"vnd0": str(other)}
        assert list(host.run_dir.glob("vbd-5-*")) == []


class TestDevice:
    def test_is_published_as_it_is(self, host: Host, machine: Netbsd) -> None:
        machine.disk("wd0", {"e": (2048, 4096)})
        disk = host.disk(5, machine.dev / "wd0e")
        done = disk.add()
        assert (done.status, done.output) == (0, "")
        assert done.nodes["physical-device"] == b"%d" % (machine.dev / "wd0e").stat().st_rdev
        assert done.nodes["physical-device-path"] == os.fsencode(machine.dev / "wd0e")
        assert "vnd" not in done.nodes
        assert disk.remove().nodes == {}
        nothing_left(disk)

    def test_the_documents_form_by_configuration(self, host: Host, machine: Netbsd, tmp_path: Path) -> None:
        """O5: hex major:minor, for a driver that wants it; both forms are understood of others."""
        machine.disk("wd0", {"e": (2048, 4096)})
        other = Host(tmp_path, host.socket, "netbsd", settings={**machine.settings, "physical_device": b"hex"})
        rdev = (machine.dev / "wd0e").stat().st_rdev
        done = other.disk(5, machine.dev / "wd0e").add()
        assert done.nodes["physical-device"] == b"%x:%x" % (os.major(rdev), os.minor(rdev))
        refused(other.disk(6, machine.dev / "wd0e"), "guest 5")

    def test_the_raw_side_is_no_disk(self, host: Host, machine: Netbsd) -> None:
        done = host.disk(5, machine.node("rwd0e", kind=stat.S_IFCHR)).add()
        assert (done.status, done.outcome) == (1, b"error")
        assert "is a character device" in done.error

    def test_that_is_not_configured(self, host: Host, machine: Netbsd) -> None:
        machine.disk("wd0", {"e": (2048, 4096)})
        machine.node("rwd0e", kind=stat.S_IFCHR)
        done = host.disk(5, machine.dev / "wd0e").add()
        assert (done.status, done.outcome) == (1, b"error")
        assert "is not configured" in done.error

    def test_two_partitions_are_two_disks(self, host: Host, machine: Netbsd) -> None:
        machine.disk("wd0", {"e": (2048, 4096), "f": (6144, 4096)})
        assert [host.disk(5 + i, machine.dev / f"wd0{letter}").add().status for i, letter in enumerate("ef")] == [0, 0]

    def test_two_that_overlap_are_not(self, host: Host, machine: Netbsd) -> None:
        machine.disk("wd0", {"e": (2048, 4096), "f": (6143, 4096)})
        assert host.disk(5, machine.dev / "wd0e").add().status == 0
        refused(host.disk(6, machine.dev / "wd0f"), "guest 5", "wd0e, partition")

    def test_a_disk_without_a_label_is_one(self, host: Host, machine: Netbsd) -> None:
        machine.disk("wd0", {"e": (2048, 4096), "f": (6144, 4096)})
        machine.program("disklabel", "#!/bin/sh\necho 'disklabel: no label' >&2\nexit 1\n")
        assert host.disk(5, machine.dev / "wd0e").add().status == 0
        refused(host.disk(6, machine.dev / "wd0f"), "guest 5")

    def test_a_partition_and_its_disk(self, host: Host, machine: Netbsd) -> None:
        machine.disk("wd0", {"e": (2048, 4096)})
        assert host.disk(5, machine.dev / "wd0e").add().status == 0
        refused(host.disk(6, machine.dev / "wd0d"), "guest 5", "through", "wd0e, partition")

    def test_wedges_and_their_disk(self, host: Host, machine: Netbsd) -> None:
        machine.disk("wd0", {}, wedges=("dk0", "dk1"))
        assert [host.disk(5 + i, machine.dev / f"dk{i}").add().status for i in range(2)] == [0, 0]
        refused(host.disk(7, machine.dev / "wd0d"), "guest 5", "dk0, wedge")

    def test_a_disk_and_its_wedge(self, host: Host, machine: Netbsd) -> None:
        machine.disk("wd0", {}, wedges=("dk0",))
        assert host.disk(5, machine.dev / "wd0d").add().status == 0
        refused(host.disk(6, machine.dev / "dk0"), "guest 5", "wd0d")

    def test_a_vnd_that_a_guest_has_takes_its_file(self, host: Host, machine: Netbsd, image: Path) -> None:
        node = machine.set_up("vnd3", image)
        assert host.disk(5, node).add().status == 0
        refused(host.disk(6, image), "guest 5", "vnd3d)")

    def test_a_mount_is_refused(self, host: Host, machine: Netbsd) -> None:
        machine.disk("wd0", {"e": (2048, 4096)})
        machine.say("mount", f"{machine.dev}/wd0e on /srv type ffs (read-only, local)")
        refused(host.disk(5, machine.dev / "wd0e"), "is mounted on /srv (read-only)")
        refused(host.disk(6, machine.dev / "wd0d"), "is mounted", "wd0e, partition")
        assert host.disk(7, machine.dev / "wd0e", "r").add().status == 0

    def test_what_somebody_has_open_is_refused(self, host: Host, machine: Netbsd, image: Path) -> None:
        """NetBSD opens a block device once: RAIDframe, cgd, a program, all are seen so."""
        name = losetup("--find", "--show", str(image))
        opened = os.open(name, os.O_RDONLY | os.O_EXCL)
        try:
            machine.disk("wd0", {})
            (machine.dev / "wd0d").unlink()
            machine.node("wd0d", os.stat(name).st_rdev)
            refused(host.disk(5, machine.dev / "wd0d", "r"), "held exclusively", "opened once only", "raidctl")
        finally:
            os.close(opened)
            losetup("-d", name)
        assert host.disk(6, machine.dev / "wd0d", "r").add().status == 0

    def test_not_even_two_readers_have_one(self, host: Host, machine: Netbsd) -> None:
        """The second driver could not open it, and would say so on the console only."""
        machine.disk("wd0", {"e": (2048, 4096)})
        assert host.disk(5, machine.dev / "wd0e", "r").add().status == 0
        refused(host.disk(6, machine.dev / "wd0e", "r"), "opened once only")

    def test_what_a_guest_has_is_not_opened_for_the_check(self, host: Host, machine: Netbsd, image: Path) -> None:
        """Its driver may be about to open it, and would find it busy."""
        node = machine.set_up("vnd3", image)
        assert host.disk(5, node, "r").add().status == 0
        trace = machine.folder / "trace"
        host.script.rename(machine.folder / "real")
        host.script.write_text(
            f'#!/bin/sh\nexec strace -qq -e trace=open,openat -o {trace} {machine.folder}/real "$@"\n'
        )
        host.script.chmod(0o755)
        assert host.disk(6, node, "r").add().status == 1
        assert "/vnd3d" not in trace.read_text()


class TestAnswers:
    """What the programs print, in the forms that their sources have."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        need_root()  # for mknod
        (tmp_path / "dev").mkdir()
        os.mknod(tmp_path / "dev/wd0f", 0o600 | stat.S_IFBLK, os.makedev(240, 7))
        monkeypatch.setattr(bsd.PLACE, "dev", os.fsencode(tmp_path / "dev"))
        monkeypatch.setattr(bsd.PLACE, "programs", os.fsencode(tmp_path))
        self.folder = tmp_path

    def answer(self, program: str, text: str) -> None:
        path = self.folder / program
        path.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{text}\nEND\n")
        path.chmod(0o755)

    @pytest.mark.parametrize(
        ("line", "file"),
        [
            ("vnd1: not in use", None),
            ("vnd1: /home (/dev/wd0f) inode 53", (os.makedev(240, 7), 53)),
            ("vnd1: /a (b) inode 7 (/dev/wd0f) inode 53", (os.makedev(240, 7), 53)),
            ("vnd1: wd0f inode 53", (os.makedev(240, 7), 53)),
            ("vnd1: dev 168,5 inode 53", (os.makedev(168, 5), 53)),
        ],
    )
    def test_vnconfig(self, line: str, file: tuple[int, int] | None) -> None:
        """vnconfig.c, show()."""
        self.answer("vnconfig", "vnd7: not in use\n" + line)
        assert system.file_under(1) == file

    @pytest.mark.parametrize("line", ["vnd1: /home (/dev/wd5a) inode 53", "vnd1: wd0f", "usage: vnconfig"])
    def test_vnconfig_in_a_form_of_the_future(self, line: str) -> None:
        self.answer("vnconfig", line)
        with pytest.raises(Failure, match="does not understand"):
            system.file_under(1)

    def test_disklabel_and_dkctl(self) -> None:
        """disklabel.8's example, with sectors of 2048 bytes; dkctl.c, disk_listwedges()."""
        self.answer(
            "disklabel",
            "# /dev/rwd0d:\ntype: ESDI\ndisk: WDC\nlabel: fictitious\nflags:\nbytes/sector: 2048\n"
            "sectors/track: 63\n\n4 partitions:\n#        size    offset     fstype [fsize bsize cpg/sgs]\n"
            " a:   1048576      2048     4.2BSD   2048 16384     0  # (Cyl.      2*-   1042*)\n"
            " b:    262144   1050624       swap                     # (Cyl.   1042*-   1302*)\n"
            " d:   2097152         0     unused      0     0        # (Cyl.      0 -   2080*)",
        )
        self.answer("dkctl", "/dev/rwd0d: 1 wedge:\ndk12: my: part, 1024 blocks at 64, type: ffs")
        assert system.partitions(b"wd0") == (
            {
                b"a": (2048 * 2048, 1048576 * 2048),
                b"b": (1050624 * 2048, 262144 * 2048),
                b"d": (0, 2097152 * 2048),
            },
            [b"dk12"],
        )

    def test_a_disk_that_knows_no_wedges(self) -> None:
        self.answer("disklabel", "")
        (self.folder / "dkctl").write_text(
            "#!/bin/sh\necho 'dkctl: listwedges: Inappropriate ioctl for device' >&2; exit 1\n"
        )
        (self.folder / "dkctl").chmod(0o755)
        assert system.partitions(b"raid0") == ({}, [])

    @pytest.mark.parametrize(
        "said", ["", "dk0 at wd0: x", "dk0 at wd0: x\ndk0: many blocks at 2048, type: ffs", "?\n?"]
    )
    def test_getwedgeinfo_in_a_form_of_the_future(self, said: str) -> None:
        self.answer("dkctl", said)
        with pytest.raises(Failure, match="does not understand"):
            system.wedge(b"dk0")

    def test_getwedgeinfo(self) -> None:
        """dkctl.c, disk_getwedgeinfo()."""
        self.answer("dkctl", "dk0 at wd0: EFI system\ndk0: 262144 blocks at 2048, type: msdos")
        assert system.wedge(b"dk0") == (b"wd0", 2048 * 512, 262144 * 512)


def test_the_forms_of_physical_device() -> None:
    number = os.makedev(14, 3)
    assert published(b"%d" % number) == published(b"e:3") == (-1, number)
    for nonsense in (b"", b"-5", b"0x1f", b"e:3:1", b":", b"1" * 21, b" 5"):
        with pytest.raises(ValueError, match="number"):
            published(nonsense)


def test_without_programs_there_are_no_vnds(tmp_path: Path, store_socket: Path, image: Path) -> None:
    """On Linux without a model: the sentence names what is missing, and nothing is left."""
    disk = Host(tmp_path, store_socket, "netbsd").disk(5, image)
    done = disk.add()
    assert (done.status, done.outcome) == (1, b"error")
    assert "vnconfig is not there" in done.error
    nothing_left(disk)
