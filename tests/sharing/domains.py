"""Which domains meet: each function makes them, and sets who has the thing first and who asks for it."""

from collections.abc import Callable

from tests.sharing.machine import ALICE, BOB, Machine

Domains = Callable[[Machine], object]
STUB, DAVE = 7, 9


def two_guests(machine: Machine) -> None:
    machine.domain(ALICE, "alice")
    machine.domain(BOB, "bob")


def one_guest(machine: Machine) -> None:
    """It asks for a second disk."""
    machine.second = machine.domain(ALICE, "alice")


def domain_0_and_guest(machine: Machine) -> None:
    """Domain 0 has a guest's disk for a moment, to boot it."""
    machine.first = machine.domain(0, "Domain-0", vm=None)
    machine.domain(BOB, "bob")


def local_migration(leaving: str, coming: str) -> Domains:
    """A guest that migrates on this host, with these vm paths."""

    def make(machine: Machine) -> None:
        machine.domain(ALICE, "alice", vm=leaving)
        machine.domain(BOB, "alice--incoming", vm=coming)

    return make


def a_third_in_a_migration(machine: Machine) -> None:
    machine.domain(ALICE, "alice", vm="/vm/alice")
    machine.second = machine.domain(DAVE, "dave")


def guest_and_stub(machine: Machine) -> None:
    machine.domain(ALICE, "alice")
    machine.second = machine.domain(STUB, "alice-dm", vm="/vm/alice-dm", target=str(ALICE))


def stub_and_guest(machine: Machine) -> None:
    guest_and_stub(machine)
    machine.first, machine.second = machine.second, machine.first


def guest_and_stub_of_another(machine: Machine) -> None:
    two_guests(machine)
    machine.second = machine.domain(STUB, "bob-dm", vm="/vm/bob-dm", target=str(BOB))


def stub_and_another_guest(machine: Machine) -> None:
    guest_and_stub(machine)
    machine.first, machine.second = STUB, machine.domain(BOB, "bob")


def two_without_vm(machine: Machine) -> None:
    """Both live, and neither has a vm node."""
    machine.domain(ALICE, "alice", vm=None)
    machine.domain(BOB, "bob", vm=None)


def one_without_vm(machine: Machine) -> None:
    """The one that has the thing has no vm node."""
    machine.domain(ALICE, "alice", vm=None)
    machine.domain(BOB, "bob")
