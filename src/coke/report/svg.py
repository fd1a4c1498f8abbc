"""Curves and bars as inline SVG: axes, ticks, gaps where a figure is missing, and a value under the pointer.

Colours come from the page's style sheet through classes (``tone-0`` ...), so that a chart follows light and
dark. A chart is an image whose label describes it for those who cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coke.report.markup import Markup, join, number, tag

WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 44
HOVER_POINTS = 150  # more points than this lie closer than a pointer can tell


@dataclass(frozen=True)
class Line:
    """One line of a chart; None in ``y`` is a gap. ``tone`` picks one of the page's colours, 0 to 5.

    ``unit`` follows a value where it is written, with its space.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    tone: int = 0
    dashed: bool = False
    unit: str = ""

    @property
    def last(self) -> float | None:
        """The newest value that is there."""
        return next((value for value in reversed(self.y) if value is not None), None)

    def words(self, value: float | None, digits: int = 3) -> str:
        """A value of this line with its unit."""
        return number(value, digits) + self.unit


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover [low, high] in steps of 1, 2 or 5 times a power of ten.

    A range within rounding is taken as one value with some room around it: a collapsed run's figures differ
    in their last digits only.

    >>> ticks(0, 10)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    >>> ticks(0.13, 0.31, 4)
    [0.1, 0.15, 0.2, 0.25, 0.3, 0.35]
    >>> ticks(3, 3)
    [2.5, 3.0, 3.5]
    """
    largest = max(abs(low), abs(high))
    if high - low <= max(1e-9 * largest, 1e-12):
        margin = largest / 10 if largest > 1e-12 else 0.5
        low, high, count = low - margin, high + margin, 2
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 1 - math.floor(math.log10(step))  # cuts the rounding of 3 * 0.1
    return [round(index * step, digits) for index in range(first, last + 1)]


@dataclass(frozen=True)
class Axis:
    """A vertical axis: its ticks, and where a value lies between the lowest (0) and the highest tick (1).

    A logarithmic axis is in log(1 + value), which has a place for zero: sizes of clusters may be empty.
    """

    marks: list[float]
    logarithmic: bool = False

    @classmethod
    def over(cls, values: Sequence[float], *, zero: bool = False, logarithmic: bool = False) -> Axis:
        """An axis that covers the values, from zero if asked.

        >>> Axis.over([0, 900], logarithmic=True).marks
        [0.0, 1.0, 10.0, 100.0, 1000.0]
        """
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if logarithmic:
            powers = [10.0**power for power in range(math.ceil(math.log10(max(high, 1))) + 1)]
            return cls([0.0, *powers], logarithmic=True)
        return cls(ticks(min(0.0, low) if zero else low, max(0.0, high) if zero else high))

    def place(self, value: float) -> float:
        """Where the value lies between the ends of the axis: 0 at the bottom, 1 at the top."""
        scale = math.log1p if self.logarithmic else float
        low, high = scale(self.marks[0]), scale(self.marks[-1])
        return (scale(value) - low) / (high - low)


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    zero: bool = False,
    logarithmic: bool = False,
) -> Markup:
    """Lines over a common horizontal axis, as one SVG element of `WIDTH` by `HEIGHT` units."""
    shown = [value for line in lines for value in line.y if value is not None]
    axis = Axis.over(shown, zero=zero, logarithmic=logarithmic)
    across = [float(x) for line in lines for x in line.x]
    low, high = (min(across), max(across)) if across else (0.0, 1.0)
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
    span = high - low

    def spot(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - low) / span * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - axis.place(y) * (HEIGHT - TOP - BOTTOM),
        )

    marks = [(mark, spot(mark, axis.marks[0])[0]) for mark in ticks(low, high) if low <= mark <= high]
    if all(x.is_integer() for x in across):
        marks = [(mark, place) for mark, place in marks if mark.is_integer()]
    ends = "; ".join(f"{line.name} ends at {line.words(line.last)}" for line in lines)
    return _frame(
        axis,
        marks,
        *(_curve(line, spot) for line in lines),
        title=title,
        description=f"{y_label} by {x_label}. {ends}.",
        x_label=x_label,
        y_label=y_label,
    )


def _curve(line: Line, spot: Callable[[float, float], tuple[float, float]]) -> Markup:
    """A line broken at its gaps, single points as dots, and a target with the value around each point."""
    pieces: list[list[tuple[float, float]]] = [[]]
    targets = []
    for x, y in zip(line.x, line.y, strict=True):
        if y is None:
            pieces.append([])
            continue
        across, up = spot(x, y)
        pieces[-1].append((across, up))
        label = tag("title", f"{line.name}, {number(x)}: {line.words(y, 4)}")
        targets.append(tag("circle", label, cx=f"{across:.1f}", cy=f"{up:.1f}", r=6, class_="target"))
    paths = [
        tag("path", d="M" + "L".join(f"{across:.1f} {up:.1f}" for across, up in piece))
        for piece in pieces
        if len(piece) > 1
    ]
    dots = [
        tag("circle", cx=f"{piece[-1][0]:.1f}", cy=f"{piece[-1][1]:.1f}", r=2.6)
        for piece in pieces
        if len(piece) == 1 or (piece and piece is pieces[-1] and not line.dashed)
    ]
    kind = f"line tone-{line.tone}" + (" dashed" if line.dashed else "")
    hover = targets if len(targets) <= HOVER_POINTS and not line.dashed else []
    return tag("g", *paths, *dots, *hover, class_=kind)


def bar_chart(
    sizes: Sequence[float],
    *,
    title: str,
    x_label: str,
    y_label: str,
    bound: float | None = None,
    share: float | None = None,
) -> Markup:
    """Bars in the order given, each below ``bound`` in the warning tone; lines at bound and equal share."""
    axis = Axis.over([*sizes, bound or 0.0, share or 0.0], zero=True)
    room, floor = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM
    pitch = room / max(len(sizes), 1)
    gap = min(2.0, pitch * 0.2) if pitch > 2.5 else 0.0

    def up(value: float) -> float:
        return floor - axis.place(value) * (floor - TOP)

    places = [(LEFT + index * pitch + gap / 2, up(size)) for index, size in enumerate(sizes)]
    short = [bound is not None and size < bound for size in sizes]
    bars = (
        _bars(sizes, places, short, pitch - gap)
        if len(sizes) <= HOVER_POINTS
        else _dense_bars(places, short, pitch)
    )
    levels = [
        tag(
            "line",
            x1=LEFT,
            x2=WIDTH - RIGHT,
            y1=f"{up(value):.1f}",
            y2=f"{up(value):.1f}",
            class_=f"level {kind}",
        )
        for value, kind in ((share, "share"), (bound, "bound"))
        if value is not None
    ]
    ranks = [mark for mark in ticks(0, len(sizes)) if 1 <= mark <= len(sizes) and mark.is_integer()]
    marks = [(rank, LEFT + (rank - 0.5) * pitch) for rank in ([1.0] if 1 not in ranks else []) + ranks]
    largest, smallest = (max(sizes), min(sizes)) if sizes else (0, 0)
    about = f"{len(sizes):,} clusters by size, from {number(largest)} down to {number(smallest)} images."
    return _frame(
        axis,
        marks,
        tag("g", *bars, class_="bars"),
        *levels,
        title=title,
        description=about + (f" The bound is {number(bound)}." if bound is not None else ""),
        x_label=x_label,
        y_label=y_label,
    )


def _bars(
    sizes: Sequence[float], places: Sequence[tuple[float, float]], short: Sequence[bool], width: float
) -> list[Markup]:
    """One rectangle a bar, with its rank and size under the pointer."""
    return [
        tag(
            "rect",
            tag("title", f"rank {index + 1:,}: {number(size)}"),
            x=f"{left:.2f}",
            y=f"{top:.1f}",
            width=f"{width:.2f}",
            height=f"{max(HEIGHT - BOTTOM - top, 0):.1f}",
            class_="short" if warn else None,
        )
        for index, (size, (left, top), warn) in enumerate(zip(sizes, places, short, strict=True))
    ]


def _dense_bars(places: Sequence[tuple[float, float]], short: Sequence[bool], width: float) -> list[Markup]:
    """Bars too narrow to point at, as two paths: thousands of elements would slow the page down."""
    paths = []
    for kind in (False, True):
        chosen = [place for place, warn in zip(places, short, strict=True) if warn is kind]
        steps = (f"M{x:.1f} {y:.1f}H{x + width:.1f}V{HEIGHT - BOTTOM}H{x:.1f}z" for x, y in chosen)
        paths.append(tag("path", d="".join(steps), class_="short" if kind else None) if chosen else Markup())
    return paths


def _frame(
    axis: Axis,
    marks: Sequence[tuple[float, float]],
    *content: Markup,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
) -> Markup:
    """Grid, ticks and labels around the content; ``marks`` are horizontal ticks with their places."""
    floor = HEIGHT - BOTTOM
    parts = []
    for mark in axis.marks:
        y = floor - axis.place(mark) * (floor - TOP)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"))
        parts.append(tag("text", number(mark), x=LEFT - 8, y=f"{y + 4:.1f}", text_anchor="end"))
    for mark, x in marks:
        parts.append(tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=floor, y2=floor + 4, class_="tick"))
        parts.append(tag("text", number(mark), x=f"{x:.1f}", y=floor + 17, text_anchor="middle"))
    middle = (TOP + floor) / 2
    turned = f"rotate(-90 12 {middle})"
    labels = (
        tag(
            "text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle", class_="label"
        ),
        tag("text", y_label, x=12, y=middle, text_anchor="middle", transform=turned, class_="label"),
    )
    return tag(
        "svg",
        join(parts),
        *labels,
        *content,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}. {description}",
    )
