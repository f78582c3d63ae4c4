"""vbdkit.trial: an author's test sees what a guest would see, and what is left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.custom.conftest import HEAD, LOOP, copies
from tests.host import SOURCE
from tests.need import need_loop_devices
from vbdkit.trial import Failure, Trial, run_tests


@pytest.fixture(autouse=True)
def _needs() -> None:
    need_loop_devices()


def script(folder: Path, body: str, more: str = "") -> Path:
    path = folder / "block-test"
    path.write_text(f"{HEAD}{body}\nmain(Test{more})\n")
    path.chmod(0o755)
    return path


def test_a_guest_reads_and_writes(tmp_path: Path) -> None:
    with Trial(script(tmp_path, LOOP)) as trial:
        image = trial.image("a.img", b"hello", size=1 << 16)
        disk = trial.attach(image)
        assert disk.device.startswith("/dev/loop")
        assert disk.size == 1 << 16
        assert disk.read(0).startswith(b"hello")
        disk.write(3, b"world")
        assert image.read_bytes()[1536:1541] == b"world"
        assert disk.output == ""
        trial.detach(disk)
        assert trial.left() == []


def test_a_guest_that_may_only_read_cannot_write(tmp_path: Path) -> None:
    body = LOOP.replace('"--show"', '"--show", *([] if mode.writable else ["--read-only"])')
    with Trial(script(tmp_path, body)) as trial:
        disk = trial.attach(trial.image(), mode="r")
        with pytest.raises(OSError, match="Read-only"):
            disk.write(0, b"x")


def test_a_second_guest_is_refused_as_on_a_host(tmp_path: Path) -> None:
    with Trial(script(tmp_path, copies(tmp_path))) as trial:
        image = trial.image()
        trial.attach(image)
        with pytest.raises(Failure, match=r"in use by guest 1 \(alice\)"):
            trial.attach(image, guest=2)


def test_what_is_left_is_named_and_taken_away(tmp_path: Path) -> None:
    body = LOOP.replace('self.tool("losetup", "--detach"', 'open(made["file"] + ".left", "w"), print(').replace(
        "print(, made", "print(made"
    )
    with Trial(script(tmp_path, body)) as trial:
        disk = trial.attach(trial.image("a.img"))
        left = trial.left()
        assert any(one.startswith("run/vbd-1-51712") for one in left)
        assert "/local/domain/0/backend/vbd/1" in left
        trial.detach(disk)
        assert trial.left() == [str(trial.folder / "a.img.left"), disk.device]
        subprocess.run(["losetup", "--detach", disk.device], check=True)
        folder = trial.folder
    assert not folder.exists()


def test_what_is_attached_at_the_end_is_taken_back(tmp_path: Path) -> None:
    with Trial(script(tmp_path, LOOP)) as trial:
        disk = trial.attach(trial.image())
    assert not Path(f"/sys/block/{disk.device.removeprefix('/dev/')}/loop").exists()


def test_the_hosts_own_records_and_locks_are_not_touched(tmp_path: Path) -> None:
    """Whatever the script itself says of their places."""
    places = f", run_dir={bytes(tmp_path / 'run')!r}, lock_dir={bytes(tmp_path / 'lock')!r}"
    with Trial(script(tmp_path, LOOP, places)) as trial:
        trial.attach(trial.image())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["block-test"]


def test_a_time_limit(tmp_path: Path) -> None:
    body = LOOP.replace("return self.tool(", 'self.tool("sleep", "600")\n        return self.tool(')
    with Trial(script(tmp_path, body), time_limit=1) as trial:
        with pytest.raises(Failure, match="sleep 600 was not done after"):
            trial.attach(trial.image())
        assert trial.left() == []


def test_a_script_of_any_kind(tmp_path: Path) -> None:
    path = tmp_path / "block-sh"
    path.write_text('#!/bin/sh\necho called with "$@"; exit 3\n')
    path.chmod(0o755)
    with Trial(path, environ={"HELLO": "there"}) as trial:
        with pytest.raises(Failure, match="called with"):
            trial.attach("anything")
        assert trial.run("status").stdout == "called with status\n"


def test_a_class_of_a_package_and_the_runner(tmp_path: Path) -> None:
    """In a process of its own, as an author's test file is; with one test that fails."""
    (tmp_path / "block_foo.py").write_text(
        "from vbdkit.custom import Storage, verb\n"
        + LOOP
        + "\n    @verb\n    def whose(self):\n        return self.vbd\n"
    )
    (tmp_path / "tests.py").write_text(
        "import sys\nfrom block_foo import Test\nfrom vbdkit.trial import Trial, run_tests\n\n"
        "def test_one():\n    with Trial(Test) as trial:\n        disk = trial.attach(trial.image())\n"
        "        assert trial.run('whose', disk=disk).stdout == 'vbd-1-51712\\n'\n"
        "        assert trial.run('--describe').returncode == 0\n\n"
        "def test_two():\n    assert 1 == 2\n\nsys.exit(run_tests(globals()))\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{SOURCE}:{tmp_path}"}
    done = subprocess.run(
        [sys.executable, tmp_path / "tests.py"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "ok      test_one\nfailed  test_two\n"), done.stderr
    assert "assert 1 == 2" in done.stderr


def test_the_runner_says_0_where_all_is_well() -> None:
    assert run_tests({"test_a": lambda: None, "other": 5, "test": 5}) == 0
