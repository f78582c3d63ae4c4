"""What differs between Linux, FreeBSD and NetBSD, behind one set of functions per system.

Each system is a package here that has:

``open_target(text, writable) -> Target``
    open what the user named (vbdkit.platform.target).
``plan(target) -> dict``, ``bind(target, writable, owner, deadline, note) -> Backing``, ``unbind(made, owner) -> str``
    make a plain file into what the driver opens, and take that back. ``made`` is text that a record keeps; ``note``
    adds to it before a step whose result bears no name of its own.
``owned() -> list[(owner, made)]``, ``made_device(made, owner, going) -> (path, identity) | None``
    all that is bound on this host by vbdkit, and the one that a record speaks of (``going``: also when it was released
    and only somebody has it open yet).
``bound_to(dev, ino) -> list[path]``
    the devices that anybody made from the file with these numbers.
``device(target, writable) -> Backing``
    the same for a device, which needs nothing made.
``chain(target) -> Chain``, ``local_users(chain, target, known) -> list[User]``, ``explain(chain)``
    what the target shares sectors with, who in this domain uses that (``known``: the guests that do, found before),
    and all the links' names for people.
``identify(path) -> identity | None``, ``published(value) -> identity | None``
    the identity behind a path, and behind another vbd's ``physical-device``
    (ValueError: malformed; None: that node says nothing here).
``driven(name) -> bool | None``
    whether the backend driver has a device open for the vbd of this name, whatever the store says (None: it does not
    tell).
``nodes(backing) -> list[(name, value)]``
    the nodes to publish, the one that wakes the driver last (O3-O6).
``MADE``, ``REMOVES_BACKEND``
    the node that names what a script made (None: nothing is ever made), and whether ``remove`` takes the whole
    backend directory away.
``configure(**settings)``
    settings of the installed script that only this system has.
``limit(deadline, end)``
    until when a run's questions to the system's programs have to be answered, and those that come later (undoing).
"""

import sys

from vbdkit.protocol.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

SYSTEMS = ("linux", "freebsd", "netbsd")


class Backing:
    """What a target became: ``device`` is the path to publish, ``rdev`` its number (None where there is none).

    ``made`` is what has to be undone, as a record keeps it; empty where nothing was made.
    """

    __slots__ = ("device", "made", "rdev")

    def __init__(self, device: bytes, rdev: int | None, made: "dict[str, str]") -> None:
        """Take the facts."""
        self.device = device
        self.rdev = rdev
        self.made = made


def current() -> str:
    """Return the name of the system that this process runs on, as SYSTEMS spells it."""
    return sys.platform.rstrip("0123456789")


def load(system: str) -> "ModuleType":
    """Return the package of one system. Raises Failure for one that vbdkit does not serve."""
    if system not in SYSTEMS:
        raise Failure(
            "vbdkit has no block script for {system}, only for {known}", system=system, known=" and ".join(SYSTEMS)
        )
    name = "vbdkit.platform." + system
    __import__(name)
    return sys.modules[name]
