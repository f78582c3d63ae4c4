"""What a test needs of the machine. Elsewhere it skips and says why; in CI a skip for such a reason is a failure."""

import os
import shutil

import pytest


def need(there: bool, what: str) -> None:
    """Go on where ``there``; ``what`` names the thing that is missing otherwise."""
    if there:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have this: {what}")
    pytest.skip(what)


def need_root() -> None:
    """Root, for what only root may do."""
    need(os.geteuid() == 0, "needs root")


def need_program(name: str) -> str:
    """Return the path of a program that the test runs."""
    path = shutil.which(name)
    need(path is not None, f"needs the program {name}")
    assert path is not None
    return path


def need_loop_devices() -> None:
    """Root on a Linux that has loop devices."""
    need_root()
    need(os.path.exists("/dev/loop-control"), "needs loop devices (/dev/loop-control)")
