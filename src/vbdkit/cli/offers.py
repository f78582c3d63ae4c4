"""The custom scripts that ``vbdkit install NAME`` can put in place: vbdkit's own, and those of other packages.

Another package offers one by an entry point of the group ``vbdkit.scripts``: its name is the script's (``block-foo``),
its value ``module:Class``, the class being a subclass of ``vbdkit.custom.Storage``. Nothing is imported here.
"""

import re
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from vbdkit import __version__
from vbdkit.cli import stub
from vbdkit.cli.report import CommandError, shown

GROUP = "vbdkit.scripts"
# vbdkit's own.
OWN = {
    "block-lvm": "vbdkit.datapaths.lvm:Lvm",
    "block-nbd": "vbdkit.datapaths.nbd:Nbd",
}
NAME = re.compile(r"block-[A-Za-z0-9][A-Za-z0-9_+-]*")


@dataclass(frozen=True)
class Offer:
    """One script that can be installed. ``storage`` is ``module:Class``; ``source`` the package and its version.

    ``folder`` is where another package's modules lie. ``trouble`` says why it cannot be installed, where it cannot.
    """

    name: str
    storage: str
    source: str
    folder: Path | None = None
    trouble: str = ""

    @property
    def top(self) -> Path:
        """The package, or the module, that the class is in."""
        assert self.folder is not None
        path = self.folder / self.storage.partition(":")[0].partition(".")[0]
        return path if path.is_dir() else path.with_suffix(".py")


def offers() -> list[Offer]:
    """Return all that installed packages offer, by name."""
    found = {
        name: Offer(name, storage, f"vbdkit {__version__}")
        for name, storage in OWN.items()
        if find_spec(storage.partition(":")[0]) is not None
    }
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        assert point.dist is not None
        source = f"{point.dist.name} {point.dist.version}"
        offer = Offer(point.name, point.value, source, Path(str(point.dist.locate_file(""))).resolve())
        if not NAME.fullmatch(point.name):
            offer = replace(offer, trouble="its name is none of a custom block script, such as block-foo")
        elif point.name in OWN:
            offer = replace(offer, trouble="vbdkit's own script has this name")
        elif not re.fullmatch(r"\w+(\.\w+)*:\w+", point.value):
            offer = replace(offer, trouble=f"its entry point is no module:Class but {shown(point.value)}")
        elif point.name in found:
            before = found[point.name]
            found[point.name] = replace(
                before, trouble=f"{before.source} and {source} both offer a script of this name"
            )
            continue
        found.setdefault(offer.name, offer)
    return sorted(found.values(), key=lambda offer: offer.name)


def find(name: str) -> Offer:
    """Return the offer of a name. Raises CommandError where there is none, or it cannot be installed."""
    every = offers()
    for offer in every:
        if offer.name == name:
            if offer.trouble:
                raise CommandError(f"{shown(name)} of {shown(offer.source)} cannot be installed: {offer.trouble}")
            return offer
    can = ", ".join([stub.NAME, *(offer.name for offer in every if not offer.trouble)])
    raise CommandError(
        f"no installed package offers a block script {shown(name)}",
        [
            f"there are {can}",
            f"another package offers one by an entry point of the group {GROUP}",
            "and has to lie where this Python finds it: env PYTHONPATH=FOLDER python3 -m vbdkit install --list",
        ],
    )


def installed(scripts_dir: Path) -> list[str]:
    """Return the names of the custom scripts that `vbdkit install` put into a folder."""
    found = (path for path in scripts_dir.glob("block-*") if path.name != stub.LIBRARY and stub.is_ours(path))
    return sorted(path.name for path in found)


def state(path: Path, offer: Offer | None = None) -> str:
    """Return in a few words what is under the name of a script."""
    if not stub.there(path):
        return "not installed"
    if not stub.is_ours(path):
        return "another's is there"
    told = stub.settings(path)
    if offer is not None and (told.get("storage"), told.get("folder")) != (
        offer.storage,
        stub.folder_setting(offer.folder),
    ):
        return "from elsewhere"
    return "installed"
