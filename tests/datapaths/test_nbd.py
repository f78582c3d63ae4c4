"""``block-nbd``: an image or an export becomes a device of the kernel, is one guest's only, and leaves nothing.

The servers and images are QEMU's own. The kernel's devices are modelled (qemu_nbd.py); the real ones: make check-xen.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.datapaths import qemu_nbd
from tests.datapaths.nbd_host import Nbd, host, nbd
from tests.faults.test_gc import gc
from tests.host import PYTHON, Disk, Result
from tests.images import losetup, make_image
from tests.waiting import until
from vbdkit.datapaths.nbd import Nbd as Storage
from vbdkit.datapaths.nbd.target import FORMATS, image_options, parse_uri
from vbdkit.protocol.disk import parse_disk
from vbdkit.protocol.failure import Failure

__all__ = ["host", "nbd"]  # fixtures


def refused(result: Result, *words: str) -> None:
    """The script refused with a sentence that has these words, and published nothing."""
    assert result.status == 1, result.nodes
    for word in words:
        assert word in result.error
    assert not {"physical-device", "physical-device-path"} & set(result.nodes)


def device_of(result: Result) -> str:
    """The device that a guest has got."""
    assert result.status == 0, result.output
    return result.nodes["physical-device-path"].decode()


def first(device: str) -> bytes:
    """How a device begins."""
    with open(device, "rb") as file:
        return file.read(12)


class TestImages:
    @pytest.mark.parametrize("form", ["qcow2", "raw", "vmdk", "vpc"])
    def test_what_a_guest_writes_is_in_the_image(self, nbd: Nbd, form: str) -> None:
        image = nbd.image(form=form)
        disk = nbd.disk(f"{form}:{image}")
        done = disk.add()
        assert (done.status, done.outcome, done.output) == (0, b"connected", "")
        device = device_of(done)
        assert device == f"{nbd.root}/dev/nbd0"
        number = os.stat(device).st_rdev
        assert done.nodes["physical-device"] == b"%x:%x" % (os.major(number), os.minor(number))
        with open(device, "r+b") as file:
            assert file.read(12) == b"first sector"
            file.seek(1 << 20)
            file.write(b"the guest's words")
        assert disk.remove().status == 0
        assert nbd.left() == []
        data = nbd.content(image, form)
        assert data[:12] == b"first sector"
        assert data[1 << 20 :][:17] == b"the guest's words"

    def test_a_reader_cannot_write(self, nbd: Nbd) -> None:
        disk = nbd.disk(f"qcow2:{nbd.image()}", mode="r")
        device = device_of(disk.add())
        with pytest.raises(OSError, match=r"not permitted|Read-only"), open(device, "r+b", buffering=0) as file:
            file.write(b"x" * 512)
        assert first(device) == b"first sector"
        assert disk.remove().status == 0
        assert nbd.left() == []

    def test_raw_means_raw(self, nbd: Nbd) -> None:
        """A guest may write a header of another format into its raw image: it is still raw, and names no other file."""
        secret = make_image(nbd.host.directory / "secret", b"a secret", 1 << 20)
        image = nbd.host.directory / "disk.raw"
        nbd.img("create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(image))
        assert first(device_of(nbd.disk(f"raw:{image}").add()))[:4] == b"QFI\xfb"

    def test_the_format_of_a_backing_image_is_not_guessed(self, nbd: Nbd) -> None:
        base, top = nbd.image("base", "raw"), nbd.host.directory / "top.qcow2"
        nbd.img("create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(top))
        nbd.img("rebase", "-u", "-b", "", str(top))
        # qemu-img itself no longer makes one without a format; older ones did.
        data = bytearray(top.read_bytes())
        name = os.fsencode(base)
        data[8:20] = (512).to_bytes(8, "big") + len(name).to_bytes(4, "big")
        data[512 : 512 + len(name)] = name
        top.write_bytes(data)
        refused(nbd.disk(f"qcow2:{top}").add(), f"{top} does not say of which format", f"rebase -u -b {base} -F raw")
        assert nbd.left() == []

    def test_an_image_on_a_block_device(self, nbd: Nbd) -> None:
        device = losetup("--find", "--show", str(nbd.image()))
        nbd.host.loops.add(device)
        try:
            for target in (f"qcow2:{device}", f"qcow2:{device.removeprefix('/dev/')}"):
                disk = nbd.disk(target)
                assert first(device_of(disk.add())) == b"first sector"
                refused(nbd.disk(f"raw:{device}", 6).add(), "guest 5")
                assert disk.remove().status == 0
        finally:
            losetup("--detach", device)

    def test_names_of_all_kinds(self, nbd: Nbd) -> None:
        plain = nbd.image()
        for name in ("a b,c=d.qcow2", "q\"'$(x).qcow2", "größe:2.qcow2"):
            image = plain.rename(plain.with_name(name))
            disk = nbd.disk(f"qcow2:{image}")
            assert first(device_of(disk.add())) == b"first sector"
            assert disk.remove().status == 0
            plain = image

    def test_qemus_own_words(self, nbd: Nbd) -> None:
        image = make_image(nbd.host.directory / "disk.qcow2")
        refused(nbd.disk(f"qcow2:{image}").add(), f"{image} is of no use as qcow2: Image is not in qcow2 format")
        refused(nbd.disk("qcow2:/nowhere.qcow2").add(), "/nowhere.qcow2 does not exist")
        assert nbd.left() == []

    def test_twice_and_anew(self, nbd: Nbd) -> None:
        """I5: one server, however often add comes; and remove is quiet."""
        disk = nbd.disk(f"qcow2:{nbd.image()}")
        disk.add()
        disk.write(state=b"4")
        assert disk.add().status == 0
        assert nbd.free() == ["nbd1", "nbd2"]
        disk.write(state=b"2")
        assert disk.add().status == 0
        assert [disk.remove().status for _ in range(2)] == [0, 0]
        assert nbd.left() == []

    def test_remove_works_from_the_record(self, nbd: Nbd) -> None:
        image = nbd.image()
        disk = nbd.disk(f"qcow2:{image}")
        disk.add()
        disk.forget()
        image.unlink()
        assert disk.remove().status == 0
        assert nbd.left() == []


class TestSharing:
    def test_an_image_is_one_guests(self, nbd: Nbd) -> None:
        """O1: by this script, by a hard link, by block, and by QEMU itself."""
        image = nbd.image()
        link = image.with_name("link.qcow2")
        link.hardlink_to(image)
        nbd.disk(f"qcow2:{image}").add()
        for name, mode in ((image, "w"), (link, "w"), (link, "r")):
            refused(nbd.disk(f"qcow2:{name}", 6, mode).add(), "is in use by guest 5 (guest5) as its disk xvda")
        nbd.host.script = nbd.host.directory / "block"
        refused(nbd.disk(str(link), 6).add(), f"{link} is in use by guest 5 (guest5) as its disk xvda")
        assert nbd.free() == ["nbd1", "nbd2"]

    def test_what_others_have(self, nbd: Nbd) -> None:
        """A guest by block, one by qdisk, and a mount."""
        image = nbd.image(form="raw")
        host = nbd.host
        custom, host.script = host.script, host.directory / "block"
        other = nbd.disk(str(image), 7)
        other.add()
        host.script = custom
        refused(nbd.disk(f"raw:{image}").add(), "guest 7 (guest7)")
        host.script = host.directory / "block"
        other.remove()
        other.forget()
        host.domain(8)
        qdisk = host.vbd(8, f"raw:{image}", kind="qdisk")
        host.script = custom
        refused(nbd.disk(f"raw:{image}").add(), "guest 8 (guest8)")
        qdisk.forget()
        assert nbd.disk(f"raw:{image}").add().status == 0

    def test_readers_share(self, nbd: Nbd) -> None:
        image = nbd.image()
        disks = [nbd.disk(f"qcow2:{image}", domid, "r") for domid in (5, 6)]
        assert [first(device_of(disk.add())) for disk in disks] == [b"first sector"] * 2
        refused(nbd.disk(f"qcow2:{image}", 7).add(), "in use by guest", "or ask for it read-only")
        assert [disk.remove().status for disk in disks] == [0, 0]
        assert nbd.left() == []

    def test_a_backing_image_is_for_many_readers(self, nbd: Nbd) -> None:
        base = nbd.image("base")
        tops = [base.with_name(f"top{number}.qcow2") for number in range(2)]
        for top in tops:
            nbd.img("create", "-q", "-f", "qcow2", "-b", base.name, "-F", "qcow2", str(top))
        writer = nbd.disk(f"qcow2:{base}", 7)
        writer.add()
        refused(nbd.disk(f"qcow2:{tops[0]}").add(), f"{base} is in use by guest 7")
        writer.remove()
        disks = [nbd.disk(f"qcow2:{top}", domid) for domid, top in enumerate(tops, 5)]
        assert [first(device_of(disk.add())) for disk in disks] == [b"first sector"] * 2
        refused(nbd.disk(f"qcow2:{base}", 7).add(), f"{base} is in use by guest 5 (guest5) as its disk xvda, read-only")
        assert nbd.disk(f"qcow2:{base}", 8, "r").add().status == 0

    @pytest.mark.parametrize(
        ("form", "options", "part"),
        [
            ("qcow2", "data_file={folder}/a.data,data_file_raw=on", "a.data"),
            ("vmdk", "subformat=monolithicFlat", "a-flat.vmdk"),
        ],
    )
    def test_a_data_file_belongs_to_the_image(self, nbd: Nbd, form: str, options: str, part: str) -> None:
        folder = nbd.host.directory
        image, data = folder / f"a.{form}", folder / part
        nbd.img("create", "-q", "-f", form, "-o", options.format(folder=folder), str(image), "4M")
        custom, nbd.host.script = nbd.host.script, folder / "block"
        nbd.disk(str(data), 7, "r").add()
        nbd.host.script = custom
        refused(nbd.disk(f"{form}:{image}").add(), f"{data} is in use by guest 7")
        assert nbd.disk(f"{form}:{image}", mode="r").add().status == 0

    def test_only_raw_is_for_two_writers(self, nbd: Nbd) -> None:
        """The exclamation mark is the user's word that both know how to share; a format's own layout does not."""
        raw, image = nbd.image("shared", "raw"), nbd.image()
        both = [nbd.disk(f"raw:{raw}", domid, "w!") for domid in (5, 6)]
        assert [disk.add().status for disk in both] == [0, 0]
        assert both[0].remove().status == 0
        assert nbd.disk(f"qcow2:{image}", 7, "w!").add().status == 0
        refused(nbd.disk(f"qcow2:{image}", 8, "w!").add(), f"qemu-nbd does not serve {image}: ", "lock")

    def test_at_once(self, nbd: Nbd) -> None:
        """Each gets a device of its own, and its own image; when there are no more, the fourth is told."""
        disks = []
        for domid in range(5, 9):
            marker = b"image of %03d" % domid
            disks.append(nbd.disk(f"qcow2:{nbd.image(f'disk{domid}', marker=marker)}", domid))
        running = [disk.start("add") for disk in disks]
        for process in running:
            process.communicate(timeout=60)
        good = [disk for disk, process in zip(disks, running, strict=True) if process.returncode == 0]
        assert len(good) == 3
        devices = {disk.domid: disk.nodes()["physical-device-path"].decode() for disk in good}
        assert len(set(devices.values())) == 3
        assert all(first(device) == b"image of %03d" % domid for domid, device in devices.items())
        (bad,) = [disk for disk in disks if disk not in good]
        assert b"all network block devices" in bad.nodes()["hotplug-error"]
        assert [disk.remove().status for disk in disks] == [0] * 4
        assert nbd.left() == []


@contextlib.contextmanager
def served(*words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A server of somebody else's."""
    process = subprocess.Popen(["qemu-nbd", "-t", "-e", "9", *words])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    """Whether a server is there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def silent(path: Path) -> Iterator[None]:
    """A server that accepts and never says a word."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(8)
        yield
    path.unlink()


class TestServers:
    def test_by_unix_socket(self, nbd: Nbd) -> None:
        path = nbd.host.directory / "a server"
        uri = f"nbd+unix:///my%20disk?socket={str(path).replace(' ', '%20')}"
        with served("-k", str(path), "-x", "my disk", "-f", "qcow2", str(nbd.image())) as server:
            until(path.is_socket, "its socket")
            disk = nbd.disk(uri)
            assert first(device_of(disk.add())) == b"first sector"
            link = path.with_name("link")
            link.symlink_to(path)
            refused(nbd.disk(f"nbd+unix:///my%20disk?socket={link}", 6).add(), "guest 5 (guest5) as its disk xvda")
            assert disk.remove().status == 0
            unknown = nbd.disk(uri.replace("my", "no"), 6).add()
            refused(unknown, f"qemu-nbd does not serve {path}: ", "no disk")
            assert server.poll() is None
        assert nbd.left() == []

    def test_by_tcp(self, nbd: Nbd) -> None:
        with socket.socket() as reserve:
            reserve.bind(("127.0.0.1", 0))
            port = reserve.getsockname()[1]
        uri = f"nbd://127.0.0.1:{port}/disk"
        refused(nbd.disk(uri).add(), f"qemu-nbd does not serve 127.0.0.1:{port}: ", "Connection refused")
        with served("-b", "127.0.0.1", "-p", str(port), "-x", "disk", "-f", "qcow2", str(nbd.image())):
            until(lambda: listens(port), "its port")
            disks = [nbd.disk(uri, domid, "r") for domid in (5, 6)]
            assert [first(device_of(disk.add())) for disk in disks] == [b"first sector"] * 2
            refused(nbd.disk(uri, 7).add(), "in use by guest")
            assert [disk.remove().status for disk in disks] == [0, 0]
        assert nbd.left() == []

    def test_the_same_vm_moves(self, nbd: Nbd) -> None:
        """Live migration on one host: two domains, one vm, one export."""
        path, image = nbd.host.directory / "socket", nbd.image()
        with served("-k", str(path), "-f", "qcow2", str(image)):
            until(path.is_socket, "its socket")
            for domid in (5, 6):
                nbd.host.domain(domid, vm="/vm/one")
                assert nbd.host.vbd(domid, f"nbd+unix:///?socket={path}").add().status == 0

    def test_a_server_that_comes_back(self, nbd: Nbd) -> None:
        """The guest's disk goes on: what it asks meanwhile waits."""
        path, image = nbd.host.directory / "socket", nbd.image()
        words = ("-k", str(path), "-x", "disk", "-f", "qcow2", str(image))
        disk = nbd.disk(f"nbd+unix:///disk?socket={path}")
        with served(*words):
            until(path.is_socket, "its socket")
            device = device_of(disk.add())
        path.unlink()
        with served(*words):
            until(path.is_socket, "its socket")
            with open(device, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert file.read(12) == b"first sector"
            assert disk.remove().status == 0


class TestKilled:
    def test_the_server_of_a_running_guest(self, nbd: Nbd) -> None:
        image = nbd.image()
        disk = nbd.disk(f"qcow2:{image}")
        disk.add()
        nbd.kill()
        refused(nbd.disk(f"qcow2:{image}", 6).add(), "guest 5")
        assert disk.remove().status == 0
        assert nbd.left() == []
        assert nbd.disk(f"qcow2:{image}", 6).add().status == 0

    def test_the_server_while_it_attaches(self, nbd: Nbd) -> None:
        with attaching(nbd) as (disk, process):
            nbd.kill()
            assert process.wait(20) == 1
            assert (
                f"qemu-nbd does not serve {nbd.host.directory}/silent: signal 9"
                in disk.nodes()["hotplug-error"].decode()
            )
            assert nbd.left() == []

    def test_the_server_between_its_start_and_the_device(self, nbd: Nbd) -> None:
        """The program that was started says that all went well, and yet there is nothing."""
        program = nbd.host.directory / "liar"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        nbd.write_script(program)
        refused(nbd.disk(f"qcow2:{nbd.image()}").add(), "qemu-nbd has ended before nbd0 was connected")
        assert nbd.left() == []

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_undoes(self, nbd: Nbd, number: signal.Signals) -> None:
        with attaching(nbd) as (disk, process):
            process.send_signal(number)
            assert process.wait(20) == 1
            assert number.name.encode() in disk.nodes()["hotplug-error"]
            assert nbd.left() == []

    def test_the_deadline_undoes(self, nbd: Nbd) -> None:
        nbd.host.time_limit = 8.0
        nbd.write_script()
        with attaching(nbd) as (disk, process):
            assert process.wait(20) == 1
            assert b"was not done after" in disk.nodes()["hotplug-error"]
            assert nbd.left() == []

    @pytest.mark.parametrize("after", ["remove", "add", "gc"])
    def test_the_script_while_it_attaches(self, nbd: Nbd, after: str) -> None:
        """SIGKILL: a server is left, which the next run takes back."""
        with attaching(nbd) as (disk, process):
            process.kill()
            process.wait()
            assert nbd.servers()
            if after == "remove":
                assert disk.remove().status == 0
            elif after == "add":
                disk.write(params=b"qcow2:" + os.fsencode(nbd.image()))
                assert first(device_of(disk.add())) == b"first sector"
                assert disk.remove().status == 0
            else:
                disk.forget()
                assert "collected" in collect(nbd)
            assert nbd.left() == []

    def test_a_server_that_is_being_started(self, nbd: Nbd) -> None:
        """The program that starts it comes to that just when it is ended."""
        program = nbd.host.directory / "late"
        program.write_text(
            f"#!{PYTHON}\nimport os, signal, time\n"
            "def late(*_):\n    signal.signal(signal.SIGTERM, signal.SIG_DFL)\n    os.fork() and os._exit(0)\n"
            "signal.signal(signal.SIGTERM, late)\nwhile True: time.sleep(60)\n"
        )
        program.chmod(0o755)
        nbd.write_script(program)
        disk = nbd.disk(f"qcow2:{nbd.image()}")
        process = disk.start("add", output=subprocess.DEVNULL)
        until(lambda: any(catches(pid, signal.SIGTERM) for pid in nbd.servers()), "it catches SIGTERM")
        process.kill()
        process.wait()
        assert disk.remove().status == 0
        assert nbd.left() == []

    def test_the_script_when_the_device_is_there(self, nbd: Nbd) -> None:
        """Nobody has used the device, so the server needs no time."""
        nbd.write_script(more="    def _server_of(self, *words):\n        os.kill(os.getpid(), 9)\nimport os")
        disk = nbd.disk(f"qcow2:{nbd.image()}")
        assert disk.add().status == -signal.SIGKILL
        assert nbd.free() == ["nbd1", "nbd2"]
        nbd.write_script()
        assert disk.remove().status == 0
        assert nbd.left() == []

    def test_gc_takes_back_what_nobody_has(self, nbd: Nbd) -> None:
        disk = nbd.disk(f"qcow2:{nbd.image()}")
        disk.add()
        disk.forget()
        assert "collected" in collect(nbd)
        assert nbd.left() == []

    def test_a_device_that_is_somebody_elses_by_now_stays(self, nbd: Nbd) -> None:
        """Our server is gone, and another program has connected the same device."""
        disk = nbd.disk(f"qcow2:{nbd.image()}")
        disk.add()
        nbd.kill()
        other = nbd.image("other", marker=b"another's")
        command = [qemu_nbd.__file__, f"--socket={nbd.host.directory}/theirs", f"--connect={nbd.root}/dev/nbd0"]
        subprocess.run([*command, "--image-opts", f"driver=qcow2,file.filename={other}"], check=True)
        theirs = int((nbd.root / "sys/block/nbd0/pid").read_text())
        try:
            assert disk.remove().status == 0
            assert first(f"{nbd.root}/dev/nbd0")[:9] == b"another's"
            assert device_of(nbd.disk(f"qcow2:{nbd.image('third')}", 6).add()) == f"{nbd.root}/dev/nbd1"
        finally:
            os.kill(theirs, signal.SIGTERM)
            until(lambda: "nbd0" in nbd.free(), "nbd0 is free")

    def test_a_device_without_a_server_that_a_guest_still_has_gets_no_other(self, nbd: Nbd) -> None:
        """It keeps its size as long as it is open: a new server would serve its image to that guest."""
        (nbd.root / "sys/block/nbd0/size").write_text("8192\n")
        assert device_of(nbd.disk(f"qcow2:{nbd.image()}").add()) == f"{nbd.root}/dev/nbd1"


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


@contextlib.contextmanager
def attaching(nbd: Nbd) -> Iterator["tuple[Disk, subprocess.Popen[bytes]]"]:
    """An add that waits for its server, which waits for another one."""
    path = nbd.host.directory / "silent"
    with silent(path):
        disk = nbd.disk(f"nbd+unix:///disk?socket={path}")
        process = disk.start("add", output=subprocess.DEVNULL)
        try:
            until(nbd.servers, "a server")
            yield disk, process
        finally:
            process.kill()
            process.wait()


def collect(nbd: Nbd) -> str:
    """What gc says."""
    with nbd.host.connect() as store:
        store.write(b"domid", b"0")
    return gc(nbd.host).stdout


class TestTargets:
    @pytest.mark.parametrize(
        ("uri", "found"),
        [
            ("nbd://Server.example/web", {"host": "server.example", "port": "10809", "export": "web"}),
            ("nbd://10.0.0.1:010809/", {"host": "10.0.0.1", "port": "10809", "export": ""}),
            ("nbd://host:", {"host": "host", "port": "10809", "export": ""}),
            ("nbd://host", {"host": "host", "port": "10809", "export": ""}),
            ("nbd+tcp://[fe80::1%25eth0]:7/a/b", {"host": "fe80::1%eth0", "port": "7", "export": "a/b"}),
            ("nbd+unix:///a%2cb?socket=/run/s%20s", {"socket": "/run/s s", "export": "a,b"}),
            ("nbd+unix://?socket=/run/s", {"socket": "/run/s", "export": ""}),
        ],
    )
    def test_uris(self, uri: str, found: dict[str, str]) -> None:
        assert parse_uri(uri) == found
        assert Storage().parse(uri) == found

    @pytest.mark.parametrize(
        ("target", "words"),
        [
            ("/srv/web.qcow2", "is not of the form FORMAT:FILE, for example qcow2:/srv/web.qcow2"),
            ("tar:/srv/web.tar", "tar in the target tar:/srv/web.tar is none of the formats"),
            ("nbds://host/web", "TLS is not served"),
            ("nbd:/web", "one begins with nbd://"),
            ("nbd://", "one names a server"),
            ("nbd://me@host/web", "one names a server"),
            ("nbd://host:0/web", "one names a server"),
            ("nbd://host:65536/web", "one names a server"),
            ("nbd://[::1/web", "one names a server"),
            ("nbd://::1/web", "one names a server"),
            ("nbd://host/web?tls=1", "has no parameter tls"),
            ("nbd+unix:///web", "an absolute path"),
            ("nbd+unix:///web?socket=s", "an absolute path"),
            ("nbd+unix://host/web?socket=/s", "an absolute path"),
            ("nbd://host/%2", "two hexadecimal digits"),
            ("nbd://host/%zz", "two hexadecimal digits"),
            ("nbd://host/%00", "no NUL byte"),
        ],
    )
    def test_wrong_ones(self, target: str, words: str) -> None:
        with pytest.raises(Failure) as error:
            Storage().parse(target)
        assert words in str(error.value)

    def test_what_xl_leaves_of_a_disk_nbd(self) -> None:
        """``nbd://host/web,xvda,w``: xl takes ``nbd:`` for its prefix of that name."""
        disk = parse_disk("nbd://host/web,xvda,w")
        assert disk.script == "block-nbd"
        assert disk.pdev_path is not None
        assert Storage().parse(disk.pdev_path) == parse_uri("nbd://host/web")

    def test_one_export_has_one_name(self) -> None:
        storage = Storage()
        names = {storage.identity(storage.parse(uri)) for uri in ("nbd://A/x", "nbd+tcp://a:10809/x", "//a/%78")}
        assert len(names) == 1

    def test_options_are_of_one_piece(self) -> None:
        """A comma in a name is no end of an option."""
        options = image_options({"format": "qcow2", "file": "/a,driver=raw"})
        assert options == "driver=qcow2,file.filename=/a,,driver=raw"


class TestAbout:
    def test_describe(self, nbd: Nbd) -> None:
        said = json.loads(subprocess.check_output([nbd.host.script, "--describe"]))
        assert said["name"] == "nbd"
        assert said["tools"] == {"qemu-nbd": "qemu-utils", "qemu-img": "qemu-utils"}
        assert said["modules"] == ["nbd"]
        assert Storage().parse(said["example"]) == {"format": "qcow2", "file": "/srv/web.qcow2"}

    def test_help_names_all_formats(self, nbd: Nbd) -> None:
        said = subprocess.check_output([nbd.host.script, "--help"], text=True)
        assert [name for name in FORMATS if name not in said] == []

    def test_the_module_is_loaded(self, nbd: Nbd) -> None:
        """This kernel has none: modprobe's own words."""
        (nbd.root / "sys/module/nbd").rmdir()
        refused(nbd.disk(f"qcow2:{nbd.image()}").add(), "modprobe")
