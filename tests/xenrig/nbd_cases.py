"""Cases of `block-nbd`: images and NBD servers for real guests, through the network block devices of dom0's kernel."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .harness import (
    ANSWER,
    MARKER,
    READ_AND_ANSWER,
    RECORDS,
    XVDA,
    XVDB,
    Guest,
    Neighbour,
    Verdicts,
    answer,
    backend,
    custom_script,
    image,
    neighbours,
    node,
    nothing_left,
    run,
    wait,
)
from .stacks import nbd, tool


def images(check: Verdicts) -> None:
    """block-nbd: guests on qcow2 images; a writer is alone; readers share, as does a backing image."""
    base, top, other = _qcow2("base"), Path("/tmp/top.qcow2"), Path("/tmp/other.qcow2")
    for name in (top, other):
        tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(name))
    with custom_script(check, "block-nbd") as script:
        disk = f"script={script},format=raw,vdev=xvda,access=w,target=qcow2:{top}"
        guest = Guest("image", [disk], READ_AND_ANSWER)
        status, output = guest.create()
        check("xl create", status == 0, output)
        device = node(f"{backend(guest.domid, XVDA)}/physical-device-path")
        check("its disk is a network block device", device == "/dev/nbd0", device)
        check("the guest reads what is in the backing image", guest.says(f"domU: read {MARKER}"), guest.console())
        check("and writes", guest.says("domU: wrote"), guest.console())
        check("it powers itself off, its backend goes", guest.gone())
        check("what it wrote is in the image", _answer(top) == ANSWER, _answer(top))
        check("and not in the backing image", _answer(base) != ANSWER, _answer(base))
        _nothing_left(check)
        alice, bob = neighbours()
        alias = Path("/tmp/alias.qcow2")
        alias.unlink(missing_ok=True)
        alias.hardlink_to(top)
        with alice.having(check, f"qcow2:{top}", reads=True):
            bob.may_not_have(check, f"qcow2:{top}", "alice")
            bob.may_not_have(check, f"qcow2:{alias}", "alice", access="r")
            bob.may_not_have(check, f"qcow2:{base}", "alice")
            bob.may_have(check, f"qcow2:{base}", access="r")
            bob.may_have(check, f"qcow2:{other}")
            bob.script = ""
            bob.may_not_have(check, top, "qemu-nbd|alice")
            bob.script = script
        with alice.having(check, f"qcow2:{top}", access="r", reads=True):
            flag = Path("/sys/block/nbd0/ro").read_text().strip()
            check("the device of a reader is read-only (O8)", flag == "1", flag)
            with bob.having(check, f"qcow2:{top}", access="r", reads=True):
                check("two readers have a server each", len(_connected()) == 2, _connected())
            bob.may_not_have(check, f"qcow2:{top}", "alice", "read-only")
        with alice.having(check, f"qcow2:{base}"):
            bob.may_not_have(check, f"qcow2:{top}", "alice", "base")
        _nothing_left(check)
        theirs = image("/tmp/theirs.img")
        with nbd(theirs):
            bob.may_have(check, f"qcow2:{top}")
            bob.may_not_have(check, f"raw:{theirs}", "qemu-nbd")
            check("a device of somebody else stays", _connected() == ["nbd0"], _connected())
        _nothing_left(check)


def servers(check: Verdicts) -> None:
    """block-nbd with exports of a server, by unix socket and by TCP; the server comes back; readers share."""
    file = image("/tmp/served.img")
    path = Path("/tmp/nbd server.sock")
    alice, bob = neighbours()
    with custom_script(check, "block-nbd"):
        by_socket = f"nbd+unix:///disk?socket={str(path).replace(' ', '%20')}"
        with _server(file, "-k", str(path), "-x", "disk") as server:
            with alice.having(check, by_socket, reads=True):
                bob.may_not_have(check, by_socket, "alice")
                bob.may_not_have(check, by_socket, "alice", access="r")
            with alice.having(check, by_socket, access="r"), bob.having(check, by_socket, access="r", reads=True):
                pass
            bob.may_not_have(check, by_socket.replace("disk", "none"), "none|export")
            check("the server is as it was", server.poll() is None)
        bob.may_not_have(check, by_socket, "No such file|refused")
        by_tcp = "nbd://127.0.0.1:10810/disk"
        serve = ("-b", "127.0.0.1", "-p", "10810", "-x", "disk")
        bob.may_not_have(check, by_tcp, "Connection refused")
        with _server(file, *serve) as server, alice.having(check, by_tcp, reads=True):
            bob.may_not_have(check, by_tcp, "alice")
            server.kill()
            server.wait()
            with _server(file, *serve):
                check("dom0 reads through a server that came back", _read("/dev/nbd0") == MARKER.encode())
        _nothing_left(check)


def killed(check: Verdicts) -> None:
    """block-nbd: the server is killed, and the script, at any time; the tool's words are told; nothing is left."""
    file = _qcow2("disk")
    alice, bob = neighbours()
    path = Path("/tmp/silent.sock")
    with custom_script(check, "block-nbd"):
        with alice.having(check, f"qcow2:{file}", reads=True):
            (device,) = _connected()
            os.kill(int(Path(f"/sys/block/{device}/pid").read_text()), signal.SIGKILL)
            gone = wait(lambda: not _servers(), 10)
            check("the server of a guest that runs is killed", gone, _servers())
            bob.may_not_have(check, f"qcow2:{file}", "alice")
        _nothing_left(check)
        alice.may_have(check, f"qcow2:{file}")
        _nothing_left(check)
        # A server that accepts and says nothing: what attaches is in the middle for as long as we like.
        silent = f"nbd+unix:///disk?socket={path}"
        with _silent(path):
            with _attaching(alice, silent) as attach:
                for pid in _servers():
                    os.kill(pid, signal.SIGKILL)
                output = attach.communicate(timeout=60)[0].decode()
            check("its server killed while it attaches, it ends with words", "qemu-nbd" in output, output)
            _rid(check, alice)
            with _attaching(alice, silent) as attach:
                (script,) = _scripts()
                os.kill(script, signal.SIGTERM)
                output = attach.communicate(timeout=60)[0].decode()
            check("SIGTERM is told", "SIGTERM" in output, output)
            _rid(check, alice)
            with _attaching(alice, silent) as attach:
                (script,) = _scripts()
                os.kill(script, signal.SIGKILL)
                attach.communicate(timeout=60)
                check("a script that is killed leaves its server", len(_servers()) > 0)
            _rid(check, alice)
        wrong = Path("/tmp/wrong.qcow2")
        wrong.write_bytes(b"no image" * 100)
        alice.may_not_have(check, f"qcow2:{wrong}", "not in qcow2 format")
        _nothing_left(check)


def _qcow2(name: str) -> Path:
    raw = image(f"/tmp/{name}.img")
    path = raw.with_suffix(".qcow2")
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path))
    return path


def _answer(disk: Path) -> str:
    """What the guest left on the disk of an image."""
    out = Path("/tmp/answer.img")
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(out))
    return answer(out)


def _connected() -> list[str]:
    return sorted(path.parts[3] for path in Path("/sys/block").glob("nbd*/pid"))


def _servers() -> list[int]:
    """The servers of our script's disks, and what has started them."""
    return [int(pid) for pid in run("pgrep", "-f", f"qemu-nbd --socket={RECORDS}")[1].split()]


def _scripts() -> list[int]:
    return [int(pid) for pid in run("pgrep", "-f", "block-nbd add")[1].split()]


def _nothing_left(check: Verdicts) -> None:
    nothing_left(check)
    check("no server is left", not _servers(), _servers())
    check("no device is connected", not _connected(), _connected())
    sockets = [str(path) for path in (RECORDS / ".nbd").glob("*")]
    check("no socket is left", not sockets, sockets)


def _rid(check: Verdicts, guest: Neighbour) -> None:
    """The disk that a guest did not get is taken from it, and has left nothing."""
    frontend = f"/local/domain/{guest.domid}/device/vbd/{XVDB}/state"
    wait(lambda: node(frontend) in ("3", "4"))
    guest.detach()
    _nothing_left(check)


@contextmanager
def _attaching(guest: Neighbour, target: str) -> Iterator["subprocess.Popen[bytes]"]:
    """An xl block-attach that has come to its qemu-nbd."""
    disk = f"script={guest.script},format=raw,vdev=xvdb,access=w,target={target}"
    process = subprocess.Popen(
        ["xl", "block-attach", guest.name, disk], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait(lambda: len(_servers()) > 0)
    yield process


@contextmanager
def _server(file: Path, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A server of a raw image for any number of clients."""
    process = subprocess.Popen(["qemu-nbd", "-t", "-e", "4", "-f", "raw", *words, str(file)])
    uri = words[1] if words[0] == "-k" else ""
    wait(lambda: Path(uri).is_socket() if uri else _listens(10810))
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _silent(path: Path) -> Iterator[None]:
    """A server that never says a word."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(16)
        yield


def _read(device: str) -> bytes:
    with open(device, "rb") as reader:
        return reader.read(len(MARKER))
