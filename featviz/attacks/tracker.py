"""`Tracker`: the best picture of each row so far, what it cost, and the margins on the way."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from featviz.attacks import projections
from featviz.attacks.evaluation import Attack, Batch, Evaluation, classify, evaluate
from featviz.attacks.options import AttackOptions, Classifier
from featviz.attacks.result import AttackResult, close_up, described
from featviz.pictures import images


class Tracker:
    """What has become of N pictures; all tensors have a row a picture."""

    def __init__(
        self,
        pictures: Tensor,
        labels: Tensor,
        *,
        options: AttackOptions,
        attempts: int,
        batch_size: int,
    ):
        count, device = len(pictures), pictures.device
        minus_inf = torch.full((count,), -torch.inf, dtype=torch.float64, device=device)
        zeros = torch.zeros(count, dtype=torch.long, device=device)
        self.pictures, self.labels, self.targeted = pictures, labels, options.targeted
        self.options, self.batch_size = options, batch_size
        self.adversarial = pictures.clone()
        """the picture that fools (the first one, or the nearest), else the one nearest to it"""
        self.margin, self.distance = minus_inf.clone(), -minus_inf
        self.success, self.already = zeros.bool(), zeros.bool()
        self.clean, self.predicted, self.first_step = zeros - 1, zeros - 1, zeros - 1
        self.logits_before = self.logits_after = pictures.new_zeros(count, 0)
        self.made, self.steps = zeros.clone(), zeros.clone()
        """steps in all, up to `adversarial`, and (`first_step`) up to the first success"""
        self.forwards, self.backwards, self.zero_gradients = zeros.repeat(3, 1)
        self.reached = minus_inf[:, None].repeat(1, attempts)
        """(N, attempts) the best margin of each attempt"""
        self.traces: list[Tensor] = []
        """(N, passes) of each attempt the margins; nan where there was none"""

    def know_clean(self, clean: Tensor) -> None:
        """Take the classes of the clean pictures from logits (N, classes) or classes (N,)."""
        clean = clean.to(self.labels.device)
        if clean.dim() == 2:
            self._keep_logits(torch.arange(len(clean), device=clean.device), clean, before=True)
        self.clean = clean.argmax(1) if clean.dim() == 2 else clean.clone()
        self._settle(torch.arange(len(self.clean), device=self.clean.device))

    def classify_clean(self, model: Classifier) -> None:
        """Spend a pass on the classes of the clean pictures."""
        self.know_clean(classify(model, self.pictures, batch_size=self.batch_size))
        self.forwards += 1

    def judge_clean(self, rows: Tensor, seen: Evaluation) -> Evaluation:
        """Where the clean pictures were not judged before, this evaluation is that of them."""
        fresh = self.clean[rows] < 0
        if not bool(fresh.any()):
            return seen
        at = rows[fresh]
        self.clean[at] = seen.predicted[fresh]
        self._keep_logits(at, seen.logits[fresh], before=True)
        self._settle(at)
        return replace(seen, hit=torch.where(fresh, self.already[rows], seen.hit))

    def _settle(self, rows: Tensor) -> None:
        """Rows whose clean class is known: some need no attack."""
        already = (self.clean[rows] == self.labels[rows]) == self.targeted
        self.predicted[rows] = self.clean[rows]
        self.already[rows] = self.success[rows] = already
        self.first_step[rows[already]] = 0
        self.distance[rows[already]] = 0.0

    def begin(self, passes: int) -> None:
        """Begin an attempt of so many passes."""
        self.traces.append(self.margin.new_full((len(self.margin), passes), torch.nan))

    def note(
        self, batch: Batch, seen: Evaluation, attack: Attack, step: int, *, counts: bool
    ) -> None:
        """Note an evaluation; `counts`: within the ball and in float32, so that it may succeed."""
        rows = batch.rows
        self.forwards[rows] += 1
        if counts:
            self.traces[-1][rows, step] = seen.margin
            best = self.reached[rows, batch.attempt]
            self.reached[rows, batch.attempt] = torch.maximum(best, seen.margin)
            hit = seen.hit & ~self.already[rows]
            first = hit & ~self.success[rows]
            self.first_step[rows] = torch.where(first, self.made[rows], self.first_step[rows])
            better = first | (~self.success[rows] & ~hit & (seen.margin > self.margin[rows]))
            if not attack.leaves_at_hit:
                size = projections.distance(batch.pictures, seen.pictures, attack.norm)
                better |= hit & (size < self.distance[rows])
                self.distance[rows] = torch.where(hit & better, size, self.distance[rows])
            self._take(rows, better, seen)
            self.success[rows] = self.success[rows] | hit

    def accept(self, rows: Tensor, pictures: Tensor, logits: Tensor) -> None:
        """Take pictures as the best ones of their rows."""
        self.adversarial[rows], self.predicted[rows] = pictures, logits.argmax(1)
        self.steps[rows] = self.made[rows]
        self._keep_logits(rows, logits, before=False)

    def _take(self, rows: Tensor, better: Tensor, seen: Evaluation) -> None:
        """Take what was seen of some rows as the best of them."""
        if rows.device.type == "cpu":
            at = better.nonzero()[:, 0]
            self.accept(rows[at], seen.pictures[at], seen.logits[at])
            self.margin[rows[at]] = seen.margin[at]
            return
        # On a card it is less to write all rows than to wait for which.
        self._keep_logits(rows[:0], seen.logits[:0], before=False)
        for kept, new in (
            (self.adversarial, seen.pictures),
            (self.logits_after, seen.logits),
            (self.predicted, seen.logits.argmax(1)),
            (self.steps, self.made[rows]),
            (self.margin, seen.margin),
        ):
            mask = better.view(-1, *[1] * (kept.dim() - 1))
            kept[rows] = torch.where(mask, new.to(kept.dtype), kept[rows])

    def note_step(self, rows: Tensor, seen: Evaluation) -> None:
        """Count a step of some rows."""
        self.made[rows] += 1
        self.backwards[rows] += seen.gradients
        self.zero_gradients[rows] += seen.zero

    def judge(self, model: Classifier, batch: Batch, seen: Evaluation) -> Evaluation:
        """The same with float32's logits for what seems to fool in bfloat16."""
        at = (seen.hit & ~self.already[batch.rows]).nonzero()[:, 0]
        if not len(at):
            return seen
        exact = evaluate(
            model,
            seen.pictures[at],
            batch[at],
            margin=self.options.margin,
            batch_size=self.batch_size,
        )
        self.forwards[batch.rows[at]] += 1
        changed = {
            field: getattr(seen, field).index_copy(0, at, getattr(exact, field))
            for field in ("logits", "predicted", "margin", "hit")
        }
        return replace(seen, **changed)

    def result(
        self, model: Classifier, *, name: str, norm: str, eps: Tensor | None, started: float
    ) -> AttackResult:
        """Everything as a result; what 8 bits can hold of the successes is judged here."""
        unchanged = self.logits_after.isnan()
        after = torch.where(unchanged, self.logits_before, self.logits_after)
        success_8bit = self._judge_8bit(model)
        distance = projections.distance(self.pictures, self.adversarial, norm)
        trace = torch.cat(self.traces, 1) if self.traces else self.margin[:, None] * torch.nan
        counts = ("steps", "first_step", "forwards", "backwards", "zero_gradients")
        same = ("labels", "success", "already", "clean", "predicted", "logits_before", *counts)
        return AttackResult(
            **described(model, self.options, started),
            **{field: getattr(self, field).cpu() for field in same},
            attacks=(name,),
            by=torch.where(self.success & ~self.already, 0, -1).cpu(),
            norm=norm,
            eps=eps,
            targeted=self.targeted,
            originals=self.pictures,
            adversarial=self.adversarial,
            success_8bit=success_8bit.cpu(),
            logits_after=after.cpu(),
            distance=torch.where(self.success, distance, torch.inf).cpu(),
            l2=projections.l2_distance(self.pictures, self.adversarial).cpu(),
            linf=projections.distance(self.pictures, self.adversarial, "linf").cpu(),
            trace=close_up(trace).cpu(),
            reached=self.reached.cpu(),
        )

    def _judge_8bit(self, model: Classifier) -> Tensor:
        """(N,) bool: which successes are successes in 8 bits, too."""
        rounded = images.quantize(self.adversarial).to(self.adversarial.dtype)
        changed = (rounded != self.adversarial).flatten(1).any(1) & self.success
        kept, rows = self.success.clone(), changed.nonzero()[:, 0]
        if len(rows):
            predicted = classify(model, rounded[rows], batch_size=self.batch_size).argmax(1)
            kept[rows] = (predicted == self.labels[rows]) == self.targeted
            self.forwards[rows] += 1
        return kept

    def _keep_logits(self, rows: Tensor, logits: Tensor, *, before: bool) -> None:
        if self.logits_before.shape[1] != logits.shape[1]:
            shape = len(self.pictures), logits.shape[1]
            self.logits_before = self.pictures.new_full(shape, torch.nan)
            self.logits_after = self.logits_before.clone()
        kept = self.logits_before if before else self.logits_after
        kept[rows] = logits.to(kept.dtype)
