"""Hosts on which custom scripts of our own serve disks."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.datapaths.lvm_model import Model
from tests.host import PYTHON, SOURCE, Disk, Host, host

__all__ = ["host"]  # a fixture


@dataclass
class LvmHost:
    """A host whose script is block-lvm, with the model of LVM's programs."""

    host: Host
    model: Model

    def disk(self, target: str, domid: int = 5, mode: str = "w", devid: int = 51712) -> Disk:
        """A disk of a live guest."""
        return self.host.disk(domid, target, mode, devid)

    def stub(self, time_limit: float | None = None) -> None:
        """Write the script."""
        host, model = self.host, self.model
        limit = "" if time_limit is None else f", time_limit={time_limit}"
        host.script = host.directory / "block-lvm"
        host.script.write_text(
            f"#!{PYTHON} -IS\nimport sys\nsys.path.insert(0, {str(SOURCE)!r})\n"
            "from vbdkit.datapaths import lvm\nfrom vbdkit.engine import tool\n"
            f"lvm.FOLDER = {str(model.mapper) + '/'!r}\n"
            f"tool.PATH = {bytes(model.folder / 'bin')!r} + b':' + tool.PATH\n"
            "from vbdkit.hot import start\n"
            f"start('custom', storage='vbdkit.datapaths.lvm:Lvm', run_dir={bytes(host.run_dir)!r}, "
            f"lock_dir={bytes(host.lock_dir)!r}{limit})\n"
        )
        host.script.chmod(0o755)

    def active(self) -> list[str]:
        """What dmsetup ls shows."""
        with self.model as model:
            return model.active()

    def volumes(self) -> list[str]:
        """The volumes of the group vg-0."""
        with self.model as model:
            return sorted(model.state["groups"]["vg-0"]["volumes"])

    def records(self) -> list[str]:
        """The names of the records, and of locks."""
        folders = (self.host.run_dir, self.host.lock_dir)
        return sorted(path.name for folder in folders if folder.exists() for path in folder.iterdir())

    def left(self) -> tuple[list[str], list[str]]:
        """What is active, and what records and locks there are."""
        return self.active(), self.records()


@pytest.fixture
def lvm(host: Host) -> LvmHost:
    """A group vg-0 of 64 MiB with the volume web, a thin pool with golden, and a volume with hyphens; all inactive."""
    made = LvmHost(host, Model(host.directory / "lvm"))
    made.stub()
    with made.model as model:
        model.group("vg-0")
        model.volume("vg-0/web", b"the web")
        model.volume("vg-0/my-data", b"hyphens")
        model.volume("vg-0/pool", kind="t", role="private", size=16 << 20)
        model.volume("vg-0/pool_tdata", kind="T", role="private,thin,pool,data", hidden=True)
        model.volume("vg-0/golden", b"golden image", pool="pool")
    return made


def read(device: str | bytes, count: int = 12) -> bytes:
    """The first bytes of a device."""
    with Path(device if isinstance(device, str) else device.decode()).open("rb") as file:
        return file.read(count)
