"""A guest that writes wherever the store lets it: into its own frontend directory, which no script looks at."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.host import Disk as Vbd
from tests.host import Host
from tests.hostile.judge import Inside, examples
from tests.hostile.strange import values
from tests.images import make_image
from tests.need import need_loop_devices
from vbdkit.toolstack.nodes import Disk, Guest, add_disk, create_guest
from vbdkit.xenstore import codec
from vbdkit.xenstore.client import Connection, StoreError
from vbdkit.xenstore.embedded import EmbeddedStore
from vbdkit.xenstore.embedded.operations import Session, Store

GUESTS = [Guest(domid, b"guest%d" % domid, b"00000000-0000-0000-0000-%012d" % domid) for domid in (5, 6)]
ENEMY = 6


@dataclass
class Scene:
    """A host in whose store guests have their own connections; ``backend`` is the domain that runs the script."""

    inside: Inside
    backend: int
    sockets: dict[int, bytes]

    def guest(self, domid: int) -> Connection:
        """Connect as a guest."""
        return Connection.open(float("inf"), {b"XENSTORED_PATH": self.sockets[domid]})

    def disk(self, domid: int, image: Path) -> Disk:
        """A disk of a guest, as the toolstack writes it."""
        return Disk(domid, os.fsencode(image), b"/etc/xen/scripts/block", backend_domid=self.backend)


@pytest.fixture(scope="module", params=[0, 3], ids=["dom0", "driver-domain"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Dom0 or driver domain 3 serves guests 5 and 6."""
    need_loop_devices()
    place = tmp_path_factory.mktemp("guest")
    backend: int = request.param
    with EmbeddedStore(str(place / "dom0")) as store:
        sockets = {0: os.fsencode(place / "dom0")}
        for domid in (3, 5, 6):
            sockets[domid] = os.fsencode(place / f"domain{domid}")
            store.listen(sockets[domid], domid)
        host = Host(place, place / "dom0", own_domid=backend)
        yield Scene(Inside(host), backend, sockets)
        host.close()


End = tuple[int, dict[bytes, bytes]]
"""How a run ended: its status and the output nodes."""


class Questions:
    """What the script asks of the store, and whether a guest could have written the answer."""

    def __init__(self, trusted: set[int]) -> None:
        """``trusted``: the domains whose word counts."""
        self.trusted = trusted
        self.asked: list[tuple[int, bytes]] = []

    @contextmanager
    def of(self, domid: int) -> Iterator[None]:
        """Listen to the connections of one domain."""
        whole = Store.handle

        def handle(store: Store, session: Session, op: int, request: int, tx: int, payload: bytes) -> None:
            if session.domid == domid and op in (codec.READ, codec.DIRECTORY, codec.DIRECTORY_PART):
                path = payload.partition(b"\0")[0]
                self.asked.append((op, path))
                node = store.tree.get(path if path[:1] == b"/" else session.base + path)
                if node is not None:
                    owner, *others = node.permissions
                    writers = {owner.domid} | {entry.domid for entry in others if entry.write}
                    assert writers <= self.trusted, f"{path!r} can be written by {writers}"
                    assert not owner.write, f"{path!r} can be written by everybody"
            whole(store, session, op, request, tx, payload)

        with patch.object(Store, "handle", handle):
            yield


def play(scene: Scene, deeds: list[tuple[str, bytes, bytes]]) -> tuple[list[tuple[int, bytes]], list[End]]:
    """Two guests ask for one file, the second of them an enemy; return what was asked and how it ended."""
    inside = scene.inside
    image = make_image(inside.host.directory / "disk.img")
    with inside.host.connect() as store:
        store.remove_many([b"/local", b"/vm", b"/libxl"])
        for guest in GUESTS:
            create_guest(store, guest)
            directory = b"/local/domain/%d/backend" % scene.backend
            store.mkdir(directory)
            store.set_permissions(directory, [b"n%d" % scene.backend])
            add_disk(store, disk := scene.disk(guest.domid, image))
            store.write(disk.backend + b"/state", b"2")
        before = tree(store)
        do(scene, deeds)
        assert tree(store) == before, "a guest has changed what is not its own"
    questions = Questions({0, scene.backend})
    ends: list[End] = []
    environ = {b"XENSTORED_PATH": scene.sockets[scene.backend]}
    friend, enemy = (Vbd(inside.host, "vbd", domid, 51712) for domid in (5, 6))
    for vbd, command in ((friend, "add"), (enemy, "add"), (enemy, "remove"), (enemy, "add"), (friend, "remove")):
        with questions.of(scene.backend):
            result = inside.run(vbd, command, environ)
        ends.append((result.status, nodes(inside.host, scene, vbd.domid)))
    return questions.asked, ends


def do(scene: Scene, deeds: list[tuple[str, bytes, bytes]]) -> None:
    """What the enemy does; what the store refuses it is refused."""
    with scene.guest(ENEMY) as guest:
        for verb, path, value in deeds:
            with suppress_refusals():
                if verb == "write":
                    guest.write(path, value)
                elif verb == "mkdir":
                    guest.mkdir(path)
                elif verb == "remove":
                    guest.remove(path)
                else:
                    guest.set_permissions(path, [b"n6", b"b5", b"n0"])


@contextmanager
def suppress_refusals() -> Iterator[None]:
    """Go on after what the store refuses a guest."""
    try:
        yield
    except StoreError as error:
        if error.name not in ("EACCES", "EINVAL", "ENOENT", "EPERM", "ENOSPC", "E2BIG"):
            raise


def tree(store: Connection, path: bytes = b"/") -> dict[bytes, tuple[bytes, list[bytes]]]:
    """All nodes but the enemy's frontend, with values and permissions."""
    if path == b"/local/domain/6/device/vbd/51712":
        return {}
    found = {path: (store.read(path), store.get_permissions(path))}
    for name in store.list(path):
        found |= tree(store, path.rstrip(b"/") + b"/" + name)
    return found


def nodes(host: Host, scene: Scene, domid: int) -> dict[bytes, bytes]:
    """The output nodes of a guest's disk."""
    names = [b"hotplug-status", b"hotplug-error", b"physical-device", b"physical-device-path"]
    with host.connect() as store:
        values = store.read_many([b"%s/%s" % (scene.disk(domid, Path()).backend, name) for name in names])
    # Which loop device was free is the machine's affair.
    return {
        name: re.sub(rb"loop\d+|^7:[0-9a-f]+$", b"a loop device", value)
        for name, value in zip(names, values, strict=True)
        if value is not None
    }


FRONT = b"/local/domain/6/device/vbd/51712"
NAMES = (
    b"params",
    b"mode",
    b"state",
    b"physical-device",
    b"backend",
    b"backend-id",
    b"virtual-device",
    b"hotplug-status",
)
PLACES = [
    FRONT,
    *(FRONT + b"/" + name for name in NAMES),
    *(
        b"/local/domain/%d/%s" % (domid, name)
        for domid in (5, 6)
        for name in (b"name", b"vm", b"target", b"device/vbd")
    ),
    *(
        b"/local/domain/%d/backend/vbd/%d/51712/%s" % (backend, domid, name)
        for backend in (0, 3)
        for domid in (5, 6)
        for name in NAMES
    ),
    *(b"/local/domain/6", b"/vm", b"/libxl/6/device/vbd/51712/params", b"/local/domain/0/backend/vbd/6", b"/"),
    *(
        b"@releaseDomain",
        b"backend/vbd/5/51712/state",
        b"device/vbd/51712/x",
        b"/local/domain/5/device/vbd/51712/state",
    ),
]
deeds = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "mkdir", "remove", "permit"]),
        st.sampled_from(PLACES),
        values
        | st.sampled_from([b"2", b"6", b"7:0", b"/local/domain/0/backend/vbd/5/51712", b"connected", b"/etc/passwd"]),
    ),
    max_size=12,
)


@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deeds=deeds)
def test_its_deeds_change_no_answer_and_are_not_even_read(scene: Scene, deeds: list[tuple[str, bytes, bytes]]) -> None:
    asked, ends = play(scene, [])
    assert [status for status, _ in ends] == [0, 1, 0, 1, 0]
    assert play(scene, deeds) == (asked, ends)
    assert not [path for _, path in asked if b"/device/" in path]


def test_what_a_guest_can_read(scene: Scene) -> None:
    """SECURITY.md says so: its own backend directory with the reason of a refusal, and no other guest's."""
    play(scene, [])
    friend, enemy = (Vbd(scene.inside.host, "vbd", domid, 51712) for domid in (5, 6))
    environ = {b"XENSTORED_PATH": scene.sockets[scene.backend]}
    assert scene.inside.run(friend, "add", environ).status == 0
    assert scene.inside.run(enemy, "add", environ).status == 1
    own, other = (scene.disk(domid, Path()).backend for domid in (6, 5))
    with scene.guest(ENEMY) as guest:
        assert b"is in use by guest 5" in guest.read(own + b"/hotplug-error")
        for name in (b"params", b"physical-device-path", b"hotplug-status"):
            with pytest.raises(StoreError, match="EACCES"):
                guest.read(other + b"/" + name)
    for vbd in (enemy, friend):
        assert scene.inside.run(vbd, "remove", environ).status == 0
