"""Text in and out of HTML."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import Page

from coke.report.markup import tag


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_markup_gives_back_any_text(text):
    page = Page(tag("p", text, title=text))
    assert (
        "".join(page.texts).replace("\r", "\n") == text.replace("\r\n", "\n").replace("\r", "\n")
        or "\0" in text
    )
    assert [name for name, _ in page.tags] == ["p"]
