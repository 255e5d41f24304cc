"""Pictures that a Python program has: tensors, arrays, pillow images, data sets, loaders, rows.

Comes in: what the program has. Goes out: `Pictures` (`datasets`), as from a folder, so that every
analysis takes it. A data set that can be indexed is read as it is needed; what can only be iterated
is read once, into memory.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from featviz.data.datasets import Pictures, Skipped, evenly, open_pictures
from featviz.data.labels import LabelReport
from featviz.errors import BadPicture, UserError, public
from featviz.pictures import decoding, images
from featviz.pictures.decoding import Prepared
from featviz.pictures.preprocessing import Preprocessing
from featviz.pictures.values import (
    CHANNELS,
    Denormalize,
    eight_bits,
    fitted,
    read_value,
    value_bytes,
)
from featviz.wording import not_one_each

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image
    from torch.utils.data import Dataset

    from featviz.models.model import Model

    Data: TypeAlias = (
        Pictures | Tensor | NDArray[Any] | Image.Image | str | Path | Dataset[Any] | Iterable[Any]
    )
    """what `as_pictures` takes"""
    Labels: TypeAlias = Sequence[int | str | None] | Tensor | NDArray[Any]
    """a class for each picture: its number or its name"""
else:
    Data = Labels = object  # `as_pictures` itself says what it does not take

MEMORY = 4 * 10**9
"""bytes of pictures that are kept of what can be iterated only once"""

_PICTURE_KEYS = ("image", "img", "pixel_values", "picture", "jpg", "jpeg", "png", "webp", "x")
_LABEL_KEYS = ("label", "labels", "fine_label", "target", "cls", "class", "y")
_PROBED = 4
"""items that are read twice before any work begins"""
_HASHED = 64
"""items of a data set on demand whose values stand for all of them"""

# A data set of somebody else's need not be safe across threads.
_reading = threading.Lock()


@public
def as_pictures(
    data: Data,
    labels: Labels | None = None,
    *,
    model: Model | None = None,
    denormalize: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Pictures:
    """What a Python program has, as a data set of pictures; every analysis begins with this call.

    Values: uint8 and uint16 are scaled to [0, 1]; floats must lie there, and those that are not
    8 bits keep their values.

    Args:
        data: One of

            - a path, or a data set from `open_pictures`;
            - a tensor (N, C, H, W) or (C, H, W), an array (N, H, W, C) or (H, W, C);
            - a pillow image, or a list of pictures or paths;
            - a `torch.utils.data.Dataset` or another sequence of pictures, pairs (picture, label)
              or rows ({"image": picture, "label": 3}, as of Hugging Face's `datasets`). It is
              indexed as pictures are needed, so it must give the same picture each time;
            - a `DataLoader` or another iterable of the same, or of batches. It is read once, in the
              order in which it gives the pictures, and kept in memory.
        labels: A class for each picture, by number or by name; default: those of the data.
        model: Whose classes the numbers are, for their names.
        denormalize: (mean, std), one value a channel, by which the pictures have been normalized
            already; it is undone.

    Returns:
        The data set; its `labels(model)` are the numbers given, or the classes found by name.

    Raises:
        UserError: Another kind of data, values outside [0, 1], random transforms, labels of another
            number, or an iterable of more than 4 GB.

    Example:
        >>> pictures = featviz.as_pictures(test_loader, denormalize=((0.5,) * 3, (0.25,) * 3))
        >>> featviz.evaluate(model, pictures)
    """
    if isinstance(data, str | Path):
        data = open_pictures(data)
    if isinstance(data, Pictures):
        if denormalize is not None:
            raise UserError("denormalize is for pictures in memory; files hold them as they are")
        return data if labels is None else _relabeled(data, labels, model)
    source = _open(data, Denormalize.of(denormalize))
    count = len(source.items)
    if not count:
        raise UserError(f"{source.name} has no pictures; give at least one")
    given = source.labels if labels is None else label_values(labels, count)
    names = source.names if labels is None else ()
    folders, numbers = _classes(given or [None] * count, names, model)
    made = Collection(
        Path(source.name),
        source.paths or tuple(map(str, range(count))),
        folders,
        source.items,
        tuple(range(count)),
        numbers,
        len(names),
        source.undo,
    )
    made.probe()
    return made


@dataclass(frozen=True, repr=False)
class Collection(Pictures):
    """Pictures that a program has; `source[i]` is a picture, or a pair or row with one."""

    source: Any
    rows: tuple[int, ...]
    """which items of the source"""
    numbers: tuple[int | None, ...] | None
    """the class of each item of the source by number, None where classes have names only"""
    named: int
    """how many classes the numbers have names for, 0 for numbers of the model's classes"""
    undo: Denormalize | None

    @cached_property
    def state(self) -> str:
        kept = isinstance(self.source, list)
        digest = hashlib.sha256()
        for row in range(len(self)) if kept else evenly(len(self), _HASHED):
            digest.update(value_bytes(self.item(row)))
        return digest.hexdigest()

    @property
    def files(self) -> bool:
        return False

    def where(self, row: int) -> str:
        return f"picture {self.paths[row]} of {self.name}"

    def item(self, row: int) -> Tensor | Image.Image:
        """Picture `row` as it is: float (C, H, W) in [0, 1], or a pillow image."""
        name = self.where(row)
        try:
            with _reading:
                found = self.source[self.rows[row]]
            return read_value(_parts(found)[0], name, self.undo)
        except OSError as error:
            raise BadPicture(f"{name} cannot be read ({error})") from None

    def open(self, row: int) -> Image.Image:
        found = self.item(row)
        image = images.to_pillow(found) if isinstance(found, Tensor) else found
        return images.converted(image, 3)

    def prepare(
        self, row: int, preprocessing: Preprocessing, *, decoder: str = "exact"
    ) -> Prepared:
        return fitted(self.item(row), preprocessing, self.where(row))

    def shown(self, row: int, side: int) -> Tensor:
        found = self.item(row)
        picture = images.visible(found) if isinstance(found, Tensor) else found
        return decoding.as_batch([fitted(picture, Preprocessing.of(side), "").pixels])[0]

    def select(self, rows: Sequence[int]) -> Pictures:
        chosen = super().select(rows)
        assert isinstance(chosen, Collection)
        return replace(chosen, rows=tuple(self.rows[row] for row in rows))

    def label_report(self, model: Model, skipped: Sequence[Skipped] = ()) -> LabelReport:
        """By the names of the classes; by their numbers where these have no names of the model."""
        report = super().label_report(model, skipped)
        count = len(model.classes)
        if self.numbers is None or (self.named and (report.labeled or self.named != count)):
            return report
        found = tuple(self.numbers[row] for row in self.rows)
        largest = max((number for number in found if number is not None), default=0)
        if largest >= count:
            raise UserError(
                f"label {largest} of {self.name} is out of range: {model.name} has {count} "
                "classes, from 0"
            )
        texts = tuple("" if number is None else str(number) for number in found)
        numbered = replace(self, folders=texts, numbers=None)
        report = Pictures.label_report(numbered, model, skipped)
        return replace(report, labels=found, indices=False)

    def probe(self) -> None:
        """Read some pictures twice. Raises UserError for what no analysis could use."""
        for row in evenly(len(self), 1 if isinstance(self.source, list) else _PROBED):
            first = self.item(row)
            if not isinstance(self.source, list) and value_bytes(first) != value_bytes(
                self.item(row)
            ):
                raise UserError(
                    f"{self.where(row)} is another one each time it is read, so it has a random "
                    "transform; give the data set without augmentation"
                )


class _Source(NamedTuple):
    items: Any
    name: str
    labels: Sequence[int | str | None] | None = None
    names: tuple[str, ...] = ()
    """of numbered classes"""
    paths: tuple[str, ...] | None = None
    undo: Denormalize | None = None
    """what is still to be done to each item"""


def _open(data: Any, undo: Denormalize | None) -> _Source:
    """The items of any kind of data, in an order that stays."""
    from PIL import Image

    if isinstance(data, Tensor | np.ndarray):
        kind = "tensor" if isinstance(data, Tensor) else "array"
        return _Source(_split(data), kind, undo=undo)
    if isinstance(data, Image.Image):
        return _Source([data], "image")
    if isinstance(data, Mapping):
        if (
            data
            and not any(key in data for key in _PICTURE_KEYS)
            and all(map(_indexed, data.values()))
        ):
            raise UserError(f"the data has parts ({', '.join(map(str, data))}); give one of them")
        return _collect([data], undo)
    if _indexed(data):
        return _of_sequence(data, undo)
    if isinstance(data, Iterable):
        return _collect(data, undo)
    raise UserError(
        f"{type(data).__name__} is no data of pictures; give a path, a tensor, an array, pillow "
        "images, a Dataset, a DataLoader, or an iterable of (picture, label)"
    )


def _of_sequence(data: Any, undo: Denormalize | None) -> _Source:
    """A data set, a list, or a pair of pictures and labels."""
    if not len(data):
        return _Source([], _name(data))
    pair = isinstance(data, list | tuple) and len(data) == 2 and _rank(data[1]) == 1
    if pair and _rank(data[0]) == 4:
        return _collect([data], undo)
    if _rank(_parts(data[0])[0]) == 4:  # batches
        return _collect(data, undo)
    return _on_demand(data, undo)


def _indexed(data: Any) -> bool:
    from torch.utils.data import IterableDataset

    iterated = isinstance(data, IterableDataset | str | bytes)
    return not iterated and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _name(data: Any) -> str:
    """What to call the data: the data set's class, "list", "generator"."""
    inner = getattr(data, "dataset", None)
    return _name(inner) if inner is not None else type(data).__name__


def _rank(value: Any) -> int | None:
    return value.ndim if isinstance(value, Tensor | np.ndarray) else None


def _split(data: Tensor | NDArray[Any]) -> list[Any]:
    """The pictures of a batch; one picture is a batch of one."""
    array = isinstance(data, np.ndarray)
    data = data if isinstance(data, np.ndarray) else data.detach().cpu()
    if data.ndim == 4:
        return list(data)
    channels = data.shape[-1 if array else 0] if data.ndim == 3 else 0
    if data.ndim == 3 and array and channels not in CHANNELS and data.shape[0] not in CHANNELS:
        return list(data)  # gray pictures (N, H, W)
    if data.ndim == 3 or (data.ndim == 2 and array):
        return [data]
    wanted = "(N, H, W, C) or (H, W, C)" if array else "(N, C, H, W) or (C, H, W)"
    kind = "an array" if array else "a tensor"
    raise UserError(f"{kind} of pictures has shape {wanted}, this one {tuple(data.shape)}")


def _parts(item: Any) -> tuple[Any, Any]:
    """(picture, label) of an item: a row, a pair, or a picture without label."""
    if isinstance(item, Mapping):
        key = next((key for key in _PICTURE_KEYS if key in item), None)
        if key is None:
            raise UserError(
                f"a row with {', '.join(map(str, item))} has no picture; name it 'image'"
            )
        return item[key], next((item[key] for key in _LABEL_KEYS if key in item), None)
    if isinstance(item, list | tuple):
        if not item:
            raise UserError("an item of the data is empty; give (picture, label)")
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _collect(data: Iterable[Any], undo: Denormalize | None) -> _Source:
    """All items of an iterable, of pictures or of batches, in memory and in its order."""
    kept: list[Any] = []
    labels: list[int | str | None] = []
    name, size = _name(data), 0
    for item in data:
        value, label = _parts(item)
        batch = _rank(value) == 4
        some = list(value) if batch else [value]
        its = (
            list(label)
            if batch and _rank(label) != 0 and label is not None
            else [label] * len(some)
        )
        if len(its) != len(some):
            raise UserError(f"a batch of {name} has {not_one_each(len(its), 'label', len(some))}")
        for one in some:
            picture = _packed(read_value(one, f"picture {len(kept)} of {name}", undo))
            size += len(value_bytes(picture))
            kept.append(picture)
        labels += map(_class, its)
        if size > MEMORY:
            raise UserError(
                f"{name} has more than {MEMORY / 1e9:.0f} GB of pictures, which would all be kept "
                "in memory; give the Dataset itself (loader.dataset) or a folder, which are read "
                "as needed"
            )
    known = labels if any(label is not None for label in labels) else None
    return _Source(kept, name, known, _class_names(getattr(data, "dataset", data)))


def _packed(picture: Tensor | Image.Image) -> Tensor | Image.Image:
    """The same picture in a quarter of the memory, where it is 8 bits."""
    if not isinstance(picture, Tensor):
        picture.load()
        return picture
    return images.to_uint8(picture) if eight_bits(picture) is not None else picture.clone()


def _on_demand(data: Any, undo: Denormalize | None) -> _Source:
    """A data set whose items are read when they are needed."""
    count = len(data)
    listed = _listed(data)
    probed = evenly(count, _PROBED)
    found = [_class(_parts(data[row])[1]) for row in probed]
    if listed is None or len(listed) != count or [listed[row] for row in probed] != found:
        # No list, or one that a transform of the labels changes.
        some = any(label is not None for label in found)
        listed = [_class(_parts(data[row])[1]) for row in range(count)] if some else None
    items = list(data) if isinstance(data, list | tuple) else data
    return _Source(items, _name(data), listed, _class_names(data), _paths(data), undo)


def _listed(data: Any) -> list[int | str | None] | None:
    """The labels that a data set keeps as a list, so that no picture need be read for them."""
    values = None
    if hasattr(data, "dataset") and hasattr(data, "indices"):
        inner = _listed(data.dataset)
        return None if inner is None else [inner[row] for row in data.indices]
    if hasattr(data, "tensors"):
        values = data.tensors[1] if len(data.tensors) > 1 else None
    elif hasattr(data, "column_names") and hasattr(data, "with_format"):
        key = next((key for key in _LABEL_KEYS if key in data.column_names), None)
        values = None if key is None else data.with_format(None)[key]
    else:
        found = (getattr(data, attribute, None) for attribute in ("targets", "labels", "_labels"))
        values = next((v for v in found if v is not None), None)
    if values is None or not hasattr(values, "__len__") or _rank(values) not in {None, 1}:
        return None
    return [_class(value) for value in values]


def _class_names(data: Any) -> tuple[str, ...]:
    """The names of a data set's numbered classes, where it has them."""
    inner = getattr(data, "dataset", None)
    if inner is not None:
        return _class_names(inner)
    features = getattr(data, "features", None)
    if isinstance(features, Mapping):
        key = next((key for key in _LABEL_KEYS if key in features), None)
        names = getattr(features.get(key), "names", None)
    else:
        names = getattr(data, "classes", None)
    text = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if names and text else ()


def _paths(data: Any) -> tuple[str, ...] | None:
    """The files of a data set that lists them (torchvision's `ImageFolder`)."""
    if hasattr(data, "dataset") and hasattr(data, "indices"):
        inner = _paths(data.dataset)
        return None if inner is None else tuple(inner[row] for row in data.indices)
    samples, root = getattr(data, "samples", None), getattr(data, "root", None)
    if not isinstance(samples, list) or root is None or len(samples) != len(data):
        return None
    return tuple(os.path.relpath(path, root) for path, _ in samples)


def _class(value: Any) -> int | str | None:
    """A label as a number or a name; None for what is neither, as truth values and fractions."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and np.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return int(value) if value >= 0 and not isinstance(value, bool) else None
    return value if isinstance(value, str) else None


def label_values(labels: Labels, count: int) -> list[int | str | None]:
    """Labels that the caller gives. Raises UserError."""
    try:
        values = [labels] if isinstance(labels, str) else list(labels)
    except TypeError:  # a single one
        values = [labels]
    if len(values) != count:
        raise UserError(not_one_each(len(values), "label", count))
    for row, value in enumerate(values):
        if value is not None and (_class(value) is None or _is_no_index(value)):
            raise UserError(f"label {row} is {value!r}; give the number or the name of a class")
    return [_class(value) for value in values]


def _is_no_index(value: Any) -> bool:
    """Whether it is a truth value or a float, which data sets may hold but nobody gives."""
    kind = value.dtype if hasattr(value, "dtype") else type(value)
    return "bool" in str(kind) or "float" in str(kind)


def _classes(
    labels: Sequence[int | str | None], names: tuple[str, ...], model: Model | None
) -> tuple[tuple[str, ...], tuple[int | None, ...] | None]:
    """(a name for each picture's class or "", their numbers or None)."""
    if any(isinstance(label, str) for label in labels):
        return tuple("" if label is None else str(label) for label in labels), None
    numbers = tuple(label for label in labels if not isinstance(label, str))
    if not any(number is not None for number in numbers):
        return ("",) * len(labels), None
    largest = max(number for number in numbers if number is not None)
    if names:
        known = names
    elif model is not None:
        known = tuple(s or c for s, c in zip(model.synsets, model.classes, strict=True))
    else:
        known = tuple(map(str, range(largest + 1)))
    if largest >= len(known):
        raise UserError(f"label {largest} is out of range: {len(known)} classes, from 0")
    return tuple("" if number is None else known[number] for number in numbers), numbers


def _relabeled(data: Pictures, labels: Labels, model: Model | None) -> Pictures:
    """A data set of files with other classes."""
    given = label_values(labels, len(data))
    folders, numbers = _classes(given, (), model)
    if isinstance(data, Collection):
        placed = None if numbers is None else dict(zip(data.rows, numbers, strict=True))
        every = None if placed is None else tuple(placed.get(i) for i in range(len(data.source)))
        return replace(data, folders=folders, numbers=every, named=0)
    return replace(data, folders=folders)
