"""A result with its place in the site, and what its page shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import median_high
from urllib.parse import quote

from featviz.gallery.kinds import Group, Kind
from featviz.gallery.reader import Entry, Figure


@dataclass(frozen=True)
class ResultPage:
    """A result with its place in the site."""

    entry: Entry
    slug: str
    kind: Kind
    group: Group
    model: str
    """whose units it shows, as in `UnitPage`"""

    @property
    def page(self) -> str:
        """Its page, from the top of the site."""
        return f"results/{self.slug}.html"

    @property
    def heading(self) -> str:
        """Its title for readers new to the field, or else its own."""
        return self.kind.heading or self.entry.title

    @property
    def of_model(self) -> str:
        """The name of its model."""
        return self.model or (self.entry.model.name if self.entry.model else "")

    def href(self, file: str) -> str:
        """A file of the result as a link from the top of the site."""
        return quote(f"results/{self.slug}/{file}")

    @property
    def captions(self) -> dict[str, str]:
        """The caption of each figure by its file, without sentences that stand above it."""
        said: set[str] = set()
        shown = {}
        for figure in self.main_figures:
            sentences = _sentences(figure.caption)
            new = [text for text in sentences if text not in said]
            shown[figure.file] = " ".join(new or sentences[:1])
            said.update(sentences)
        return shown

    @property
    def of_all(self) -> str:
        """What the captions of the whole grid say alike, to be said once above it."""
        alike = [_sentences(" ".join(figure.caption_parts)) for figure in self.grid]
        return (
            " ".join(text for text in alike[0] if all(text in own for own in alike))
            if alike
            else ""
        )

    def own_words(self, figure: Figure) -> str:
        """What the caption of a figure of the grid says of it alone."""
        first = figure.caption_parts[0]
        return "" if first in _sentences(self.of_all) else first

    @property
    def grid(self) -> list[Figure]:
        """Figures of one unit each, if there are at least three: a grid shows them."""
        figures = self.entry.figures
        single = [f for f in figures if len(f.units) == 1 and not f.detail and not f.vector]
        return single if len(single) >= 3 else []

    @property
    def wide_grid(self) -> bool:
        """Whether the grid's figures are strips, which need a wide column."""
        return bool(self.grid) and median_high(f.shape for f in self.grid) > 2

    @property
    def main_figures(self) -> list[Figure]:
        """All the others."""
        in_grid = set(self.grid)
        return [f for f in self.entry.figures if f not in in_grid and not f.detail]

    @property
    def thumbnail(self) -> Figure | None:
        """The picture on the card."""
        return next(iter([*self.main_figures, *self.grid]), None)

    @property
    def whole_thumbnail(self) -> bool:
        """Whether the card must show all of it: plots, but not tall sheets of pictures."""
        figure = self.thumbnail
        if figure is None or not figure.plot or figure.pixelated:
            return False
        return figure.shape > 1.6 or figure.vector


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.:;]) +(?=[A-Z])", text) if part]
