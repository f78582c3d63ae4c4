"""The one error class of the house: a template and its fields, in words for a person.

A failure says what was asked, what is in the way and what to do. ``status`` is what hotplug-status
becomes (O7): ``error``, or ``busy`` where sharing is the reason.
"""

from vbdkit.protocol.nodes import BUSY, ERROR, HOTPLUG_ERROR_LIMIT


class Failure(Exception):
    """Something that cannot be done.

    ``template`` is a str.format template, ``fields`` what it names: bytes (paths and store values), or
    anything that str() renders. Both are shown printable, whatever they hold.
    """

    status = ERROR

    def __init__(self, template: str, **fields: object) -> None:
        """Keep template and fields; str() renders them."""
        super().__init__(template)
        self.template = template
        self.fields = fields

    def __str__(self) -> str:
        """Return the sentence, on one line."""
        return self._rendered(0)

    def node_text(self) -> bytes:
        """Return the sentence as a hotplug-error: UTF-8, on one line, at most HOTPLUG_ERROR_LIMIT bytes.

        Where it is longer, the middle of long fields is left out, so that what is wrong stays.
        """
        for longest in (0, 200, 60, 20):
            text = self._rendered(longest).replace("\n", " ").encode("utf-8")
            if len(text) <= HOTPLUG_ERROR_LIMIT:
                return text
        return text[: HOTPLUG_ERROR_LIMIT - 3].decode("utf-8", "ignore").encode("utf-8") + b"..."

    def _rendered(self, longest: int) -> str:
        """Render with fields of at most ``longest`` characters, 0 for any number."""
        fields = {}
        for name, value in self.fields.items():
            text = shown(value) if isinstance(value, bytes) else printable(str(value))
            fields[name] = text[: longest // 2] + "..." + text[-longest // 2 :] if 0 < longest < len(text) else text
        return self.template.format(**fields)


class InUse(Failure):
    """The target is in use elsewhere (O1, O2)."""

    status = BUSY


def shown(text: bytes) -> str:
    """Return bytes as printable text on one line: UTF-8 where it is that, escapes for all else."""
    return printable(text.decode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """Return text with escapes in place of what a terminal or a log would not show as it is."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
