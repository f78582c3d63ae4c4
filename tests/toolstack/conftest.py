"""A store of one's own, a toolstack's connection to it, and a disk of guest 5."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbdkit.toolstack.nodes import Disk, Guest, create_guest
from vbdkit.xenstore.client import Connection
from vbdkit.xenstore.embedded import EmbeddedStore

GUEST = Guest(5, b"web", b"00000000-0000-0000-0000-000000000005")


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[bytes, bytes]]:
    """An environment that leads to a store of this test's own."""
    socket = os.fsencode(tmp_path / "store")
    with EmbeddedStore(socket, domid=0):
        yield {b"XENSTORED_PATH": socket, b"PATH": os.environb[b"PATH"]}


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
