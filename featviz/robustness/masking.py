"""Can the audit be believed? Checks that a model hides its gradient, or that an attack has failed.

In: the model and some pictures (`probe`), or what attacks found (tensors). Out: `Check`s, each with
a name of its own, a value, the limit it was held against, and what to do when it is beyond it.

An attack that fails looks like a robust model. Signs that it is not, from

    Athalye, Carlini, Wagner, "Obfuscated Gradients Give a False Sense of Security", 2018
        (arXiv:1802.00420): one step stronger than many, black box stronger than white box,
        no full success without a bound, random noise that succeeds
    Pintor et al., "Indicators of Attack Failure", 2022 (arXiv:2106.09947): six indicators,
        I1 to I6, here on whole batches; differences are said at each function

A trace is what an attack climbs: (N, T) margins, wrong logit minus right one, NaN where it had
ended; above 0 the picture is fooled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from featviz.attacks import projections

Classifier = Callable[[Tensor], Tensor]

TINY = 1e-6
"""far below one level of an 8-bit picture (1/255), yet far above the last bit of a float32"""
SLOPE_STEP = 0.25 / 255
"""over which the gradient is compared with what the logits really do"""
WINDOW = 8 / 255
"""width of the random moves of I2, as in the paper"""


@dataclass(frozen=True)
class Check:
    """One doubt, whether it holds or not."""

    name: str
    value: float | None
    """what was measured; None when it could not be"""
    limit: float
    tripped: bool
    meaning: str
    """what was measured, in words"""
    remedy: str
    """what it would mean, and what to do"""

    @property
    def warning(self) -> str:
        shown = "" if self.value is None else f" ({self.value:.3g}, limit {self.limit:.3g})"
        return f"{self.name}: {self.meaning}{shown}; {self.remedy}"


def above(name: str, value: float | None, limit: float, *, meaning: str, remedy: str) -> Check:
    """A check that trips when its value is above the limit."""
    return Check(name, value, limit, value is not None and value > limit, meaning, remedy)


@dataclass(frozen=True)
class Probe:
    """What a model's answers and gradients are like on some pictures, before any attack."""

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
    """median of (what the margin does) / (what the gradient says) over a small step"""
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
    draws: int = 8,
) -> Probe:
    """Look at the model itself, in about `draws` + 7 passes a picture.

    model: pictures (N, 3, H, W) in [0, 1] to logits, within `frozen`
    pictures, labels: (N, 3, H, W) and (N,), best those that the model has right
    """
    first = _logits(model, pictures, batch_size)
    again = _logits(model, pictures, batch_size)
    other = first.scatter(1, labels[:, None], -torch.inf).argmax(1)

    def margins(x: Tensor) -> Tensor:
        z = _logits(model, x, batch_size).double()
        return z.gather(1, other[:, None])[:, 0] - z.gather(1, labels[:, None])[:, 0]

    gradient, reason = margin_gradient(model, pictures, labels, other, batch_size=batch_size)
    size = gradient.flatten(1).abs().amax(1)
    undefined = ~gradient.flatten(1).isfinite().all(1)
    streams = [projections.generator(projections.picture_key(p, seed), 77) for p in pictures]
    tiny = _jittered(pictures, TINY, streams)
    large = _jittered(pictures, WINDOW, streams)
    still = (_logits(model, tiny, batch_size) == first).all(1)
    moves = (_logits(model, large, batch_size) != first).any(1)
    steady = (first == again).all(1)

    slope = None
    usable = (size > 0) & ~undefined
    if usable.any():
        direction = gradient.sign().nan_to_num()
        up = (pictures + SLOPE_STEP * direction).clamp(0, 1)
        down = (pictures - SLOPE_STEP * direction).clamp(0, 1)
        said = (gradient.double() * (up - down).double()).flatten(1).sum(1)
        done = margins(up) - margins(down)
        usable &= said != 0
        if usable.any():
            slope = float((done[usable] / said[usable]).median())
    clean = first.double()
    before = (clean.gather(1, other[:, None]) - clean.gather(1, labels[:, None]))[:, 0]
    change = torch.zeros((), dtype=torch.float64, device=pictures.device)
    for _ in range(draws):
        moved = margins(_jittered(pictures, WINDOW / 2, streams))
        change += (moved - before).abs().sum() / draws
    top = clean.topk(2, 1).values
    n = len(pictures)
    sums = first.double().sum(1)
    return Probe(
        pictures=n,
        randomised=float((~steady).double().mean()),
        probabilities=bool(((first >= 0) & (first <= 1)).all() and ((sums - 1).abs() < 1e-4).all()),
        margin=float((top[:, 0] - top[:, 1]).median()),
        unavailable=reason,
        zero=float((size == 0).double().mean()),
        undefined=float(undefined.double().mean()),
        stepped=float((still & moves).double().mean()),
        slope=slope,
        unstable=float(change / before.abs().sum().clamp(min=1e-300)),
        forwards=n * (7 + draws),
        backwards=n,
    )


def margin_gradient(
    model: Classifier, pictures: Tensor, labels: Tensor, others: Tensor, *, batch_size: int
) -> tuple[Tensor, str]:
    """Gradient (N, 3, H, W) of logit `others` minus logit `labels`, and why there is none.

    Where autograd refuses, the gradient is 0 and the reason is given in its words.
    """
    found = []
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        leaf = _padded(batch, batch_size).requires_grad_(True)
        with torch.enable_grad():
            z = model(leaf)[: len(batch)]
            rise = z.gather(1, others[start : start + batch_size, None]) - z.gather(
                1, labels[start : start + batch_size, None]
            )
        if not rise.requires_grad:
            return torch.zeros_like(pictures), "the logits do not depend on the picture's graph"
        try:
            (gradient,) = torch.autograd.grad(rise.sum(), leaf)
        except RuntimeError as error:
            return torch.zeros_like(pictures), str(error).partition("\n")[0]
        found.append(gradient[: len(batch)])
    return torch.cat(found), ""


def model_checks(seen: Probe) -> list[Check]:
    """The checks of the model itself. I1 is three of them: each cause has another remedy."""
    return [
        above(
            "stochastic model",
            seen.randomised,
            0.0,
            meaning="share of pictures whose logits differ between two equal passes",
            remedy="noise in the model hides its gradient and no count is repeatable; switch it "
            "off, or average the gradient over many passes",
        ),
        Check(
            "probabilities instead of logits",
            float(seen.probabilities),
            0.5,
            seen.probabilities,
            "1 when every answer lies in [0, 1] and sums to 1",
            "a softmax at the end flattens the gradient of confident answers; attack the logits",
        ),
        above(
            "enormous logits",
            seen.margin,
            1000.0,
            meaning="median distance of the two largest logits",
            remedy="cross-entropy is exactly 0 there and so is its gradient; featviz's steps do "
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
            meaning="share of clean pictures at which the gradient is exactly 0 (I1)",
            remedy="rounding or saturation hides it and gradient attacks find too little; replace "
            "that step by a smooth one in the backward pass",
        ),
        above(
            "undefined gradients",
            seen.undefined,
            0.0,
            meaning="share of clean pictures at which the gradient is not finite (I1)",
            remedy="one such value stops an attack; find the division or root that makes it",
        ),
        above(
            "quantised input",
            seen.stepped,
            0.1,
            meaning=f"share of pictures whose logits do not move at all under noise of {TINY:g}, "
            "but do under larger noise",
            remedy="the model answers in steps, so gradients are 0 or say nothing of them; attack "
            "a copy without the rounding",
        ),
        Check(
            "shattered gradients",
            seen.slope,
            0.3,
            seen.slope is not None and not seen.slope > 0.3,
            "median share of the change promised by the gradient that a step of a quarter level "
            "brings",
            "the gradient is true for an instant only, so steps along it lead nowhere; smooth it "
            "(average over small moves) or attack without gradients",
        ),
        above(
            "unstable predictions",
            seen.unstable,
            0.5,
            meaning=f"change of the margin under random moves of ±{WINDOW * 255 / 2:g}/255, "
            "relative to the margin (I2)",
            remedy="the landscape is rough; average the gradient over random moves",
        ),
    ]


def silent_success(trace: Tensor, success: Tensor) -> Tensor:
    """I3, (N,) bool: counted as failed although some point on the way fooled the model.

    trace: (N, T) margins; success: (N,) bool as the attack reported it.
    """
    return (trace.nan_to_num(nan=-torch.inf) > 0).any(1) & ~success


def late_gain(trace: Tensor, last: int = 10) -> Tensor:
    """I4, (N,): how much of the whole ascent came in the last steps, 0 to 1.

    The best margin so far, scaled to run from 0 to 1 over each trace; its rise over the last `last`
    steps. The paper flags more than 0.05 on an attack that failed. A trace that never rose, or no
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


def not_confirmed(found: Tensor, judged: Tensor) -> Tensor:
    """I5, (N,) bool: fools the model the search used, but not the one that judges.

    Search and judge may differ in precision, in the batch's shape, or be two models (transfer).
    """
    return found & ~judged


@dataclass(frozen=True)
class Evidence:
    """Counts of what attacks found on pictures that were right when clean."""

    tried: int
    one_step_only: int
    """fall to FGSM at some eps of the grid, but not to the iterated attacks at that eps"""
    black_box_tried: int
    black_box_only: int
    """survivors of the gradient attacks that fall without gradients at the same eps"""
    unlimited_tried: int
    unlimited_standing: int
    """I6: still right when every pixel may change at will"""
    noise_only: int
    """fall to random noise of a size at which the attacks failed"""
    zero_steps: int
    """pictures on which some step of an attack met a gradient of exactly 0, and which stand"""
    silent: int
    """I3"""
    late: float | None
    """I4: median gain in the last tenth of the steps, of attacks that failed"""
    unconfirmed: int
    """I5"""


def attack_checks(seen: Evidence) -> list[Check]:
    """The checks of the attacks: each compares two attacks of which one must be the stronger."""
    few = 0.01
    return [
        _share(
            "one step stronger than many",
            seen.one_step_only,
            seen.tried,
            few,
            "fall to one step (FGSM) but not to the iterated attack of the same size",
            "a sign of masked gradients or of too few steps",
        ),
        _share(
            "black box stronger than white box",
            seen.black_box_only,
            seen.black_box_tried,
            0.05,
            "withstand the gradient attacks but fall to random search at the same eps",
            "the gradient misleads; believe the lower accuracy and look for what hides it",
        ),
        _share(
            "unlimited eps below 100%",
            seen.unlimited_standing,
            seen.unlimited_tried,
            0.02,
            "stand although every pixel may change at will, where nobody can (I6)",
            "the attack fails, the model may not be robust at all",
        ),
        _share(
            "random noise successful",
            seen.noise_only,
            seen.tried,
            few,
            "fall to random noise of a size at which the attacks failed",
            "the attacks have missed what chance finds; more steps or another loss",
        ),
        _share(
            "zero gradients on the way",
            seen.zero_steps,
            seen.tried,
            0.02,
            "stand, and met a gradient of exactly 0 during the attack (I1)",
            "the attack stood still there; restarts or a smooth backward pass may free it",
        ),
        _share(
            "silent success",
            seen.silent,
            seen.tried,
            0.0,
            "were fooled on the way and counted as standing at its end (I3)",
            "keep the best point of the path",
        ),
        above(
            "incomplete optimisation",
            seen.late,
            0.05,
            meaning="median share of the ascent that came in the last tenth of the steps, of "
            "failed attacks (I4)",
            remedy="the attack was still climbing; more steps would find more",
        ),
        _share(
            "transfer failure",
            seen.unconfirmed,
            seen.tried,
            few,
            "fool the search but not the judge (I5)",
            "the search computes something else than the model that is judged",
        ),
    ]


def _share(name: str, count: int, of: int, limit: float, meaning: str, remedy: str) -> Check:
    """A count that must be small: more than one picture, and more than `limit` of all."""
    value = count / of if of else None
    tripped = bool(of) and count > max(1 if limit else 0, limit * of)
    return Check(name, value, limit, tripped, f"{count} of {of} pictures {meaning}", remedy)


def _logits(model: Classifier, pictures: Tensor, batch_size: int) -> Tensor:
    """Logits (N, classes), always in batches of `slots`."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            parts.append(model(_padded(batch, batch_size))[: len(batch)])
    return torch.cat(parts)


def _padded(batch: Tensor, batch_size: int) -> Tensor:
    padded = batch.new_zeros(batch_size, *batch.shape[1:])
    padded[: len(batch)] = batch
    return padded


def _jittered(pictures: Tensor, radius: float, streams: list[torch.Generator]) -> Tensor:
    """Pictures under uniform noise of ±radius, each from its own stream, within [0, 1]."""
    noise = torch.stack(
        [torch.rand(pictures.shape[1:], generator=s, dtype=torch.float32) for s in streams]
    )
    noise = (radius * (2 * noise - 1)).to(pictures.device, pictures.dtype)
    return (pictures + noise).clamp(0, 1)
