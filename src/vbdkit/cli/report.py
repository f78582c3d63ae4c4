"""How the command talks: its error, aligned lines, and colour. Knows nothing of what is being said."""

import os
import sys
from collections.abc import Sequence
from typing import TextIO

from vbdkit.protocol.failure import Failure
from vbdkit.protocol.failure import shown as printable

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class CommandError(Failure):
    """The command cannot do what was asked: one sentence, and lines that say the way out."""

    def __init__(self, sentence: str, way_out: Sequence[str] = ()) -> None:
        """Keep both."""
        super().__init__("{sentence}", sentence=sentence)
        self.way_out = tuple(way_out)


class Report:
    """Lines for a person. Coloured on a terminal, unless NO_COLOR is set (no-color.org) or TERM is dumb."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Write to ``stream``, sys.stdout where there is none."""
        self.stream = stream or sys.stdout
        self.coloured = (
            self.stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        )

    def paint(self, style: str, text: str) -> str:
        """Return ``text`` in a style (bold, dim, red, green, yellow, cyan), or as it is."""
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.coloured and text else text

    def line(self, text: str = "") -> None:
        """Write one line, at once: a step that hangs must be the last one seen."""
        print(text, file=self.stream, flush=True)

    def item(self, word: str, text: str, style: str = "") -> None:
        """Write ``word`` in a column of its own, then ``text``."""
        self.line(f"  {self.paint(style, f'{word:<13}') if style else f'{word:<13}'} {text}")


def shown(value: bytes | str | os.PathLike[str]) -> str:
    """Return a path or value that someone else chose as printable text on one line."""
    return printable(os.fsencode(value))
