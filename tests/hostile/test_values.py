"""Store values of every kind of bytes, 0 to 4,096 long: an answer in one printable sentence, and nothing else done."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.host import Disk, Host
from tests.hostile.judge import Inside, backing, examples, judge
from tests.hostile.strange import every_byte, names, values
from tests.images import make_image
from vbdkit.protocol.mode import parse_mode

many = settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

OWN = ("hotplug-status", "hotplug-error", "physical-device", "physical-device-path", "online", "type", "dev")
OTHERS = ("params", "mode", "dev", "state", "physical-device", "physical-device-path", "node", "hotplug-status")


@many
@given(params=values)
@example(params=every_byte[1:])
def test_params(inside: Inside, params: bytes) -> None:
    inside.clear()
    disk = inside.host.disk(5, params)
    inside.add(disk)
    inside.remove(disk)


@many
@given(below=values)
def test_params_below_a_folder_that_is_there(inside: Inside, below: bytes) -> None:
    inside.clear()
    disk = inside.host.disk(5, os.fsencode(inside.host.directory) + b"/" + below[:3900])
    inside.add(disk)
    inside.remove(disk)


@many
@given(mode=values)
def test_mode(inside: Inside, mode: bytes) -> None:
    inside.clear()
    image = make_image(inside.host.directory / "disk.img")
    inside.host.domain(5)
    disk = inside.host.vbd(5, image, mode)
    assert inside.add(disk).status == (1 if parse_mode(mode) is None else 0)
    inside.remove(disk)


@many
@given(name=names)
def test_a_file_of_any_name_is_attached_and_named(inside: Inside, name: bytes) -> None:
    inside.clear()
    place = inside.host.directory / "files"
    place.mkdir(exist_ok=True)
    image = place / os.fsdecode(name)
    make_image(image)
    try:
        one, two = inside.host.disk(5, os.fsencode(image)), inside.host.disk(6, os.fsencode(image))
        assert inside.run(one, "add").outcome == b"connected"
        refused = inside.run(two, "add")
        assert refused.outcome == b"busy"
        assert "in use by guest 5 (guest5) as its disk xvda" in refused.error
        assert refused.error.isprintable()
        assert inside.run(two, "remove").status == 0
        inside.remove(one)
    finally:
        image.unlink()


@many
@given(nodes=st.dictionaries(st.sampled_from(OWN), values, max_size=4), state=values | st.just(b"2"))
def test_nodes_of_its_own(inside: Inside, nodes: dict[str, bytes], state: bytes) -> None:
    """What stands there from before: a status, a device number, an error."""
    inside.clear()
    image = make_image(inside.host.directory / "disk.img")
    inside.host.domain(5)
    disk = inside.host.vbd(5, image, state=None)
    disk.write(state=state, **nodes)
    result = inside.run(disk, "add")
    published = any(name in nodes for name in ("physical-device", "physical-device-path"))
    if state != b"2" and published and nodes.get("hotplug-status") == b"connected":
        assert (result.status, result.output) == (0, "")  # I5: attached already, says the store
    else:
        assert result.status == (0 if state == b"2" else 1)
        if state == b"2" or not published:
            judge(disk, result)
    inside.remove(disk)


@many
@given(
    nodes=st.dictionaries(st.sampled_from(OTHERS), values, max_size=5),
    kind=st.sampled_from(["vbd", "vbd3", "qdisk", "tap", "unheard-of"]),
)
def test_nodes_of_another_guest(inside: Inside, nodes: dict[str, bytes], kind: str) -> None:
    inside.clear()
    image = make_image(inside.host.directory / "disk.img")
    inside.host.domain(6)
    Disk(inside.host, kind, 6, 51712).write(**nodes)
    disk = inside.host.disk(5, image)
    inside.add(disk)
    inside.remove(disk)


@many
@given(name=values, vm=values, target=values, dev=values)
def test_names_of_another_guest(inside: Inside, name: bytes, vm: bytes, target: bytes, dev: bytes) -> None:
    """They come into the sentence; they decide nothing."""
    inside.clear()
    image = make_image(inside.host.directory / "disk.img")
    one, two = inside.host.disk(5, image), inside.host.disk(6, image)
    with inside.host.connect() as store:
        for node, value in ((b"name", name), (b"vm", vm), (b"target", target)):
            store.write(b"/local/domain/6/" + node, value)
    two.write(dev=dev)
    assert inside.run(two, "add").outcome == b"connected"
    refused = inside.run(one, "add")
    assert refused.outcome == b"busy"
    assert "in use by guest 6" in refused.error
    assert refused.error.isprintable()
    assert len(refused.error.encode()) <= 1024
    assert inside.run(one, "remove").status == 0
    inside.remove(two)


@many
@given(path=values, word=values)
def test_calls(inside: Inside, path: bytes, word: bytes) -> None:
    inside.clear()
    disk = Disk(inside.host, "vbd", 5, 51712)
    path, word = (text.replace(b"\0", b"") for text in (path, word))
    for environ, argv in (
        ({b"XENBUS_PATH": path}, [b"/s/" + word, path, b"add"]),
        ({}, [b"block", word]),
        ({}, [word, word, word]),
        ({}, [word]),
    ):
        result = inside.run(disk, "add", environ, argv)
        assert result.status == 1
        judge(disk, result)
        assert "a toolstack calls: " in result.output
        assert result.nodes == {}, "no directory is made for a call's sake"


@many
@given(text=st.binary(max_size=300) | values)
def test_records(inside: Inside, text: bytes) -> None:
    """What stands in a record is understood or named; whatever it says, only this vbd's device can go for it."""
    inside.clear()
    disk = inside.host.disk(5, make_image(inside.host.directory / "disk.img"))
    inside.host.run_dir.mkdir(exist_ok=True)
    record = inside.host.run_dir / "vbd-5-51712"
    for content in (
        text,
        b"vbdkit 1\n" + text + b"\n",
        b"vbdkit 1\ndatapath file\nfile " + text + b"\nloop " + text + b"\n",
    ):
        record.write_bytes(content)
        result = inside.run(disk, "remove")
        if result.status == 1:
            assert record.exists()
            assert str(record) in result.error or "no kind of storage named" in result.error
        assert result.error.isprintable()
        assert "vbdkit itself failed" not in result.output
        record.unlink(missing_ok=True)


# As a process, under strace: what the system calls say.

CALLS = (
    "execve,execveat,fork,vfork,clone,clone3,openat,open,openat2,creat,mkdir,mkdirat,mknod,mknodat,unlink,unlinkat,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,truncate,chmod,fchmodat,chown,fchownat,mount,kill,connect"
)


@pytest.mark.parametrize(
    "params",
    [
        b"$(touch canary);`touch canary`|touch canary&touch canary\ntouch canary",
        b"{path}{0}{path.__class__.__mro__}%s%n",
        b"\x1b]0;owned\x07\x1b[2J\xff\xfe\r\n",
        b"../../../../../../proc/self/mem",
        b"/dev/../etc/.",
        b"--help",
        every_byte[1:],
        every_byte[1:] * 15,
        b"/" * 4000,
        b"",
    ],
    ids=range(10),
)
def test_no_program_is_started_and_nothing_else_written(host: Host, tmp_path: Path, params: bytes) -> None:
    (canaries := tmp_path / "canaries").mkdir()
    for name in ("touch", "sh", "losetup", "logger", "mount", "stat", "xenstore-read", "xenstore-write", "block", "id"):
        (canaries / name).write_text(f"#!/bin/sh\n/bin/echo $0 >> {canaries}/sang\n")
        (canaries / name).chmod(0o755)
    disk = host.disk(5, params)
    trace = tmp_path / "trace"
    host.script.rename(tmp_path / "real")
    host.script.write_text(f'#!/bin/sh\nexec strace -f -qq -s 9999 -e trace={CALLS} -o {trace} {tmp_path}/real "$@"\n')
    host.script.chmod(0o755)
    for command in ("add", "remove"):
        result = disk.run(command, extra={"PATH": f"{canaries}:{os.environ['PATH']}"})
        judge(disk, result, command)
        assert result.status == (1 if command == "add" else 0)
        changed = _changed(trace, host, os.fsdecode(params))
        assert changed == [], changed
    assert not (canaries / "sang").exists()
    assert not list(tmp_path.rglob("canary"))


def _changed(trace: Path, host: Host, target: str) -> list[str]:
    """The lines of a trace that start a program or change a thing other than records, locks and the target."""
    own = (
        f'"/dev/{target}", O_RDWR',
        f'"{host.run_dir}',
        f'"{host.lock_dir}',
        '"/dev/loop-control"',
        f'sun_path="{host.socket}"',
        '"/dev/log"',
    )
    found = []
    started = 0
    for line in trace.read_text("utf-8", "replace").splitlines():
        call = line.split(None, 1)[1]
        if call.startswith("exec"):
            started += 1  # the script itself
            continue
        if call.startswith("clone") and "CLONE_THREAD" in call:
            continue  # the watch over the time
        if call.startswith("open") and "O_RDONLY" in call and "O_CREAT" not in call:
            continue
        if call.startswith(("+++", "---")) or any(name in call for name in own):
            continue
        found.append(line)
    assert started == 1, "the script, and nothing after it"
    return found


@settings(max_examples=examples(12), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(params=values, mode=values | st.sampled_from([b"r", b"w"]))
def test_the_process_itself(host: Host, params: bytes, mode: bytes) -> None:
    host.domain(5)
    disk = host.vbd(5, params, mode)
    result = disk.add()
    judge(disk, result)
    result = disk.remove()
    assert (result.status, result.output) == (0, "")
    judge(disk, result, "remove")
    disk.forget()


def test_a_name_of_every_byte_as_a_process(host: Host, tmp_path: Path) -> None:
    image = tmp_path / os.fsdecode(bytes(byte for byte in range(1, 256) if byte != 0x2F))
    make_image(image)
    disk = host.disk(5, os.fsencode(image))
    result = disk.add()
    assert result.status == 0, result
    number = os.stat(result.nodes["node"])
    assert result.nodes["physical-device"] == b"%x:%x" % (os.major(number.st_rdev), os.minor(number.st_rdev))
    seen = subprocess.run(["losetup", "-nO", "BACK-FILE", result.nodes["node"]], capture_output=True, check=True).stdout
    assert seen, backing(result)
    second = host.disk(6, os.fsencode(image)).add()
    assert second.outcome == b"busy"
    assert r"\x01\x02" in second.error
    assert disk.remove().status == 0
