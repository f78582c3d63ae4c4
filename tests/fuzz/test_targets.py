"""The fuzz targets without a fuzzer: over their whole corpus, and over inputs made from it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS
from tests.hostile.judge import examples


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    assert len(SEEDS[name]) >= 10
    for seed in SEEDS[name]:
        TARGETS[name](seed)


@st.composite
def made(draw: st.DrawFn, name: str) -> bytes:
    """A seed with some bytes changed, cut out, doubled or put in; or two of them, or none."""
    data = bytearray(draw(st.sampled_from(SEEDS[name])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        other = draw(st.sampled_from(SEEDS[name]) | st.binary(max_size=20))
        end = draw(st.integers(at, min(at + 20, len(data))))
        data[at:end] = draw(st.sampled_from([b"", bytes(data[at:end]) * 2, other]))
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_made_inputs(name: str) -> None:
    @settings(max_examples=examples(150), deadline=None)
    @given(st.binary(max_size=300) | made(name))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("codec", b"\0\0/a/"),
        ("store", SEEDS["store"][0]),
        ("client", SEEDS["client"][0]),
        ("texts", b"backend/vbd/5/1"),
    ],
)
def test_a_target_notices_a_fault(name: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them would pass whatever the code does."""
    TARGETS[name](data)
    monkeypatch.setattr("vbdkit.xenstore.codec.is_path", lambda path, special=False: True)
    monkeypatch.setattr("vbdkit.xenstore.embedded.operations.Store.handle", lambda *_: None)
    monkeypatch.setattr("vbdkit.xenstore.client.Connection._exchange", lambda *_: 1 / 0)
    monkeypatch.setattr("tests.fuzz.targets.backend_path", lambda *_: b"")
    with pytest.raises((AssertionError, ZeroDivisionError)):
        TARGETS[name](data)
