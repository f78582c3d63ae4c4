"""The command as users start it: a copy of the package, a system's Python, real processes."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vbdkit
from tests.host import host
from tests.images import image, read_only_loop
from tests.need import need

__all__ = ["host", "image", "read_only_loop"]  # fixtures

REPOSITORY = Path(__file__).parents[2]
SOURCE = Path(vbdkit.__file__).parent


def _system_python() -> Path:
    """The interpreter of the system, as a script's first line would name it, and which every user may run."""
    usual, asks = Path("/usr/bin/python3"), "import sys; sys.exit(sys.version_info < (3, 11))"
    if usual.exists() and subprocess.run([usual, "-c", asks]).returncode == 0:
        return usual
    return Path(getattr(sys, "_base_executable", sys.executable))


PYTHON = _system_python()
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def copy_package(folder: Path) -> Path:
    """Copy the package into ``folder``, without its compiled modules, and return the copy."""
    copy = shutil.copytree(SOURCE, folder / "vbdkit", ignore=shutil.ignore_patterns("__pycache__"))
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return Path(copy)


@contextmanager
def _safe_folder() -> Iterator[Path]:
    base = "/var/lib" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="vbdkit-test-", dir=base) as name:
        Path(name).chmod(0o755)
        yield Path(os.path.realpath(name))


@pytest.fixture
def safe_folder() -> Iterator[Path]:
    """A folder that, as root, only root can write to on the whole way: /tmp and pytest's own are not."""
    with _safe_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def kept_package() -> Iterator[Path]:
    """A copy of the package for a whole module of tests."""
    with _safe_folder() as folder:
        yield copy_package(folder)


@pytest.fixture
def package(safe_folder: Path) -> Path:
    """A copy of the package where root may run it from."""
    (safe_folder / "lib").mkdir()
    return copy_package(safe_folder / "lib")


@pytest.fixture
def command(package: Path) -> Run:
    """Run ``vbdkit ARGUMENTS`` from the copy, without a terminal."""

    def run(*arguments: str | Path, **options: object) -> "subprocess.CompletedProcess[str]":
        return run_command(package, *arguments, **options)

    return run


def run_command(package: Path, *arguments: str | Path, **options: object) -> "subprocess.CompletedProcess[str]":
    """Run the command of one package under the system's Python, with a known environment."""
    settings: dict[str, object] = {
        "stdin": subprocess.DEVNULL,
        "capture_output": True,
        "text": True,
        "timeout": 120,
        "cwd": "/",
        "umask": 0o022,
        "env": {"PATH": os.environ["PATH"], "PYTHONPATH": str(package.parent), "LC_ALL": "C.UTF-8"},
    }
    return subprocess.run([str(PYTHON), "-m", "vbdkit", *map(str, arguments)], **{**settings, **options})  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A folder of hotplug scripts, as a Xen package makes it."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built here."""
    folder = tmp_path_factory.mktemp("dist")
    pip("wheel", "--no-deps", "-w", folder, REPOSITORY)
    (built,) = folder.glob("*.whl")
    return built


def pip(*arguments: str | Path) -> None:
    """Run the test environment's pip."""
    asked = [sys.executable, "-m", "pip"]
    need(subprocess.run([*asked, "--version"], capture_output=True).returncode == 0, "needs pip")
    done = subprocess.run(
        [*asked, "-q", "--disable-pip-version-check", *map(str, arguments)], capture_output=True, text=True, umask=0o022
    )
    # What builds the wheel (hatchling) comes from a package index.
    need("No matching distribution" not in done.stderr, "needs a package index")
    assert done.returncode == 0, done.stderr
