"""Records: what vbdkit made, on disk, whatever happens in the middle."""

import fcntl
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.images import mounted
from tests.need import need_root
from vbdkit.engine import Records
from vbdkit.engine.record import Busy
from vbdkit.protocol.failure import Failure


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(os.fsencode(tmp_path / "run"))


def load(records: Records, name: str) -> dict[str, str] | None:
    """What a record says, as the next run reads it."""
    record = records.take(name, 0)
    if record is None:
        return None
    record.close()
    return record.facts


def test_what_was_written_is_read(records: Records) -> None:
    facts = {"datapath": "file", "target": "/srv/a b\n\\ä\udcff%.img", "mode": "w", "file": "65024 12"}
    record = records.begin("vbd-5-51712", facts)
    record.add({"loop": "3"})
    record.close()
    assert load(records, "vbd-5-51712") == facts | {"loop": "3"}


def test_nobody_but_root_sees_them(records: Records) -> None:
    records.begin("vbd-5-51712", {"mode": "w"}).close()
    assert stat.S_IMODE(os.stat(records.directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(records.path("vbd-5-51712")).st_mode) == 0o600


def test_none_is_none(records: Records) -> None:
    assert load(records, "vbd-5-51712") is None


def test_a_record_is_replaced_whole(records: Records) -> None:
    records.begin("vbd-5-51712", {"mode": "w", "loop": "3"}).close()
    records.begin("vbd-5-51712", {"mode": "r"}).close()
    assert load(records, "vbd-5-51712") == {"mode": "r"}
    assert os.listdir(records.directory) == [b"vbd-5-51712"]


def test_a_line_that_a_kill_cut_short_does_not_count(records: Records) -> None:
    records.begin("vbd-5-51712", {"mode": "w"}).close()
    with open(records.path("vbd-5-51712"), "ab") as file:
        file.write(b"loop 1")
    assert load(records, "vbd-5-51712") == {"mode": "w"}


@pytest.mark.parametrize(
    "text",
    [b"", b"vbdkit 2\nmode w\n", b"nonsense\n", b"\xff\xfe\n", b"vbdkit 1\nmode %zz\n", b"vbdkit 1\nmode %\xff\n"],
)
def test_one_that_cannot_be_understood_is_named_and_kept(records: Records, text: bytes) -> None:
    records.begin("vbd-5-51712", {"mode": "w"}).close()
    path = Path(os.fsdecode(records.path("vbd-5-51712")))
    path.write_bytes(text)
    with pytest.raises(Failure, match="vbd-5-51712"):
        load(records, "vbd-5-51712")
    assert path.read_bytes() == text


def test_a_link_in_a_records_place_is_not_followed(records: Records, tmp_path: Path) -> None:
    records.begin("vbd-1-1", {"mode": "w"}).close()
    other = tmp_path / "precious"
    other.write_text("precious")
    os.symlink(other, records.path("vbd-5-51712") + b".new")
    with pytest.raises(Failure):
        records.begin("vbd-5-51712", {"mode": "w"})
    assert other.read_text() == "precious"
    os.symlink(other, records.path("vbd-6-51712"))
    with pytest.raises(Failure):
        load(records, "vbd-6-51712")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "directory"])
def test_what_is_no_file_in_a_records_place_is_named_and_not_waited_for(
    records: Records, make: "Callable[[bytes], None]"
) -> None:
    os.mkdir(records.directory)
    for path in (records.path("vbd-5-51712"), records.path("vbd-6-51712") + b".new"):
        make(path)
    with pytest.raises(Failure, match="vbd-5-51712"):
        load(records, "vbd-5-51712")
    with pytest.raises(Failure, match="vbd-6-51712 cannot be written"):
        records.begin("vbd-6-51712", {})


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match="cannot be written"):
        Records(os.fsencode(tmp_path / "file" / "run")).begin("vbd-5-51712", {})


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4,096 bytes."""
    need_root()
    place = tmp_path / "tiny"
    place.mkdir()
    with mounted(place, "-t", "tmpfs", "-o", "size=4k", "tmpfs"):
        yield place


def test_a_full_file_system_leaves_no_record(tiny: Path) -> None:
    (tiny / "filler").write_bytes(bytes(4096))
    with pytest.raises(Failure, match="No space left"):
        Records(os.fsencode(tiny)).begin("vbd-5-51712", {"mode": "w"})
    assert [path.name for path in tiny.iterdir()] == ["filler"]


def test_a_read_only_file_system_is_a_clear_error(tiny: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", tiny], check=True)
    with pytest.raises(Failure, match="cannot be written: Read-only file system"):
        Records(os.fsencode(tiny)).begin("vbd-5-51712", {"mode": "w"})


def test_what_a_kill_left_half_written_does_not_get_into_the_next(records: Records) -> None:
    records.begin("vbd-5-51712", {"mode": "w"}).close()
    half = Path(os.fsdecode(records.path("vbd-5-51712") + b".new"))
    half.write_text("vbdkit 1\nmode r\nloop 7\nmuch more than the next one has to say, so that a rest would show\n")
    records.begin("vbd-5-51712", {"mode": "w"}).close()
    assert load(records, "vbd-5-51712") == {"mode": "w"}


def test_another_users_record_is_not_believed(records: Records) -> None:
    need_root()
    records.begin("vbd-5-51712", {"mode": "w"}).close()
    os.chown(records.path("vbd-5-51712"), 65534, 65534)
    with pytest.raises(Failure, match="belongs to another user"):
        load(records, "vbd-5-51712")


def test_of_two_runs_for_one_disk_the_second_waits_and_says_for_whom(records: Records) -> None:
    holding = records.begin("vbd-5-51712", {"mode": "w"})
    with pytest.raises(Busy, match=rf"held by pid {os.getpid()} \(.+\) for \d+ s"):
        records.take("vbd-5-51712", time.monotonic() + 0.2)
    releaser = threading.Timer(0.3, holding.close)
    releaser.start()
    record = records.take("vbd-5-51712", time.monotonic() + 20)
    assert record is not None
    releaser.join()
    record.close()


def test_a_record_that_went_while_it_was_waited_for_is_none(records: Records) -> None:
    """As when `remove` comes while `vbdkit gc` is at work on the same disk."""
    holding = records.begin("vbd-5-51712", {"mode": "w"})

    def end() -> None:
        holding.remove()
        holding.close()

    releaser = threading.Timer(0.3, end)
    releaser.start()
    assert records.take("vbd-5-51712", time.monotonic() + 20) is None
    releaser.join()


def test_two_adds_for_one_disk_never_write_into_one_file(records: Records) -> None:
    os.mkdir(records.directory)
    with open(records.path("vbd-5-51712") + b".new", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"as the other run wrote it")
        other.flush()
        with pytest.raises(Busy):
            records.begin("vbd-5-51712", {"mode": "w"})
        assert Path(os.fsdecode(other.name)).read_bytes() == b"as the other run wrote it"
