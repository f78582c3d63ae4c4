"""A disk's way into a guest and out again, as libxl goes it (libxl_device.c of Xen), and where it goes further.

Nodes, backend ready, script, and back: backend closed, script, nodes gone. All waits are watches with a limit. Where
libxl leaves things behind, this does not: a failed attach is taken back; a script that ends well without a device is
a failure; a driver domain's outcome is waited for; what could not be released is always said, and swallowed only when
forced.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vbdkit.engine.adopt import adopt
from vbdkit.protocol.failure import Failure, shown
from vbdkit.protocol.invocation import ADD, REMOVE
from vbdkit.protocol.nodes import (
    BUSY,
    CLOSED,
    CONNECTED,
    ERROR,
    HOTPLUG_ERROR,
    HOTPLUG_STATUS,
    INIT_WAIT,
    PHYSICAL_DEVICE,
    PHYSICAL_DEVICE_PATH,
    SCRIPT_KINDS,
    STATE,
    XENBUS_CONNECTED,
)
from vbdkit.toolstack.domains import name_of, own_domid
from vbdkit.toolstack.nodes import Disk, add_disk, close_disk, remove_disk, wait_for_state
from vbdkit.toolstack.script import ScriptRun, run_here, run_script
from vbdkit.toolstack.userdata import remembered
from vbdkit.toolstack.ways import DIRECT, PATH_ONLY, PUBLISH
from vbdkit.xenstore.client import StoreError

if TYPE_CHECKING:
    from vbdkit.toolstack.script import Follow
    from vbdkit.toolstack.settings import Settings
    from vbdkit.xenstore.client import Connection

# Seconds that the store may take for what comes beside the waits.
_PATIENCE = 20.0


class Unfinished(Failure):
    """A disk could not be attached or detached. ``way_out``: what else there is to say, a sentence each."""

    def __init__(self, failure: Failure, more: "list[str] | tuple[str, ...]" = ()) -> None:
        """Keep the failure's words."""
        super().__init__(failure.template, **failure.fields)
        self.way_out = tuple(more)


@dataclass(frozen=True)
class Attached:
    """An attached disk. ``device`` is what the driver opens (None: not known).

    ``run`` is the script's run, None where another domain ran it; ``notes`` are sentences about what is not as usual.
    """

    disk: Disk
    device: bytes | None
    run: ScriptRun | None
    notes: tuple[str, ...] = ()


class Toolstack:
    """The toolstack's half on one host: attach and detach disks, run scripts.

    ``store`` is a connection whose deadline is moved as needed; ``environ`` what scripts inherit (ours where None).
    """

    def __init__(self, store: "Connection", settings: "Settings", environ: Mapping[bytes, bytes] | None = None) -> None:
        """Raises StoreError."""
        self.store = store
        self.settings = settings
        self.environ = dict(os.environb if environ is None else environ)
        self.own_domid = own_domid(store)
        # Hears of a script while it runs: run_script's ``follow``.
        self.follow: Follow | None = None

    def attach(self, disk: Disk) -> Attached:
        """Give a guest a disk. Raises Failure or StoreError; then nothing is left of it, or it is said what."""
        limits = self.settings.limits
        self.allow(limits.ready)
        with remembered(self.store, disk, self.settings) as notes:
            add_disk(self.store, disk)
        begun = False
        try:
            self._wait_ready(disk)
            begun = True
            if disk.backend_domid != self.own_domid:
                return self._served_elsewhere(disk, notes)
            run = self.run(disk, ADD)
            if run.status != 0:
                raise self._reason(disk, ADD, run)
            return Attached(disk, self._published(disk), run, tuple(notes))
        except BaseException as error:
            problems = self._take_back(disk, begun)
            if problems and isinstance(error, Failure):
                raise Unfinished(error, [*getattr(error, "way_out", ()), *problems]) from error
            raise

    def detach(self, disk: Disk, force: bool = False) -> list[str]:
        """Take a disk from a guest. Raises Failure or StoreError where it does not let go, or its script fails.

        The nodes stay then, so that it can be tried again. With ``force`` all goes on to the end, and what did not
        work is returned as sentences.
        """
        if disk.kind not in SCRIPT_KINDS:
            raise Failure(
                "the disk {dev} of guest {domid} is served by {kind}, not by a block script; xl block-detach "
                "{domid} {dev} takes it away",
                dev=disk.dev,
                domid=disk.domid,
                kind=disk.kind,
            )
        problems: list[str] = []
        self._close(disk, force, problems)
        if disk.backend_domid == self.own_domid:
            run = self._remove(disk)
            if isinstance(run, Failure):
                if not force:
                    raise Unfinished(run, ["its nodes stay; try again, or with --force let go of it all the same"])
                problems.append(str(run))
            self.allow()
            remove_disk(self.store, disk)
        else:
            problems += self._let_go_elsewhere(disk, force)
        return problems

    def run(self, disk: Disk, command: str) -> ScriptRun:
        """Do a script's ADD or REMOVE by the disk's way, whatever state it is in. Raises StoreError."""
        if disk.way == DIRECT:
            return self._here(disk, command)
        if disk.way == PATH_ONLY and command == REMOVE:
            # Ours go first: once the script has released the device, its number may be another's.
            self.allow()
            self.store.remove_many([disk.backend + b"/" + name for name in (PHYSICAL_DEVICE, HOTPLUG_STATUS)])
        run = self.start_script(disk, command)
        if disk.way != PATH_ONLY or command == REMOVE or run.status != 0:
            return run
        ours = self._here(disk, ADD, publish_only=True)
        return ScriptRun(ours.status, False, run.seconds + ours.seconds, run.output + ours.output, ours.error)

    def start_script(self, disk: Disk, command: str) -> ScriptRun:
        """Run a disk's script in a process of its own, and nothing else: a path-only one's device stays unpublished.

        One that cannot be started is a run with status 127 and the reason as its output. Raises StoreError.
        """
        extra = PUBLISH if disk.way == PATH_ONLY else {}
        limit = self.settings.limits.script
        self.allow(limit)
        try:
            return run_script(
                self.store,
                self.settings.system,
                disk.script,
                command,
                disk.domid,
                disk.devid,
                kind=disk.kind,
                own_domid=self.own_domid,
                environ={**self.environ, **extra},
                timeout=limit,
                follow=self.follow,
            )
        except OSError as error:
            said = f"{shown(disk.script)} cannot be started: {error.strerror}"
            return ScriptRun(127, False, 0.0, said.encode("utf-8"), None)

    def _here(self, disk: Disk, command: str, publish_only: bool = False) -> ScriptRun:
        limit = self.settings.limits.script
        self.allow(limit)
        return run_here(
            self.store,
            self.settings.system,
            disk.script,
            command,
            disk.domid,
            disk.devid,
            kind=disk.kind,
            own_domid=self.own_domid,
            environ=self.environ,
            timeout=limit,
            run_dir=self.settings.run_dir,
            lock_dir=self.settings.lock_dir,
            add=adopt if publish_only else None,
        )

    def _wait_ready(self, disk: Disk) -> None:
        """Wait until a backend driver has taken the disk up. Raises Failure where none does."""
        try:
            wait_for_state(self.store, disk, {INIT_WAIT}, self.settings.limits.ready)
        except Failure as error:
            where = "this domain"
            if disk.backend_domid != self.own_domid:
                name = name_of(self.store, disk.backend_domid)
                where = f"domain {disk.backend_domid}" + (f" ({shown(name)}), and is that up" if name else "")
            raise Unfinished(
                error, [f"no backend driver has taken it up; is one loaded (Linux: xen-blkback) in {where}?"]
            ) from error

    def _reason(self, disk: Disk, command: str, run: ScriptRun) -> Failure:
        """Return why a script failed, in its own words where it has some."""
        if run.killed:
            return Failure(
                "{script} {command} was not done after {limit} s and was killed; what it started may live on",
                script=disk.script,
                command=command,
                limit=f"{self.settings.limits.script:g}",
            )
        if run.error:
            return Failure("{why}", why=run.error)
        last = run.output.strip().rpartition(b"\n")[2]
        ended = f"ended with status {run.status}" if run.status >= 0 else f"was ended by signal {-run.status}"
        return Failure(
            "{script} {command} {ended}" + (": {last}" if last else " and gave no reason"),
            script=disk.script,
            command=command,
            ended=ended,
            last=last,
        )

    def _published(self, disk: Disk) -> bytes | None:
        """Return the device that a script published. Raises Failure where it did not: guests wait for one."""
        self.allow()
        names = (PHYSICAL_DEVICE_PATH, PHYSICAL_DEVICE)
        path, number = self.store.read_many([disk.backend + b"/" + name for name in names])
        if not path and not number:
            raise Failure(
                "{script} add ended well, but wrote neither physical-device nor physical-device-path below {backend}",
                script=disk.script,
                backend=disk.backend,
            )
        return path or number

    def _served_elsewhere(self, disk: Disk, notes: list[str]) -> Attached:
        """Wait for what the domain that serves the disk makes of it. Raises Failure where that says that it failed."""
        limit = self.settings.limits.script
        self.allow(limit)
        end = time.monotonic() + limit
        names = (HOTPLUG_STATUS, HOTPLUG_ERROR, STATE, PHYSICAL_DEVICE_PATH)
        token = b"outcome-%d-%d" % (disk.domid, disk.devid)
        self.store.watch(disk.backend, token)
        try:
            while True:
                status, error, state, path = self.store.read_many([disk.backend + b"/" + name for name in names])
                if status in (BUSY, ERROR):
                    raise Failure("{why}", why=error or b"the script in domain %d failed" % disk.backend_domid)
                if status == CONNECTED or state == XENBUS_CONNECTED:
                    return Attached(disk, path, None, tuple(notes))
                if self.store.next_event(end) is None:
                    said = (
                        f"domain {disk.backend_domid}, which serves the disk, has not said within {limit:g} s whether"
                    )
                    return Attached(disk, path, None, (*notes, said + " it works"))
        finally:
            self.store.unwatch(disk.backend, token)

    def _take_back(self, disk: Disk, begun: bool) -> list[str]:
        """Undo a failed attach; return what could not be undone, as sentences. ``begun``: the backend was ready."""
        problems: list[str] = []
        try:
            ours = disk.backend_domid == self.own_domid
            if begun:
                self._close(disk, True, problems, frontend=True)
                run = self._remove(disk) if ours else None
                if isinstance(run, Failure):
                    problems.append(str(run))
            self.allow()
            if ours or not begun:
                remove_disk(self.store, disk)
            else:
                problems += self._let_go_elsewhere(disk, True)
        except (Failure, StoreError) as error:
            problems.append(str(error))
        return problems

    def _close(self, disk: Disk, force: bool, problems: list[str], frontend: bool = False) -> None:
        """Have the backend let go. ``frontend``: take that away at once, no guest uses the disk."""
        limit = self.settings.limits.close
        for forced in (frontend, True):
            self.allow(limit)
            try:
                self._wait_closed(disk, forced, time.monotonic() + limit)
            except Failure as error:
                if forced:
                    problems.append(f"{shown(disk.backend)} was not closed within {limit:g} s, with its frontend gone")
                    return
                if not force:
                    raise Unfinished(
                        Failure(
                            "guest {domid} did not give its disk {dev} back within {limit} s; is it in use there?",
                            domid=disk.domid,
                            dev=disk.dev,
                            limit=f"{limit:g}",
                        ),
                        ["try again when it is not, or take it away all the same with --force"],
                    ) from error
                problems.append(f"guest {disk.domid} did not give its disk {shown(disk.dev)} back within {limit:g} s")
            else:
                return

    def _wait_closed(self, disk: Disk, forced: bool, end: float) -> None:
        """Ask the backend to close, until it has or is gone. Raises Failure at ``end`` (time.monotonic()).

        Asked while it was still connecting, a backend overwrites that with state 4: then it is asked again, which libxl
        does not do.
        """
        state = XENBUS_CONNECTED
        while state == XENBUS_CONNECTED and close_disk(self.store, disk, forced):
            left = max(end - time.monotonic(), 0.0)
            state = wait_for_state(self.store, disk, {CLOSED, XENBUS_CONNECTED}, left, gone=True)

    def _remove(self, disk: Disk) -> ScriptRun | Failure:
        run = self.run(disk, REMOVE)
        return run if run.status == 0 else self._reason(disk, REMOVE, run)

    def _let_go_elsewhere(self, disk: Disk, force: bool) -> list[str]:
        """Remove our nodes and wait until the domain that serves the disk has removed its own."""
        limit = self.settings.limits.close
        self.allow(limit)
        remove_disk(self.store, disk, backend=False)
        try:
            wait_for_state(self.store, disk, (), limit, gone=True)
        except Failure:
            said = f"domain {disk.backend_domid} has not taken {shown(disk.backend)} away within {limit:g} s"
            if not force:
                return [said + ", and has it perhaps still; it stays"]
            remove_disk(self.store, disk)
            return [said + "; it is removed now"]
        return []

    def allow(self, seconds: float = 0.0) -> None:
        """Let the store's connection last for a wait of so many seconds, and what comes with it."""
        self.store.deadline = time.monotonic() + seconds + _PATIENCE
