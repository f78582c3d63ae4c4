"""A case: `vbdkit devd` in a real driver domain, in the place of `xl devd`, and what xl in dom0 makes of it."""

from .domains import _driver as driver_domain_with
from .domains import _DriverDomain
from .harness import LIBRARY, MARKER, XVDB, Verdicts, image, neighbours, node, nothing_left, run, wait

_LOG = "/tmp/vbdkit-devd.log"


def _start(driver: _DriverDomain) -> None:
    """Start the daemon in the driver domain."""
    command = f"PYTHONPATH={LIBRARY} setsid python3 -m vbdkit devd </dev/null >>{_LOG} 2>&1 & echo $! >/run/devd.pid"
    driver.does(command)


def _stop(driver: _DriverDomain) -> str:
    """End it as an administrator does, and return what it said last."""
    wait_for_end = "kill $(cat /run/devd.pid); while [ -e /proc/$(cat /run/devd.pid) ]; do sleep 0.1; done"
    return driver.does(f"{wait_for_end}; tail -n 1 {_LOG}")[1]


def _log(driver: _DriverDomain) -> str:
    return driver.does(f"tail -n 12 {_LOG}")[1]


def in_place_of_xl_devd(check: Verdicts) -> None:
    """vbdkit devd serves a driver domain's disks: attach, refuse, detach, a restart, and xl's view of it all."""
    alice, bob = neighbours()
    served = image("/tmp/served.img")
    with driver_domain_with(served) as driver:
        check("the driver domain is up", driver.says("driver: xl devd runs", 200), driver.console()[-300:])
        status, output = driver.does("kill $(pidof xl) && ! sleep 1 | pidof xl")
        check("xl devd is ended", status == 0, output)
        status, output = driver.does(
            f"printf {MARKER} >/tmp/own.img; truncate -s 16M /tmp/own.img; ln /tmp/own.img /tmp/alias.img"
        )
        check("the driver domain makes an image of its own", status == 0, output)
        _start(driver)
        watches = wait(lambda: "watching" in _log(driver), 60)
        check("vbdkit devd watches", watches, _log(driver))
        backends = f"/local/domain/{driver.domid}/backend"
        for target, alias in (("/dev/xvdc", "/dev/xvdc"), ("/tmp/own.img", "/tmp/alias.img")):
            seen = alice.console().count(f"xvdb {MARKER}")
            check(f"alice gets {target}", driver.serves(alice, target) == "connected", _log(driver))
            reads = wait(lambda seen=seen: alice.console().count(f"xvdb {MARKER}") > seen, 60)  # type: ignore[misc]
            check("she reads it", reads, alice.console()[-300:])
            # Vdev  BE  handle state evt-ch ring-ref BE-path
            listed = [line.split() for line in run("xl", "block-list", alice.name)[1].splitlines()[1:]]
            ours = [line for line in listed if line[0] == str(XVDB)]
            from_there = [[line[1], line[3]] for line in ours] == [[str(driver.domid), "4"]]
            check("xl lists it as connected, from that domain", from_there, listed)
            check(f"bob does not get {alias}", driver.serves(bob, alias) == "busy", driver.said(bob))
            check("he is told why", f"guest {alice.domid}" in driver.said(bob), driver.said(bob))
            _detached(check, driver, bob.name, bob.domid)
            if target == "/tmp/own.img":
                check("it ends when asked", _stop(driver) == "stopped", _log(driver))
                attached = node(f"{backends}/vbd/{alice.domid}/{XVDB}/physical-device")
                _start(driver)
                wait(lambda: _log(driver).count("watching") > 1, 60)
                same = node(f"{backends}/vbd/{alice.domid}/{XVDB}/physical-device")
                check("started again it leaves her disk alone", same is not None and same == attached, _log(driver))
            _detached(check, driver, alice.name, alice.domid)
        check("no directory of a guest's is left", node(f"{backends}/vbd") is None, run("xenstore-ls", backends)[1])
        left = driver.does("{ find /run/vbdkit /run/xen-hotplug -type f; losetup -a; } 2>/dev/null")[1]
        check("nothing is left in the driver domain", not left, left)
        print("     vbdkit devd says:", *_log(driver).splitlines(), sep="\n     ")
    nothing_left(check)


def _detached(check: Verdicts, driver: _DriverDomain, name: str, domid: int) -> None:
    """Let xl detach xvdb: it waits until the driver domain has deleted the backend's directory."""
    path = f"/local/domain/{driver.domid}/backend/vbd/{domid}/{XVDB}"
    if node(f"{path}/hotplug-status") == "connected":
        wait(lambda: node(f"{path}/state") == "4")
    status, output = run("xl", "block-detach", name, "xvdb")
    check(f"xl detaches {name}'s disk without a complaint", status == 0 and "timed out" not in output, output)
    check("its nodes are deleted", node(f"{path}/params") is None, _log(driver))
