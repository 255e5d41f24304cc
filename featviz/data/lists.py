"""Lists of pictures with labels: text, CSV, TSV, JSON lines, Parquet.

.txt          one path a line, its label behind a tab (or a blank: "a.jpg 65")
.csv .tsv     columns by their headings; without headings the path first, then the label
.jsonl        one object a line, {"path": "a.jpg", "label": "cat"}
.parquet      columns by their names
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from featviz.errors import UserError
from featviz.pictures import images

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img")
LABELS = ("label", "class", "target", "category", "class_name", "synset")
"""headings of the columns, in any case; the first that occurs is taken"""

_ENDINGS = "|".join(sorted(ending[1:] for ending in images.SUFFIXES))
_SPACED = re.compile(rf"(.*\.(?:{_ENDINGS}))\s+(\S.*)", re.IGNORECASE)


class Row(NamedTuple):
    """A picture of a list."""

    path: str
    label: str
    """a class by name, synset or index; "" where none is given"""


def read_list(file: Path) -> list[Row]:
    """The pictures of a list, in its order.

    Raises:
        UserError: The file cannot be read, or has no column of paths.
    """
    kind = file.suffix.lower()
    if kind == ".parquet":
        return _parquet(file)
    text = read_text(file, errors="surrogateescape")
    if kind == ".txt":
        return read_lines(text.splitlines())
    if kind in {".jsonl", ".ndjson"}:
        return list(_json_lines(file, text))
    return _table(file, text, "\t" if kind == ".tsv" else ",")


def read_text(file: Path, *, errors: str = "strict") -> str:
    """A text in UTF-8 or, with a byte order mark, UTF-16 or UTF-32; without the mark.

    errors: what to do with bytes that are no UTF-8, as in `bytes.decode`

    Raises:
        UserError: It cannot be read, or is no text.
        UnicodeDecodeError: With errors "strict".
    """
    try:
        content = file.read_bytes()
    except (OSError, ValueError, MemoryError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read ({why})") from None
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            try:
                return content[len(mark) :].decode(encoding)
            except UnicodeDecodeError:
                raise UserError(f"{file} is no {encoding} text, though it begins so") from None
    if content[:2].count(0) == 1 or content[:4].count(0) > 1:
        raise UserError(f"{file} is no text, or UTF-16 without its mark; save it as UTF-8")
    return content.decode(errors=errors)


_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)


def read_lines(lines: Iterable[str]) -> list[Row]:
    """The pictures of a text, one a line."""
    return [_line(line) for line in lines if line.strip()]


def _line(line: str) -> Row:
    path, tab, rest = line.partition("\t")
    if tab:
        return Row(path.strip(), rest.partition("\t")[0].strip())
    ends = line.rstrip().lower().endswith(tuple(images.SUFFIXES))
    spaced = None if ends else _SPACED.fullmatch(line.strip())
    return Row(*spaced.groups()) if spaced else Row(line.strip(), "")


def _table(file: Path, text: str, comma: str) -> list[Row]:
    first = text.partition("\n")[0]
    if comma == "," and first.count(";") > first.count(","):
        comma = ";"  # as Excel writes it where the decimal point is a comma
    try:
        lines = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=comma) if row]
    except csv.Error as error:
        raise UserError(f"{file} is no table that can be read ({error})") from None
    if not lines:
        return []
    heading = [cell.strip() for cell in lines[0]]
    if not _is_path(heading[0]) or _column(heading, PATHS) is not None:
        at, label = _columns(file, heading)
        lines = lines[1:]
    else:
        at, label = 0, 1 if len(heading) > 1 else None
    return [Row(_cell(line, at).strip(), _cell(line, label).strip()) for line in lines if any(line)]


def _is_path(cell: str) -> bool:
    return cell.lower().endswith(tuple(images.SUFFIXES))


def _cell(line: Sequence[str], at: int | None) -> str:
    return line[at] if at is not None and at < len(line) else ""


def _columns(file: Path, names: Sequence[str]) -> tuple[int, int | None]:
    """Which columns are paths and labels."""
    path = _column(names, PATHS)
    if path is None:
        shown = ", ".join(repr(name) for name in names[:8])
        raise UserError(
            f"{file} has no column of paths (it has {shown}); name one 'path', and 'label' for "
            "the classes"
        )
    return path, _column(names, LABELS)


def _column(names: Sequence[str], known: Iterable[str]) -> int | None:
    folded = [name.strip().casefold() for name in names]
    return next((folded.index(name) for name in known if name in folded), None)


def _json_lines(file: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, Mapping):
            raise UserError(f"line {number} of {file} is no JSON object; one a line is needed")
        names = list(found)
        path, label = _columns(file, names)
        value = found[names[path]]
        if not isinstance(value, str):
            raise UserError(
                f"line {number} of {file}: {names[path]!r} is no path but {value!r:.40}"
            )
        yield Row(value, "" if label is None else as_label(found[names[label]]))


def _parquet(file: Path) -> list[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UserError(f"{file} needs pyarrow: pip install 'featviz[data]'") from None
    try:
        with file.open("rb") as opened:  # pyarrow takes no path that is not UTF-8
            stored = pyarrow.parquet.ParquetFile(opened)
            names = stored.schema_arrow.names
            path, label = _columns(file, names)
            wanted = [names[path]] if label is None else [names[path], names[label]]
            table = stored.read(wanted)
        paths = table.column(0).to_pylist()
        labels = table.column(1).to_pylist() if label is not None else [None] * len(paths)
    except (pa.ArrowException, OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{file} is no Parquet file that can be read ({first})") from None
    if not all(isinstance(found, str) for found in paths):
        raise UserError(f"{file}: the column {wanted[0]!r} holds no paths; text is needed")
    return [Row(p, as_label(value)) for p, value in zip(paths, labels, strict=True)]


def as_label(value: Any) -> str:
    """A label as text: 3, 3.0 and "3" are "3"; nothing and NaN are ""."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def read_label(content: bytes, name: str) -> str:
    """The label in a file beside a picture: the text of a .cls, or a field of a .json."""
    text = content.decode(errors="replace").strip()
    if not name.endswith(".json"):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(found, Mapping):
        return as_label(found) if isinstance(found, int | str) else ""
    names = list(found)
    at = _column(names, LABELS)
    return "" if at is None else as_label(found[names[at]])
