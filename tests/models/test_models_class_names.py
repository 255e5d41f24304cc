"""Files of class names: each spelling gives the same classes, or is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import featviz
from featviz.errors import UserError
from featviz.models.class_names import parse_classes, read_class_file

NAMES = ["tench, Tinca tinca", "goldfish", "shark, man-eater's"]
SYNSETS = ["n01440764", "n01443537", "n01484850"]
PLAIN = [("", name) for name in NAMES]
PAIRS = list(zip(SYNSETS, NAMES, strict=True))


def lines(form: str) -> str:
    return "\n".join(form.format(i=i, s=s, n=n) for i, (s, n) in enumerate(PAIRS)) + "\n"


SPELLINGS = {
    "names": (lines("{n}"), PLAIN),
    "synset, tab": (lines("{s}\t{n}"), PAIRS),
    "synset, blank": (lines("{s} {n}"), PAIRS),
    "synset, comma": (lines("{s},{n}"), PAIRS),
    "index, blank": (lines("{i} {n}"), PLAIN),
    "index, tab": (lines("{i}\t{n}"), PLAIN),
    "index, synset": (lines("{i} {s} {n}"), PAIRS),
    "YAML": (lines("{i}: {n}"), PLAIN),
    "YAML with names": ("names:\n# ours\n" + lines("  {i}: {n}"), PLAIN),
    "YAML list": (lines("- {n}"), PLAIN),
    "YAML of synsets": (lines("{s}: {n}"), PAIRS),
    "Python": (repr(dict(enumerate(NAMES))), PLAIN),
    "Python, many lines": (repr(dict(enumerate(NAMES))).replace(", 1", ",\n 1"), PLAIN),
    "Python, named": ("classes = " + repr(dict(enumerate(NAMES))), PLAIN),
    "Python list": (repr(NAMES), PLAIN),
    "body of a dictionary": (lines("{i}: {n!r},"), PLAIN),
    "JSON list": (json.dumps(NAMES), PLAIN),
    "JSON pairs": (json.dumps(PAIRS), PAIRS),
    "JSON by index": (json.dumps({str(i): n for i, n in enumerate(NAMES)}), PLAIN),
    "class_index.json": (json.dumps({str(i): p for i, p in enumerate(PAIRS)}), PAIRS),
    "by synset": (json.dumps(dict(PAIRS)), PAIRS),
    "synonyms": (json.dumps({s: n.split(", ") for s, n in PAIRS}), PAIRS),
    "class_to_idx": (json.dumps({n: i for i, n in reversed(list(enumerate(NAMES)))}), PLAIN),
    "CSV": ("index,synset,name\n" + lines('{i},{s},"{n}"'), PAIRS),
    "CSV, other order": ("Name;WNID\n" + lines('"{n}";{s}'), PAIRS),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with mark"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_every_spelling_gives_the_same_classes(
    spelling: str, encoding: str, ends: str, tmp_path: Path
) -> None:
    text, expected = SPELLINGS[spelling]
    content = text.replace("\n", ends).encode(encoding.removesuffix(" with mark"))
    mark = b"\xff\xfe" if "mark" in encoding else b""
    (tmp_path / "c.txt").write_bytes(mark + content)
    assert read_class_file(tmp_path / "c.txt") == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "1: a\n2: b\n",
            r"the indices must be 0 to 1, each once; 0 is missing \(they begin at 1\)",
        ),
        ("{0: 'a', 2: 'b'}", "1 is missing"),
        ("{0: 'a', 0: 'b'}", "the key 0 stands there twice"),
        ('{"a": 1, "b": 1}', "the key 1 stands there twice"),
        ('{"n02": "b", "n01": "a"}', "not sorted"),
        ("n01440764\ta\nn01440764\tb\n", "n01440764 stands there twice"),
        ("n01440764 3 tench\nn01443537 1 goldfish\n", "between synset and name is a number"),
        ("{0: 'a', 1: ", "begins like JSON or Python, but is neither"),
        ("{0: __import__('os')}", "begins like JSON or Python, but is neither"),
        ("[" * 5000, "begins like JSON or Python, but is neither"),
        ("{[1]: 2, (): 3}", "a class is a name"),
        ("[1, 2]", "a class is a name, or a list of synset and name, not 1"),
        ('["a", ""]', r"class 1 \(from 0\) has no name"),
        ("<!DOCTYPE html>\n<p>404", "this is a web page"),
        ("index,synset\n0,n01440764\n", "no column 'name'"),
        ("index,name\n0,a,b\n", "line 2 of the table has another number of cells"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(UserError, match=what) as seen:
        read_class_file(tmp_path / "c.txt")
    assert str(tmp_path / "c.txt") in str(seen.value)


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"no UTF-8 text \(byte 0xe9 at 3\); save it as UTF-8"):
        read_class_file(tmp_path / "latin")
    (tmp_path / "no mark").write_bytes("tench\n".encode("utf-16-le"))
    with pytest.raises(UserError, match="UTF-16 without its mark"):
        read_class_file(tmp_path / "no mark")
    for absent in (tmp_path / "x", tmp_path, tmp_path / "latin" / "x", "a\0b", "x" * 300):
        with pytest.raises(UserError, match="no such file"):
            read_class_file(absent)


@given(st.one_of(st.text(), st.sampled_from([t for t, _ in SPELLINGS.values()])), st.data())
def test_any_text_is_read_or_refused(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, start + 3))
    cut = text[:start] + data.draw(st.text(max_size=3)) + text[stop:]
    try:
        found = parse_classes(cut)
    except ValueError:
        return
    assert all(isinstance(synset, str) and name for synset, name in found)


def test_models_are_loaded_with_any_spelling(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text(repr({i: f"kind {i}" for i in range(200)}))
    model = featviz.load("alexnet-mini", classes=tmp_path / "c.py", device="cpu")
    assert model.classes[199] == "kind 199"
    (tmp_path / "c.py").write_text(repr({i: f"kind {i}" for i in range(199)}))
    with pytest.raises(UserError, match="199 class names for a model of 200 classes"):
        featviz.load("alexnet-mini", classes=tmp_path / "c.py", device="cpu")
