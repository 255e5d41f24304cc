"""`AttackResult`: what an attack made of each picture, as tensors, numbers, tables and figures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from featviz import results
from featviz.attacks import figures, losses, projections
from featviz.attacks.options import AttackOptions, Classifier
from featviz.attacks.projections import NORM_NAMES, eps_text
from featviz.models.model import Model
from featviz.statistics import median, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = 24
"""pictures of which a result folder has figures; an array holds all of them"""
_MERGED = (
    "adversarial",
    "success",
    "success_8bit",
    "predicted",
    "logits_after",
    "distance",
    "l2",
    "linf",
)


@dataclass(frozen=True, kw_only=True, repr=False)
class AttackResult(results.Result):
    """What an attack made of N pictures, in the order given."""

    kind: ClassVar[str] = "attack"

    model_name: str
    class_names: tuple[str, ...]
    """short names; empty where the model has none"""
    names: tuple[str, ...] = ()
    """of the pictures; empty: numbered"""
    attacks: tuple[str, ...]
    """names: pgd, apgd-ce, fmn, ...; more than one if several were made in turn"""
    by: Tensor
    """(N,) which of them succeeded; -1 where none did or none was needed"""
    norm: str
    """the norm in which `distance` is measured"""
    eps: Tensor | None
    """(N,) float64 radii; None where the smallest change was looked for"""
    targeted: bool
    """`labels` were to be reached, not to be left"""
    originals: Tensor
    """(N, 3, H, W)"""
    adversarial: Tensor
    """(N, 3, H, W): the picture that fools; without success the one that came nearest to it"""
    labels: Tensor
    """(N,)"""
    success: Tensor
    """(N,) bool: the model is wrong on `adversarial` (with a target: it predicts the target)"""
    success_8bit: Tensor
    """(N,) bool: the same, judged on the picture rounded to 8 bits"""
    already: Tensor
    """(N,) bool: so without any change; such a picture is returned as it was"""
    clean: Tensor
    """(N,) the class of each picture before"""
    predicted: Tensor
    """(N,) the class of `adversarial`"""
    logits_before: Tensor
    """(N, classes) of the originals, nan where the caller gave classes only"""
    logits_after: Tensor
    """(N, classes) of `adversarial`"""
    distance: Tensor
    """(N,) float64: the change that fools, in `norm`; 0 where none was needed, inf where none was
    found"""
    l2: Tensor
    """(N,) float64: L2 norm of the change, found or tried"""
    linf: Tensor
    """(N,) float64: its largest component"""
    first_step: Tensor
    """(N,) steps up to the first success, over all restarts; -1 without success"""
    steps: Tensor
    """(N,) steps up to `adversarial`; of several attacks in turn, with those of earlier ones"""
    forwards: Tensor
    """(N,) passes spent on the picture, the one that judges 8 bits included"""
    backwards: Tensor
    zero_gradients: Tensor
    """(N,) gradients that were 0 everywhere or not finite"""
    trace: Tensor
    """(N, T) float64: by how many logits the attack was ahead (above 0: it had won) at each step;
    nan behind the last one"""
    reached: Tensor
    """(N, attempts) float64: the best margin of each attempt, -inf where it was not made; (N, 1)
    of several attacks in turn"""
    diagnosis: results.Result | None = None
    """what changes in the network, where it was measured (`robustness.parts.diagnose_attack`)"""

    def moved(self, device: torch.device) -> AttackResult:
        """The same with its pictures on another device."""
        x, adversarial = self.originals.to(device), self.adversarial.to(device)
        return replace(self, originals=x, adversarial=adversarial)

    @property
    def attack(self) -> str:
        """The name of the attack, or of all of them."""
        return " + ".join(self.attacks)

    @property
    def classes(self) -> int:
        """How many classes the model has; 0 where it was never evaluated."""
        return self.logits_after.shape[1]

    @property
    def ball(self) -> str:
        """ "L∞, eps 8/255" """
        if self.eps is None:
            return f"smallest in {NORM_NAMES[self.norm]}"
        low, high = float(self.eps.min()), float(self.eps.max())
        text = eps_text(high, self.norm)
        if low < high:
            text = f"{eps_text(low, self.norm)} to {text}"
        return f"{NORM_NAMES[self.norm]}, eps {text}"

    @property
    def title(self) -> str:
        name = self.attacks[0].upper() if len(self.attacks) == 1 else "Ensemble of attacks"
        targets = set(self.labels.tolist()) if self.targeted else set()
        goal = f" towards {self.class_name(targets.pop())}" if len(targets) == 1 else ""
        return f"{name}{goal} on {self.model_name} ({self.ball})"

    @property
    def parts(self) -> dict[str, results.Result]:
        return {} if self.diagnosis is None else {"diagnosis": self.diagnosis}

    def class_name(self, index: int) -> str:
        """The name of a class, or its number."""
        return self.class_names[index] if self.class_names else f"class {index}"

    def name(self, i: int) -> str:
        """The name of a picture."""
        return self.names[i] if self.names else f"picture {i + 1}"

    def __len__(self) -> int:
        return len(self.success)

    def cpu(self) -> AttackResult:
        """The same with every tensor on the CPU."""
        return self._each(Tensor.cpu)

    def __getitem__(self, rows: Tensor | slice) -> AttackResult:
        """The same for some of the pictures."""
        order = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows]
        names = tuple(self.name(i) for i in order.tolist())
        return replace(self._each(lambda tensor: tensor[order.to(tensor.device)]), names=names)

    def _each(self, change: Callable[[Tensor], Tensor]) -> AttackResult:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {k: change(v) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **changed)

    def numbers(self) -> dict[str, results.Number]:
        tried = ~self.already
        hit, n = self.success & tried, int(tried.sum())
        goal = "the target" if self.targeted else "a wrong class"
        there = f"{int(self.already.sum())} of {len(self)} were there already"
        saved = share(int((self.success_8bit & tried).sum()), n)
        numbers = {
            "fooled": share(int(hit.sum()), n).number(f"pictures brought to {goal}; {there}"),
            "fooled as saved": saved.number("the same in 8 bits"),
        }
        if hit.any():
            of = "median of the fooled pictures"
            if self.norm in {"l0", "l1"}:
                words = "components (a pixel has three)" if self.norm == "l0" else "sum of changes"
                name = f"{NORM_NAMES[self.norm]} distance"
                numbers[name] = median(self.distance[hit]).number("", f"{words}, {of}")
            numbers |= {
                "L∞ distance": median(255 * self.linf[hit]).number("/255", of),
                "L2 distance": median(self.l2[hit]).number("", of),
                "steps": median(self.steps[hit].double()).number("", f"gradient steps, {of}"),
            }
        for name, passes in (("forward", self.forwards), ("backward", self.backwards)):
            total = int(passes.sum())
            numbers[f"{name} passes"] = results.Number(total, "", "of single pictures")
        for name, part in self.parts.items():
            numbers |= {f"{name}: {key}": number for key, number in part.numbers().items()}
        return numbers

    def perturbation(self, i: int) -> tuple[Tensor, float]:
        """The change of picture i around mid-gray, (3, H, W), and the factor that shows it."""
        return figures.shown_perturbation(self.adversarial[i] - self.originals[i])

    def plot(self) -> Figure:
        """A row a picture: original, change, adversarial picture, probabilities."""
        return self._rows(range(min(len(self), DRAWN)))

    def plot_one(self, i: int) -> Figure:
        """The row of one picture."""
        return self._rows([i])

    def _rows(self, rows: Sequence[int]) -> Figure:
        drawn = []
        for i in rows:
            size = f"largest {255 * float(self.linf[i]):.3g}/255, L2 {float(self.l2[i]):.2g}"
            logits = self.logits_before[i].double(), self.logits_after[i].double()
            drawn.append(
                figures.Row(
                    self.originals[i].cpu(),
                    self.adversarial[i].cpu(),
                    (self.top_class(logits[0]), self.top_class(logits[1])),
                    f"{size}\n{self.limit(i)}",
                    (logits[0].softmax(0), logits[1].softmax(0)),
                )
            )
        return figures.attack_rows(drawn, [self.class_name(c) for c in range(self.classes)])

    def write(self, folder: results.Folder) -> None:
        for i in range(min(len(self), DRAWN)):
            what, factor = self.outcome(i), self.perturbation(i)[1]
            folder.figure(
                f"attack-{i + 1:02d}.svg",
                self.plot_one(i),
                caption=f"{self.name(i)}: {what} Middle: the change times {factor:,.0f} around "
                "mid-gray. Right: probabilities before and after.",
                alt=f"Original, perturbation and adversarial picture of {self.name(i)}; {what}",
            )
        for i in range(min(len(self), DRAWN)):
            for which, pictures, logits, how in (
                ("original", self.originals, self.logits_before, "as the model sees it"),
                ("adversarial", self.adversarial, self.logits_after, "saved without loss"),
            ):
                folder.figure(
                    f"pictures/{i + 1:02d}-{which}.png",
                    pictures[i],
                    caption=f"{self.name(i)}, {which}, {how}: {self.top_class(logits[i])}.",
                    alt=f"{self.name(i)}, {which}",
                )
        if len(self) > DRAWN:
            folder.arrays(
                "adversarial.npz",
                {"adversarial": self.adversarial.cpu().numpy()},
                caption="All adversarial pictures, (N, 3, H, W) float32 in [0, 1].",
            )

    def tables(self) -> Iterator[results.Table]:
        yield from self._outcomes_table()
        yield from self._certificates_table()

    def _outcomes_table(self) -> Iterator[results.Table]:
        classes = self.labels, self.clean, self.predicted
        columns = ("success", "success_8bit", "already", "linf", "l2", "steps", "forwards")
        yield results.Table(
            "attack.csv",
            ("picture", "label", "before", "after", *columns, "backwards"),
            (
                (
                    self.name(i),
                    *(self.class_name(int(each[i])) for each in classes),
                    *(_plain(getattr(self, name)[i]) for name in (*columns, "backwards")),
                )
                for i in range(len(self))
            ),
            caption="One row a picture; linf and l2 are the size of the change in [0, 1] units.",
        )

    def _certificates_table(self) -> Iterator[results.Table]:
        """What anyone needs to check each claim on the saved picture."""
        rows = []
        for i in range(len(self)):
            clean, moved = self.originals[i : i + 1], self.adversarial[i : i + 1].cpu()
            sizes = [float(projections.distance(clean.cpu(), moved, norm)) for norm in NORM_NAMES]
            one = slice(i, i + 1)
            ahead, _ = losses.margin(
                self.logits_after[one].cpu(), self.labels[one].cpu(), targeted=self.targeted
            )
            rows.append(
                (
                    self.name(i),
                    self.class_name(int(self.labels[i])),
                    self.class_name(int(self.predicted[i])),
                    int(self.success_8bit[i]),
                    float(ahead),
                    *sizes,
                    float(moved.min()),
                    float(moved.max()),
                    "float32",
                    hashlib.sha256(moved[0].contiguous().numpy().tobytes()).hexdigest(),
                )
            )
        yield results.Table(
            "certificates.csv",
            (
                "picture",
                "label",
                "becomes",
                "fools_as_saved",
                "ahead",
                *NORM_NAMES,
                "lowest",
                "highest",
                "judge",
                "sha256",
            ),
            rows,
            caption="Each adversarial picture as it is saved: its label, the model's prediction "
            "and by how many logits it leads, the size of the change in every norm (float64, "
            "[0, 1] units), its lowest and highest value, the precision in which it was judged, "
            "and the hash of its values.",
        )

    def top_class(self, logits: Tensor) -> str:
        """ "goldfish (98%)" """
        probabilities = logits.double().softmax(0)
        best = int(probabilities.argmax())
        return f"{self.class_name(best)} ({100 * float(probabilities[best]):.0f}%)"

    def outcome(self, i: int) -> str:
        """What became of a picture, as a sentence."""
        before, after = self.top_class(self.logits_before[i]), self.top_class(self.logits_after[i])
        if self.already[i]:
            return f"{before} already, nothing was changed."
        size = (
            f"no pixel changed by more than {255 * float(self.linf[i]):.3g}/255, "
            f"L2 {float(self.l2[i]):.2g}"
        )
        if self.success[i]:
            return f"{before} becomes {after}; {size}."
        return f"{before} is not fooled, the nearest try gives {after}; {size}."

    def limit(self, i: int) -> str:
        """What was allowed for a picture, or the smallest change found."""
        if self.eps is not None:
            return f"allowed: {NORM_NAMES[self.norm]} {eps_text(float(self.eps[i]), self.norm)}"
        distance = float(self.distance[i])
        size = f"{distance:.3g}"
        if not math.isfinite(distance):
            size = "none"
        elif self.norm == "linf":
            size = f"{255 * distance:.3g}/255"
        elif self.norm == "l0":
            size = f"{distance:.0f} component{'' if distance == 1 else 's'}"
        return f"smallest found in {NORM_NAMES[self.norm]}: {size}"


def _plain(value: Tensor) -> int | float:
    return float(value) if value.is_floating_point() else int(value)


def described(model: Classifier, options: AttackOptions, started: float) -> dict[str, Any]:
    """The fields of a result that say where it comes from."""
    known = model if isinstance(model, Model) else None
    given = {f.name: getattr(options, f.name) for f in fields(options)}
    parameters = {k: v for k, v in given.items() if k not in {"clean", "progress", "seed"}}
    return {
        "origin": results.origin(known, parameters=parameters, started=started, seed=options.seed),
        "model_name": known.name if known is not None else type(model).__name__,
        "class_names": known.class_names if known is not None else (),
    }


def choose_rows(first: AttackResult, then: AttackResult, rows: Tensor) -> AttackResult:
    """The first result, with what the second has found in the rows of a mask (N,)."""
    changed: dict[str, Any] = {}
    for name in _MERGED:
        old, new = getattr(first, name), getattr(then, name)
        mask = rows.to(old.device).view(-1, *[1] * (old.dim() - 1))
        changed[name] = torch.where(mask, new, old)
    return replace(first, **changed)


def together(first: AttackResult, rows: Tensor, then: AttackResult, name: str) -> AttackResult:
    """One result of two attacks in turn: `then`, called `name`, on the pictures `rows` (k,).

    The name is one of those that `first` lists: all that are planned, made or not. A later success
    takes the place of a failure, and so does a later failure that came nearer.
    """
    better = then.success | (_best_margin(then) > _best_margin(first[rows]))
    taken = rows[better]
    changed: dict[str, Any] = {}
    for field in _MERGED:
        value = getattr(first, field).clone()
        value[taken.to(value.device)] = getattr(then, field)[better.to(value.device)]
        changed[field] = value
    before = (~first.trace.isnan()).sum(1) - 1  # steps, near enough: passes but the first
    for field in ("steps", "first_step"):
        value, own = getattr(first, field).clone(), getattr(then, field)
        later = torch.where(own >= 0, own + before[rows].clamp(min=0), own)
        value[taken] = later[better]
        changed[field] = value
    for field in ("forwards", "backwards", "zero_gradients"):
        changed[field] = getattr(first, field).index_add(0, rows, getattr(then, field))
    by = first.by.clone()
    by[rows] = torch.where(then.by >= 0, first.attacks.index(name), by[rows])
    added = first.trace.new_full((len(first), then.trace.shape[1]), torch.nan)
    added[rows] = then.trace
    trace = close_up(torch.cat([first.trace, added], 1))
    reached = first.reached.clone()
    reached[rows] = torch.maximum(reached[rows], then.reached.amax(1, keepdim=True))
    return replace(first, by=by, trace=trace, reached=reached, **changed)


def within_ball(found: AttackResult) -> AttackResult:
    """The same without successes outside the ball, and without the margins on the way there."""
    assert found.eps is not None
    hit = found.success & (found.distance <= found.eps)
    ahead, _ = losses.margin(found.logits_after, found.labels, targeted=found.targeted)
    last = torch.where(hit, ahead, torch.nan)[:, None]
    return replace(
        found,
        success=hit,
        by=torch.where(hit, found.by, -1),
        first_step=torch.where(hit, found.steps, -1),
        trace=last,
        reached=last.nan_to_num(-torch.inf),
    )


def best_copies(found: AttackResult, copies: int) -> AttackResult:
    """A row a picture, of `copies` rows: the one that fooled or came nearest, at all their cost."""
    margin = torch.where(found.success, torch.inf, _best_margin(found))
    nearest = margin.view(-1, copies).argmax(1)
    kept = found[nearest + copies * torch.arange(len(nearest))]
    spent = {
        field: getattr(found, field).view(-1, copies).sum(1)
        for field in ("forwards", "backwards", "zero_gradients")
    }
    return replace(kept, reached=found.reached.view(-1, copies), **spent)


def close_up(trace: Tensor) -> Tensor:
    """Margins (N, T) of all steps with the nan moved behind, no wider than the longest."""
    order = trace.isnan().long().argsort(dim=1, stable=True)
    width = max(1, int((~trace.isnan()).sum(1).max()))
    return trace.gather(1, order)[:, :width]


def _best_margin(found: AttackResult) -> Tensor:
    """(N,) how near the attack came: the best margin on the way."""
    return found.trace.nan_to_num(-torch.inf).amax(1)
