"""A TopK sparse dictionary: an autoencoder whose codes are 0 but for the k largest of each row.

    codes = top_k((x - mean) @ weight^T),   x ~ codes @ directions + mean

trained by Adam on the squared error in batches of shuffled rows. Directions have length 1 after
every step, and the part of their gradient along them is taken away. Ten times in a run, until four
fifths of it, codes that no row has used since the last time are revived by resampling (Bricken et
al. 2023): a row is drawn with a probability in proportion to its squared error, and the code gets
the row's residual as its direction, in encoder and decoder, and Adam's memory of it is cleared.

    Gao et al., "Scaling and evaluating sparse autoencoders", 2024
    Bricken et al., "Towards Monosemanticity", 2023, "neuron resampling"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featviz.checkpoints import Arrays, Checkpoint
from featviz.concepts.dictionary import Dictionary, keep_largest
from featviz.concepts.moments import Moments
from featviz.concepts.sample import Sample

_LR, _BATCH, _STAGES = 1e-3, 1024, 10
_LAST_REVIVAL = 0.8
_COOLING = 0.2
"""share of the steps, at the end, in which the learning rate falls to 0"""
_NAMES = ("weight", "directions", "shift")


@dataclass(frozen=True)
class Training:
    """Of a TopK dictionary."""

    count: int
    active: int
    steps: int
    seed: int
    device: torch.device


def train_topk(
    sample: Sample,
    moments: Moments,
    how: Training,
    kept: Checkpoint,
    progress: Callable[[int, int], None] | None = None,
) -> Dictionary:
    """The trained dictionary; a tenth of the steps at a time is kept, and a later run goes on."""
    mean = moments.mean.float()
    energy = float(moments.covariance.diagonal().sum())
    state = _State.start(sample, mean, max(energy / sample.channels, 1e-30) ** 0.5, how)
    found = kept.read("state")
    if found is not None:
        state.restore(found)
    stage = max(1, -(-how.steps // _STAGES))
    while state.step < how.steps:
        stop = min(state.step + stage, how.steps)
        while state.step < stop:
            state.learn(state.batch(sample))
            if progress:
                progress(state.step, how.steps)
        if state.step <= _LAST_REVIVAL * how.steps:
            state.revive(state.batch(sample))
        kept.write("state", state.arrays(), size=0)
    return state.dictionary()


class _State:
    """The network, Adam's moments, and which codes were used since the last revival."""

    def __init__(self, mean: Tensor, scale: float, directions: Tensor, how: Training):
        self.how, self.mean, self.scale, self.step = how, mean.to(how.device), scale, 0
        start = directions.to(how.device)
        self.weight, self.directions = (start.clone().requires_grad_() for _ in range(2))
        self.shift = torch.zeros_like(self.mean).requires_grad_()
        values = [getattr(self, name) for name in _NAMES]
        self.adam = torch.optim.Adam(values, lr=_LR, foreach=True)
        self.used = torch.zeros(how.count, dtype=torch.bool, device=how.device)
        self._order: tuple[int, Tensor] | None = None

    @classmethod
    def start(cls, sample: Sample, mean: Tensor, scale: float, how: Training) -> _State:
        """Directions of random rows, each with a little noise, since there may be few rows."""
        generator = torch.Generator().manual_seed(how.seed)
        drawn = torch.randint(len(sample), (how.count,), generator=generator)
        rows = (sample.take(drawn) - mean) / scale
        rows += 0.1 * torch.randn(rows.shape, generator=generator)
        return cls(mean, scale, F.normalize(rows), how)

    def batch(self, sample: Sample) -> Tensor:
        """The rows of the next step, scaled; every epoch has an order of its own."""
        size = min(_BATCH, len(sample))
        epoch, place = divmod(self.step, len(sample) // size)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed((self.how.seed * 1_000_003 + epoch) % 2**63)
            self._order = epoch, torch.randperm(len(sample), generator=generator)
        rows = sample.take(self._order[1][place * size : (place + 1) * size])
        return (rows.to(self.how.device) - self.mean) / self.scale

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and residual."""
        codes = keep_largest((rows - self.shift) @ self.weight.T, self.how.active)
        return codes, torch.addmm(self.shift, codes, self.directions) - rows

    def learn(self, rows: Tensor) -> None:
        """One step of Adam; directions stay on the sphere."""
        cooling = (1 - self.step / self.how.steps) / _COOLING
        self.adam.param_groups[0]["lr"] = _LR * min(1.0, cooling)
        codes, residual = self.forward(rows)
        residual.square().mean().backward()
        with torch.no_grad():
            gradient, directions = self.directions.grad, self.directions
            assert gradient is not None
            gradient -= directions * (gradient * directions).sum(1, keepdim=True)
            self.adam.step()
            self.adam.zero_grad()
            directions /= directions.norm(dim=1, keepdim=True)
            self.used |= (codes != 0).any(0)
        self.step += 1

    @torch.no_grad()
    def revive(self, rows: Tensor) -> None:
        """Point unused codes at what is explained worst."""
        dead = (~self.used).nonzero().flatten()
        self.used.zero_()
        if not len(dead):
            return
        _, residual = self.forward(rows)
        errors = residual.square().sum(1).double().cpu()
        if not float(errors.sum()):
            return
        generator = torch.Generator().manual_seed((self.how.seed + self.step) % 2**63)
        drawn = torch.multinomial(errors, len(dead), replacement=True, generator=generator)
        new = F.normalize(-residual[drawn.to(residual.device)])
        length = self.weight.norm(dim=1).mean()
        self.directions[dead], self.weight[dead] = new, new * length
        for values in (self.directions, self.weight):
            for name in ("exp_avg", "exp_avg_sq"):
                self.adam.state[values][name][dead] = 0

    def arrays(self) -> Arrays:
        """Everything that the next steps depend on."""
        found: Arrays = {"step": np.array(self.step)}
        for name in _NAMES:
            values = getattr(self, name)
            moments = self.adam.state[values]
            kept = {"": values, ".mean": moments["exp_avg"], ".square": moments["exp_avg_sq"]}
            found |= {name + part: v.detach().cpu().numpy().copy() for part, v in kept.items()}
        return found

    def restore(self, found: Arrays) -> None:
        """The state that `arrays` gave, at the end of a stage."""
        self.step = int(found["step"])
        with torch.no_grad():
            for name in _NAMES:
                values = getattr(self, name)
                values.copy_(torch.from_numpy(found[name]))
                self.adam.state[values] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": torch.from_numpy(found[f"{name}.mean"]).to(values.device),
                    "exp_avg_sq": torch.from_numpy(found[f"{name}.square"]).to(values.device),
                }

    def dictionary(self) -> Dictionary:
        """In the unit of the rows."""
        weight, directions, shift = (getattr(self, n).detach().cpu() for n in _NAMES)
        mean = self.mean.cpu() + self.scale * shift
        return Dictionary("topk", directions, mean, {"weight": weight}, self.how.active)
