"""`attack`: a few pictures, what was added to them and what the model says, with a figure."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from featviz import images, plotting, results
from featviz.attacks import projections
from featviz.attacks.apgd import apgd
from featviz.attacks.checks import check_batch_size, check_eps, check_norm
from featviz.attacks.ensemble import ensemble
from featviz.attacks.figures import draw_bars, shown_perturbation
from featviz.attacks.loop import classify
from featviz.attacks.minimal import NORMS, minimal
from featviz.attacks.options import AttackOptions
from featviz.attacks.pgd import bim, fgsm, mi_fgsm, pgd
from featviz.attacks.projections import NORM_NAMES, eps_text
from featviz.attacks.result import AttackResult
from featviz.attacks.square import square
from featviz.errors import UserError, nearest
from featviz.images import check_pictures
from featviz.models.frozen import frozen
from featviz.types import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.models.model import Model

STEPS = {
    "pgd": 40,
    "fgsm": 1,
    "bim": 10,
    "mi-fgsm": 10,
    "apgd": 100,
    "ensemble": 100,
    "square": 1000,
    "minimal": 100,
}
"""The methods of `attack`, with their steps unless told otherwise (`square`: queries,
`minimal`: passes)."""
METHODS = tuple(STEPS)
DEFAULT_EPS = 8 / 255


@dataclass(frozen=True, kw_only=True, repr=False)
class Attacked(results.Result):
    """A few pictures, what was added to them, and what the model says before and after."""

    kind: ClassVar[str] = "attack"

    model_name: str
    classes: tuple[str, ...]
    """short names, for the figures"""
    names: tuple[str, ...]
    originals: Tensor
    """(N, 3, H, W)"""
    found: AttackResult
    labels: Tensor
    """(N,) the class each picture was to leave"""
    target: int | None
    method: str
    norm: str
    eps: float | None
    """None where the smallest change was looked for"""
    logits: Tensor
    """(N, classes) of the adversarial pictures"""
    before: Tensor
    """(N, classes) probabilities of the originals"""
    after: Tensor
    """(N, classes) probabilities of the adversarial pictures"""
    diagnosis: results.Result | None = None
    """what changes in the network, where it was measured (`robustness.parts.diagnose_attack`)"""

    @property
    def parts(self) -> dict[str, results.Result]:
        return {} if self.diagnosis is None else {"diagnosis": self.diagnosis}

    @property
    def title(self) -> str:
        if self.eps is None:
            goal = "" if self.target is None else f" towards {self.classes[self.target]}"
            return f"Smallest change{goal} in {NORM_NAMES[self.norm]} on {self.model_name}"
        ball = f"{NORM_NAMES[self.norm]}, eps {eps_text(self.eps, self.norm)}"
        if self.target is None:
            return f"{self.method.upper()} on {self.model_name} ({ball})"
        goal = self.classes[self.target]
        return f"{self.method.upper()} towards {goal} on {self.model_name} ({ball})"

    def numbers(self) -> dict[str, results.Number]:
        found, n = self.found, len(self.names)
        tried = ~found.already
        hit = found.success & tried
        goal = "a wrong answer" if self.target is None else "the target"
        first = {
            "fooled": results.Number(
                int(hit.sum()),
                f"of {int(tried.sum())}",
                f"pictures brought to {goal}; {int(found.already.sum())} of {n} were there already",
            ),
            "fooled as saved": results.Number(
                int((found.success_8bit & tried).sum()),
                f"of {int(tried.sum())}",
                "the same after rounding to 8 bits",
            ),
        }
        if hit.any():
            if self.norm in {"l0", "l1"}:
                words = "components (a pixel has three)" if self.norm == "l0" else "sum of changes"
                first[f"{NORM_NAMES[self.norm]} distance"] = results.Number(
                    float(found.distance[hit].median()), "", f"{words}, median of the fooled"
                )
            first |= {
                "L∞ distance": results.Number(
                    float(found.linf[hit].median()) * 255, "/255", "median of the fooled pictures"
                ),
                "L2 distance": results.Number(
                    float(found.l2[hit].median()), "", "median of the fooled pictures"
                ),
                "steps": results.Number(
                    float(found.steps[hit].double().median()), "", "gradient steps, median"
                ),
            }
        return (
            first
            | {
                "forward passes": results.Number(
                    int(found.forwards.sum()), "", "of single pictures"
                ),
                "backward passes": results.Number(
                    int(found.backwards.sum()), "", "of single pictures"
                ),
            }
            | {
                f"{name}: {key}": number
                for name, part in self.parts.items()
                for key, number in part.numbers().items()
            }
        )

    def perturbation(self, i: int) -> tuple[Tensor, float]:
        """The change of picture i shown round mid-grey, (3, H, W), and the factor that shows it."""
        change = self.found.adversarial[i] - self.originals[i]
        return shown_perturbation(change)

    def write(self, folder: results.Folder) -> None:
        for i, name in enumerate(self.names):
            number = f"{i + 1:02d}"
            what = self._change_in_words(i)
            factor = self.perturbation(i)[1]
            folder.figure(
                f"attack-{number}.png",
                self.plot_one(i),
                caption=f"{name}: {what} Middle: the change times {factor:,.0f} round mid-grey. "
                "Right: probabilities before and after.",
                alt=f"Original, perturbation and adversarial picture of {name}; {what}",
            )
        for i, name in enumerate(self.names):
            number = f"{i + 1:02d}"
            folder.figure(
                f"pictures/{number}-original.png",
                self.originals[i],
                caption=f"{name} as the model sees it: {self._answer(self.before[i])}.",
                alt=f"{name}, original",
            )
            folder.figure(
                f"pictures/{number}-adversarial.png",
                self.found.adversarial[i],
                caption=f"{name}, adversarial, saved without loss: {self._answer(self.after[i])}.",
                alt=f"{name}, adversarial",
            )
        found = self.found
        folder.table(
            "attack.csv",
            (
                "picture",
                "label",
                "before",
                "after",
                "success",
                "success_8bit",
                "already",
                "linf",
                "l2",
                "steps",
                "forwards",
                "backwards",
            ),
            (
                (
                    self.names[i],
                    self.classes[int(self.labels[i])],
                    self.classes[int(found.clean[i])],
                    self.classes[int(found.predicted[i])],
                    int(found.success[i]),
                    int(found.success_8bit[i]),
                    int(found.already[i]),
                    float(found.linf[i]),
                    float(found.l2[i]),
                    int(found.steps[i]),
                    int(found.forwards[i]),
                    int(found.backwards[i]),
                )
                for i in range(len(self.names))
            ),
            caption="One row a picture; linf and l2 are the size of the change in [0, 1] units.",
        )
        self._write_certificates(folder)

    def _write_certificates(self, folder: results.Folder) -> None:
        """What anyone needs to hold each claim against the saved picture."""
        found = self.found
        rows = []
        for i, name in enumerate(self.names):
            clean, moved = self.originals[i : i + 1], found.adversarial[i : i + 1]
            sizes = [float(projections.distance(clean, moved, norm)) for norm in NORM_NAMES]
            z = self.logits[i].double()
            own = int(self.labels[i] if self.target is None else self.target)
            others = z.clone().index_fill(0, torch.tensor([own]), -math.inf).max()
            ahead = float(others - z[own]) * (1 if self.target is None else -1)
            rows.append(
                (
                    name,
                    self.classes[int(self.labels[i])],
                    self.classes[int(found.predicted[i])],
                    int(found.success_8bit[i]),
                    ahead,
                    *sizes,
                    float(moved.min()),
                    float(moved.max()),
                    "float32",
                    hashlib.sha256(moved[0].contiguous().numpy().tobytes()).hexdigest(),
                )
            )
        folder.table(
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
            caption="Each adversarial picture as it is saved: its label, the model's answer and "
            "by how many logits it leads, the size of the change in every norm (float64, [0, 1] "
            "units), its lowest and highest value, the judge's precision, and the hash of its "
            "values.",
        )

    def _answer(self, probabilities: Tensor) -> str:
        best = int(probabilities.argmax())
        return f"{self.classes[best]} ({100 * float(probabilities[best]):.0f}%)"

    def _change_in_words(self, i: int) -> str:
        before, after = self._answer(self.before[i]), self._answer(self.after[i])
        found = self.found
        if found.already[i]:
            return f"{before} already, nothing was changed."
        size = (
            f"no pixel changed by more than {255 * float(found.linf[i]):.3g}/255, "
            f"L2 {float(found.l2[i]):.2g}"
        )
        if found.success[i]:
            return f"{before} becomes {after}; {size}."
        return f"{before} is not fooled, the nearest try gives {after}; {size}."

    def _allowed(self, i: int) -> str:
        if self.eps is not None:
            return f"allowed: {NORM_NAMES[self.norm]} {eps_text(self.eps, self.norm)}"
        size = _size_in_words(float(self.found.distance[i]), self.norm)
        return f"smallest found in {NORM_NAMES[self.norm]}: {size}"

    def plot(self) -> Figure:
        figure = plotting.new_figure(9.6, 2.55 * len(self.names))
        parts: Any = figure.subfigures(len(self.names), 1, squeeze=False)
        for i in range(len(self.names)):
            self._draw(parts[i, 0], i)
        return figure

    def plot_one(self, i: int) -> Figure:
        """One picture's row: original, perturbation, adversarial, probabilities."""
        figure = plotting.new_figure(9.6, 2.75)
        self._draw(figure, i)
        return figure

    def _draw(self, figure: Any, i: int) -> None:
        axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.25))
        change, factor = self.perturbation(i)
        pixelated = self.originals.shape[-1] <= 128
        plotting.show_image(
            axes[0], self.originals[i], self._answer(self.before[i]), pixelated=pixelated
        )
        middle = f"change × {factor:,.0f}" if factor else "no change"
        plotting.show_image(axes[1], change, middle, pixelated=pixelated)
        plotting.show_image(
            axes[2], self.found.adversarial[i], self._answer(self.after[i]), pixelated=pixelated
        )
        for k, text in enumerate("+="):
            axes[k].text(
                1.06,
                0.5,
                text,
                transform=axes[k].transAxes,
                fontsize=13,
                ha="center",
                va="center",
                color=plotting.INK,
            )
        measured = (
            f"largest {255 * float(self.found.linf[i]):.3g}/255, L2 {float(self.found.l2[i]):.2g}"
            f"\n{self._allowed(i)}"
        )
        axes[1].set_xlabel(measured, fontsize=7, color=plotting.INK, labelpad=3)
        draw_bars(axes[3], self.before[i], self.after[i], self.classes)


def _size_in_words(distance: float, norm: str) -> str:
    if not math.isfinite(distance):
        return "none"
    if norm == "linf":
        return f"{255 * distance:.3g}/255"
    if norm == "l0":
        return f"{distance:.0f} component{'' if distance == 1 else 's'}"
    return f"{distance:.3g}"


def attack(
    model: Model,
    pictures: Tensor,
    labels: Sequence[int | str] | Tensor | None = None,
    *,
    norm: str = "linf",
    eps: float | None = None,
    method: str = "pgd",
    target: int | str | None = None,
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int = 1,
    seed: int = 0,
    names: Sequence[str] | None = None,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> Attacked:
    """A few pictures changed so little that one hardly sees it, and so that the model errs.

    pictures: (N, 3, H, W) or (3, H, W) in [0, 1]; they are rounded to 8 bits, as a file has them
    labels: the classes to leave (indices or names); default: what the model says of the pictures
    norm, eps: the change stays within this distance: "linf" (8/255: no value by more than 8 of
        255 levels, the default), "l2", or "l1" (the sum of all changes)
    method: "pgd", "fgsm" (one step), "bim" (PGD in ten steps of eps / 5), "mi-fgsm" (with
        momentum), "apgd" (step sizes of its own), "ensemble" (all that featviz has, in turn),
        "square" (asks for no gradient; not in L1) or "minimal" (the smallest change that does it:
        it takes no eps, and knows "l0", the number of values changed, too)
    target: a class to be reached, instead of any other than the label; not for "ensemble"
    steps: gradient steps, or queries of "square"; default: 40 of pgd, 10 of bim and mi-fgsm, 100 of
        apgd and ensemble, 1000 queries, 100 passes of minimal
    step_size, restarts: of pgd and bim, and of pgd and apgd; seed, slots: as for `pgd`
    names: what the pictures are called in figures and tables

    The first walk of pgd and apgd begins at the picture itself and ends at the first success, so
    that the change is often smaller than allowed. It is found on 8-bit pictures with a logit at
    least 0.01 ahead: saved as PNG and loaded again, it is adversarial still.

    Raises UserError for arguments out of range.

        result = featviz.attack(model, featviz.read_square("cat.jpg", 256, 224), target="goldfish")
        result.save("run/cat")
    """
    started = time.perf_counter()
    if method not in METHODS:
        raise UserError(
            f"unknown method {method!r}{nearest(method, METHODS)}; "
            f"take {', '.join(METHODS[:-1])} or {METHODS[-1]}"
        )
    if method == "ensemble" and target is not None:
        raise UserError("the ensemble goes to any near class; for a target take pgd or apgd")
    if method == "minimal" and eps is not None:
        raise UserError(
            "method minimal looks for the smallest change and takes no eps; leave it out, or take "
            "another method, which stays within eps"
        )
    eps = DEFAULT_EPS if eps is None and method != "minimal" else eps
    steps = STEPS[method] if steps is None or method == "fgsm" else steps
    batch = pictures[None] if pictures.dim() == 3 else pictures
    batch = images.quantize(check_pictures(batch)).to(model.device)
    count = len(batch)
    names = tuple(names) if names is not None else tuple(f"picture {i + 1}" for i in range(count))
    if eps is None:
        check_norm(norm, NORMS)
    else:
        check_eps(eps, norm, count)
    batch_size = check_batch_size(batch_size, batch.device)
    goal = None if target is None else model.class_index(target)
    with frozen(model):
        before = classify(model, batch, batch_size=batch_size)
    own = before.argmax(1).cpu() if labels is None else class_indices(model, labels, count)
    aim = own if goal is None else torch.full((count,), goal)
    options = AttackOptions(
        targeted=goal is not None,
        restarts=restarts if method in {"pgd", "apgd"} else 1,
        eight_bit=True,
        margin=0.01,
        clean=before,
        seed=seed,
        batch_size=batch_size,
        precision="auto" if method == "ensemble" else "float32",
        progress=progress,
    )
    settings: dict[str, Any] = {"norm": norm, "options": options}
    if eps is not None:
        settings["eps"] = eps
    if method == "fgsm":
        found = fgsm(model, batch, aim, **settings)
    elif method == "bim":
        found = bim(model, batch, aim, steps=steps, step_size=step_size or 0.2, **settings)
    elif method == "mi-fgsm":
        found = mi_fgsm(model, batch, aim, steps=steps, step_size=step_size, **settings)
    elif method == "pgd":
        found = pgd(
            model,
            batch,
            aim,
            steps=steps,
            step_size=step_size,
            random_start=False,
            **settings,
        )
    elif method == "apgd":
        found = apgd(
            model,
            batch,
            aim,
            steps=steps,
            starts=batch,
            **settings,
        )
    elif method == "square":
        found = square(model, batch, aim, queries=steps, **settings)
    elif method == "minimal":
        found = minimal(model, batch, aim, steps=steps, **settings)
    else:
        found = ensemble(model, batch, aim, steps=steps, **settings)
    with frozen(model):
        after = classify(model, found.adversarial, batch_size=batch_size)
    warnings = []
    blind = int(((found.zero_gradients > 0) & ~found.success).sum())
    if blind:
        warnings.append(
            f"the gradient was 0 everywhere at some step of {blind} pictures: the model hides its "
            "gradient there, and the attack says little about its robustness"
        )
    if norm == "linf" and eps is not None and 0 < eps < 1 / 255:
        warnings.append(
            f"eps {eps_text(eps, norm)} is less than one level of an 8-bit picture, so nothing "
            "can change; the audit works on unrounded pictures"
        )
    missed = int((~found.success).sum())
    if missed:
        more = "more --steps or a larger --eps may do it"
        if method == "minimal":
            more = "more --steps may do it"
        elif method in {"fgsm", "bim", "mi-fgsm", "square"}:
            more = "apgd, ensemble or a larger --eps may do it"
        warnings.append(f"{missed} of {count} pictures were not brought there; {more}")
    return Attacked(
        origin=results.origin(
            model,
            parameters={
                "pictures": list(names),
                "labels": own.tolist(),
                "norm": norm,
                "eps": eps,
                "method": method,
                "target": goal,
                "steps": steps,
                "step_size": step_size,
                "restarts": restarts,
                "batch_size": batch_size,
            },
            started=started,
            seed=seed,
        ),
        warnings=tuple(warnings),
        model_name=model.name,
        classes=tuple(model.class_name(c) for c in range(len(model.classes))),
        names=names,
        originals=batch.cpu(),
        found=found.cpu(),
        labels=own,
        target=goal,
        method=method,
        norm=norm,
        eps=eps,
        logits=after.cpu(),
        before=before.softmax(1).cpu(),
        after=after.softmax(1).cpu(),
    )


def class_indices(model: Model, labels: Sequence[int | str] | Tensor, count: int) -> Tensor:
    """(N,) class indices from indices or names. Raises UserError."""
    given = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    if len(given) != count:
        raise UserError(f"{len(given)} labels for {count} pictures; give one a picture")
    return torch.tensor([model.class_index(label) for label in given])
