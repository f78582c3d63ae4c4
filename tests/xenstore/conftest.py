"""One suite, three stores: what the client sees is tried on the embedded store, C xenstored and oxenstored alike."""

from collections.abc import Iterator

import pytest

from tests.stores import KINDS, Store, running_store
from vbdkit.xenstore.client import Connection

T = b"/t"


@pytest.fixture(scope="session", params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Each store in turn."""
    with running_store(request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture(scope="session")
def c_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A C xenstored."""
    with running_store("c", tmp_path_factory.mktemp("c-alone")) as running:
        yield running


@pytest.fixture
def xs(store: Store) -> Iterator[Connection]:
    """A connection; /t and dom0's directory are empty."""
    with store.connect() as connection:
        for path in (T, b"/local"):
            connection.remove(path)
        yield connection


@pytest.fixture
def other(store: Store) -> Iterator[Connection]:
    """Somebody else's connection to the same store."""
    with store.connect() as connection:
        yield connection
