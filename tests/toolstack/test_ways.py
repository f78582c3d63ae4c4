"""The plan (G1-G3): who publishes is a choice, and what is published, checked and refused is the same each time."""

import os
import re
from pathlib import Path

import pytest

from tests.images import image, make_image
from tests.stores import realstore
from tests.toolstack.test_lifecycle import BACKEND, connected, first_bytes
from tests.toolstack.xen import Xen, everything, oxenstored, xen
from vbdkit.protocol.failure import Failure
from vbdkit.toolstack.lifecycle import Attached
from vbdkit.toolstack.settings import Settings
from vbdkit.toolstack.ways import BY_SCRIPT, DIRECT, PATH_ONLY, way_for

__all__ = ["image", "oxenstored", "xen"]

# Binds a loop device and writes its path; takes it apart again. What it sees of the nodes at that time it notes.
SCRIPT = """\
#!/bin/sh
# block-script: {"path-only": true, "name": "a loop device"}
set -e
at=$XENBUS_PATH
case $1 in
add)
    [ "$VBDKIT_PUBLISH" = path ] || { echo "not asked for the path only" >&2; exit 1; }
    device=$(losetup -f --show "$(xenstore-read $at/params)")
    echo $device >DIRECTORY/device
    xenstore-write $at/physical-device-path $device ;;
remove)
    xenstore-ls $at >DIRECTORY/at-remove || :
    [ ! -e DIRECTORY/device ] || losetup -d "$(cat DIRECTORY/device)"
    rm -f DIRECTORY/device ;;
esac
"""
WAYS = ("script", "path-only", "no script")


@pytest.fixture
def three(xen: Xen) -> Xen:
    """A host with a path-only script, and Xen's tools for it."""
    xen.stack.environ[b"PATH"] = os.fsencode(realstore("bin")) + b":" + os.environb[b"PATH"]
    xen.script("block-path", SCRIPT.replace("DIRECTORY", str(xen.host.directory)))
    return xen


def attach(xen: Xen, way: str, image: Path | str, mode: str = "w", domid: int = 5, vdev: str = "xvda") -> Attached:
    """Attach by one of WAYS."""
    xen.settings(no_script=way == "no script")
    script = "script=block-path," if way == "path-only" else ""
    return xen.attach(f"vdev={vdev},access={mode},{script}target={image}", domid)


@pytest.mark.parametrize("way", WAYS)
def test_a_guest_reads_its_disk_whichever_way_it_came(three: Xen, image: Path, way: str) -> None:
    attached = attach(three, way, image)
    connected(three)
    assert first_bytes(three) == b"first sector"
    assert attached.device is not None
    assert attached.device.startswith(b"/dev/loop")
    status = Path(os.fsdecode(attached.device)).stat()
    number = b"%x:%x" % (os.major(status.st_rdev), os.minor(status.st_rdev))
    names = ("hotplug-status", "physical-device", "physical-device-path", "hotplug-error")
    assert [three.read(f"{BACKEND}/{name}") for name in names] == [b"connected", number, attached.device, None]
    assert three.detach() == []
    assert three.left() == []


@pytest.mark.parametrize("holder", WAYS)
@pytest.mark.parametrize("asker", WAYS)
def test_a_duplicate_is_refused_across_the_ways(three: Xen, image: Path, holder: str, asker: str) -> None:
    attach(three, holder, image)
    connected(three)
    if holder == "path-only":
        (three.host.directory / "device").replace(three.host.directory / "first")
    before = everything(three.store)
    said = rf"(?:{image}|/dev/loop\d+) is in use by guest 5 \(web\) as its disk xvda, read-write"
    with pytest.raises(Failure, match=said) as refusal:
        attach(three, asker, image, domid=6, vdev="xvdb")
    assert re.search(r"through .*loop", str(refusal.value))
    assert everything(three.store) == before
    assert first_bytes(three) == b"first sector"
    if holder == "path-only":
        (three.host.directory / "first").replace(three.host.directory / "device")
    three.detach()
    assert three.left() == []


@pytest.mark.parametrize("holder", WAYS)
@pytest.mark.parametrize("asker", WAYS)
def test_readers_may_share_across_the_ways(three: Xen, image: Path, holder: str, asker: str) -> None:
    if "path-only" in (holder, asker):
        # Its loop device is writable, and mode r has to be in fact: a read-only one is what the script would make.
        script = three.host.directory / "block-path"
        script.write_text(script.read_text().replace("losetup -f", "losetup -r -f"))
    attach(three, holder, image, "r")
    connected(three)
    if holder == asker == "path-only":
        (three.host.directory / "device").replace(three.host.directory / "first")
    attach(three, asker, image, "r", domid=6, vdev="xvdb")
    assert three.read("/local/domain/0/backend/vbd/6/51728/hotplug-status") == b"connected"


class TestPathOnly:
    def test_the_toolstacks_nodes_go_before_the_device_does(self, three: Xen, image: Path) -> None:
        attach(three, "path-only", image)
        connected(three)
        three.detach()
        seen = (three.host.directory / "at-remove").read_text()
        assert "physical-device-path" in seen
        assert "physical-device =" not in seen
        assert "hotplug-status" not in seen

    def test_a_refusal_is_busy_and_its_reason_stays_for_the_scripts_remove(self, three: Xen, image: Path) -> None:
        attach(three, "script", image)
        with pytest.raises(Failure, match="in use by guest 5"):
            attach(three, "path-only", image, domid=6)
        seen = (three.host.directory / "at-remove").read_text()
        assert 'hotplug-error = "/dev/loop' in seen
        assert not (three.host.directory / "device").exists()
        connected(three)
        three.detach()

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (":", "left .*/physical-device-path unwritten"),
            ("xenstore-write $XENBUS_PATH/physical-device-path /nowhere", "/nowhere does not exist"),
            ("xenstore-write $XENBUS_PATH/physical-device-path PLAIN", "is a plain file; a path-only script makes"),
            (
                "xenstore-write $XENBUS_PATH/physical-device-path x $XENBUS_PATH/physical-device 7:7",
                "leaves .*/physical-device to the toolstack .* but wrote 7:7",
            ),
            ("echo no such volume >&2; exit 1", "ended with status 1: no such volume"),
        ],
    )
    def test_what_it_does_wrong_is_said_and_taken_back(self, three: Xen, image: Path, line: str, said: str) -> None:
        plain = make_image(image.parent / "plain.img")
        line = line.replace("PLAIN", str(plain))
        three.script(
            "block-path", f'#!/bin/sh\n# block-script: {{"path-only": true}}\n[ $1 = remove ] && exit\n{line}\n'
        )
        with pytest.raises(Failure, match=said):
            attach(three, "path-only", image)
        assert three.left() == []

    def test_one_that_publishes_everything_works_unchanged_beside_them(self, three: Xen, image: Path) -> None:
        # No manifest, no word in the configuration: the toolstack keeps its hands off.
        three.script(
            "block-old",
            f'#!/bin/sh\n[ -z "$VBDKIT_PUBLISH" ] && exec {three.host.script} "$@"\nexit 9\n',
        )
        three.attach(f"vdev=xvda,script=block-old,target={image}")
        connected(three)
        assert three.read("/libxl/5/device/vbd/51712/vbdkit-way") is None
        three.detach()
        assert three.left() == []

    def test_the_configuration_can_say_it_for_a_script(self, three: Xen, image: Path) -> None:
        script = three.script(
            "block-path", SCRIPT.replace("DIRECTORY", str(three.host.directory)).replace("# block-", "#")
        )
        with pytest.raises(Failure, match="not asked for the path only"):
            attach(three, "path-only", image)
        three.settings(path_only=frozenset({os.fsencode(script)}))
        attach(three, "path-only", image)
        connected(three)
        three.detach()
        assert three.left() == []

    def test_the_way_is_the_disks_not_the_configurations_of_the_day(self, three: Xen, image: Path) -> None:
        attach(three, "no script", image)
        connected(three)
        three.settings(no_script=False)
        three.host.script.unlink()
        three.detach()
        assert three.left() == []

    def test_xls_own_detach_works_for_it(self, three: Xen, image: Path) -> None:
        # libxl runs the script's remove and deletes the nodes; it knows nothing of ways.
        attach(three, "path-only", image)
        connected(three)
        three.store.remove(b"/libxl/5/device/vbd/51712/vbdkit-way")
        three.detach()
        assert three.left() == []


class TestChoice:
    def settings(self, folder: Path, **more: object) -> Settings:
        return Settings(system=str(more.pop("system", "linux")), scripts_dir=os.fsencode(folder), **more)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("text", "way"),
        [
            ("#!/bin/sh\n", BY_SCRIPT),
            ('#!/bin/sh\n# block-script: {"path-only": true}\n', PATH_ONLY),
            ('#!/bin/sh\n# block-script: {"path-only": false}\n', BY_SCRIPT),
            ('#!/bin/sh\n# block-script: {"path-only": "yes"}\n', BY_SCRIPT),
            ('#!/bin/sh\n# block-script: {"name": "x"}\n', BY_SCRIPT),
            ('#!/bin/sh\necho "# block-script: {}"\n', BY_SCRIPT),
            ("#!/bin/sh\n" + "#" * 4096 + '\n# block-script: {"path-only": true}\n', BY_SCRIPT),
            ("\x7fELF\0\0", BY_SCRIPT),
        ],
    )
    def test_a_manifest_is_a_line_of_the_head(self, tmp_path: Path, text: str, way: bytes) -> None:
        (tmp_path / "block-x").write_text(text)
        assert way_for(os.fsencode(tmp_path / "block-x"), self.settings(tmp_path)) == way

    def test_a_script_that_is_not_there_says_nothing(self, tmp_path: Path) -> None:
        assert way_for(os.fsencode(tmp_path / "none"), self.settings(tmp_path)) == BY_SCRIPT

    @pytest.mark.parametrize("text", ["{", "[1]", "true"])
    def test_a_manifest_that_is_none_is_an_error(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "block-x").write_text(f"#!/bin/sh\n# block-script: {text}\n")
        with pytest.raises(Failure, match=r"the manifest in .*/block-x is no JSON"):
            way_for(os.fsencode(tmp_path / "block-x"), self.settings(tmp_path))

    def test_on_freebsd_a_script_publishes_everything(self, tmp_path: Path) -> None:
        (tmp_path / "block-x").write_text('#!/bin/sh\n# block-script: {"path-only": true}\n')
        path = os.fsencode(tmp_path / "block-x")
        settings = self.settings(tmp_path, system="freebsd", path_only=frozenset({path}))
        assert way_for(path, settings) == BY_SCRIPT

    def test_without_a_script_means_the_block_script_only(self, tmp_path: Path) -> None:
        settings = self.settings(tmp_path, no_script=True)
        assert way_for(os.fsencode(tmp_path / "block"), settings) == DIRECT
        assert way_for(os.fsencode(tmp_path / "block-x"), settings) == BY_SCRIPT
        assert way_for(b"/elsewhere/block", settings) == BY_SCRIPT
