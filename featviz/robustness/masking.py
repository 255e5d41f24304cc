"""Checks for masked gradients and failed attacks, without which robust accuracy means little.

In: the model and some pictures (`probe`), or counts of what attacks found. Out: `Check`s, each with
a value, its limit, and what to do when it is exceeded.

A failed attack looks like a robust model. The signs of it are from

    Athalye, Carlini, Wagner, "Obfuscated Gradients Give a False Sense of Security", 2018
        (arXiv:1802.00420): one step stronger than many, black box stronger than white box,
        no full success without a bound, random noise that succeeds
    Pintor et al., "Indicators of Attack Failure", 2022 (arXiv:2106.09947): six indicators,
        I1 to I6, here on whole batches; differences are said at each function

A trace is the objective of an attack over its steps: (N, T) margins, wrong logit minus right one,
NaN after its end; above 0 the picture is fooled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featviz.attacks import losses, projections
from featviz.attacks.evaluation import classify
from featviz.attacks.options import Classifier
from featviz.wording import counted

TINY = 1e-6
"""far below one level of an 8-bit picture (1/255), yet far above the last bit of a float32"""
SLOPE_STEP = 0.25 / 255
"""over which the gradient is compared with the change of the logits"""
WINDOW = 8 / 255
"""width of the random moves of I2, as in the paper"""
_DRAWS = 8
"""random moves of I2"""


@dataclass(frozen=True)
class Check:
    """One sign of a failed measurement, present or not."""

    name: str
    value: float | None
    """what was measured; None when it could not be"""
    limit: float
    flagged: bool
    meaning: str
    """what was measured, in words"""
    remedy: str
    """what it would mean, and what to do"""

    @property
    def warning(self) -> str:
        shown = "" if self.value is None else f" ({self.value:.3g}, limit {self.limit:.3g})"
        return f"{self.name}: {self.meaning}{shown}; {self.remedy}"


def above(name: str, value: float | None, limit: float, meaning: str, remedy: str) -> Check:
    """A check that is flagged when its value is above the limit."""
    return Check(name, value, limit, value is not None and value > limit, meaning, remedy)


@dataclass(frozen=True)
class Probe:
    """Outputs and gradients of a model on some pictures, before any attack."""

    pictures: int
    randomised: float
    """share of pictures whose logits differ between two equal passes"""
    probabilities: bool
    """every row lies in [0, 1] and sums to 1"""
    margin: float
    """median distance of the two largest logits"""
    unavailable: str
    """why autograd gives no gradient; "" when it does"""
    zero: float
    """share of pictures with a gradient of exactly 0"""
    undefined: float
    """share of pictures with a gradient that is not finite"""
    stepped: float
    """share of pictures whose logits stay bit-equal under tiny noise, but not under larger noise"""
    slope: float | None
    """median of (change of the margin) / (change predicted by the gradient) over a small step"""
    unstable: float
    """I2: mean change of the margin under random moves, over its mean size. (The paper divides
    picture by picture and caps at 1: pictures near the border then rule the mean.)"""
    forwards: int
    backwards: int


def probe(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    seed: int = 0,
) -> Probe:
    """Outputs and gradients of a model, in 15 passes per picture.

    model: pictures (N, 3, H, W) in [0, 1] to logits, within `frozen`
    pictures, labels: (N, 3, H, W) and (N,), best those that the model classifies right
    """

    def logits(x: Tensor) -> Tensor:
        return classify(model, x, batch_size=batch_size)

    def share(rows: Tensor) -> float:
        return float(rows.double().mean())

    first, again = logits(pictures), logits(pictures)
    other = losses.others(first, labels).argmax(1)

    def margins(x: Tensor) -> Tensor:
        return losses.towards(logits(x), labels, other)[0]

    def noisy(radius: float) -> Tensor:
        drawn = [torch.rand(pictures.shape[1:], generator=stream) for stream in streams]
        noise = (radius * (2 * torch.stack(drawn) - 1)).to(pictures)
        return (pictures + noise).clamp(0, 1)

    gradient, reason = margin_gradient(model, pictures, labels, other, batch_size=batch_size)
    undefined = ~gradient.flatten(1).isfinite().all(1)
    streams = projections.picture_streams(pictures, seed, 77)
    still = (logits(noisy(TINY)) == first).all(1)
    moves = (logits(noisy(WINDOW)) != first).any(1)
    steady = (first == again).all(1)

    direction = SLOPE_STEP * gradient.sign().nan_to_num()
    up, down = (pictures + direction).clamp(0, 1), (pictures - direction).clamp(0, 1)
    predicted = (gradient.double() * (up - down).double()).flatten(1).sum(1)
    slopes = ((margins(up) - margins(down)) / predicted)[(predicted != 0) & ~undefined]
    clean = first.double()
    before = losses.towards(clean, labels, other)[0]
    moved = [margins(noisy(WINDOW / 2)) for _ in range(_DRAWS)]
    change = (torch.stack(moved) - before).abs().mean(0).sum()
    top = clean.topk(2, 1).values
    n = len(pictures)
    sums = clean.sum(1)
    return Probe(
        pictures=n,
        randomised=share(~steady),
        probabilities=bool(((first >= 0) & (first <= 1)).all() and ((sums - 1).abs() < 1e-4).all()),
        margin=float((top[:, 0] - top[:, 1]).median()),
        unavailable=reason,
        zero=share((gradient == 0).flatten(1).all(1)),
        undefined=share(undefined),
        stepped=share(still & moves),
        slope=float(slopes.median()) if len(slopes) else None,
        unstable=float(change / before.abs().sum().clamp(min=1e-300)),
        forwards=n * (7 + _DRAWS),
        backwards=n,
    )


def margin_gradient(
    model: Classifier, pictures: Tensor, labels: Tensor, others: Tensor, *, batch_size: int
) -> tuple[Tensor, str]:
    """Gradient (N, 3, H, W) of logit `others` minus logit `labels`, and why there is none.

    Where autograd refuses, the gradient is 0 and the reason is given in its words.
    """
    found: list[Tensor] = []
    for start in range(0, len(pictures), batch_size):
        rows = slice(start, start + batch_size)
        leaf = pictures[rows].clone().requires_grad_(True)
        with torch.enable_grad():
            margin = losses.towards(model(leaf), labels[rows], others[rows])[0].sum()
        if not margin.requires_grad:
            return torch.zeros_like(pictures), "the logits do not depend on the picture's graph"
        try:
            found += torch.autograd.grad(margin, leaf)
        except RuntimeError as error:
            return torch.zeros_like(pictures), str(error).partition("\n")[0]
    return torch.cat(found), ""


def model_checks(seen: Probe) -> list[Check]:
    """The checks of the model itself. I1 is three of them: each cause has another remedy."""
    return [
        above(
            "stochastic model",
            seen.randomised,
            0.0,
            "share of pictures whose logits differ between two equal passes",
            "noise in the model masks its gradient and no count is repeatable; switch it "
            "off, or average the gradient over many passes (EOT)",
        ),
        Check(
            "probabilities instead of logits",
            float(seen.probabilities),
            0.5,
            seen.probabilities,
            "1 when every output lies in [0, 1] and sums to 1",
            "a softmax at the end makes gradients of confident outputs vanish; attack the logits",
        ),
        above(
            "enormous logits",
            seen.margin,
            1000.0,
            "median distance of the two largest logits",
            "cross-entropy is exactly 0 there and so is its gradient; featviz's steps do "
            "not depend on the scale, other tools' may",
        ),
        Check(
            "detached model",
            float(bool(seen.unavailable)),
            0.5,
            bool(seen.unavailable),
            "1 when autograd gives no gradient (I1)",
            f"no gradient attack can work{': ' * bool(seen.unavailable)}{seen.unavailable}; "
            "replace the step that cuts the graph",
        ),
        above(
            "zero gradients",
            seen.zero,
            0.02,
            "share of clean pictures at which the gradient is exactly 0 (I1)",
            "rounding or saturation masks it and gradient attacks find too little; replace "
            "that operation by a smooth one in the backward pass (BPDA)",
        ),
        above(
            "undefined gradients",
            seen.undefined,
            0.0,
            "share of clean pictures at which the gradient is not finite (I1)",
            "one such value stops an attack; find the division or root that causes it",
        ),
        above(
            "quantized input",
            seen.stepped,
            0.1,
            f"share of pictures whose logits do not change at all under noise of {TINY:g}, "
            "but do under larger noise",
            "the model is piecewise constant, so gradients are 0 or meaningless; attack "
            "a copy without the rounding",
        ),
        Check(
            "shattered gradients",
            seen.slope,
            0.3,
            seen.slope is not None and not seen.slope > 0.3,
            "median ratio of the margin's change over a step of a quarter level to the change "
            "predicted by the gradient",
            "the gradient does not predict even small steps; smooth it (average over small random "
            "changes) or attack without gradients",
        ),
        above(
            "unstable predictions",
            seen.unstable,
            0.5,
            f"change of the margin under random noise of ±{WINDOW * 255 / 2:g}/255, "
            "relative to the margin (I2)",
            "the loss is rough; average the gradient over random noise (EOT)",
        ),
    ]


def silent_success(trace: Tensor, success: Tensor) -> Tensor:
    """I3, (N,) bool: counted as failed although some step fooled the model.

    trace: (N, T) margins; success: (N,) bool as the attack reported it.
    """
    return (trace.nan_to_num(nan=-torch.inf) > 0).any(1) & ~success


def late_gain(trace: Tensor, last: int = 10) -> Tensor:
    """I4, (N,): how much of the whole gain came in the last steps, 0 to 1.

    The best margin so far, scaled to run from 0 to 1 over each trace; its rise over the last `last`
    steps. The paper flags more than 0.05 on an attack that failed. A trace without gain, or no
    longer than `last`, gives 0.
    """
    best = trace.double().nan_to_num(nan=-torch.inf).cummax(1).values
    first = trace[:, 0].double().nan_to_num(nan=0.0)
    end = best[:, -1]
    rise = end - first
    if trace.shape[1] <= last:
        return torch.zeros_like(rise)
    lengths = (~trace.isnan()).sum(1)
    at = (lengths - 1 - last).clamp(min=0)
    before = best.gather(1, at[:, None])[:, 0]
    gain = torch.where(rise > 0, (end - before) / rise.clamp(min=1e-300), 0.0)
    return torch.where(lengths > last, gain, 0.0)


@dataclass(frozen=True)
class Evidence:
    """Counts of what attacks found on pictures that are right when clean."""

    tried: int
    one_step_only: int
    """fooled by FGSM at some eps of the grid, but not by the iterated attacks at that eps"""
    black_box_tried: int
    black_box_only: int
    """not fooled by the gradient attacks, but without gradients at the same eps"""
    unbounded_tried: int
    unbounded_failed: int
    """I6: still right when every pixel may change without bound"""
    noise_only: int
    """fooled by random noise of a size at which the attacks failed"""
    zero_steps: int
    """pictures that were not fooled and met a gradient of exactly 0 at some step"""
    silent: int
    """I3"""
    late: float | None
    """I4: median gain in the last tenth of the steps, of attacks that failed"""
    unconfirmed: int
    """I5: fool the model in the precision of the search, but not in float32"""


def attack_checks(seen: Evidence) -> list[Check]:
    """The checks of the attacks: each compares two attacks of which one must be the stronger."""
    few = 0.01
    return [
        _share(
            "one step stronger than many",
            seen.one_step_only,
            seen.tried,
            few,
            "are fooled by one step (FGSM) but not by the iterated attack of the same size",
            "a sign of masked gradients or of too few steps",
        ),
        _share(
            "black box stronger than white box",
            seen.black_box_only,
            seen.black_box_tried,
            0.05,
            "are fooled by random search but not by gradient attacks at the same eps",
            "the gradient misleads; take the lower accuracy and look for what masks it",
        ),
        _share(
            "unbounded attack below 100%",
            seen.unbounded_failed,
            seen.unbounded_tried,
            0.02,
            "are not fooled although every pixel may change without bound (I6)",
            "the attack fails, the model may not be robust at all",
        ),
        _share(
            "random noise successful",
            seen.noise_only,
            seen.tried,
            few,
            "are fooled by random noise of a size at which the attacks failed",
            "take more steps or another loss",
        ),
        _share(
            "zero gradients during the attack",
            seen.zero_steps,
            seen.tried,
            0.02,
            "are not fooled, and met a gradient of exactly 0 during the attack (I1)",
            "the attack cannot move there; take restarts or a smooth backward pass",
        ),
        _share(
            "silent success",
            seen.silent,
            seen.tried,
            0.0,
            "were fooled at some step and counted as not fooled (I3)",
            "keep the best step",
        ),
        above(
            "incomplete optimization",
            seen.late,
            0.05,
            "median share of the gain that came in the last tenth of the steps, of failed "
            "attacks (I4)",
            "the attack has not converged; more steps would find more",
        ),
        _share(
            "transfer failure",
            seen.unconfirmed,
            seen.tried,
            few,
            "fool the model in the search but not in the judgement (I5)",
            "the search computes something else than the model that is judged",
        ),
    ]


def range_checks(
    grids: Sequence[tuple[str, Sequence[float]]],
    *,
    components: int,
    left: float,
    accuracy: float,
    n: int,
    classes: int,
) -> list[Check]:
    """The checks of units and ranges: eps far too large or small, pictures of another range.

    grids: (norm, ascending eps); components: values of a picture; left: smallest share of the
    clean correct pictures that no attack fooled at the largest eps of a grid; accuracy: clean, of
    n pictures
    """
    # Half of the box's diagonal in each norm: from there on every picture can be made gray.
    trivial = {"linf": 0.5, "l2": 0.5 * math.sqrt(components), "l1": 0.5 * components}
    trivial["l0"] = 0.99 * components
    largest = max(eps[0] / trivial[norm] for norm, eps in grids)
    smallest = min(eps[-1] if norm == "l0" else 255 * eps[-1] for norm, eps in grids)
    chance = 1 / classes
    return [
        above(
            "eps beyond every picture",
            largest,
            0.999999,
            "the smallest eps of a grid, over the one that makes any picture gray",
            "no picture can be robust there; is the unit right (8/255, not 8)?",
        ),
        Check(
            "eps below one level",
            smallest,
            0.1,
            smallest < 0.1 and left > 0.5,
            "the largest eps of a grid, in levels of an 8-bit picture (1/255)",
            "so small a change says nothing about robustness; is the unit right (divided by 255 "
            "twice)?",
        ),
        Check(
            "clean accuracy at chance",
            accuracy,
            2 * chance,
            n >= 20 and accuracy <= 2 * chance,
            f"accuracy on clean pictures, beside {100 * chance:.2g}% by guessing",
            "the pictures may not be what the model expects: range (0 to 1 or 0 to 255), "
            "normalization, channel order, or the labels belong to other classes",
        ),
    ]


def _share(name: str, count: int, of: int, limit: float, meaning: str, remedy: str) -> Check:
    """A count that must be small: more than one picture, and more than `limit` of all."""
    value = count / of if of else None
    flagged = bool(of) and count > max(1 if limit else 0, limit * of)
    return Check(
        name, value, limit, flagged, f"{count} of {counted(of, 'picture')} {meaning}", remedy
    )
