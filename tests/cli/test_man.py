"""The man pages are whole: they format without a warning and know every option that --help knows."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY, run_command
from tests.need import need_program

PAGES = sorted((REPOSITORY / "docs" / "man").iterdir())


def formatted(page: Path) -> str:
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "120", "MAN_KEEP_FORMATTING": ""}
    done = subprocess.run(
        [need_program("man"), "--warnings=w", "-l", page], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return re.sub(r".\x08", "", done.stdout).replace("\u2010", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_a_page_formats_without_a_warning(page: Path) -> None:
    assert formatted(page).splitlines()[0].startswith(f"{page.stem.upper()}({page.suffix[1:]})")


@pytest.mark.parametrize(
    "command",
    [
        "try",
        "check",
        "install",
        "uninstall",
        "attach",
        "detach",
        "run",
        "new-script",
        "device-model-args",
        "devd",
        "gc",
    ],
)
def test_each_option_is_in_the_page(package: Path, command: str) -> None:
    options = set(re.findall(r"--[a-z-]+", run_command(package, command, "--help").stdout))
    page = formatted(REPOSITORY / "docs" / "man" / "vbdkit.1")
    section = page[page.index(f"   vbdkit {command}") :]
    assert options - {"--help"} - set(re.findall(r"--[a-z-]+", section)) == set()
