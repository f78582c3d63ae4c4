"""Cases: custom scripts in Python as an author writes them: the tutorial's own, and what `vbdkit new-script` writes."""

import os
import re
from pathlib import Path

from .harness import (
    ANSWER,
    LIBRARY,
    MARKER,
    READ_AND_ANSWER,
    SCRIPTS,
    Guest,
    Verdicts,
    answer,
    image,
    neighbours,
    nothing_left,
    run,
)
from .toolstack_cases import vbdkit

# docs/tutorial-custom-script.md, which __main__.py puts there.
PAGE = Path(__file__).parent.parent / "tutorial.md"
_FILE = re.compile(r"<!-- file: (\S+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def tutorial(check: Verdicts) -> None:
    """The tutorial's script, with its identity: a packed image that a guest gets, writes and gives back."""
    parts = dict(_FILE.findall(PAGE.read_text()))
    text = parts["block-gz"].replace("/usr/local/lib/vbdkit", str(LIBRARY))
    at = text.index("\n", text.index("tools = ")) + 1
    script = SCRIPTS / "block-gz"
    script.write_text(text[:at] + parts["identity.txt"] + text[at:])
    script.chmod(0o755)
    file = image("/tmp/packed", mib=4)
    packed = Path(f"{file}.gz")
    try:
        check("the image is packed", run("gzip", "--force", str(file))[0] == 0)
        disk = f"script=block-gz,format=raw,vdev=xvda,access=w,target={packed}"
        guest = Guest("custom", [disk], READ_AND_ANSWER)
        status, output = guest.create()
        check("xl create with script=block-gz", status == 0, output)
        check("the guest reads what dom0 wrote", guest.says(f"domU: read {MARKER}"), guest.console())
        check("and writes", guest.says("domU: wrote"), guest.console())
        check("it powers itself off, its backend goes", guest.gone())
        nothing_left(check)
        check("the image is packed again", packed.exists() and not file.exists(), os.listdir("/tmp"))
        run("gunzip", "--keep", str(packed))
        check("with what the guest wrote", answer(file) == ANSWER, answer(file))
        file.unlink()
        _shared(check, packed, file)
    finally:
        for path in (script, file, packed):
            path.unlink(missing_ok=True)


def _shared(check: Verdicts, packed: Path, file: Path) -> None:
    alice, bob = neighbours()
    more = "script=block-gz,"
    link = Path("/tmp/link.gz")
    link.symlink_to(packed)
    with alice.having(check, packed, reads=True, more=more):
        for name in (packed, link):
            bob.may_not_have(check, name, r"\(alice\) as its disk xvdb", more=more)
            bob.may_not_have(check, name, r"\(alice\) as its disk xvdb")
        bob.may_not_have(check, file, r"\(alice\) as its disk xvdb")
    with bob.having(check, link, reads=True, more=more):
        pass
    bob.may_not_have(check, file, "is not of the form FILE.gz, for example /srv/web.gz", more=more)
    link.unlink()
    nothing_left(check)


def written(check: Verdicts) -> None:
    """What `vbdkit new-script` writes: its test passes in dom0, and a guest gets a copy of its template."""
    for path in (SCRIPTS / "block-mine", SCRIPTS / "test_block_mine.py"):
        path.unlink(missing_ok=True)
    status, output = vbdkit("new-script", "mine", "--folder", str(SCRIPTS))
    check("vbdkit new-script mine", status == 0, output)
    status, output = run(str(SCRIPTS / "test_block_mine.py"))
    check("its test passes", status == 0 and output.count("ok ") == 4, output)
    nothing_left(check)
    alice, bob = neighbours()
    template = image("/tmp/template.img")
    more = "script=block-mine,"
    with alice.having(check, template, reads=True, more=more), bob.having(check, template, reads=True, more=more):
        copies = sorted(path.name for path in Path("/tmp").glob("template.img.*"))
        check("each has a copy of its own", len(copies) == 2, copies)
    check("the copies are gone", not list(Path("/tmp").glob("template.img.*")))
    nothing_left(check)
    for path in (SCRIPTS / "block-mine", SCRIPTS / "test_block_mine.py"):
        path.unlink()
