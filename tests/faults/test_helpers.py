"""Programs of a BSD that hang (Linux's script starts none): killed within the time limit, and told."""

import os
import signal
from pathlib import Path

import pytest

from tests.faults.test_signals import ended
from tests.host import Host
from tests.need import need_loop_devices
from tests.platform.models.freebsd import Freebsd
from tests.platform.models.netbsd import Netbsd
from vbdkit.toolstack.netbsd_host import take_away

# It answers no signal, says nothing, and what it has started has its pipes too.
HANGS = """#!/bin/sh
{before}
trap '' TERM INT HUP
/bin/sleep 300 &
echo $! >>{pids}
echo $$ >>{pids}
while :; do wait; done
"""


def gone(pids: Path) -> bool:
    """Whether all processes whose numbers were noted have ended; they are killed otherwise."""
    left = []
    for pid in map(int, pids.read_text().split()):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            left.append(pid)
            os.kill(pid, signal.SIGKILL)
    return not left


def test_freebsd(tmp_path: Path, store_socket: Path, image: Path) -> None:
    system = Freebsd(tmp_path / "model")
    pids = tmp_path / "pids"
    host = Host(tmp_path, store_socket, "freebsd", time_limit=2, settings=system.place.settings)
    real = (system.place.bin / "sysctl").rename(tmp_path / "sysctl")
    system.place.program("sysctl", HANGS.format(before="", pids=pids))
    disk = host.disk(5, image)
    status, output = ended(disk.start("add"))
    assert gone(pids)
    assert status == 1
    assert "sysctl -b kern.geom.confxml does not answer, and was killed" in output
    assert disk.nodes()["hotplug-status"] == b"error"
    assert disk.nodes()["hotplug-error"].decode() in output
    assert (list(host.run_dir.glob("*")), list(host.lock_dir.glob("*"))) == ([], [])
    real.rename(system.place.bin / "sysctl")
    assert disk.add().outcome == b"connected"


@pytest.mark.parametrize(("moment", "late"), [("-c vnd0", True), ("-l", False)])
def test_netbsd(tmp_path: Path, store_socket: Path, image: Path, moment: str, late: bool) -> None:
    """``late``: vnconfig has done its work by then. What it did is taken back in the time that was kept for that."""
    need_loop_devices()
    machine = Netbsd(tmp_path / "model")
    try:
        pids, once = tmp_path / "pids", tmp_path / "once"
        real = machine.bin / "vnconfig.real"
        # It hangs once: the undo asks it again.
        before = (
            f'case "$*" in *"{moment}"*) [ -e {once} ] && exec {real} "$@";; *) exec {real} "$@";; esac\n'
            f": >{once}\n" + (f'{real} "$@" >/dev/null' if late else "")
        )
        machine.program("vnconfig", HANGS.format(before=before, pids=pids))
        host = Host(tmp_path, store_socket, "netbsd", time_limit=6, settings=machine.settings)
        disk = host.disk(5, image)
        status, output = ended(disk.start("add"))
        assert gone(pids)
        assert status == 1
        assert "vnconfig" in output
        assert "does not answer, and was killed" in output
        assert disk.nodes()["hotplug-error"].decode() in output
        assert machine.vnds() == {}
        assert (list(host.run_dir.glob("*")), list(host.lock_dir.glob("*"))) == ([], [])
        again = disk.add()
        assert again.outcome == b"connected", again.error
        assert disk.remove().status == 0
    finally:
        take_away(machine.folder)
