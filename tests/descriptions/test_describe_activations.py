"""Laws of `describe_activations`: areas, intervals, chance, planted sets, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import featviz
from featviz.descriptions.auroc import auroc, best_detection
from featviz.descriptions.groups import imagenet_groups, parse_groups, read_groups
from featviz.descriptions.search import Search, Sets, q_values
from featviz.errors import UserError


@pytest.fixture
def values(generator: torch.Generator) -> torch.Tensor:
    """Values of 5 units on 90 pictures, with ties."""
    return (torch.randn(90, 5, generator=generator, dtype=torch.double) * 4).round()


LABELS = [f"c{i % 6}" for i in range(90)]


def test_area_is_mann_and_whitneys_u_with_ties(values: torch.Tensor) -> None:
    members = torch.tensor([label == "c2" for label in LABELS])
    for column in values.T:
        u = stats.mannwhitneyu(column[members], column[~members]).statistic
        expected = u / (int(members.sum()) * int((~members).sum()))
        assert auroc(column, members).value == pytest.approx(expected, abs=1e-14)


def test_interval_has_delongs_variance(values: torch.Tensor) -> None:
    members = torch.arange(90) % 4 == 0
    column = values[:, 0] + members * 3
    inside, outside = column[members], column[~members]
    wins = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside).double()
    variance = wins.mean(1).var() / len(inside) + wins.mean(0).var() / len(outside)
    found = auroc(column, members)
    half = 1.959964 * float(variance.sqrt()) / (found.value * (1 - found.value))
    for end, sign in ((found.low, -1), (found.high, 1)):
        odds = np.log(end / (1 - end)) - np.log(found.value / (1 - found.value))
        assert odds == pytest.approx(sign * half)


def test_interval_covers_the_true_area(generator: torch.Generator) -> None:
    members = torch.arange(120) < 25
    truth = stats.norm.cdf(1.2 / 2**0.5)
    draws = torch.randn(300, 120, generator=generator, dtype=torch.double) + 1.2 * members
    found = [auroc(draw, members) for draw in draws]
    covered = sum(one.low <= truth <= one.high for one in found)
    assert 0.9 * 300 < covered < 0.99 * 300


def test_sets_that_do_not_overlap_have_a_wide_interval() -> None:
    found = auroc(torch.arange(20.0), torch.arange(20) >= 16)
    assert found.value == found.high == 1
    assert 0.3 < found.low < 0.5


def test_threshold_has_the_largest_gain(values: torch.Tensor) -> None:
    members = torch.arange(90) % 5 == 0
    for column in values.T:
        gains = {
            float(t): float((column >= t)[members].double().mean())
            - float((column >= t)[~members].double().mean())
            for t in column.unique()
        }
        found = best_detection(column, members)
        gain = found.hits / int(members.sum()) - found.false_alarms / int((~members).sum())
        assert gain == pytest.approx(max(gains.values()))
        assert found.hits == int((column >= found.threshold)[members].sum())


def test_q_is_benjamini_and_hochbergs_of_the_pooled_p(generator: torch.Generator) -> None:
    measured = torch.rand(40, generator=generator, dtype=torch.double)
    measured[:5] += 0.5
    shuffled = torch.rand(4000, 40, generator=generator)
    p = (shuffled.flatten()[:, None] >= measured.float()).double().mean(0)
    expected = stats.false_discovery_control(p.numpy())
    assert np.allclose(q_values(measured, shuffled), expected, atol=3e-4)


def test_search_finds_what_trying_every_pair_finds(generator: torch.Generator) -> None:
    values = torch.randn(60, 12, generator=generator)
    members = torch.rand(6, 60, generator=generator) < torch.linspace(0.2, 0.7, 6)[:, None]
    sets = Sets.of(members, ["class"] * 4 + ["group"] * 2, least=4)
    found = Search(values, sets, pairs=True, beam=6).measured()
    for unit in range(12):
        column = values[:, unit]
        for kind, rows in (("class", range(4)), ("group", range(4, 6))):
            areas = [auroc(column, members[i]).value for i in rows]
            assert float(found[kind].area[unit]) == pytest.approx(max(areas), abs=1e-12)
        tried = []
        for a in members:
            for b in members:
                for pair in (a & b, a | b, a & ~b):
                    same = any(bool((pair == one).all()) for one in (a, b))
                    if not same and 4 <= int(pair.sum()) <= 56:
                        tried.append(auroc(column, pair).value)
        assert float(found["pair"].area[unit]) == pytest.approx(max(tried), abs=1e-12)
        best = sets.pictures(*(int(v[unit]) for v in found["pair"][1:]))
        assert auroc(column, best).value == pytest.approx(max(tried), abs=1e-12)


def test_rising_functions_of_the_values_change_nothing(values: torch.Tensor) -> None:
    one = featviz.describe_activations(values, LABELS, permutations=60, seed=3)
    other = featviz.describe_activations(values.exp() + 7, LABELS, permutations=60, seed=3)
    for a, b in zip(one.units, other.units, strict=True):
        for kind, match in a.matches.items():
            same = b.matches[kind]
            assert (match.words, match.auroc, match.p) == (same.words, same.auroc, same.p)
            assert (match.hits, match.false_alarms) == (same.hits, same.false_alarms)


def test_p_is_uniform_where_labels_mean_nothing(generator: torch.Generator) -> None:
    values = torch.randn(80, 160, generator=generator).clamp(min=-0.3)  # with ties, as a ReLU
    groups = {"low": ["c0", "c1"], "middle": ["c1", "c2", "c3"]}
    found = featviz.describe_activations(
        values, LABELS[:80], groups=groups, permutations=99, seed=1
    )
    for kind in ("class", "group", "pair"):
        p = [one.matches[kind].p for one in found.units]
        assert stats.kstest(p, "uniform").pvalue > 0.01, kind
    assert len(found.described) < 0.05 * len(found.units)


@pytest.mark.parametrize(
    ("words", "planted"),
    [
        ("striped AND red", lambda a, b, c: a & b),
        ("red OR round", lambda a, b, c: b | c),
        ("striped AND NOT round", lambda a, b, c: a & ~c),
    ],
)
def test_planted_pairs_are_found(words: str, planted: object, generator: torch.Generator) -> None:
    a, b, c = torch.rand(3, 200, generator=generator) < torch.tensor([0.5, 0.5, 0.3])[:, None]
    attributes = {"striped": a, "red": b, "round": c}
    assert callable(planted)
    signal = 3 * planted(a, b, c)
    values = (signal + 0.5 * torch.randn(200, generator=generator))[:, None]
    (found,) = featviz.describe_activations(values, attributes, permutations=99).units
    assert found.chosen is not None
    assert set(found.words.split(" ")) == set(words.split(" "))
    assert found.chosen.auroc > 0.95


def test_a_planted_class_is_described_and_noise_is_not(generator: torch.Generator) -> None:
    values = torch.randn(90, 6, generator=generator)
    values[:, 2] += 3 * torch.tensor([label == "c4" for label in LABELS])
    values[:, 5] = 1.5
    names = {"c4": "goldfish, Carassius auratus"}
    found = featviz.describe_activations(
        values, LABELS, class_names=names, units=[f"conv5:{i}" for i in range(6)], permutations=99
    )
    assert found.units[2].words == "goldfish"
    assert found.units[2].sentence.startswith("goldfish (AUROC 0.9")
    assert found.units[0].sentence.startswith("no class or group describes this unit")
    assert found.units[5].sentence.startswith("inactive")
    assert found.numbers()["described"].n == 5


def test_classes_go_before_groups_that_are_the_same(generator: torch.Generator) -> None:
    values = torch.randn(90, 1, generator=generator)
    values[:, 0] += 3 * torch.tensor([label == "c1" for label in LABELS])
    found = featviz.describe_activations(values, LABELS, groups={"all": ["c1"]}, permutations=99)
    assert found.units[0].words == "c1"
    assert found.units[0].matches["group"].auroc == found.units[0].matches["class"].auroc


def test_a_result_folder_holds_a_row_and_a_figure_a_unit(
    tmp_path: Path, generator: torch.Generator
) -> None:
    values = torch.randn(90, 3, generator=generator)
    values[:, 1] += 3 * torch.tensor([label == "c3" for label in LABELS])
    names = [f"conv5:{i}" for i in range(3)]
    found = featviz.describe_activations(values, LABELS, units=names, permutations=99)
    found.save(tmp_path / "out")
    assert (tmp_path / "out" / "units" / "conv5-1.svg").is_file()
    assert list(found.to_pandas()["unit"]) == names
    assert len(found.to_pandas("best")) == 6


def test_groups_nest_and_leave_out_what_is_not_there() -> None:
    groups = parse_groups("c0\tfish\tanimal\nc1\tfish\nc3\tbird\tanimal\nz\tstone\n", "file")
    assert groups == {
        "fish": ["c0", "c1"],
        "animal": ["fish", "bird"],
        "bird": ["c3"],
        "stone": ["z"],
    }
    values = torch.tensor([[float(label in {"c0", "c1", "c3"})] for label in LABELS])
    found = featviz.describe_activations(values, LABELS, groups=groups, permutations=99)
    assert found.units[0].words == "animal"
    assert found.sets["group"] == 3


def test_imagenets_groups_are_of_synsets() -> None:
    groups = imagenet_groups()
    assert groups["elephant"] == ["n02504013", "n02504458"]
    assert "other object" not in groups


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        ([""] * 90, {}, "have no labels"),
        (["c0"] * 90, {}, "all pictures have the class 'c0'"),
        (LABELS[:80], {}, "80 labels for 90 pictures"),
        (LABELS, {"least": 50}, "no class or group has 50 pictures"),
        (LABELS, {"groups": {"fish": ["goldfish"]}}, "none of the 1 groups has a class"),
        (LABELS, {"groups": {"a": ["b"], "b": ["a"]}}, "group 'a' contains itself"),
        (LABELS, {"units": ["one"]}, "1 name for 5 units"),
        ({"red": torch.ones(90)}, {}, "attribute 'red' is torch.float32"),
    ],
)
def test_what_cannot_be_described_is_said_in_one_line(
    values: torch.Tensor, labels: object, options: dict[str, object], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        featviz.describe_activations(values, labels, **options)  # type: ignore[arg-type]


def test_activations_that_cannot_be_ranked_are_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        featviz.describe_activations(torch.full((90, 1), torch.nan), LABELS)
    with pytest.raises(UserError, match=r"give \(pictures, units\)"):
        featviz.describe_activations(torch.zeros(90), LABELS)


def test_pictures_without_a_label_are_left_out_and_counted(values: torch.Tensor) -> None:
    labels = [label if i % 9 else None for i, label in enumerate(LABELS)]
    found = featviz.describe_activations(values, labels, permutations=99)
    assert found.pictures == 80
    assert "10 of 90 pictures, without a label" in found.warnings[0]


def test_files_that_are_no_groups_are_said_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "groups.tsv"
    for content, says in (("goldfish\n", "line 1: write a class"), ("# none\n", "has no groups")):
        file.write_text(content)
        with pytest.raises(UserError, match=says):
            read_groups(file)
    with pytest.raises(UserError, match="cannot be read as groups"):
        read_groups(tmp_path / "absent.tsv")
