"""What an attack ascends: from logits to one value a picture and its gradient at the logits.

Each function takes logits (N, classes), labels (N,) and perhaps a target class, and gives the
value (N,), to be ascended, and the weights (N, classes) = d value / d logits, both in float64.
`evaluation.evaluate` takes the weights back through the model.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SPREAD = 5.0  # of logits, where cross-entropy is to look alike at any scale
_GUARD = 1e-12


def others(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits with those of the labels at minus infinity."""
    return logits.scatter(1, labels[:, None], -torch.inf)


def cross_entropy(
    logits: Tensor, labels: Tensor, *, targeted: bool = False, scale: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the labels, in the form that confidence does not silence.

    With m = logsumexp of the other logits - z_y, the cross-entropy is log(1 + exp(m)): it grows
    with m, so that both order the pictures alike. Its gradient is 1 - p_y times that of m. The
    factor changes neither a sign step nor a normalized one, but underflows to 0 on a confident
    model. So m and its gradient, softmax of the others - onehot of y, are used. With
    `targeted`, the labels are to be reached and both change sign.

    scale: (N,) or a number; the logits are multiplied with it first (an inverse temperature).
    """
    z = logits.double() * (scale.double()[:, None] if isinstance(scale, Tensor) else scale)
    own = torch.zeros_like(z).scatter_(1, labels[:, None], 1.0)
    rest = others(z, labels)
    value = rest.logsumexp(1) - z.gather(1, labels[:, None])[:, 0]
    weights = rest.softmax(1) - own
    return (-value, -weights) if targeted else (value, weights)


def temper(logits: Tensor) -> Tensor:
    """(N,) the factor that brings the standard deviation of a picture's logits to 5.

    Cross-entropy looks at the scale of the logits: on very large ones it sees a single other class,
    on very small ones all alike. With this factor it looks alike at any scale. The softmax of K
    classes is on a few of them where the deviation is well above sqrt(2 ln K), 3.7 for 1,000: at
    2.5 APGD missed pictures of SqueezeNet that it fools at 4.5 and more; from there to 9 little
    changes.
    """
    spread = logits.double().std(1)
    return torch.where(spread > 0, _SPREAD / spread, 1.0)


def margin(logits: Tensor, labels: Tensor, *, targeted: bool = False) -> tuple[Tensor, Tensor]:
    """The best other logit minus the label's (`targeted`: the other way round); above 0 it errs."""
    value, weights = towards(logits, labels, others(logits, labels).argmax(1))
    return (-value, -weights) if targeted else (value, weights)


def towards(logits: Tensor, labels: Tensor, aims: Tensor) -> tuple[Tensor, Tensor]:
    """z_aim - z_y: the margin of one class over the label."""
    z = logits.double()
    value = (z.gather(1, aims[:, None]) - z.gather(1, labels[:, None]))[:, 0]
    weights = torch.zeros_like(z).scatter_(1, aims[:, None], 1.0)
    return value, weights.scatter_add_(1, labels[:, None], -torch.ones_like(z[:, :1]))


def dlr(logits: Tensor, labels: Tensor, *, targeted: bool = False) -> tuple[Tensor, Tensor]:
    """The difference of logits ratio: -(z_y - max other) / (z_1st - z_3rd).

    Croce & Hein 2020 (arXiv:2003.01690), equation 6. Neither shift nor positive scale of the
    logits changes it. It needs 3 classes. With `targeted`, the labels are to be reached and the
    sign changes.
    """
    return _over_spread(logits, *margin(logits, labels, targeted=targeted), last=3)


def dlr_towards(logits: Tensor, labels: Tensor, aims: Tensor) -> tuple[Tensor, Tensor]:
    """Targeted DLR: (z_aim - z_y) / (z_1st - (z_3rd + z_4th) / 2). It needs 4 classes.

    Croce & Hein 2020, equation 7. Not a targeted attack: any wrong prediction is a success.
    """
    return _over_spread(logits, *towards(logits, labels, aims), last=4)


def _over_spread(
    logits: Tensor, value: Tensor, weights: Tensor, *, last: int
) -> tuple[Tensor, Tensor]:
    """A loss over z_1st less the mean of z_3rd to z_last; a guard against 0 / 0 scales with z."""
    z = logits.double()
    ranked, order = z.topk(last, 1)
    guard = _GUARD * (z.amax(1) - z.amin(1)).clamp(min=1e-300)
    size = ranked[:, 0] - ranked[:, 2:].mean(1) + guard
    slope = torch.zeros_like(z).scatter_(1, order[:, :1], 1.0)
    slope.scatter_(1, order[:, 2:], -1 / (last - 2))
    return value / size, (weights - (value / size)[:, None] * slope) / size[:, None]
