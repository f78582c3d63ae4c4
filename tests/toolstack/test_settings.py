"""The configuration file: what it may say, and that nothing it says wrongly goes unseen."""

from pathlib import Path

import pytest

from vbdkit.engine.record import RUN_DIR
from vbdkit.engine.script import LOCK_DIR
from vbdkit.protocol.failure import Failure
from vbdkit.toolstack.settings import Limits, Settings, load_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vbdkit.toml"


def test_nothing_said_is_what_libxl_does(file: Path) -> None:
    file.write_text("")
    settings = load_settings(file)
    assert settings.limits == Limits(ready=10, script=40, close=10)
    assert (settings.run_dir, settings.lock_dir) == (RUN_DIR, LOCK_DIR)
    assert (settings.no_script, settings.path_only) == (False, frozenset())
    assert settings.script().endswith(b"/block")


def test_all_of_it_is_read(file: Path) -> None:
    file.write_text(
        """
        system = "freebsd"
        scripts-dir = "/opt/scripts"
        run-dir = "/run/other"
        lock-dir = "/run/locks"
        no-script = true
        path-only = ["block-rbd", "/opt/x/block-y"]
        userdata-dir = "/opt/lib/xen"
        [limits]
        ready = 5
        script = 120
        close = 0.5
        """
    )
    assert load_settings(file) == Settings(
        "freebsd",
        b"/opt/scripts",
        b"/run/other",
        b"/run/locks",
        Limits(5, 120, 0.5),
        True,
        frozenset({b"/opt/scripts/block-rbd", b"/opt/x/block-y"}),
        b"/opt/lib/xen",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no-scripts = true", "has an unknown key: no-scripts"),
        ("[limits]\nreday = 5", "has an unknown key: reday"),
        ("no-script = 1", "no-script has to be true or false"),
        ('path-only = "block-rbd"', "path-only has to be a list"),
        ("path-only = [1]", "path-only has to be a list of scripts' names"),
        ('path-only = [""]', "path-only has to be a list of scripts' names"),
        ("limits = 5", "limits has to be a table"),
        ("[limits]\nscript = 0", "script has to be a number of seconds"),
        ("[limits]\nscript = true", "script has to be a number of seconds"),
        ("[limits]\nscript = inf", "script has to be a number of seconds"),
        ('run-dir = "run"', "run-dir has to be the absolute path of a folder"),
        ('system = "plan9"', "system has to be one of linux"),
        ("no-script", "is no TOML"),
        ("a = 1\na = 2", "is no TOML"),
    ],
)
def test_what_is_wrong_is_named(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(Failure, match=said) as told:
        load_settings(file)
    assert str(file) in str(told.value)


def test_bytes_that_are_no_text_are_no_toml(file: Path) -> None:
    file.write_bytes(b"\xff = 1")
    with pytest.raises(Failure, match="is no TOML"):
        load_settings(file)


def test_a_file_that_is_named_has_to_be_there(file: Path) -> None:
    with pytest.raises(Failure, match="does not exist"):
        load_settings(file)
    with pytest.raises(Failure, match="cannot be read: Is a directory"):
        load_settings(file.parent)
