"""Wrong input of every kind: one clear sentence in hotplug-error, status `error`, exit 1, nothing left (O7, I1-I3)."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.host import Disk, Host, Result, bound_loops
from tests.images import losetup, make_image


def refused(disk: Disk, *says: str) -> Result:
    """Run add; it must fail, say so in its three places, and leave nothing."""
    loops = bound_loops()
    result = disk.add()
    assert (result.status, result.outcome) == (1, b"error"), result
    for part in says:
        assert part in result.error
    assert result.error[-60:] in result.output, "the toolstack's log has the sentence too"
    assert "\n" not in result.error
    assert len(result.error.encode()) <= 1024
    assert "Traceback" not in result.output
    assert not {"physical-device", "physical-device-path", "node"} & set(result.nodes)
    nothing_left(disk.host, loops)
    return result


def nothing_left(host: Host, loops: list[str]) -> None:
    assert bound_loops() == loops
    for place in (host.run_dir, host.lock_dir):
        assert not place.exists() or list(place.iterdir()) == []


def missing(place: Path) -> tuple[bytes, str]:
    return os.fsencode(place / "none"), "none does not exist"


def missing_relative(place: Path) -> tuple[bytes, str]:
    return b"no/such/device", "/dev/no/such/device does not exist"


def directory(place: Path) -> tuple[bytes, str]:
    return os.fsencode(place), "is a directory; a disk is a block device or a plain file"


def fifo(place: Path) -> tuple[bytes, str]:
    os.mkfifo(place / "fifo")
    return os.fsencode(place / "fifo"), "fifo is a FIFO"


def unix_socket(place: Path) -> tuple[bytes, str]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(place / "sock"))
    return os.fsencode(place / "sock"), "sock is a socket"


def character_device(place: Path) -> tuple[bytes, str]:
    return b"/dev/null", "/dev/null is a character device"


def dangling_link(place: Path) -> tuple[bytes, str]:
    (place / "link").symlink_to("/nowhere/at all")
    return os.fsencode(place / "link"), "is a link to /nowhere/at all, which does not exist"


def link_loop(place: Path) -> tuple[bytes, str]:
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    return os.fsencode(place / "a"), "cannot be opened: Too many levels of symbolic links"


def empty_file(place: Path) -> tuple[bytes, str]:
    return os.fsencode(make_image(place / "e", b"", 0)), "is empty: a disk needs at least one sector"


def tiny_file(place: Path) -> tuple[bytes, str]:
    return os.fsencode(make_image(place / "e", b"", 511)), "has 511 bytes"


def below_a_file(place: Path) -> tuple[bytes, str]:
    return os.fsencode(make_image(place / "e") / "x"), "Not a directory"


def long_name(place: Path) -> tuple[bytes, str]:
    return os.fsencode(place) + b"/" + b"n" * 300, "File name too long"


def longest_value(place: Path) -> tuple[bytes, str]:
    return b"/" + b"\xf0\x9f\x98\x80" * 900, "too long"


def nul(place: Path) -> tuple[bytes, str]:
    return b"/tmp/a\0b", "holds a NUL byte"


def control_characters(place: Path) -> tuple[bytes, str]:
    return b"/no\n\x1b[31mred\xff", r"/no\n\x1b[31mred\xff does not exist"


def braces(place: Path) -> tuple[bytes, str]:
    return b"/no/{path}/{0}", "/no/{path}/{0} does not exist"


def removed_device(place: Path) -> tuple[bytes, str]:
    os.mknod(place / "dev", 0o60600, os.makedev(240, 4000))
    return os.fsencode(place / "dev"), "dev cannot be opened: No such device or address"


def unbound_loop_device(place: Path) -> tuple[bytes, str]:
    losetup("-d", name := losetup("--find", "--show", str(make_image(place / "e"))))
    return name.encode(), f"{name} is a device without a medium or a connection"


@pytest.mark.parametrize(
    "make",
    [
        missing,
        missing_relative,
        directory,
        fifo,
        unix_socket,
        character_device,
        dangling_link,
        link_loop,
        empty_file,
        tiny_file,
        below_a_file,
        long_name,
        longest_value,
        nul,
        control_characters,
        braces,
        removed_device,
        unbound_loop_device,
    ],
    ids=lambda make: make.__name__,
)
@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_target_that_is_no_disk(
    host: Host, tmp_path: Path, make: "Callable[[Path], tuple[bytes, str]]", mode: str
) -> None:
    (place := tmp_path / "place").mkdir()
    target, says = make(place)
    refused(host.disk(5, target, mode), says)


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ({"params": None}, "backend/vbd/5/51712/params is missing: it has to name the disk's file or device"),
        ({"params": b""}, "backend/vbd/5/51712/params is empty"),
        ({"mode": None}, "backend/vbd/5/51712/mode is missing: it has to be r or w"),
        ({"mode": b""}, "backend/vbd/5/51712/mode is empty"),
        ({"mode": b"W"}, "mode is 'W', which is none of r, ro, w, rw"),
        ({"mode": b"\xff\n"}, "none of r, ro"),
        ({"state": b"1"}, "state is '1', not 2 (InitWait)"),
        ({"state": b"4"}, "state is '4', not 2"),
        ({"state": b"6"}, "state is '6', not 2"),
        ({"state": b"2 "}, "state is '2 ', not 2"),
        ({"state": None}, "state is missing, not 2"),
    ],
    ids=repr,
)
def test_i1_i2_i3_nodes_that_say_too_little(host: Host, image: Path, nodes: dict[str, bytes | None], says: str) -> None:
    host.domain(5)
    values: dict[str, bytes | None] = {"params": os.fsencode(image), "mode": b"w", "state": b"2"}
    values |= nodes
    state = values["state"]
    disk = host.vbd(5, values["params"], values["mode"], state=None if state is None else state.decode())
    refused(disk, says)


def test_no_backend_directory_and_none_made(host: Host) -> None:
    disk = Disk(host, "vbd", 77, 51712)
    result = disk.add()
    assert result.status == 1
    assert "there is no disk at backend/vbd/77/51712 in xenstore" in result.output
    assert result.nodes == {}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"XENBUS_PATH": ""}, "XENBUS_PATH is not set; a toolstack calls: XENBUS_PATH=backend/vbd/DOMID/DEVID block"),
        ({"XENBUS_PATH": "backend/vbd"}, "backend/vbd is not the backend path of a virtual disk"),
    ],
)
def test_c3_a_call_without_a_vbd(host: Host, image: Path, environment: dict[str, str], says: str) -> None:
    result = host.disk(5, image).run("add", extra=environment)
    assert result.status == 1
    assert says in result.output


def test_c2_a_command_that_there_is_not(host: Host, image: Path) -> None:
    disk = host.disk(5, image)
    argv = [str(host.script), "online"]
    import subprocess

    environment = host.environment() | {"XENBUS_PATH": disk.path.decode()}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "asked to do online" in done.stderr
    assert disk.nodes()["hotplug-status"] == b"error"


def test_an_unreachable_store(host: Host, image: Path, tmp_path: Path) -> None:
    disk, loops = host.disk(5, image), bound_loops()
    result = disk.run("add", extra={"XENSTORED_PATH": str(tmp_path / "none")})
    assert result.status == 1
    assert "xenstore" in result.output
    assert str(tmp_path / "none") in result.output
    nothing_left(host, loops)


def test_no_loop_module(host: Host, image: Path) -> None:
    """Without /dev/loop-control, seen through a mount namespace of its own."""
    import subprocess

    disk = host.disk(5, image)
    loops = bound_loops()
    hide = 'mount -t tmpfs tmpfs /dev && exec "$0" add'
    environment = host.environment() | {"XENBUS_PATH": disk.path.decode()}
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", hide, str(host.script)],
        env=environment,
        capture_output=True,
        text=True,
    )
    nodes = disk.nodes()
    assert done.returncode == 1
    assert "load the kernel's loop module (modprobe loop)" in nodes["hotplug-error"].decode()
    assert nodes["hotplug-status"] == b"error"
    nothing_left(host, loops)


def test_after_a_failed_add_remove_is_quiet(host: Host, tmp_path: Path) -> None:
    disk = host.disk(5, tmp_path / "none")
    disk.add()
    result = disk.remove()
    assert (result.status, result.output) == (0, "")
