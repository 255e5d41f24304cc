"""`Concepts`: directions of a layer with what was measured of them, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from featviz import results
from featviz.concepts.dictionary import ConceptName, Dictionary, Method
from featviz.concepts.measure import Explained
from featviz.errors import UserError, public
from featviz.models.weights_file import write_tensors
from featviz.pictures.preprocessing import Preprocessing, from_reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.models.model import Model

FILE = "concepts.safetensors"


@dataclass(frozen=True, kw_only=True, repr=False)
class Concepts(results.Result):
    """Directions in the channels of a layer, the largest first.

    Concept i is `directions[i]`, of length 1, and is called `names[i]`, "relu5/nmf32:3": what
    stands in columns of tables and in `units` of figures, so that it has a page in the gallery.
    `encode` writes rows of the layer in the directions, see `featviz.concepts.dictionary`.
    """

    kind: ClassVar[str] = "concepts"

    layer: str
    dictionary: Dictionary
    preparation: Mapping[str, Any]
    """how the pictures were read, see `Preprocessing.reading`"""
    explained: Explained
    """share of the energy of held-out rows"""

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

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The name of each concept: "relu5/nmf32:3"."""
        count = len(self)
        return tuple(str(ConceptName(self.layer, self.method, count, i)) for i in range(count))

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
        return f"{len(self)} concepts of {self.layer} in {self.model_name} ({self.method})"

    def numbers(self) -> dict[str, results.Number]:
        meaning = f"of the energy of held-out rows in {len(self)} concepts"
        return {
            "explained": results.Number(self.explained[0], "fraction", meaning, *self.explained[1:])
        }

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "concepts.csv", ("unit",), [(n,) for n in self.names], caption="The concepts."
        )

    def write(self, folder: results.Folder) -> None:
        found = self.dictionary
        facts = {
            "layer": self.layer,
            "method": self.method,
            "active": found.active,
            "preparation": results.plain(self.preparation),
            "explained": self.explained,
        }
        tensors = {"directions": found.directions, "mean": found.mean}
        tensors |= {f"encoder.{name}": values for name, values in found.encoder.items()}
        write_tensors(tensors, folder.path / FILE, {"concepts": json.dumps(facts)})
        folder.arrays_.append(
            {"file": FILE, "caption": "The directions.", "names": sorted(tensors)}
        )

    def plot(self) -> Figure:
        from featviz import plotting

        return plotting.new_figure(4, 3)


@public
def open_concepts(folder: str | Path) -> Concepts:
    """The concepts that `Concepts.save` wrote.

    Raises:
        UserError: The folder holds none, or they are damaged.
    """
    from safetensors import safe_open

    place = Path(folder)
    with safe_open(str(place / FILE), framework="pt") as file:
        facts = json.loads(file.metadata()["concepts"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    document = results.read_result(place)
    origin = results.Origin(
        **{n: document[n] for n in ("model", "data", "parameters", "seed", "seconds", "created")},
        device=document["versions"]["device"],
        command=document.get("command"),
    )
    encoder = {
        n.removeprefix("encoder."): v for n, v in tensors.items() if n.startswith("encoder.")
    }
    dictionary = Dictionary(
        facts["method"], tensors["directions"], tensors["mean"], encoder, facts["active"]
    )
    return Concepts(
        origin=origin,
        warnings=tuple(document["warnings"]),
        layer=facts["layer"],
        dictionary=dictionary,
        preparation=facts["preparation"],
        explained=Explained(*facts["explained"]),
    )
