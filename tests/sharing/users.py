"""Who has a thing: another guest through the script, another backend's nodes, or somebody in this domain.

A user is a function of the machine and the thing that takes it into use, and returns what a refusal has to say of it
("a|b": either).
"""

import os
import sys
from collections.abc import Callable
from functools import partial

from tests.host import Result
from tests.images import take_back
from tests.need import need_program
from tests.sharing.machine import ALICE, Machine, run

User = Callable[[Machine, str], tuple[str, ...]]


class NotAttachedError(Exception):
    """The script under test refused even the first one, with this result."""

    def __init__(self, result: Result) -> None:
        super().__init__(result)
        self.result = result


def nobody(machine: Machine, thing: str) -> tuple[str, ...]:
    """It is there, but nobody uses it."""
    return ()


def both(one: User, other: User) -> User:
    """Take it into use in two ways; a refusal may name either."""

    def use(machine: Machine, thing: str) -> tuple[str, ...]:
        facts = [user(machine, thing) for user in (one, other)]
        return tuple("|".join(pair) for pair in zip(*facts, strict=False))

    return use


# Guests, attached by the script under test.


def guest(mode: str) -> User:
    """The first domain, which has it as its disk in this mode."""

    def attach(machine: Machine, thing: str) -> tuple[str, ...]:
        domid = machine.first
        result = machine.attach(domid, thing, mode)
        if result.status:
            raise NotAttachedError(result)
        # A driver domain may not read other domains' names.
        name = () if machine.host.own_domid else (machine.name(domid),)
        return (f"guest {domid}", *name, "xvda", "read-write" if "w" in mode else "read-only")

    return attach


def waiting_guest(machine: Machine, thing: str) -> tuple[str, ...]:
    """The toolstack has written its disk's nodes; its script has not published yet."""
    disk = machine.host.vbd(machine.first, thing)
    machine.later(disk.forget)
    return ()


def former_guest(machine: Machine, thing: str) -> tuple[str, ...]:
    """It has given the disk back."""
    guest("w")(machine, thing)
    machine.detach(machine.first)
    return ()


def dead_guest(machine: Machine, thing: str) -> tuple[str, ...]:
    """It had the disk; its domain is gone, its backend nodes are not."""
    guest("w")(machine, thing)
    machine.remove_domain(machine.first)
    return ()


def dead_and_living_guest(machine: Machine, thing: str) -> tuple[str, ...]:
    """As dead_guest; a guest that came later has the disk now."""
    dead_guest(machine, thing)
    machine.first = machine.domain(4, "carol")
    return guest("w")(machine, thing)


def migrating_guest(machine: Machine, thing: str) -> tuple[str, ...]:
    """Both halves of a VM that migrates on this host."""
    facts = guest("w")(machine, thing)
    assert machine.attach(machine.domain(8, "alice--incoming", vm="/vm/alice"), thing, "w").status == 0
    return facts[2:]  # either half may be named


def guest_in_a_crowd(machine: Machine, thing: str) -> tuple[str, ...]:
    """Among so many others that oxenstored lists them in one packet longer than the protocol allows."""
    facts = guest("w")(machine, thing)
    machine.crowd()
    return facts


def crowd(machine: Machine, thing: str) -> tuple[str, ...]:
    """As guest_in_a_crowd, but none of them has it."""
    machine.crowd()
    return ()


def guest_in_a_hidden_list(machine: Machine, thing: str) -> tuple[str, ...]:
    """The driver domain may read each disk's nodes, but not the list of them."""
    guest("w")(machine, thing)
    machine.hide_list()
    return ("EACCES",)


# Nodes, as other backends and other tools write them.


def number(kind: str = "vbd", spelling: str = "{:x}:{:x}", mode: str = "w", **more: bytes) -> User:
    """A device number in physical-device, in some spelling."""

    def write(machine: Machine, thing: str) -> tuple[str, ...]:
        rdev = os.stat(thing).st_rdev
        text = spelling.format(os.major(rdev), os.minor(rdev)).encode()
        return _nodes(machine, kind, physical_device=text, mode=mode.encode(), **more)

    return write


def path(kind: str = "vbd", mode: str = "w") -> User:
    """A name in physical-device-path, and no number (G2)."""
    return lambda machine, thing: _nodes(machine, kind, physical_device_path=os.fsencode(thing), mode=mode.encode())


def params(kind: str, prefix: str = "", mode: str = "w") -> User:
    """Nothing but params: a driver's name and the file's."""
    return lambda machine, thing: _nodes(machine, kind, params=os.fsencode(prefix + thing), mode=mode.encode())


def in_another_domain(machine: Machine, thing: str) -> tuple[str, ...]:
    """A driver domain gives out a device of its own that has the same number there."""
    rdev = os.stat(thing).st_rdev
    base = b"/local/domain/3/backend/vbd/%d/51712/" % machine.first
    with machine.host.connect() as store:
        store.write(base + b"physical-device", b"%x:%x" % (os.major(rdev), os.minor(rdev)))
        store.write(base + b"mode", b"w")
    return ()


def malformed(machine: Machine, thing: str) -> tuple[str, ...]:
    """A number that is none: whose disk that is cannot be known."""
    _nodes(machine, "vbd", physical_device=b"7:zz", mode=b"w")
    return (f"backend/vbd/{machine.first}/51712/physical-device",)


def _nodes(machine: Machine, kind: str, **nodes: bytes) -> tuple[str, ...]:
    machine.nodes(kind, machine.first, **nodes)
    return (f"guest {machine.first}", machine.name(machine.first), "xvda")


# This domain.


def mounted(options: str = "rw", point: str = "mnt") -> User:
    """It has a file system, which is mounted."""

    def mount(machine: Machine, thing: str) -> tuple[str, ...]:
        machine.file_system(thing)
        return ("mounted", machine.mount(thing, point, "-o", options))

    return mount


def mounted_in_part(machine: Machine, thing: str) -> tuple[str, ...]:
    """Only a folder of its file system is still mounted."""
    machine.file_system(thing)
    part = machine.path("part")
    os.mkdir(part)
    script = 'mount "$1" "$2" && mkdir "$2/folder" && mount --bind "$2/folder" "$3" && umount "$2"'
    point = machine.path("mnt")
    os.mkdir(point)
    run("sh", "-ec", script, "sh", thing, point, part)
    machine.later(partial(take_back, "umount", part))
    return ("mounted", part)


def mounted_to_read(machine: Machine, thing: str) -> tuple[str, ...]:
    """Its file system is writable, though nobody may write at the place where it is mounted."""
    facts = mounted()(machine, thing)
    run("mount", "-o", "remount,bind,ro", facts[1])
    return facts


def unmounted_lazily(machine: Machine, thing: str) -> tuple[str, ...]:
    """The mount is gone from all lists, but the file system lives on: a program has a file of it open."""
    machine.file_system(thing)
    point = machine.path("mnt")
    os.mkdir(point)
    run("mount", thing, point)
    machine.later(partial(os.close, os.open(point, os.O_RDONLY)))
    run("umount", "--lazy", point)
    return ("held",)


def mounted_already(point: str) -> User:
    """The storage came to be by a mount."""
    return lambda machine, thing: ("mounted", machine.path(point))


def mounted_elsewhere(options: str = "rw") -> User:
    """Its file system is mounted in another mount namespace only."""

    def mount(machine: Machine, thing: str) -> tuple[str, ...]:
        machine.file_system(thing)
        point = machine.path("elsewhere")
        os.mkdir(point)
        script = 'mount -o "$1" "$2" "$3" && echo ready && exec cat'
        pid = machine.start("unshare", "--mount", "sh", "-c", script, "sh", options, thing, point)
        return ("mounted", point, str(pid))

    return mount


def swap(machine: Machine, thing: str) -> tuple[str, ...]:
    """The kernel swaps to it."""
    run("mkswap", "-q", thing)
    run("swapon", "-p", "0", thing)
    machine.later(partial(take_back, "swapoff", thing))
    return (f"swapoff {thing}",)


def exclusive(machine: Machine, thing: str) -> tuple[str, ...]:
    """A program holds the device exclusively (O_EXCL)."""
    descriptor = os.open(thing, os.O_RDONLY | os.O_EXCL)
    machine.later(partial(os.close, descriptor))
    return (str(os.getpid()),)


def opened(machine: Machine, thing: str) -> tuple[str, ...]:
    """A program has it open, as a backup may, without any claim."""
    machine.later(partial(os.close, os.open(thing, os.O_RDWR)))
    return ()


def qemu(*options: str) -> User:
    """A program of QEMU's has the image open, and its locks on it."""

    def serve(machine: Machine, thing: str) -> tuple[str, ...]:
        socket, note = machine.path("nbd"), machine.path("nbd.pid")
        where = ("--fork", "--persistent", "--format=raw", f"--socket={socket}", f"--pid-file={note}")
        run(need_program("qemu-nbd"), *where, *options, thing)
        with open(note) as file:
            pid = int(file.read())
        machine.kill_later(pid)
        return (str(pid),)

    return serve


def device_model(mode: str, domid: int = ALICE) -> User:
    """A guest's QEMU, as libxl starts it, has the image open and its locks on it (a program that does as much)."""

    def serve(machine: Machine, thing: str) -> tuple[str, ...]:
        pid = machine.start(sys.executable, "-ISc", _DEVICE_MODEL, thing, mode, "-xen-domid", str(domid))
        return (f"guest {domid}|{pid}",)

    return serve


# As QEMU locks (block/file-posix.c): 100 is read, 101 write, 201 "nobody else writes"; all are read locks.
_DEVICE_MODEL = """
import fcntl, struct, sys
image = open(sys.argv[1], "r+b")
for byte in {"r": (100, 201), "w": (100, 101, 201)}[sys.argv[2]]:
    fcntl.fcntl(image, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_RDLCK, 0, byte, 1, 0))
print("ready", flush=True)
sys.stdin.read()
"""
