"""Cases: `vbdkit attach` and `detach` beside xl, and the three ways to a disk (C2-C6, G1-G3).

alice and bob run all the time; a disk that one toolstack has attached is listed, refused to others and detached by the
other one. What is compared is what xenstore-ls shows of both.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .domains import _driver as driver_domain_with
from .harness import (
    LIBRARY,
    MARKER,
    READ,
    SCRIPTS,
    XVDA,
    XVDB,
    Guest,
    Neighbour,
    Verdicts,
    backend,
    image,
    loop_device,
    neighbours,
    node,
    nothing_left,
    run,
    wait,
)

# Written anew by the two drivers for each connection.
_CHANGING = re.compile(r"/(ring-ref|event-channel|hotplug-status)")


def vbdkit(*arguments: str) -> tuple[int, str]:
    """Run the command of the wheel: its status and output."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(LIBRARY)
    try:
        return run("/usr/bin/python3", "-m", "vbdkit", *arguments)
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _connected(guest: Guest, by: int = 0) -> bool:
    """Wait until both ends of xvdb, which domain `by` serves, are connected."""
    ends = backend(guest.domid, XVDB, by), f"/local/domain/{guest.domid}/device/vbd/{XVDB}"
    return wait(lambda: all(node(f"{end}/state") == "4" for end in ends), 60)


def _nodes(guest: Guest, by: int = 0) -> dict[str, str]:
    """All nodes of xvdb with values and permissions, as far as they say nothing that changes each time."""
    devices = [node(f"{backend(guest.domid, XVDB, by)}/{name}") for name in ("node", "physical-device")]
    found = {}
    for root in (
        backend(guest.domid, XVDB, by),
        f"/local/domain/{guest.domid}/device/vbd/{XVDB}",
        f"/libxl/{guest.domid}/device/vbd/{XVDB}",
    ):
        for line in run("xenstore-ls", "-f", "-p", root)[1].splitlines():
            path, _, value = line.partition(" = ")
            if not _CHANGING.search(path):
                for number, device in enumerate(devices):
                    value = value.replace(f'"{device}"', f"DEVICE{number}")
                found[path] = value
    return found


def beside_xl(check: Verdicts) -> None:
    """What vbdkit attaches xl lists and detaches, and the other way round; nodes and permissions are the same."""
    alice, bob = neighbours()
    file = image("/tmp/a folder/disk.img")
    status, output = alice.attach(file)
    check("xl block-attach", status == 0 and _connected(alice), output)
    of_xl, words = _nodes(alice), _in_xls_words(alice)
    listed = run("xl", "block-list", alice.name)[1]
    status, output = vbdkit("attach", bob.name, f"vdev=xvdb,target={file}")
    check("vbdkit attach for another guest is refused", status == 1 and "guest" in output and "alice" in output, output)
    print(f"     vbdkit says: {output}")
    check("nothing of it stays", node(backend(bob.domid, XVDB)) is None and bob.running())
    status, output = vbdkit("detach", alice.name, "xvdb")
    check("vbdkit detach of xl's disk", status == 0, output)
    nothing_left(check)
    for script in ([], ["--no-script"]):
        seen = alice.console().count(f"xvdb {MARKER}")
        status, output = vbdkit("attach", *script, alice.name, f"vdev=xvdb,target={file}")
        check(f"vbdkit attach {' '.join(script)}", status == 0 and _connected(alice), output)
        print(f"     vbdkit says: {output}")
        check("the guest reads it", wait(lambda seen=seen: alice.console().count(f"xvdb {MARKER}") > seen, 60))  # type: ignore[misc]
        ours = {path: value for path, value in _nodes(alice).items() if not path.endswith("/vbdkit-way")}
        different = {path for path in of_xl.keys() | ours.keys() if of_xl.get(path) != ours.get(path)}
        check(
            "nodes, values and permissions are xl's", not different, [(p, of_xl.get(p), ours.get(p)) for p in different]
        )
        check("so are the words of its configuration", _in_xls_words(alice) == words, (words, _in_xls_words(alice)))
        now = run("xl", "block-list", alice.name)[1]
        check("xl lists it as its own", _without_ring(now) == _without_ring(listed), (listed, now))
        status, output = bob.attach(file)
        check("xl is refused it for another guest", status != 0 and "alice" in output, output)
        status, output = vbdkit("run", "add", bob.name, "xvdb")
        told = "alice" in output and f"XENBUS_PATH=backend/vbd/{bob.domid}/{XVDB}" in output
        check("vbdkit run shows call and reason for what xl left", status == 1 and told, output)
        wait(lambda: node(f"/local/domain/{bob.domid}/device/vbd/{XVDB}/state") in ("3", "4"), 10)
        bob.detach()
        status, output = alice.detach()
        check("xl block-detach", status == 0, output)
        check("and the guest has lost it", wait(lambda: alice.console().rstrip().endswith("xvdb none"), 60))
        nothing_left(check)


def _without_ring(text: str) -> list[list[str]]:
    """The table of xl block-list without its columns evt-ch and ring-ref."""
    return [
        [word for number, word in enumerate(line.split()) if number not in (4, 5)] for line in text.splitlines()[1:]
    ]


def taken_along(check: Verdicts) -> None:
    """A disk that vbdkit attached is still the guest's after xl save and restore, and after xl reboot."""
    file = image("/tmp/disk.img")
    for how in ([], ["--no-script"]):
        _taken_along(check, file, how)


def _taken_along(check: Verdicts, file: Path, how: list[str]) -> None:
    guest = Neighbour("along")
    guest.config.write_text(guest.config.read_text().replace('on_reboot = "destroy"', 'on_reboot = "restart"'))
    status, output = guest.create()
    check("xl create", status == 0 and guest.says("domU: xvdb none", 120), output)
    status, output = vbdkit("attach", *how, guest.name, f"vdev=xvdb,target={file}")
    reads = guest.says(f"domU: xvdb {MARKER}")
    check(f"vbdkit attach {' '.join(how)}", status == 0 and _connected(guest) and reads, output)
    told = _in_xls_words(guest)
    check("xl's configuration has it", [one["vdev"] for one in told] == ["xvdb"], told)
    for verb, does in (("save and restore", _saved_and_restored), ("reboot", _rebooted)):
        old = backend(guest.domid, XVDB)
        does(check, guest)
        new = backend(guest.domid, XVDB)
        check(f"xl {verb}: it is another domain now", new != old, old)
        check("with the disk", _connected(guest), run("xl", "block-list", guest.name)[1])
        check("the old one's is given back", node(old) is None)
    check("the guest reads it", wait(lambda: guest.console().count(f"domU: xvdb {MARKER}") == 2, 60), guest.console())
    status, output = vbdkit("detach", guest.name, "xvdb")
    check("vbdkit detach", status == 0, output)
    guest.destroy()
    nothing_left(check)


def _in_xls_words(guest: Guest) -> list[dict[str, str]]:
    """The disks of a guest's configuration, as xl itself prints it, below what it may have to complain of."""
    status, output = run("xl", "list", "-l", guest.name)
    _, start, rest = output.partition("[\n")
    disks: list[dict[str, str]] = json.loads(start + rest)[0]["config"].get("disks", []) if status == 0 else []
    return disks


def _saved_and_restored(check: Verdicts, guest: Guest) -> None:
    status, output = run("xl", "save", guest.name, "/tmp/saved")
    check("xl save", status == 0, output)
    nothing_left(check)
    status, output = run("xl", "restore", "/tmp/saved")
    check("xl restore", status == 0, output)
    guest.learn_domid()


def _rebooted(check: Verdicts, guest: Guest) -> None:
    status, output = run("xl", "reboot", guest.name)
    check("xl reboot", status == 0, output)
    old = str(guest.domid)
    check("it comes again", wait(lambda: run("xl", "domid", guest.name)[1] not in (old, "") and guest.running(), 60))
    guest.learn_domid()


def served_elsewhere(check: Verdicts) -> None:
    """A driver domain (xl devd) serves the disk: vbdkit waits for what its script makes of it, good or bad."""
    alice, bob = neighbours()
    file = image("/tmp/served.img")
    with driver_domain_with(file) as driver:
        check("the driver domain is up", driver.says("driver: xl devd runs", 200), driver.console()[-300:])
        check("xl block-attach", driver.serves(alice, "/dev/xvdc") == "connected", driver.said(alice))
        _connected(alice, driver.domid)
        of_xl, words = _nodes(alice, driver.domid), _in_xls_words(alice)
        driver.takes_back(alice)
        disk = f"vdev=xvdb,backend={driver.name},target=/dev/xvdc"
        seen = alice.console().count(f"xvdb {MARKER}")
        status, output = vbdkit("attach", alice.name, disk)
        check("vbdkit attach", status == 0 and "/dev/xvdc" in output, output)
        check("the guest reads it", wait(lambda: alice.console().count(f"xvdb {MARKER}") > seen, 60))
        _connected(alice, driver.domid)
        ours = _nodes(alice, driver.domid)
        different = {path for path in of_xl.keys() | ours.keys() if of_xl.get(path) != ours.get(path)}
        check(
            "nodes, values and permissions are xl's", not different, [(p, of_xl.get(p), ours.get(p)) for p in different]
        )
        check("so are the words of its configuration", _in_xls_words(alice) == words, (words, _in_xls_words(alice)))
        status, output = vbdkit("attach", bob.name, disk)
        check("another guest is refused it in the driver domain's words", status == 1 and "in use by" in output, output)
        check("they name the first one", f"guest {alice.domid}" in output, output)
        print(f"     vbdkit says: {output}")
        backends = f"/local/domain/{driver.domid}/backend/vbd"
        check("nothing of it stays", node(f"{backends}/{bob.domid}/{XVDB}/params") is None)
        check("nor in the toolstack's own nodes", node(f"/libxl/{bob.domid}/device/vbd/{XVDB}/params") is None)
        # The guest's frontend is connected: it lets go when it is asked to.
        wait(lambda: node(f"{backends}/{alice.domid}/{XVDB}/state") == "4")
        status, output = vbdkit("detach", alice.name, "xvdb")
        check("vbdkit detach", status == 0, output)
        check("the driver domain has taken it away", node(f"{backends}/{alice.domid}/{XVDB}/params") is None)
    nothing_left(check)


# A path-only script: binds a loop device, writes its path, and leaves number, check and status to the toolstack.
PATH_ONLY = """\
#!/bin/sh
# block-script: {"path-only": true}
set -e
params=$(xenstore-read "$XENBUS_PATH/params")
case $1 in
add)
    [ "$VBDKIT_PUBLISH" = path ] || { echo "this toolstack wants everything published" >&2; exit 1; }
    xenstore-write "$XENBUS_PATH/physical-device-path" "$(losetup -f --show "$params")" ;;
remove)
    device=$(xenstore-read "$XENBUS_PATH/physical-device-path") && losetup -d "$device" ;;
esac
"""


@contextmanager
def _path_only_script() -> Iterator[str]:
    script = SCRIPTS / "block-path"
    script.write_text(PATH_ONLY)
    script.chmod(0o755)
    try:
        yield script.name
    finally:
        script.unlink()


def three_ways(check: Verdicts) -> None:
    """Guests boot with a disk by script, path-only and without a script; a duplicate across the ways is refused."""
    alice, bob = neighbours()
    file = image("/tmp/disk.img")
    with _path_only_script() as script:
        ways: dict[str, list[str]] = {
            "script": [f"vdev=VDEV,target={file}"],
            "path-only": [f"vdev=VDEV,script={script},target={file}"],
            "no script": ["--no-script", f"vdev=VDEV,target={file}"],
        }
        for way, words in ways.items():
            _boots(check, way, words)
            _refused_each_other_way(check, alice, bob, way, ways)
        with loop_device(file) as device:
            _device(check, alice, bob, device, script)
    nothing_left(check)


def _arguments(words: list[str], domain: str, vdev: str) -> list[str]:
    *options, disk = words
    return ["attach", *options, domain, disk.replace("VDEV", vdev)]


def _boots(check: Verdicts, way: str, words: list[str]) -> None:
    """A guest gets its only disk before its first instruction, reads it, and is destroyed by xl."""
    guest = Guest(f"by-{way.replace(' ', '-')}", [], f"{READ}; sleep 1000")
    status, output = run("xl", "create", "-q", "-p", str(guest.config))
    check(f"{way}: xl create -p", status == 0, output)
    guest.learn_domid()
    status, output = vbdkit(*_arguments(words, guest.name, "xvda"))
    check(f"{way}: vbdkit attach", status == 0, output)
    names = ("hotplug-status", "physical-device", "physical-device-path", "hotplug-error")
    found = [node(f"{backend(guest.domid, XVDA)}/{name}") for name in names]
    check(
        f"{way}: connected, with device and path", found[0] == "connected" and all(found[1:3]) and not found[3], found
    )
    run("xl", "unpause", guest.name)
    check(f"{way}: the guest boots and reads it", guest.says(f"domU: read {MARKER}", 120), guest.console()[-300:])
    guest.destroy()
    nothing_left(check)


def _refused_each_other_way(
    check: Verdicts, alice: Neighbour, bob: Neighbour, way: str, ways: dict[str, list[str]]
) -> None:
    status, output = vbdkit(*_arguments(ways[way], alice.name, "xvdb"))
    check(f"{way}: alice has it", status == 0 and _connected(alice), output)
    for other, words in ways.items():
        status, output = vbdkit(*_arguments(words, bob.name, "xvdb"))
        check(f"{way}: bob is refused it by {other}", status == 1 and "alice" in output, output)
        check("nothing of that stays", node(backend(bob.domid, XVDB)) is None)
    status, output = vbdkit("detach", alice.name, "xvdb")
    check(f"{way}: vbdkit detach", status == 0 and node(backend(alice.domid, XVDB)) is None, output)
    nothing_left(check)


def _device(check: Verdicts, alice: Neighbour, bob: Neighbour, device: Path, script: str) -> None:
    """A plain device without a script, which a path-only script's loop device would share sectors with."""
    status, output = vbdkit("attach", "--no-script", alice.name, f"{device},,xvdb")
    check("a device without a script", status == 0 and _connected(alice), output)
    status, output = vbdkit("attach", bob.name, f"vdev=xvdb,script={script},target={device}")
    check("is refused to a path-only script's loop device on it", status == 1 and "alice" in output, output)
    status, output = alice.detach()
    check("xl block-detach", status == 0, output)
    nothing_left(check, {str(device)})
