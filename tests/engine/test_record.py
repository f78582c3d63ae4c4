"""Records: what vbdkit made, on disk, whatever happens in the middle."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.need import need_root
from vbdkit.engine import Records
from vbdkit.protocol.failure import Failure


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(os.fsencode(tmp_path / "run"))


def test_what_was_written_is_read(records: Records) -> None:
    facts = {"datapath": "file", "target": "/srv/a b\n\\ä\udcff%.img", "mode": "w", "file": "65024 12"}
    record = records.begin("vbd-5-51712", facts)
    record.add({"loop": "3"})
    record.close()
    assert records.load("vbd-5-51712") == facts | {"loop": "3"}


def test_nobody_but_root_sees_them(records: Records) -> None:
    records.begin("vbd-5-51712", {"mode": "w"}).close()
    assert stat.S_IMODE(os.stat(records.directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(records.path("vbd-5-51712")).st_mode) == 0o600


def test_none_is_none(records: Records) -> None:
    assert records.load("vbd-5-51712") is None
    records.remove("vbd-5-51712")


def test_a_record_is_replaced_whole(records: Records) -> None:
    records.begin("vbd-5-51712", {"mode": "w", "loop": "3"}).close()
    records.begin("vbd-5-51712", {"mode": "r"}).close()
    assert records.load("vbd-5-51712") == {"mode": "r"}
    assert os.listdir(records.directory) == [b"vbd-5-51712"]


def test_a_line_that_a_kill_cut_short_does_not_count(records: Records) -> None:
    records.begin("vbd-5-51712", {"mode": "w"}).close()
    with open(records.path("vbd-5-51712"), "ab") as file:
        file.write(b"loop 1")
    assert records.load("vbd-5-51712") == {"mode": "w"}


@pytest.mark.parametrize(
    "text",
    [b"", b"vbdkit 2\nmode w\n", b"nonsense\n", b"\xff\xfe\n", b"vbdkit 1\nmode %zz\n", b"vbdkit 1\nmode %\xff\n"],
)
def test_one_that_cannot_be_understood_is_named_and_kept(records: Records, text: bytes) -> None:
    records.begin("vbd-5-51712", {"mode": "w"}).close()
    path = Path(os.fsdecode(records.path("vbd-5-51712")))
    path.write_bytes(text)
    with pytest.raises(Failure, match="vbd-5-51712"):
        records.load("vbd-5-51712")
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
        records.load("vbd-6-51712")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "directory"])
def test_what_is_no_file_in_a_records_place_is_named_and_not_waited_for(
    records: Records, make: "Callable[[bytes], None]"
) -> None:
    os.mkdir(records.directory)
    for path in (records.path("vbd-5-51712"), records.path("vbd-6-51712") + b".new"):
        make(path)
    with pytest.raises(Failure, match="vbd-5-51712"):
        records.load("vbd-5-51712")
    with pytest.raises(Failure, match="vbd-6-51712 cannot be written"):
        records.begin("vbd-6-51712", {})


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match="cannot be written"):
        Records(os.fsencode(tmp_path / "file" / "run")).begin("vbd-5-51712", {})


def test_a_full_file_system_leaves_no_record(tmp_path: Path) -> None:
    """A node of /dev/full stands in for the file system; its every write fails with ENOSPC."""
    need_root()
    run = tmp_path / "run"
    run.mkdir()
    os.mknod(run / "vbd-5-51712.new", 0o600 | stat.S_IFCHR, os.makedev(1, 7))
    with pytest.raises(Failure, match="No space left"):
        Records(os.fsencode(run)).begin("vbd-5-51712", {"mode": "w"})
    assert not (run / "vbd-5-51712").exists()
