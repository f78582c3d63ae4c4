"""A custom script in Python keeps every promise of ``block`` (C2, I1-I5, O1-O7): ten lines are enough for that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.custom.conftest import LOOP, Author, copies, loops_left
from tests.host import SOURCE, Disk, Result, backing_file, bound_loops
from tests.images import losetup, make_image
from tests.waiting import until


def refused(result: Result, *words: str) -> None:
    """The script refused with a sentence that has these words, and said it to the store and to the toolstack."""
    assert result.status == 1
    for word in words:
        assert word in result.error
    assert result.error in result.output
    assert not {"physical-device", "physical-device-path"} & set(result.nodes)


class TestOneGuest:
    def test_add_and_remove(self, author: Author, image: Path) -> None:
        disk = author.disk(LOOP, image)
        done = disk.add()
        assert (done.status, done.outcome, done.output) == (0, b"connected", "")
        device = done.nodes["physical-device-path"].decode()
        number = os.stat(device).st_rdev
        assert done.nodes["physical-device"] == b"%x:%x" % (os.major(number), os.minor(number))
        assert backing_file(device) == str(image)
        assert author.records() == ["vbd-5-51712"]
        gone = disk.remove()
        assert (gone.status, gone.output) == (0, "")
        assert (loops_left(), author.records()) == ([], [])

    def test_twice(self, author: Author, image: Path) -> None:
        """I5: add for a disk that the guest has is no second attach; remove is quiet as often as it comes."""
        disk = author.disk(LOOP, image)
        disk.add()
        disk.write(state=b"4")
        assert disk.add().status == 0
        assert len(bound_loops()) == 1
        assert [disk.remove().status for _ in range(3)] == [0, 0, 0]
        assert loops_left() == []

    def test_add_anew_takes_the_old_one_back_first(self, author: Author, image: Path) -> None:
        disk = author.disk(LOOP, image)
        assert [disk.add().status for _ in range(3)] == [0, 0, 0]
        assert len(bound_loops()) == 1
        disk.remove()

    def test_remove_without_an_add(self, author: Author, image: Path) -> None:
        done = author.disk(LOOP, image).remove()
        assert (done.status, done.output) == (0, "")

    def test_remove_works_from_the_record(self, author: Author, image: Path) -> None:
        """I4: nodes and file are gone."""
        disk = author.disk(LOOP, image)
        disk.add()
        disk.forget()
        image.unlink()
        assert disk.remove().status == 0
        assert (loops_left(), author.records()) == ([], [])

    def test_a_plain_file_is_served_as_block_serves_one(self, author: Author, image: Path) -> None:
        disk = author.disk(
            'class Test(Storage):\n    def attach(self, target, mode):\n        return target["target"]\n',
            image,
            mode="r",
        )
        done = disk.add()
        assert done.status == 0
        loop = done.nodes["node"].decode()
        assert backing_file(loop) == str(image)
        assert Path(f"/sys/block/{loop.removeprefix('/dev/')}/ro").read_text() == "1\n"
        assert disk.remove().status == 0
        assert loops_left() == []

    def test_the_mode_is_obeyed(self, author: Author, image: Path) -> None:
        """O8: a device that cannot be written is no disk to write to."""
        disk = author.disk(LOOP.replace('"--show"', '"--show", "--read-only"'), image)
        refused(disk.add(), "is a read-only device")
        assert (loops_left(), author.records()) == ([], [])


class TestTargets:
    @pytest.mark.parametrize(
        ("target", "words"),
        [
            ("vg", ["the target vg is not of the form VG/LV[@SNAPSHOT], for example vg0/web"]),
            ("/lv", ["is not of the form"]),
            ("vg/", ["is not of the form"]),
            ("vg/lv@", []),
            ("-rf/lv", ["VG in the target -rf/lv begins with a hyphen"]),
            ("vg/--help", ["LV in the target vg/--help begins with a hyphen"]),
        ],
    )
    def test_a_wrong_one_is_named_with_its_syntax(self, author: Author, target: str, words: list[str]) -> None:
        body = (
            'class Test(Storage):\n    syntax = "VG/LV[@SNAPSHOT]"\n    example = "vg0/web"\n'
            '    def attach(self, target, mode):\n        raise Failure("attached {it}", it=str(target))\n'
        )
        done = author.disk(body, target).add()
        refused(done, *words or ["attached {'vg': 'vg', 'lv': 'lv@'}"])
        assert ("attached" in done.error) == (not words)

    @pytest.mark.parametrize(
        "name", ["a b.img", "$(touch x).img", "a;b&c|d.img", "new\nline.img", "größe.img", "'\".img"]
    )
    def test_any_name_reaches_the_program_as_it_is(self, author: Author, tmp_path: Path, name: str) -> None:
        disk = author.disk(LOOP, make_image(tmp_path / name))
        done = disk.add()
        assert done.status == 0, done.error
        assert disk.remove().status == 0
        assert not Path("x").exists()


class TestSharing:
    def test_o1_the_same_file_through_two_devices(self, author: Author, image: Path) -> None:
        author.disk(LOOP, image).add()
        refused(author.host.disk(6, image).add(), "is in use by guest 5 (guest5) as its disk xvda, read-write")
        assert len(bound_loops()) == 1
        assert author.records() == ["vbd-5-51712"]

    def test_block_and_a_custom_script_refuse_each_other(self, author: Author, image: Path) -> None:
        block = author.host.script
        first = author.disk(LOOP, image)
        first.add()
        author.host.script = block
        other = author.host.disk(6, image)
        refused(other.add(), "guest 5")
        first.remove()
        assert other.add().status == 0
        refused(author.disk(LOOP, image, 7).add(), "guest 6")

    @pytest.mark.parametrize("identity", ['"share " + target["file"]', 'target["file"]'], ids=["a name", "a path"])
    def test_o1_what_only_the_identity_tells(self, author: Author, image: Path, tmp_path: Path, identity: str) -> None:
        body = copies(tmp_path, identity)
        first = author.disk(body, image)
        assert first.add().status == 0
        refused(
            author.disk(body, image, 6).add(), f"{image} is in use by guest 5 (guest5) as its disk xvda, read-write"
        )
        assert not (tmp_path / "vbd-6-51712").exists(), "the slow part was begun"
        first.remove()
        assert author.host.disk(6, image).add().status == 0

    @pytest.mark.parametrize("how", ["file", "hard link", "loop device"])
    def test_o1_block_too_refuses_what_an_identity_names(
        self, author: Author, image: Path, tmp_path: Path, how: str
    ) -> None:
        """A packed image that is unpacked for a guest is that guest's, whoever asks for it."""
        block = author.host.script
        first = author.disk(copies(tmp_path, 'target["file"]'), image)
        assert first.add().status == 0
        author.host.script = block
        asked = image
        if how == "hard link":
            asked = tmp_path / "link.img"
            asked.hardlink_to(image)
        elif how == "loop device":
            asked = Path(losetup("--find", "--show", str(image)))
        other = author.host.disk(6, asked)
        refused(other.add(), f"{asked} is in use by guest 5 (guest5) as its disk xvda, read-write")
        assert first.remove().status == 0
        assert other.add().status == 0, "given back"
        assert other.remove().status == 0
        if how == "loop device":
            losetup("-d", str(asked))
        assert list((author.host.run_dir / ".holds").iterdir()) == []

    def test_o1_block_refuses_it_while_the_script_is_at_work(self, author: Author, image: Path, tmp_path: Path) -> None:
        block = author.host.script
        body = copies(tmp_path, 'target["file"]').replace(
            'self.tool("cp"', 'self.tool("sleep", "2")\n        self.tool("cp"'
        )
        first = author.disk(body, image).start("add")
        marker = author.host.run_dir / ".holds/vbd-5-51712"
        until(marker.exists, "the add holds it")
        author.host.script = block
        refused(author.host.disk(6, image).add(), "is in use by guest 5")
        first.communicate(timeout=60)
        assert first.returncode == 0

    def test_o2_block_may_read_what_is_only_read(self, author: Author, image: Path, tmp_path: Path) -> None:
        block = author.host.script
        assert author.disk(copies(tmp_path, 'target["file"]'), image, mode="r").add().status == 0
        author.host.script = block
        assert author.host.disk(6, image, mode="r").add().status == 0
        refused(author.host.disk(7, image).add(), "or ask for it read-only")

    def test_o2_readers_bear_readers(self, author: Author, image: Path, tmp_path: Path) -> None:
        body = copies(tmp_path)
        for domid in (5, 6):
            assert author.disk(body, image, domid, mode="r").add().status == 0
        refused(author.disk(body, image, 7).add(), "or ask for it read-only")

    def test_a_part_is_shared_by_those_who_read_it(self, author: Author, image: Path, tmp_path: Path) -> None:
        """A backing image: for many, as long as none of them writes to it."""
        tops = [make_image(tmp_path / f"{number}.img") for number in range(2)]
        body = (
            LOOP + f'    def identity(self, target):\n        return target["file"]\n'
            f'    def parts(self, target):\n        return [("{image}", False)] * (target["file"] != "{image}")\n'
        )
        author.disk(body, image, 7).add()
        refused(author.disk(body, tops[0]).add(), f"{image} is in use by guest 7 (guest7) as its disk xvda, read-write")
        assert author.host.disk(7, image).remove().status == 0
        assert author.host.disk(7, image, mode="r").add().status == 0
        for domid, top in enumerate(tops, 5):
            assert author.host.disk(domid, top).add().status == 0

    def test_a_part_that_is_written_is_one_guests(self, author: Author, image: Path, tmp_path: Path) -> None:
        """A data file beside an image: its user may have it alone, be that by our script or by block."""
        top = make_image(tmp_path / "top.img")
        block = author.host.script
        body = LOOP + f'    def parts(self, target):\n        return [("{image}", True)]\n'
        author.host.script = block
        assert author.host.disk(7, image, mode="r").add().status == 0
        refused(author.disk(body, top).add(), f"{image} is in use by guest 7")
        assert author.disk(body, top, mode="r").add().status == 0

    def test_the_same_vm_may(self, author: Author, image: Path, tmp_path: Path) -> None:
        """Migration on one host: two domains, one vm."""
        author.write(copies(tmp_path))
        for domid in (5, 6):
            author.host.domain(domid, vm="/vm/one")
            assert author.host.vbd(domid, image).add().status == 0

    def test_the_exclamation_mark_skips_the_check(self, author: Author, image: Path, tmp_path: Path) -> None:
        body = copies(tmp_path)
        assert author.disk(body, image).add().status == 0
        assert author.disk(body, image, 6, mode="w!").add().status == 0

    def test_a_name_of_one_script_is_none_of_anothers(self, author: Author, image: Path, tmp_path: Path) -> None:
        author.disk(copies(tmp_path, '"image"'), image).add()
        author.write(copies(tmp_path, '"image"').replace("class Test(", "class Other("), "block-other", "Other")
        assert author.host.disk(6, image).add().status == 0

    def test_leftovers_of_the_dead_do_not_count(self, author: Author, image: Path, tmp_path: Path) -> None:
        body = copies(tmp_path)
        first = author.disk(body, image)
        first.add()
        first.forget()
        refused(author.disk(body, image, 6).add(), "was attached for guest 5")  # it lives, and no remove was called
        with author.host.connect() as store:
            store.remove(b"/local/domain/5")
        assert author.host.disk(6, image).add().status == 0

    def test_a_killed_add_counts(self, author: Author, image: Path, tmp_path: Path) -> None:
        """Nobody knows what it has done by then."""
        disk = author.disk(
            copies(tmp_path).replace('self.tool("cp"', 'os.kill(os.getpid(), 9)\n        self.tool("cp"'), image
        )
        assert disk.add().status == -9
        refused(author.disk(copies(tmp_path), image, 6).add(), "guest 5")
        assert disk.remove().status == 0
        assert author.host.disk(6, image).add().status == 0

    @pytest.mark.parametrize("identity", ['"share " + target["file"]', 'target["file"]'], ids=["a name", "a path"])
    def test_sixteen_at_once(self, author: Author, image: Path, tmp_path: Path, identity: str) -> None:
        """Exactly one wins, though all pass the first look."""
        author.write(copies(tmp_path, identity))
        disks = [author.host.disk(domid, image) for domid in range(5, 21)]
        running = [disk.start("add") for disk in disks]
        for process in running:
            process.communicate(timeout=60)
        assert sorted(process.returncode for process in running) == [0] + [1] * 15
        (winner,) = [disk for disk, process in zip(disks, running, strict=True) if process.returncode == 0]
        assert author.records() == [f"vbd-{winner.domid}-51712"]
        assert len(bound_loops()) == 1

    def test_a_device_that_another_guest_has_by_now_is_not_taken_back(self, author: Author, image: Path) -> None:
        """One volume for two readers: the first one's remove leaves it to the second."""
        body = LOOP.replace(
            'return self.tool("losetup", "--find", "--show", target["file"]).strip()',
            'return self.tool("losetup", "--noheadings", "--output", "NAME", "--associated", target["file"]).strip()'
            ' or self.tool("losetup", "--find", "--show", target["file"]).strip()',
        )
        first, second = (author.disk(body, image, domid, mode="r") for domid in (5, 6))
        assert (first.add().status, second.add().status) == (0, 0)
        assert len(bound_loops()) == 1
        assert first.remove().status == 0
        assert len(bound_loops()) == 1
        assert second.remove().status == 0
        assert (loops_left(), author.records()) == ([], [])


def test_a_record_of_another_script_is_taken_back_by_that_script(author: Author, image: Path) -> None:
    disk: Disk = author.disk(LOOP, image)
    disk.add()
    author.write("class Other(Storage):\n    def attach(self, target, mode): ...\n", "block-other", "Other")
    assert disk.remove().status == 0
    assert (loops_left(), author.records()) == ([], [])


class TestCollection:
    def gc(self, author: Author) -> str:
        """What `vbdkit gc` says and does on the author's host."""
        host = author.host
        with host.connect() as store:
            store.write(b"domid", b"0")
        argv = [sys.executable, "-m", "vbdkit", "gc", "--run-dir", str(host.run_dir), "--lock-dir", str(host.lock_dir)]
        done = subprocess.run(
            argv, env=host.environment() | {"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, timeout=60
        )
        return done.stdout + done.stderr

    def test_the_script_takes_back_what_its_dead_guest_had(self, author: Author, image: Path) -> None:
        disk = author.disk(LOOP, image)
        disk.add()
        disk.forget()
        assert "collected" in self.gc(author)
        assert (loops_left(), author.records()) == ([], [])

    def test_the_living_keep_theirs(self, author: Author, image: Path) -> None:
        author.disk(LOOP, image).add()
        self.gc(author)
        assert (len(bound_loops()), author.records()) == (1, ["vbd-5-51712"])

    def test_a_script_that_is_gone_is_named(self, author: Author, image: Path) -> None:
        disk = author.disk(LOOP, image)
        disk.add()
        disk.forget()
        author.host.script.unlink()
        said = self.gc(author)
        assert f"{image} was attached by {author.host.script}, which alone can take it back and is not there" in said
        assert author.records() == ["vbd-5-51712"]

    def test_why_it_could_not_is_told(self, author: Author, image: Path) -> None:
        disk = author.disk(
            LOOP.replace('if "device" in made', 'raise Failure("the array is rebuilding")\n        if 0'), image
        )
        disk.add()
        disk.forget()
        assert "the array is rebuilding" in self.gc(author)
        assert author.records() == ["vbd-5-51712"]
