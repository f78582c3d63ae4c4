"""What block-lvm takes for granted of lvm2 and dmsetup. Standard library only.

The real ones are asked in the rig (lvm_cases.py), and the model of them that tests/datapaths use is held to the same.
"""

import re
from collections.abc import Callable, Iterator

# Runs a program and returns its exit status and all that it said.
Run = Callable[..., tuple[int, str]]
GROUP = "vg-0"
FIELDS = "vg_name,lv_name,vg_uuid,lv_uuid,lv_attr,lv_role,origin,pool_lv,lv_tags,lv_size"
REPORT = ("--noheadings", "--separator", "|", "--options")
LVS = ("lvs", "--units", "b", "--nosuffix", *REPORT, FIELDS)
TAG = "vbdkit:vbd-5-51712:a-host:1fc50e65-e20e-4709-8293-5f3b612e368e"
SNAPSHOT = ("lvcreate", "--yes", "--snapshot", "--setactivationskip", "n", "--addtag", TAG, "--permission")


class Asked:
    """Asks the programs, and keeps what they said for whoever wants to know why something is false."""

    def __init__(self, run: Run) -> None:
        """Take the way to run one."""
        self.run = run
        self.said = ""

    def __call__(self, *command: str) -> int:
        """Run one; its exit status."""
        status, self.said = self.run(*command)
        return status

    def fails(self, status: int, words: str, *command: str) -> bool:
        """Whether it ends with this status and says these words (a regular expression)."""
        return self(*command) == status and bool(re.search(words, self.said))

    def volume(self, name: str) -> dict[str, str]:
        """What lvs says of a volume, by field; all are dashes where it knows none."""
        if self(*LVS, f"{GROUP}/{name}"):
            return dict.fromkeys(FIELDS.split(","), "-" * 10)
        values = [value.strip() for value in self.said.strip().splitlines()[-1].split("|")]
        return dict(zip(FIELDS.split(","), values, strict=True))

    def uuid(self, name: str) -> str:
        """device-mapper's uuid of a volume."""
        volume = self.volume(name)
        return "LVM-" + (volume["vg_uuid"] + volume["lv_uuid"]).replace("-", "")

    def mapped(self, uuid: str) -> str:
        """What dmsetup says of an active device: name and open count; empty where it is not active."""
        status = self("dmsetup", "info", "--columns", *REPORT, "name,major,minor,open", "--uuid", uuid)
        if status == 1 and "Device does not exist" in self.said:
            return ""
        name, major, minor, opened = self.said.strip().split("|")
        return f"{name} {opened}" if major.isdigit() and minor.isdigit() else self.said


def facts(run: Run, mapper: str) -> Iterator[tuple[str, bool, str]]:
    """Yield (what, whether it is so, what was said last) for a group vg-0 as block-lvm's tests have it.

    64 MiB with the inactive volumes web and big (28 MiB), the thin pool ``pool`` and in it golden.
    """
    ask = Asked(run)

    def fact(what: str, so: bool) -> tuple[str, bool, str]:
        return what, so, ask.said

    web, golden, pool = ask.volume("web"), ask.volume("golden"), ask.volume("pool")
    yield fact(
        "lvs tells of a volume", (web["lv_attr"][:2], web["lv_attr"][4], web["lv_role"]) == ("-w", "-", "public")
    )
    yield fact("its size in bytes", web["lv_size"] == str(4 << 20))
    yield fact("of a thin one", (golden["lv_attr"][0], golden["pool_lv"], golden["origin"]) == ("V", "pool", ""))
    yield fact("a pool is private", (pool["lv_attr"][0], pool["lv_role"]) == ("t", "private"))
    hidden = ask.volume("pool_tdata")
    names = (hidden["lv_name"], hidden["lv_role"])
    yield fact("what is hidden has brackets", names == ("[pool_tdata]", "private,thin,pool,data"))
    yield fact("no such volume", ask.fails(5, f'^ *Failed to find logical volume "{GROUP}/no"', *LVS, f"{GROUP}/no"))
    yield fact("no such group", ask.fails(5, '^ *Volume group "no" not found', *LVS, "no/web"))
    yield fact("nor for vgs", ask.fails(5, '^ *Volume group "no" not found', "vgs", *REPORT, "vg_attr", "no"))
    yield fact("no such option", ask.fails(3, "nosuchoption", "lvchange", "-aey", "--nosuchoption", f"{GROUP}/web"))

    uuid = ask.uuid("web")
    change = ("lvchange", "--yes")
    yield fact("an inactive one has no device", ask.mapped(uuid) == "")
    for how in ("-asy", "-aey"):
        yield fact(f"lvchange {how}", ask(*change, how, "--ignoreactivationskip", f"{GROUP}/web") == 0)
        yield fact("it has a device, open nowhere", ask.mapped(uuid) == "vg--0-web 0")
    yield fact("lvs says so", ask.volume("web")["lv_attr"][4] == "a")
    with open(f"{mapper}/vg--0-web", "rb"):
        yield fact("lvchange -an of an open one", ask.fails(5, "in use", *change, "-an", f"{GROUP}/web"))
        yield fact("its open count", ask.mapped(uuid) == "vg--0-web 1")
    number = ask("dmsetup", "info", "--columns", *REPORT, "major,minor", "--uuid", uuid) or ask.said.strip()
    table = f"0 8192 linear {str(number).replace('|', ':')} 0"
    create = ("dmsetup", "create", "vbdkit-x", "--readonly", "--uuid", "VBDKIT-x", "--table", table)
    yield fact("a read-only view", ask(*create) == 0 and ask.mapped("VBDKIT-x") == "vbdkit-x 0")
    yield fact("it cannot be made twice", ask(*create) == 1)
    yield fact("what is below is in use", ask.fails(5, "is used by another", *change, "-an", f"{GROUP}/web"))
    remove = ("dmsetup", "remove", "--retry", "--uuid", "VBDKIT-x")
    yield fact("it goes by its uuid", ask(*remove) == 0 and ask.mapped("VBDKIT-x") == "" and ask(*remove) == 1)

    yield fact("a snapshot", ask(*SNAPSHOT, "rw", "--name", "s", "--size", "4M", f"{GROUP}/web") == 0)
    made = ask.volume("s")
    seen = (made["lv_attr"][:2], made["lv_attr"][4], made["origin"], made["lv_role"])
    yield fact("it is active as its origin is", seen == ("sw", "a", "web", "public,snapshot,thicksnapshot"))
    yield fact("it has the tag", made["lv_tags"] == TAG)
    yield fact("its origin is one now", ask.volume("web")["lv_attr"][0] == "o")
    again = (*SNAPSHOT, "rw", "--name", "s", "--size", "4M", f"{GROUP}/web")
    yield fact("its name is taken", ask.fails(5, '"s" already exists in volume group', *again))
    snapshot = ask.uuid("s")
    yield fact("it has a device", ask.mapped(snapshot) == "vg--0-s 0")
    yield fact("lvchange -an of the origin", ask(*change, "-an", f"{GROUP}/web") == 0)
    yield fact("takes both", ask.mapped(snapshot) == ask.mapped(uuid) == "")
    yield fact("lvremove", ask("lvremove", "--yes", "--force", f"{GROUP}/s") == 0)
    yield fact("and again", ask.fails(5, "Failed to find logical volume", "lvremove", "--yes", f"{GROUP}/s"))
    odd = (*SNAPSHOT, "r", "--name", "s", "--size", "4194000b", f"{GROUP}/big")
    yield fact("a size that is none in sectors", ask.fails(3, "not a multiple of 512", *odd))
    small = (*SNAPSHOT, "r", "--name", "s", "--size", "5s", f"{GROUP}/big")
    yield fact("one of an inactive origin, read-only", ask(*small) == 0 and ask.volume("s")["lv_attr"][1] == "r")
    yield fact("is inactive", ask.mapped(ask.uuid("s")) == "")
    ask("lvremove", "--yes", "--force", f"{GROUP}/s")
    most = (*SNAPSHOT, "rw", "--name", "s", "--size", "26M", f"{GROUP}/big")
    yield fact("no room", ask.fails(5, f'Volume group "{GROUP}" has insufficient free space', *most))
    thick = (*SNAPSHOT, "rw", "--name", "snapshot1", "--size", "4M", f"{GROUP}/web")
    yield fact("a reserved name", ask.fails(3, 'Names starting "snapshot" are reserved', *thick))
    yield fact("no size", ask(*SNAPSHOT, "rw", "--name", "s", f"{GROUP}/web") not in (0, None))

    yield fact("a thin snapshot", ask(*SNAPSHOT, "rw", "--name", "t", f"{GROUP}/golden") == 0)
    made = ask.volume("t")
    seen = (made["lv_attr"][:2], made["lv_attr"][4], made["origin"], made["pool_lv"])
    yield fact("it is active, and its origin need not be", seen == ("Vw", "a", "golden", "pool"))
    yield fact("as lvs says", ask.volume("golden")["lv_attr"][4] == "-")
    renamed = ask.uuid("t")
    yield fact("lvrename", ask("lvrename", GROUP, "t", "t-2") == 0)
    yield fact("an active one is renamed, too", ask.mapped(renamed) == "vg--0-t--2 0")
    yield fact("lvremove of an active one", ask("lvremove", "--yes", "--force", f"{GROUP}/t-2") == 0)

    yield fact("vgexport", ask("vgexport", GROUP) == 0)
    yield fact("of an exported one", ask.fails(5, f"Volume group {GROUP} is exported", *LVS, f"{GROUP}/web"))
    yield fact("vgs has an x", ask("vgs", *REPORT, "vg_attr", GROUP) == 0 and ask.said.strip()[2] == "x")
    yield fact("vgimport", ask("vgimport", GROUP) == 0)
    yield fact("nothing is active", not [line for line in _devices(ask) if line.startswith("vg--0")])


def _devices(ask: Asked) -> list[str]:
    ask("dmsetup", "ls")
    return ask.said.splitlines()
