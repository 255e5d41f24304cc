"""`attack`: a few pictures attacked by a method chosen by name, so that the files saved fool."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import torch

import featviz
from featviz import results
from featviz.arguments import Bounds
from featviz.attacks.evaluation import classify
from featviz.attacks.methods import METHODS, Method, find_method
from featviz.attacks.options import AttackOptions, check_norm
from featviz.attacks.projections import eps_text
from featviz.attacks.result import AttackResult
from featviz.data.from_python import Data, Labels
from featviz.data.labeled import read_batch
from featviz.errors import UserError, public
from featviz.models.frozen import frozen
from featviz.models.layers import need_gradients
from featviz.pictures import images
from featviz.types import AutoPrecision, BatchSize, Progress, Restarts, Seed, Steps
from featviz.wording import counted

if TYPE_CHECKING:
    from featviz.models.model import Model

DEFAULT_EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
_MARGIN = 0.01
"""by which the wrong class must lead, in logits"""


@public
def attack(
    model: Model,
    pictures: Data,
    labels: Labels | None = None,
    *,
    method: str = "pgd",
    norm: str | None = None,
    eps: Annotated[float, Bounds(0, 1e6)] | None = None,
    target: int | str | None = None,
    steps: Steps | None = None,
    step_size: Annotated[float, Bounds(0, 10, above=True)] | None = None,
    restarts: Restarts = 1,
    seed: Seed = 0,
    names: Sequence[str] | None = None,
    batch_size: BatchSize = 4,
    precision: AutoPrecision = "float32",
    cuda_graph: bool = False,
    progress: Progress | None = None,
) -> AttackResult:
    """A few pictures changed so little that one hardly sees it, and so that the model errs.

    Attacks with a random start begin at the picture itself and end at the first success, so that
    the change is often smaller than allowed. The search is among 8-bit pictures, with a wrong logit
    at least 0.01 ahead: saved as PNG and loaded again, the result is adversarial still.

    Args:
        pictures: What `as_pictures` takes; float tensors (N, C, H, W) or (C, H, W) keep their size.
            All are rounded to 8 bits, as a file has them.
        labels: The classes to leave (indices or names); default: those of the data, or else the
            model's own predictions.
        method: A name of `featviz.attacks.methods.METHODS`: "pgd", "fgsm", "apgd", "ensemble",
            "square", "minimal" ...
        norm: "linf", "l2", "l1" or "l0", if the method supports it; default: the method's first.
        eps: The change stays within this distance. Default 8/255 in L-infinity (no value by more
            than 8 of 255 levels), 0.5 in L2, 12 in L1 (the sum of all changes). Methods that search
            the smallest change take none.
        target: A class to be reached, instead of any other than the label.
        steps: Gradient steps (queries of "square", draws of "noise", passes of "minimal"); default:
            the method's own.
        step_size: Of "pgd", "bim" and "mi-fgsm", in units of eps.
        restarts: Attempts at most, of "pgd" and "apgd".
        seed: Of random numbers, drawn per picture.
        names: What the pictures are called in figures and tables.
        batch_size: Pictures that the model sees at once.
        precision: Of the search, as in `AttackOptions`; so is `cuda_graph`.
        progress: Called with (pictures decided, pictures, name of the attack).

    Raises:
        UserError: An argument is out of range.

    Example:
        result = featviz.attack(model, picture, target="goldfish")
        result.save("run/cat")
    """
    started = time.perf_counter()
    chosen = find_method(method)
    norm = check_norm(norm or chosen.norms[0], chosen.norms)
    _check_method(method, chosen, eps, target, step_size, restarts)
    if chosen.ball and eps is None:
        eps = DEFAULT_EPS[norm]
    given = read_batch(model, pictures, labels)
    batch = images.quantize(given.pictures)
    count = len(batch)
    model.need_classes()
    if method not in {"square", "noise"}:
        need_gradients(model, ["logits"], cut=True)
    with frozen(model):
        before = classify(model, batch, batch_size=max(1, batch_size))
    own = before.argmax(1).cpu() if given.labels is None else given.labels
    goal = None if target is None else model.class_index(target)
    options = AttackOptions(
        targeted=goal is not None,
        restarts=restarts,
        eight_bit=True,
        margin=_MARGIN,
        clean=before,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        cuda_graph=cuda_graph,
        progress=progress,
    )
    steps = steps if steps is not None else chosen.steps
    keywords: dict[str, Any] = {"options": options, **chosen.fixed}
    if chosen.steps is not None:
        keywords[chosen.keyword] = steps
    if chosen.ball:
        keywords["eps"] = eps
    if len(chosen.norms) > 1:
        keywords["norm"] = norm
    if step_size is not None:
        keywords["step_size"] = step_size
    aims = own if goal is None else torch.full((count,), goal)
    function = chosen.function or method.lower().replace("-", "_")
    found: AttackResult = getattr(featviz, function)(model, batch, aims, **keywords)
    parameters = {
        "pictures": list(names or ()),
        "labels": own.tolist(),
        "method": method,
        "norm": norm,
        "eps": eps,
        "target": goal,
        "steps": steps,
        "step_size": step_size,
        "restarts": restarts,
        "batch_size": batch_size,
        "precision": precision,
    }
    return replace(
        found.cpu(),
        names=tuple(names or given.names),
        warnings=tuple(_doubts(found, chosen, eps)),
        origin=results.origin(model, parameters=parameters, started=started, seed=seed),
    )


def _check_method(
    name: str,
    chosen: Method,
    eps: float | None,
    target: int | str | None,
    step_size: float | None,
    restarts: int,
) -> None:
    """Raise UserError for an option that the method does not have."""
    if eps is not None and not chosen.ball:
        raise UserError(
            f"method {name} looks for the smallest change and takes no eps; leave it out, or take "
            "another method, which stays within eps"
        )
    for option, ability, wanted in (
        ("target", "targeted", target is not None),
        ("step_size", "step_size", step_size is not None),
        ("restarts", "restarts", restarts != 1),
    ):
        if wanted and not getattr(chosen, ability):
            able = [n for n, m in METHODS.items() if getattr(m, ability)]
            raise UserError(f"{name} has no {option}; for one take {' or '.join(able)}")


def _doubts(found: AttackResult, chosen: Method, eps: float | None) -> list[str]:
    """What to think of the result, in words."""
    caveats = []
    blind = int(((found.zero_gradients > 0) & ~found.success).sum())
    if blind:
        caveats.append(
            f"the gradient was 0 everywhere at some step of {counted(blind, 'picture')}: the "
            "model hides its gradient there, and the attack says little about its robustness"
        )
    if found.norm == "linf" and eps is not None and 0 < eps < 1 / 255:
        caveats.append(
            f"eps {eps_text(eps, found.norm)} is less than one level of an 8-bit picture, so "
            "nothing can change; the audit works on unrounded pictures"
        )
    missed = int((~found.success).sum())
    if missed:
        more = "more --steps" if chosen.steps and chosen.steps >= 100 else "apgd, ensemble"
        larger = " or a larger --eps" if chosen.ball else ""
        caveats.append(
            f"not brought there: {missed} of {counted(len(found), 'picture')}; {more}{larger} may "
            "do it"
        )
    return caveats
