"""The command line that would make a result again, as far as its parameters tell."""

from __future__ import annotations

from featviz.gallery.entries import Entry


def command_line(entry: Entry) -> str | None:
    """A line to paste into a terminal, or None when the parameters do not tell it."""
    return None
