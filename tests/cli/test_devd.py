"""The command `vbdkit devd`: its options, its lines, and the unit that systemd starts it by."""

import configparser
import os
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY, run_command
from vbdkit.cli.devd import Lines, own
from vbdkit.cli.stub import Stub, place
from vbdkit.toolstack.devd import ERROR, INFO

RUN, LOCK = b"/run/x", b"/run/y"


@pytest.mark.parametrize(
    "options",
    [["--jobs", "0"], ["--jobs", "x"], ["--jobs", "1001"], ["--script-timeout", "0"], ["--script-timeout", "soon"]],
)
def test_wrong_options_are_wrong_use(package: Path, options: list[str]) -> None:
    done = run_command(package, "devd", *options)
    assert done.returncode == 2
    assert options[0] in done.stderr


def test_which_scripts_are_run_in_process(tmp_path: Path) -> None:
    script = tmp_path / "block"
    path = os.fsencode(script)
    assert own(path, RUN, LOCK) is not None, "nothing is there, and it is called block"
    place(tmp_path / "block", Stub(b"#!/bin/false", tmp_path).text(), 0o755)
    found = own(path, RUN, LOCK)
    assert found is not None, "what install has written"
    assert (found.run_dir, found.lock_dir) == (RUN, LOCK)
    script.write_text("#!/bin/sh\n")
    assert own(path, RUN, LOCK) is None, "somebody else's"
    script.unlink()
    script.symlink_to("nowhere")
    assert own(path, RUN, LOCK) is None, "a link is somebody's"
    assert own(b"block", RUN, LOCK) is None, "not a whole path"
    assert own(os.fsencode(tmp_path / "block-iscsi"), RUN, LOCK) is None, "of another name"


def test_lines_for_the_journal_have_a_level(capsys: pytest.CaptureFixture[str]) -> None:
    for journal in (False, True):
        lines = Lines(journal)
        lines(INFO, "watching")
        lines(ERROR, "not attached")
    assert capsys.readouterr().out.splitlines() == ["watching", "not attached", "<6>watching", "<3>not attached"]


def test_that_nobody_reads_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    monkeypatch.setattr("sys.stdout", stream)
    lines = Lines(False)
    lines(INFO, "one")
    lines(INFO, "another")
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_the_unit_starts_and_ends_it_rightly(package: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(REPOSITORY / "docs/systemd/vbdkit-devd.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    # Only the daemon is told to end: it waits for its scripts, which systemd would kill along otherwise.
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) > 40
    _, _, module, *arguments = shlex.split(service["ExecStart"])
    assert module == "vbdkit"
    assert run_command(package, *arguments, "--help").returncode == 0
