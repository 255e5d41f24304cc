"""On the (pretended) card: what is computed there, what it waits for in each step, what is chosen.

Waits and uploads of one step are the difference between a longer and a shorter run.
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pretend_cuda import PretendedCuda
from torch import Tensor, nn

import featviz
from featviz.atlas import graph as graphs
from featviz.atlas import peers, tsne
from featviz.atlas.affinities import affinities
from featviz.atlas.graph import build_graph
from featviz.attacks.options import AttackOptions
from featviz.data.from_python import as_pictures
from featviz.models.precision import has_bfloat16
from featviz.neighbors import exact
from featviz.neighbors.exact import build_index
from featviz.training.data import read_examples


def _space(count: int = 400) -> Tensor:
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(1))


def _per_step(run: Callable[[int], Any], first: int, more: int) -> Counter[str]:
    """Launches, uploads and waits a step."""
    totals = []
    for steps in (first, first + more):
        with PretendedCuda() as card:
            run(steps)
        totals.append(Counter({kind: card.total(kind) for kind in ("launch", "upload", "wait")}))
    return Counter({kind: (totals[1][kind] - totals[0][kind]) / more for kind in totals[0]})


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_search_on_the_card_finds_what_the_cpu_finds(metric: Any) -> None:
    space = _space().half().float()
    here = build_index(space, metric=metric).search(space[:30], 5)
    with PretendedCuda() as card:
        index = build_index(space.to("cuda"), metric=metric)
        card.counts.clear()
        there = index.search(space[:30], 5)
        assert card.total("launch", "neighbors/exact.py") > 10
        index.search(space[:30], 5)
        before = card.total("upload")
        index.search(space[:30], 5)
        assert card.total("upload") - before <= 3  # the queries; the rows are there already
    assert torch.equal(here[1], there[1])
    torch.testing.assert_close(here[0], there[0], rtol=0, atol=1e-9)


def test_rows_of_more_than_half_of_the_card_are_sent_for_each_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = _space().half().float()
    here = build_index(space).search(space[:9], 5)
    with PretendedCuda():
        index = build_index(space, device="cuda")
        most = 2 * 2 * space.numel()
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, most - 2))
        assert index.resident() is None
        there = index.search(space[:9], 5)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, most))
        assert index.resident() is not None
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_a_batch_of_embed_waits_once_and_its_pixels_do_not_block() -> None:
    def run(batches: int) -> None:
        pictures = featviz.sample_pictures(4).select(list(range(8 * batches)))
        featviz.embed(featviz.load("alexnet-mini"), pictures, "fc7", batch_size=8)

    found = _per_step(run, 2, 4)
    assert found["wait"] <= 1
    assert found["upload"] == 0


def test_a_store_is_searched_on_the_card_where_there_is_one() -> None:
    with PretendedCuda():
        store = featviz.embed(featviz.load("alexnet-mini"), featviz.sample_pictures(1))
        assert build_index(store).device.type == "cuda"
        assert build_index(store, device="cpu").device.type == "cpu"
        # FAISS without a card of its own leaves the search to torch.
        index = build_index(store, backend="faiss")
        assert (index.backend, index.device.type) == ("torch", "cuda")


def test_what_tf32_cannot_decide_is_decided_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    space = torch.ones(300, 24) + 1e-3 * torch.randn(300, 24, generator=generator)
    want = build_index(space).search(space[:9], 5)
    asked: list[str] = []
    original = exact.block_scores

    def counted(*given: Any) -> Tensor:
        asked.append(torch.get_float32_matmul_precision())
        assert torch.backends.cuda.matmul.allow_tf32 == (asked[-1] == "high")
        return original(*given)

    monkeypatch.setattr(exact, "block_scores", counted)
    with PretendedCuda():
        found = build_index(space.to("cuda")).search(space[:9], 5)
    assert torch.equal(found[1], want[1])
    assert asked[:2] == ["high", "highest"]


def test_search_is_exact_where_products_may_lose_bits() -> None:
    space = _space()
    want = build_index(space).search(space[:20], 5)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = build_index(space).search(space[:20], 5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found[1], want[1])


def test_the_graph_gathers_candidates_on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_WHOLE", 100)
    monkeypatch.setattr(graphs, "_AXES", 8)
    space = _space()
    metric: Any
    for metric in ("cosine", "l2"):
        want = build_graph(build_index(space, metric=metric), 10, device="cpu")
        with PretendedCuda() as card:
            index = build_index(space, metric=metric, device="cuda")
            found = build_graph(index, 10, device="cuda")
            assert card.total("upload", "atlas/graph.py") < 30
        assert torch.equal(found.rows, want.rows)
        torch.testing.assert_close(found.distances, want.distances, rtol=1e-5, atol=1e-5)


def test_a_step_of_tsne_waits_once_and_uploads_nothing() -> None:
    pairs = affinities(build_graph(build_index(_space()), 30, device="cpu"), 10.0)
    start = 1e-4 * torch.randn(400, 2, generator=torch.Generator().manual_seed(2))

    def run(steps: int) -> None:
        tsne.optimize(
            pairs, start, steps=(0, steps), exaggeration=1, learning_rate=1, device="cuda"
        )

    found = _per_step(run, 4, 8)
    assert found["wait"] == 1
    assert found["upload"] == 0


def test_a_step_of_maximization_has_few_waits() -> None:
    def run(steps: int) -> None:
        options: dict[str, Any] = {"steps": steps, "precision": "float32", "size": 64}
        featviz.maximize(featviz.load("alexnet-mini"), "conv4", units=[0, 1], **options)

    found = _per_step(run, 16, 16)
    assert found["wait"] == 1  # whether a picture is stalled
    assert found["upload"] <= 0  # constants are sent once


@pytest.mark.parametrize(("attack", "waits"), [("pgd", 3), ("minimal", 4)])
def test_a_step_of_an_attack_has_few_waits(attack: str, waits: int) -> None:
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def run(steps: int) -> None:
        model = featviz.load("alexnet-mini")
        with torch.no_grad():
            labels = model(x).argmax(1)
        if attack == "minimal":
            featviz.minimal(model, x, labels, norm="l2", steps=steps, options=AttackOptions())
            return
        featviz.pgd(
            model, x, labels, eps=1e-6, steps=steps, random_start=False, options=AttackOptions()
        )

    found = _per_step(run, 4, 8) if attack == "pgd" else _per_step(run, 12, 8)
    assert found["wait"] <= waits
    assert found["upload"] == 0


def test_emulated_bfloat16_is_not_called_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that older cards support it, since it emulates it there."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert not has_bfloat16(torch.device("cuda"))


def test_the_version_of_cuml_is_found_under_the_name_of_its_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        if name != "cuml-cu12":
            raise importlib.metadata.PackageNotFoundError(name)
        return "26.10.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert peers.version("cuml") == "26.10.0"


def test_a_training_step_uploads_from_pinned_memory_and_reads_the_loss_every_20_steps() -> None:
    steps = 40
    data = as_pictures(torch.rand(2 * steps, 3, 8, 8), labels=[f"class{i % 3}" for i in range(80)])
    examples = read_examples(data, 8)

    def run(epochs: int) -> None:
        layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout()
        net = nn.Sequential(*layers, nn.Linear(16, 3))
        settings = featviz.TrainSettings(batch_size=2, sizes={0: 8})
        featviz.train(net, examples, epochs=epochs, settings=settings)

    counted = _per_step(run, 1, 1)
    assert counted["upload"] == 0
    # In an epoch: the loss every 20 steps; four weights and their momentum for the state.
    assert counted["wait"] <= steps / 20 + 8
