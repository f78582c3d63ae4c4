"""The points at which a run can be hurt: its system calls, as strace saw them, and what can go wrong with each.

The rule: every call from the moment that the script's modules are loaded until the process ends, but those that only
deal in the process's own memory, time and identity (HARMLESS). Reading calls are in, since a failure to read must not
become "nothing there".

strace(1) delivers an injected signal on entering the call, and a process that has SIGKILL does not execute it
(fatal_signal_pending in the kernel's syscall_trace_enter). So a kill at call N is a kill after call N - 1 as well, and
the kill at exit_group is the one after everything: to kill on entering each call covers both sides of each.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HARMLESS = {
    *("brk", "mmap", "munmap", "mremap", "mprotect", "madvise", "futex", "rt_sigprocmask", "rt_sigreturn", "rseq"),
    *("getpid", "gettid", "geteuid", "getuid", "getegid", "clock_gettime", "getrandom", "sched_yield", "lseek"),
    *("set_robust_list", "prlimit64", "sigaltstack", "sysinfo", "clone3"),
}
# What may come of a call, as its man page and the drivers behind it have it.
_PATHS = ("EINTR", "EIO", "EACCES", "EPERM", "ENOMEM", "EROFS", "ENOENT", "ELOOP")
ERRNOS = {
    "openat": (*_PATHS, "EMFILE", "ENFILE", "ENOSPC", "ENXIO", "EBUSY"),
    "newfstatat": ("EIO", "EACCES", "ENOMEM", "ENOENT"),
    "statx": ("EIO", "EACCES", "ENOMEM", "ENOENT"),
    "readlink": ("EIO", "EACCES", "ENOENT", "EINVAL"),
    "ioctl": ("EINTR", "EIO", "EBUSY", "ENXIO", "ENOMEM", "EPERM", "EINVAL"),
    "fcntl": ("EINTR", "EINVAL", "ENOLCK", "EAGAIN"),
    "read": ("EINTR", "EIO", "ENOMEM", "EINVAL"),
    "pread64": ("EINTR", "EIO", "ENOMEM", "EINVAL"),
    "write": ("EINTR", "EIO", "ENOSPC", "EDQUOT", "EPIPE"),
    "close": ("EINTR", "EIO"),
    "getdents64": ("EIO", "ENOENT"),
    "rename": ("EIO", "ENOSPC", "EROFS", "EACCES", "ENOENT"),
    "link": ("EIO", "ENOSPC", "EROFS", "EEXIST", "EPERM"),
    "unlink": ("EIO", "EROFS", "EPERM", "EBUSY", "ENOENT"),
    "mkdir": ("EIO", "ENOSPC", "EROFS", "EACCES", "EEXIST"),
    "mknod": ("EPERM", "ENOSPC", "EEXIST"),
    "ftruncate": ("EINTR", "EIO", "EPERM"),
    "flock": ("EINTR", "ENOLCK", "EAGAIN", "EIO"),
    "socket": ("EMFILE", "ENFILE", "ENOMEM", "EACCES"),
    "setsockopt": ("EINVAL", "ENOMEM"),
    "connect": ("EINTR", "ECONNREFUSED", "EACCES", "ENOENT", "EAGAIN", "EIO"),
    "getpeername": ("ENOTCONN", "ENOBUFS"),
    "sendto": ("EINTR", "EPIPE", "ECONNRESET", "ENOBUFS", "EIO"),
    "recvfrom": ("EINTR", "ECONNRESET", "ENOMEM", "EIO"),
    "poll": ("EINTR", "ENOMEM"),
    "rt_sigaction": ("EINVAL",),
    "setitimer": ("EINVAL",),
    "clock_nanosleep": ("EINTR",),
}
_OTHERS = ("EINTR", "EIO", "ENOMEM", "EPERM")
# strace -y: a path that the call names, or that of a descriptor.
_CALL = re.compile(r"^(\w+)\((.*)")
_PATH = re.compile(r'(?:"|<)(/[^">]*)(?:"|>)')
_LOOP = re.compile(r"/dev/loop\d+|/block/loop\d+|/block/7:\d+")
OWN_LOOP, HERE = "/dev/loop@", "/@"
# In sysfs, by name and by number.
_OWN_IN_SYSFS = ("/block/loop@", "/block/7:@")


# What no script can see through: a record that is said to be missing or another run's, a device that is said to be
# unbound. (What is left then goes with `vbdkit gc`.)
_RECORD = "/@/run/vbd-5-51712"
_LIES = {
    (_RECORD, "openat", "ENOENT"),
    (_RECORD, "newfstatat", "ENOENT"),
    (_RECORD, "unlink", "ENOENT"),
    (_RECORD + ".new", "newfstatat", "ENOENT"),
    (_RECORD + ".new", "flock", "EAGAIN"),
    (OWN_LOOP, "openat", "ENXIO"),
    (OWN_LOOP, "ioctl", "ENXIO"),
}


@dataclass(frozen=True)
class Call:
    """One system call of a run: the ``number``-th of its name, from 1, with ``path`` where that is not empty.

    ``path`` has OWN_LOOP for the loop device that the script makes and HERE for the bench's place, which differ from
    run to run. ``text`` is what strace showed, cut short.
    """

    name: str
    path: str
    number: int
    text: str

    @property
    def writes(self) -> bool:
        """Whether it changes something outside of the process."""
        if self.name == "openat":
            return "O_CREAT" in self.text
        if self.name == "ioctl":
            return "LOOP_CONFIGURE" in self.text or "LOOP_CLR_FD" in self.text
        return self.name in ("write", "sendto", "rename", "link", "unlink", "mkdir", "mknod", "flock", "exit_group")


@dataclass(frozen=True)
class Point:
    """One fault: ``how`` is KILL or TERM, or an error's name."""

    call: Call
    how: str

    def options(self, here: Path, own_loop: str) -> list[str]:
        """strace's options for it, on one bench."""
        what = f"signal={self.how}" if self.how in ("KILL", "TERM") else f"error={self.how}"
        name = self.call.name
        chosen = ["-e", f"trace={name}", "-e", f"inject={name}:{what}:when={self.call.number}"]
        path = self.call.path.replace(HERE, str(here))
        for pattern in (OWN_LOOP, *_OWN_IN_SYSFS):
            path = path.replace(pattern, pattern.replace("@", own_loop.removeprefix("/dev/loop")))
        return ["-P", path, *chosen] if path else chosen

    def __str__(self) -> str:
        return f"{self.how} at {self.call.name} {self.call.number}: {self.call.text}"


def calls(trace: Path, here: Path, own_loop: str) -> list[Call]:
    """Return the calls of a run that count, in order.

    From the moment on that the script takes its signals; without those by which it loads a module of its own, and
    without those that ask a loop device which is another's.
    """
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    begun = False
    number = own_loop.removeprefix("/dev/loop")
    for one in trace.read_text(errors="replace").splitlines():
        match = _CALL.match(one)
        if match is None:
            continue
        name, rest = match.groups()
        line = rest.replace(str(here), HERE)
        for pattern in (OWN_LOOP, *_OWN_IN_SYSFS):
            line = re.sub(re.escape(pattern.replace("@", number)) + r"\b", pattern, line)
        arguments = line.rpartition(") = ")[0] or line  # strace goes by these, not by what comes of the call
        paths = {path for path in _PATH.findall(arguments) if not path.startswith("/proc/")}
        for path in {"", *paths}:
            seen[name, path] += 1
        begun = begun or (name == "rt_sigaction" and rest.startswith("SIGTERM, {"))
        if not begun or name in HARMLESS or HERE + "/library" in line or _LOOP.search(line):
            continue
        # The path of a working directory is in each call that names another.
        path = next((path for path in _PATH.findall(arguments.removeprefix("AT_FDCWD<")) if path in paths), "")
        # strace filters by files only, not by a socket's address.
        path = "" if "sun_path" in line else path
        found.append(Call(name, path, seen[name, path], re.sub(r"0x[0-9a-f]+|\d+", "#", line)[:90]))
    return found


def points(of: list[Call]) -> list[Point]:
    """Return all faults of these calls."""
    found = []
    for call in of:
        found.append(Point(call, "KILL"))
        if call.name != "exit_group":
            found += [Point(call, how) for how in ("TERM", *ERRNOS.get(call.name, _OTHERS))]
    return [
        point
        for point in found
        if (point.call.path, point.call.name, point.how) not in _LIES or "LOOP_CONFIGURE" in point.call.text
    ]


def short(of: list[Call]) -> list[Point]:
    """Return a selection: a kill at each call that changes something, and one error for each kind of such calls."""
    changing = [call for call in of if call.writes]
    last = {call.name: call for call in changing if call.name in ERRNOS}
    return [Point(call, "KILL") for call in changing] + [Point(call, ERRNOS[name][1]) for name, call in last.items()]
