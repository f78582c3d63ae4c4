"""What disks of one kind have in common, which the last one takes back; and what a killed script has left at work."""

import itertools
from pathlib import Path

import pytest

from tests.custom.conftest import Author
from tests.host import bound_loops
from tests.images import make_image
from tests.waiting import until

# A session with a server, as iSCSI has them, stands for whatever the first disk begins and the last one ends.
SESSION = '''
import os

class Test(Storage):
    """A file, through a session."""
    syntax = "FILE"

    def attach(self, target, mode):
        with self.alone("the session"):
            there = os.path.exists("{session}")
            if not there or any("began" in other for other in self.others(server="one")):
                self.note(began="1")
            self.note(server="one")
            if not there:
                os.mkdir("{session}")
        return self.tool("losetup", "--find", "--show", target["file"]).strip()

    def detach(self, made):
        if "device" in made:
            self.tool("losetup", "--detach", made["device"])
        if "began" in made:
            with self.alone("the session"):
                if all("leaving" in other for other in self.others(server="one")) and os.path.exists("{session}"):
                    os.rmdir("{session}")
'''

# A program that does its work when it is let go.
SLOW = '''
import os

class Test(Storage):
    """What a program makes, in the end."""
    syntax = "FILE"

    def attach(self, target, mode):
        work = "touch {held}; while [ -e {held} ]; do sleep 0.02; done; touch {made}"
        self.tool("sh", "-c", work)
        return target["file"]

    def detach(self, made):
        if os.path.exists("{made}"):
            os.unlink("{made}")
'''


class TestInCommon:
    def body(self, folder: Path) -> str:
        return SESSION.replace("{session}", str(folder / "session"))

    @pytest.mark.parametrize("order", list(itertools.permutations((0, 1, 2)))[::2])
    def test_the_last_one_takes_back(self, author: Author, tmp_path: Path, order: tuple[int, int, int]) -> None:
        body = self.body(tmp_path)
        disks = [author.disk(body, make_image(tmp_path / f"{domid}.img"), domid) for domid in (5, 6, 7)]
        assert [disk.add().status for disk in disks] == [0, 0, 0]
        for number, which in enumerate(order):
            assert (tmp_path / "session").exists(), f"gone with {number} of 3"
            assert disks[which].remove().status == 0
        assert not (tmp_path / "session").exists()
        assert author.records() == []

    def test_what_was_there_before_is_nobodys_to_take_back(self, author: Author, tmp_path: Path) -> None:
        (tmp_path / "session").mkdir()
        disks = [author.disk(self.body(tmp_path), make_image(tmp_path / f"{d}.img"), d) for d in (5, 6)]
        assert [disk.add().status for disk in disks] == [0, 0]
        assert [disk.remove().status for disk in disks] == [0, 0]
        assert (tmp_path / "session").exists()

    def test_all_at_once(self, author: Author, tmp_path: Path) -> None:
        body = self.body(tmp_path)
        disks = [author.disk(body, make_image(tmp_path / f"{domid}.img"), domid) for domid in range(5, 13)]
        for command, there in (("add", True), ("remove", False)):
            running = [disk.start(command) for disk in disks]
            said = [process.communicate(timeout=60)[0] for process in running]
            assert [process.returncode for process in running] == [0] * 8, said
            assert (tmp_path / "session").exists() == there

    def test_of_another_kind_of_storage_nobody_knows(self, author: Author, tmp_path: Path) -> None:
        other = author.disk(self.body(tmp_path), make_image(tmp_path / "5.img"))
        assert other.add().status == 0
        author.write(self.body(tmp_path).replace("class Test(", "class Other("), "block-other", "Other")
        mine = author.host.disk(6, make_image(tmp_path / "6.img"))
        assert mine.add().status == 0
        assert mine.remove().status == 0
        assert (tmp_path / "session").exists()

    def test_a_failed_add_does_not_end_it_for_others(self, author: Author, tmp_path: Path) -> None:
        body = self.body(tmp_path)
        first = author.disk(body, make_image(tmp_path / "5.img"))
        assert first.add().status == 0
        assert author.disk(body, tmp_path / "missing", 6).add().status == 1
        assert (tmp_path / "session").exists()
        assert first.remove().status == 0
        assert not (tmp_path / "session").exists()


class TestAKilledScript:
    """C6: the toolstack kills the script, and what that has started goes on."""

    def killed(self, author: Author, folder: Path) -> None:
        """An add that was killed while its program is at work."""
        body = SLOW.replace("{held}", str(folder / "held")).replace("{made}", str(folder / "made"))
        self.disk = author.disk(body, make_image(folder / "disk.img"))
        adding = self.disk.start("add")
        until((folder / "held").exists, "the program is at work")
        adding.kill()
        adding.communicate(timeout=30)

    def test_remove_waits_for_its_program(self, author: Author, tmp_path: Path) -> None:
        self.killed(author, tmp_path)
        removing = self.disk.start("remove")
        assert removing.stdout is not None
        assert b"waiting for the end of process" in removing.stdout.readline()
        (tmp_path / "held").unlink()
        removing.communicate(timeout=60)
        assert removing.returncode == 0
        assert not (tmp_path / "made").exists()
        assert author.records() == []

    def test_so_does_the_next_add(self, author: Author, tmp_path: Path) -> None:
        self.killed(author, tmp_path)
        adding = self.disk.start("add")
        assert adding.stdout is not None
        assert b"waiting for the end of process" in adding.stdout.readline()
        (tmp_path / "held").unlink()
        until((tmp_path / "held").exists, "the program is at work")
        assert not (tmp_path / "made").exists(), "the killed one's work was not taken back before the next"
        (tmp_path / "held").unlink()
        adding.communicate(timeout=60)
        assert adding.returncode == 0
        assert self.disk.remove().status == 0
        assert (bound_loops(), author.records()) == ([], [])

    def test_what_does_not_end_is_killed(self, author: Author, tmp_path: Path) -> None:
        author.host.time_limit = 3
        self.killed(author, tmp_path)
        done = self.disk.remove()
        assert done.status == 0
        assert "which a killed run of this script had begun: not after" in done.output
        assert "it is killed" in done.output
        (tmp_path / "held").unlink()
        assert self.disk.remove().status == 0
        assert not (tmp_path / "made").exists()
        assert author.records() == []
