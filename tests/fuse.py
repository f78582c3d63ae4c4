"""A file system whose server goes silent: the way to a system call that no signal ends, without broken hardware.

Speaks just enough of FUSE (linux/fuse.h) for a root directory and one file in it. Once ``silent`` it reads requests and
answers none of them; the kernel then keeps the caller asleep, uninterruptibly, until ``end``.
"""

import ctypes
import os
import select
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.need import need, need_root

_LOOKUP, _GETATTR, _OPEN, _STATFS, _INIT, _OPENDIR = 1, 3, 14, 17, 26, 27
_FORGET, _BATCH_FORGET, _INTERRUPT = 2, 42, 36
_HEADER = struct.Struct("=IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions, padding
_ENOENT, _ENOSYS = 2, 38
_MNT_DETACH = 2
NAME = b"disk.img"
SIZE = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


class Fuse:
    """The server; one thread. ``place`` is where it is mounted, ``disk`` the file."""

    def __init__(self, place: Path) -> None:
        """Mount."""
        self.place = place
        self.disk = place / os.fsdecode(NAME)
        self.silent = False
        self.asked = threading.Event()  # a request came in while silent
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        data = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0"
        if _libc.mount(b"vbdkit-test", os.fsencode(place), b"fuse", 0, data.encode()):
            raise OSError(ctypes.get_errno(), "mount")
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def end(self) -> None:
        """Abort: the kernel answers all that waits with an error."""
        os.close(self._stopped)
        self._thread.join()
        os.close(self._fd)
        os.close(self._stop)
        _libc.umount2(os.fsencode(self.place), _MNT_DETACH)

    def _serve(self) -> None:
        while self._stop not in select.select([self._fd, self._stop], [], [])[0]:
            request = os.read(self._fd, 1 << 17)
            _, opcode, unique, node, *_ = _HEADER.unpack_from(request)
            if opcode in (_FORGET, _BATCH_FORGET, _INTERRUPT):
                continue
            if self.silent:
                self.asked.set()
                continue
            error, answer = self._answer(opcode, node, request[_HEADER.size :])
            os.write(self._fd, struct.pack("=IiQ", 16 + len(answer), -error, unique) + answer)

    def _answer(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes]:
        if opcode == _INIT:
            return 0, struct.pack("=IIIIHHIIHH7I", 7, 31, 4096, 0, 4, 3, 4096, 1, 1, 0, *[0] * 7)
        if opcode == _LOOKUP and body.rstrip(b"\0") == NAME:
            return 0, struct.pack("=QQQQII", 2, 1, 0, 0, 0, 0) + self._attributes(2)
        if opcode == _LOOKUP:
            return _ENOENT, b""
        if opcode == _GETATTR:
            return 0, struct.pack("=QII", 0, 0, 0) + self._attributes(node)
        if opcode in (_OPEN, _OPENDIR):
            return 0, struct.pack("=QII", 1, 0, 0)
        if opcode == _STATFS:
            return 0, struct.pack("=5Q10I", *[0] * 5, 512, 255, *[0] * 8)
        return _ENOSYS, b""

    def _attributes(self, node: int) -> bytes:
        mode, size = (0o040755, 0) if node == 1 else (0o100644, SIZE)
        return struct.pack("=6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


@contextmanager
def fuse(place: Path) -> Iterator[Fuse]:
    """Mount at ``place``, which is made."""
    need_root()
    need(os.path.exists("/dev/fuse"), "needs FUSE (/dev/fuse)")
    place.mkdir()
    served = Fuse(place)
    try:
        yield served
    finally:
        served.end()
