"""`describe_activations`: words for units from their values on labeled pictures, and nothing else.

For each unit the best class, the best group of classes and the best pair of these by AUROC, with p
by the same search under shuffled labels (`search`). Of those beyond chance one describes the unit:
the class or group with the larger AUROC (the class, if equal), unless a pair lies above its 95%
interval.

    Gale et al., "Are there any 'object detectors' in the hidden layers of CNNs trained to identify
        objects or scenes?", 2020: why hit rate and false-alarm rate belong beside AUROC
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from featviz import results
from featviz.arguments import Bounds
from featviz.data.from_python import Labels, label_values
from featviz.data.labels import class_finder
from featviz.descriptions.auroc import auroc, best_detection
from featviz.descriptions.groups import Groups, imagenet_groups, resolve_groups
from featviz.descriptions.result import Descriptions
from featviz.descriptions.search import OPERATIONS, Found, Search, Sets, p_values, q_values
from featviz.descriptions.unit_description import Match, UnitDescription
from featviz.errors import UserError, public
from featviz.types import Count, Progress, Seed
from featviz.wording import counted, not_one_each

Permutations = Annotated[int, Bounds(60, 1_000_000)]
"""shuffles of the labels: with fewer than 60 no q of three kinds is below .05"""
Beam = Annotated[int, Bounds(1, 1000)]
"""of each unit, sets from which pairs are built"""

_BINS = 40
"""of a unit's histogram"""


@public
def describe_activations(
    activations: Tensor,
    labels: Labels | Mapping[str, Tensor],
    *,
    units: Sequence[str] | None = None,
    subject: str = "activations",
    class_names: Mapping[str, str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    pairs: bool = True,
    beam: Beam = 4,
    least: Count = 5,
    permutations: Permutations = 500,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> Descriptions:
    """Which class, group of classes or pair of these each unit responds to, if to any.

    Args:
        activations: (N, U): a value for each picture and unit; of maps, their maximum or mean.
        labels: The class of each picture by number or name, None or "" where there is none (such
            pictures are left out); or {attribute: (N,) bool}, which may overlap.
        units: A name for each column, as "conv5:12"; default: their numbers.
        subject: What is described, for titles.
        class_names: Readable names of classes.
        groups: {group: its classes or groups}; default: ours of ImageNet, for labels that are its
            synsets. {} for none.
        pairs: Search A AND B, A OR B and A AND NOT B, too, where A is one of the unit's best sets.
        beam: How many of those.
        least: Pictures of the smallest set, and outside of the largest.
        permutations: Searches under shuffled labels; the smallest p is 1 / (permutations + 1).
        seed: Of the shuffles.
        progress: Called with (searches done, all searches, text).

    Returns:
        A description of each unit, and the best set of each kind with its numbers: p for the unit
        alone, and q over all units and kinds. A unit is described where q is below 5%, so that of
        the descriptions given about 5% at most are due to chance.

    Raises:
        UserError: Shapes or labels that do not fit, values that are not finite, no class or group
            with `least` pictures, groups of which none has a class.

    Example:
        >>> found = featviz.describe_activations(store.matrix(), store.labels)
        >>> found.units[12].sentence
        'fish (AUROC 0.97 [0.94 to 0.99]; found on 92% of fish, ...)'
    """
    started = time.perf_counter()
    values = _checked(activations, units)
    classes = _classes(labels, len(values), class_names or {})
    values = values[classes.rows]
    names = [str(i) for i in range(values.shape[1])] if units is None else list(units)
    sets, words = _sets(classes, groups, least)
    active = [i for i, one in enumerate((values != values[:1]).any(0).tolist()) if one]
    search = Search(values[:, active], sets, pairs=pairs, beam=beam)
    best = search.measured()

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, f"shuffled searches, {subject}")

    chance = search.shuffled(permutations, seed, report) if active else {}
    made = _describe(values[:, active], [names[i] for i in active], sets, words, best, chance)
    described = dict(zip(active, made, strict=True))
    return Descriptions(
        origin=results.origin(
            None,
            parameters={
                "subject": subject,
                "pairs": pairs,
                "beam": beam,
                "least": least,
                "permutations": permutations,
            },
            started=started,
            seed=seed,
        ),
        warnings=classes.notes,
        subject=subject,
        units=tuple(
            described.get(i) or _inactive(names[i], float(values[0, i]))
            for i in range(values.shape[1])
        ),
        pictures=len(values),
        sets=Counter(sets.kinds),
        permutations=permutations,
    )


class _Classes(NamedTuple):
    """The labels of the pictures that have some."""

    rows: Tensor
    """(N,) which pictures"""
    names: tuple[str, ...]
    """of the K classes, for people"""
    labels: tuple[str, ...]
    """as they were given"""
    members: Tensor
    """(K, N) bool"""
    notes: tuple[str, ...]


def _checked(activations: Tensor, units: Sequence[str] | None) -> Tensor:
    if activations.dim() != 2 or not activations.numel():
        raise UserError(
            f"activations have shape {tuple(activations.shape)}; give (pictures, units), of maps "
            "their maximum or mean"
        )
    if units is not None and len(units) != activations.shape[1]:
        raise UserError(not_one_each(len(units), "name", activations.shape[1], "unit"))
    values = activations.detach().cpu().double()
    if not values.isfinite().all():
        raise UserError("activations are not finite; their ranks would mean nothing")
    return values


def _classes(
    labels: Labels | Mapping[str, Tensor], count: int, class_names: Mapping[str, str]
) -> _Classes:
    if isinstance(labels, Mapping):
        return _attributes(labels, count, class_names)
    given = [None if one in {None, ""} else str(one) for one in label_values(labels, count)]
    rows = torch.tensor([i for i, one in enumerate(given) if one is not None], dtype=torch.long)
    known = sorted({one for one in given if one is not None})
    if not known:
        raise UserError(
            "the pictures have no labels, by which units could be described; put the pictures of a "
            "class in one folder, or give labels"
        )
    if len(known) == 1:
        raise UserError(
            f"all pictures have the class {known[0]!r}; a description needs others to compare with"
        )
    number = {one: i for i, one in enumerate(known)}
    index = torch.tensor([number[one] for one in given if one is not None])
    members = torch.arange(len(known))[:, None] == index
    missing = count - len(rows)
    left_out = f"left out: {missing} of {counted(count, 'picture')}, without a label"
    notes = (left_out,) if missing else ()
    return _Classes(rows, _readable(known, class_names), tuple(known), members, notes)


def _attributes(
    labels: Mapping[str, Tensor], count: int, class_names: Mapping[str, str]
) -> _Classes:
    for name, one in labels.items():
        if one.dtype != torch.bool or one.shape != (count,):
            raise UserError(
                f"attribute {name!r} is {one.dtype} of shape {tuple(one.shape)}; give ({count},) "
                "bool, True for the pictures that have it"
            )
    if not labels:
        raise UserError("no attributes were given, by which units could be described")
    known = tuple(labels)
    members = torch.stack([one.cpu() for one in labels.values()])
    return _Classes(torch.arange(count), _readable(known, class_names), known, members, ())


def _readable(labels: Sequence[str], class_names: Mapping[str, str]) -> tuple[str, ...]:
    """Short names; with the label behind those that are not unique."""
    short = [class_names.get(label, label).partition(",")[0].strip() for label in labels]
    seen = Counter(short)
    return tuple(
        name if seen[name] == 1 else f"{name} ({label})"
        for name, label in zip(short, labels, strict=True)
    )


def _sets(classes: _Classes, groups: Groups | None, least: int) -> tuple[Sets, list[str]]:
    """Classes and groups of at least so many pictures, and their names. Raises UserError."""
    find = class_finder(classes.labels, classes.names)
    named = imagenet_groups() if groups is None else groups
    found = resolve_groups(named, find, classes.names, given=groups is not None)
    grouped = [classes.members[members].any(0) for members in found.values()]
    members = torch.stack([*classes.members, *grouped])
    kinds = ["class"] * len(classes.names) + ["group"] * len(found)
    words = [*classes.names, *found]
    size = members.sum(1)
    kept = [i for i, n in enumerate(size.tolist()) if n >= least and members.shape[1] - n >= least]
    if not kept:
        raise UserError(
            f"no class or group has {least} pictures with as many others (the largest of "
            f"{len(words)} has {int(size.max())} of {members.shape[1]}); give more pictures, "
            "groups, or a smaller least"
        )
    sets = Sets.of(members[kept], [kinds[i] for i in kept], least)
    return sets, [words[i] for i in kept]


def _describe(
    values: Tensor,
    names: Sequence[str],
    sets: Sets,
    words: Sequence[str],
    best: Mapping[str, Found],
    chance: Mapping[str, Tensor],
) -> list[UnitDescription]:
    """The active units."""
    kinds = [kind for kind in best if names and bool((best[kind].area >= 0).all())]
    p = {kind: p_values(best[kind].area, chance[kind]) for kind in kinds}
    q = {
        kind: (len(kinds) * q_values(best[kind].area, chance[kind])).clamp(max=1) for kind in kinds
    }
    limit = {kind: chance[kind].quantile(0.95, dim=0) for kind in kinds}
    found = []
    for row, name in enumerate(names):
        matches, members = {}, {}
        for kind in kinds:
            at = [int(v[row]) for v in best[kind][1:]]
            inside = members[kind] = sets.pictures(*at)
            matches[kind] = _match(
                values[:, row],
                inside,
                kind,
                _in_words(words, *at),
                float(limit[kind][row]),
                float(p[kind][row]),
                float(q[kind][row]),
            )
        found.append(_unit(name, values[:, row], matches, members))
    return found


def _in_words(words: Sequence[str], first: int, second: int, operation: int) -> str:
    return words[first] if second < 0 else f"{words[first]} {OPERATIONS[operation]} {words[second]}"


def _match(
    values: Tensor,
    inside: Tensor,
    kind: str,
    words: str,
    chance: float,
    p: float,
    q: float,
) -> Match:
    area, detection = auroc(values, inside), best_detection(values, inside)
    size = int(inside.sum())
    return Match(
        words=words,
        kind=kind,
        auroc=area.value,
        low=area.low,
        high=area.high,
        chance=chance,
        p=p,
        q=q,
        threshold=detection.threshold,
        hits=detection.hits,
        pictures=size,
        false_alarms=detection.false_alarms,
        others=len(values) - size,
    )


def _unit(
    name: str, values: Tensor, matches: Mapping[str, Match], members: Mapping[str, Tensor]
) -> UnitDescription:
    beyond = [match for match in matches.values() if match.significant]
    single = [match for match in beyond if match.kind != "pair"]
    # max takes the first of equals, and classes come before groups.
    chosen = max(single, key=lambda match: match.auroc, default=None)
    pair = next((match for match in beyond if match.kind == "pair"), None)
    if pair is not None and (chosen is None or pair.auroc > chosen.high):
        chosen = pair
    low, high = float(values.min()), float(values.max())
    made = UnitDescription(name, True, matches, chosen, low, high, values[:0], values[:0])
    if made.best is None:
        return made
    inside = members[made.best.kind]
    counts = [torch.histc(values[of], _BINS, low, high) for of in (inside, ~inside)]
    return UnitDescription(name, True, matches, chosen, low, high, *counts)


def _inactive(name: str, value: float) -> UnitDescription:
    none = torch.empty(0)
    return UnitDescription(name, False, {}, None, value, value, none, none)
