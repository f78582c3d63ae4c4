"""One case before one block script: what it decides, and what it leaves behind."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.host import Host, Result, bound_loops
from tests.sharing.machine import Machine
from tests.sharing.table import GRANTED, REFUSED, Case
from tests.sharing.users import NotAttachedError
from vbdkit.xenstore.embedded import EmbeddedStore

DRIVER_DOMAIN = 3
_OUTPUT = {"physical-device", "physical-device-path", "node"}


@dataclass
class Outcome:
    """``decision`` of the script, the ``facts`` that a refusal has to say, the ``result``, what it ``left`` if so."""

    decision: str
    facts: tuple[str, ...]
    result: Result
    left: list[str]

    @property
    def unsaid(self) -> list[str]:
        """The facts that are not in hotplug-error."""
        said = self.result.error
        return [fact for fact in self.facts if not any(word in said for word in fact.split("|"))]


def trial(case: Case, host: Host) -> Outcome:
    """Build the case on a host, let its script decide, take everything back."""
    with Machine(host) as machine:
        case.domains(machine)
        one, other, then = case.storage(machine)
        try:
            facts = case.user(machine, one)
        except NotAttachedError as refusal:
            return Outcome("first refused too", (), refusal.result, [])
        then()
        before = _traces(host)
        result = machine.attach(machine.second, other, case.mode, devid=51728)
        decision = _decision(result)
        left = _left(host, before) + sorted(_OUTPUT & set(result.nodes)) if decision == REFUSED else []
    return Outcome(decision, facts, result, left)


def _decision(result: Result) -> str:
    """What the toolstack and the driver make of it: both an exit status of 0 and a device, or neither."""
    given = "physical-device" in result.nodes
    if result.status == 0 and given and result.outcome == b"connected":
        return GRANTED
    return REFUSED if result.status and not given else "neither"


def _left(host: Host, before: set[str]) -> list[str]:
    """What came to stay.

    A loop device that is given back goes when its last opener closes it: any program may be just asking it something.
    """
    deadline = time.monotonic() + 5
    while (left := _traces(host) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return sorted(left)


def _traces(host: Host) -> set[str]:
    """Loop devices, records and locks."""
    found = set(bound_loops(host.directory))
    for folder in (host.run_dir, host.lock_dir):
        if folder.exists():
            found |= {os.fspath(path) for path in folder.iterdir()}
    return found


@contextmanager
def driver_domain(folder: Path, make: type[Host] = Host) -> Iterator[Host]:
    """A host whose scripts run in a driver domain: they may read their own tree, and no guest's (as with xl devd)."""
    with EmbeddedStore(os.fsencode(folder / "all")) as store:
        store.listen(os.fsencode(folder / "own"), DRIVER_DOMAIN)
        host = make(folder, folder / "all", own_domid=DRIVER_DOMAIN, script_socket=folder / "own")
        home = b"/local/domain/%d" % DRIVER_DOMAIN
        with host.connect() as connection:
            connection.write(home + b"/domid", b"%d" % DRIVER_DOMAIN)
            connection.set_permissions(home + b"/domid", [b"n0", b"r%d" % DRIVER_DOMAIN])
            connection.mkdir(home + b"/backend")
            connection.set_permissions(home + b"/backend", [b"n%d" % DRIVER_DOMAIN])
        yield host
