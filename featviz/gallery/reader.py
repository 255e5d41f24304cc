"""Result folders as the gallery needs them: read, checked, and with nothing left to trust.

Everything in a result.json may have been written by anybody. Texts stay plain texts (templates
escape them); file names are taken only if they lie inside their folder; what is wrong is said in
`Entry.problems`, and a folder that cannot be shown at all is an `Unreadable`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from featviz import results
from featviz.errors import UserError
from featviz.results import Number

PICTURES = frozenset({".png", ".svg", ".gif", ".jpg", ".jpeg", ".webp"})
PAGES = frozenset({".html", ".htm"})
ARRAYS = frozenset({".npz", ".npy", ".safetensors"})
WITH_PAGES = PICTURES | PAGES | {".js", ".css", ".json", ".csv", ".bin", ".woff2"}
"""what an HTML page of a result may lean on; copied with it"""

NAMING = frozenset({"unit", "picture", "name"})
"""columns of tables in which a unit may be named"""

MARK = "gallery.json"
"""the file that makes a folder a gallery, and no place to look for results"""


@dataclass(frozen=True)
class Unreadable:
    """A folder that was left out, by its name in the run, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Figure:
    """A picture or plot of a result."""

    file: str
    """relative to the result folder, with forward slashes"""
    caption: str
    alt: str
    units: tuple[str, ...]
    """as "conv5:12"; positions ("@6,6") are dropped"""
    pixelated: bool
    width: int | None
    height: int | None
    plot: bool
    """drawn on white, so that it needs a light ground"""
    detail: bool = False
    """stands on its unit's page only"""

    @property
    def caption_parts(self) -> tuple[str, str]:
        """What a small picture under its unit's name needs, and the rest for its large view.

        "Kernel of conv1:3: stripes at 90 degrees. Scaled by ..." gives "stripes at 90 degrees."
        """
        first, stop, rest = self.caption.partition(". ")
        if len(self.units) == 1:
            _, named, told = first.partition(self.units[0])
            told = told.lstrip(":,; ")
            if named and not told.rstrip(".") and rest:  # "conv5:3. Score 36.5."
                first, stop, rest = rest.partition(". ")
            elif named and len(told) > 3:
                first = told
        return first + stop.strip(), rest


@dataclass(frozen=True)
class Table:
    """A CSV of a result."""

    file: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def numeric_columns(self) -> list[bool]:
        """Which columns hold numbers only, so that they are set flush right."""
        return numeric_columns(len(self.columns), self.rows)

    def rows_of(self, unit: str, layer: str) -> Iterator[tuple[tuple[str, str], ...]]:
        """The rows about a unit, as (column, cell) without the cells that name it.

        The unit stands in a column "unit", "picture" or "name": as "conv5:12", or in "unit" as 12
        where a column "layer" or else the result's own `layer` says the rest.
        """
        naming = [i for i, column in enumerate(self.columns) if column in NAMING]
        if not naming:
            return
        layer_at = self.columns.index("layer") if "layer" in self.columns else None
        for row in self.rows:
            if len(row) != len(self.columns):
                continue
            within = layer if layer_at is None else row[layer_at]
            names = [
                unit_name(f"{within}:{cell}" if column == "unit" and ":" not in cell else cell)
                for column, cell in zip(self.columns, row, strict=True)
            ]
            if any(names[i] == unit for i in naming):
                yield tuple(
                    (column, cell)
                    for i, (column, cell) in enumerate(zip(self.columns, row, strict=True))
                    if names[i] != unit and i != layer_at
                )


@dataclass(frozen=True)
class Source:
    """The model or the pictures of a result: what can be said of them on a line."""

    name: str
    facts: str
    """ "224 pixels, 200 classes" or "900 pictures" """
    sha256: str
    count: int = 0
    """of pictures"""


@dataclass(frozen=True)
class Download:
    """A file that is linked, and whether it is in the site."""

    file: str
    caption: str
    size: int


@dataclass(frozen=True)
class Entry:
    """One result folder."""

    folder: Path
    name: str
    """its path inside the run"""
    kind: str
    title: str
    command: str
    """the command line that made it; "" for a result made in Python"""
    model: Source | None
    data: Source | None
    parameters: dict[str, Any]
    seed: int | None
    versions: dict[str, str]
    created: str
    seconds: float | None
    numbers: dict[str, Number]
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    pages: tuple[Download, ...]
    arrays: tuple[Download, ...]
    companions: tuple[str, ...]
    """files that its pages may need"""
    warnings: tuple[str, ...]
    problems: tuple[str, ...]
    """what was refused or missing"""


def read_entries(root: Path) -> tuple[list[Entry], list[Unreadable]]:
    """All results in a folder, in the order of their names, and those that were left out."""
    entries: list[Entry] = []
    left_out: list[Unreadable] = []
    for folder in results.list_results(root):
        inside = folder.relative_to(root)
        if any(part.startswith(".") for part in inside.parts) or _in_gallery(folder, root):
            continue
        name = clean(inside.as_posix() if inside.parts else root.resolve().name)
        try:
            entries.append(read_entry(folder, name))
        except UserError as error:
            reason = str(error)
            for path in (folder / "result.json", folder):
                reason = reason.removeprefix(f"{path} ").replace(str(path), name)
            left_out.append(Unreadable(name, clean(reason)))
    return entries, left_out


def _in_gallery(folder: Path, root: Path) -> bool:
    within = [folder, *(p for p in folder.parents if p.is_relative_to(root))]
    return any((p / MARK).is_file() for p in within)


def read_entry(folder: Path, name: str) -> Entry:
    """One result folder. Raises UserError if there is nothing in it that can be shown."""
    document = results.read_result(folder)
    problems: list[str] = []
    tables = tuple(_tables(folder, document, problems))
    figures, pages = _figures(folder, document, problems)
    listed = {page.file for page in pages}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PAGES and path.name not in listed and _plain_file(path):
            pages.append(Download(path.name, "", path.stat().st_size))
    seconds = document.get("seconds")
    seed = document.get("seed")
    return Entry(
        folder=folder,
        name=name,
        kind=_text(document.get("kind")) or "result",
        title=_text(document.get("title")) or name,
        command=_text(document.get("command")),
        model=_source(document.get("model"), input_size="pixels", classes="classes"),
        data=_source(document.get("data"), count="pictures"),
        parameters=_mapping(document.get("parameters")),
        seed=seed if isinstance(seed, int) else None,
        versions={k: _text(v) for k, v in _mapping(document.get("versions")).items()},
        created=_text(document.get("created")),
        seconds=seconds if isinstance(seconds, int | float) else None,
        numbers=_numbers(document),
        figures=tuple(figures),
        tables=tables,
        pages=tuple(pages),
        arrays=tuple(_arrays(folder, document, problems)),
        companions=tuple(_companions(folder)) if pages else (),
        warnings=tuple(filter(None, map(_text, _list(document.get("warnings"))))),
        problems=tuple(problems),
    )


def _figures(
    folder: Path, document: dict[str, Any], problems: list[str]
) -> tuple[list[Figure], list[Download]]:
    figures: list[Figure] = []
    pages: list[Download] = []
    for item in _items(document, "figures", problems):
        if _text(item.get("file")).lower().endswith(".pdf"):
            continue  # for print; a page shows the picture that lies beside it
        file = _inside(folder, item.get("file"), PICTURES | PAGES, problems)
        if file is None:
            continue
        caption = _text(item.get("caption"))
        path = folder / file
        if path.suffix.lower() in PAGES:
            pages.append(Download(file, caption, path.stat().st_size))
            continue
        looked = _look(path)
        if looked is None:
            problems.append(f"{file} is no picture that can be read")
            continue
        width, height, plot = looked
        units = dict.fromkeys(unit_name(_text(u)) for u in _list(item.get("units")))
        figures.append(
            Figure(
                file=file,
                caption=caption,
                alt=_text(item.get("alt")) or caption or f"Figure {len(figures) + 1}, {file}",
                units=tuple(u for u in units if u),
                pixelated=item.get("pixelated") is True,
                width=width,
                height=height,
                plot=plot,
                detail=item.get("detail") is True,
            )
        )
    return figures, pages


def unit_name(text: str) -> str:
    """ "conv5:12" of "conv5:12" or "conv5:12@6,6"; "" when it names no unit."""
    name = re.sub(r"@\d+,\d+$", "", text.strip())
    layer, _, unit = name.partition(":")
    return name if layer.strip() and unit.strip() else ""


def _look(path: Path) -> tuple[int | None, int | None, bool] | None:
    """Width, height, and whether it is drawn on white; None for what is no picture."""
    if path.suffix.lower() == ".svg":
        return _look_at_svg(path)
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            width, height = picture.size
            rgb = picture.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        return None
    sides = ((0, 0, width, 1), (0, height - 1, width, height),
             (0, 0, 1, height), (width - 1, 0, width, height))
    edges = [np.asarray(rgb.crop(side)) for side in sides]
    return width, height, min(edge.min() for edge in edges) >= 250


def _look_at_svg(path: Path) -> tuple[int | None, int | None, bool] | None:
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(4096)
    tag = re.search(r"<svg[^>]*>", head, re.DOTALL)
    if tag is None:
        return None
    box = re.search(r"viewBox=[\"']\s*[\d.+-]+[\s,]+[\d.+-]+[\s,]+([\d.]+)[\s,]+([\d.]+)", tag[0])
    if box is None:
        return None, None, True
    points = 4 / 3 if re.search(r"width=[\"'][\d.]+pt", tag[0]) else 1.0
    return round(float(box[1]) * points), round(float(box[2]) * points), True


def _tables(folder: Path, document: dict[str, Any], problems: list[str]) -> Iterator[Table]:
    for item in _items(document, "tables", problems):
        file = _inside(folder, item.get("file"), frozenset({".csv"}), problems)
        if file is None:
            continue
        try:
            with (folder / file).open(newline="", encoding="utf-8", errors="replace") as lines:
                rows = [tuple(map(clean, row)) for row in csv.reader(lines)]
        except (OSError, csv.Error) as error:
            problems.append(f"{file} cannot be read ({clean(str(error))})")
            continue
        head = rows[0] if rows else ()
        yield Table(file, _text(item.get("caption")), head, tuple(rows[1:]))


def _arrays(folder: Path, document: dict[str, Any], problems: list[str]) -> Iterator[Download]:
    for item in _items(document, "arrays", problems):
        file = _inside(folder, item.get("file"), ARRAYS, problems)
        if file is not None:
            size = (folder / file).stat().st_size
            yield Download(file, _text(item.get("caption")), size)


def _companions(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        nested = any(
            (parent / mark).is_file()
            for parent in (folder / inside).parents
            if parent != folder and parent.is_relative_to(folder)
            for mark in ("result.json", MARK)
        )
        hidden = any(part.startswith(".") for part in inside.parts)
        kept = path.suffix.lower() in WITH_PAGES and inside.name != "result.json"
        if kept and not nested and not hidden and _plain_file(path):
            yield inside.as_posix()


def _plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _inside(
    folder: Path, name: object, suffixes: frozenset[str], problems: list[str]
) -> str | None:
    """The name of a file in the folder, or None with the reason among the problems."""
    text = _text(name)
    if not text:
        problems.append("a file without a name is listed")
        return None
    path = PurePosixPath(text)
    outside = path.is_absolute() or ".." in path.parts or "\\" in text or "\0" in text
    if outside or not (folder / path).resolve().is_relative_to(folder.resolve()):
        problems.append(f"{text} was refused: it lies outside the result folder")
    elif path.suffix.lower() not in suffixes:
        problems.append(f"{text} was refused: no {_suffix_words(suffixes)} file")
    elif not (folder / path).is_file():
        problems.append(f"{text} is missing")
    else:
        return path.as_posix()
    return None


def _suffix_words(suffixes: frozenset[str]) -> str:
    return ", ".join(sorted(s[1:] for s in suffixes))


def _items(document: dict[str, Any], key: str, problems: list[str]) -> Iterator[dict[str, Any]]:
    listed = document.get(key)
    if listed is not None and not isinstance(listed, list):
        problems.append(f"{key} is no list")
    for item in _list(listed):
        if isinstance(item, dict):
            yield item
        else:
            problems.append(f"{key} has an item that is no object")


def _source(record: object, **counted: str) -> Source | None:
    fields = _mapping(record)
    name = _text(fields.get("name"))
    facts = [
        f"{fields[key]:,} {noun}" for key, noun in counted.items()
        if isinstance(fields.get(key), int) and fields[key]
    ]
    count = fields.get("count")
    size = count if isinstance(count, int) else 0
    return Source(name, ", ".join(facts), _text(fields.get("sha256")), size) if name else None


def _numbers(document: dict[str, Any]) -> dict[str, Number]:
    found: dict[str, Number] = {}
    for name, item in _mapping(document.get("numbers")).items():
        fields = item if isinstance(item, dict) else {"value": item}
        value = fields.get("value")
        if isinstance(value, bool | list | dict):
            value = one_line(value)
        if isinstance(value, str):
            value = clean(value)
        found[name] = Number(value, _text(fields.get("unit")), _text(fields.get("meaning")))
    return found


def one_line(value: Any) -> str:
    """A parameter's value on one line: words as they are, all else as JSON."""
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _mapping(value: object) -> dict[str, Any]:
    return {clean(str(k)): v for k, v in value.items()} if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return clean(value) if isinstance(value, str) else ""


def clean(text: str) -> str:
    """Text that a UTF-8 page can hold: no lone surrogates, no control characters."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c >= " " or c in "\t\n" else "\N{REPLACEMENT CHARACTER}" for c in whole)


def short_cell(cell: str) -> str:
    """A cell of a table with no more figures than anyone reads: 0.0662913 becomes 0.06629."""
    if len(cell) > 6 and "." in cell and _is_number(cell) and "," not in cell:
        return f"{float(cell):.4g}" if not cell.endswith("%") else cell
    return cell


def numeric_columns(count: int, rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which of `count` columns hold nothing but numbers."""
    cells = [[row[i] for row in rows if i < len(row) and row[i]] for i in range(count)]
    return [bool(column) and all(map(_is_number, column)) for column in cells]


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "").rstrip("%"))
    except ValueError:
        return False
    return True
