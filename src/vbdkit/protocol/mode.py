"""What `mode` says: may the guest write, and is sharing checked (I2)."""

# spelling -> (may write, sharing is checked)
_SPELLINGS = {
    b"r": (False, True),
    b"ro": (False, True),
    b"w": (True, True),
    b"rw": (True, True),
    b"r!": (False, False),
    b"ro!": (False, False),
    b"w!": (True, False),
    b"rw!": (True, False),
}

SPELLINGS = tuple(_SPELLINGS)


class Mode:
    """An access mode: ``writable`` and ``checked`` (False for the spellings with ``!``)."""

    __slots__ = ("checked", "writable")

    def __init__(self, writable: bool, checked: bool = True) -> None:
        """Say both facts."""
        self.writable = writable
        self.checked = checked

    def __str__(self) -> str:
        """Return the protocol's short spelling: r, w, r! or w!."""
        return ("w" if self.writable else "r") + ("" if self.checked else "!")


def parse_mode(text: bytes) -> Mode | None:
    """Return the mode that ``text`` spells, or None where it spells none.

    Backend drivers look for a lower-case ``w`` only (clause O8), so ``W`` is no spelling: the guest
    would get a read-only disk while the check was made for a writer.
    """
    found = _SPELLINGS.get(text)
    return None if found is None else Mode(*found)
