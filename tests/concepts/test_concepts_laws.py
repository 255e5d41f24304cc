"""Laws of `find_concepts`, on rows whose parts are known, against scikit-learn and the SVD."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted_rows import parts, store_of
from scipy.optimize import nnls
from sklearn.decomposition import NMF, PCA
from torch import Tensor

import featviz
from featviz.concepts.dictionary import METHODS, Method, non_negative_codes
from featviz.concepts.measure import matched
from featviz.concepts.result import Concepts
from featviz.concepts.sample import Sample
from featviz.errors import UserError

METHOD = pytest.mark.parametrize("method", METHODS)


def find(rows: Tensor, method: Method = "nmf", count: int = 5, **options: Any) -> Concepts:
    if method == "topk":
        options = {"active": 2, "steps": 60} | options
    return featviz.find_concepts(store_of(rows, 4), method=method, count=count, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return find(parts(40)[0]).save(tmp_path_factory.mktemp("concepts") / "made")


def error(rows: Tensor, codes: Tensor, directions: Tensor) -> float:
    return float((rows - codes @ directions).double().square().sum())


def test_planted_non_negative_directions_are_recovered() -> None:
    rows, directions = parts()
    found = find(rows, count=len(directions), seeds=3)
    assert float(matched(directions, found.directions)[1].min()) > 0.95
    assert all(float(values.min()) > 0.95 for values in found.stability.values())
    assert found.explained.value > 0.98


@pytest.mark.long
def test_topk_recovers_more_directions_than_units() -> None:
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator))
    codes = torch.zeros(1500, 24)
    for row in codes:
        row[torch.randperm(24, generator=generator)[:2]] = 1 + torch.rand(2, generator=generator)
    found = find(codes @ directions, "topk", 24, steps=500, seeds=1, held_out=0.1)
    cosines = matched(directions, found.directions)[1]
    assert float(cosines.median()) > 0.95


def test_nmf_is_below_the_svd_and_within_a_hundredth_of_scikit_learn() -> None:
    rows, _ = parts(400, 32, 12, noise=0.3)
    store = store_of(rows, 4)
    for count in (2, 6, 12):
        found = featviz.find_concepts(store, count=count, held_out=0.5)
        fitted = found.fitted.explained.value
        _, train = Sample.of(store).split(0.5, 0)
        x = train.all()
        s = torch.linalg.svdvals(x.double())
        assert fitted <= float(s[:count].square().sum() / s.square().sum()) + 1e-6
        peer = NMF(count, max_iter=2000, random_state=0)
        codes = torch.from_numpy(peer.fit_transform(x.numpy()))
        theirs = error(x, codes, torch.from_numpy(peer.components_))
        assert error(x, found.encode(x), found.directions) <= 1.01 * theirs


def test_nmf_codes_are_least_squares() -> None:
    rows, directions = parts(20, noise=0.2)
    ours = non_negative_codes(rows, directions)
    theirs = np.stack(
        [nnls(directions.T.double().numpy(), row.double().numpy())[0] for row in rows]
    )
    assert np.abs(ours.numpy() - theirs).max() < 1e-3


def test_pca_is_that_of_scikit_learn() -> None:
    rows, _ = parts(noise=0.2)
    store = store_of(rows, 4)
    found = featviz.find_concepts(store, method="pca", count=4)
    x = Sample.of(store).split(0.25, 0)[1].all().numpy()
    peer = PCA(4).fit(x)
    assert np.abs(np.abs((found.directions.numpy() * peer.components_).sum(1)) - 1).max() < 1e-4
    assert float((found.encode(torch.from_numpy(x)).pow(3).sum(0)).min()) >= 0


def test_ica_separates_independent_sources() -> None:
    generator = torch.Generator().manual_seed(0)
    sources = torch.rand(3000, 3, generator=generator).log()
    mixing = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator))
    found = find(sources @ mixing, "ica", 3)
    assert float(matched(mixing, found.directions)[1].min()) > 0.98


@METHOD
def test_every_method_keeps_the_contract(method: Method, tmp_path: Path) -> None:
    rows, _ = parts(noise=0.1)
    found = find(rows, method)
    codes = found.encode(rows)
    assert found.directions.norm(dim=1) == pytest.approx(torch.ones(5), abs=1e-5)
    assert torch.equal(codes, found.encode(rows))
    assert torch.allclose(codes[100:110], found.encode(rows[100:110]), atol=1e-3)
    if method in {"nmf", "kmeans"}:
        assert not found.mean.any()
        assert float(codes.min()) >= 0
    if method in {"kmeans", "topk"}:
        active = 1 if method == "kmeans" else 2
        assert (codes != 0).sum(1).tolist() == [active] * len(rows)
    left = (rows - found.decode(codes)).double().square().sum()
    assert 0.3 < 1 - float(left / rows.double().square().sum()) <= 1
    found.save(tmp_path / "one")
    again = featviz.open_concepts(tmp_path / "one")
    assert torch.equal(again.encode(rows), codes)
    assert again.numbers() == found.numbers()
    assert [t.rows for t in again.tables()] == [t.rows for t in found.tables()]


@METHOD
def test_the_same_store_and_seed_give_the_same_bits(method: Method) -> None:
    rows, _ = parts(200)
    one, two = (find(rows, method) for _ in range(2))
    assert torch.equal(one.directions, two.directions)
    assert torch.equal(one.encode(rows), two.encode(rows))
    assert one.numbers() == two.numbers()


def test_the_same_concepts_are_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    find(parts(40)[0]).save(tmp_path / "again")
    one, two = (
        (place / "concepts.safetensors").read_bytes() for place in (saved, tmp_path / "again")
    )
    assert one == two


def test_training_that_was_stopped_gives_the_same_bytes(tmp_path: Path) -> None:
    rows, _ = parts(200)
    whole = find(rows, "topk", count=30)
    place = tmp_path / "made.partial"
    for stop in (3, 40, 50, 70):  # within the first fit, and in later ones
        calls = 0

        def halt(done: int, total: int, text: str, stop: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls > stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            find(rows, "topk", count=30, checkpoint=place, progress=halt)
    found = find(rows, "topk", count=30, checkpoint=place)
    assert torch.equal(found.directions, whole.directions)
    assert torch.equal(found.dictionary.encoder["weight"], whole.dictionary.encoder["weight"])
    assert torch.equal(found.stability["halves"], whole.stability["halves"])


@pytest.mark.long
def test_unused_codes_are_revived() -> None:
    rows, _ = parts(800, 24, 12, noise=0.2)
    found = find(rows, "topk", count=64, active=2, steps=400, seeds=1)
    assert float(found.dead.float().mean()) < 0.1


def test_held_out_pictures_do_not_move_the_directions() -> None:
    rows, _ = parts()
    first = find(rows)
    test = Sample.of(store_of(rows, 4)).split(0.25, 0)[0]
    changed = rows.clone()
    changed[torch.from_numpy(test.numbers)] = rows.flip(1)[torch.from_numpy(test.numbers)]
    second = find(changed)
    assert torch.equal(first.directions, second.directions)
    assert second.explained.value < first.explained.value
    assert len(test) == first.rows[1] == 4 * round(0.25 * 150)


def test_a_planted_pair_occurs_together() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = (torch.rand(800, 4, generator=generator) < 0.2).float()
    codes[:, 1] = codes[:, 0]
    codes *= 1 + torch.rand(800, 4, generator=generator)
    rows = codes @ torch.eye(8)[:4].roll(1, 1)
    found = find(rows, count=4)
    order = matched(torch.eye(8)[:4].roll(1, 1), found.directions)[0].tolist()
    lift = found.lift[order][:, order]
    assert float(lift[0, 1]) > 3
    assert float(lift[2, 3]) < 2


@pytest.mark.parametrize(
    ("rows", "method", "count", "words"),
    [
        (torch.zeros(40, 8), "nmf", 2, "is 0 on all"),
        (torch.zeros(40, 8), "topk", 4, "is 0 on all"),
        (torch.ones(1, 8), "nmf", 1, "pictures"),
        (torch.ones(40, 8), "nmf", 2, "lie in 1 directions; ask for at most 1"),
        (torch.ones(40, 8), "pca", 2, "lie in 0 directions"),
        (torch.ones(40, 8), "kmeans", 2, "1 distinct values only"),
        (parts(40)[0], "nmf", 25, "ask for at most"),
        (parts(40)[0], "kmeans", 500, "ask for at most"),
        (-parts(40)[0], "nmf", 2, "negative values"),
        (parts(40)[0], "topk", 4, "9 active codes of 4"),
    ],
)
def test_rows_that_determine_nothing_are_refused(
    rows: Tensor, method: Method, count: int, words: str
) -> None:
    options = {"active": 9} if "active codes" in words else {}
    with pytest.raises(UserError, match=words) as caught:
        find(rows, method, count, **options)
    assert "\n" not in str(caught.value)


def test_columns_that_are_constant_do_no_harm() -> None:
    rows, _ = parts(80)
    rows[:, :3], rows[:, 3:6] = 0, 1
    for method in METHODS:
        assert bool(find(rows, method, 3).directions.isfinite().all())


def test_options_of_another_method_are_refused() -> None:
    with pytest.raises(UserError, match="active 3 would have no effect with nmf"):
        find(parts(40)[0], active=3)


@pytest.mark.parametrize("change", ["cut", "other", "missing", "no folder"])
def test_damaged_concepts_are_refused(change: str, saved: Path, tmp_path: Path) -> None:
    place = tmp_path / "made"
    shutil.copytree(saved, place)
    file = place / "concepts.safetensors"
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif change == "other":
        file.write_bytes(b"{}")
    elif change == "missing":
        file.unlink()
    elif change == "no folder":
        place = tmp_path / "none"
    with pytest.raises(UserError):
        featviz.open_concepts(place)
