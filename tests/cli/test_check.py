"""``vbdkit check``: the script's verdict without an attach, drawn and as JSON, with its exit status."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.host import Host, bound_loops
from tests.images import losetup, make_image
from tests.need import need_program


def check(host: Host, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run the command on a test host."""
    argv = [sys.executable, "-m", "vbdkit", "check", *map(str, arguments)]
    return subprocess.run(argv, env=host.environment(), capture_output=True, text=True, timeout=60)


def as_json(host: Host, *arguments: str | Path) -> dict[str, Any]:
    """Return the JSON object that the command prints."""
    answer: dict[str, Any] = json.loads(check(host, "--json", *arguments).stdout)
    return answer


@contextmanager
def partitions(disk: str) -> Iterator[list[str]]:
    """Two partitions of 4 MiB on a loop device."""
    for number, start in ((1, 2048), (2, 10240)):
        subprocess.run([need_program("addpart"), disk, str(number), str(start), "8192"], check=True)
    yield [f"{disk}p1", f"{disk}p2"]
    for number in (1, 2):
        subprocess.run([need_program("delpart"), disk, str(number)], check=True)


@pytest.fixture
def disk(host: Host, tmp_path: Path) -> Iterator[str]:
    """A loop device of 16 MiB."""
    name = losetup("--find", "--show", str(make_image(tmp_path / "disk.img", size=16 << 20)))
    yield name
    losetup("-d", name)


def test_free(host: Host, image: Path) -> None:
    before = bound_loops()
    done = check(host, image)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{image} (file)\n")
    assert done.stdout.endswith("\nfree: a guest may have it read-write\n")
    assert bound_loops() == before


def test_in_use_says_what_the_script_says(host: Host, image: Path) -> None:
    assert host.disk(5, image).add().status == 0
    done = check(host, image)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "in use: " + host.disk(6, image).add().error


def test_each_user_is_drawn_where_it_sits(host: Host, disk: str, tmp_path: Path) -> None:
    with partitions(disk) as (first, second):
        host.domain(5, "web01")
        assert host.vbd(5, second, "r").add().status == 0
        done = check(host, "--mode", "r", disk)
    assert done.stdout.splitlines()[:-2] == [
        f"{disk} (loop device)",
        f"├─ carved from {tmp_path}/disk.img (file)",
        *[line for line in done.stdout.splitlines() if "lies on" in line],
        f"├─ carved into {first} (partition 1 of {disk})",
        f"└─ carved into {second} (partition 2 of {disk})",
        "   └─ guest 5 (web01) as its disk xvda, read-only: readers only",
    ]
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "free: a guest may have it read-only")


def test_siblings_are_not_drawn(host: Host, disk: str) -> None:
    with partitions(disk) as (first, second):
        assert host.disk(5, second).add().status == 0
        done = check(host, first)
    assert done.returncode == 0
    assert second not in done.stdout
    assert disk in done.stdout


def test_a_guest_that_asks_for_its_own_disk(host: Host, image: Path) -> None:
    assert host.disk(5, image).add().status == 0
    done = check(host, "--domid", "5", image)
    assert done.returncode == 0
    assert "the same guest" in done.stdout
    assert check(host, "--domid", "6", image).returncode == 1


def test_json_has_the_chain_the_users_and_the_verdict(host: Host, image: Path) -> None:
    node = host.disk(5, image).add().nodes["node"].decode()
    answer = as_json(host, image)
    assert (answer["target"], answer["mode"], answer["verdict"]) == (str(image), "w", "in use")
    assert "guest 5" in answer["reason"]
    itself, *others = answer["chain"]
    status = os.stat(image)
    on = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    assert itself == {
        "name": str(image),
        "what": "file",
        "place": "itself",
        "id": {"file": status.st_ino, "on": on},
        "via": None,
    }
    assert {link["name"]: link["place"] for link in others if link["place"] != "host"} == {node: "above"}
    (user,) = answer["users"]
    assert user["kind"] == "guest"
    assert (user["domid"], user["vdev"], user["mode"], user["forbids"]) == (5, "xvda", "w", True)


def test_json_of_a_free_target(host: Host, image: Path) -> None:
    answer = as_json(host, "--mode", "r", image)
    assert (answer["verdict"], answer["reason"], answer["users"], answer["mode"]) == ("free", None, [], "r")


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_unusable_is_neither_free_nor_in_use(host: Host, tmp_path: Path, form: list[str]) -> None:
    done = check(host, *form, tmp_path / "missing.img")
    assert done.returncode == 2
    assert f"{tmp_path}/missing.img does not exist" in done.stdout


def test_without_a_store_nobody_can_say(host: Host, image: Path, tmp_path: Path) -> None:
    host.socket = tmp_path / "no-such-socket"
    done = check(host, image)
    assert done.returncode == 2
    assert "no-such-socket" in done.stdout


def test_a_malformed_number_of_another_guest_makes_the_answer_unknown(host: Host, image: Path) -> None:
    host.domain(5)
    host.vbd(5, image, physical_device=b"nonsense")
    done = check(host, image)
    assert done.returncode == 2
    assert "nonsense" in done.stdout


def test_a_read_only_device_is_unusable_for_writing(host: Host, read_only_loop: str) -> None:
    assert check(host, read_only_loop).returncode == 2
    assert check(host, "--mode", "r", read_only_loop).returncode == 0


def test_names_cannot_draw_on_the_terminal(host: Host, tmp_path: Path) -> None:
    image = make_image(tmp_path / "a\x1b[31m.img")
    assert "\x1b" not in check(host, image).stdout


@pytest.mark.parametrize("arguments", [[], ["--mode", "x", "/a"], ["--domid", "-1", "/a"], ["--domid", "99999", "/a"]])
def test_wrong_use(host: Host, arguments: list[str]) -> None:
    done = check(host, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "usage: vbdkit check" in done.stderr
