"""From a disk specification to the nodes' values, as libxl chooses them; what is not ours is said (libxl_device.c)."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbdkit.protocol import parse_disk
from vbdkit.protocol.failure import Failure
from vbdkit.toolstack.choice import choose
from vbdkit.toolstack.domains import find_domain, own_domid
from vbdkit.toolstack.nodes import Disk
from vbdkit.toolstack.settings import Settings
from vbdkit.xenstore.client import Connection
from vbdkit.xenstore.embedded import EmbeddedStore

SETTINGS = Settings(system="linux", scripts_dir=b"/etc/xen/scripts")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Connection]:
    socket = str(tmp_path / "store").encode()
    with EmbeddedStore(socket, domid=0), Connection.open(time.monotonic() + 60, {b"XENSTORED_PATH": socket}) as made:
        for domid, name in ((0, b"Domain-0"), (3, b"storage"), (5, b"web"), (12, b"twin"), (13, b"twin")):
            made.write(b"/local/domain/%d/name" % domid, name)
        yield made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\0" * 4096)
    return path


def chosen(store: Connection, text: str, settings: Settings = SETTINGS) -> Disk:
    return choose(store, parse_disk(text), 5, settings)


def test_a_file_is_served_by_the_block_script(store: Connection, image: Path) -> None:
    disk = chosen(store, f"{image},,xvdb")
    assert disk == Disk(5, str(image).encode(), b"/etc/xen/scripts/block", devid=51728, dev=b"xvdb")
    assert (disk.mode, disk.type, disk.discard, disk.device_type) == (b"w", b"phy", True, b"disk")


@pytest.mark.parametrize(
    ("words", "mode", "discard"),
    [("r", b"r", False), ("w", b"w", True), ("r,discard", b"r", True), ("w,no-discard", b"w", False)],
)
def test_discard_follows_the_access_unless_said(
    store: Connection, image: Path, words: str, mode: bytes, discard: bool
) -> None:
    disk = chosen(store, f"{image},,xvdb,{words}")
    assert (disk.mode, disk.discard) == (mode, discard)


@pytest.mark.parametrize(
    ("script", "path"), [("block-rbd", b"/etc/xen/scripts/block-rbd"), ("/opt/x y/rbd", b"/opt/x y/rbd")]
)
def test_a_script_is_looked_for_in_the_folder_unless_it_is_absolute(
    store: Connection, script: str, path: bytes
) -> None:
    disk = chosen(store, f"vdev=xvda,script={script},target=pool/image,with=commas:too")
    assert (disk.script, disk.params) == (path, b"pool/image,with=commas:too")


def test_with_a_driver_domain_the_target_is_not_looked_at(store: Connection) -> None:
    disk = chosen(store, "vdev=xvda,backend=storage,target=/dev/not/here")
    assert (disk.backend_domid, disk.backend) == (3, b"/local/domain/3/backend/vbd/5/51712")


def test_a_cdrom_drive_with_a_medium_is_read_only_and_removable(store: Connection, image: Path) -> None:
    disk = chosen(store, f"{image},raw,xvdc,cdrom")
    assert (disk.mode, disk.removable, disk.device_type) == (b"r", True, b"cdrom")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("IMAGE,qcow2,xvda", "the format qcow2 is read by QEMU"),
        ("IMAGE,vhd,xvda", "the format vhd is read by QEMU"),
        ("vdev=xvda,backendtype=qdisk,target=IMAGE", "backendtype=qdisk is served by QEMU"),
        ("vdev=xvda,backendtype=tap,target=IMAGE", "backendtype=tap is served by tapback"),
        ("vdev=xvda,backendtype=standalone,target=IMAGE", "backendtype=standalone is served by a program"),
        ("vdev=xvda,specification=virtio,target=IMAGE", "a virtio disk is served by a program of its own"),
        (",,hdc,cdrom", "an empty drive is served by QEMU"),
        ("vdev=xvda,colo,target=IMAGE", "a COLO disk is served by QEMU"),
    ],
)
def test_what_libxl_gives_to_others_is_left_to_xl(store: Connection, image: Path, text: str, reason: str) -> None:
    with pytest.raises(Failure, match=f"vbdkit does not serve the disk .*: {reason}.*; xl block-attach does"):
        chosen(store, text.replace("IMAGE", str(image)))


def test_a_cdrom_of_a_guest_with_a_device_model_is_qemus(store: Connection, image: Path) -> None:
    store.write(b"/libxl/5/dm-version", b"qemu_xen")
    with pytest.raises(Failure, match="guest with a device model are served by that"):
        chosen(store, f"{image},raw,hdc,cdrom")
    assert chosen(store, f"{image},raw,hdc").device_type == b"disk"


@pytest.mark.parametrize("text", ["/nowhere/x,,xvda", "/dev/null,,xvda", "/tmp,,xvda"])
def test_a_target_that_is_none_is_refused_with_its_reason(store: Connection, text: str) -> None:
    with pytest.raises(Failure, match=r"does not exist|a character device|a directory"):
        chosen(store, text)


class TestDomains:
    def test_a_number_is_the_domain_itself(self, store: Connection) -> None:
        assert find_domain(store, b"77") == 77

    def test_a_name_is_looked_up(self, store: Connection) -> None:
        assert (find_domain(store, b"storage"), find_domain(store, b"Domain-0")) == (3, 0)

    @pytest.mark.parametrize(
        ("name", "said"),
        [(b"nobody", "there is no domain named nobody"), (b"twin", "there are 2 domains named twin"), (b"", "named ")],
    )
    def test_a_name_of_none_or_two_is_refused(self, store: Connection, name: bytes, said: str) -> None:
        with pytest.raises(Failure, match=said):
            find_domain(store, name)

    def test_a_number_beyond_xens_domains_is_none(self, store: Connection) -> None:
        with pytest.raises(Failure, match="32752 is no domain's number"):
            find_domain(store, b"32752")

    def test_the_own_domain_is_the_stores_answer(self, store: Connection) -> None:
        assert own_domid(store) == 0
        store.write(b"domid", b"3")
        assert own_domid(store) == 3
