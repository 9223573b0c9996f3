"""How figures of a study look: style, palette, axes, labels; and how they become bytes.

matplotlib is imported when something is drawn, and never through pyplot: no global state but the
settings inside `style`. The same drawing gives the same bytes.
"""

import contextlib
import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# Okabe and Ito 2008, told apart by colour-blind eyes too; yellow left out, it fades on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D46")
MARKERS = "os^DvPX*"
GREY = "#6b6b6b"
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "errorbar.capsize": 3,
    "svg.fonttype": "none",  # text stays text: small, and can be searched
    "text.parse_math": False,  # names may hold a dollar sign
    "figure.dpi": 100,
    "savefig.dpi": 150,
}
_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))
_FEW = 8  # values that get a tick each
_LETTER, _AXES, _LEGEND = 0.078, 4.2, 1.7  # inches: a letter, usual axes, room beside them


@contextlib.contextmanager
def style(name: str) -> Iterator[None]:
    """matplotlib's settings for one figure; `name` makes the ids inside its SVG its own."""
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        yield


def new(width: float = 6.4, height: float = 3.9) -> tuple[Any, Any]:
    """(figure, axes) of a size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def save(figure: Any) -> tuple[bytes, str]:
    """(PNG, SVG) without dates or versions in them."""
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    # Verdana is as wide as DejaVu Sans, and where browsers run.
    text = svg.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    return png.getvalue(), text


class Look:
    """One colour and marker per name, the same in every figure of a report.

    Args:
        names: of all the records, whether or not a figure shows them.
        lines: those that it shows, in its order; they alone count where there are more names
            than colours.
    """

    def __init__(self, names: Iterable[str], lines: Iterable[str]):
        self.lines = list(dict.fromkeys(lines))
        everywhere = list(dict.fromkeys(names))
        self.names = everywhere if len(everywhere) <= len(PALETTE) else self.lines

    def of(self, name: str) -> dict[str, str]:
        """`color` and `marker`, as matplotlib takes them; no pair twice among 64 names."""
        again, i = divmod(self.names.index(name), len(PALETTE))
        return {"color": PALETTE[i], "marker": MARKERS[(i + again) % len(MARKERS)]}


# --- words ---


def label(column: str) -> str:
    """A column's name on an axis: `metrics.test.accuracy` -> "test accuracy"."""
    head, _, rest = column.partition(".")
    if head in ("point", "config") and rest:
        return rest
    if head == "metrics" and rest:
        return " ".join(rest.rsplit(".", 1))
    if head == "seconds" and rest:
        return f"seconds ({rest.replace('_', ' ')})"
    return column.replace("_", " ").replace(".", " ").replace("eval/", "validation ")


def word(value: Any) -> str:
    """A value in a legend or on an axis."""
    if value is None:
        return "none"
    return short(value) if isinstance(value, float) else str(value)


def short(value: int | float) -> str:
    """A number on an axis: 4408320 -> "4.41M", 0.3 -> "0.3"."""
    for unit, letter in _UNITS:
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"


def join(values: Sequence[Any]) -> str:
    """Several values as one name."""
    return ", ".join(map(word, values)) or "all"


# --- axes ---


class Scale:
    """Where the values of an axis lie: numbers where they are, anything else side by side."""

    def __init__(self, values: Sequence[Any], log: bool = False):
        self.values = list(dict.fromkeys(values))
        plain = (isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)
        self.numeric = all(plain)
        self.few = _FEW
        self.log = log and self.numeric and all(v >= 0 for v in self.values) and any(self.values)
        self.zero = self.log and 0 in self.values  # stands left of the logarithms

    def at(self, value: Any) -> int | float:
        """A value's place on the axis."""
        return value if self.numeric else self.values.index(value)

    def put(self, axes: Any) -> None:
        """Sets scale and ticks of the x axis; few numbers get a tick each."""
        from matplotlib import ticker

        if not self.numeric:
            words = [word(v) for v in self.values]
            tilt = 30 if sum(map(len, words)) > 60 else 0
            axes.set_xticks(
                range(len(words)), words, rotation=tilt, ha="right" if tilt else "center"
            )
            axes.set_xlim(-0.5, len(words) - 0.5)
            axes.grid(visible=False, axis="x")
            return
        if self.zero:
            first, last = (self._exponent(f(v for v in self.values if v)) for f in (min, max))
            axes.set_xscale("symlog", linthresh=10.0**first, linscale=0.5)
            axes.xaxis.set_minor_locator(ticker.NullLocator())
            ticks = [0.0, *(10.0**k for k in range(first, last + 1))]
            axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
        elif self.log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(ticker.NullLocator())
            subs = (1,) if max(self.values) > 300 * min(self.values) else (1, 3)
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=subs, numticks=8))
        if not self.zero and len(self.values) <= self.few and self._apart():
            axes.xaxis.set_major_locator(ticker.FixedLocator(sorted(self.values)))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: short(float(x))))

    @staticmethod
    def _exponent(value: int | float) -> int:
        return math.floor(math.log10(value))

    def _apart(self) -> bool:
        """Whether neighbouring ticks leave room for their numbers."""
        at = sorted(math.log10(v) if self.log else v for v in self.values)
        gaps = [b - a for a, b in zip(at, at[1:], strict=False)]
        wide = _LETTER * max((len(short(v)) for v in self.values), default=0) + 0.06
        return not gaps or min(gaps) * _AXES >= wide * (at[-1] - at[0])


def finish(figure: Any, axes: Any, title: str, x: str, y: str, note: str = "") -> None:
    """Title, labels, legend beside the axes where no data lie, a line of small print below."""
    # Wrapped to what the axes are likely to leave it: a legend stands to the right.
    room = int(10.5 * (figure.get_figwidth() - 1.9))
    lines = (textwrap.fill(line, max(room, 24)) for line in title.splitlines())
    axes.set_title("\n".join(lines), loc="left")
    axes.set(xlabel=x, ylabel=y)
    handles, names = axes.get_legend_handles_labels()
    if handles:
        wide = _LETTER * max(map(len, names)) + 0.6
        figure.set_figwidth(figure.get_figwidth() + max(wide - _LEGEND, 0))
        figure.legend(handles, names, loc="outside right upper", alignment="left")
    if note:
        figure.supxlabel(note, fontsize=7, color=GREY, x=0.01, ha="left")


def name_points(
    figure: Any, axes: Any, points: Sequence[tuple[int | float, int | float]], names: Sequence[str]
) -> None:
    """Writes a name beside each point, on the side where it covers least."""
    figure.draw_without_rendering()  # places are known only after the layout
    pixel = 72 / figure.dpi  # in points
    bounds = (axes.bbox.extents * pixel).tolist()
    at = [(axes.transData.transform(point) * pixel).tolist() for point in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    how = {"textcoords": "offset points", "fontsize": 8, "color": "#333333", "in_layout": False}
    for (x, y), name, point in zip(at, names, points, strict=True):
        text = axes.annotate(name, point, xytext=(0, 0), **how)
        extent = text.get_window_extent()
        wide, high = extent.width * pixel, extent.height * pixel
        sides = [
            (dx, dy)
            for dy in (-high / 2, 7.0, -high - 7, 7 + high, -2 * high - 7)
            for dx in (8.0, -wide - 8, -wide / 2)
            if dx != -wide / 2 or dy != -high / 2  # not on the point itself
        ]
        boxes = [(x + dx, y + dy - 1, x + dx + wide, y + dy + high + 1) for dx, dy in sides]
        best = min(range(len(sides)), key=lambda i: _cost(boxes[i], taken, bounds))
        taken.append(boxes[best])
        text.set_position(sides[best])


def _cost(box: tuple, taken: list[tuple], bounds: Sequence[float]) -> float:
    """The area of a box that lies on others, and much for what lies outside."""
    area = 0.0
    for other in taken:
        wide = min(box[2], other[2]) - max(box[0], other[0])
        high = min(box[3], other[3]) - max(box[1], other[1])
        area += max(wide, 0) * max(high, 0)
    outside = max(bounds[0] - box[0], 0) + max(box[2] - bounds[2], 0)
    return area + 100 * (outside + max(bounds[1] - box[1], 0) + max(box[3] - bounds[3], 0))
