"""A store of one's own, a toolstack's connection to it, and a disk of guest 5."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import host
from tests.need import need_root
from vbdkit.toolstack.nodes import Disk, Guest, create_guest
from vbdkit.xenstore.client import Connection
from vbdkit.xenstore.embedded import EmbeddedStore

__all__ = ["host"]  # a fixture

GUEST = Guest(5, b"web", b"00000000-0000-0000-0000-000000000005")


@pytest.fixture(params=["embedded", "xenstored"])
def environ(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[bytes, bytes]]:
    """An environment that leads to an empty store: vbdkit's own, and Xen's as the measure of it."""
    path = {b"PATH": os.environb[b"PATH"]}
    if request.param == "embedded":
        socket = os.fsencode(tmp_path / "store")
        with EmbeddedStore(socket, domid=0):
            yield {**path, b"XENSTORED_PATH": socket}
        return
    need_root()
    path[b"XENSTORED_PATH"] = os.fsencode(request.getfixturevalue("store_socket"))
    with Connection.open(time.monotonic() + 10, path) as store:
        store.remove_many([b"/local", b"/vm", b"/libxl"])
    yield path


@pytest.fixture
def store(environ: dict[bytes, bytes]) -> Iterator[Connection]:
    """The toolstack's connection; guest 5 is there."""
    with Connection.open(time.monotonic() + 60, environ) as connection:
        create_guest(connection, GUEST)
        yield connection


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file of eight sectors, each filled with its number."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([number]) * 512 for number in range(8)))
    return path


@pytest.fixture
def disk(image: Path) -> Disk:
    """A disk of guest 5 on the image; its nodes are not written yet."""
    return Disk(5, os.fsencode(image), b"/etc/xen/scripts/block")
