"""Strategies for what an enemy writes: every byte, and what means something to shells, formats, terminals and paths."""

from hypothesis import strategies as st

# The longest value that fits a packet beside the path of a backend node.
LONGEST = 4096 - 64

MEANINGFUL = [
    *(b"{path}", b"{0}", b"{", b"}", b"{}", b"{path.__class__}", b"%s", b"%n%n%n", b"%", b"%25", b"%zz"),
    *(b"$(touch /tmp/vbdkit-was-here)", b"`reboot`", b";reboot;", b"|sh", b"&", b"'", b'"', b"\\", b"*", b"~", b"$IFS"),
    *(b"\n", b"\r\n", b"\t", b" ", b"\x1b[2J", b"\x1b]0;x\x07", b"\x08", b"\x7f", b"\x9b31m", b"\xc2\x9b31m"),
    *(b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xe2\x80\xae", b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b"\xc3", b"\0"),
    *(b"/", b"//", b"..", b"/../", b"/dev/", b"/proc/self/fd/0", b"-", b"--", b"-rf", b"loop", b":", b"@", b"=", b"!"),
    *(b"0", b"-1", b"99999999999999999999", b"0x", b"7:0", b"w", b"r", b"connected", b"None", b"x" * 255, b"/x" * 600),
]

every_byte = bytes(range(256))

values = st.one_of(
    st.binary(max_size=64),
    st.binary(max_size=LONGEST),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from(MEANINGFUL), max_size=12).map(b"".join),
    st.sampled_from([every_byte, every_byte * 15, b"", b"\0" * LONGEST, b"\x1b" * LONGEST, b"{" * LONGEST]),
).map(lambda value: value[:LONGEST])

# Names that a file can have.
names = values.map(lambda value: value.replace(b"\0", b"").replace(b"/", b"")[:255]).filter(
    lambda name: name not in (b"", b".", b"..")
)
