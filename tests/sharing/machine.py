"""A machine with real storage for one case: whatever is made here is taken back at the end, last first."""

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType

from tests.host import Disk, Host, Result, bound_loops
from tests.images import losetup, make_image, take_back
from tests.need import need_program

MIB = 1 << 20
ALICE, BOB = 5, 6


class Machine:
    """The storage of one host, below one folder of it. ``first`` and ``second`` are the domids that meet."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.folder = host.directory / "storage"
        self.folder.mkdir()
        self.first, self.second = ALICE, BOB
        self._stack = ExitStack()

    def __enter__(self) -> "Machine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stack.close()

    def later(self, step: Callable[[], object]) -> None:
        """Do this at the end, before what is in the list already."""
        self._stack.callback(step)

    # Files and devices.

    def image(self, name: str = "disk.img", size: int = 4 * MIB) -> str:
        """Make a sparse file; ``name`` may lead into a mounted file system."""
        return str(make_image(self.folder / name, size=size))

    def path(self, name: str) -> str:
        """Return a name in the folder that nothing has yet."""
        return str(self.folder / name)

    def loop(self, path: str, *options: str) -> str:
        """Bind a loop device, as an administrator does."""
        device = losetup("--find", "--show", *options, path)
        self.later(lambda: run("losetup", "-d", device, check=False))
        return device

    def numbered_loop(self, path: str, numbers: Iterable[int]) -> str:
        """Bind the first of these loop devices that is free."""
        for number in numbers:
            device = f"/dev/loop{number}"
            if subprocess.run(["losetup", device, path], capture_output=True).returncode == 0:
                self.later(partial(run, "losetup", "-d", device, check=False))
                return device
        raise AssertionError("none of the loop devices is free")

    def range(self, path: str, start: int, size: int) -> str:
        """Bind a loop device to ``size`` MiB of a file or device, from MiB ``start`` on."""
        return self.loop(path, "--offset", str(start * MIB), "--sizelimit", str(size * MIB))

    def partition(self, disk: str, number: int, start: int, size: int = 1) -> str:
        """Cut ``size`` MiB out of a device, from MiB ``start`` on, without a partition table (addpart)."""
        run("delpart", disk, str(number), check=False)  # one of an earlier use of the device, in a run that was killed
        run("addpart", disk, str(number), str(start * MIB // 512), str(size * MIB // 512))
        self.later(partial(take_back, "delpart", disk, str(number)))
        return f"{disk}p{number}"

    def node(self, device: str, name: str = "node") -> str:
        """Make one more node for a device."""
        path = self.path(name)
        os.mknod(path, 0o60600, os.stat(device).st_rdev)
        return path

    def mount(self, what: str, point: str = "mnt", *options: str) -> str:
        """Mount a device, or bind a file or folder; return the mount point."""
        place = self.folder / point
        if os.path.isfile(what):
            place.touch()
        else:
            place.mkdir()
        run("mount", *options, what, str(place))
        self.later(lambda: self._unmount(place))
        return str(place)

    def _unmount(self, place: Path) -> None:
        release(place)
        take_back("umount", str(place))

    def file_system(self, device: str, kind: str = "ext4") -> str:
        """Make a file system on a device or file, and return it."""
        force = "-f" if kind == "btrfs" else "-F"
        run(need_program(f"mkfs.{kind}"), "-q", force, device)
        return device

    # Guests.

    def domain(self, domid: int, name: str, vm: str | None = "", **more: str) -> int:
        """Make a live domain; see Host.domain."""
        return self.host.domain(domid, name, vm, **more)

    def attach(self, domid: int, target: str, mode: str, devid: int = 51712) -> Result:
        """Let a guest ask for a disk, through the script; what it gets it gives back at the end."""
        disk = self.host.vbd(domid, target, mode, devid)
        self.later(lambda: self._detach(disk))
        return disk.add()

    def _detach(self, disk: Disk) -> None:
        disk.remove()
        self._forget(disk)

    def _forget(self, disk: Disk) -> None:
        if disk.nodes():
            disk.forget()

    def detach(self, domid: int) -> None:
        """Let a guest give its disk back."""
        self._detach(Disk(self.host, "vbd", domid, 51712))

    def nodes(self, kind: str, domid: int, **nodes: bytes) -> None:
        """Write nodes of a disk that no script of ours attached."""
        disk = Disk(self.host, kind, domid, 51712)
        disk.write(dev=b"xvda", **nodes)
        self.later(lambda: self._forget(disk))

    def name(self, domid: int) -> str:
        """Return a domain's name."""
        with self.host.connect() as store:
            return store.read(b"/local/domain/%d/name" % domid).decode()

    def remove_domain(self, domid: int) -> None:
        """Let a domain be gone, as the toolstack does: its tree goes, backend nodes elsewhere stay."""
        with self.host.connect() as store:
            store.remove(b"/local/domain/%d" % domid)

    def crowd(self, count: int = 900) -> None:
        """Let ``count`` more guests have disks that nobody else has."""
        base = b"/local/domain/0/backend/vbd"
        items = []
        for domid in range(1000, 1000 + count):
            items.append((b"/local/domain/%d/name" % domid, b"guest"))
            items.append((b"%s/%d/51712/physical-device" % (base, domid), b"1f0:%x" % domid))
        with self.host.connect() as store:
            store.write_many(items)

    def hide_list(self) -> None:
        """Let a driver domain not list the guests that have disks there; what it knows by name it may read."""
        own = self.host.own_domid
        base = b"/local/domain/%d/backend/vbd" % own
        with self.host.connect() as store:
            # Made while it inherits the driver domain's rights.
            store.mkdir(base + b"/%d" % self.second)
            store.set_permissions(base, [b"n0"])

    # Programs.

    def start(self, *command: str) -> int:
        """Run a program until the end of the case; return its pid once it has said that it is ready."""
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None

        def end() -> None:
            process.communicate()

        self.later(end)
        assert process.stdout.readline() == b"ready\n", command
        return process.pid

    def kill_later(self, pid: int) -> None:
        """End a daemon, and wait until it has let go of all it held."""
        descriptor = os.pidfd_open(pid)

        def end() -> None:
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            select.select([descriptor], [], [])
            os.close(descriptor)

        self.later(end)


def run(*command: str, check: bool = True) -> str:
    """Run a program and return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()


def release(folder: Path) -> None:
    """Release the loop devices on files below a folder (that a script under test left)."""
    for device in bound_loops(folder):
        run("losetup", "-d", device, check=False)
