"""The declared syntax of a custom script's target: ``VG/LV[@SNAPSHOT]``. Words in capitals are fields.

What is in square brackets may be left out; all else stands for itself. A field takes at least one character and ends
where the text that follows it in the syntax comes first; one that nothing follows takes the rest.
"""

from vbdkit.protocol.failure import Failure

_FIELD, _TEXT, _OPTIONAL = "field", "text", "optional"


class Part:
    """One part of a syntax: a field (``text``: its name), a text, or what may be left out (``inner``)."""

    __slots__ = ("inner", "kind", "text")

    def __init__(self, kind: str, text: str = "", inner: "tuple[Part, ...]" = ()) -> None:
        """Take the facts."""
        self.kind = kind
        self.text = text
        self.inner = inner


def parse_target(text: str, syntax: str, example: str = "") -> "dict[str, str]":
    """Return the fields of a target, by name in lower case; what is left out is not in it.

    Raises Failure for a text that is not of this form, for one with a NUL byte, and for a field that begins with ``-``:
    the program that gets it would take it for an option. Raises ValueError for a syntax that is none.
    """
    if "\0" in text:
        raise Failure("the target {text} holds a NUL byte", text=repr(text))
    found = _match(parts(syntax), text)
    if found is None:
        hint = f", for example {example}" if example else ""
        raise Failure("the target {text} is not of the form {syntax}" + hint, text=text or "''", syntax=syntax)
    for name, value in found.items():
        if value.startswith("-"):
            raise Failure(
                "{field} in the target {text} begins with a hyphen, so programs would take it for an option",
                field=name.upper(),
                text=text,
            )
    return found


def parts(syntax: str) -> "tuple[Part, ...]":
    """Return what a syntax consists of.

    Raises ValueError where two fields touch (with or without what is between them in brackets), two have one name, or
    brackets do not match.
    """
    found, end = _parts(syntax, 0)
    if end != len(syntax):
        raise ValueError(f"the syntax {syntax!r} has a ] without its [")
    for whole in _wholes(found):
        names = [part.text for part in whole if part.kind == _FIELD]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the syntax {syntax!r} has two fields named {name.upper()}")
        # itertools.pairwise is not on the hot path's list.
        for one, other in zip(whole, whole[1:], strict=False):  # noqa: RUF007
            if one.kind == other.kind == _FIELD:
                raise ValueError(f"in the syntax {syntax!r} nothing tells {one.text.upper()} from {other.text.upper()}")
    return found


def _wholes(wanted: "tuple[Part, ...]") -> "list[tuple[Part, ...]]":
    """Return all forms that a syntax allows, each without brackets."""
    if not wanted:
        return [()]
    first, rest = wanted[0], _wholes(wanted[1:])
    heads = [(first,)] if first.kind != _OPTIONAL else [*_wholes(first.inner), ()]
    return [head + tail for head in heads for tail in rest]


def _parts(syntax: str, at: int) -> "tuple[tuple[Part, ...], int]":
    found: list[Part] = []
    while at < len(syntax) and syntax[at] != "]":
        begin = at
        if syntax[at] == "[":
            inner, at = _parts(syntax, at + 1)
            if at == len(syntax):
                raise ValueError(f"the syntax {syntax!r} has a [ without its ]")
            at += 1
            if not inner:
                raise ValueError(f"the syntax {syntax!r} has nothing in its brackets")
            found.append(Part(_OPTIONAL, inner=inner))
            continue
        field = _is_name(syntax[at])
        while at < len(syntax) and syntax[at] not in "[]" and _is_name(syntax[at]) == field:
            at += 1
        text = syntax[begin:at]
        found.append(Part(_FIELD, text.lower()) if field else Part(_TEXT, text))
    return tuple(found), at


def _is_name(character: str) -> bool:
    return character.isascii() and (character.isupper() or character == "_")


def _match(wanted: "tuple[Part, ...]", text: str) -> "dict[str, str] | None":
    """Return the fields where the whole text is of this form, else None."""
    if not wanted:
        return None if text else {}
    first, rest = wanted[0], wanted[1:]
    if first.kind == _TEXT:
        return _match(rest, text[len(first.text) :]) if text.startswith(first.text) else None
    if first.kind == _OPTIONAL:
        found = _match(first.inner + rest, text)
        return found if found is not None else _match(rest, text)
    for follows in _choices(rest):
        end = text.find(follows[0].text, 1) if follows else len(text)
        if end > 0:
            found = _match(follows, text[end:])
            if found is not None:
                return {first.text: text[:end]} | found
    return None


def _choices(rest: "tuple[Part, ...]") -> "list[tuple[Part, ...]]":
    """Return the ways to go on after a field, none of which begins with something that may be left out."""
    if not rest or rest[0].kind != _OPTIONAL:
        return [rest]
    return [*_choices(rest[0].inner + rest[1:]), *_choices(rest[1:])]
