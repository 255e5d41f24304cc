"""What concepts of relu5 explain in the real AlexNet on photographs, beside other directions.

    python recipes/concepts_alexnet.py --weights FILE [--data FOLDER] [--model alexnet]
        [--layer relu5] [--few 150] [--positions 20] [--steps 1000] [--out FILE]

Embeds the layer at random positions of all photographs, then finds concepts
(`featviz.find_concepts`): non-negative factors of `--few` photographs, half of them held out, and
of all with a quarter held out; k-means and TopK dictionaries of all. Prints two tables in Markdown:
energy explained on held-out photographs with its 95% interval, and the median |cosine| with which
a concept is found again.

The photographs are those of `--data`, else of the folder `imagenet_val` in FEATVIZ_SHARED_DATA.
docs/concepts.md has the results.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from _tables import line, read_arguments, show, table

import featviz
from featviz.concepts.result import BESIDE, Concepts
from featviz.embedding.store import Store

COUNTS = (8, 32, 64)
HEAD = (
    "concepts",
    "explained",
    "units",
    "singular vectors",
    "random",
    "chosen units",
    "where fitted",
    "again, seeds",
    "again, halves",
    "dead",
)


def main() -> None:
    options, model, pictures = read_arguments(
        __doc__, layer="relu5", few=150, positions=20, steps=1000
    )
    few, every = (
        featviz.embed(model, some, options.layer, positions=options.positions)
        for some in (pictures.spread(options.few), pictures)
    )
    topk: dict[str, Any] = {"method": "topk", "count": 256, "steps": options.steps}
    parts: dict[str, list[tuple[Store, dict[str, Any]]]] = {
        f"{options.few} photographs, half held out": [
            (few, {"count": count, "held_out": 0.5}) for count in COUNTS
        ],
        f"{len(pictures)} photographs, a quarter held out": [
            *((every, {"count": count}) for count in COUNTS),
            (every, {"method": "kmeans", "count": 64}),
            *((every, topk | {"active": active}) for active in (8, 32)),
        ],
    }
    blocks = []
    for title, runs in parts.items():
        rows = []
        for store, settings in runs:
            rows.append(list(row(featviz.find_concepts(store, **settings))))
            print(line(rows[-1]), file=sys.stderr)
        blocks.append(f"{title}:\n\n{table(HEAD, rows)}")
    show("\n\n".join(blocks), options.out)


def row(found: Concepts) -> Iterator[str]:
    """The cells of one result."""
    numbers = found.numbers()
    active = found.dictionary.active
    yield f"{found.method} {len(found)}" + (f", {active} active" if active else "")
    for name in ("explained", *(f"{n} explain" for n in BESIDE)):
        number = numbers.get(name)
        yield f"{number.value:.3f} ({number.low:.3f} to {number.high:.3f})" if number else ""
    yield f"{numbers['explained where fitted'].value:.3f}"
    for name in ("seeds", "halves"):
        yield _again(found.stability, name)
    yield f"{float(found.dead.double().mean()):.1%}"


def _again(stability: Mapping[str, Any], name: str) -> str:
    return f"{float(stability[name].median()):.2f}" if name in stability else ""


if __name__ == "__main__":
    main()
