"""A model of lvm2's and device-mapper's programs, for a kernel without device-mapper: volumes are loop devices.

Real executables, which check their arguments and answer in the words and with the exit statuses of lvm2 2.03.16;
tests/xenrig/lvm_facts.py is what both are held to, the model here and the real ones in the rig. State is a file; a
volume's data is a file beside it, a loop device while the volume is active. What tests may ask for, as files in the
model's folder:

    hold-before-PROGRAM, hold-after-PROGRAM   the next run of it makes that held-PROGRAM and waits until that is gone
    no-nodes                                  nobody makes nodes but `dmsetup mknodes`, as on a host without udev
    not-activated                             activation does nothing and succeeds (lvm.conf's volume_list)
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import stat
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

PROGRAMS = ("lvs", "vgs", "lvchange", "lvcreate", "lvremove", "lvrename", "vgexport", "vgimport", "dmsetup")
EXTENT = 4 << 20
_UNITS = {"b": 1, "s": 512, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_WARNING = "  WARNING: Sum of all thin volume sizes exceeds the size of thin pools."
_ROOT = Path(__file__).parents[2]

Group = dict[str, Any]
Volume = dict[str, Any]


class Model:
    """The volumes of one host. A context manager: the state is its own from entry to exit."""

    def __init__(self, folder: Path) -> None:
        """Make the programs in ``folder/bin``, if they are not there."""
        self.folder = folder
        self.mapper = folder / "mapper"
        self.state: dict[str, Any] = {"groups": {}, "mapped": {}}
        if not self.mapper.exists():
            self.mapper.mkdir(parents=True)
            (folder / "bin").mkdir()
            for name in PROGRAMS:
                program = folder / "bin" / name
                program.write_text(
                    f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(_ROOT)!r})\n"
                    f"from tests.datapaths.lvm_model import main\nmain({str(folder)!r}, {name!r})\n"
                )
                program.chmod(0o755)

    def __enter__(self) -> "Model":
        """Take LVM's lock and read the state."""
        self._lock = (self.folder / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if (self.folder / "state").exists():
            self.state = json.loads((self.folder / "state").read_text())
        return self

    def __exit__(self, *_: object) -> None:
        """Write the state."""
        (self.folder / "state").write_text(json.dumps(self.state))
        self._lock.close()

    # What an administrator does.

    def group(self, name: str, mib: int = 64) -> None:
        """vgcreate."""
        self.state["groups"][name] = {"uuid": _uuid(), "size": mib << 20, "exported": False, "volumes": {}}

    def volume(self, path: str, text: bytes = b"", size: int = 4 << 20, **more: Any) -> Volume:
        """lvcreate of an inactive volume that begins with ``text``; ``pool``: the thin pool that it is in."""
        group, _, name = path.partition("/")
        made: Volume = {
            "uuid": _uuid(),
            "kind": "-",
            "permission": "w",
            "origin": "",
            "pool": "",
            "tags": [],
            "size": size,
        }
        made |= {"cow": 0, "role": "public", "hidden": False, "state": "", "device": ""} | more
        if made["pool"]:
            made["kind"] = "V"
        data = self.folder / made["uuid"]
        data.write_bytes(text)
        os.truncate(data, size)
        self.state["groups"][group]["volumes"][name] = made
        return made

    def get(self, path: str) -> Volume:
        """One volume."""
        group, _, name = path.partition("/")
        found: Volume = self.state["groups"][group]["volumes"][name]
        return found

    def rename(self, path: str, name: str) -> None:
        """lvrename: an active one's device changes its name, too."""
        group, _, old = path.partition("/")
        volumes = self.state["groups"][group]["volumes"]
        volume = volumes[name] = volumes.pop(old)
        (self.mapper / _mapped_name(group, old)).unlink(missing_ok=True)
        if volume["device"]:
            self._node(_mapped_name(group, name), volume["device"])

    def data(self, path: str) -> bytes:
        """The first bytes of a volume."""
        uuid: str = self.get(path)["uuid"]
        with (self.folder / uuid).open("rb") as file:
            return file.read(64)

    # Devices.

    def activate(self, group: str, name: str) -> None:
        """Give a volume a device, and with it what comes and goes with it: its origin, or its thick snapshots."""
        volumes = self.state["groups"][group]["volumes"]
        origin = volumes[name]["origin"] if volumes[name]["kind"] == "s" else name
        for other, volume in volumes.items():
            together = other == origin or (volume["kind"] == "s" and volume["origin"] == origin)
            if together and not volume["device"] and not (self.folder / "not-activated").exists():
                flags = ["--read-only"] if volume["permission"] == "r" else []
                volume["device"] = _losetup("--find", "--show", *flags, str(self.folder / volume["uuid"]))
                self._node(_mapped_name(group, other), volume["device"])

    def deactivate(self, group: str, name: str) -> None:
        """Take the device away from a volume, and from what comes and goes with it."""
        volumes = self.state["groups"][group]["volumes"]
        together = [name, *(n for n, v in volumes.items() if v["kind"] == "s" and v["origin"] == name)]
        for each in together:
            self.refuse_in_use(group, each)
        for each in together:
            if volumes[each]["device"]:
                (self.mapper / _mapped_name(group, each)).unlink(missing_ok=True)
                _losetup("--detach", volumes[each]["device"])
                volumes[each]["device"] = ""

    def refuse_in_use(self, group: str, name: str) -> None:
        """End the program where somebody has the volume's device."""
        device = self.state["groups"][group]["volumes"][name]["device"]
        if device and any(mapped["below"] == device for mapped in self.state["mapped"].values()):
            fail(5, f"  Logical volume {group}/{name} is used by another device.")
        if device and stays_open(device):
            fail(5, f"  Logical volume {group}/{name} in use.")

    def by_uuid(self, uuid: str) -> tuple[str, str] | None:
        """Name and device of what is active by this uuid of device-mapper's."""
        for name, mapped in self.state["mapped"].items():
            if mapped["uuid"] == uuid:
                return name, mapped["device"]
        for group, facts in self.state["groups"].items():
            for name, volume in facts["volumes"].items():
                if volume["device"] and uuid == "LVM-" + (facts["uuid"] + volume["uuid"]).replace("-", ""):
                    return _mapped_name(group, name), volume["device"]
        return None

    def active(self) -> list[str]:
        """What dmsetup ls shows."""
        found = list(self.state["mapped"])
        for group, facts in self.state["groups"].items():
            found += [_mapped_name(group, name) for name, volume in facts["volumes"].items() if volume["device"]]
        return sorted(found)

    def _node(self, name: str, device: str, always: bool = False) -> None:
        if always or not (self.folder / "no-nodes").exists():
            (self.mapper / name).unlink(missing_ok=True)
            os.mknod(self.mapper / name, 0o060600, os.stat(device).st_rdev)

    def room(self, group: Group) -> int:
        """The free extents of a group. Thin volumes take theirs from the pool."""
        taken = sum(v["cow"] or v["size"] for v in group["volumes"].values() if not (v["pool"] and v["kind"] == "V"))
        return int((group["size"] - taken) // EXTENT)


def fail(status: int, *lines: str) -> NoReturn:
    """End a program that fails."""
    print(*lines, sep="\n", file=sys.stderr)
    raise SystemExit(status)


def opened(device: str) -> int:
    """How many descriptors of processes are open on a device."""
    rdev, found = os.stat(device).st_rdev, 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{fd}")
                    found += stat.S_ISBLK(status.st_mode) and status.st_rdev == rdev
    return found


def stays_open(device: str) -> bool:
    """Whether somebody has a device open for longer than a look at it takes; lvm2 gives that 5 seconds."""
    end = time.monotonic() + 1
    while opened(device):
        if time.monotonic() > end:
            return True
        time.sleep(0.02)
    return False


def _uuid() -> str:
    return "-".join(os.urandom(4).hex()[:count] for count in (6, 4, 4, 4, 4, 4, 6))


def _mapped_name(group: str, name: str) -> str:
    return f"{group.replace('-', '--')}-{name.replace('-', '--')}"


def _losetup(*arguments: str) -> str:
    import subprocess  # here, since most programs do without: there are a thousand runs of them

    return subprocess.run(["losetup", *arguments], check=True, capture_output=True, text=True).stdout.strip()


class _Parser(argparse.ArgumentParser):
    """lvm2 ends with 3 where the command line is wrong."""

    def error(self, message: str) -> NoReturn:
        fail(3, f"  {self.prog}: {message}", f"  Run `{self.prog} --help' for more information.")


def main(folder: str, program: str) -> None:
    """Be one of the programs."""
    model = Model(Path(folder))
    step = f"{program}-{sys.argv[1]}" if program == "dmsetup" else program
    hold(model, "before", step)
    try:
        with model:
            globals()[program](model, sys.argv[1:])
    finally:
        hold(model, "after", step)


def hold(model: Model, when: str, program: str) -> None:
    """Wait as long as a test wants that, once."""
    here = model.folder / f"held-{program}"
    try:
        (model.folder / f"hold-{when}-{program}").rename(here)
    except FileNotFoundError:
        return
    end = time.monotonic() + 60
    while here.exists() and time.monotonic() < end:
        time.sleep(0.01)


def _find(model: Model, path: str) -> tuple[str, str, Volume]:
    group, _, name = path.partition("/")
    facts = _group(model, group)
    if name not in facts["volumes"]:
        fail(5, f'  Failed to find logical volume "{path}"')
    return group, name, facts["volumes"][name]


def _group(model: Model, name: str, exported: bool = False) -> Group:
    found: Group | None = model.state["groups"].get(name)
    if found is None:
        fail(5, f'  Volume group "{name}" not found', f"  Cannot process volume group {name}")
    if found["exported"] and not exported:
        fail(5, f"  Volume group {name} is exported")
    return found


def _report(program: str, words: list[str], units: bool = False) -> argparse.Namespace:
    parser = _Parser(prog=program)
    if units:
        parser.add_argument("--units", choices=["b"], required=True)
        parser.add_argument("--nosuffix", action="store_true", required=True)
    parser.add_argument("--noheadings", action="store_true", required=True)
    parser.add_argument("--separator", required=True)
    parser.add_argument("-o", "--options", required=True)
    parser.add_argument("what", nargs="?", default="")
    return parser.parse_args(words)


def lvs(model: Model, words: list[str]) -> None:
    """Report volumes: one, those of a group, or all; hidden ones only by name."""
    options = _report("lvs", words, units=True)
    if "/" in options.what:
        wanted = [_find(model, options.what)]
    else:
        names = [options.what] if options.what else [n for n, g in model.state["groups"].items() if not g["exported"]]
        wanted = [
            (group, name, volume)
            for group in names
            for name, volume in sorted(_group(model, group)["volumes"].items())
            if not volume["hidden"]
        ]
    for group, name, volume in wanted:
        values = {
            "vg_name": group,
            "lv_name": f"[{name}]" if volume["hidden"] else name,
            "vg_uuid": model.state["groups"][group]["uuid"],
            "lv_uuid": volume["uuid"],
            "lv_attr": _attr(model, group, name, volume),
            "lv_role": volume["role"],
            "origin": volume["origin"],
            "pool_lv": volume["pool"],
            "lv_tags": ",".join(volume["tags"]),
            "lv_size": str(volume["cow"] or volume["size"]),
        }
        _print(options, values)


def vgs(model: Model, words: list[str]) -> None:
    """Report one group."""
    options = _report("vgs", words)
    group = _group(model, options.what, exported=True)
    _print(options, {"vg_attr": "wzx-n-" if group["exported"] else "wz--n-"})


def _print(options: argparse.Namespace, values: dict[str, str]) -> None:
    unknown = set(options.options.split(",")) - set(values)
    if unknown:
        fail(3, f"  Unrecognised field: {unknown.pop()}")
    print("  " + options.separator.join(values[field] for field in options.options.split(",")))


def _attr(model: Model, group: str, name: str, volume: Volume) -> str:
    snapshots = [v for v in model.state["groups"][group]["volumes"].values() if v["origin"] == name]
    kind = "o" if any(v["kind"] == "s" for v in snapshots) else volume["kind"]
    state = volume["state"] or ("a" if volume["device"] else "-")
    layer = "s" if "s" in (volume["kind"], kind) or kind == "o" else "t" if volume["pool"] else "-"
    return f"{kind}{volume['permission']}i-{state}-{layer}---"


def lvchange(model: Model, words: list[str]) -> None:
    """Activate or deactivate."""
    parser = _Parser(prog="lvchange")
    parser.add_argument("-y", "--yes", action="store_true")
    parser.add_argument("-a", "--activate", choices=("y", "n", "ey", "sy"), required=True)
    parser.add_argument("-K", "--ignoreactivationskip", action="store_true")
    parser.add_argument("path")
    options = parser.parse_args(words)
    group, name, volume = _find(model, options.path)
    if options.activate == "n":
        if volume["kind"] == "s" and not options.yes:
            fail(5, f"  Logical volume {options.path} not changed.")
        model.deactivate(group, volume["origin"] if volume["kind"] == "s" else name)
    else:
        if volume["state"] == "p":
            fail(5, f"  Refusing activation of partial LV {options.path}.  Use '--activationmode partial' to override.")
        model.activate(group, name)


def lvcreate(model: Model, words: list[str]) -> None:
    """Make a snapshot."""
    parser = _Parser(prog="lvcreate")
    parser.add_argument("-y", "--yes", action="store_true")
    parser.add_argument("-s", "--snapshot", action="store_true", required=True)
    parser.add_argument("-k", "--setactivationskip", choices=("y", "n"))
    parser.add_argument("--addtag", action="append", default=[])
    parser.add_argument("-p", "--permission", choices=("r", "rw"), default="rw")
    parser.add_argument("-n", "--name", required=True)
    parser.add_argument("-L", "--size")
    parser.add_argument("origin")
    options = parser.parse_args(words)
    if options.name.startswith(("snapshot", "pvmove")):
        fail(3, '  Names starting "snapshot" are reserved. Please choose a different LV name.')
    if any(not re.fullmatch(r"[A-Za-z0-9_+.\-/=!:&#]+", tag) for tag in options.addtag):
        fail(3, "  Invalid tag")
    group, name, origin = _find(model, options.origin)
    facts = model.state["groups"][group]
    if options.name in facts["volumes"]:
        fail(5, f'  Logical Volume "{options.name}" already exists in volume group "{group}"')
    thick = bool(options.size)
    cow = 0
    if thick:
        size = re.fullmatch(r"([\d.]+)([bskmgt]?)", options.size.lower())
        if size is None:
            fail(3, "  Invalid argument for --size")
        cow = int(float(size[1]) * _UNITS[size[2] or "m"])
        if cow % 512:
            fail(3, "  Size is not a multiple of 512.", f"  Invalid argument for --size: {options.size}")
        cow = min(-(-cow // EXTENT) * EXTENT, origin["size"] + EXTENT)
        if cow // EXTENT > model.room(facts):
            fail(
                5,
                f'  Volume group "{group}" has insufficient free space ({model.room(facts)} extents): '
                f"{cow // EXTENT} required.",
            )
    elif not origin["pool"]:
        fail(3, "  Please specify either size or extents with snapshots.")
    elif facts["volumes"][origin["pool"]]["state"] == "full":
        fail(
            5,
            f"  Cannot create new thin volume, free space in thin pool {group}/{origin['pool']} reached threshold.",
        )
    more = {"cow": cow, "kind": "s"} if thick else {"pool": origin["pool"]}
    made = model.volume(f"{group}/{options.name}", size=origin["size"], origin=name, **more)
    made |= {"tags": options.addtag, "permission": options.permission[0] if options.permission == "r" else "w"}
    made["role"] = f"public,snapshot,{'thick' if thick else 'thin'}snapshot"
    (model.folder / made["uuid"]).write_bytes((model.folder / origin["uuid"]).read_bytes())
    # A thick snapshot is as active as its origin is.
    if origin["device"] if thick else options.setactivationskip == "n":
        model.activate(group, options.name)
    print(_WARNING, file=sys.stderr)
    print(f'  Logical volume "{options.name}" created.')


def lvremove(model: Model, words: list[str]) -> None:
    """Remove a volume."""
    parser = _Parser(prog="lvremove")
    parser.add_argument("-y", "--yes", action="store_true", required=True)
    parser.add_argument("-f", "--force", action="store_true")
    parser.add_argument("path")
    options = parser.parse_args(words)
    group, name, volume = _find(model, options.path)
    model.refuse_in_use(group, name)
    if volume["device"]:
        (model.mapper / _mapped_name(group, name)).unlink(missing_ok=True)
        _losetup("--detach", volume["device"])
    del model.state["groups"][group]["volumes"][name]
    (model.folder / volume["uuid"]).unlink()
    print(f'  Logical volume "{name}" successfully removed.')


def lvrename(model: Model, words: list[str]) -> None:
    """Rename a volume."""
    group, old, new = words
    _find(model, f"{group}/{old}")
    model.rename(f"{group}/{old}", new)


def vgexport(model: Model, words: list[str]) -> None:
    """Give a group away."""
    _group(model, words[0])["exported"] = True


def vgimport(model: Model, words: list[str]) -> None:
    """Take a group."""
    _group(model, words[0], exported=True)["exported"] = False


def dmsetup(model: Model, words: list[str]) -> None:
    """info, create, remove, mknodes, ls."""
    parser = _Parser(prog="dmsetup")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info")
    info.add_argument("-c", "-C", "--columns", action="store_true", required=True)
    info.add_argument("--noheadings", action="store_true", required=True)
    info.add_argument("--separator", required=True)
    info.add_argument("-o", "--options", required=True)
    info.add_argument("-u", "--uuid", required=True)
    create = commands.add_parser("create")
    create.add_argument("name")
    create.add_argument("-r", "--readonly", action="store_true")
    create.add_argument("-u", "--uuid", required=True)
    create.add_argument("--table", required=True)
    remove = commands.add_parser("remove")
    remove.add_argument("--retry", action="store_true")
    remove.add_argument("-u", "--uuid", required=True)
    mknodes = commands.add_parser("mknodes")
    mknodes.add_argument("name")
    commands.add_parser("ls")
    options = parser.parse_args(words)
    mapped = model.state["mapped"]
    found = model.by_uuid(options.uuid) if "uuid" in options else None
    if options.command == "info":
        if found is None:
            fail(1, "Device does not exist.", "Command failed.")
        number = os.stat(found[1]).st_rdev
        below = [each for each in mapped.values() if each["below"] == found[1]]
        values = {"name": found[0], "major": os.major(number), "minor": os.minor(number)}
        values["open"] = opened(found[1]) + len(below)
        print(options.separator.join(str(values[field]) for field in options.options.split(",")))
    elif options.command == "create":
        if options.name in mapped or found is not None:
            fail(
                1,
                f"device-mapper: create ioctl on {options.name} {options.uuid} failed: Device or resource busy",
                "Command failed.",
            )
        start, length, kind, device, offset = options.table.split()
        if (start, kind, offset) != ("0", "linear", "0"):
            fail(1, "device-mapper: reload ioctl failed: Invalid argument", "Command failed.")
        lower = "/dev/" + os.path.realpath(f"/sys/dev/block/{device}").rpartition("/")[2]
        flags = ["--read-only"] if options.readonly else []
        top = _losetup("--find", "--show", *flags, "--sizelimit", str(int(length) * 512), lower)
        mapped[options.name] = {"uuid": options.uuid, "device": top, "below": lower}
        model._node(options.name, top)
    elif options.command == "remove":
        if found is None:
            fail(1, "Device does not exist.", "Command failed.")
        if stays_open(found[1]) if options.retry else opened(found[1]):
            fail(1, f"device-mapper: remove ioctl on {found[0]} failed: Device or resource busy", "Command failed.")
        _losetup("--detach", found[1])
        (model.mapper / found[0]).unlink(missing_ok=True)
        del mapped[found[0]]
    elif options.command == "mknodes":
        for group, facts in model.state["groups"].items():
            for name, volume in facts["volumes"].items():
                if volume["device"] and _mapped_name(group, name) == options.name:
                    model._node(options.name, volume["device"], always=True)
        if options.name in mapped:
            model._node(options.name, mapped[options.name]["device"], always=True)
    else:
        print("\n".join(model.active()) or "No devices found")
