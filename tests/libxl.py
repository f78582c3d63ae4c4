"""Debian's own xl and libxl as an oracle: what they make of a disk specification and of a virtual device's name."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.stores import REALSTORE, need_real_stores

WORKER = Path(__file__).parent / "libxl_worker.py"
BEFORE = "command line: config parsing error in disk specification: "


class Libxl:
    """One process that has Debian's libraries loaded and answers questions."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def ask(self, *question: str) -> object:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(question), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, f"libxl did not survive {question}"
        return json.loads(answer)

    def disk(self, *parts: str) -> tuple[str | None, list[str]]:
        """The JSON that xl prints for a disk, None where it refuses; and the words of its refusal."""
        answer = self.ask("disk", *parts)
        assert isinstance(answer, dict)
        errors = answer["errors"].removesuffix("\n").split("\n" + BEFORE) if answer["errors"] else []
        return answer["json"], [error.removeprefix(BEFORE) for error in errors]

    def rewritten(self, shown: str) -> str:
        """A disk in JSON, read by libxl and printed again."""
        answer = self.ask("rewrite", shown)
        assert isinstance(answer, str)
        return answer

    def devid(self, name: str) -> int | None:
        """The number of a virtual device, None where libxl knows none by that name."""
        answer = self.ask("vdev", name)
        assert answer is None or isinstance(answer, int)
        return answer


@contextmanager
def libxl() -> Iterator[Libxl]:
    """Start one, where there are root, apt and a compiler."""
    need_real_stores()
    command: list[str | Path] = [REALSTORE, "libxl", sys.executable, WORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Libxl(process)


def xl(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Debian's xl. Bytes of its output that are no UTF-8 come as surrogates."""
    need_real_stores()
    command = [str(REALSTORE), "libxl", "xl", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="surrogateescape")
