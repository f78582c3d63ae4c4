"""I2: `mode` in all its spellings."""

import pytest

from vbdkit.protocol import parse_mode


@pytest.mark.parametrize(
    ("text", "writable", "checked"),
    [
        (b"r", False, True),
        (b"ro", False, True),
        (b"w", True, True),
        (b"rw", True, True),
        (b"r!", False, False),
        (b"ro!", False, False),
        (b"w!", True, False),
        (b"rw!", True, False),
    ],
)
def test_spelling(text: bytes, writable: bool, checked: bool) -> None:
    mode = parse_mode(text)
    assert mode is not None
    assert (mode.writable, mode.checked) == (writable, checked)


@pytest.mark.parametrize("text", [b"", b"W", b"R", b"wr", b"!", b"x", b"w ", b"w\n", b"w\0", b"rw!!", b"\xff"])
def test_anything_else_is_no_mode(text: bytes) -> None:
    assert parse_mode(text) is None


def test_a_mode_shows_as_the_protocol_spells_it() -> None:
    assert [str(parse_mode(text)) for text in (b"ro", b"rw", b"ro!", b"rw!")] == ["r", "w", "r!", "w!"]
