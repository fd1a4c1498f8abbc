"""HTML from small function calls: every text is escaped unless it is `Markup` already.

The escape is the default and cannot be forgotten: `tag` escapes each child that is not the result of another
`tag`, and every attribute. Keys of images, names of data sets and messages of a run are text from outside.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

VOID = frozenset({"br", "col", "hr", "img", "meta"})


class Markup(str):
    """Text that is HTML already and goes into the page as it is."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """One element with its children.

    An attribute's trailing underscore is cut and the others become hyphens (``class_``, ``aria_label``);
    None leaves the attribute, or the child, out.

    >>> tag("p", "a < b, ", tag("b", "sure"), class_="note", title=None)
    '<p class="note">a &lt; b, <b>sure</b></p>'
    >>> tag("img", src="data:,", alt='"')
    '<img src="data:," alt="&quot;">'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Markup:
    """Children one after another, each escaped unless it is `Markup`; None is left out.

    >>> join(["1 < 2", None, tag("br")])
    '1 &lt; 2<br>'
    """
    return Markup(
        "".join(
            child if isinstance(child, Markup) else _escape(child) for child in children if child is not None
        )
    )


def _escape(value: object) -> str:
    """Text made safe; bytes of a file name that were no UTF-8 (lone surrogates) are spelled out."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def table(
    header: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str, class_: str | None = None
) -> Markup:
    """A table that a screen reader can walk: a caption, and headers of columns and rows.

    Each row's first cell is its header; a cell that is a ``td`` already goes in as it is.

    >>> table(["name", "k-NN"], [["raw", "31 %"]], caption="Scores").count("<th ")
    3
    """
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = (tag("tr", tag("th", row[0], scope="row"), *(_cell(cell) for cell in row[1:])) for row in rows)
    return tag(
        "div",
        tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_=class_),
        class_="scroll",
    )


def _cell(content: object) -> Markup:
    """A cell of a table's body."""
    made = isinstance(content, Markup) and content.startswith("<td")
    return Markup(content) if made else tag("td", content)


def definitions(rows: Iterable[tuple[str, object]]) -> Markup:
    """Names and what they stand for, as a description list.

    >>> definitions([("images", 5)])
    '<dl><div><dt>images</dt><dd>5</dd></div></dl>'
    """
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in rows))


def number(value: float | int | None, digits: int = 3) -> str:
    """A number as people write it: whole numbers with separators, others to significant digits.

    >>> number(50000), number(0.123456), number(412.6), number(float("nan")), number(None)
    ('50,000', '0.123', '413', 'not a number', '–')
    >>> number(0.000012), number(float("-inf"))
    ('1.2e-05', '−infinite')
    >>> number(3.5e30)
    '3.5e+30'
    """
    if value is None:
        return "–"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "−infinite"
    if abs(value) >= 1e9:
        text = f"{value:.{digits}g}"
    elif float(value).is_integer() or abs(value) >= 10 ** (digits - 1):
        text = f"{round(value):,}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", "−") if text.startswith("-") else text


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage with one decimal.

    >>> percent(0.5), percent(None)
    ('50.0 %', '–')
    """
    if share is None or not math.isfinite(share):
        return number(share)
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """A time span in the two units that matter.

    >>> duration(42), duration(171), duration(7260)
    ('42 s', '2 min 51 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{number(seconds, 2)} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "image"), plural(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
