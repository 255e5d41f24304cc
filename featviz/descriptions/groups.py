"""Groups of classes: from a file or a mapping, of classes or of other groups.

A file has a line a class: `class TAB group`, and further columns for the groups around that one
(`goldfish TAB fish TAB animal`). A class may be in several groups. `imagenet_groups` are ours, of
ImageNet's 1,000 classes by synset.
"""

from __future__ import annotations

import csv
import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

from featviz.errors import UserError, nearest

Groups = Mapping[str, Sequence[str]]
"""the members of each group: classes, or other groups"""

_LEFT_OUT = "other object"
"""what of ImageNet's classes belongs to no group"""


def read_groups(file: str | Path) -> dict[str, list[str]]:
    """The groups of a file with tabs (.csv: commas). Raises UserError."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UserError(f"{file} cannot be read as groups: {why}") from None
    return parse_groups(text, str(file), "," if Path(file).suffix.lower() == ".csv" else "\t")


def parse_groups(text: str, name: str, delimiter: str = "\t") -> dict[str, list[str]]:
    """The groups of a text. Raises UserError for a line without a group, or none at all."""
    groups: dict[str, list[str]] = {}
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1):
        cells = [cell.strip() for cell in row if cell.strip()]
        if not cells or cells[0].startswith("#"):
            continue
        if len(cells) == 1:
            kind = "comma" if delimiter == "," else "tab"
            raise UserError(f"{name}, line {number}: write a class, a {kind} and its group")
        for member, group in pairwise(cells):
            members = groups.setdefault(group, [])
            if member not in members:
                members.append(member)
    if not groups:
        raise UserError(f"{name} has no groups; write a class, a tab and its group on each line")
    return groups


@cache
def imagenet_groups() -> dict[str, list[str]]:
    """Our groups of ImageNet's classes, by synset."""
    file = importlib.resources.files("featviz") / "assets" / "imagenet_groups.tsv"
    groups = parse_groups(file.read_text(encoding="utf-8"), "imagenet_groups.tsv")
    return {name: members for name, members in groups.items() if name != _LEFT_OUT}


def resolve_groups(
    groups: Groups, find: Callable[[str], Sequence[int]], known: Sequence[str], *, given: bool
) -> dict[str, list[int]]:
    """The classes of each group by number, without groups that have none.

    Args:
        groups: Members of each group; members that are not there are left out.
        find: The numbers of the classes that a name stands for.
        known: Names of the classes, for the error.
        given: Whether the user gave the groups, so that some must have classes.

    Raises:
        UserError: A group contains itself, or no group has a class.
    """

    def classes(group: str, around: tuple[str, ...]) -> set[int]:
        if group in around:
            raise UserError(
                f"group {group!r} contains itself ({' in '.join((group, *around[::-1]))}); "
                "leave one of these lines out"
            )
        found: set[int] = set()
        for member in groups[group]:
            if member in groups and member != group:
                found |= classes(member, (*around, group))
            else:
                found.update(find(member))
        return found

    resolved = {name: sorted(classes(name, ())) for name in groups}
    if given and groups and not any(resolved.values()):
        member = next((one for members in groups.values() for one in members), "")
        raise UserError(
            f"none of the {len(groups)} groups has a class of the data (a member: {member!r}, "
            f"a class: {known[0]!r}){nearest(member, known)}"
        )
    return {name: found for name, found in resolved.items() if found}
