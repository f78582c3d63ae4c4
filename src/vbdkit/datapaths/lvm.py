"""Logical volumes of LVM: active while a guest has them, and throw-away snapshots of them (``script=block-lvm``).

Facts from lvm2's own man pages (lvs, lvchange, lvcreate, lvmthin, lvmreport) and dmsetup(8). What is asked of LVM is
asked of its programs; whether a volume is active, and as which device, of dmsetup, which reads no metadata and is ten
times as quick.
"""

import posix
import stat

from vbdkit.engine.custom import Storage, verb
from vbdkit.engine.tool import ToolError
from vbdkit.platform.linux.kernel import read
from vbdkit.protocol.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from vbdkit.protocol.mode import Mode

# Where device-mapper has its devices' nodes.
FOLDER = "/dev/mapper/"
_FIELDS = "vg_name,lv_name,vg_uuid,lv_uuid,lv_attr,lv_role,origin,pool_lv,lv_tags,lv_size"
_REPORT = ("--noheadings", "--separator", "|", "--options")
_LVS = ("lvs", "--units", "b", "--nosuffix", *_REPORT, _FIELDS)
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+_.-").__contains__
_BOOT = b"/proc/sys/kernel/random/boot_id"
_TAG = "vbdkit"
_LVM2, _DMSETUP = "lvm2", "dmsetup"


class Volume:
    """A logical volume, as lvs describes it. ``uuid`` is device-mapper's, ``size`` in bytes."""

    __slots__ = ("attr", "group", "name", "origin", "pool", "role", "size", "tags", "uuid")

    def __init__(self, line: str) -> None:
        """Take a line with the values of ``_FIELDS``."""
        values = [value.strip() for value in line.split("|")]
        self.group, name, group_uuid, own_uuid, self.attr, self.role, self.origin, self.pool, tags, size = values
        self.tags = tags.split(",")
        self.size = int(size)
        self.name = name.strip("[]")  # around what is hidden
        self.uuid = "LVM-" + (group_uuid + own_uuid).replace("-", "")

    @property
    def path(self) -> str:
        """What LVM's programs call it."""
        return f"{self.group}/{self.name}"

    @property
    def thick_snapshot(self) -> bool:
        """Whether it is a snapshot that only comes and goes together with its origin."""
        return self.attr[0] in "sS"


class Mapped:
    """An active device of device-mapper."""

    __slots__ = ("name", "opened", "rdev")

    def __init__(self, line: str) -> None:
        """Take a line of dmsetup info."""
        self.name, major, minor, opened = line.strip().split("|")
        self.rdev = posix.makedev(int(major), int(minor))
        self.opened = int(opened)


class Lvm(Storage):
    """A logical volume of LVM, or a throw-away snapshot of one.

    vg0/web         the volume: active while a guest has it, as it was before after that; mode r gives the guest a
                    device that cannot be written. /dev/vg0/web and /dev/mapper/vg0-web mean the same.
    vg0/web@        a snapshot, made for this disk and removed with it, as thin as the volume is
    vg0/web@:2G     the same of a volume that is not thin: 2 GiB is room for what the guest writes (or :20%)
    vg0/web@test    the same with a name; without one it has the volume's and the disk's (web-vbd-5-51712)
    """

    name = "lvm"
    syntax = "VG/LV[@[SNAPSHOT][:SIZE]]"
    example = "vg0/web"
    tools = {
        **dict.fromkeys(("lvs", "vgs", "lvchange", "lvcreate", "lvremove"), _LVM2),
        _DMSETUP: _DMSETUP,
    }
    modules = ("dm-mod", "dm-snapshot", "dm-thin-pool")

    _known: "Volume | None" = None

    def parse(self, text: str) -> "dict[str, str]":
        """Return group and volume, whichever way they are written, and what is said of a snapshot."""
        volume, at_sign, more = text.partition("@")
        if volume.startswith("/dev/mapper/"):
            volume = "/".join(_names(volume.removeprefix("/dev/mapper/")))
        target = super().parse(volume.removeprefix("/dev/") + at_sign + more)
        if at_sign:
            snapshot, colon, size = more.partition(":")
            target["snapshot"] = snapshot or f"{target['lv']}-{self.vbd}"
            number, unit = (size[:-1], size[-1:]) if colon else ("1", "M")
            if not number.replace(".", "", 1).isdigit() or unit not in "bBsSkKmMgGtT%":
                raise Failure("{size} in the target {text} is no size such as 2G, 512M or 20%", size=size, text=text)
            target["size"] = size
        for field in ("vg", "lv", "snapshot"):
            name = target.get(field, "")
            if not all(_LETTERS(letter) for letter in name):
                raise Failure(
                    "{name} in the target {text} is no name in LVM: letters, digits and + _ . - are",
                    name=name,
                    text=text,
                )
        return target

    def identity(self, target: "dict[str, str]") -> str | None:
        """Return the volume's own number, which a renamed one keeps; a snapshot is for one disk anyway."""
        return None if "snapshot" in target else self._volume(target).uuid

    def attach(self, target: "dict[str, str]", mode: "Mode") -> str:
        """Have the volume active, or make the snapshot."""
        volume = self._volume(target)
        if "snapshot" in target:
            return self._snapshot(volume, target, mode)
        if mode.writable and volume.attr[1] != "w":
            raise Failure(
                "{volume} is read-only; give the disk read-only (mode r), or make it writable ("
                + ("lvchange --permission rw {volume})" if volume.attr[1] == "r" else "lvchange --refresh {volume})"),
                volume=volume.path,
            )
        self._activate(volume, mode.writable)
        device = self._node(volume.uuid, volume.path)
        return device if mode.writable or volume.attr[1] == "r" else self._view(device)

    def detach(self, made: "dict[str, str]") -> None:
        """Remove what was made for this disk, and let the volume be inactive if it was."""
        if "view" in made and self._mapped(_view_uuid(made["view"])) is not None:
            self.tool("dmsetup", "remove", "--retry", "--uuid", _view_uuid(made["view"]))
        if "tag" in made:
            for volume in self._tagged(made["vg"]):
                if made["tag"] in volume.tags:
                    self.tool("lvremove", "--yes", "--force", volume.path)
        if "activated" in made:
            self._deactivate(made["uuid"])

    @verb
    def cleanup(self, vg: str = "") -> str:
        """Remove the snapshots that disks had before this host was booted: cleanup [VG]."""
        old = [volume for volume in self._tagged(vg) if _is_of_earlier_boot(volume)]
        for volume in old:
            self.tool("lvremove", "--yes", "--force", volume.path)
        return "\n".join(f"{volume.path} removed" for volume in old) or "nothing to remove"

    # A volume.

    def _volume(self, target: "dict[str, str]") -> Volume:
        """Return the volume of a target. Raises Failure for one that no guest can have."""
        if self._known is None:
            self._known = self._look(target["vg"], target["lv"])
        return self._known

    def _look(self, group: str, name: str) -> Volume:
        try:
            volume = self._report(f"{group}/{name}")
        except ToolError as error:
            self._missing(group, name, error)
        if volume.role.startswith("private"):
            raise Failure(
                "{volume} is a part of LVM's own ({role}), which holds other volumes; give the guest one of those "
                "(lvs {group})",
                volume=volume.path,
                role="a pool" if volume.role == "private" else volume.role.replace(",", " "),
                group=group,
            )
        if volume.attr[4] in "IS":
            raise Failure(
                "{volume} is a snapshot that had no room left for changes, so what it holds is lost; remove it "
                "(lvremove {volume})",
                volume=volume.path,
            )
        return volume

    def _report(self, path: str) -> Volume:
        return Volume(self.tool(*_LVS, path))

    def _missing(self, group: str, name: str, error: ToolError) -> "NoReturn":
        """Raise the reason why lvs does not know a volume."""
        fields = {"group": group, "volume": f"{group}/{name}", "said": _words(error)}
        if error.exit_status in (126, 127):
            raise error
        if error.exit_status <= 0:
            raise Failure(
                "{volume}: {why}; another command of LVM's may hold the lock of {group} (lslocks shows which)",
                why=str(error),
                **fields,
            ) from None
        try:
            attr = self.tool("vgs", *_REPORT, "vg_attr", group).strip()
        except ToolError as second:
            fields["said"] = _words(second)
            raise Failure(
                "the volume group {group} cannot be had here: {said} (vgs shows the groups of this host; are the disks "
                "of {group} connected?)",
                **fields,
            ) from None
        if attr[2:3] == "x":
            raise Failure(
                "the volume group {group} is exported, for another host to take; import it first (vgimport {group})",
                **fields,
            ) from None
        raise Failure("{volume} cannot be had: {said} (lvs {group} shows what there is)", **fields) from None

    def _activate(self, volume: Volume, writable: bool) -> None:
        """Have a volume active, and note whether that is for the last disk of ours to take back."""
        if volume.thick_snapshot:
            volume = self._look(volume.group, volume.origin)
        with self.alone(volume.uuid):
            active = self._mapped(volume.uuid) is not None
            self.note(uuid=volume.uuid)
            if not active or any("activated" in other for other in self.others(uuid=volume.uuid)):
                self.note(activated="1")
            if active:
                return
            try:
                # In a group that several hosts share (lvmlockd) a writer has it alone; elsewhere both are the same.
                how = "-aey" if writable else "-asy"
                self.tool("lvchange", "--yes", how, "--ignoreactivationskip", volume.path)
            except ToolError as error:
                raise Failure(
                    "{volume} cannot be activated: {said} (lvs {group} shows its state)",
                    volume=volume.path,
                    said=_words(error),
                    group=volume.group,
                ) from None

    def _deactivate(self, uuid: str) -> None:
        """Let a volume go, if no other disk of ours has it and nobody here has it open."""
        with self.alone(uuid):
            if any("leaving" not in other for other in self.others(uuid=uuid)):
                return
            mapped = self._mapped(uuid)
            if mapped is None:
                return
            path = "/".join(_names(mapped.name))  # which it has by now: somebody may have renamed it
            for last in (False, False, True):
                try:
                    self.tool("lvchange", "--yes", "-an", path)
                except ToolError:
                    mapped = self._mapped(uuid)
                    if mapped is not None and mapped.opened:
                        self.log(f"{path} stays active: it is in use here")
                    elif mapped is not None and last:
                        raise
                    elif mapped is not None:
                        continue  # it was in use, and is no longer: others leave too
                return

    # A snapshot.

    def _snapshot(self, volume: Volume, target: "dict[str, str]", mode: "Mode") -> str:
        """Make a snapshot for this disk alone and return its device."""
        path = f"{volume.group}/{target['snapshot']}"
        thin, size = bool(volume.pool), target["size"]
        if not size and not thin:
            raise Failure(
                "{volume} is not thin, so its snapshot needs room of its own: say how much the guest may write, for "
                "example {volume}@:2G, or @:20% of the volume",
                volume=volume.path,
            )
        tag = _tag(self.vbd)
        command = ["lvcreate", "--yes", "--snapshot", "--setactivationskip", "n", "--addtag", tag]
        command += ["--permission", "rw" if mode.writable else "r", "--name", target["snapshot"]]
        if size:
            self._activate(volume, mode.writable)  # it would be made without a device otherwise
            if size.endswith("%"):  # which lvcreate itself would take for "at most"
                size = f"{-(-int(volume.size * float(size[:-1]) / 100) // 512)}s"
            command += ["--size", size]
        self.note(tag=tag)
        try:
            self.tool(*command, volume.path)
        except ToolError as error:
            self._not_made(path, volume, error, thin and not size)
            self.tool(*command, volume.path)
        made = self._report(path)
        return self._node(made.uuid, made.path)

    def _not_made(self, path: str, volume: Volume, error: ToolError, thin: bool) -> None:
        """Take away what an earlier boot left in a snapshot's place, or raise the reason why it is not made."""
        if error.exit_status <= 0 or error.exit_status in (126, 127):
            raise error
        try:
            there = self._report(path)
        except ToolError:
            raise Failure(
                "no snapshot of {volume} can be made: {said} ("
                + ("lvs {pool} shows how full its pool is)" if thin else "vgs {group} shows what room there is)"),
                volume=volume.path,
                said=_words(error),
                group=volume.group,
                pool=f"{volume.group}/{volume.pool}",
            ) from None
        if not _is_of_earlier_boot(there):
            owners = [tag.split(":")[1] for tag in there.tags if tag.startswith(_TAG + ":")]
            raise Failure(
                "no snapshot of {volume} can be made: {path} is there already{whose}; say another name behind the @, "
                "or remove that one (lvremove {path})",
                volume=volume.path,
                path=path,
                whose=f", made for {owners[0]}" if owners else "",
            ) from None
        self.log(f"{path} was left by an earlier boot of this host and goes")
        self.tool("lvremove", "--yes", "--force", path)

    def _tagged(self, group: str) -> "list[Volume]":
        """Return the snapshots that disks of ours have, or had: those of one group, if there is one of that name."""
        try:
            lines = self.tool(*_LVS, *([group] if group else []))
        except ToolError as error:
            if not group or error.exit_status <= 0:
                raise
            lines = self.tool(*_LVS)  # it may have been renamed
        volumes = [Volume(line) for line in lines.splitlines()]
        return [volume for volume in volumes if any(tag.startswith(_TAG + ":") for tag in volume.tags)]

    # Devices.

    def _view(self, device: str) -> str:
        """Put a read-only device on top of another: the one below may be written here, or become so (O8)."""
        fd = posix.open(device, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            sectors, below = posix.lseek(fd, 0, 2) // 512, posix.fstat(fd).st_rdev
        finally:
            posix.close(fd)
        self.note(view=self.vbd)
        table = f"0 {sectors} linear {posix.major(below)}:{posix.minor(below)} 0"
        uuid = _view_uuid(self.vbd)
        self.tool("dmsetup", "create", f"{_TAG}-{self.vbd}", "--readonly", "--uuid", uuid, "--table", table)
        return self._node(uuid, f"a read-only view of {device}")

    def _mapped(self, uuid: str) -> Mapped | None:
        """Return the active device of this uuid, if there is one."""
        fields = "name,major,minor,open"
        try:
            return Mapped(self.tool("dmsetup", "info", "--columns", *_REPORT, fields, "--uuid", uuid))
        except ToolError as error:
            if "does not exist" not in error.said:
                raise
            return None

    def _node(self, uuid: str, what: str) -> str:
        """Return the path of an active device, once its node is there. Raises Failure where it is not active."""
        mapped = self._mapped(uuid)
        if mapped is None:
            raise Failure(
                "{what} has been activated and is not active: does lvm.conf keep it from that "
                "(activation/volume_list)?",
                what=what,
            )
        path = FOLDER + mapped.name

        def there() -> bool:
            try:
                status = posix.stat(path)
            except OSError:
                return False
            return stat.S_ISBLK(status.st_mode) and status.st_rdev == mapped.rdev

        if not there():
            self.tool("dmsetup", "mknodes", mapped.name)  # for a host without udev
            self.wait(there, f"the node {path}", 10)
        return path


def _view_uuid(vbd: str) -> str:
    return "VBDKIT-" + vbd


def _names(mapped: str) -> "tuple[str, str]":
    """Return group and volume of a name below /dev/mapper, where ``-`` within them is doubled. Raises Failure."""
    parts = [part.replace("\0", "-") for part in mapped.replace("--", "\0").split("-")]
    if len(parts) != 2:
        raise Failure(
            "{path} is not the name of a logical volume in /dev/mapper (VG-LV); write VG/LV",
            path="/dev/mapper/" + mapped,
        )
    return parts[0], parts[1]


def _tag(vbd: str) -> str:
    """Return what a snapshot for this disk is tagged with: a volume outlives a boot, as records do not."""
    return f"{_TAG}:{vbd}:{_host()}:{read(_BOOT).decode('ascii').strip()}"


def _host() -> str:
    """Return this host's name, as far as a tag can hold it."""
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in posix.uname().nodename)


def _is_of_earlier_boot(volume: Volume) -> bool:
    """Whether a volume is a snapshot that a disk had before this host was booted: that disk is gone for certain."""
    boot = read(_BOOT).decode("ascii").strip()
    for tag in volume.tags:
        kind, _, rest = tag.partition(":")
        if kind == _TAG and rest.split(":")[1:2] == [_host()]:
            return rest.rpartition(":")[2] != boot
    return False


def _words(error: ToolError) -> str:
    """Return what a program said, without the warnings that it gives each time."""
    words = [line for line in error.said.split("; ") if not line.startswith("WARNING")]
    return "; ".join(words) or error.said or str(error)
