"""`vbdkit attach`, `detach`: the commands on a host with everything but Xen (tests/toolstack/xen.py)."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import PYTHON, run_command
from tests.images import image, make_image
from tests.need import need_loop_devices, need_program
from tests.toolstack.xen import Xen, make_xen
from vbdkit.toolstack.nodes import Disk, wait_for_state

__all__ = ["image"]

Vbdkit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def xen(tmp_path: Path, store_socket: Path) -> Iterator[Xen]:
    need_loop_devices()
    with make_xen(tmp_path, store_socket) as made:
        yield made


@pytest.fixture
def environment(xen: Xen, package: Path) -> dict[str, str]:
    return {**xen.host.environment(), "PYTHONPATH": str(package.parent), "LC_ALL": "C.UTF-8"}


@pytest.fixture
def config(xen: Xen, tmp_path: Path) -> Path:
    path = tmp_path / "vbdkit.toml"
    host = xen.host
    path.write_text(f'scripts-dir = "{tmp_path}"\nrun-dir = "{host.run_dir}"\nlock-dir = "{host.lock_dir}"\n')
    return path


@pytest.fixture
def vbdkit(package: Path, environment: dict[str, str], config: Path) -> Vbdkit:
    def run(command: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        return run_command(package, command, "--config", config, *arguments, env=environment)

    return run


def connected(xen: Xen, domid: int = 5, devid: int = 51712) -> None:
    wait_for_state(xen.store, Disk(domid, b"", b"", devid=devid), {b"4"}, 10)


@pytest.mark.parametrize("more", [[], ["--no-script"]])
def test_a_guest_gets_a_disk_by_name_and_gives_it_back_by_number(
    vbdkit: Vbdkit, xen: Xen, image: Path, more: list[str]
) -> None:
    done = vbdkit("attach", *more, "web", f"{image},,xvda")
    assert re.fullmatch(
        rf"guest 5 \(web\) has {image} as its disk xvda, read-write \(through /dev/loop\d+\)\n", done.stdout
    )
    assert (done.returncode, done.stderr) == (0, "")
    connected(xen)
    done = vbdkit("detach", "5", "51712")
    assert done.stdout == f"guest 5 (web) no longer has {image} as its disk xvda\n"
    assert (done.returncode, done.stderr) == (0, "")
    assert xen.left() == []


def test_without_a_script_it_is_one_process(
    xen: Xen, environment: dict[str, str], config: Path, image: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    xen.host.script.unlink()
    strace = [need_program("strace"), "-f", "-o", str(trace), "-e", "trace=process"]
    command = [str(PYTHON), "-m", "vbdkit", "attach", "--config", str(config), "--no-script", "5", f"{image},,xvda"]
    subprocess.run([*strace, *command], env=environment, check=True, capture_output=True)
    calls = re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE)
    assert [call for call in calls if call not in ("wait4", "exit_group")] == ["execve"]
    connected(xen)
    xen.detach()


def test_a_refusal_is_one_sentence(vbdkit: Vbdkit, xen: Xen, image: Path) -> None:
    vbdkit("attach", "web", f"{image},,xvda")
    for more in ([], ["--no-script"]):
        done = vbdkit("attach", *more, "mail", f"{image},,xvda")
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(
            rf"vbdkit: {image} is in use by guest 5 \(web\) as its disk xvda, read-write \(through /dev/loop\d+\), "
            r"so another guest may not have it read-write; detach it there first \(xl block-detach 5 xvda\)\n",
            done.stderr,
        )
    connected(xen)
    xen.detach()
    assert xen.left() == []


def test_the_limits_can_be_set(vbdkit: Vbdkit, xen: Xen, image: Path) -> None:
    xen.script("block-slow", "#!/bin/sh\n[ $1 = remove ] || exec sleep 60\n")
    done = vbdkit("attach", "--script-limit", "0.5", "5", f"vdev=xvda,script=block-slow,target={image}")
    assert "block-slow add was not done after 0.5 s and was killed" in done.stderr
    assert xen.left() == []


def test_force_says_what_did_not_work(vbdkit: Vbdkit, xen: Xen, image: Path) -> None:
    xen.script("block-bad", f'#!/bin/sh\n[ $1 = add ] || exit 4\nexec {xen.host.script} "$@"\n')
    vbdkit("attach", "5", f"vdev=xvda,script=block-bad,target={image}")
    connected(xen)
    done = vbdkit("detach", "web", "xvda")
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.endswith("block-bad remove ended with status 4 and gave no reason")
    assert second == "  its nodes stay; try again, or with --force let go of it all the same"
    done = vbdkit("detach", "--force", "web", "xvda")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [first]
    assert xen.nodes() == []


def test_a_disk_that_a_guest_has_not_is_named_with_those_that_it_has(vbdkit: Vbdkit, xen: Xen, image: Path) -> None:
    done = vbdkit("detach", "web", "xvda")
    assert done.stderr.splitlines() == [
        "vbdkit: guest 5 (web) has no disk xvda",
        "  it has no disks at all (xl list shows the guests)",
    ]
    xen.attach(f"{image},,xvdb")
    connected(xen, devid=51728)
    assert "its disks are: xvdb" in vbdkit("detach", "web", "xvda").stderr
    assert "names no virtual disk" in vbdkit("detach", "web", "xv").stderr
    xen.detach(51728)


def test_a_name_that_is_no_text_gets_through(vbdkit: Vbdkit, xen: Xen, tmp_path: Path) -> None:
    strange = make_image(tmp_path / os.fsdecode(b"a \xff \xc3\xa9.img"))
    done = vbdkit("attach", "5", f"vdev=xvda,target={strange}")
    assert (done.returncode, done.stderr) == (0, "")
    assert xen.read("/local/domain/0/backend/vbd/5/51712/params") == os.fsencode(strange)
    connected(xen)
    xen.detach()


@pytest.mark.parametrize("domain", ["32752", "", "999999999999"])
def test_a_domain_that_is_none_is_wrong_use(vbdkit: Vbdkit, domain: str) -> None:
    done = vbdkit("attach", domain, "a,,hda")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no domain (numbers go from 0 to 32751" in done.stderr


def test_a_store_that_is_not_there_is_said(package: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(package.parent), "XENSTORED_PATH": "/nowhere/s"}
    done = run_command(package, "detach", "5", "xvda", env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("vbdkit: cannot connect to xenstore: ")
