"""libxl's configuration of a guest has the disks that vbdkit attaches, so that xl's save, migrate and reboot keep them.

The guest and all else are real but Xen; the file is as libxl 4.17 writes one.
"""

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import image, make_image
from tests.need import need_loop_devices
from tests.toolstack.xen import UUID, Xen, make_xen
from vbdkit.protocol.failure import Failure
from vbdkit.toolstack.nodes import find_disk, wait_for_state

__all__ = ["image"]

OTHER = {"pdev_path": "/srv/root.img", "vdev": "xvdz", "format": "raw", "readwrite": 1}
BEFORE = {
    "c_info": {"type": "pv", "name": "web", "uuid": (UUID % 5).decode()},
    "b_info": {"max_memkb": 131072, "target_memkb": 131072, "type.pv": {"slack_memkb": 0}},
    "disks": [OTHER],
    "on_reboot": "restart",
}


@pytest.fixture
def xen(tmp_path: Path, store_socket: Path) -> Iterator[Xen]:
    need_loop_devices()
    with make_xen(tmp_path, store_socket) as made:
        folder = tmp_path / "lib xen"
        folder.mkdir()
        made.settings(userdata_dir=os.fsencode(folder))
        yield made


@pytest.fixture
def configuration(xen: Xen) -> Path:
    """Guest 5's."""
    path = Path(os.fsdecode(xen.stack.settings.userdata_dir), f"userdata-d.5.{(UUID % 5).decode()}.libxl-json")
    path.write_bytes(json.dumps(BEFORE).encode() + b"\0")
    path.chmod(0o600)
    return path


def read(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    assert data.endswith(b"}\0"), "libxl wants a C string"
    found: dict[str, object] = json.loads(data[:-1])
    return found


def detach(xen: Xen) -> None:
    disk = find_disk(xen.store, 5, 51712)
    assert disk is not None
    wait_for_state(xen.store, disk, {b"4"}, 10)
    xen.stack.detach(disk)


def test_a_disk_is_there_as_xl_would_have_written_it(xen: Xen, configuration: Path, image: Path) -> None:
    attached = xen.attach(f"{image},,xvda,r")
    assert attached.notes == ()
    entry: dict[str, object] = {"pdev_path": str(image), "vdev": "xvda", "format": "raw"}
    assert read(configuration) == {**BEFORE, "disks": [OTHER, entry]}
    assert configuration.stat().st_mode & 0o777 == 0o600
    assert list(configuration.parent.iterdir()) == [configuration], "neither lock nor draft is left"
    detach(xen)
    # Again, in the place of what libxl passes over now that it has no nodes.
    xen.script("block-own", f'#!/bin/sh\nexec {xen.host.script} "$@"\n')
    xen.attach(f"vdev=xvda,script=block-own,direct-io-safe,no-discard,target={image}")
    entry = {
        "pdev_path": str(image),
        "vdev": "xvda",
        "format": "raw",
        "script": f"{xen.host.directory}/block-own",
        "readwrite": 1,
        "direct_io_safe": True,
        "discard_enable": "False",
    }
    assert read(configuration)["disks"] == [OTHER, entry]
    detach(xen)


def test_a_driver_domain_is_there_by_name(xen: Xen, configuration: Path) -> None:
    xen.host.domain(3, "storage")
    xen.settings(limits={"ready": 0.2})
    with pytest.raises(Failure):
        xen.attach("vdev=xvda,backend=storage,target=/dev/vg/x")
    disks = read(configuration)["disks"]
    assert isinstance(disks, list)
    assert disks[1]["backend_domname"] == "storage"
    assert "backend_domid" not in disks[1]


def test_the_words_for_a_disk_that_the_guest_has_stay(xen: Xen, configuration: Path, image: Path) -> None:
    xen.attach(f"{image},,xvda")
    before = configuration.read_bytes()
    with pytest.raises(Failure, match="has a disk xvda already"):
        xen.attach(f"{make_image(image.parent / 'other.img')},,xvda,r")
    assert configuration.read_bytes() == before
    detach(xen)


def test_it_is_written_before_the_nodes_under_libxls_own_lock(xen: Xen, configuration: Path, image: Path) -> None:
    lock = configuration.parent / f"userdata-l.5.{(UUID % 5).decode()}.domain-userdata-lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def release() -> None:
            seen.append((read(configuration) == BEFORE, xen_nodes()))
            # As libxl lets go of it.
            lock.unlink()
            held.close()

        seen: list[tuple[bool, list[bytes]]] = []
        with xen.host.connect() as beside:

            def xen_nodes() -> list[bytes]:
                return beside.list_many([b"/libxl/5/device/vbd"])[0] or []

            timer = threading.Timer(0.3, release)
            timer.start()
            xen.attach(f"{image},,xvda")
            timer.join()
    assert seen == [(True, [])]
    assert read(configuration) != BEFORE
    detach(xen)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{]\0", "Expecting property name"),
        (b'{"disks": {"a": 1}}\0', "it is no configuration of libxl's"),
        (b'{"disks": ["a"]}\0', "it is no configuration of libxl's"),
        (b"[]\0", "it is no configuration of libxl's"),
        (b'{"c_info": {"name": "\xff"}}\0', "can't decode byte 0xff"),
    ],
)
def test_what_is_not_understood_stays_and_is_said(
    xen: Xen, configuration: Path, image: Path, text: bytes, why: str
) -> None:
    configuration.write_bytes(text)
    (note,) = xen.attach(f"{image},,xvda").notes
    assert note.startswith("xl save, migrate and reboot will leave the disk xvda out: it could not be added to ")
    assert why in note
    assert configuration.read_bytes() == text
    assert list(configuration.parent.iterdir()) == [configuration]
    detach(xen)


def test_a_path_that_is_no_text_is_not_put_there(xen: Xen, configuration: Path, tmp_path: Path) -> None:
    """libxl would not read its own file again."""
    before = configuration.read_bytes()
    strange = make_image(tmp_path / os.fsdecode(b"a \xff.img"))
    (note,) = xen.attach(f"vdev=xvda,target={strange}").notes
    assert "surrogates not allowed" in note
    assert configuration.read_bytes() == before
    detach(xen)


@pytest.mark.parametrize("vm", [b"/vm/../../../etc/x", b"/other", b""])
def test_a_vm_node_that_is_none_leads_nowhere(xen: Xen, configuration: Path, image: Path, vm: bytes) -> None:
    xen.store.write(b"/local/domain/5/vm", vm)
    assert xen.attach(f"{image},,xvda").notes == ()
    assert read(configuration) == BEFORE
    detach(xen)


def test_where_libxl_knows_nothing_of_a_guest_nothing_is_made(xen: Xen, configuration: Path, image: Path) -> None:
    configuration.unlink()
    assert xen.attach(f"{image},,xvda").notes == ()
    assert list(configuration.parent.iterdir()) == []
    detach(xen)
