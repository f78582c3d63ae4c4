"""Who holds a file lock, in words: for the sentence of a wait that was in vain. From Linux's /proc."""

import posix
import time

UNKNOWN = "a process that has ended by now"


def holder(path: bytes) -> str:
    """Return who has the flock on a file: "pid 4711 (block add) for 12 s"; UNKNOWN where /proc does not say."""
    try:
        status = posix.stat(path)
        inode = b":%d" % status.st_ino
        for line in _read(b"/proc/locks").splitlines():
            # 1: FLOCK  ADVISORY  WRITE 4711 fe:00:131 0 EOF   (waiters have "->" as their second word)
            words = line.split()
            if words[1:2] == [b"FLOCK"] and words[5].endswith(inode):
                pid = words[4]
                name = "pid " + pid.decode("ascii")
                try:
                    seconds = min(time.time() - status.st_ctime, _age(pid))
                    return f"{name} ({_command(pid)}) for {max(seconds, 0):.0f} s"
                except FileNotFoundError:
                    return f"a process that {name} started (which has ended itself)"
    except (OSError, IndexError, ValueError):
        pass
    return UNKNOWN


def _command(pid: bytes) -> str:
    return _read(b"/proc/%s/cmdline" % pid)[:200].replace(b"\0", b" ").strip().decode("utf-8", "backslashreplace")


def _age(pid: bytes) -> float:
    """Seconds since a process began: it cannot hold the lock for longer, however old the file is."""
    # proc(5): field 22 of stat, in clock ticks since boot; the second field may hold anything but its last ")".
    ticks = int(_read(b"/proc/%s/stat" % pid).rpartition(b")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / posix.sysconf("SC_CLK_TCK")


def _read(path: bytes) -> bytes:
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    whole = b""
    try:
        # /proc gives a page at a time, however much is asked for.
        while piece := posix.read(fd, 65536):
            whole += piece
        return whole
    finally:
        posix.close(fd)
