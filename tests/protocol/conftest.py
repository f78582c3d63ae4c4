"""Debian's libxl as an oracle."""

from collections.abc import Iterator

import pytest

from tests.libxl import Libxl, libxl


@pytest.fixture(scope="session")
def oracle() -> Iterator[Libxl]:
    """One libxl for all tests of this folder."""
    with libxl() as one:
        yield one
