"""The declared syntax of targets: what it takes, what it refuses, in which words; and that no text makes it slow."""

import string
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbdkit.protocol.failure import Failure
from vbdkit.protocol.syntax import parse_target, parts

LVM = "VG/LV[@SNAPSHOT]"


@pytest.mark.parametrize(
    ("syntax", "text", "fields"),
    [
        ("TARGET", "any thing at all\n", {"target": "any thing at all\n"}),
        (LVM, "vg0/web", {"vg": "vg0", "lv": "web"}),
        (LVM, "vg0/web@monday", {"vg": "vg0", "lv": "web", "snapshot": "monday"}),
        (LVM, "vg0/a/b", {"vg": "vg0", "lv": "a/b"}),
        (LVM, "a@b/c", {"vg": "a@b", "lv": "c"}),
        ("[HOST:]SHARE", "nas:x", {"host": "nas", "share": "x"}),
        ("[HOST:]SHARE", "x", {"share": "x"}),
        ("POOL/IMAGE[@SNAP][,USER]", "p/i,admin", {"pool": "p", "image": "i", "user": "admin"}),
        ("POOL/IMAGE[@SNAP][,USER]", "p/i@s,admin", {"pool": "p", "image": "i", "snap": "s", "user": "admin"}),
        ("A[:B[:C]]", "1:2:3", {"a": "1", "b": "2", "c": "3"}),
        ("A[:B[:C]]", "1:2", {"a": "1", "b": "2"}),
        ("nbd://HOST_NAME/NAME", "nbd://h/x", {"host_name": "h", "name": "x"}),
        ("FILE", "größe 漢\udcff", {"file": "größe 漢\udcff"}),
    ],
)
def test_fields(syntax: str, text: str, fields: dict[str, str]) -> None:
    assert parse_target(text, syntax) == fields


@pytest.mark.parametrize(
    ("syntax", "text", "words"),
    [
        (LVM, "vg", "the target vg is not of the form VG/LV[@SNAPSHOT], for example vg0/web"),
        (LVM, "", "the target '' is not of the form"),
        (LVM, "/lv", "is not of the form"),
        (LVM, "vg/", "is not of the form"),
        ("nbd://HOST/NAME", "http://h/x", "is not of the form nbd://HOST/NAME"),
        (LVM, "--help/lv", "VG in the target --help/lv begins with a hyphen, so programs would take it for an option"),
        (LVM, "vg/lv@-f", "SNAPSHOT in the target vg/lv@-f begins with a hyphen"),
        (LVM, "v\0g/lv", r"the target 'v\x00g/lv' holds a NUL byte"),
    ],
)
def test_refusals(syntax: str, text: str, words: str) -> None:
    with pytest.raises(Failure) as refused:
        parse_target(text, syntax, "vg0/web")
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        ("A[B]", "nothing tells A from B"),
        ("A[:x]B", "nothing tells A from B"),
        ("A[:][/]B", "nothing tells A from B"),
        ("VG/LV]", "has a ] without its ["),
        ("VG[/LV", "has a [ without its ]"),
        ("A[:B]C", "nothing tells B from C"),
        ("A[]", "nothing in its brackets"),
        ("A:A", "two fields named A"),
        ("A[:B][/B]", "two fields named B"),
    ],
)
def test_a_syntax_that_is_none(syntax: str, words: str) -> None:
    with pytest.raises(ValueError, match="syntax") as refused:
        parts(syntax)
    assert words in str(refused.value)


NAMES = st.text(string.ascii_uppercase + "_", min_size=1, max_size=6)
# Texts that tell fields apart; values do not hold these characters, so there is one way to read a target.
TEXTS = st.builds(lambda character, count: character * count, st.sampled_from("/:@,="), st.integers(1, 3))
VALUES = st.text(string.ascii_letters + "0-9._ é\n\udc80", min_size=1, max_size=9).filter(lambda text: text[0] != "-")


@st.composite
def targets(draw: st.DrawFn) -> tuple[str, str, dict[str, str]]:
    """A syntax, a target of that form, and its fields."""
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    fields = {names[0].lower(): draw(VALUES)}
    syntax, text = names[0], fields[names[0].lower()]
    begins = set()
    for name in names[1:]:
        # Each begins in its own way, so that one left out is not taken for the next one.
        between = draw(TEXTS.filter(lambda text: text[0] not in begins))
        begins.add(between[0])
        value = draw(VALUES)
        if len(begins) == 5:
            break
        if draw(st.booleans()):
            syntax += f"[{between}{name}]"
            if draw(st.booleans()):
                continue
        else:
            syntax += between + name
        text += between + value
        fields[name.lower()] = value
    return syntax, text, fields


@given(targets())
def test_what_was_put_together_comes_apart(case: tuple[str, str, dict[str, str]]) -> None:
    syntax, text, fields = case
    assert parse_target(text, syntax) == fields


@given(st.text(string.ascii_uppercase[:3] + "[]/:", max_size=12), st.text("ab/:-\0", max_size=12))
def test_any_syntax_and_text_get_an_answer(syntax: str, text: str) -> None:
    try:
        found = parse_target(text, syntax)
    except (Failure, ValueError):
        return
    assert all(value and value in text for value in found.values())


def steps(run: Callable[[], object]) -> int:
    """How many calls of Python functions it takes: what no clock of a busy machine tells."""
    count = 0

    def one(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(one)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "syntax", [LVM, "A[:B][:C][:D][:E]", "A[:B[:C[:D]]]", "A/B/C/D/E", "[A:][B:][C:]D", "A[:B][:C]!"]
)
@pytest.mark.parametrize("text", ["/", ":", "a/", "a:", "@", "a/b@", "a", ":a:"])
def test_a_target_of_4096_bytes_is_read_in_bounded_work(syntax: str, text: str) -> None:
    hostile = (text * 4096)[:4096]

    def read() -> None:
        try:
            parse_target(hostile, syntax)
        except Failure:
            pass

    assert steps(read) < 20_000


@settings(max_examples=200)
@given(targets(), st.text("/:@,=a\n", min_size=1, max_size=8))
def test_hostile_text_for_any_syntax_is_bounded_too(case: tuple[str, str, dict[str, str]], text: str) -> None:
    syntax = case[0]

    def read() -> None:
        try:
            parse_target((text * 4096)[:4096], syntax)
        except Failure:
            pass

    assert steps(read) < 20_000
