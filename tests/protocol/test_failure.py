"""The one error class: sentences that stay on one line and fit their node (O7)."""

import pytest

from vbdkit.protocol.failure import Failure, InUse, shown


def test_fields_are_rendered_and_bytes_made_printable() -> None:
    failure = Failure("{path} is {what}", path=b"/srv/a\nb \xff", what="odd")
    assert str(failure) == r"/srv/a\nb \xff is odd"
    assert failure.status == b"error"
    assert InUse("x").status == b"busy"


def test_text_is_made_printable_as_bytes_are() -> None:
    """The holder of a lock says by its command line what it likes."""
    failure = Failure("held by {holder}", holder="pid 1 (\x1b[31mred\n\u202e\udcff)")
    assert str(failure) == r"held by pid 1 (\x1b[31mred\n\u202e\udcff)"
    assert str(failure).isprintable()


@pytest.mark.parametrize("text", [b"{path}", b"{}", b"{0}", b"%s", b"}{"])
def test_braces_in_values_are_text(text: bytes) -> None:
    assert str(Failure("{path} x", path=text)) == text.decode() + " x"


def test_utf8_stays_what_it_is() -> None:
    assert shown("/srv/größe 日本".encode()) == "/srv/größe 日本"


def test_a_long_sentence_is_cut_at_1024_bytes_and_whole_characters() -> None:
    text = Failure("ä" * 2000).node_text()
    assert len(text) <= 1024
    assert text.endswith(b"...")
    assert text[:-3].decode() == "ä" * (len(text[:-3]) // 2)
    assert Failure("a\nb").node_text() == b"a b"


def test_a_long_field_loses_its_middle_and_the_sentence_stays_whole() -> None:
    text = Failure("{path} is empty", path=b"/begin" + b"x" * 4000 + b"end").node_text().decode()
    assert len(text) <= 1024
    assert text.startswith("/begin")
    assert text.endswith("end is empty")
