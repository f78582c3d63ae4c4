"""What a process inherits: environment, descriptors, limits, umask, working directory."""

import os
import resource
import signal
import stat
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.host import Disk, Host, Result
from tests.hostile.judge import attached, judge, left
from tests.hostile.strange import every_byte
from tests.images import make_image
from vbdkit.engine import Lock
from vbdkit.protocol.invocation import build_invocation

PIPE = 65536


def start(disk: Disk, command: str, extra: Mapping[bytes, bytes] = {}, **more: object) -> "subprocess.Popen[bytes]":
    """Start the script as the toolstack does, with ``extra`` in its environment and Popen's own settings."""
    host = disk.host
    argv, env = build_invocation(host.system, os.fsencode(host.script), command, b"vbd", disk.domid, disk.devid)
    usual = {os.fsencode(key): os.fsencode(value) for key, value in host.environment().items()}
    settings: dict[str, object] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        **more,
    }
    return subprocess.Popen(argv, env={**usual, **env, **extra}, **settings)  # type: ignore[call-overload,no-any-return]


def run(disk: Disk, command: str, extra: Mapping[bytes, bytes] = {}, **more: object) -> Result:
    """Run it to its end."""
    process = start(disk, command, extra, **more)
    output = (process.communicate(timeout=60)[0] or b"").decode()
    return Result(process.returncode, output, disk.nodes())


def works(disk: Disk, extra: Mapping[bytes, bytes] = {}, **more: object) -> None:
    """Add and remove end well and leave nothing."""
    added = run(disk, "add", extra, **more)
    assert (added.status, added.output) == (0, "")
    judge(disk, added)
    removed = run(disk, "remove", extra, **more)
    assert (removed.status, removed.output) == (0, "")
    judge(disk, removed, "remove")
    assert left(disk.host) == []


NONSENSE = every_byte[1:].replace(b"=", b"")
ENVIRONMENTS = {
    "python": {
        b"PYTHON" + name: value
        for name, value in {
            b"PATH": b"{evil}",
            b"HOME": b"/nowhere",
            b"STARTUP": b"{evil}/sitecustomize.py",
            b"INSPECT": b"1",
            b"DEBUG": b"1",
            b"OPTIMIZE": b"9",
            b"WARNINGS": b"error",
            b"BREAKPOINT": b"os.abort",
            b"MALLOC": b"debug",
            b"UTF8": b"0",
            b"IOENCODING": b"nonsense",
            b"HASHSEED": b"nonsense",
            b"TRACEMALLOC": b"x",
            b"VERBOSE": b"3",
            b"DEVMODE": b"1",
            b"PYCACHEPREFIX": b"{evil}",
            b"EXECUTABLE": b"/bin/false",
            b"PLATLIBDIR": b"{evil}",
            b"CASEOK": b"1",
            b"PROFILEIMPORTTIME": b"1",
            b"DONTWRITEBYTECODE": b"",
            b"INTMAXSTRDIGITS": b"640",
            b"SAFEPATH": b"",
        }.items()
    },
    "loader": {
        b"LD_PRELOAD": b"",
        b"LD_LIBRARY_PATH": b"/nowhere:{evil}:" + NONSENSE,
        b"LD_BIND_NOW": b"1",
        b"LD_ORIGIN_PATH": b"/x",
    },
    "shell": {
        b"PATH": b"{evil}",
        b"IFS": NONSENSE,
        b"ENV": b"{evil}/sitecustomize.py",
        b"BASH_ENV": b"{evil}/sitecustomize.py",
        b"SHELLOPTS": b"xtrace",
        b"PS4": b"$(touch {evil}/sang)",
        b"CDPATH": b"/",
        b"BASH_FUNC_block%%": b"() { touch {evil}/sang; }",
    },
    "locale": {
        b"LC_ALL": b"nonsense",
        b"LANG": NONSENSE,
        b"LANGUAGE": b"{evil}",
        b"TZ": NONSENSE,
        b"LOCPATH": b"{evil}",
        b"NLSPATH": b"{evil}/%N",
        b"CHARSET": b"EBCDIC",
    },
    "allocator": {
        b"MALLOC_CHECK_": b"3",
        b"MALLOC_PERTURB_": b"165",
        b"MALLOC_ARENA_MAX": b"-1",
        b"MALLOC_TRACE": b"{evil}/sang",
        b"GLIBC_TUNABLES": b"glibc.malloc.check=3:glibc.nonsense=" + b"x" * 4000,
    },
    "toolstack": {
        b"XENBUS_TYPE": NONSENSE,
        b"XENBUS_BASE_PATH": b"../../..",
        b"script": b"{evil}/sitecustomize.py",
        b"XENSTORED_RUNDIR": b"/nowhere",
        b"vifname": NONSENSE,
        b"TMPDIR": b"/nowhere",
        b"HOME": b"",
        b"USER": NONSENSE,
    },
    "names": {NONSENSE: NONSENSE, b"x" * 1000: b"y" * 100_000, b"\xff": b"", b" ": b" "},
    "posix locale": {b"LC_ALL": b"POSIX"},
    "empty": {b"PATH": b""},
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environment(host: Host, image: Path, tmp_path: Path, name: str) -> None:
    (evil := tmp_path / "evil").mkdir()
    for module in (
        "sitecustomize",
        "usercustomize",
        "vbdkit",
        "posix",
        "errno",
        "time",
        "encodings",
        "syslog",
        "fcntl",
    ):
        (evil / f"{module}.py").write_text(f"open({str(evil / 'sang')!r}, 'w')\n")
    for program in ("python3", "sh", "touch", "losetup", "logger", "env"):
        (evil / program).write_text(f"#!/bin/sh\n/bin/echo x >{evil}/sang\n")
        (evil / program).chmod(0o755)
    environment = {key: value.replace(b"{evil}", os.fsencode(evil)) for key, value in ENVIRONMENTS[name].items()}
    works(host.disk(5, image), environment, cwd=evil)
    assert not (evil / "sang").exists(), "something of others' was run"
    assert sorted(path.name for path in evil.iterdir() if path.suffix not in (".py", "")) == [], (
        "nothing was compiled there"
    )


def test_an_object_to_preload_that_is_not_there(host: Host, image: Path) -> None:
    """The dynamic loader says so itself; all else goes on."""
    disk = host.disk(5, image)
    added = run(disk, "add", {b"LD_PRELOAD": b"/nowhere/evil.so"})
    assert added.status == 0
    assert "cannot be preloaded" in added.output
    assert run(disk, "remove", {b"LD_PRELOAD": b"/nowhere/evil.so"}).status == 0


@pytest.mark.parametrize(
    "path", [b"backend/vbd/5/51712/../../6/51712", b"\x1b[2J\n", NONSENSE, b"x" * 100_000, b"/", b"{0}"]
)
def test_xenbus_path(host: Host, image: Path, path: bytes) -> None:
    disk = host.disk(5, image)
    before = disk.nodes()
    for command in ("add", "remove"):
        result = run(disk, command, {b"XENBUS_PATH": path})
        assert result.status == 1
        assert "is not the backend path of a virtual disk" in result.output
        assert result.output.rstrip("\n").isprintable()
        assert result.nodes == before
    assert attached(host, []) == []


# Descriptors.


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 1, 2)], ids=str)
def test_closed_streams(host: Host, tmp_path: Path, closed: tuple[int, ...]) -> None:
    """What the script opens must not become its stderr: the words of a failure would be the disk's first sector."""
    image = make_image(tmp_path / "disk.img")
    before = image.read_bytes()

    def close() -> None:
        for fd in closed:
            os.close(fd)

    works(host.disk(5, image), preexec_fn=close)
    disk = host.disk(5, image)
    assert disk.add().status == 0
    refused = host.disk(6, image)
    result = run(refused, "add", preexec_fn=close)
    assert (result.status, result.outcome) == (1, b"busy")
    judge_refusal(result)
    assert disk.remove().status == 0
    assert image.read_bytes() == before
    assert attached(host, []) == []


def judge_refusal(result: Result) -> None:
    """A refusal is whole in the store, whatever became of the output."""
    assert "in use by guest 5" in result.error
    assert result.error.isprintable()


def test_closed_streams_never_lend_their_numbers(host: Host, image: Path, tmp_path: Path) -> None:
    """With all three closed, nothing that matters is opened below 3."""
    disk = host.disk(5, image)
    trace = tmp_path / "trace"
    calls = "openat,socket,connect,ioctl,write"
    host.script.rename(tmp_path / "real")
    host.script.write_text(
        f'#!/bin/sh\nexec strace -qq -e trace={calls} -o {trace} {tmp_path}/real "$@" <&- >&- 2>&-\n'
    )
    host.script.chmod(0o755)
    assert disk.add().status == 0
    lines = trace.read_text().splitlines()
    low = [line for line in lines if line.endswith((" = 0", " = 1", " = 2")) and line.startswith(("open", "socket"))]
    opened = next(line for line in lines if f'"{image}"' in line)
    assert int(opened.rpartition(" ")[2]) > 2
    assert [line for line in low if lines.index(line) >= lines.index(opened)] == []
    assert not [line for line in low if line.startswith("socket")], "not even the store"
    assert disk.remove().status == 0


@pytest.mark.parametrize("both", [False, True], ids=["stderr", "stdout and stderr"])
def test_a_full_pipe_that_nobody_reads(host: Host, image: Path, both: bool) -> None:
    """The reason stands in the store and the script ends, long before the toolstack would kill it."""
    disk = host.disk(5, image)
    assert disk.add().status == 0
    read, write = os.pipe()
    os.write(write, b"x" * PIPE)
    process = start(host.disk(6, image), "add", stdout=write if both else subprocess.DEVNULL, stderr=write)
    assert process.wait(20) == 1
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"x" * PIPE, "nothing was put there"
    judge_refusal(Result(1, "", Disk(host, "vbd", 6, 51712).nodes()))
    assert disk.remove().status == 0


def test_a_pipe_that_is_read_late_gets_every_word(host: Host) -> None:
    """A sentence longer than a pipe takes at once, for a reader who comes when the pipe is full."""
    disk = host.disk(5, b"/nowhere" + b"\x01" * 4000)
    read, write = os.pipe()
    os.write(write, b"x" * (PIPE - 4096))
    process = start(disk, "add", stdout=write, stderr=write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()[PIPE - 4096 :].decode()
    assert process.wait(20) == 1
    assert said.endswith("File name too long\n")
    assert len(said) > 16_000


def test_a_reader_that_has_gone(host: Host) -> None:
    disk = host.disk(5, "/nowhere")
    read, write = os.pipe()
    os.close(read)
    process = start(disk, "add", stdout=write, stderr=write)
    os.close(write)
    assert process.wait(20) == 1
    assert "/nowhere does not exist" in disk.nodes()["hotplug-error"].decode()


# Limits.


@pytest.mark.parametrize("limit", [0, 3, 4, 5, 6, 7, 8, 10, 12])
def test_few_descriptors(host: Host, image: Path, limit: int) -> None:
    """It works, or it fails and leaves nothing; the interpreter itself may be unable to start."""

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    disk = host.disk(5, image)
    added = run(disk, "add", preexec_fn=lower)
    if added.status == 0:
        judge(disk, added)
    else:
        assert attached(host, []) == []
        # A record may stay where there was no descriptor left to see that nothing is attached.
        assert not {"physical-device", "node"} & set(added.nodes)
        assert added.outcome in (b"", b"error")
    removed = run(disk, "remove")
    assert (removed.status, removed.output) == (0, "")
    judge(disk, removed, "remove")
    assert left(host) == []
    if limit >= 10:
        assert added.status == 0, "as many as it needs"


def test_files_may_have_no_size(host: Host, image: Path) -> None:
    """RLIMIT_FSIZE 0: the record cannot be written, so nothing is attached; no signal ends the script."""

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    disk = host.disk(5, image)
    result = run(disk, "add", preexec_fn=lower)
    assert result.status == 1
    assert "vbd-5-51712 cannot be written: File too large" in result.error
    judge(disk, result)


@pytest.mark.parametrize("mask", [0o777, 0o077, 0])
def test_umask(host: Host, image: Path, mask: int) -> None:
    """Nobody but root sees or writes what is made, and root can go on with it."""
    before = os.umask(mask)
    try:
        disk = host.disk(5, image)
        assert disk.add().status == 0
        for path in (host.run_dir, host.run_dir / "vbd-5-51712"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        assert stat.S_IMODE(host.lock_dir.stat().st_mode) & 0o022 == 0
        assert host.disk(6, image).add().outcome == b"busy"
        assert disk.remove().status == 0
    finally:
        os.umask(before)
    works(disk)


def test_a_working_directory_that_is_gone(host: Host, image: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"

    def leave() -> None:
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()

    works(host.disk(5, image), preexec_fn=leave)
    assert not gone.exists()


def test_signals_that_the_caller_ignores_or_blocks(host: Host, image: Path) -> None:
    """The alarm that ends a wait for the lock works all the same where nobody waits."""

    def ignore() -> None:
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGTERM])

    works(host.disk(5, image), preexec_fn=ignore)


def test_only_root_can_open_the_lock(host: Host) -> None:
    """Who can open it can hold it."""
    before = os.umask(0)
    try:
        with Lock(os.fsencode(host.lock_dir), time.monotonic() + 10) as lock:
            assert stat.S_IMODE(os.stat(lock.path).st_mode) == 0o600
            assert stat.S_IMODE(host.lock_dir.stat().st_mode) == 0o755
    finally:
        os.umask(before)


def test_what_a_disk_holds_is_not_read(host: Host, image: Path, tmp_path: Path) -> None:
    """No call that gets bytes out of a file has the image's descriptor, or a loop device's."""
    disk = host.disk(5, image)
    trace = tmp_path / "trace"
    calls = "read,pread64,readv,preadv,preadv2,mmap,sendfile,splice,tee,copy_file_range,io_uring_setup,process_vm_readv"
    host.script.rename(tmp_path / "real")
    host.script.write_text(f'#!/bin/sh\nexec strace -f -qq -y -e trace={calls} -o {trace} {tmp_path}/real "$@"\n')
    host.script.chmod(0o755)
    for command in ("add", "remove"):
        assert disk.run(command).status == 0
        lines = trace.read_text().splitlines()
        assert [line for line in lines if "/real>" in line and "read(" in line], "strace names what is read"
        assert [line for line in lines if str(image) in line or "</dev/loop" in line] == []
