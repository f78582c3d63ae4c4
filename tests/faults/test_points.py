"""A selection of the faults that `make check-faults` tries: a kill and an error at each call that changes something."""

from pathlib import Path

import pytest

from tests.faults.harness import ADD, FILE, REMOVE, Bench
from tests.faults.points import Point, calls, points, short
from tests.need import need_loop_devices, need_program
from tests.stores import running_store


@pytest.mark.parametrize("command", [ADD, REMOVE])
def test_a_fault_at_each_call_that_changes_something(tmp_path: Path, command: str) -> None:
    need_loop_devices()
    need_program("strace")
    with running_store("c", tmp_path / "store") as store:
        bench = Bench(tmp_path / "bench", store.socket)
        try:
            chosen = short(bench.record(command, FILE))
            changed = {point.call.name for point in chosen}
            assert changed >= ({"rename", "ioctl", "flock"} if command == ADD else {"unlink", "ioctl"}) | {"sendto"}
            reached = [bench.hurt(command, FILE, point) for point in chosen]
            assert sum(reached) * 10 >= len(reached) * 9, "the rest: other scripts had the loop device"
        finally:
            bench.close()


def test_a_close_of_the_target_that_fails_undoes_nothing(tmp_path: Path) -> None:
    """It comes after the commit: the guest has its disk."""
    need_loop_devices()
    need_program("strace")
    with running_store("c", tmp_path / "store") as store:
        bench = Bench(tmp_path / "bench", store.socket)
        try:
            closes = [call for call in bench.record(ADD, FILE) if call.name == "close" and call.path == "/@/disk.img"]
            assert closes
            assert all(bench.hurt(ADD, FILE, Point(call, "EIO")) for call in closes)
        finally:
            bench.close()


def test_a_trace_is_read_as_strace_writes_it(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text(
        'openat(AT_FDCWD</>, "/srv/before", O_RDONLY) = 3</srv/before>\n'
        "rt_sigaction(SIGTERM, NULL, {sa_handler=SIG_DFL}, 8) = 0\n"
        "rt_sigaction(SIGTERM, {sa_handler=0x1}, {sa_handler=SIG_DFL}, 8) = 0\n"
        "mmap(NULL, 4096) = 0\n"
        f'openat(AT_FDCWD</>, "{tmp_path}/library/vbdkit/x.py", O_RDONLY) = 3\n'
        'openat(AT_FDCWD</>, "/dev/loop7", O_RDWR) = 3</dev/loop7>\n'
        'openat(AT_FDCWD</>, "/dev/loop70", O_RDWR) = 4</dev/loop70>\n'
        "ioctl(3</dev/loop7>, LOOP_CLR_FD) = 0\n"
        f'openat(AT_FDCWD</>, "{tmp_path}/run/vbd-5-1", O_RDWR) = 5\n'
        f'write(5<{tmp_path}/run/vbd-5-1>, "x", 1) = 1\n'
        "exit_group(0) = ?\n"
    )
    found = calls(trace, tmp_path, "/dev/loop7")
    assert [(call.name, call.path, call.number) for call in found] == [
        ("rt_sigaction", "", 2),
        ("openat", "/dev/loop@", 1),
        ("ioctl", "/dev/loop@", 1),
        ("openat", "/@/run/vbd-5-1", 1),
        ("write", "/@/run/vbd-5-1", 1),
        ("exit_group", "", 1),
    ]
    assert Point(found[1], "EIO").options(Path("/there"), "/dev/loop9") == [
        "-P",
        "/dev/loop9",
        "-e",
        "trace=openat",
        "-e",
        "inject=openat:error=EIO:when=1",
    ]
    every = points(found)
    assert {point.how for point in every if point.call.name == "write"} >= {"KILL", "TERM", "ENOSPC", "EIO"}
    assert [point.how for point in every if point.call.name == "exit_group"] == ["KILL"]
    assert [point.call.name for point in short(found)] == ["ioctl", "write", "exit_group", "ioctl", "write"]
