"""Damaged files of every kind: read, or refused in one printable line. `--hypothesis-profile=nightly` asks more."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS, damage, outcome, seeds_of

EDITS = st.lists(st.tuples(st.integers(0, 6), st.floats(0, 1), st.integers(0, 2**16)), max_size=6)
EXAMPLES = settings(
    max_examples=max(200, settings.default.max_examples), suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("name", READERS)
def test_files_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    for content in seeds_of(name):
        (tmp_path / READERS[name].name).write_bytes(content)
        said = outcome(READERS[name], tmp_path / READERS[name].name)
        assert said is None or (name, content[:3]) == ("labels", b"0.5"), said


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name: str) -> None:
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / reader.name

        @EXAMPLES
        @given(st.sampled_from(seeds_of(name)), EDITS)
        def check(content: bytes, edits: list[tuple[int, float, int]]) -> None:
            path.write_bytes(damage(content, edits))
            outcome(reader, path)

        check()


@pytest.mark.parametrize("name", [name for name, reader in READERS.items() if reader.is_text])
def test_any_text_is_read_or_refused(name: str) -> None:
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / reader.name

        @EXAMPLES
        @given(st.text(max_size=60))
        def check(text: str) -> None:
            path.write_bytes(text.encode(errors="surrogatepass"))
            outcome(reader, path)

        check()


@pytest.mark.parametrize(
    "value", ["9" * 5000, "[" * 2000, "!!timestamp 2001-99-99", "!!timestamp x", "!!int x", "&a [*a]"]
)
def test_values_of_settings_that_yaml_stumbles_over(value: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(f"epochs={value}")
    said = outcome(READERS["settings"], tmp_path / "x")
    assert said is None or said.startswith("epochs: "), said
