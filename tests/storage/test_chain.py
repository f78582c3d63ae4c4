"""The chain: what shares sectors with a target, by hand-made stacks and against a slow, obvious reference."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbdkit.storage.chain import (
    ABOVE,
    BELOW,
    BLOCK,
    HOST,
    ITSELF,
    WHOLE,
    Chain,
    Piece,
    block_identity,
    file_identity,
    run,
)
from vbdkit.storage.sharing import GUEST, User, meeting, verdict

Identity = tuple[int, int]


@dataclass
class Stack:
    """Things and the pieces between them."""

    pieces: list[Piece] = field(default_factory=list)

    def add(self, upper: Identity, lower: Identity, *where: int, hosted: bool = False) -> None:
        """One piece; ``where``: start and length in the lower thing, nothing for "somewhere"."""
        self.pieces.append(Piece(upper, lower, run(*where) if where else None, hosted))

    def below(self, identity: Identity) -> Iterable[Piece]:
        """As storage.chain.Stack says."""
        return [piece for piece in self.pieces if piece.upper == identity]

    def above(self, identity: Identity) -> Iterable[Piece]:
        """As storage.chain.Stack says."""
        return [piece for piece in self.pieces if piece.lower == identity]

    def places(self, target: Identity) -> dict[Identity, str]:
        """Where all things stand that are on the target's chain."""
        chain = Chain(b"/target")
        chain.add(target, b"/target", ITSELF)
        chain.trace(target, self)
        return {identity: link.place for identity, link in chain.links.items()}


DISK, OTHER, PART1, PART2, COPY, LOOP, LOOP2, DM, DM2, POOL = (block_identity(number) for number in range(0x801, 0x80B))
FILE, FILE2 = file_identity(0x802, 11), file_identity(0x802, 12)
MIB = 1 << 20


def partitioned() -> Stack:
    stack = Stack()
    stack.add(PART1, DISK, MIB, 8 * MIB)
    stack.add(PART2, DISK, 9 * MIB, 8 * MIB)
    return stack


def test_a_disk_has_its_partitions_above_it() -> None:
    assert partitioned().places(DISK) == {DISK: ITSELF, PART1: ABOVE, PART2: ABOVE}


def test_a_partition_has_its_disk_below_it_and_its_siblings_nowhere() -> None:
    assert partitioned().places(PART1) == {PART1: ITSELF, DISK: BELOW}


def test_a_second_mapping_of_the_same_sectors_is_on_the_chain_with_all_that_is_above_it() -> None:
    stack = partitioned()
    stack.add(COPY, DISK, 8 * MIB, 2 * MIB)  # the end of the first and the start of the second
    stack.add(LOOP, COPY, 0)
    assert stack.places(PART1) == {PART1: ITSELF, DISK: BELOW, COPY: ABOVE, LOOP: ABOVE}
    assert stack.places(PART2) == {PART2: ITSELF, DISK: BELOW, COPY: ABOVE, LOOP: ABOVE}


def test_of_an_overlapping_thing_only_the_parts_that_overlap_count() -> None:
    stack = partitioned()
    stack.add(LOOP, DISK, 0)  # all of the disk once more, with partitions of its own
    stack.add(DM, LOOP, MIB, MIB)
    stack.add(DM2, LOOP, 9 * MIB, MIB)
    assert stack.places(PART1) == {PART1: ITSELF, DISK: BELOW, LOOP: ABOVE, DM: ABOVE}


def test_a_partition_ends_before_the_byte_where_the_next_begins() -> None:
    stack = Stack()
    stack.add(PART1, DISK, 0, 512)
    stack.add(PART2, DISK, 512, 512)
    assert stack.places(PART1) == {PART1: ITSELF, DISK: BELOW}


def test_loop_devices_on_ranges_of_one_file() -> None:
    stack = Stack()
    stack.add(LOOP, FILE, 0, MIB)
    stack.add(LOOP2, FILE, MIB)
    assert stack.places(LOOP) == {LOOP: ITSELF, FILE: BELOW}
    assert stack.places(FILE) == {FILE: ITSELF, LOOP: ABOVE, LOOP2: ABOVE}


def test_two_files_of_one_file_system_do_not_meet_and_their_device_meets_both() -> None:
    stack = Stack()
    for file in (FILE, FILE2):
        stack.add(file, PART1, hosted=True)
    stack.add(LOOP, FILE, 0)
    stack.add(LOOP2, FILE2, 0)
    stack.add(PART1, DISK, MIB, MIB)
    assert stack.places(FILE) == {FILE: ITSELF, PART1: HOST, DISK: HOST, LOOP: ABOVE}
    assert stack.places(LOOP) == {LOOP: ITSELF, FILE: BELOW, PART1: HOST, DISK: HOST}
    above = {FILE: ABOVE, FILE2: ABOVE, LOOP: ABOVE, LOOP2: ABOVE}
    assert stack.places(PART1) == {PART1: ITSELF, DISK: BELOW} | above
    assert stack.places(DISK) == {DISK: ITSELF, PART1: ABOVE} | above


def test_what_overlaps_the_device_of_a_file_meets_the_file_but_belongs_to_the_file_system() -> None:
    stack = Stack()
    stack.add(FILE, PART1, hosted=True)
    stack.add(PART1, DISK, MIB, MIB)
    stack.add(COPY, DISK, 0, 2 * MIB)
    assert stack.places(FILE) == {FILE: ITSELF, PART1: HOST, DISK: HOST, COPY: HOST}


def test_thin_volumes_and_snapshots_are_siblings_and_their_pool_meets_all() -> None:
    stack = Stack()
    stack.add(POOL, DISK, MIB, 8 * MIB)
    stack.add(POOL, OTHER, 0, MIB)
    stack.add(DM, POOL)
    stack.add(DM2, POOL)
    assert stack.places(DM) == {DM: ITSELF, POOL: BELOW, DISK: BELOW, OTHER: BELOW}
    assert stack.places(POOL) == {POOL: ITSELF, DISK: BELOW, OTHER: BELOW, DM: ABOVE, DM2: ABOVE}
    assert stack.places(OTHER) == {OTHER: ITSELF, POOL: ABOVE, DM: ABOVE, DM2: ABOVE}


def test_volumes_of_a_mirror_over_two_disks() -> None:
    stack = Stack()
    for disk in (DISK, OTHER):
        stack.add(POOL, disk)  # an array: somewhere on each
    stack.add(PART1, POOL, 0, MIB)
    stack.add(PART2, POOL, MIB, MIB)
    assert stack.places(PART1) == {PART1: ITSELF, POOL: BELOW, DISK: BELOW, OTHER: BELOW}
    assert stack.places(DISK) == {DISK: ITSELF, POOL: ABOVE, PART1: ABOVE, PART2: ABOVE}


def test_paths_of_a_multipath_device_are_windows_on_it() -> None:
    stack = Stack()
    for path in (DISK, OTHER):
        stack.add(path, POOL, 0)
    stack.add(PART1, POOL, 0, MIB)
    stack.add(PART2, POOL, MIB, MIB)
    assert stack.places(DISK) == {DISK: ITSELF, POOL: BELOW, OTHER: ABOVE, PART1: ABOVE, PART2: ABOVE}
    assert stack.places(PART1) == {PART1: ITSELF, POOL: BELOW, DISK: ABOVE, OTHER: ABOVE}


def test_stripes_may_be_any_part_of_their_range() -> None:
    stack = Stack()
    stripes = ((0, 4 * MIB, MIB, 3 * MIB),)
    stack.pieces.append(Piece(DM, DISK, stripes))
    stack.pieces.append(Piece(DM, OTHER, stripes))
    stack.add(PART1, DM, 0, MIB)
    stack.add(DM2, DISK, 3 * MIB, MIB)
    stack.add(COPY, DISK, 2 * MIB, MIB)
    assert stack.places(PART1) == {PART1: ITSELF, DM: BELOW, DISK: BELOW, OTHER: BELOW, COPY: ABOVE}


def test_each_link_says_through_what_it_was_found() -> None:
    stack = partitioned()
    stack.add(FILE, PART1, hosted=True)
    chain = Chain(b"/target")
    chain.add(FILE, b"/target", ITSELF)
    chain.trace(FILE, stack)
    assert {identity: link.via for identity, link in chain.links.items()} == {FILE: None, PART1: FILE, DISK: PART1}


@pytest.mark.parametrize(("target", "meets"), [(DISK, True), (PART1, True), (FILE, False), (PART2, False)])
def test_a_file_that_nothing_led_to_is_a_piece_of_its_device(target: Identity, meets: bool) -> None:
    stack = partitioned()
    stack.add(FILE, PART1, hosted=True)
    chain = Chain(b"/target")
    chain.add(target, b"/target", ITSELF)
    chain.trace(target, stack)
    unheard_of = file_identity(PART1[1], 99)
    assert (meeting(chain, unheard_of) is not None) == meets


# A machine in a model: a thing is the list of its sectors, each a sector of some disk. What it is made of is drawn at
# random; the reference compares the sets.

SECTORS = 24


@dataclass
class Machine:
    """Things, where each of their bytes lies, and what a platform would tell of it.

    ``free``: for a device and a layer on it (a file system, or what else gives parts away), what that has left.
    """

    sectors: dict[Identity, list[tuple[int, int]]] = field(default_factory=dict)
    stack: Stack = field(default_factory=Stack)
    free: dict[tuple[Identity, Identity | None], list[int]] = field(default_factory=dict)

    def new(self, sectors: list[tuple[int, int]], device: Identity | None = None) -> Identity:
        """Add a thing: a block device, or a file of ``device``."""
        number = len(self.sectors) + 1
        identity = block_identity(0x700 + number) if device is None else file_identity(device[1], number)
        self.sectors[identity] = sectors
        return identity


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Up to three disks, and up to nine things made of what is there."""
    machine = Machine()
    for disk in range(draw(st.integers(1, 3))):
        machine.new([(disk, sector) for sector in range(SECTORS)])
    for _ in range(draw(st.integers(0, 9))):
        lower = draw(st.sampled_from(sorted(machine.sectors)))
        makers = [_range, _linear, _mirror] if lower[0] == BLOCK else [_range]
        if lower[0] == BLOCK:
            makers.append(_file)
        draw(st.sampled_from(makers))(machine, draw, lower)
    return machine


def _range(machine: Machine, draw: st.DrawFn, lower: Identity) -> None:
    """A partition, or a loop device with an offset."""
    held = machine.sectors[lower]
    if not held:
        return
    start = draw(st.integers(0, len(held) - 1))
    length = draw(st.integers(1, len(held) - start))
    upper = machine.new(held[start : start + length])
    machine.stack.add(upper, lower, start, length)


def _linear(machine: Machine, draw: st.DrawFn, lower: Identity) -> None:
    """Ranges of two devices one after the other."""
    other = draw(st.sampled_from([thing for thing in machine.sectors if thing[0] == BLOCK]))
    parts: dict[Identity, list[tuple[int, int, int, int]]] = {}
    sectors: list[tuple[int, int]] = []
    for part in (lower, other):
        held = machine.sectors[part]
        if not held:
            continue
        start = draw(st.integers(0, len(held) - 1))
        length = draw(st.integers(1, len(held) - start))
        taken = held[start : start + length]
        if set(taken) & set(sectors):
            continue  # no layer of Linux's, and no table that a person writes, holds one sector twice
        parts.setdefault(part, []).append((len(sectors), len(sectors) + length, start, start + length))
        sectors += taken
    upper = machine.new(sectors)
    for part, extents in parts.items():
        machine.stack.pieces.append(Piece(upper, part, tuple(extents)))


def _mirror(machine: Machine, draw: st.DrawFn, lower: Identity) -> None:
    """Something that lies somewhere on a device, and nothing else does: an array, a pool."""
    _somewhere(machine, draw, lower, None)


def _file(machine: Machine, draw: st.DrawFn, lower: Identity) -> None:
    """A file of a file system on a device."""
    _somewhere(machine, draw, lower, lower)


def _somewhere(machine: Machine, draw: st.DrawFn, lower: Identity, device: Identity | None) -> None:
    held = machine.sectors[lower]
    # The layer between gives no sector away twice.
    free = machine.free.setdefault((lower, device), list(range(len(held))))
    chosen = sorted(draw(st.sets(st.sampled_from(free), min_size=1))) if free else []
    machine.free[lower, device] = [at for at in free if at not in chosen]
    upper = machine.new([held[at] for at in chosen], device)
    machine.stack.add(upper, lower, hosted=device is not None)


def pairs(machine: Machine) -> Iterator[tuple[Identity, Identity, bool, bool]]:
    """Yield (target, used thing, whether they share a sector, what the chain says)."""
    for target in machine.sectors:
        chain = Chain(b"/target")
        chain.add(target, b"/target", ITSELF)
        chain.trace(target, machine.stack)
        for used in machine.sectors:
            share = bool(set(machine.sectors[target]) & set(machine.sectors[used]))
            other = User(GUEST, used, True, domid=9)
            yield target, used, share, verdict(chain, True, [other], frozenset()) is not None


@settings(max_examples=300, deadline=None)
@given(machines())
def test_whatever_shares_a_sector_is_in_conflict(machine: Machine) -> None:
    for target, used, share, conflict in pairs(machine):
        assert conflict or not share, (target, used)


def lies_on(machine: Machine, upper: Identity, lower: Identity) -> bool:
    """Whether one thing is carved from another, by any number of steps."""
    return any(p.lower == lower or lies_on(machine, p.lower, lower) for p in machine.stack.below(upper))


@settings(max_examples=300, deadline=None)
@given(machines())
def test_nothing_else_is_in_conflict_but_for_what_nobody_can_know(machine: Machine) -> None:
    for target, used, share, conflict in pairs(machine):
        if conflict and not share and target != used:
            # Only where one of them lies somewhere, which no platform can tell, on what the other has a share of.
            vague = [p for p in machine.stack.pieces if p.extents is None]
            assert any(
                p.upper in (target, used) or lies_on(machine, target, p.upper) or lies_on(machine, used, p.upper)
                for p in vague
            ), (target, used)


@settings(max_examples=300, deadline=None)
@given(machines())
def test_conflict_has_no_direction(machine: Machine) -> None:
    found = {(target, used): conflict for target, used, _, conflict in pairs(machine)}
    for (target, used), conflict in found.items():
        assert conflict == found[used, target], (target, used)


def test_whole_is_all_that_a_run_to_the_end_is() -> None:
    assert run(0) == tuple(span + span for span in WHOLE)
