#!/usr/bin/python3 -I
"""qemu-nbd for a kernel without nbd: the real one serves, and a loop device stands for the device of the kernel.

    qemu_nbd.py --socket=S --connect=ROOT/dev/nbdN [--discard=unmap] [--read-only] --image-opts OPTIONS

ROOT/sys/block/nbdN is that device's folder in sysfs. As the real one does, the program that is started leaves the
server in the background and repeats what that says on stderr: its exit status is 1 if that is anything, else 0. The
kernel's part is a process of its own, which like the kernel goes on where the server is killed.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE = 20.0


def main() -> int:
    options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:] if word.startswith("--"))
    device = Path(options["connect"])
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        said = b"".join(iter(lambda: os.read(reading, 4096), b""))
        os.write(2, said)
        return 1 if said else 0
    os.setsid()
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    more = ["--read-only"] if "read-only" in options else []
    served = options["socket"]
    log = device.parent.parent / f"log-{os.getpid()}"
    command = ["qemu-nbd", "-k", served, "--persistent", "--shared=3", "--discard=unmap", *more, "--image-opts"]
    with log.open("wb") as words:
        server = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command, sys.argv[-1]], stderr=words)
    try:
        if not _until(lambda: server.poll() is not None or _answers(served)) or server.poll() is not None:
            os.write(2, log.read_bytes() or b"qemu-nbd: ended\n")
            return 1
        kernel = subprocess.Popen(
            [sys.executable, "-I", __file__, "kernel", str(device), served, str(os.getpid()), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert kernel.stdout is not None
        assert kernel.stdin is not None
        try:
            if kernel.stdout.readline() != b"connected\n":
                os.write(2, b"qemu-nbd: Failed to set NBD socket\n")
                return 1
            null = os.open("/dev/null", os.O_RDWR)
            os.dup2(null, 2)  # ends the wait of the program that was started
            os.dup2(null, 1)
            server.wait()
        finally:
            kernel.stdin.close()
            kernel.wait()
    finally:
        server.terminate()
        server.wait()
        log.unlink()
    return 0


def kernel(device: Path, served: str, pid: int, read_only: bool) -> None:
    """Have the device as long as our stdin and the process that has it are there."""
    folder = device.parent.parent / "sys/block" / device.name
    try:
        with (folder / "pid").open("x") as file:
            file.write(f"{pid}\n")
    except FileExistsError:
        return
    mount = device.parent.parent / f"{device.name}.fuse"
    mount.touch()
    blockdev = f"nbd,node-name=n,server.type=unix,server.path={served}" + (",read-only=on" if read_only else "")
    export = f"fuse,id=f,node-name=n,mountpoint={mount},writable={'off' if read_only else 'on'}"
    view = subprocess.Popen(
        ["qemu-storage-daemon", "--blockdev", blockdev, "--export", export], stdin=subprocess.DEVNULL, stdout=2
    )
    loop = ""
    try:
        if _until(lambda: view.poll() is not None or os.path.ismount(mount)) and os.path.ismount(mount):
            more = ["--read-only"] if read_only else []
            made = subprocess.run(
                ["losetup", "--find", "--show", *more, str(mount)], check=True, capture_output=True, text=True
            )
            loop = made.stdout.strip()
            new = device.with_suffix(".new")
            new.symlink_to(loop)
            new.rename(device)
            size = int(Path(f"/sys/block/{Path(loop).name}/size").read_text())
            (folder / "size").write_text(f"{size}\n")
            os.write(1, b"connected\n")
            handle = os.pidfd_open(pid)
            select.select([0, handle], [], [])
    finally:
        if loop:
            subprocess.run(["losetup", "--detach", loop], check=False)
            _until(lambda: not Path(f"/sys/block/{Path(loop).name}/loop/backing_file").exists())
        view.terminate()
        view.wait()
        with contextlib.suppress(OSError):
            mount.unlink()
        unused(device)


def unused(device: Path) -> None:
    """Make the device, or make it one that nobody has."""
    folder = device.parent.parent / "sys/block" / device.name
    folder.mkdir(parents=True, exist_ok=True)
    device.parent.mkdir(exist_ok=True)
    new = device.with_suffix(".new")
    new.touch()
    new.rename(device)
    (folder / "size").write_text("0\n")
    (folder / "pid").unlink(missing_ok=True)


def _answers(path: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        return client.recv(8) == b"NBDMAGIC"
    return False


def _until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


if __name__ == "__main__":
    if sys.argv[1] == "kernel":
        kernel(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), "--read-only" in sys.argv)
    else:
        sys.exit(main())
