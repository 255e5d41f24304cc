"""`find_concepts`: directions that a layer uses, found in a store of its activations."""

from __future__ import annotations

import time
from pathlib import Path

from featviz import results
from featviz.concepts.dictionary import Method
from featviz.concepts.fit import fit
from featviz.concepts.measure import explained
from featviz.concepts.result import Concepts
from featviz.concepts.sample import Sample
from featviz.embedding.store import Store, open_store
from featviz.errors import UserError, public
from featviz.types import Count, Progress, Seed, Share


@public
def find_concepts(
    store: Store | str | Path,
    *,
    method: Method = "nmf",
    count: Count = 32,
    held_out: Share = 0.25,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> Concepts:
    """Directions in a layer's channels in which its activations can be written.

    Args:
        store: Activations of pictures at the layer, as `embed` makes them: with several positions
            of each map, or one row a picture; or the store's folder.
        method: How directions are found, see `featviz.concepts.dictionary`.
        count: How many.
        held_out: Share of the pictures on which nothing is fitted, and all is measured.
        seed: Of the choice of pictures and of the fit.
        progress: Called with (done, total, text).

    Returns:
        `Concepts`, with the largest first.

    Raises:
        UserError: Activations that the method cannot take, or too few of them.

    Example:
        >>> store = featviz.embed(model, "photographs", "relu5", positions=20)
        >>> featviz.find_concepts(store, count=32).save("run/concepts-relu5")
    """
    started = time.perf_counter()
    opened = store if isinstance(store, Store) else open_store(store)
    test, train = Sample.of(opened).split(held_out, seed)
    if min(len(train), len(test)) == 0:
        raise UserError(
            f"{opened.title} has {train.pictures + test.pictures} pictures, of which {held_out:g} "
            "are held out; give more pictures, or another share"
        )
    if progress:
        progress(0, 1, f"{method} of {opened.layer}")
    dictionary = fit(train, method, count, seed)
    return Concepts(
        origin=results.origin(
            None,
            parameters={"layer": opened.layer, "method": method, "count": count},
            started=started,
            seed=seed,
            base=opened.origin,
        ),
        layer=opened.layer,
        dictionary=dictionary,
        preparation=opened.preparation,
        explained=explained(dictionary, test, seed),
    )
