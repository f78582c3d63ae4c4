"""What a case in dom0 works with: guests, disks, nodes, waiting, and verdicts. Standard library only.

Everything is seen with other people's tools (xl, xenstore-read, losetup, /sys), never with vbdkit's own code.
"""

import base64
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

XVDA = 51712  # devid of the first disk (xen-vbd-interface)
XVDB = 51728
MARKER = "written-by-dom0!"  # 16 bytes at the start of every disk
ANSWER = "WRITTEN-BY-GUEST"  # 16 bytes that the guest leaves at sector 8
# What a guest runs to read the marker and leave its answer on /dev/xvda; it waits a while for dom0 to look.
READ = "echo domU: read $(dd if=/dev/xvda bs=16 count=1 2>/dev/null)"
READ_AND_ANSWER = (
    f"{READ}; printf {ANSWER} | dd of=/dev/xvda bs=512 seek=8 conv=fsync 2>/dev/null && echo domU: wrote; sleep 3"
)
SCRIPTS = Path("/etc/xen/scripts")
LIBRARY = Path("/usr/lib/vbdkit")  # where dom0.py puts the wheel's packages
LOCK = Path("/run/xen-hotplug/block")  # S4: gone when nobody holds it
RECORDS = Path("/run/vbdkit")


class Verdicts:
    """Prints one line a check, "PASS case: what" or "FAIL case: what (detail)", and counts the failures."""

    def __init__(self, case: str):
        self.case = case
        self.failed = 0

    def __call__(self, what: str, passed: bool, detail: object = "") -> None:
        """`detail` is shown with a failure only."""
        self.failed += not passed
        tail = f" ({' | '.join(str(detail).split(chr(10)))})" if detail and not passed else ""
        print(f"{'PASS' if passed else 'FAIL'} {self.case}: {what}{tail}", flush=True)


def run(*command: str, limit: int = 100) -> tuple[int, str]:
    """Exit status and all output; 124 past `limit` seconds."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit
        )
    except subprocess.TimeoutExpired as late:
        return 124, (late.stdout or b"").decode(errors="replace")
    return done.returncode, done.stdout.decode(errors="replace").strip()


def wait(condition: Callable[[], bool], seconds: int = 30) -> bool:
    """Until `condition` holds; False when it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def node(path: str) -> str | None:
    """A xenstore node's value, None if there is none."""
    status, value = run("xenstore-read", path)
    return value if status == 0 else None


def backend(domid: int, devid: int, by: int = 0) -> str:
    """A disk's backend directory in the domain that serves it."""
    return f"/local/domain/{by}/backend/vbd/{domid}/{devid}"


def image(path: str, marker: str = MARKER, mib: int = 16) -> Path:
    """A sparse disk image that begins with `marker`."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as writer:
        writer.write(marker.encode())
        writer.truncate(mib << 20)
    return file


def answer(disk: Path) -> str:
    """What the guest left on the disk, read past the page cache's idea of it by opening anew."""
    with disk.open("rb") as reader:
        reader.seek(8 * 512)
        return reader.read(16).decode(errors="replace")


def loops() -> dict[str, str]:
    """Backing file by loop device, of those that are bound."""
    found = {}
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        found[f"/dev/{entry.parts[3]}"] = entry.read_text().strip()
    return found


@contextmanager
def loop_device(file: Path) -> Iterator[Path]:
    """A block device: the loop device that dom0 itself binds to `file`."""
    status, device = run("losetup", "-f", "--show", str(file))
    if status:
        raise RuntimeError(device)
    try:
        yield Path(device)
    finally:
        run("losetup", "-d", device)


def hex_number(device: Path) -> str:
    """major:minor as O3 wants it, from the device itself."""
    number = device.stat().st_rdev
    return f"{os.major(number):x}:{os.minor(number):x}"


class Guest:
    """A PV guest with a Debian kernel and busybox, which runs `script` (sh, some 400 bytes) and powers itself off.

    Without a script it idles. `disks` are xl disk specifications, `lines` more lines of xl configuration; with
    `kernel` False they must say what to boot.
    """

    def __init__(
        self, name: str, disks: list[str], script: str = "", lines: list[str] | None = None, kernel: bool = True
    ):
        self.name = name
        self.log = Path(f"/var/log/xen/console/guest-{name}.log")
        extra = "console=hvc0 quiet mitigations=off"
        if script:
            extra += " rig.sh=" + base64.b64encode(script.encode()).decode()
        config = [f'name = "{name}"', "memory = 128", "vcpus = 1", f"disk = {disks!r}", *(lines or [])]
        config += [f'on_{event} = "destroy"' for event in ("poweroff", "reboot", "crash")]
        if kernel:
            config += ['kernel = "/rigguest/vmlinux"', 'ramdisk = "/rigguest/initrd"', f'extra = "{extra}"']
        self.config = Path(f"/tmp/{name}.cfg")
        self.config.write_text("\n".join(config) + "\n")
        self.domid = -1
        self.heard = 0  # bytes of the log that an earlier guest of this name has said

    def create(self) -> tuple[int, str]:
        """xl create: its status and output."""
        self.heard = self.log.stat().st_size if self.log.exists() else 0
        status, output = run("xl", "create", "-q", str(self.config))
        if status == 0:
            self.learn_domid()
        return status, output

    def learn_domid(self) -> None:
        """The domid of the domain that has the name now (a restored guest has a new one)."""
        self.domid = int(run("xl", "domid", self.name)[1])

    def running(self) -> bool:
        return run("xl", "domid", self.name)[0] == 0

    def console(self) -> str:
        said = self.log.read_bytes()[self.heard :] if self.log.exists() else b""
        return said.replace(b"\r", b"").decode(errors="replace")

    def says(self, text: str, seconds: int = 60) -> bool:
        """Whether `text` comes on its console, waiting for it."""
        return wait(lambda: text in self.console(), seconds)

    def gone(self, seconds: int = 60) -> bool:
        """Whether the domain and its backends go, waiting for it."""
        path = f"/local/domain/0/backend/vbd/{self.domid}"
        return wait(lambda: not self.running() and node(path) is None, seconds)

    def destroy(self) -> None:
        run("xl", "destroy", self.name)
        self.gone()


class Neighbour(Guest):
    """A running guest that is given one disk after another as its xvdb, and says on its console how each begins."""

    def __init__(self, name: str, lines: list[str] | None = None):
        look = "n=$(dd if=/dev/xvdb bs=16 count=1 2>/dev/null || echo none)"
        super().__init__(
            name, [], f'while :; do {look}; [ "$n" = "$o" ] || echo "domU: xvdb $n"; o=$n; sleep 0.5; done', lines
        )
        # The script= of its disks; empty: block.
        self.script = ""

    def attach(self, disk: Path | str, access: str = "w", more: str = "") -> tuple[int, str]:
        """xl block-attach: its status and output. `more` is more of xl's disk specification, with a comma behind."""
        more += f"script={self.script}," if self.script else ""
        return run("xl", "block-attach", self.name, f"{more}format=raw,vdev=xvdb,access={access},target={disk}")

    def detach(self) -> tuple[int, str]:
        """xl block-detach, which libxl wants after a failed block-attach as well."""
        return run("xl", "block-detach", self.name, "xvdb")

    @contextmanager
    def having(
        self, check: Verdicts, disk: Path | str, access: str = "w", reads: bool = False, more: str = ""
    ) -> Iterator[None]:
        """Give it the disk for a while; with `reads` True, see that the guest reads MARKER at its start."""
        seen = self.console().count(f"xvdb {MARKER}")
        status, output = self.attach(disk, access, more)
        check(f"{self.name} gets {disk} ({access})", status == 0, output)
        if status == 0 and reads:
            found = wait(lambda: self.console().count(f"xvdb {MARKER}") > seen, 60)
            check(f"{self.name} reads it", found, self.console()[-300:])
        # A frontend that is still connecting makes the detach fail.
        wait(lambda: status != 0 or node(f"{backend(self.domid, XVDB)}/state") == "4")
        try:
            yield
        finally:
            status, output = self.detach()
            check(f"{self.name} gives {disk} back", status == 0, output)

    def may_have(self, check: Verdicts, disk: Path | str, access: str = "w", more: str = "") -> None:
        """See that it would be given the disk."""
        with self.having(check, disk, access, more=more):
            pass

    def may_not_have(self, check: Verdicts, disk: Path | str, *words: str, access: str = "w", more: str = "") -> None:
        """See that it is refused the disk with one sentence in which each of `words` (regular expressions) is found."""
        status, output = self.attach(disk, access, more)
        check(f"{self.name} is refused {disk} ({access})", status != 0, "it has it")
        if status:
            said = re.search(r"script: (.*)", output)
            sentence = said[1] if said else ""
            print(f"     xl says: {sentence}")
            missing = [word for word in words if not re.search(word, sentence)]
            check(f"{self.name} is told of {', '.join(words)}", bool(said) and not missing, output)
        # Until its frontend has seen the backend, libxl would wait in vain for it to close.
        frontend = f"/local/domain/{self.domid}/device/vbd/{XVDB}/state"
        wait(lambda: node(frontend) in ("3", "4"))
        status, output = self.detach()
        check(f"{self.name} is rid of it", status == 0, output)


def neighbours() -> list[Neighbour]:
    """The guests alice and bob: booted once, for all cases that only attach and detach."""
    for guest in _neighbours:
        if not guest.running():
            status, output = guest.create()
            if status or not guest.says("domU: xvdb none", 120):
                raise RuntimeError(f"{guest.name} does not come up: {output}")
    return _neighbours


_neighbours = [Neighbour("alice"), Neighbour("bob")] if Path("/proc/xen/privcmd").exists() else []


def leftovers(ours: set[str]) -> list[str]:
    """Whatever a disk may leave behind: loop devices other than `ours`, backend nodes, records, the lock file."""
    found = [f"{device} -> {file}" for device, file in loops().items() if device not in ours]
    for kind in ("vbd", "vbd3"):
        found += re.findall(
            rf"\S+/backend/{kind}/\d+/\d+(?= = )", run("xenstore-ls", "-f", "/local/domain/0/backend")[1]
        )
    # In .sh is the helper that waits for the next script in shell.
    found += [str(path) for path in sorted(RECORDS.rglob("*")) if path.is_file() and path.parent.name != ".sh"]
    found += [str(LOCK)] if LOCK.exists() else []
    return found


def nothing_left(check: Verdicts, ours: set[str] | None = None) -> None:
    """The clean-up is part of every case: I4, O7."""
    wait(lambda: not leftovers(ours or set()), 10)
    found = leftovers(ours or set())
    check("no loop device, backend node, record or lock is left", not found, found)


@contextmanager
def custom_script(check: Verdicts, name: str) -> Iterator[str]:
    """A script that `vbdkit install` has put in place, which the neighbours' disks get by `script=`."""
    command = ["env", f"PYTHONPATH={LIBRARY}", "python3", "-m", "vbdkit"]
    status, output = run(*command, "install", name, "--python", "/usr/bin/python3")
    check(f"vbdkit install {name}", status == 0, output)
    status, output = run(str(SCRIPTS / name), "--check-host")
    check("this host has what it needs", status == 0, output)
    for guest in neighbours():
        guest.script = name
    try:
        yield name
    finally:
        for guest in neighbours():
            guest.script = ""
        run(*command, "uninstall", name)


@contextmanager
def traced_script() -> Iterator[tuple[str, Path]]:
    """A script= that calls `block`, and the file to which it adds "add 3 51712" (verb, domid, devid) at each call."""
    log = Path("/tmp/calls")
    log.write_text("")
    script = SCRIPTS / "block-traced"
    script.write_text(
        "#!/bin/sh\n"
        'rest=${XENBUS_PATH#backend/vbd/}; echo "$1 ${rest%/*} ${rest#*/}" >>' + str(log) + "\n"
        f'{SCRIPTS}/block "$@"\n'
        "status=$?\n"
        f'[ "$1 $status" = "add 0" ] && [ -e {_HOLD} ] && touch {_HELD}\n'
        f"while [ -e {_HELD} ]; do sleep 0.2; done\n"
        "exit $status\n"
    )
    script.chmod(0o755)
    try:
        yield script.name, log
    finally:
        script.unlink()


_HOLD, _HELD = Path("/tmp/hold"), Path("/tmp/held")


@contextmanager
def held_after_add() -> Iterator[Path]:
    """A traced script that has added a disk does not end before this does; then the file that this gives is there."""
    _HOLD.touch()
    try:
        yield _HELD
    finally:
        _HOLD.unlink()
        _HELD.unlink(missing_ok=True)
