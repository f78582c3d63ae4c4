"""``block-nbd``: disk images in any format, and exports of NBD servers, as network block devices of the kernel.

A process of qemu-nbd stands behind each disk, also where the target is an export of another server: it then goes
between the two, and connects anew when that server comes back. The process bears the vbd's name in its arguments, so
it is found after any kill; what is taken back is that process, and with it the device, never a device by its number.
"""

import posix
import select

from vbdkit.datapaths.nbd.target import FORMATS, image_options, parse_uri
from vbdkit.engine.custom import Storage
from vbdkit.engine.flock import close, free
from vbdkit.engine.tool import ToolError
from vbdkit.protocol.failure import Failure
from vbdkit.protocol.syntax import parse_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Iterable, Iterator

    from vbdkit.protocol.mode import Mode
else:
    import _signal  # signal itself imports enum

# What the module gets where it is not loaded yet: devices (16 are soon too few), and no partitions, since what a guest
# writes into its table is nothing to this domain.
_MODULE = ("nbds_max=64", "max_part=0")
# Seconds for the kernel to show a device that is connected; for a server to end that may have something to write; for
# one that nobody has used, and that may hang in connecting, to end in peace.
_CONNECTING, _ENDING, _BREAKING_OFF = 10.0, 20.0, 0.3


class Nbd(Storage):
    """Disk images (qcow2, vmdk, vhd and others) and exports of NBD servers, through qemu-nbd.

    FORMAT is raw, qcow2, qcow, qed, vmdk, vdi, vhdx, vpc (or vhd) or parallels. It is always said and never guessed,
    since a guest may write to a raw image what looks like another format. Backing images are shared by readers.

    NBD-URI is nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=/PATH.
    """

    name = "nbd"
    syntax = "FORMAT:FILE or NBD-URI"
    example = "qcow2:/srv/web.qcow2"
    tools = {"qemu-nbd": "qemu-utils", "qemu-img": "qemu-utils"}
    modules = ("nbd",)
    waits = False  # qemu-nbd waits as long as another server likes
    # The program that serves, where the kernel shows its devices, and where their nodes are.
    program = "qemu-nbd"
    sysfs = "/sys"
    nodes = "/dev"

    def parse(self, text: str) -> "dict[str, str]":
        """Return format and file of an image, or what a URI has of socket, host, port and export."""
        if text.startswith("//"):
            text = "nbd:" + text  # of a disk 'nbd://...' xl takes that much for its own old prefix
        if text.startswith(("nbd:", "nbd+", "nbds")):
            return parse_uri(text)
        found = parse_target(text, "FORMAT:FILE", self.example)
        if found["format"] not in FORMATS:
            raise Failure(
                "{format} in the target {text} is none of the formats that are served: {known}",
                format=found["format"],
                text=text,
                known=", ".join(FORMATS),
            )
        if not found["file"].startswith("/"):
            found["file"] = "/dev/" + found["file"]
        return found

    def identity(self, target: "dict[str, str]") -> str:
        """Return the image's path, or the server and the export."""
        if "file" in target:
            return target["file"]
        if "socket" in target:
            from posixpath import realpath

            return f"{target['export']} of {realpath(target['socket'])}"
        return f"{target['export']} of {target['host']}:{target['port']}"

    def parts(self, target: "dict[str, str]") -> "Iterable[tuple[str, bool]]":
        """Return backing images, data files and extents."""
        if target.get("format", "raw") == "raw":
            return ()
        from vbdkit.datapaths.nbd.image import parts_of

        return parts_of(self, target["file"], target["format"])

    def attach(self, target: "dict[str, str]", mode: "Mode") -> str:
        """Start a server, and have it connect a free device to itself."""
        if not _there(f"{self.sysfs}/module/nbd"):
            self.tool("modprobe", "nbd", *_MODULE)
        # One that may be written by two at once, says whoever asked for no check, is not locked; but two programs that
        # lay out one image would each write over what the other keeps in memory.
        options = image_options(target, locked=mode.checked or target.get("format") != "raw")
        for device, lock in self._free_devices():
            try:
                self.note(nbd=device)
                if self._serve(target, options, device, () if mode.writable else ("--read-only",)):
                    return f"{self.nodes}/{device}"
            finally:
                close(lock)
        raise Failure(
            "all network block devices ({devices}) are in use; once none is, modprobe -r nbd && modprobe nbd "
            "nbds_max=256 max_part=0 makes more",
            devices=f"{self.nodes}/nbd*",
        )

    def detach(self, made: "dict[str, str]") -> None:
        """End the server: in peace where a guest may have written, by force where none can have."""
        if "server" in made:
            self._end(int(made["server"]), _ENDING, force=False)
        else:
            self.wait(self._broken_off, "qemu-nbd to end", _ENDING)
        self._unlink()

    def _serve(self, target: "dict[str, str]", options: str, device: str, more: "tuple[str, ...]") -> bool:
        """Start the server and wait for the device; False where somebody else has the device by now."""
        words = (self._mark(), f"--connect={self.nodes}/{device}", "--discard=unmap", *more, "--image-opts", options)
        try:
            self.tool(self.program, *words)
        except ToolError as error:
            if self._task(device):
                return False
            from vbdkit.datapaths.nbd.image import words as own_words

            what = target.get("file") or target.get("socket") or f"{target['host']}:{target['port']}"
            raise own_words(error, f"qemu-nbd does not serve {what}", options) from None
        # The program that was started ends without an error also where the server, its child, was killed.
        servers = self._servers()

        def connected() -> int:
            if not any(self._is_server(pid) for pid in servers):
                raise Failure("qemu-nbd has ended before {device} was connected: was it killed?", device=device)
            return self._server_of(device, servers) and self._size(device)

        self.wait(connected, f"{device} to be connected", _CONNECTING)
        self.note(server=str(self._server_of(device, servers)))
        self._unlink()
        return True

    def _free_devices(self) -> "Iterator[tuple[str, int]]":
        """Yield each device that nobody has, with a lock on it against runs of ours; other programs may be faster.

        One that lost its server while a guest had it open keeps its size, and may not get another server before it is
        closed: the guest would be on that one's image.
        """
        found = [name[3:] for name in posix.listdir(f"{self.sysfs}/block") if name.startswith("nbd")]
        for number in sorted(int(digits) for digits in found if digits.isdigit()):
            device = f"nbd{number}"
            lock = posix.open(f"{self.sysfs}/block/{device}", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
            if free(lock) and not self._task(device) and not self._size(device) and _opens(f"{self.nodes}/{device}"):
                yield device, lock
            else:
                close(lock)

    def _task(self, device: str) -> int:
        """Return the number of the thread that has a device connected, 0 where none has."""
        return int(_read(f"{self.sysfs}/block/{device}/pid") or 0)

    def _server_of(self, device: str, servers: "list[int]") -> int:
        task = self._task(device)
        return next((pid for pid in servers if _there(f"/proc/{pid}/task/{task}")), 0)

    def _size(self, device: str) -> int:
        return int(_read(f"{self.sysfs}/block/{device}/size") or 0)

    def _socket(self) -> str:
        """Return where this vbd's server waits for the kernel, under a name that no other process is given."""
        return f"{self.folder}/{self.vbd}"

    def _mark(self) -> str:
        return "--socket=" + self._socket()

    def _unlink(self) -> None:
        try:
            posix.unlink(self._socket())
        except FileNotFoundError:
            pass

    def _servers(self) -> "list[int]":
        """Return the processes that were started for this vbd: the server, or several while it starts."""
        return [int(name) for name in posix.listdir("/proc") if name.isdigit() and self._is_server(name)]

    def _is_server(self, pid: "str | int") -> bool:
        try:
            if posix.stat(f"/proc/{pid}").st_uid != posix.geteuid():
                return False
        except OSError:
            return False
        words = _read(f"/proc/{pid}/cmdline").split(b"\0")
        return self._mark().encode("utf-8", "surrogateescape") in words and b"--image-opts" in words

    def _broken_off(self) -> bool:
        """End all that was started; False where there was any, since that may have started another one just then."""
        servers = self._servers()
        for pid in servers:
            self._end(pid, _BREAKING_OFF, force=True)
        return not servers

    def _end(self, pid: int, seconds: float, force: bool) -> None:
        try:
            handle = posix.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if not self._is_server(pid):
                return  # it has ended, and its number is another's
            for number, patience in ((_signal.SIGTERM, seconds), *([(_signal.SIGKILL, seconds)] if force else ())):
                try:
                    _signal.pidfd_send_signal(handle, number)
                except ProcessLookupError:
                    return
                if self._has_ended(handle, pid, patience):
                    return
        finally:
            posix.close(handle)
        raise Failure(
            "qemu-nbd (process {pid}) does not end: it may be writing to storage that does not answer; vbdkit gc, or "
            "another remove, sees to the rest when it has ended",
            pid=pid,
        )

    def _has_ended(self, handle: int, pid: int, seconds: float) -> bool:
        end = select.poll()
        end.register(handle, select.POLLIN)
        try:
            self.wait(lambda: end.poll(0), f"qemu-nbd (process {pid}) to end", seconds)
        except Failure:
            return False
        return True


def _there(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True


def _read(path: str) -> bytes:
    """Return the content of a file of the kernel's; empty where it is not there."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return posix.read(fd, 1 << 16)
    except OSError:
        return b""
    finally:
        close(fd)


def _opens(path: str) -> bool:
    """Whether a device can be opened by us alone."""
    try:
        close(posix.open(path, posix.O_RDONLY | posix.O_EXCL | posix.O_CLOEXEC))
    except OSError:
        return False
    return True
