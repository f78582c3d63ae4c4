"""Waiting for what has to come."""

import time
from collections.abc import Callable

PATIENCE = 30.0  # seconds


def until(true: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait until something is so, for ``seconds`` at most."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not in {seconds} s: {what}"
        time.sleep(0.01)
