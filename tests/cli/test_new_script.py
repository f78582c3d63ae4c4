"""`vbdkit new-script`: what it writes works as it is, is tested by the test that it writes, and overwrites nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.need import need_root
from vbdkit.cli.new_script import _settings
from vbdkit.toolstack.ways import manifest


@pytest.fixture(scope="module")
def package(kept_package: Path) -> Path:
    """One copy of the package for all tests here: it is compiled once."""
    return kept_package


@pytest.fixture
def folder(safe_folder: Path) -> Path:
    """Where the author works."""
    path = safe_folder / "work"
    path.mkdir()
    return path


def new(command: Run, folder: Path, name: str = "tape") -> tuple[Path, Path]:
    done = command("new-script", name, "--folder", folder)
    assert done.returncode == 0, done.stderr
    name = name.removeprefix("block-")
    return folder / f"block-{name}", folder / f"test_block_{name.replace('-', '_')}.py"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(test: Path, **options: object) -> "subprocess.CompletedProcess[str]":
    settings = {"env": {"PATH": os.environ["PATH"]}, "cwd": "/", "capture_output": True, "text": True, "timeout": 120}
    return subprocess.run([test], **{**settings, **options})  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("root", [True, False], ids=["root", "nobody"])
def test_the_test_passes_as_written_without_xen(command: Run, folder: Path, root: bool) -> None:
    need_root()
    _, test = new(command, folder)
    done = run(test, **({} if root else {"user": 65534, "group": 65534, "extra_groups": []}))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok"] * 4
    assert names(folder) == ["block-tape", "test_block_tape.py"]


def test_pytest_runs_it_too(command: Run, folder: Path) -> None:
    _, test = new(command, folder)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("os.remove(made[", "print(made["),
        ("self.note(copy=copy)", "pass"),
        ("return copy", "return target['template']"),
        ('self.tool("cp"', 'self.tool("true"'),
        ('"cp": "coreutils"', '"no-such-program": "coreutils"'),
    ],
)
def test_its_test_sees_what_is_wrong(command: Run, folder: Path, right: str, wrong: str) -> None:
    script, test = new(command, folder)
    text = script.read_text()
    assert right in text
    script.write_text(text.replace(right, wrong))
    done = run(test)
    assert done.returncode == 1
    assert "failed  test_" in done.stdout


def test_the_script_says_what_it_is(command: Run, folder: Path) -> None:
    script, _ = new(command, folder)
    done = subprocess.run([script, "--describe"], capture_output=True, text=True)
    said = json.loads(done.stdout)
    assert said["name"] == "tape"
    assert said["description"] == "A copy of a template for each guest, thrown away with the disk."
    assert manifest(os.fsencode(script)) == {"path-only": said["path-only"]}


def test_it_sees_neither_the_environment_nor_its_neighbours(command: Run, folder: Path, tmp_path: Path) -> None:
    script, _ = new(command, folder)
    for place in (tmp_path, folder):
        (place / "struct.py").write_text("raise SystemExit('a stranger ran')")
    done = subprocess.run(
        [script, "--describe"], env={"PYTHONPATH": str(tmp_path)}, cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("my-own_disk2", "MyOwnDisk2"), ("block-x", "X"), ("none", "NoneDisk"), ("storage", "StorageDisk")],
)
def test_names(command: Run, folder: Path, name: str, kind: str) -> None:
    script, test = new(command, folder, name)
    assert f"class {kind}(Storage):" in script.read_text()
    assert run(test).returncode == 0


@pytest.mark.parametrize(
    "name", ["", "a b", "../x", "/etc/x", "Tape", "-x", "x-", "a--b", "1a", "x" * 41, "größe", "a\nb", "block-"]
)
def test_a_bad_name_is_refused_with_a_sentence(command: Run, folder: Path, name: str) -> None:
    done = command("new-script", "--folder", folder, "--", name)
    assert done.returncode == 1
    assert "is no name for a script" in done.stderr
    assert "like this: tape, my-storage" in done.stderr
    assert names(folder) == []


@pytest.mark.parametrize("there", ["block-tape", "test_block_tape.py"])
def test_nothing_is_overwritten(command: Run, folder: Path, there: str) -> None:
    (folder / there).symlink_to("/nowhere")
    done = command("new-script", "tape", "--folder", folder)
    assert done.returncode == 1
    assert f"{folder / there} is there already, and is not overwritten" in done.stderr
    assert names(folder) == [there]


def test_a_folder_that_is_none(command: Run, folder: Path) -> None:
    done = command("new-script", "tape", "--folder", folder / "none")
    assert done.returncode == 1
    assert "is not a folder" in done.stderr


def test_places_are_those_of_the_installed_block() -> None:
    told = {"run_dir": b"/run/one", "lock_dir": b"/run/two", "time_limit": 9.0, "system": "linux"}
    assert _settings(told) == ", run_dir=b'/run/one', lock_dir=b'/run/two'"
    assert _settings({}) == ""


def test_a_folder_whose_name_is_not_ascii(command: Run, folder: Path) -> None:
    place = folder / "Größe"
    place.mkdir()
    _, test = new(command, place)
    assert run(test).returncode == 0
    shutil.rmtree(place)
