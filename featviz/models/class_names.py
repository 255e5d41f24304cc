"""Files of class names, in the spellings that are met: lines, JSON, Python, YAML, CSV.

    tench                                  a name a line
    n01440764 <tab or blank> tench, Tinca  a synset before it
    0: tench                               an index before it (also 0 tench; 0,tench)
    {0: 'tench', ...}  ["tench", ...]      a dictionary or list of Python or JSON
    {"0": ["n01440764", "tench"], ...}     Keras' class_index.json
    {"n01440764": "tench", ...}            by synset, sorted
    {"tench": 0, ...}                      class_to_idx
    index,synset,name                      CSV with headings

What could be read in two ways is refused.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from featviz.data.lists import read_text
from featviz.errors import UserError

Classes = list[tuple[str, str]]
"""(synset or "", name) of each class"""

_SYNSET = re.compile(r"n\d{8}")
_SYNSET_LINE = re.compile(r"(n\d{8})(?:[ \t]*[,:\t][ \t]*|[ ]+)(\S.*)")
_INDEX_LINE = re.compile(r"(\d{1,7})(?:\s*[,:;\t]\s*|\s+)(\S.*)")
_NAMES = ("name", "names", "class_name", "classname", "class", "label", "category", "words", "text")
_SYNSETS = ("synset", "wnid", "wordnet_id", "folder")
_INDICES = ("index", "idx", "class_id", "class_index", "id", "target")
_OTHERS = ("synonyms", "description", "definition", "gloss")


def read_class_file(path: str | Path, *, ordered: bool = True) -> Classes:
    """The classes that a file names, in the order of the logits.

    ordered: refuse a file that does not say in which order they are

    Raises:
        UserError: It cannot be read, names a class twice, or can be read in two ways.
    """
    path = Path(path)
    if not os.path.isfile(path):  # false for a name too long or with NUL, too
        raise UserError(f"{path}: no such file; --classes takes a text file, one class a line")
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no UTF-8 text (byte {error.object[error.start]:#x} at {error.start}); "
            "save it as UTF-8"
        ) from None
    try:
        return parse_classes(text, ordered=ordered)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def parse_classes(text: str, *, ordered: bool = True) -> Classes:
    """(synset, name) of each class; the synset may be "".

    Raises:
        ValueError: It is none of the known spellings, or can be read in two ways.
    """
    text = text.removeprefix("\ufeff").strip()
    if re.match(r"<!doctype|<html|<\?xml", text, re.IGNORECASE):
        raise ValueError("this is a web page, not a list of classes")
    code = re.sub(r"\A[A-Za-z_]\w*\s*=\s*(?=[\[{])", "", text)
    found = _from_code(code, ordered) if code[:1] in ("[", "{") else _from_lines(text)
    twice = _doubled([synset for synset, _ in found if synset])
    if twice is not None:
        raise ValueError(f"{twice} stands there twice; each class needs its own synset")
    empty = next((i for i, (_, name) in enumerate(found) if not name), None)
    if empty is not None:
        raise ValueError(f"class {empty} (from 0) has no name")
    return found


def _doubled(values: Sequence[Any]) -> Any:
    """The first value that occurs twice, or None."""
    return next((value for value, count in Counter(values).items() if count > 1), None)


def _from_code(text: str, ordered: bool) -> Classes:
    """A list or dictionary, in JSON or Python."""
    try:
        found = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in strings
                found = _literal(ast.parse(text, mode="eval").body)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise ValueError("it begins like JSON or Python, but is neither") from None
    if isinstance(found, _Pairs):
        return _from_dictionary(found, ordered)
    return [_entry(entry) for entry in found]


class _Pairs(list[tuple[Any, Any]]):
    """The entries of a dictionary, doubled ones too."""


def _literal(node: ast.expr) -> Any:
    """The value of a list or dictionary, whose entries stay pairs."""
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return _Pairs(zip(keys, map(ast.literal_eval, node.values), strict=True))
    return ast.literal_eval(node)


def _from_dictionary(pairs: _Pairs, ordered: bool) -> Classes:
    if all(type(value) is int for _, value in pairs):  # class_to_idx
        pairs = _Pairs((index, name) for name, index in pairs)
    keys = [key for key, _ in pairs]
    numbers = all(type(key) is int for key in keys)
    if not numbers and not all(isinstance(key, str) for key in keys):
        raise ValueError("the keys are of several kinds; take indices, from 0")
    twice = _doubled(keys)
    if twice is not None:
        raise ValueError(f"the key {twice!r} stands there twice")
    if numbers or all(key.isascii() and key.isdecimal() for key in keys):
        return _by_index((int(key), _entry(value)) for key, value in pairs)
    if ordered and keys != sorted(keys):
        raise ValueError("the keys are not sorted, so the order of the classes is not known")
    return [(key, _entry(value)[1]) for key, value in pairs]


def _entry(value: Any) -> tuple[str, str]:
    """A class from a name, a list of synonyms, or a list of synset and name."""
    if isinstance(value, str):
        return "", value.strip()
    parts = list(value) if isinstance(value, list | tuple) else []
    if not parts or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"a class is a name, or a list of synset and name, not {value!r:.60}")
    if _SYNSET.fullmatch(parts[0]) and len(parts) > 1:
        return parts[0], ", ".join(part.strip() for part in parts[1:])
    return "", ", ".join(part.strip() for part in parts)


def _by_index(found: Iterable[tuple[int, tuple[str, str]]]) -> Classes:
    ordered = sorted(found, key=lambda pair: pair[0])
    for expected, (index, _) in enumerate(ordered):
        if index != expected:
            raise ValueError(
                f"the indices must be 0 to {len(ordered) - 1}, each once; "
                f"{expected} is missing" + " (they begin at 1)" * (ordered[0][0] == 1)
            )
    return [entry for _, entry in ordered]


def _from_lines(text: str) -> Classes:
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
    lines = [line for line in lines if line]
    if any("\0" in line for line in lines):
        raise ValueError("this is no text")
    if lines and re.fullmatch(r"\w+\s*:", lines[0]):  # "names:" of YAML
        lines = [line for line in lines[1:] if not line.startswith("#")]
    table = _from_table(lines) if lines else None
    if table is not None:
        return table
    if lines and all(line.startswith("- ") for line in lines):
        return [("", _unquoted(line[2:])) for line in lines]
    synsets = _matched(_SYNSET_LINE, lines)
    if synsets is not None:
        if len(synsets) > 1 and all(re.match(r"\d+\s", name) for _, name in synsets):
            raise ValueError("between synset and name is a number; its meaning is not known")
        return synsets
    numbered = _matched(_INDEX_LINE, lines)
    if numbered is not None:
        first = min(int(index) for index, _ in numbered)
        runs = sorted(int(index) for index, _ in numbered) == list(
            range(first, first + len(numbered))
        )
        if len(numbered) > 1 and (runs or all(re.match(r"\d+\s*:", line) for line in lines)):
            inner = [(int(i), _synset_and_name(name)) for i, name in numbered]
            return _by_index(inner)
    return [_tabbed(line) for line in lines]


def _matched(pattern: re.Pattern[str], lines: Sequence[str]) -> Classes | None:
    """The two groups of each line, if all lines are so."""
    found = [pattern.fullmatch(line) for line in lines]
    if not found or not all(found):
        return None
    return [(m[1], _unquoted(m[2])) for m in found if m]


def _tabbed(line: str) -> tuple[str, str]:
    synset, tab, name = line.partition("\t")
    return (synset.strip(), name.strip()) if tab else ("", line)


def _synset_and_name(text: str) -> tuple[str, str]:
    found = _SYNSET_LINE.fullmatch(text)
    return (found[1], found[2]) if found else ("", text)


def _unquoted(text: str) -> str:
    """A name without a comma behind it and quotes around it."""
    text = text.strip()
    quoted = re.fullmatch(r"(['\"])(.*)\1,?", text)
    return quoted[2].strip() if quoted else text


def _from_table(lines: Sequence[str]) -> Classes | None:
    """The classes of a table with headings; None where the first line holds none."""
    comma = max(",;\t", key=lines[0].count)
    heading = [cell.strip().strip('"').casefold() for cell in lines[0].split(comma)]
    known = {*_NAMES, *_SYNSETS, *_INDICES, *_OTHERS}
    if len(heading) < 2 or not known.issuperset(heading):
        return None
    name, synset, index = (_first(heading, kind) for kind in (_NAMES, _SYNSETS, _INDICES))
    if name is None:
        raise ValueError(f"the table has no column 'name' (it has {', '.join(heading)})")
    rows = list(csv.reader(lines[1:], delimiter=comma))
    if any(len(row) != len(heading) for row in rows):
        bad = next(i for i, row in enumerate(rows, start=2) if len(row) != len(heading))
        raise ValueError(f"line {bad} of the table has another number of cells than the first")
    found = [("" if synset is None else row[synset].strip(), row[name].strip()) for row in rows]
    if index is None:
        return found
    numbers = [row[index].strip() for row in rows]
    if not all(number.isdecimal() for number in numbers):
        return None if synset is None else found
    return _by_index(zip(map(int, numbers), found, strict=True))


def _first(heading: Sequence[str], names: Iterable[str]) -> int | None:
    return next((heading.index(name) for name in names if name in heading), None)
