"""Queries: rows, pictures, class means, and their sums and differences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.data.datasets import evenly
from featviz.embedding.store import Store
from featviz.errors import UserError, nearest, visible
from featviz.neighbors.exact import Index
from featviz.pictures import images

if TYPE_CHECKING:
    from featviz.models.model import Model

SHOWN = 8
"""rows that are looked up by default"""


@dataclass(frozen=True)
class Query:
    """A vector whose neighbors are searched, and its origin."""

    name: str
    label: str = ""
    """its class folder, where it has one"""
    row: int | None = None
    """its row, where it is one of the store"""
    file: Path | None = None
    """its file, where it came from one"""
    members: tuple[int, ...] = ()
    """the rows whose mean it is, where it is one"""
    parts: tuple[tuple[str, Query], ...] = ()
    """("+" or "-", what): the terms, where it is a sum"""

    @property
    def own_rows(self) -> tuple[int, ...]:
        """Rows that the query is made of, and so are no neighbors of it."""
        rows = () if self.row is None else (self.row,)
        return rows + tuple(row for _, part in self.parts for row in part.own_rows)


@dataclass(frozen=True)
class Space:
    """Where queries are looked up."""

    index: Index
    labels: Sequence[str]
    """the class folder of each row, "" where there is none"""
    model: Model | None = None
    """needed for picture files"""

    @property
    def store(self) -> Store | None:
        """The store, if it is one: it has pictures and the names of classes."""
        return self.index.store


def read_queries(
    queries: Tensor | Sequence[int | str | Path] | None, space: Space
) -> tuple[tuple[Query, ...], Tensor]:
    """The queries, and their vectors (Q, dim).

    queries: Vectors (Q, dim); or rows, "class:NAME" (the mean of a class), picture files, and sums
        of these, written with spaces: "zebra.jpg - horse.jpg + class:tiger". None takes 8 rows,
        spread evenly

    In a cosine space each term of a sum counts with length 1; elsewhere as it is.

    Raises UserError for unknown rows, classes and files, for a file without a model, and for a
    model that is another than the store's.
    """
    if isinstance(queries, Tensor) and queries.is_floating_point():
        return tuple(Query(f"vector {i}") for i in range(len(queries))), queries
    if queries is None:
        queries = evenly(len(space.index), SHOWN)
    if isinstance(queries, Tensor):
        queries = queries.tolist()
    if len(queries) == 0:
        raise UserError("no queries were given; name rows, classes (class:NAME) or picture files")
    found = [
        _read(item, space) if isinstance(item, Path) else _read_sum(str(item), space)
        for item in queries
    ]
    return tuple(query for query, _ in found), torch.cat([vector for _, vector in found])


_SIGN = re.compile(r"\s+([+-])\s+")


def _read_sum(text: str, space: Space) -> tuple[Query, Tensor]:
    pieces = _SIGN.split(text.strip())
    if len(pieces) == 1 or Path(text).is_file():
        return _read(text.strip(), space)
    signs = ["+", *pieces[1::2]]
    terms = [_read(piece, space) for piece in pieces[::2]]
    total = torch.zeros(1, space.index.dim)
    for sign, (_, vector) in zip(signs, terms, strict=True):
        if space.index.metric == "cosine":
            vector = vector / vector.norm().clamp(min=1e-12)
        total = total + vector if sign == "+" else total - vector
    if space.index.metric == "cosine" and not float(total.norm()) > 1e-6:
        raise UserError(f"the terms of {text.strip()!r} cancel out: nothing is near to zero")
    parts = tuple((sign, query) for sign, (query, _) in zip(signs, terms, strict=True))
    return Query(text.strip(), parts=parts), total


def _read(item: str | Path, space: Space) -> tuple[Query, Tensor]:
    index, labels, store = space.index, space.labels, space.store
    text = str(item)
    if text.isdecimal():
        row = int(text)
        if row >= len(index):
            raise UserError(f"row {row} is out of range: there are rows 0 to {len(index) - 1}")
        name = visible(store.pictures.paths[row]) if store is not None else f"row {row}"
        return Query(name, labels[row], row=row), index.take([row])
    if text.startswith("class:"):
        label = find_class(text.removeprefix("class:"), labels, store)
        members = tuple(row for row, other in enumerate(labels) if other == label)
        vector = index.take(members).mean(0, keepdim=True)
        return Query(f"mean of {len(members)}", label, members=members), vector
    path = Path(text)
    return Query(path.name, file=path), _embed_file(path, store, space.model)


def find_class(name: str, labels: Sequence[str], store: Store | None) -> str:
    """The class folder of a readable name. Raises UserError with the nearest names."""
    if name in labels:
        return name
    called: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        full = "" if store is None else store.class_names.get(label, "")
        spellings = (label, full, *(part.strip() for part in full.split(",")))
        for spelling in {spelling.replace("_", " ").casefold() for spelling in spellings}:
            called.setdefault(spelling, []).append(label)
    wanted = name.replace("_", " ").casefold()
    if not wanted or wanted not in called:
        raise UserError(f"no class {name!r} in the store{nearest(wanted, called)}")
    if len(called[wanted]) > 1:
        raise UserError(
            f"{name!r} is ambiguous: it fits the folders {', '.join(called[wanted])}; give one"
        )
    return called[wanted][0]


def _embed_file(path: Path, store: Store | None, model: Model | None) -> Tensor:
    from featviz.embedding.extract import embed_batch

    if store is None:
        raise UserError(f"{path}: a picture can be embedded for a store only; give vectors instead")
    if model is None:
        raise UserError(
            f"{path}: a picture needs the model that made the store ({store.model_name}); "
            "name it with --model and --weights"
        )
    if model.sha256 != (store.origin.model or {}).get("sha256"):
        raise UserError(
            f"{model.name} here has other weights than the {store.model_name} that made the store; "
            "distances between their activations mean nothing; give the same --model and --weights"
        )
    picture = images.read_picture(path, store.preprocessing)
    return embed_batch(model, picture[None], store.layer, precision=store.precision)
