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
    assert "".join(page.texts) == text
    assert page.tags == [("p", {"title": text})]


def test_a_file_name_that_is_no_utf8_can_be_written():
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert tag("p", name, title=name).encode("utf-8") == b'<p title="caf\\udce9.jpg">caf\\udce9.jpg</p>'


def test_markup_is_not_escaped_twice():
    assert tag("p", tag("b", "&"), None, "<") == "<p><b>&amp;</b>&lt;</p>"
