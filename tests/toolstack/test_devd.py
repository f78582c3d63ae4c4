"""The driver domain's daemon, as a process, on each store: attach, refuse, detach, restarts, bounds, ends."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driverdomain import DOMID, DriverDomain, driver_domain
from tests.host import backing_file, bound_loops
from tests.images import make_image
from tests.need import need_loop_devices
from tests.stores import KINDS, real_store
from tests.waiting import until
from vbdkit.protocol.nodes import CLOSED, INIT_WAIT, XENBUS_CONNECTED
from vbdkit.toolstack.devd import Seen
from vbdkit.toolstack.driver import LinuxDriver
from vbdkit.toolstack.nodes import close_disk, remove_disk
from vbdkit.xenstore.embedded import EmbeddedStore
from vbdkit.xenstore.embedded.permissions import Quota

ROOT = b"/local/domain/%d/backend" % DOMID


@pytest.fixture(params=KINDS)
def domain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DriverDomain]:
    """A driver domain on each store; its daemon is not started yet."""
    need_loop_devices()
    with driver_domain(tmp_path, request.param) as made:
        yield made


@pytest.fixture
def own_domain(tmp_path: Path) -> Iterator[DriverDomain]:
    """One on the embedded store, where it has its own rights, quotas and relative paths."""
    with driver_domain(tmp_path, "embedded") as made:
        yield made


def script(path: Path, body: str) -> bytes:
    """A script of somebody else's."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return os.fsencode(path)


def test_attach_refuse_detach(domain: DriverDomain) -> None:
    image = make_image(domain.folder / "disk.img")
    domain.start()
    with LinuxDriver(domain.environ, DOMID) as driver:
        for domid in (5, 6):
            domain.guest(domid)
        first = domain.disk(5, image)
        until(lambda: domain.state(first) == XENBUS_CONNECTED, "Connected")
        nodes = domain.nodes(first)
        assert nodes["hotplug-status"] == b"connected"
        assert backing_file(nodes["node"]) == str(image)
        assert domain.records() == ["vbd-5-51712"]
        domain.says(rf"^vbd-5-51712 add: {image} attached as {nodes['node'].decode()} \(w\), \d+ ms$")
        second = domain.disk(6, image)
        domain.becomes(second, b"busy")
        assert "in use by guest 5" in domain.nodes(second)["hotplug-error"].decode()
        domain.says(r"^vbd-6-51712 add: not attached: .* is in use by guest 5")
        for disk in (second, first):
            close_disk(domain.toolstack, disk)
            domain.gone(disk)
        assert driver.log == []
    domain.says(r"^vbd-5-51712 remove: detached; its nodes are deleted, \d+ ms$")
    _nothing_left(domain)
    # Directories that are empty would count against the quota for ever.
    assert domain.toolstack.list(ROOT) == []
    assert domain.stop() == 0


def test_what_is_there_at_the_start(domain: DriverDomain) -> None:
    images = {name: make_image(domain.folder / name) for name in ("waits", "attached", "closed", "forgotten", "failed")}
    domain.start()
    domids = {name: domain.guest(domid) for domid, name in enumerate(images, 10)}
    disks = {name: domain.waiting_disk(domids[name], images[name]) for name in ("attached", "closed", "forgotten")}
    images["failed"].rename(images["failed"].with_name("away"))
    disks["failed"] = domain.waiting_disk(domids["failed"], images["failed"])
    for name, disk in disks.items():
        domain.becomes(disk, b"error" if name == "failed" else b"connected")
        if name != "failed":
            domain.write(disk, state=XENBUS_CONNECTED)
    assert domain.stop() == 0
    before = domain.nodes(disks["attached"])
    domain.closed(disks["closed"])
    remove_disk(domain.toolstack, disks["forgotten"])
    disks["waits"] = domain.waiting_disk(domids["waits"], images["waits"])
    images["failed"].with_name("away").rename(images["failed"])
    domain.start()
    domain.becomes(disks["waits"], b"connected")
    domain.becomes(disks["failed"], b"connected")
    domain.gone(disks["closed"])
    domain.says(r"^vbd-13-51712 remove: detached, \d+ ms$")
    assert domain.nodes(disks["attached"]) == before
    assert sorted(backing_file(loop) for loop in bound_loops(domain.folder)) == sorted(
        str(images[name]) for name in ("waits", "attached", "failed")
    )
    assert domain.stop() == 0
    # One line for each that something was done for, and none for the one that was left alone.
    assert sorted(line.split()[0] for line in domain.said() if line.startswith("vbd-")) == [
        f"vbd-{domids[name]}-51712" for name in ("waits", "closed", "forgotten", "failed")
    ]
    _release(domain, disks["waits"], disks["attached"], disks["failed"])


def test_a_failed_one_is_tried_again_on_sighup_only(domain: DriverDomain) -> None:
    image = domain.folder / "disk.img"
    domain.start()
    domain.guest(5)
    disk = domain.waiting_disk(5, image)
    domain.becomes(disk, b"error")
    make_image(image)
    domain.write(disk, online=b"1", state=INIT_WAIT)  # events that mean nothing new
    other = domain.waiting_disk(5, make_image(domain.folder / "other.img"), 51728)
    domain.becomes(other, b"connected")
    assert domain.status(disk) == b"error"
    assert domain.process is not None
    domain.process.send_signal(signal.SIGHUP)
    domain.becomes(disk, b"connected")
    assert "hotplug-error" not in domain.nodes(disk)
    _release(domain, disk, other)


def test_it_survives_the_store(tmp_path: Path) -> None:
    need_loop_devices()
    one, two = (make_image(tmp_path / name) for name in ("one.img", "two.img"))
    with driver_domain(tmp_path, "c") as domain:
        domain.start()
        domain.guest(5)
        first = domain.waiting_disk(5, one)
        domain.becomes(first, b"connected")
        os.kill(domain.store.pid, signal.SIGTERM)
        domain.says("trying again until it is back")
        with real_store("c", tmp_path) as again:
            domain.toolstack.close()
            domain.toolstack = again.connect(300)
            domain.prepare()
            domain.says("^again watching ")
            # It has forgotten the first disk; that is no reason to take it from the guest.
            assert domain.records() == ["vbd-5-51712"]
            second = domain.waiting_disk(domain.guest(5), two, 51728)
            domain.becomes(second, b"connected")
            assert sorted(map(backing_file, bound_loops(tmp_path))) == [str(one), str(two)]
            assert sum("trying again" in line for line in domain.said()) == 1, "a loss is told once"
            domain.closed(second)
            domain.gone(second)
            domain.stop()
            domain.start()  # now it may: the record speaks of a disk that nobody has
            domain.says("^vbd-5-51712 remove: detached")
            _nothing_left(domain)


def test_it_waits_for_a_store(tmp_path: Path) -> None:
    with driver_domain(tmp_path, "embedded") as domain:
        domain.environ = {b"XENSTORED_PATH": os.fsencode(tmp_path / "later")}
        domain.start(ready=False)
        domain.says("trying again until it is back")
        with EmbeddedStore(os.fsencode(tmp_path / "later")):
            with domain.connect() as later:
                later.write(b"/local/domain/0/domid", b"7")
            domain.says("^watching ")
            assert domain.stop() == 0


def test_no_more_run_at_a_time_than_asked_and_never_two_for_one_disk(own_domain: DriverDomain, tmp_path: Path) -> None:
    domain = own_domain
    log = tmp_path / "log"
    body = 'echo "begin $XENBUS_PATH" >>LOG; sleep 0.05; echo "end $XENBUS_PATH" >>LOG; xenstore=; exit 0'
    busy = script(tmp_path / "busy", body.replace("LOG", str(log)))
    disks = [domain.waiting_disk(domain.guest(domid), "/dev/null", script=busy) for domid in range(10, 22)]
    domain.start("--jobs", "3")
    domain.says(" add: ", 12)
    for disk in disks:
        domain.closed(disk)
    domain.says(" remove: ", 12)
    running: list[str] = []
    most = 0
    for word, path in (line.split() for line in log.read_text().splitlines()):
        if word == "begin":
            assert path not in running, "two at a time for one disk"
            running.append(path)
        else:
            running.remove(path)
        most = max(most, len(running))
    assert most == 3


def test_others_scripts_are_called_as_by_libxl(own_domain: DriverDomain, tmp_path: Path) -> None:
    said = tmp_path / "said"
    body = f'echo "$#:$*:$XENBUS_PATH:$XENBUS_TYPE:$XENBUS_BASE_PATH:$script:$NOTIFY_SOCKET" >>{said}; echo to the log'
    path = script(tmp_path / "block", body)
    own_domain.start(environ={b"NOTIFY_SOCKET": os.fsencode(tmp_path / "nobody")})
    own_domain.guest(5)
    disk = own_domain.waiting_disk(5, "iqn=x,portal=y", script=path)
    own_domain.says("^vbd-5-51712 add: .* has published no device")
    own_domain.closed(disk)
    own_domain.gone(disk)
    common = f"backend/vbd/5/51712:vbd:backend:{path.decode()}:"
    assert said.read_text().splitlines() == [f"1:add:{common}", f"1:remove:{common}"]
    own_domain.says("^to the log$", 2)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("exit 3", r"the script \S+/custom ended with status 3 and gave no reason"),
        ("kill -9 $$", r"the script \S+/custom was ended by SIGKILL"),
        ("sleep 60 & echo $! >child; wait", r"the script \S+/custom was killed after \d+ s"),
    ],
)
def test_the_reason_is_published_where_a_script_gives_none(
    own_domain: DriverDomain, tmp_path: Path, body: str, reason: str
) -> None:
    path = script(tmp_path / "custom", f"cd {tmp_path}; {body}")
    own_domain.start("--script-timeout", "0.5")
    own_domain.guest(5)
    disk = own_domain.waiting_disk(5, "x", script=path)
    own_domain.says(f"^vbd-5-51712 add: not attached: {reason}, ")
    own_domain.becomes(disk, b"error")
    assert re.fullmatch(reason, own_domain.nodes(disk)["hotplug-error"].decode())
    if "child" in body:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)  # raises where it was killed along (C6)
    # What the script says itself stays.
    script(tmp_path / "custom", "exit 1")
    own_domain.write(disk, hotplug_status=b"busy", hotplug_error=b"its own words")
    assert own_domain.process is not None
    own_domain.process.send_signal(signal.SIGHUP)
    own_domain.says("^vbd-5-51712 add: not attached: its own words, ")
    assert own_domain.status(disk) == b"busy"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (b"/none/block-iscsi", "the script /none/block-iscsi cannot be run in this driver domain: No such file"),
        (b"block", "/script is 'block', which is no whole path"),
        (None, "/script is missing"),
    ],
)
def test_a_script_that_cannot_be_run_is_a_reason_too(own_domain: DriverDomain, path: bytes | None, reason: str) -> None:
    own_domain.start()
    own_domain.guest(5)
    disk = own_domain.disk(5, "x", script=path or b"/x")
    if path is None:
        own_domain.toolstack.remove(disk.backend + b"/script")
    own_domain.write(disk, state=INIT_WAIT)
    own_domain.becomes(disk, b"error")
    assert reason in own_domain.nodes(disk)["hotplug-error"].decode()
    own_domain.closed(disk)
    own_domain.gone(disk)


def test_an_installed_script_is_run_in_process_and_another_in_its_place_is_not(
    own_domain: DriverDomain, tmp_path: Path
) -> None:
    from vbdkit.cli.devd import own
    from vbdkit.cli.stub import Stub, place

    place(tmp_path / "block", Stub(b"#!/bin/false", tmp_path).text(), 0o755)
    path = os.fsencode(tmp_path / "block")
    assert own(path, b"/run/x", b"/run/y") is not None
    script(tmp_path / "block", "exit 0")
    assert own(path, b"/run/x", b"/run/y") is None
    assert own(b"/none/block", b"/run/x", b"/run/y") is not None
    assert own(b"block", b"/run/x", b"/run/y") is None
    assert own(b"/none/block-iscsi", b"/run/x", b"/run/y") is None


def test_it_ends_when_the_running_scripts_have(own_domain: DriverDomain, tmp_path: Path) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    path = script(tmp_path / "custom", f"echo $XENBUS_PATH >>{begun}; while ! [ -e {go} ]; do sleep 0.01; done")
    own_domain.start("--jobs", "1")
    for domid in (5, 6):
        own_domain.guest(domid)
        own_domain.waiting_disk(domid, "x", script=path)
    until(begun.exists, "the script runs")
    assert own_domain.process is not None
    own_domain.process.send_signal(signal.SIGTERM)
    own_domain.says("^stopping; waiting for 1 running scripts$")
    go.touch()
    assert own_domain.process.wait(30) == 0
    assert len(begun.read_text().splitlines()) == 1, "it starts no more"
    assert own_domain.said()[-1] == "stopped"
    assert any(" add: " in line for line in own_domain.said()), "what ends is told"


def test_asked_twice_it_ends_them(own_domain: DriverDomain, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    path = script(tmp_path / "custom", f"echo x >{begun}; exec sleep 60")
    own_domain.start()
    own_domain.guest(5)
    own_domain.waiting_disk(5, "x", script=path)
    until(begun.exists, "the script runs")
    assert own_domain.process is not None
    own_domain.process.send_signal(signal.SIGTERM)
    own_domain.says("^stopping")
    assert own_domain.stop() == 0
    own_domain.says("was ended by SIGTERM")


def test_in_domain_0_it_would_attach_twice(own_domain: DriverDomain) -> None:
    own_domain.toolstack.write(b"/local/domain/%d/domid" % DOMID, b"0")
    own_domain.start(ready=False)
    assert own_domain.process is not None
    assert own_domain.process.wait(30) == 1
    assert "this is domain 0" in own_domain.said()[-1]


def test_quotas_of_its_domain_are_no_end(tmp_path: Path) -> None:
    """Its nodes are used up, as with many disks: that is told, detaching works, and so does what comes after."""
    need_loop_devices()
    folder = tmp_path / "/".join(["n" * 250] * 8)
    folder.mkdir(parents=True)
    long = make_image(folder / "x")
    with EmbeddedStore(os.fsencode(tmp_path / "socket"), quota=Quota(nodes=20)) as embedded:
        embedded.listen(os.fsencode(tmp_path / "driver"), DOMID)
        from tests.stores import Store

        environ = {b"XENSTORED_PATH": os.fsencode(tmp_path / "driver")}
        domain = DriverDomain(tmp_path, Store("embedded", tmp_path / "socket"), environ)
        try:
            domain.start()
            domain.guest(5)
            first, second = domain.disk(5, long), domain.disk(5, tmp_path / "missing", 51728)
            domain.write(second, state=INIT_WAIT)
            line = domain.says("vbd-5-51728 add: not attached: .*missing.*could not be written to xenstore.*ENOSPC")
            assert line.count("could not be written") == 1
            domain.write(first, state=INIT_WAIT)
            domain.says("vbd-5-51712 add: not attached: .*ENOSPC")
            _nothing_left(domain)
            domain.closed(second)
            domain.gone(second)
            domain.closed(first)
            domain.gone(first)
            # With room for it, a reason as long as they get fits into a node.
            alone = domain.waiting_disk(5, str(long) + "/none")
            domain.becomes(alone, b"error")
            assert 200 < len(domain.nodes(alone)["hotplug-error"]) <= 1024
            assert domain.stop() == 0
        finally:
            domain.close()


def test_a_frontend_that_comes_back_is_no_new_disk(domain: DriverDomain) -> None:
    image = make_image(domain.folder / "disk.img")
    domain.start()
    domain.guest(5)
    disk = domain.waiting_disk(5, image)
    domain.becomes(disk, b"connected")
    before = domain.nodes(disk)
    for state in (XENBUS_CONNECTED, CLOSED, INIT_WAIT):
        domain.write(disk, state=state)
    other = domain.waiting_disk(5, make_image(domain.folder / "other.img"), 51728)
    domain.becomes(other, b"connected")
    domain.says("^vbd-5-51728 add: ")
    assert domain.nodes(disk) == before
    assert [line.split()[0] for line in domain.said() if line.startswith("vbd-")] == ["vbd-5-51712", "vbd-5-51728"]
    _release(domain, disk, other)


def test_a_disk_whose_nodes_the_toolstack_deletes_is_released(domain: DriverDomain) -> None:
    domain.start()
    domain.guest(5)
    disk = domain.waiting_disk(5, make_image(domain.folder / "disk.img"))
    domain.becomes(disk, b"connected")
    remove_disk(domain.toolstack, disk)
    until(lambda: domain.records() == [], "the record is gone")
    domain.says("^vbd-5-51712 remove: detached, ")
    _nothing_left(domain)
    again = domain.waiting_disk(5, domain.folder / "disk.img")
    domain.becomes(again, b"connected")
    # All of a guest's at once.
    domain.toolstack.remove(ROOT + b"/vbd")
    until(lambda: domain.records() == [], "the record is gone")
    _nothing_left(domain)


def test_a_driver_that_is_not_there_is_told(own_domain: DriverDomain) -> None:
    own_domain.start(before="import vbdkit.toolstack.nodes as n; n.INIT_TIMEOUT = 0.2")
    own_domain.guest(5)
    disk = own_domain.disk(5, "x")
    own_domain.says("^vbd-5-51712: its driver has not taken it up .* is the backend driver loaded")
    own_domain.write(disk, state=CLOSED, online=b"0")
    own_domain.gone(disk)
    assert sum("has not taken it up" in line for line in own_domain.said()) == 1


def test_many_come_and_go(domain: DriverDomain) -> None:
    count = 40
    images = [make_image(domain.folder / f"{number}.img", size=65536) for number in range(count)]
    domain.start()
    with LinuxDriver(domain.environ, DOMID):
        domain.guest(5)
        for _ in range(2):
            disks = [domain.disk(5, image, 51712 + 16 * number) for number, image in enumerate(images[:15])]
            disks += [domain.disk(5, image, (1 << 28) + (number << 8)) for number, image in enumerate(images[15:], 16)]
            states = [disk.backend + b"/state" for disk in disks]

            def connected(states: list[bytes] = states) -> bool:
                return set(domain.toolstack.read_many(states)) == {XENBUS_CONNECTED}

            until(connected, f"all connected: {domain.said()[-3:]}", 60)
            files = [backing_file(domain.nodes(disk)["node"]) for disk in disks]
            assert files == [str(image) for image in images]
            for disk in disks:
                close_disk(domain.toolstack, disk)
            for disk in disks:
                domain.gone(disk)
            assert domain.toolstack.list(ROOT) == []
        domain.says(" remove: ", 2 * count)
    _nothing_left(domain)
    assert len([line for line in domain.said() if line.startswith("vbd-")]) == 4 * count


# What its nodes say -> what is due, with and without an earlier try.
@pytest.mark.parametrize(
    ("seen", "due"),
    [
        (Seen(b"1", b"1", None, b"/s", None, None), (None, None)),
        (Seen(b"2", b"1", None, b"/s", None, None), ("add", None)),
        (Seen(b"2", b"1", b"error", b"/s", None, None), (None, None)),
        (Seen(b"2", b"1", b"connected", b"/s", b"7:1", b"/dev/loop1"), (None, None)),
        (Seen(b"2", b"1", None, b"/s", b"7:1", None), (None, None)),
        (Seen(b"2", b"1", None, b"/s", None, b"/run/tap.sock"), (None, None)),
        (Seen(b"4", b"1", b"connected", b"/s", b"7:1", None), (None, None)),
        (Seen(b"5", b"0", b"connected", b"/s", b"7:1", None), (None, None)),
        (Seen(b"6", b"1", b"connected", b"/s", b"7:1", None), (None, None)),
        (Seen(b"6", None, None, b"/s", None, None), (None, None)),
        (Seen(b"6", b"0", None, b"/s", None, None), ("remove", "remove")),
        (Seen(b"6", b"0", b"connected", None, b"7:1", None), ("remove", "remove")),
        (Seen(None, None, None, None, None, None), (None, None)),
    ],
)
def test_what_is_due(seen: Seen, due: tuple[str | None, str | None]) -> None:
    assert (seen.wants(False), seen.wants(True)) == due


def _nothing_left(domain: DriverDomain) -> None:
    """No record, and no loop device once whoever looks at them all has closed it."""
    assert domain.records() == []
    until(lambda: bound_loops(domain.folder) == [], "no loop device is left")


def _release(domain: DriverDomain, *disks: object) -> None:
    """Take disks back, so that no loop device is left."""
    from vbdkit.toolstack.nodes import Disk

    if domain.process is None:
        domain.start()
    for disk in disks:
        assert isinstance(disk, Disk)
        domain.closed(disk)
        domain.gone(disk)
    assert domain.stop() == 0
