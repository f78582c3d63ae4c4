"""The story that ``vbdkit try`` tells: attach, refusal, detach, and a look at what is left.

Plays the toolstack with vbdkit.toolstack, tells each step with the time that it took, and keeps count of what did
not go as it should. Makes nothing itself but nodes in its store and runs of the script.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vbdkit.cli.report import CommandError, Report
from vbdkit.platform.linux import loop
from vbdkit.protocol.failure import Failure
from vbdkit.protocol.failure import shown as printable
from vbdkit.protocol.invocation import ADD, REMOVE, build_invocation
from vbdkit.protocol.nodes import (
    BUSY,
    CLOSED,
    CONNECTED,
    HOTPLUG_ERROR,
    HOTPLUG_STATUS,
    INIT_WAIT,
    INITIALISING,
    MODE,
    ONLINE,
    OUTPUT,
    PARAMS,
    STATE,
    XENBUS_CONNECTED,
)
from vbdkit.toolstack.driver import SECTOR, ModelDriver, Opened
from vbdkit.toolstack.loops import loops_of
from vbdkit.toolstack.nodes import (
    DESTROY_TIMEOUT,
    INIT_TIMEOUT,
    Disk,
    Guest,
    add_disk,
    close_disk,
    create_guest,
    destroy_guest,
    remove_disk,
    wait_for_state,
)
from vbdkit.toolstack.script import ScriptRun, run_script
from vbdkit.xenstore.client import StoreError

if TYPE_CHECKING:
    from vbdkit.xenstore.client import Connection

_STATES = {b"1": "Initialising", b"2": "InitWait", b"4": "Connected", b"5": "Closing", b"6": "Closed"}
# What a script writes; and what of all nodes is worth a line of its own.
_SCRIPTS = (*OUTPUT, HOTPLUG_STATUS, HOTPLUG_ERROR)
_SHOWN = (*_SCRIPTS, STATE, ONLINE)
_GUESTS = (
    Guest(1, b"alice", b"5f6c1a2e-0001-4000-8000-000000000001"),
    Guest(2, b"bob", b"5f6c1a2e-0002-4000-8000-000000000002"),
)


class Scene:
    """One telling. ``problems`` are sentences about what did not go as it should."""

    def __init__(
        self,
        report: Report,
        system: str,
        image: Path,
        place: Path,
        store: "Connection",
        driver: ModelDriver,
        environ: Mapping[bytes, bytes],
    ) -> None:
        """``place`` holds the folders scripts, records and locks; the rest are running already."""
        self.problems: list[str] = []
        self.loops_before = loops_of(image)
        self._report = report
        self._system = system
        self._image = image
        self._place = place
        self._store = store
        self._driver = driver
        self._environ = environ
        self._script = os.fsencode(place / "scripts" / "block")
        mode = b"w" if os.access(image, os.W_OK) else b"r"
        # The second guest wants to write in any case: that is what must not be.
        self._disks = [
            Disk(guest.domid, os.fsencode(image), self._script, mode=wanted)
            for guest, wanted in zip(_GUESTS, (mode, b"w"), strict=True)
        ]
        self._attached: list[Disk] = []
        self._seen: dict[bytes, dict[bytes, bytes]] = {}

    def problem(self, sentence: str) -> None:
        """Note what did not go as it should."""
        self.problems.append(sentence)

    def play(self) -> None:
        """Tell the story. Raises Failure where it cannot go on."""
        first, second = self._disks
        for guest in _GUESTS:
            create_guest(self._store, guest)
        self._heading(1, f"Guest 1 gets the image as its disk {first.dev.decode()}")
        self._announce(first)
        self._attach(first)
        self._guest_reads(first)
        self._heading(2, "Guest 2 asks for the same image, to write to it")
        self._announce(second)
        self._refuse(second)
        self._let_go(second, opened=False)
        self._guest_reads(first)
        self._heading(3, "Guest 1 gives the disk back")
        self._let_go(first, opened=True)
        for guest in _GUESTS:
            destroy_guest(self._store, guest)

    def look_back(self) -> None:
        """Tell what is left, which is nothing."""
        self._heading(4, "What is left")
        nodes = [
            printable(path)
            for path in (b"/local/domain/0/backend/vbd", b"/local/domain/1", b"/local/domain/2", b"/libxl/1", b"/vm")
            if self._store.list_many([path])[0]
        ]
        for what, left in (
            ("loop devices", sorted(loops_of(self._image) - self.loops_before)),
            ("records", sorted(os.listdir(self._place / "records"))),
            ("locks", sorted(os.listdir(self._place / "locks"))),
            ("nodes", nodes),
            ("open devices", ["the driver's"] * self._driver.open_count()),
        ):
            found = " ".join(left)
            self._report.item(what, found or "none", "red" if left else "")
            if left:
                self.problem(f"{what} are left: {found}")

    def clean_up(self) -> None:
        """Detach what a story that broke off has left attached. Says nothing; each step is bounded."""
        for disk in reversed(self._attached):
            try:
                close_disk(self._store, disk)
                wait_for_state(self._store, disk, {CLOSED}, DESTROY_TIMEOUT)
            except (Failure, StoreError):
                pass  # the script works from its record, too
            try:
                self._run(disk, REMOVE)
            except (Failure, OSError, StoreError):
                pass
        for name in loops_of(self._image) - self.loops_before:
            number = int(name.removeprefix("/dev/loop"))
            bound = loop.query(number)
            if bound is not None:
                loop.release(number, bound.backing, bound.owner.decode("ascii", "replace"))

    def _announce(self, disk: Disk) -> None:
        """The toolstack writes the nodes, the driver gets ready for the script."""
        begun = time.perf_counter()
        add_disk(self._store, disk)
        self._step(begun, "toolstack", f"writes the nodes of {printable(disk.backend)}")
        # The driver may have been faster than this look; its step comes next.
        theirs = dict(self._driver.offers)
        nodes = {name: value for name, value in self._nodes(disk).items() if name not in theirs}
        seen = self._seen[disk.backend] = {**nodes, STATE: INITIALISING}
        for name in (PARAMS, MODE):
            self._node(name, seen[name])
        self._report.line(self._report.paint("dim", f"{'':25}... and {len(seen) - 2} more"))
        begun = time.perf_counter()
        wait_for_state(self._store, disk, {INIT_WAIT}, INIT_TIMEOUT)
        self._step(begun, "driver", "is ready for the script")
        self._changes(disk)

    def _attach(self, disk: Disk) -> None:
        """The script attaches, the driver opens. Raises CommandError where it is refused: then there is no story."""
        run = self._tell_run(disk, ADD)
        nodes = self._nodes(disk)
        if run.status != 0 or nodes.get(HOTPLUG_STATUS) != CONNECTED:
            said = run.error or run.output.strip().rpartition(b"\n")[2]
            raise CommandError(
                f"guest 1 did not get the image: {printable(said) or f'the script ended with status {run.status}'}"
            )
        # The driver was woken by the script's nodes: what is timed here is the rest of its way.
        begun = time.perf_counter()
        wait_for_state(self._store, disk, {XENBUS_CONNECTED}, INIT_TIMEOUT)
        opened = self._opened(disk)
        what = "file" if self._system == "freebsd" else "block device"
        how = "read-write" if opened.writable else "read-only"
        self._step(begun, "driver", f"has opened {what} {printable(opened.what)}, {how}, {opened.size >> 10} KiB")
        self._changes(disk)

    def _refuse(self, disk: Disk) -> None:
        run = self._tell_run(disk, ADD)
        nodes = self._nodes(disk)
        if run.status == 0 or self._driver.opened(disk.domid, disk.devid) is not None:
            self.problem("guest 2 got the image that guest 1 has")
        elif not nodes.get(HOTPLUG_ERROR):
            self.problem("guest 2 was refused without a reason")
        elif self._disks[0].mode == b"w" and nodes.get(HOTPLUG_STATUS) != BUSY:
            self.problem("guest 2 was refused for another reason than that guest 1 has the image")

    def _let_go(self, disk: Disk, opened: bool) -> None:
        begun = time.perf_counter()
        close_disk(self._store, disk)
        wait_for_state(self._store, disk, {CLOSED}, DESTROY_TIMEOUT)
        self._step(begun, "driver", "closes the device" if opened else "has nothing to close")
        self._changes(disk)
        run = self._tell_run(disk, REMOVE)
        if run.status != 0:
            self.problem(f"block remove for guest {disk.domid} ended with status {run.status}")
        else:
            self._attached.remove(disk)
        begun = time.perf_counter()
        remove_disk(self._store, disk)
        self._step(begun, "toolstack", "deletes the nodes")

    def _guest_reads(self, disk: Disk) -> None:
        begun = time.perf_counter()
        data = self._opened(disk).read(0, 8)
        self._step(begun, f"guest {disk.domid}", "reads 8 sectors through the driver; the first one begins")
        self._report.line(f"{'':25}{_excerpt(data)}")
        with self._image.open("rb") as file:
            if data != file.read(8 * SECTOR):
                self.problem("what the guest read is not what the image holds")

    def _opened(self, disk: Disk) -> Opened:
        opened = self._driver.opened(disk.domid, disk.devid)
        if opened is None:
            raise CommandError(f"the driver has no device open for guest {disk.domid}: {'; '.join(self._driver.log)}")
        return opened

    def _run(self, disk: Disk, command: str) -> ScriptRun:
        try:
            return run_script(
                self._store,
                self._system,
                self._script,
                command,
                disk.domid,
                disk.devid,
                environ=self._environ,
                process_group=0,  # Ctrl-C is for us; the script is ended or finished in order
            )
        except PermissionError as error:
            raise CommandError(
                f"scripts cannot be run from {printable(os.path.dirname(self._script))}: {error.strerror}",
                ["is it mounted noexec? name another place: TMPDIR=/var/tmp vbdkit try"],
            ) from error

    def _tell_run(self, disk: Disk, command: str) -> ScriptRun:
        argv, env = build_invocation(self._system, b"block", command, disk.kind, disk.domid, disk.devid)
        told = [f"XENBUS_PATH={printable(env[b'XENBUS_PATH'])}"] if env else []
        told += [printable(word) for word in argv]
        if command == ADD:
            self._attached.append(disk)
        run = self._run(disk, command)
        begun = time.perf_counter() - run.seconds
        ended = f"exit {run.status}" if run.status >= 0 else f"killed by signal {-run.status}"
        painted = self._report.paint("green" if run.status == 0 else "red", ended)
        self._step(begun, "script", f"{' '.join(told)}: {painted}")
        self._changes(disk, driver=False)
        return run

    def _nodes(self, disk: Disk) -> dict[bytes, bytes]:
        names = self._store.list_many([disk.backend])[0] or []
        values = self._store.read_many([disk.backend + b"/" + name for name in names])
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}

    def _changes(self, disk: Disk, driver: bool = True) -> None:
        """Show the nodes that appeared, changed or went since the last look at this disk.

        Without ``driver`` its own nodes are left for its own step: it runs beside the script.
        """
        now = self._nodes(disk)
        before = self._seen.get(disk.backend, {})
        if not driver and now:
            now = {name: value for name, value in now.items() if name in _SCRIPTS} | {
                name: value for name, value in before.items() if name not in _SCRIPTS
            }
        changed = [name for name in now if before.get(name) != now[name]]
        for name in changed:
            if name in _SHOWN:
                self._node(name, now[name])
        more = [name for name in changed if name not in _SHOWN]
        if more:
            self._report.line(self._report.paint("dim", f"{'':25}... and {len(more)} more that tell what it can do"))
        gone = [name for name in before if name not in now]
        if gone:
            names = ", ".join(map(printable, gone)) if now else "the whole backend directory"
            self._report.line(f"{'':25}gone: {names}")
        self._seen[disk.backend] = now

    def _node(self, name: bytes, value: bytes) -> None:
        meaning = f" ({_STATES[value]})" if name == STATE and value in _STATES else ""
        style = {CONNECTED: "green", BUSY: "red"}.get(value, "red" if name == HOTPLUG_ERROR else "")
        text = printable(value) + meaning
        told = self._report.paint(style, text) if style else text
        self._report.line(f"{'':25}{self._report.paint('cyan', printable(name))} = {told}")

    def _heading(self, number: int, text: str) -> None:
        self._report.line()
        self._report.line(self._report.paint("bold", f"{number}. {text}"))

    def _step(self, begun: float, who: str, what: str) -> None:
        took = (time.perf_counter() - begun) * 1000
        self._report.line(f"{self._report.paint('dim', f'{took:8.1f} ms')}  {who:<10}  {what}")


def _excerpt(data: bytes) -> str:
    """Show the start of a sector: as text where it is text, else in hex."""
    if not any(data):
        return "(nothing but zeros)"
    line = data[:64].split(b"\n")[0].split(b"\0")[0]
    if len(line) >= 4 and line.isascii() and line.decode("ascii").isprintable():
        return f'"{line.decode("ascii")}"'
    return data[:24].hex(" ")
