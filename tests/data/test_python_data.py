"""One door for data in Python: every kind gives the pictures and classes that a folder gives."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import featviz
from featviz.data import from_python as python_data
from featviz.data.datasets import Pictures
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing

N, CLASSES = 10, ("ant", "bee", "cat", "dog")
HOW = Preprocessing.of(24, resize=28)
NUMBERS = tuple(i % 4 for i in range(N))
_GENERATOR = torch.Generator().manual_seed(0)
WHOLE = torch.randint(0, 256, (N, 3, 40, 30), generator=_GENERATOR, dtype=torch.uint8)
FLOAT = WHOLE.float() / 255
PILLOW = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in WHOLE]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def unchanged(x: Tensor) -> Tensor:
    return x


class Own(Dataset[Any]):
    """A data set as users write them: pictures on demand, numbers and names of classes."""

    def __init__(self, transform: Callable[[Tensor], Tensor] = unchanged) -> None:
        self.targets, self.classes, self.transform = list(NUMBERS), list(CLASSES), transform

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(FLOAT[row]), self.targets[row]


class Unlisted(Dataset[Any]):
    """Its labels are seen only in its items, and a transform has changed them."""

    def __init__(self) -> None:
        self.targets = [99] * N

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> tuple[Image.Image, str]:
        return PILLOW[row], CLASSES[NUMBERS[row]]


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(zip(FLOAT, NUMBERS, strict=True))


def four_classes(channels: int = 3) -> Model:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )
    return featviz.wrap(net, input_size=24, classes=CLASSES)


def normalized(x: Tensor) -> Tensor:
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


ROWS = [{"image": p, "label": c} for p, c in zip(PILLOW, NUMBERS, strict=True)]
KINDS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "uint8 tensor": lambda: (WHOLE, torch.tensor(NUMBERS)),
    "float tensor": lambda: (FLOAT, list(NUMBERS)),
    "uint8 array": lambda: (WHOLE.permute(0, 2, 3, 1).numpy(), np.array(NUMBERS)),
    "float64 array": lambda: (FLOAT.double().permute(0, 2, 3, 1).numpy(), NUMBERS),
    "array of channels first": lambda: (WHOLE.numpy(), NUMBERS),
    "pillow": lambda: (PILLOW, [CLASSES[i] for i in NUMBERS]),
    "pairs": lambda: (list(zip(PILLOW, NUMBERS, strict=True)), None),
    "rows": lambda: (ROWS, None),
    "generator": lambda: (zip(FLOAT, torch.tensor(NUMBERS), strict=True), None),
    "data set": lambda: (Own(), None),
    "unlisted labels": lambda: (Unlisted(), None),
    "tensors": lambda: (TensorDataset(FLOAT, torch.tensor(NUMBERS)), None),
    "subset": lambda: (Subset(Subset(Own(), range(N)[::-1]), range(N)[::-1]), None),
    "streamed": lambda: (Streamed(), None),
    "loader": lambda: (DataLoader(Own(), batch_size=4), None),
    "streamed loader": lambda: (DataLoader(Streamed(), batch_size=3), None),
    "list of batches": lambda: (list(DataLoader(Own(), batch_size=4)), None),
    "batch": lambda: (next(iter(DataLoader(Own(), batch_size=N))), None),
    "batch by name": lambda: ({"pixel_values": FLOAT, "labels": torch.tensor(NUMBERS)}, None),
}


def read(pictures: Pictures) -> Tensor:
    return torch.stack([pictures.read(row, HOW) for row in range(len(pictures))])


@pytest.fixture(scope="module")
def from_files(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """The same pictures as files."""
    folder = tmp_path_factory.mktemp("files")
    for row, image in enumerate(PILLOW):
        image.save(folder / f"{row}.png")
    return read(featviz.open_pictures(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_bytes_of_the_files(kind: str, from_files: Tensor) -> None:
    data, labels = KINDS[kind]()
    pictures = featviz.as_pictures(data, labels)
    assert torch.equal(read(pictures), from_files)
    assert pictures.labels(four_classes()) == NUMBERS
    assert repr(pictures) == f"<Pictures: 10 in {pictures.name} of 4 classes>"
    chosen = pictures.select([7, 2])
    assert torch.equal(read(chosen), from_files[[7, 2]])
    assert chosen.labels(four_classes()) == (NUMBERS[7], NUMBERS[2])
    assert chosen.open(0).tobytes() == PILLOW[7].tobytes()
    assert torch.equal(read(pickle.loads(pickle.dumps(chosen))), from_files[[7, 2]])  # for Ray


def test_rows_of_hugging_face_are_taken(from_files: Tensor) -> None:
    hf = pytest.importorskip("datasets")
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=list(CLASSES))})
    table = {"image": PILLOW, "label": list(NUMBERS)}
    data = hf.Dataset.from_dict(table, features=features)
    for kind in (data, data.to_iterable_dataset(), DataLoader(data.with_format("torch"))):
        pictures = featviz.as_pictures(kind)
        assert torch.equal(read(pictures), from_files)
        assert pictures.folders == tuple(CLASSES[i] for i in NUMBERS)
    with pytest.raises(UserError, match=r"has parts \(train\); give one of them"):
        featviz.as_pictures(hf.DatasetDict(train=data))


def test_normalized_data_is_refused_or_undone(from_files: Tensor) -> None:
    for data in (normalized(FLOAT), Own(normalized), DataLoader(Own(normalized), batch_size=3)):
        with pytest.raises(UserError, match=r"pictures lie in \[0, 1\]; .*denormalize"):
            featviz.as_pictures(data)
        assert torch.equal(read(featviz.as_pictures(data, denormalize=(MEAN, STD))), from_files)
    with pytest.raises(UserError, match="3 channels, denormalize has values for 1"):
        featviz.as_pictures(normalized(FLOAT), denormalize=((0.5,), (0.5,)))
    with pytest.raises(UserError, match="std above 0"):
        featviz.as_pictures(normalized(FLOAT), denormalize=(MEAN, (0.0, 1.0, 1.0)))


def test_values_that_are_not_8_bits_are_not_rounded(generator: torch.Generator) -> None:
    x = torch.rand(2, 3, 24, 24, generator=generator)
    same = Preprocessing.of(24)
    pictures = featviz.as_pictures(x)
    assert torch.equal(torch.stack([pictures.read(i, same) for i in range(2)]), x)
    half = pictures.read(0, Preprocessing.of(12))
    # An antialiased halving is a local mean with positive weights; its own mean is the picture's.
    assert torch.allclose(half.mean((1, 2)), x[0].mean((1, 2)), atol=0.02)
    eighths = featviz.as_pictures(x.mul(255).round().div(255)).read(0, Preprocessing.of(12))
    assert 0 < float((half - eighths).abs().max()) < 1.5 / 255
    wide = featviz.as_pictures((x[:1].permute(0, 2, 3, 1) * 65535).numpy().astype(np.uint16))
    assert torch.allclose(wide.read(0, same), x[0], atol=1 / 65535)


@pytest.mark.parametrize("made", [1, 3, 4])
@pytest.mark.parametrize("wanted", [1, 3, 4])
def test_channels_are_converted_as_those_of_files(made: int, wanted: int, tmp_path: Path) -> None:
    x = torch.randint(0, 256, (made, 24, 24), generator=_GENERATOR, dtype=torch.uint8)
    image = featviz.pictures.images.to_pillow(x.float() / 255)
    image.save(tmp_path / "x.png")
    how = Preprocessing.of(24, channels=wanted)
    expected = featviz.read_picture(tmp_path / "x.png", how)
    assert torch.equal(featviz.as_pictures(x).read(0, how), expected)
    assert torch.equal(featviz.as_pictures(image).read(0, how), expected)
    assert featviz.as_pictures(x).shown(0, 8).shape == (3, 8, 8)


def test_other_counts_of_channels_reach_the_model_that_takes_them() -> None:
    x = torch.rand(2, 5, 30, 30)
    pictures = featviz.as_pictures(x)
    assert pictures.read(0, Preprocessing.of(24, channels=5)).shape == (5, 24, 24)
    with pytest.raises(UserError, match="picture 0 of tensor has 5 channels, the model takes 3"):
        pictures.read(0, HOW)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (FLOAT * 255, "divide by 255, or give uint8"),
        (WHOLE.int(), "values of type int32; give uint8"),
        (WHOLE.permute(0, 2, 3, 1), r"permute\(2, 0, 1\)"),
        (FLOAT[None], r"has shape \(N, C, H, W\) or \(C, H, W\), this one \(1, 10, 3, 40, 30\)"),
        (torch.full((1, 3, 4, 4), torch.nan), "NaN"),
        ([], "list has no pictures"),
        (5, "int is no data of pictures"),
        ([1, 2], "picture 0 of list is int, no picture"),
        ([{"a": 1}], "a row with a has no picture; name it 'image'"),
        (Own(lambda x: x * float(torch.rand(()))), "random transform"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        featviz.as_pictures(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1] * 9, "9 labels for 10 pictures"),
        ([[1, 0]] * 10, r"label 0 is \[1, 0\]; give the number or the name"),
        ([7] * 10, "label 7 is out of range: 4 classes, from 0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        featviz.as_pictures(FLOAT, labels, model=four_classes())


def test_numbers_are_classes_by_name_where_the_names_are_the_models() -> None:
    """A subset of folders in another order: numbers of the data set are not the model's."""
    data = Own()
    data.classes, data.targets = ["dog", "ant"], [i % 2 for i in range(N)]
    assert featviz.as_pictures(data).labels(four_classes())[:3] == (3, 0, 3)
    data.classes = ["x", "y", "z", "w"]  # as many, none known: the model's, spelt otherwise
    assert featviz.as_pictures(data).labels(four_classes())[:3] == (0, 1, 0)
    data.classes = ["x", "y"]
    assert set(featviz.as_pictures(data).labels(four_classes())) == {None}


def test_what_is_iterated_keeps_its_order_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DataLoader(Own(), batch_size=3, shuffle=True, generator=torch.Generator())
    pictures = featviz.as_pictures(loader)
    once = read(pictures)
    assert torch.equal(read(pictures), once)  # one pass, kept
    assert sorted(map(str, pictures.labels(four_classes()))) == sorted(map(str, NUMBERS))
    rows = [[torch.equal(x, y) for y in read(featviz.as_pictures(FLOAT))].index(True) for x in once]
    assert tuple(NUMBERS[row] for row in rows) == pictures.labels(four_classes())
    monkeypatch.setattr(python_data, "MEMORY", 10_000)
    with pytest.raises(UserError, match=r"give the Dataset itself \(loader.dataset\)"):
        featviz.as_pictures(loader)
    featviz.as_pictures(Own())  # read on demand: no limit


def test_the_hash_of_the_content_follows_the_values() -> None:
    other = FLOAT.clone()
    other[3, 0, 0, 0] = 1 - other[3, 0, 0, 0]
    assert featviz.as_pictures(FLOAT).state == featviz.as_pictures(FLOAT.clone()).state
    assert featviz.as_pictures(FLOAT).state != featviz.as_pictures(other).state


ANALYSES: dict[str, Callable[[Model, Any], Any]] = {
    "embed": lambda m, d: featviz.embed(m, d, "0").matrix(),
    "evaluate": lambda m, d: featviz.evaluate(m, d).predictions,
    "attack": lambda m, d: featviz.attack(m, d, method="fgsm").adversarial,
    "attribute": lambda m, d: featviz.attribute(m, d, methods=["saliency"]).maps["saliency"],
    "top_patches": lambda m, d: featviz.top_patches(m, d, "0", units=[0, 1], k=2).patches,
    "corruptions": lambda m, d: featviz.corruption_table(m, d, names=["contrast"]).labels,
    "batch": lambda m, d: featviz.read_batch(m, d).pictures,
}


@pytest.mark.parametrize("analysis", ANALYSES)
def test_every_analysis_takes_data_sets_and_loaders(analysis: str) -> None:
    model, run = four_classes(), ANALYSES[analysis]
    small = [(x.resize((24, 24)), i) for x, i in zip(PILLOW, NUMBERS, strict=True)]
    pixels = torch.stack([featviz.pictures.images.from_pillow(x) for x, _ in small])
    want = run(model, featviz.as_pictures(pixels, NUMBERS))
    for data in (small, TensorDataset(pixels, torch.tensor(NUMBERS)), {"x": pixels, "y": NUMBERS}):
        assert torch.equal(run(model, data), want)


def test_one_picture_of_any_kind_is_taken_by_views_of_one() -> None:
    model, image = four_classes(), PILLOW[0].resize((24, 24))
    tensor = featviz.pictures.images.from_pillow(image)
    for kind in (image, np.asarray(image), [image]):
        maps = featviz.activation_maps(model, kind, "0").maps
        assert torch.equal(maps, featviz.activation_maps(model, tensor, "0").maps)
    with pytest.raises(UserError, match="one picture is needed, got 10"):
        featviz.activation_maps(model, PILLOW, "0")


def test_attacks_on_tensors_are_given_a_batch_of_any_data() -> None:
    with pytest.raises(UserError, match="it must be Tensor"):
        featviz.pgd(four_classes(), PILLOW, torch.tensor(NUMBERS), eps=0.1)  # type: ignore[arg-type]
    batch = featviz.read_batch(four_classes(), list(zip(PILLOW, NUMBERS, strict=True)))
    assert batch.labels is not None
    assert len(featviz.pgd(four_classes(), batch.pictures, batch.labels, eps=0.1, steps=1)) == N


SINGLE = (1.0, np.float32(1), np.int64(2), torch.tensor(1.0), 1 + 0j)
TRUTH = (True, np.True_, [True] * 4, np.array([True, False] * 2), torch.tensor([True] * 4))


@pytest.mark.parametrize("labels", [*SINGLE, *TRUTH, np.full(4, 0.5), torch.eye(4)], ids=repr)
def test_labels_that_are_no_classes_are_refused_in_one_line(labels: Any) -> None:
    model, x = four_classes(), torch.rand(4, 3, 24, 24)
    for call in (
        lambda: featviz.read_batch(model, x, labels),
        lambda: featviz.as_pictures(x, labels, model=model),
        lambda: featviz.activations(model, x, ["logits"], labels=labels),
    ):
        with pytest.raises(UserError, match="label") as found:
            call()
        assert "\n" not in str(found.value)


def test_truth_values_of_a_data_set_are_no_classes() -> None:
    data = [(x, True) for x in PILLOW]
    assert set(featviz.as_pictures(data).labels(four_classes())) == {None}


def test_labels_of_attacks_are_whole_numbers() -> None:
    labels = torch.ones(4, dtype=torch.complex64)
    with pytest.raises(UserError, match="must be 4 whole numbers"):
        featviz.pgd(four_classes(), torch.rand(4, 3, 24, 24), labels, eps=0.1)


def test_accents_of_class_names_are_one_letter_or_two() -> None:
    net = four_classes().net
    model = featviz.wrap(net, input_size=24, classes=["caf\u0065\u0301", "\u00e4", "A\u0308", "b"])
    assert [model.class_index(name) for name in ("caf\u00e9", "a\u0308", "\u00c4")] == [0, 1, 2]
