"""Emulated disks: qemu's arguments in every form, and a PC that boots from what the scripts attached."""

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.boot import boot
from tests.bootsector import boot_cdrom, boot_image
from tests.host import SOURCE, Host
from tests.host import Disk as ScriptDisk
from tests.need import need_program
from tests.platform.models.freebsd import Freebsd
from tests.waiting import until
from vbdkit.protocol.failure import Failure
from vbdkit.protocol.nodes import INIT_WAIT
from vbdkit.protocol.vdev import parse_vdev
from vbdkit.toolstack.device_model import AHCI, IDE, device_model_arguments
from vbdkit.toolstack.nodes import Disk, Guest, add_disk, create_guest
from vbdkit.xenstore.client import Connection

GUEST = Guest(5, b"web", b"00000000-0000-0000-0000-000000000005")
Add = Callable[..., Disk]


@pytest.fixture
def add(store: Connection) -> Add:
    """Writes the nodes of a disk of guest 5, with what its script would publish."""

    def made(
        dev: str, path: str | None = "/dev/loop3", mode: bytes = b"w", params: bytes = b"/x.img", **more: object
    ) -> Disk:
        disk = Disk(5, params, b"/etc/xen/scripts/block", mode, parse_vdev(dev).devid, dev.encode())
        disk = replace(disk, **more)  # type: ignore[arg-type]
        add_disk(store, disk)
        if path is not None:
            store.write(disk.backend + b"/physical-device-path", os.fsencode(path))
        return disk

    return made


def ide(file: str, index: int, form: str) -> str:
    """The commonest form."""
    return f"-drive 'file={file},if=ide,index={index},media=disk,format={form},cache=writeback'"


CDROM = {"device_type": b"cdrom"}
QDISK = {"kind": b"qdisk", "type": b"qdisk"}


@pytest.mark.parametrize(
    ("dev", "facts", "hdtype", "expected"),
    [
        ("xvda", {}, IDE, ide("/dev/loop3", 0, "raw")),
        ("hdd", {}, IDE, ide("/dev/loop3", 3, "raw")),
        ("d1", {}, IDE, ide("/dev/loop3", 1, "raw")),
        (
            "xvdf",
            {},
            AHCI,
            "-device ahci,id=ahci0 -drive file=/dev/loop3,if=none,id=ahcidisk-5,format=raw,cache=writeback "
            "-device ide-hd,bus=ahci0.5,unit=0,drive=ahcidisk-5",
        ),
        (
            "sdb",
            {},
            IDE,
            "-device lsi53c895a "
            "-drive file=/dev/loop3,id=scsi0-hd1,format=raw,if=none,readonly=off,cache=writeback "
            "-device scsi-hd,drive=scsi0-hd1,scsi-id=1",
        ),
        (
            "sda",
            {"mode": b"r"},
            AHCI,
            "-device lsi53c895a -device ahci,id=ahci0 "
            "-drive file=/dev/loop3,id=scsi0-hd0,format=raw,if=none,readonly=on,cache=writeback "
            "-device scsi-hd,drive=scsi0-hd0,scsi-id=0",
        ),
        (
            "hdc",
            {"mode": b"r", **CDROM},
            IDE,
            "-drive if=none,readonly=on,id=ide-5632,file=/dev/loop3,format=raw "
            "-device ide-cd,id=ide-5632,drive=ide-5632,bus=ide.1,unit=0",
        ),
        # A CD-ROM is no SCSI disk, whatever its name.
        (
            "sdb",
            {"mode": b"r", **CDROM},
            IDE,
            "-drive if=none,readonly=on,id=ide-2064,file=/dev/loop3,format=raw "
            "-device ide-cd,id=ide-2064,drive=ide-2064,bus=ide.0,unit=1",
        ),
        (
            "hdd",
            {"mode": b"r", "params": b"", "path": None, **CDROM},
            IDE,
            "-drive if=none,readonly=on,id=ide-5696 -device ide-cd,id=ide-5696,drive=ide-5696,bus=ide.1,unit=1",
        ),
        (
            "hdd",
            {"mode": b"r", "params": b"empty:", "path": None, **CDROM, **QDISK},
            IDE,
            "-drive if=none,readonly=on,id=ide-5696 -device ide-cd,id=ide-5696,drive=ide-5696,bus=ide.1,unit=1",
        ),
        ("xvda", {"params": b"aio:/a:b", "path": None, **QDISK}, IDE, ide("/a:b", 0, "raw")),
        ("xvda", {"params": b"qcow2:/a", "path": None, **QDISK}, IDE, ide("/a", 0, "qcow2")),
        ("xvda", {"params": b"vhd:/a", "path": None, **QDISK}, IDE, ide("/a", 0, "vpc")),
        ("xvda", {"params": b"qed:/a", "path": None, **QDISK}, IDE, ide("/a", 0, "qed")),
        (
            "xvda",
            {"path": "/run/tap 1&2.sock", "kind": b"vbd3", "type": b"vbd3"},
            IDE,
            ide("nbd+unix:///?socket=/run/tap%201%262.sock", 0, "raw"),
        ),
        # A comma would begin another option.
        ("xvda", {"path": "/a,if=none b"}, IDE, ide("/a,,if=none b", 0, "raw")),
    ],
)
def test_each_form(store: Connection, add: Add, dev: str, facts: dict[str, object], hdtype: str, expected: str) -> None:
    add(dev, **facts)
    found = device_model_arguments(store, 5, hdtype)
    assert found.arguments == shlex.split(expected)
    assert found.notes == []


@pytest.mark.parametrize(
    ("dev", "facts", "hdtype", "reason"),
    [
        ("xvde", {}, IDE, "xvde is not emulated: there is room for the first four disks, by IDE; the guest has it"),
        ("xvdg", {}, AHCI, "there is room for the first six disks, by AHCI"),
        ("xvde", {"mode": b"r", **CDROM}, IDE, "only the first four disks may be CD-ROMs"),
        (
            "xvda",
            {"path": None},
            IDE,
            "backend/vbd/5/51712/physical-device-path: its script has not",
        ),
        ("xvda", {"path": "nbd:host:10809"}, IDE, "is nbd:host:10809, which is no path"),
        ("xvda", {"backend_domid": 7}, IDE, "domain 7 serves it"),
        ("xvda", {"params": b""}, IDE, "a disk that is no CD-ROM has to have a medium"),
        ("xvda", {"params": b"rbd:x", **QDISK}, IDE, "rbd:x names no format that qemu knows from Xen"),
        ("xvda", {"kind": b"other"}, IDE, "nothing is known of backends of kind other"),
    ],
)
def test_what_is_not_emulated_is_told_and_the_others_are(
    store: Connection, add: Add, dev: str, facts: dict[str, object], hdtype: str, reason: str
) -> None:
    add(dev, **facts)
    add("xvdb")
    found = device_model_arguments(store, 5, hdtype)
    assert [argument for argument in found.arguments if "index=1" in argument or "ahcidisk-1," in argument]
    assert sum(argument.startswith("file=") or "readonly" in argument for argument in found.arguments) == 1
    assert len(found.notes) == 1
    assert reason in found.notes[0]


@pytest.mark.parametrize(
    ("dev", "facts", "hdtype", "expected"),
    [
        ("xvda", {}, IDE, ide("/dev/xvda", 0, "host_device")),
        # Its own disks are there whoever serves them, in whatever format, and wherever their script is.
        ("hdb", {"backend_domid": 7, "path": None}, IDE, ide("/dev/xvdb", 1, "host_device")),
        ("xvdd", {"params": b"qcow2:/a", "path": None, **QDISK}, IDE, ide("/dev/xvdd", 3, "host_device")),
        (
            "xvdf",
            {},
            AHCI,
            "-device ahci,id=ahci0 -drive file=/dev/xvdf,if=none,id=ahcidisk-5,format=host_device,cache=writeback "
            "-device ide-hd,bus=ahci0.5,unit=0,drive=ahcidisk-5",
        ),
        (
            "sdp",
            {"mode": b"r"},
            IDE,
            "-device lsi53c895a "
            "-drive file=/dev/xvdp,id=scsi0-hd15,format=host_device,if=none,readonly=on,cache=writeback "
            "-device scsi-hd,drive=scsi0-hd15,scsi-id=15",
        ),
        (
            "hdc",
            {"mode": b"r", **CDROM},
            IDE,
            "-drive if=none,readonly=on,id=ide-5632,file=/dev/xvdc,format=host_device "
            "-device ide-cd,id=ide-5632,drive=ide-5632,bus=ide.1,unit=0",
        ),
        (
            "hdd",
            {"mode": b"r", "params": b"empty:", "path": None, **CDROM, **QDISK},
            IDE,
            "-drive if=none,readonly=on,id=ide-5696 -device ide-cd,id=ide-5696,drive=ide-5696,bus=ide.1,unit=1",
        ),
    ],
)
def test_in_a_stub_domain_the_disks_are_its_own(
    store: Connection, add: Add, dev: str, facts: dict[str, object], hdtype: str, expected: str
) -> None:
    add(dev, **facts)
    found = device_model_arguments(store, 5, hdtype, stub_domain=True)
    assert found.arguments == shlex.split(expected)
    assert found.notes == []


def test_a_stub_domain_has_room_for_26(store: Connection, add: Add) -> None:
    add("xvdaa")
    found = device_model_arguments(store, 5, stub_domain=True)
    assert found.arguments == []
    assert "a stub domain has room for the first 26 disks" in found.notes[0]


def test_a_number_beyond_all_controllers(store: Connection, add: Add) -> None:
    disk = add("xvda")
    store.write(disk.libxl + b"/dev", b"4096")
    found = device_model_arguments(store, 5)
    assert found.arguments == []
    assert "its number stands for no disk of a controller" in found.notes[0]
    store.write(disk.libxl + b"/dev", b"floppy")
    assert "names no virtual disk" in device_model_arguments(store, 5).notes[0]


@pytest.mark.parametrize(("hdtype", "controller"), [(IDE, "IDE"), (AHCI, "AHCI")])
def test_a_read_only_disk_that_there_is_no_hardware_for_is_refused(
    store: Connection, add: Add, hdtype: str, controller: str
) -> None:
    add("xvda", mode=b"r")
    with pytest.raises(Failure, match=f"xvda is read-only, and qemu has no read-only {controller} disks"):
        device_model_arguments(store, 5, hdtype)


def test_what_the_backend_says_is_not_believed(store: Connection, add: Add) -> None:
    """All but the path comes from the toolstack's own copy: a driver domain may write what it likes into its own."""
    disk = add("sda", mode=b"r")
    store.write_many([(disk.backend + b"/mode", b"w"), (disk.backend + b"/device-type", b"cdrom")])
    assert any("readonly=on" in argument for argument in device_model_arguments(store, 5).arguments)


def test_no_disks_and_no_guest(store: Connection) -> None:
    assert device_model_arguments(store, 5).arguments == []
    with pytest.raises(Failure, match="there is no guest 6"):
        device_model_arguments(store, 6)


def run(environ: dict[bytes, bytes], *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "vbdkit", "device-model-args", *arguments]
    return subprocess.run(command, env={**environ, b"PYTHONPATH": os.fsencode(SOURCE)}, capture_output=True)


def test_the_command(environ: dict[bytes, bytes], add: Add) -> None:
    add("xvda", "/a b\udcff.img")
    add("xvde")
    done = run(environ, "web")
    line = b"-drive 'file=/a b\xff.img,if=ide,index=0,media=disk,format=raw,cache=writeback'\n"
    assert (done.returncode, done.stdout) == (0, line)
    assert done.stderr.startswith(b"vbdkit: xvde is not emulated: ")
    done = run(environ, "5", "--hdtype", "ahci", "--json")
    arguments = json.loads(done.stdout)
    assert arguments[:2] == ["-device", "ahci,id=ahci0"]
    assert len(arguments) == 10
    assert b"file=/dev/xvda,if=ide,index=0,media=disk,format=host_device" in run(environ, "5", "--stub-domain").stdout
    add("xvdb", mode=b"r")
    done = run(environ, "5")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"read-only IDE" in done.stderr


def attach(host: Host, target: Path, dev: str, mode: bytes = b"w", **more: object) -> ScriptDisk:
    """Attach by the host's script what a toolstack has written."""
    disk = Disk(5, os.fsencode(target), os.fsencode(host.script), mode, parse_vdev(dev).devid, dev.encode())
    disk = replace(disk, **more)  # type: ignore[arg-type]
    with host.connect() as store:
        create_guest(store, GUEST)
        add_disk(store, disk)
        store.write(disk.backend + b"/state", INIT_WAIT)
    attached = ScriptDisk(host, "vbd", 5, disk.devid)
    result = attached.add()
    assert result.status == 0, result
    return attached


@pytest.mark.parametrize(
    ("dev", "mode", "hdtype"), [("xvda", b"w", IDE), ("hda", b"w", AHCI), ("sda", b"r", IDE)], ids=str
)
def test_a_pc_boots_from_what_linux_s_script_attached(
    host: Host, tmp_path: Path, dev: str, mode: bytes, hdtype: str
) -> None:
    """A loop device, read from inside by a boot sector."""
    disk = attach(host, boot_image(tmp_path / "disk.img", f"marker of {dev}"), dev, mode)
    with host.connect() as store:
        arguments = device_model_arguments(store, 5, hdtype).arguments
    assert any("file=/dev/loop" in argument for argument in arguments)
    assert boot(arguments) == f"marker of {dev}"
    assert disk.remove().status == 0


def test_a_pc_boots_from_a_cdrom(host: Host, tmp_path: Path) -> None:
    attach(host, boot_cdrom(tmp_path / "cd.iso", "marker of a CD"), "hdc", b"r", device_type=b"cdrom")
    with host.connect() as store:
        arguments = device_model_arguments(store, 5).arguments
    assert any("file=/dev/loop" in argument for argument in arguments)
    assert boot(arguments, "d") == "marker of a CD"


def test_a_pc_boots_from_what_freebsd_s_script_attached(tmp_path: Path, store_socket: Path) -> None:
    """The file itself, under a name that qemu's options would take apart."""
    system = Freebsd(tmp_path / "model")
    host = Host(tmp_path, store_socket, "freebsd", settings=system.place.settings)
    image = boot_image(tmp_path / "a disk,format=vpc.img", "marker of a file")
    attach(host, image, "xvda")
    with host.connect() as store:
        arguments = device_model_arguments(store, 5).arguments
    assert str(image).replace(",", ",,") in arguments[1]
    assert boot(arguments) == "marker of a file"


@pytest.fixture
def nbd_socket(tmp_path: Path) -> Iterator[Path]:
    """A server of an image, as tapdisk is one for vbd3."""
    path = tmp_path / "tap disk.sock"
    image = boot_image(tmp_path / "disk.img", "marker by NBD")
    server = subprocess.Popen([need_program("qemu-nbd"), "-t", "-f", "raw", "-k", path, image])

    def serves() -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(os.fspath(path)) == 0

    until(serves, "qemu-nbd serves")
    yield path
    server.terminate()
    server.wait()


def test_a_pc_boots_over_nbd(store: Connection, add: Add, nbd_socket: Path) -> None:
    add("xvda", str(nbd_socket), kind=b"vbd3", type=b"vbd3")
    assert boot(device_model_arguments(store, 5).arguments) == "marker by NBD"
