"""FreeBSD's `block`, whole, on a model of the system: real processes, files and C xenstored, GEOM in its own words."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.host import Host
from tests.images import make_image
from tests.need import need_program
from tests.platform.models.freebsd import Freebsd, Geom, Use
from tests.platform.outcome import nothing_left, refused
from vbdkit.platform.freebsd.geom import parse

MIB = 1 << 20


@pytest.fixture
def system(tmp_path: Path) -> Freebsd:
    """A FreeBSD with nothing attached."""
    return Freebsd(tmp_path / "model")


@pytest.fixture
def bsd(tmp_path: Path, store_socket: Path, system: Freebsd) -> Host:
    """A host with its script."""
    return Host(tmp_path, store_socket, "freebsd", settings=system.place.settings)


class TestFile:
    def test_is_published_by_its_path_alone(self, bsd: Host, image: Path) -> None:
        """O4: the file itself, no loopback; C4: an absolute path and a word."""
        disk = bsd.disk(5, image)
        done = disk.add()
        assert (done.status, done.output) == (0, "")
        assert done.nodes["physical-device-path"] == os.fsencode(image)
        assert done.outcome == b"connected"
        assert not {"physical-device", "node", "vnd"} & set(done.nodes)

    def test_is_free_again_after_remove(self, bsd: Host, image: Path) -> None:
        first, second = bsd.disk(5, image), bsd.disk(6, image)
        first.add()
        refused(second, "in use by guest 5 (guest5) as its disk xvda, read-write")
        assert first.remove().status == 0
        nothing_left(first)
        assert first.nodes()["params"] == os.fsencode(image), "the toolstack's nodes are the toolstack's"
        assert second.add().status == 0

    def test_eight_at_once_on_one_file(self, bsd: Host, image: Path) -> None:
        disks = [bsd.disk(5 + number, image) for number in range(8)]
        processes = [disk.start("add") for disk in disks]
        for process in processes:
            process.communicate(timeout=60)
        assert sorted(process.returncode for process in processes) == [0, 1, 1, 1, 1, 1, 1, 1]
        assert sorted(disk.nodes()["hotplug-status"] for disk in disks) == [b"busy"] * 7 + [b"connected"]

    def test_add_again_and_remove_again(self, bsd: Host, image: Path) -> None:
        disk = bsd.disk(5, image)
        assert [disk.add().status, disk.add().status] == [0, 0]
        assert [disk.remove().status, disk.remove().status] == [0, 0]
        nothing_left(disk)

    def test_remove_when_file_and_nodes_are_gone(self, bsd: Host, image: Path) -> None:
        disk = bsd.disk(5, image)
        disk.add()
        image.unlink()
        disk.forget()
        assert disk.remove().status == 0
        nothing_left(disk)
        assert disk.nodes() == {}

    def test_under_another_name_is_the_same_file(self, bsd: Host, image: Path, tmp_path: Path) -> None:
        other = tmp_path / "other name.img"
        other.hardlink_to(image)
        bsd.disk(5, image).add()
        refused(bsd.disk(6, other), str(other), "guest 5")

    def test_readers_bear_readers(self, bsd: Host, image: Path) -> None:
        assert [bsd.disk(5, image, "r").add().status, bsd.disk(6, image, "r").add().status] == [0, 0]
        refused(bsd.disk(7, image, "w"), "read-only")

    def test_that_nobody_may_write_is_no_silent_reader(self, bsd: Host, image: Path) -> None:
        need_program("chattr")
        subprocess.run(["chattr", "+i", image], check=True)
        try:
            done = bsd.disk(5, image).add()
            assert (done.status, done.outcome) == (1, b"error")
            assert f"{image} cannot be opened for writing" in done.error
            assert bsd.disk(6, image, "r").add().status == 0
        finally:
            subprocess.run(["chattr", "-i", image], check=True)

    def test_that_qemu_serves_is_in_use(self, bsd: Host, image: Path) -> None:
        bsd.domain(4)
        bsd.vbd(4, f"aio:{image}", kind="qdisk")
        refused(bsd.disk(5, image), "guest 4")


class TestMemoryDisk:
    def test_that_a_guest_has_takes_its_file(self, bsd: Host, system: Freebsd, image: Path) -> None:
        md = system.md(3, image, node="null")
        assert bsd.disk(5, md).add().status == 0
        refused(bsd.disk(6, image), str(image), "guest 5", f"through {md}, memory disk")

    def test_whose_file_a_guest_has_is_taken(self, bsd: Host, system: Freebsd, image: Path) -> None:
        md = system.md(3, image, node="null")
        assert bsd.disk(5, image).add().status == 0
        refused(bsd.disk(6, md), str(md), "guest 5", f"through {image}")

    def test_in_nobodys_use_is_no_obstacle(self, bsd: Host, system: Freebsd, image: Path) -> None:
        system.md(3, image)
        assert bsd.disk(5, image).add().status == 0

    def test_that_is_mounted_takes_its_file(self, bsd: Host, system: Freebsd, image: Path) -> None:
        md = system.md(0, image)
        system.use("VFS", "ffs.md0", "md0", (1, 1, 1))
        system.mounts.append(f"{md} on /mnt/a place (ufs, local)")
        system.tell()
        refused(bsd.disk(5, image), "is mounted", "on /mnt/a place (read-write)", "umount /mnt/a place")

    def test_that_cannot_be_written_is_no_writers_disk(self, bsd: Host, system: Freebsd, image: Path) -> None:
        md = system.md(3, image, read_only=True, node="null")
        done = bsd.disk(5, md).add()
        assert (done.status, done.outcome) == (1, b"error")
        assert f"{md} is read-only" in done.error
        assert "mode r" in done.error
        assert bsd.disk(6, md, "r").add().status == 0

    def test_a_strange_file_name_is_read_as_the_kernel_writes_it(
        self, bsd: Host, system: Freebsd, tmp_path: Path
    ) -> None:
        strange = make_image(tmp_path / "a <b> & 'ü' \"100%\".img")
        md = system.md(3, os.fsencode(strange), node="null")
        assert bsd.disk(5, md).add().status == 0
        refused(bsd.disk(6, strange), "guest 5")

    def test_on_a_file_that_was_renamed_is_not_taken_for_another(
        self, bsd: Host, system: Freebsd, image: Path, tmp_path: Path
    ) -> None:
        """GEOM has the name of then: whether it is this file cannot be told, and unknown is not free."""
        system.md(3, tmp_path / "was.img", size=image.stat().st_size)
        done = bsd.disk(5, image).add()
        assert done.status == 1
        assert "was.img" in done.error
        assert "mdconfig -d -u md3" in done.error
        assert bsd.disk(6, make_image(tmp_path / "longer.img", size=2 * MIB)).add().status == 0


class TestDevice:
    def test_a_character_device_is_a_disk_here(self, bsd: Host, system: Freebsd) -> None:
        disk = bsd.disk(5, system.disk("ada0", "null"))
        done = disk.add()
        assert (done.status, done.nodes["physical-device-path"]) == (0, os.fsencode(system.place.dev / "ada0"))
        assert disk.remove().status == 0
        nothing_left(disk)

    def test_a_disk_is_in_use_where_its_partition_is(self, bsd: Host, system: Freebsd) -> None:
        ada0 = system.disk("ada0", "null")
        part = system.partition("ada0", 2, MIB, 8 * MIB, "zero")
        assert bsd.disk(5, part).add().status == 0
        refused(bsd.disk(6, ada0), "guest 5", f"through {part}, partition")

    def test_a_partition_is_in_use_where_its_disk_is(self, bsd: Host, system: Freebsd) -> None:
        ada0 = system.disk("ada0", "null")
        part = system.partition("ada0", 2, MIB, 8 * MIB, "zero")
        assert bsd.disk(5, ada0).add().status == 0
        refused(bsd.disk(6, part), "guest 5", f"through {ada0}")

    def test_two_partitions_are_two_disks(self, bsd: Host, system: Freebsd) -> None:
        system.disk("ada0")
        first = system.partition("ada0", 1, MIB, 8 * MIB, "null")
        second = system.partition("ada0", 2, 9 * MIB, 8 * MIB, "zero")
        assert [bsd.disk(5, first).add().status, bsd.disk(6, second).add().status] == [0, 0]

    def test_a_label_is_its_partition(self, bsd: Host, system: Freebsd) -> None:
        system.disk("ada0")
        part = system.partition("ada0", 2, MIB, 8 * MIB, "null")
        label = system.give(Geom("LABEL", "ada0p2", [Use("ada0p2")], {"gpt/web": {"mediasize": 8 * MIB}}), "zero")
        assert bsd.disk(5, label).add().status == 0
        refused(bsd.disk(6, part), "guest 5", f"through {label}, label")

    def test_a_partition_of_a_mirror_has_both_disks(self, bsd: Host, system: Freebsd) -> None:
        ada0 = system.disk("ada0", "null")
        system.disk("ada1")
        mirror = {"mirror/gm0": {"mediasize": 64 * MIB - 512}}
        system.give(Geom("MIRROR", "gm0", [Use("ada0", (1, 1, 1)), Use("ada1", (1, 1, 1))], mirror), "zero")
        part = system.partition("mirror/gm0", 1, MIB, 8 * MIB, "full")
        assert bsd.disk(5, part).add().status == 0
        refused(bsd.disk(6, ada0), "guest 5")

    def test_a_member_of_a_mirror_is_held(self, bsd: Host, system: Freebsd) -> None:
        ada0 = system.disk("ada0", "null")
        mirror = {"mirror/gm0": {"mediasize": 64 * MIB - 512}}
        system.give(Geom("MIRROR", "gm0", [Use("ada0", (1, 1, 1))], mirror))
        refused(bsd.disk(6, ada0), "part of mirror/gm0 (MIRROR)")

    def test_a_disk_of_a_pool_is_held(self, bsd: Host, system: Freebsd) -> None:
        ada0 = system.disk("ada0", "null")
        system.use("ZFS::VDEV", "zfs::vdev", "ada0", (1, 1, 1))
        refused(bsd.disk(5, ada0), "part of zfs::vdev (ZFS::VDEV)")

    def test_two_volumes_of_a_pool_are_two_disks(self, bsd: Host, system: Freebsd) -> None:
        web, mail = (
            system.give(Geom("ZFS::ZVOL", f"zvol/tank/{name}", gives={f"zvol/tank/{name}": {"mediasize": MIB}}), node)
            for name, node in (("web", "null"), ("mail", "zero"))
        )
        assert [bsd.disk(5, web).add().status, bsd.disk(6, mail).add().status] == [0, 0]
        refused(bsd.disk(7, web), "guest 5")

    @pytest.mark.parametrize(("mode", "opened"), [("w", (1, 0, 0)), ("w", (1, 1, 1)), ("r", (1, 1, 1))])
    def test_that_is_mounted_is_refused(
        self, bsd: Host, system: Freebsd, mode: str, opened: tuple[int, int, int]
    ) -> None:
        node = system.disk("ada0", "null")
        how = "local" if opened[1] else "local, read-only"
        system.mounts.append(f"{node} on /srv (ufs, {how})")
        system.use("VFS", "ffs.ada0", "ada0", opened)
        refused(bsd.disk(5, node, mode), "is mounted on /srv", "(read-write)" if opened[1] else "(read-only)")

    def test_a_reader_bears_a_read_only_mount(self, bsd: Host, system: Freebsd) -> None:
        node = system.disk("ada0", "null")
        system.mounts.append(f"{node} on /srv (ufs, local, read-only)")
        system.use("VFS", "ffs.ada0", "ada0", (1, 0, 0))
        assert bsd.disk(5, node, "r").add().status == 0

    def test_swap_space_is_refused(self, bsd: Host, system: Freebsd) -> None:
        node = system.disk("ada0", "null")
        system.swaps.append(str(node))
        system.use("SWAP", "swap", "ada0", (1, 1, 0))
        refused(bsd.disk(5, node), "swap space", f"swapctl -d {node}")

    def test_a_mount_that_mount_does_not_list_still_counts(self, bsd: Host, system: Freebsd) -> None:
        node = system.disk("ada0", "null")
        system.use("VFS", "ffs.ada0", "ada0", (1, 1, 1))
        refused(bsd.disk(5, node), "is mounted")

    def test_a_program_that_only_reads_is_no_obstacle(self, bsd: Host, system: Freebsd) -> None:
        node = system.disk("ada0", "null")
        next(geom for geom in system.geoms if geom.kind == "DEV").uses[0].mode = (2, 0, 0)
        system.tell()
        assert bsd.disk(5, node).add().status == 0

    def test_a_device_that_is_no_disk(self, bsd: Host, system: Freebsd) -> None:
        done = bsd.disk(5, system.place.node("console", "null")).add()
        assert (done.status, done.outcome) == (1, b"error")
        assert "is a device but no disk" in done.error

    def test_a_drive_without_a_medium(self, bsd: Host, system: Freebsd) -> None:
        done = bsd.disk(5, system.disk("cd0", "null", size=0), "r").add()
        assert done.status == 1
        assert "without a medium" in done.error

    def test_a_target_that_is_not_there(self, bsd: Host, system: Freebsd) -> None:
        done = bsd.disk(5, system.place.dev / "ada7").add()
        assert (done.status, done.outcome) == (1, b"error")
        assert "does not exist" in done.error


class TestAsking:
    def test_one_question_for_a_file(self, bsd: Host, system: Freebsd, image: Path) -> None:
        bsd.disk(5, image).add()
        assert system.place.asked() == ["sysctl -b kern.geom.confxml"]

    def test_no_question_without_a_check(self, bsd: Host, system: Freebsd, image: Path) -> None:
        bsd.disk(5, image, "w!").add()
        assert system.place.asked() == []

    @pytest.mark.parametrize(
        ("trouble", "words"),
        [
            ("exit 1\nsysctl: unknown oid 'kern.geom.confxml'\n", "unknown oid 'kern.geom.confxml'"),
            ("exit 3\n", "exit 3, without a word"),
            (None, "the program sysctl is not there"),
        ],
    )
    def test_what_cannot_be_known_is_not_free(
        self, bsd: Host, system: Freebsd, image: Path, trouble: str | None, words: str
    ) -> None:
        if trouble is None:
            (system.place.bin / "sysctl").unlink()
        else:
            system.place.say("sysctl -b kern.geom.confxml", trouble)
        disk = bsd.disk(5, image)
        done = disk.add()
        assert (done.status, done.outcome) == (1, b"error")
        assert words in done.error
        nothing_left(disk)

    @pytest.mark.parametrize(
        "change",
        [
            lambda mesh: mesh[: len(mesh) // 2],
            lambda mesh: b"",
            lambda mesh: mesh.replace(b"r0w0e0", b"read"),
            lambda mesh: mesh.replace(b"    </geom>\n", b"</geom></geom></geom>"),
            lambda mesh: mesh.replace(b"0xfffff80003", b"nowhere"),
        ],
        ids=["half", "nothing", "modes", "ends", "addresses"],
    )
    def test_a_mesh_that_is_not_understood_is_not_free(
        self, bsd: Host, system: Freebsd, image: Path, change: Callable[[bytes], bytes]
    ) -> None:
        system.disk("ada0")
        system.place.say("sysctl -b kern.geom.confxml", change(system.confxml()))
        disk = bsd.disk(5, image)
        done = disk.add()
        assert (done.status, done.outcome) == (1, b"error")
        assert "cannot be told" in done.error
        nothing_left(disk)

    def test_a_kill_in_the_middle_leaves_what_the_next_add_takes_away(
        self, bsd: Host, system: Freebsd, image: Path
    ) -> None:
        """SIGKILL while sysctl is asked, with the lock held: the record stays, and the next run takes it over."""
        fifo = system.place.folder / "fifo"
        os.mkfifo(fifo)
        system.place.program("sysctl", f"#!/bin/sh\necho here >{fifo}\nexec /bin/sleep 30\n")
        disk = bsd.disk(5, image)
        process = disk.start("add")
        assert fifo.read_text() == "here\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL
        assert process.stdout is not None
        process.stdout.close()
        assert "physical-device-path" not in disk.nodes()
        assert [path.name for path in bsd.run_dir.glob("*")] == ["vbd-5-51712"]
        Freebsd.tell(system)
        (system.place.bin / "sysctl").unlink()
        other = Freebsd(system.place.folder / "again")
        (other.place.bin / "sysctl").rename(system.place.bin / "sysctl")
        assert disk.add().status == 0
        assert disk.remove().status == 0
        nothing_left(disk)


# Written after sys/geom/geom_dump.c (g_conf_geom, g_conf_provider), geom/part/g_part.c and dev/md/md.c of FreeBSD 14.
RECORDING = b"""<mesh>
  <class id="0xffffffff81a0b0c8">
    <name>MD</name>
    <geom id="0xfffff8000353b500">
      <class ref="0xffffffff81a0b0c8"/>
      <name>md0</name>
      <rank>1</rank>
      <config>
\t<unit>0</unit>
\t<access>read-only</access>
\t<type>vnode</type>
\t<file>/srv/it&#x27;s.img</file>
      </config>
\t<provider id="0xfffff80003538300">
\t  <geom ref="0xfffff8000353b500"/>
\t  <mode>r1w0e1</mode>
\t  <name>md0</name>
\t  <mediasize>1048576</mediasize>
\t  <sectorsize>512</sectorsize>
\t  <stripesize>0</stripesize>
\t  <stripeoffset>0</stripeoffset>
\t  <config>
\t    <unit>0</unit>
\t    <access>read-only</access>
\t    <type>vnode</type>
\t    <file>/srv/it&#x27;s.img</file>
\t  </config>
\t</provider>
    </geom>
    <geom id="0xfffff8000353b700">
      <class ref="0xffffffff81a0b0c8"/>
      <name>md1</name>
      <rank>1</rank>
      <wither/>
    </geom>
  </class>
  <class id="0xffffffff81a12345">
    <name>VFS</name>
    <geom id="0xfffff8000353b900">
      <class ref="0xffffffff81a12345"/>
      <name>ffs.md0</name>
      <rank>2</rank>
\t<consumer id="0xfffff80003539980">
\t  <geom ref="0xfffff8000353b900"/>
\t  <provider ref="0xfffff80003538300"/>
\t  <mode>r1w0e1</mode>
\t</consumer>
    </geom>
  </class>
</mesh>
\0"""


def test_the_kernels_own_form_is_understood() -> None:
    md, mount = parse(RECORDING)
    (provider,) = md.providers
    assert (md.kind, provider.name, provider.size) == (b"MD", b"md0", 1 << 20)
    assert (provider.facts[b"access"], provider.facts[b"file"]) == (b"read-only", b"/srv/it's.img")
    (consumer,) = mount.consumers
    assert (mount.kind, consumer.provider, consumer.mode) == (b"VFS", provider.key, (1, 0, 1))
