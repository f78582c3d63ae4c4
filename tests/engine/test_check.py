"""What is found out about a target, without a script: what is told beside the verdict."""

import os
from pathlib import Path

from tests.host import Host
from tests.images import losetup
from vbdkit.engine.check import Finding, examine
from vbdkit.engine.record import Records
from vbdkit.platform import linux


def found(host: Host, target: Path | str, domid: int = -1) -> Finding:
    opened = linux.open_target(os.fsencode(target), False)
    try:
        with host.connect() as store:
            return examine(store, linux, opened, Records(os.fsencode(host.run_dir)), b"backend", domid)
    finally:
        opened.close()


def test_an_idle_loop_device_on_the_file_is_told_and_one_in_use_is_not(host: Host, image: Path) -> None:
    idle = losetup("--find", "--show", str(image))
    reader = host.disk(5, image, "r").add().nodes["node"]
    finding = found(host, image)
    assert finding.idle() == [os.fsencode(idle)]
    assert reader in [link.name for link in finding.chain.links.values()]
    assert finding.refusal(False, linux) is None
    assert "guest 5" in str(finding.refusal(True, linux))


def test_a_guest_that_asks_for_its_own_disk_is_no_other(host: Host, image: Path) -> None:
    assert host.disk(5, image).add().status == 0
    assert found(host, image, domid=5).refusal(True, linux) is None
    assert found(host, image, domid=6).refusal(True, linux) is not None
    assert found(host, image).refusal(True, linux) is not None
