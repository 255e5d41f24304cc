"""`Concepts`: directions of a layer with what was measured of them, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from torch import Tensor

from featviz import results, schema
from featviz.concepts.dictionary import ConceptName, Dictionary, Method
from featviz.concepts.figures import draw_concepts
from featviz.concepts.fit import from_tensors, to_arrays
from featviz.concepts.measure import Explained, Usage, numbers_to
from featviz.errors import UserError, public
from featviz.models.weights_file import write_tensors
from featviz.pictures.preprocessing import Preprocessing, from_reading
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.models.model import Model

FILE = "concepts.safetensors"
_AGAIN = "find the concepts again"
_USED = ("share", "active", "strength", "together")
_PAGES = 128
"""concepts at most that get a page of their own in the gallery"""
_COMPANIONS = 3
"""concepts that the table names beside each"""
BESIDE = {
    "units": "single units, those of the largest variance",
    "singular": "singular vectors (PCA without centering), the most that so many directions can "
    "explain where they were fitted",
    "random": "random directions",
    "chosen": "the strongest units of each row, which chooses them itself",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class Concepts(results.Result):
    """Directions in the channels of a layer, the largest first.

    Concept i is `directions[i]`, of length 1, and is called `names[i]`, "relu5/nmf32:3": what
    is written in columns of tables and in `units` of figures, so that it has a page in the gallery.
    `encode` writes rows of the layer in the directions, see `featviz.concepts.dictionary`.
    """

    kind: ClassVar[str] = "concepts"

    layer: str
    dictionary: Dictionary
    preparation: Mapping[str, Any]
    """how the pictures were read, see `Preprocessing.reading`"""
    rows: tuple[int, int]
    """how many the directions were fitted on, and how many were held out"""
    held_out: Usage
    """how held-out rows use them"""
    fitted: Usage
    """how the rows that they were fitted on do"""
    beside: Mapping[str, Sequence[Explained]]
    """what 1, 2, 4 ... "units", "singular" vectors and "random" directions explain of held-out
    rows, up to as many as a row uses concepts: all of nmf, pca and ica, the active ones of topk; of
    topk and kmeans also units that each row has "chosen": its strongest"""
    stability: Mapping[str, Tensor]
    """"seeds" and "halves", each (k,): how alike each concept is found again, see
    `featviz.concepts.measure.stability`"""

    def __len__(self) -> int:
        return len(self.dictionary)

    @property
    def method(self) -> Method:
        return self.dictionary.method

    @property
    def directions(self) -> Tensor:
        """(k, C) float32, each of length 1."""
        return self.dictionary.directions

    @property
    def mean(self) -> Tensor:
        """(C,): what the method subtracts from rows; zeros where nothing."""
        return self.dictionary.mean

    def encode(self, rows: Tensor) -> Tensor:
        """Codes (N, k) of rows (N, C): how much of each concept is in each."""
        return self.dictionary.encode(rows)

    def decode(self, codes: Tensor) -> Tensor:
        """Rows (N, C) of codes (N, k)."""
        return self.dictionary.decode(codes)

    @property
    def explained(self) -> Explained:
        """Share of the energy of held-out rows."""
        return self.held_out.explained

    @property
    def dead(self) -> Tensor:
        """(k,) bool: concepts that no row of the fit uses."""
        return self.fitted.active == 0

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The name of each concept: "relu5/nmf32:3"."""
        count = len(self)
        return tuple(str(ConceptName(self.layer, self.method, count, i)) for i in range(count))

    @property
    def lift(self) -> Tensor:
        """(k, k): how often two concepts are active on a row, over what independence would give.

        NaN where one of them is never active.
        """
        active = self.held_out.active
        return self.held_out.together / torch.outer(active, active)

    @property
    def model_name(self) -> str:
        return str((self.origin.model or {}).get("name", "?"))

    @property
    def preprocessing(self) -> Preprocessing:
        """How the pictures were read, without normalization."""
        return from_reading(self.preparation)

    def check_model(self, model: Model) -> None:
        """Raise UserError unless the concepts are of this model."""
        made_with = self.origin.model or {}
        if made_with.get("sha256") != model.sha256:
            raise UserError(
                f"the concepts are of {self.model_name}, whose weights are not those of "
                f"{model.name}; give the model that made them"
            )

    @property
    def title(self) -> str:
        return (
            f"{counted(len(self), 'concept')} of {self.layer} in {self.model_name} ({self.method})"
        )

    def numbers(self) -> dict[str, results.Number]:
        used = f", {self.dictionary.active} of them a row" if self.dictionary.active else ""
        found = {
            "explained": _explained(
                self.explained,
                f"of the energy of held-out rows, by {counted(len(self), 'concept')}{used}",
            )
        }
        many = len(self._counts)
        for name, row in self.beside.items():
            found[f"{name} explain"] = _explained(
                row[many - 1], f"by {self._counts[-1]} of these: {BESIDE[name]}"
            )
        found["explained where fitted"] = _explained(
            self.fitted.explained, "of the rows that the concepts were fitted on"
        )
        for name, where in (("seeds", "other starts"), ("halves", "each half of the pictures")):
            if name in self.stability:
                found[f"stability over {name}"] = results.Number(
                    float(self.stability[name].median()),
                    "",
                    f"|cosine| of a concept found again from {where}, the median concept",
                )
        return found | {
            "active": results.Number(
                self.held_out.per_row, f"of {len(self)}", "concepts on a row, on average"
            ),
            "dead": results.Number(
                float(self.dead.double().mean()), "fraction", "concepts that no fitted row uses"
            ),
            "rows": results.Number(self.rows[0], "", f"fitted on; {self.rows[1]:,} held out"),
        }

    @property
    def _counts(self) -> list[int]:
        """The numbers of directions of `beside`."""
        most = self.dictionary.active or (1 if self.method == "kmeans" else len(self))
        return numbers_to(min(most, self.directions.shape[1]))

    def tables(self) -> Iterator[results.Table]:
        again = tuple(f"stability_{name}" for name in self.stability)
        columns = ("unit", "share", "active", "strength", *again, "together_with")
        yield results.Table(
            "concepts.csv",
            columns,
            [(name, *self._row(i)) for i, name in enumerate(self.names)],
            caption="Each concept: its share of the sum of squares of all codes, on which share of "
            "held-out rows it is active, its mean code there, how alike it is found again (|cosine|"
            " over seeds and over halves of the pictures), and the concepts that are active with "
            "it most beyond chance.",
        )
        yield results.Table(
            "explained.csv",
            ("directions", *(f"{n}{part}" for n in self.beside for part in ("", "_low", "_high"))),
            [
                (n, *(value for one in row for value in one[:3]))
                for n, *row in zip(self._counts, *self.beside.values(), strict=True)
            ],
            caption="Share of the energy of held-out rows that other directions explain.",
        )

    def _row(self, i: int) -> Iterator[float | str | None]:
        used = self.held_out
        for values in (used.share, used.active, used.strength, *self.stability.values()):
            yield results.significant(values[i], 4)
        lift = self.lift[i].nan_to_num(0).clone()
        lift[i] = 0
        best = lift.argsort(descending=True, stable=True)[:_COMPANIONS].tolist()
        yield " ".join(self.names[j] for j in best if lift[j] > 1)

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "concepts.svg",
            self.plot(),
            caption="Left: share of the energy of held-out rows that the concepts explain, beside "
            "single units, singular vectors and random directions; bars and bands: 95% intervals "
            "over pictures. Middle: how alike each concept is found again, concepts sorted by it. "
            "Right: pairs of concepts that are active on the same rows more often (red) or less "
            "often (blue) than independent ones.",
            alt="Energy explained, stability, and co-occurrence of the concepts",
            units=self.names[:_PAGES],
        )
        tensors = {name: torch.from_numpy(v) for name, v in to_arrays(self.dictionary).items()}
        for prefix in ("held_out", "fitted"):
            used = getattr(self, prefix)
            tensors |= {f"{prefix}.{name}": getattr(used, name) for name in _USED}
        tensors |= {f"stability.{name}": values for name, values in self.stability.items()}
        facts = {
            "layer": self.layer,
            "method": self.method,
            "active": self.dictionary.active,
            "preparation": self.preparation,
            "rows": self.rows,
            "held_out": [self.held_out.explained, self.held_out.per_row],
            "fitted": [self.fitted.explained, self.fitted.per_row],
            "beside": self.beside,
            "model": self.origin.model,
        }
        text = json.dumps(results.plain(facts))
        write_tensors(tensors, folder.path / FILE, {"concepts": text})
        folder.arrays_.append(
            {
                "file": FILE,
                "caption": "Directions, encoder and all that was measured of each concept.",
                "names": sorted(tensors),
            }
        )

    def plot(self) -> Figure:
        label = f"{self.method}, {counted(len(self), 'concept')}"
        return draw_concepts(
            label, self.explained, self._counts, self.beside, self.stability, self.lift
        )


def _explained(found: Explained, meaning: str) -> results.Number:
    return results.Number(found.value, "fraction", meaning, found.low, found.high, found.n)


_EXPLAINED = (float, float, float, schema.COUNT)
_FACTS = {
    "layer": str,
    "method": schema.one_of(*get_args(Method)),
    "active": schema.Maybe(schema.COUNT),
    "preparation": dict,
    "rows": (schema.COUNT, schema.COUNT),
    "held_out": (_EXPLAINED, float),
    "fitted": (_EXPLAINED, float),
    "beside": {
        "units": [_EXPLAINED],
        "singular": [_EXPLAINED],
        "random": [_EXPLAINED],
        "chosen": schema.Maybe([_EXPLAINED]),
    },
    "model": schema.Maybe(dict),
}


@public
def open_concepts(folder: str | Path) -> Concepts:
    """The concepts that `Concepts.save` wrote.

    Args:
        folder: The result folder.

    Raises:
        UserError: The folder holds none, or they are damaged.
    """
    place = Path(folder)
    document = results.read_result(place)
    if document.get("kind") != Concepts.kind:
        raise UserError(f"{place} holds no concepts; featviz concepts makes them")
    said = schema.check(document, {"warnings": [str]}, place / "result.json", _AGAIN)
    facts, tensors = _read(place / FILE)
    used = {
        name: Usage(
            Explained(*facts[name][0]),
            facts[name][1],
            **{part: tensors[f"{name}.{part}"] for part in _USED},
        )
        for name in ("held_out", "fitted")
    }
    again = {n.partition(".")[2]: v for n, v in tensors.items() if n.startswith("stability.")}
    return Concepts(
        origin=results.read_origin(place, facts["model"], _AGAIN),
        warnings=tuple(said["warnings"]),
        layer=facts["layer"],
        dictionary=from_tensors(facts["method"], tensors, facts["active"]),
        preparation=facts["preparation"],
        rows=(facts["rows"][0], facts["rows"][1]),
        beside={
            name: [Explained(*one) for one in row] for name, row in facts["beside"].items() if row
        },
        stability=again,
        **used,
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts and the tensors of a file, checked."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {})["concepts"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = schema.check(schema.parse_json(text), _FACTS, path, _AGAIN)
        _check(facts, tensors)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_AGAIN}") from None
    return facts, tensors


def _check(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError or KeyError for tensors that do not fit each other."""
    k, channels = tensors["directions"].shape
    shapes = {"mean": (channels,), "encoder.weight": (k, channels), "encoder.norm": (k,)}
    shapes |= {f"{name}.together": (k, k) for name in ("held_out", "fitted")}
    needed = {"kmeans": "encoder.norm", "ica": "encoder.weight", "topk": "encoder.weight"}
    for name in (*shapes, *filter(None, [needed.get(facts["method"])])):
        if name in tensors or name == needed.get(facts["method"]):
            shape = tuple(tensors[name].shape)
            if shape != shapes[name]:
                raise ValueError(f"{name} has shape {shape}, not {shapes[name]}")
    for name, values in tensors.items():
        if values.is_floating_point() and not bool(values.isfinite().all()):
            raise ValueError(f"{name} is not finite")
        if name.partition(".")[2] in {*_USED[:3], "seeds", "halves"} and values.shape != (k,):
            raise ValueError(f"{name} has shape {tuple(values.shape)}, not {(k,)}")
    if facts["active"] is not None and not 0 < facts["active"] <= k:
        raise ValueError(f"{facts['active']} of {k} codes are active")
