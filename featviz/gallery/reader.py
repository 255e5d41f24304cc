"""Result folders as the gallery needs them: read and validated against a schema.

Anybody may have written a result.json. Every field is checked against `RESULT`; texts stay plain
texts (templates escape them); a file is taken only if it lies inside its folder. What is wrong is
listed in `Entry.problems`, and a folder that cannot be shown at all is an `Unreadable`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from featviz import results
from featviz.errors import UserError
from featviz.requirements import Check
from featviz.results import Number
from featviz.schema import conform

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
    """shown on its unit's page only"""

    @property
    def vector(self) -> bool:
        """Whether it is an SVG."""
        return self.file.lower().endswith(".svg")

    @property
    def shape(self) -> float:
        """Width over height; 1 where they are not known."""
        return (self.width or 1) / (self.height or 1)

    @property
    def caption_parts(self) -> tuple[str, str]:
        """The first sentence without the unit's name, for a small picture, and the rest.

        "Kernel of conv1:3: stripes at 90 degrees. Scaled by ..." gives "stripes at 90 degrees."
        """
        first, stop, rest = self.caption.partition(". ")
        if len(self.units) == 1:
            _, named, after = first.partition(self.units[0])
            after = after.lstrip(":,; ")
            if named and not after.rstrip(".") and rest:  # "conv5:3. Score 36.5."
                first, stop, rest = rest.partition(". ")
            elif named and len(after) > 3:
                first = after
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
        columns = range(len(self.columns))
        cells = [[row[i] for row in self.rows if i < len(row) and row[i]] for i in columns]
        return [bool(column) and all(map(_is_number, column)) for column in cells]

    def part_about(self, unit: str, layer: str) -> Table:
        """The rows about a unit, without empty columns and those that name the unit.

        The unit is named in a column "unit", "picture" or "name": as "conv5:12", or in "unit" as 12
        where a column "layer" or else the result's own `layer` says the rest.
        """
        columns = range(len(self.columns))
        layer_at = self.columns.index("layer") if "layer" in self.columns else None

        def names_unit(row: tuple[str, ...], i: int) -> bool:
            name = row[i]
            if self.columns[i] == "unit" and ":" not in name:
                name = f"{layer if layer_at is None else row[layer_at]}:{name}"
            return unit_name(name) == unit

        naming = [i for i in columns if self.columns[i] in NAMING]
        rows = [row for row in self.rows if len(row) == len(columns)]
        rows = [row for row in rows if any(names_unit(row, i) for i in naming)]
        shown = [
            i
            for i in columns
            if i != layer_at
            and any(row[i] for row in rows)
            and not all(names_unit(row, i) for row in rows)
        ]
        part = tuple(tuple(row[i] for i in shown) for row in rows)
        return Table(self.file, self.caption, tuple(self.columns[i] for i in shown), part)


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
    requirements: tuple[Check, ...]
    """what was required of the numbers, and whether it holds"""
    class_names: dict[str, Any]
    """of the model, by number: those that figures name"""
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
    problems: list[str] = []
    fields = _cleaned(conform(results.read_result(folder), RESULT, "", problems))
    model, data = fields["model"], fields["data"]
    tables = list(_tables(folder, fields["tables"], problems))
    figures, pages = _figures(folder, fields["figures"], problems)
    listed = {page.file for page in pages}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PAGES and path.name not in listed and _plain_file(path):
            pages.append(Download(path.name, "", path.stat().st_size))
    read = {
        "kind": fields["kind"] or "result",
        "title": fields["title"] or name,
        "model": _source(model, _size(model), _counted(model, "classes")),
        "data": _source(data, _counted(data, "count", "pictures")),
        "versions": {key: one_line(value) for key, value in fields["versions"].items()},
        "numbers": _numbers(fields["numbers"], problems),
        "requirements": tuple(map(_check, fields["requirements"])),
        "figures": tuple(figures),
        "tables": tuple(tables),
        "pages": tuple(pages),
        "arrays": tuple(_arrays(folder, fields["arrays"], problems)),
        "companions": tuple(_companions(folder)) if pages else (),
        "warnings": tuple(filter(None, fields["warnings"])),
    }
    return Entry(folder=folder, name=name, problems=tuple(problems), **(fields | read))


RESULT = {
    "kind": str,
    "title": str,
    "command": str,
    "model": {"name": str, "sha256": str, "input_size": object, "classes": int},
    "data": {"name": str, "sha256": str, "count": int},
    "parameters": dict,
    "seed": int,
    "versions": dict,
    "created": str,
    "seconds": float,
    "numbers": dict,
    "requirements": [
        {
            "requirement": str,
            "name": str,
            "field": str,
            "operator": str,
            "bound": object,
            "found": object,
            "met": bool,
            "unit": str,
            "note": str,
        }
    ],
    "class_names": dict,
    "figures": [
        {
            "file": str,
            "caption": str,
            "alt": str,
            "units": [str],
            "pixelated": bool,
            "detail": bool,
        }
    ],
    "tables": [{"file": str, "caption": str}],
    "arrays": [{"file": str, "caption": str}],
    "warnings": [str],
}
"""the fields of result.json that the gallery reads, with their types; `object` is anything"""

NUMBER = {"value": object, "unit": str, "meaning": str, "low": float, "high": float, "n": int}


def _cleaned(value: Any) -> Any:
    """A JSON value whose texts a UTF-8 page can hold."""
    if isinstance(value, dict):
        return {clean(name): _cleaned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return clean(value) if isinstance(value, str) else value


def _figures(
    folder: Path, listed: list[dict[str, Any]], problems: list[str]
) -> tuple[list[Figure], list[Download]]:
    figures: list[Figure] = []
    pages: list[Download] = []
    # A PDF is for print; a page shows the picture that lies beside it.
    shown = [item for item in listed if not item["file"].lower().endswith(".pdf")]
    for item, file in _inside(folder, shown, PICTURES | PAGES, problems):
        path = folder / file
        if path.suffix.lower() in PAGES:
            pages.append(Download(file, item["caption"], path.stat().st_size))
            continue
        looked = _look(path)
        if looked is None:
            problems.append(f"{file} is no picture that can be read")
            continue
        width, height, plot = looked
        read = {
            "file": file,
            "alt": item["alt"] or item["caption"] or f"Figure {len(figures) + 1}, {file}",
            "units": tuple(filter(None, dict.fromkeys(map(unit_name, item["units"])))),
        }
        figures.append(Figure(width=width, height=height, plot=plot, **(item | read)))
    return figures, pages


def unit_name(text: str) -> str:
    """ "conv5:12" of "conv5:12" or "conv5:12@6,6"; "" when it names no unit."""
    name = re.sub(r"@\d+,\d+$", "", text.strip())
    layer, _, unit = name.partition(":")
    return name if layer.strip() and unit.strip() else ""


_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(EOFError, RuntimeError, MemoryError, struct.error, zlib.error),
)
"""what pillow raises of a file that is no picture"""


def _look(path: Path) -> tuple[int | None, int | None, bool] | None:
    """Width, height, and whether it is drawn on white; None for what is no picture."""
    if path.suffix.lower() == ".svg":
        return _look_at_svg(path)
    import numpy as np
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures and odd tags
            with Image.open(path) as picture:
                width, height = picture.size
                rgb = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    except (*_UNREADABLE, Image.DecompressionBombError):
        return None
    pixels = np.asarray(rgb)
    edges = pixels[[0, -1]].min(), pixels[:, [0, -1]].min()
    return width, height, min(edges) >= 250


def _look_at_svg(path: Path) -> tuple[int | None, int | None, bool] | None:
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(4096)
    tag = re.search(r"<svg[^>]*>", head, re.DOTALL)
    if tag is None:
        return None
    box = re.search(r"viewBox=[\"']([^\"']*)", tag[0])
    sides = re.findall(r"[^\s,]+", box[1])[2:] if box else []
    if len(sides) != 2 or not all(re.fullmatch(r"\d{1,6}(\.\d{1,9})?", side) for side in sides):
        return None, None, True
    points = 4 / 3 if re.search(r"width=[\"'][\d.]+pt", tag[0]) else 1.0
    width, height = (round(float(side) * points) for side in sides)
    return width, height, True


def _tables(folder: Path, listed: list[dict[str, Any]], problems: list[str]) -> Iterator[Table]:
    for item, file in _inside(folder, listed, frozenset({".csv"}), problems):
        try:
            with (folder / file).open(newline="", encoding="utf-8", errors="replace") as lines:
                rows = [tuple(map(clean, row)) for row in csv.reader(lines)]
        except (OSError, csv.Error) as error:
            problems.append(f"{file} cannot be read ({clean(str(error))})")
            continue
        head = rows[0] if rows else ()
        yield Table(file, item["caption"], head, tuple(rows[1:]))


def _arrays(folder: Path, listed: list[dict[str, Any]], problems: list[str]) -> Iterator[Download]:
    for item, file in _inside(folder, listed, ARRAYS, problems):
        yield Download(file, item["caption"], (folder / file).stat().st_size)


def _companions(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        nested = any(
            (folder / parent / mark).is_file()
            for parent in list(inside.parents)[:-1]
            for mark in ("result.json", MARK)
        )
        hidden = any(part.startswith(".") for part in inside.parts)
        kept = path.suffix.lower() in WITH_PAGES and inside.name != "result.json"
        if kept and not nested and not hidden and _plain_file(path):
            yield inside.as_posix()


def _plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _inside(
    folder: Path, listed: list[dict[str, Any]], suffixes: frozenset[str], problems: list[str]
) -> Iterator[tuple[dict[str, Any], str]]:
    """The items whose file is in the folder, with its name; the others are among the problems."""
    for item in listed:
        text = item["file"]
        path = PurePosixPath(text)
        outside = path.is_absolute() or ".." in path.parts or "\\" in text or "\0" in text
        if not text:
            problems.append("a file without a name is listed")
        elif outside or not (folder / path).resolve().is_relative_to(folder.resolve()):
            problems.append(f"{text} was refused: it lies outside the result folder")
        elif path.suffix.lower() not in suffixes:
            names = ", ".join(sorted(suffix[1:] for suffix in suffixes))
            problems.append(f"{text} was refused: no {names} file")
        elif not os.path.isfile(folder / path):
            problems.append(f"{text} is missing")
        else:
            yield item, path.as_posix()


def _source(record: dict[str, Any], *facts: str) -> Source | None:
    if not record["name"]:
        return None
    return Source(
        record["name"], ", ".join(filter(None, facts)), record["sha256"], record.get("count") or 0
    )


def _counted(record: dict[str, Any], key: str, noun: str = "") -> str:
    return f"{record[key]:,} {noun or key}" if record[key] else ""


def _size(record: dict[str, Any]) -> str:
    """The input size, written as a side or as [height, width]."""
    size = record["input_size"]
    sides = size if isinstance(size, list) else [size]
    if not all(isinstance(side, int) and side > 1 for side in sides):
        return ""
    return f"{' x '.join(str(side) for side in dict.fromkeys(sides))} pixels"


def _numbers(listed: dict[str, Any], problems: list[str]) -> dict[str, Number]:
    found: dict[str, Number] = {}
    for name, item in listed.items():
        record = item if isinstance(item, dict) else {"value": item}
        fields = _cleaned(conform(record, NUMBER, f"numbers.{name}", problems))
        if isinstance(fields["value"], str | bool | list | dict):
            fields["value"] = one_line(fields["value"])
        found[name] = Number(**fields)
    return found


def _check(record: dict[str, Any]) -> Check:
    """A requirement; values that are no numbers become texts."""
    values = {
        key: value if isinstance(value, int | float) and not isinstance(value, bool) else text
        for key, value, text in (
            (key, record[key], "" if record[key] is None else one_line(record[key]))
            for key in ("bound", "found")
        )
    }
    return Check(**(record | values))


def one_line(value: Any) -> str:
    """A parameter's value on one line: text as it is, all else as JSON."""
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def clean(text: str) -> str:
    """Text that a UTF-8 page can hold: no lone surrogates, no control characters."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c >= " " or c in "\t\n" else "\N{REPLACEMENT CHARACTER}" for c in whole)


def short_cell(cell: str) -> str:
    """A cell of a table with no more figures than anyone reads: 0.0662913 becomes 0.06629."""
    long = len(cell) > 6 and "." in cell and "," not in cell and not cell.endswith("%")
    return f"{float(cell):.4g}" if long and _is_number(cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "").rstrip("%"))
    except ValueError:
        return False
    return True
