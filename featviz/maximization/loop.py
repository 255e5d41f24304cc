"""The one loop: `ascend` climbs an objective for many pictures at once, each on its own.

Comes in: a model, an objective, which of its targets, a seed for each, and `Settings`. Goes out: a
`Climb`, the pictures with the history of their scores. `climbing` is the same step by step.

The gradient with respect to the picture is not followed raw, but

    evened      divided by its own strength in the neighbourhood, so that the surroundings of an
                object are drawn as eagerly as its middle, which otherwise burns out in flat grey
    restrained  by what no photograph has: fine ripples, and contrast without bound

As the evened gradient has strength 1 at every layer of every model, the restraints mean the same
everywhere. A picture that is finished leaves its slot to the next. `ascend_all` finds out how many
slots there may be so that no picture depends on its company, and makes do with the memory there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from featviz import images
from featviz.errors import UserError
from featviz.maximization.colours import pieces
from featviz.maximization.objectives import PICTURE, Objective
from featviz.maximization.optimizers import Adam, Rule
from featviz.maximization.parametrizations import Parametrization
from featviz.maximization.relu_gradients import RedirectedReLUs
from featviz.maximization.transforms import Transforms
from featviz.models.layers import StopForward, tap

if TYPE_CHECKING:
    from featviz.models.model import Model

# Slots of the CPU: kernels round by the number of pictures, so a number of slots is either known to
# give the bits of this many, or not used.
_SLOTS = 4
# Most pictures at a time, by default.
BLOCK = 16
# A picture without any gradient for so many steps stays without.
_PATIENCE = 16


@dataclass(frozen=True)
class Settings:
    """How `ascend` climbs."""

    steps: int
    parametrization: Parametrization
    transforms: Transforms
    rate: float = 0.1
    """of Adam at the start; it falls along half a cosine to a tenth"""
    smooth: float = 8.0
    """restraint of ripples: weight of what a 3x3 mean removes, against a gradient of strength 1"""
    calm: float = 0.02
    """restraint of contrast: weight of the distance from grey"""
    plain: float = 0.2
    """restraint of colour: weight of the distance from the grey of the same brightness"""
    even: float = 0.9
    """0: one strength for the whole picture; towards 1: the same strength everywhere in it"""
    reach: int = 16
    """pixels to each side over which the gradient's strength is measured for that"""
    coarse: float = 0.25
    """share of the steps in which detail is let in, from coarse to fine: shapes come first"""
    precision: str = "float32"
    """of the model during the ascent: "fp32" or "bf16"; scores are always of fp32"""
    checks: int = 4
    """how often, in the last half, a picture's clean score is taken to find the best"""
    views: int = 1
    """how many views of each picture, each moved on its own, a step takes the mean of"""
    transparency: bool = False
    """whether to add up, over the steps, how much each pixel mattered (Climb.transparency)"""
    rule: Rule | None = None
    """how a gradient changes the parameters; None is Adam at `rate`"""
    patience: int = 0
    """a picture is finished early when its best clean score has not risen by `gain` over so many
    checks; 0 takes all steps. More `checks` notice it sooner"""
    gain: float = 0.01
    """share of the best clean score; see `patience`"""


@dataclass
class Climb:
    """Where the ascent of some pictures came to."""

    pictures: Tensor
    """(N, 3, H, W) float32 with values of 8 bits"""
    trace: Tensor
    """(N, steps): the score at each step, transforms and all; NaN after the last"""
    best_steps: Tensor
    """(N,): after how many steps each picture was taken"""
    clean: Tensor
    """(N,): the score of each picture without transforms, in float32; NaN if it was not asked"""
    steps: Tensor
    """(N,): how many steps were taken"""
    alive: Tensor
    """(N,): whether the unit ever had a gradient of its own, not one that ReLUs let through"""
    broken: Tensor
    """(N,): the first step with a score or gradient that is no number, or -1"""
    frames: Tensor
    """(N, F, 3, H, W) uint8: stages of the ascent"""
    transparency: Tensor
    """(N, H, W): the sum over the steps of |d score / d pixel|, mean over colours; or (N, 0, 0)"""
    parameters: Tensor
    """(N, ...): free parameters after the last step"""


class Moment(NamedTuple):
    """What `climbing` yields at each step."""

    step: int
    """counted from 0 over the whole climb"""
    pictures: Tensor
    """(N, 3, H, W): of those that climb at the moment, before the step"""
    scores: Tensor
    """(N,): of these pictures, transforms and all"""
    rows: list[int]
    """whose pictures these are: positions in `targets`"""
    done: list[tuple[int, Climb]]
    """rows that finished since the last moment, with their climbs"""


def ascend(
    model: Model,
    goal: Objective,
    targets: Sequence[int],
    seeds: Sequence[int],
    settings: Settings,
    *,
    besides: Objective | None = None,
    start: Tensor | None = None,
    group: int = 1,
    batch_size: int | None = None,
    film: int = 0,
    stop_after: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Climb:
    """Climb `goal` for some of its targets, each from its own seed: the one loop.

    The inner function of `maximize`, for whoever puts an objective together; it expects a model in
    eval mode whose weights need no gradients.

    besides: climbed with the goal, but not counted in any score
    start: pictures (N, 3, H, W) to begin at, one a target, in place of noise
    group: so many consecutive targets belong together (an objective may couple their pictures);
        they climb side by side and never without one another
    slots: most pictures at a time, default all; when one is finished the next takes its place
    film: how many stages of each picture to keep
    stop_after: ends a long climb early, as it stands
    progress: called with the number of steps taken
    """
    done: dict[int, Climb] = {}
    for moment in climbing(
        model,
        goal,
        targets,
        seeds,
        settings,
        besides=besides,
        start=start,
        group=group,
        batch_size=batch_size,
        film=film,
        stop_after=stop_after,
    ):
        done.update(moment.done)
        if progress is not None:
            progress(moment.step)
    return together([done[row] for row in range(len(targets))])


def climbing(
    model: Model,
    goal: Objective,
    targets: Sequence[int],
    seeds: Sequence[int],
    settings: Settings,
    *,
    besides: Objective | None = None,
    start: Tensor | None = None,
    group: int = 1,
    batch_size: int | None = None,
    sizes: Sequence[int] = (),
    film: int = 0,
    stop_after: int | None = None,
) -> Iterator[Moment]:
    """The steps of `ascend`, one `Moment` each, for callbacks and animations.

        for step, pictures, scores, *_ in climbing(model, goal, [0, 1], [7, 8], settings):
            show(pictures)

    The last moment has no pictures, only what is `done`. `sizes` are the numbers of slots that may
    be in use at a time, where not every number may.
    """
    group = _group(group, goal, besides)
    if len(targets) % group or (batch_size or group) % group:
        raise ValueError(
            f"{len(targets)} targets in {batch_size} rows are no whole groups of {group}"
        )
    form, moved, views = settings.parametrization, settings.transforms, settings.views
    rule, device = settings.rule or Adam(settings.rate), model.device
    last = min(settings.steps, stop_after or settings.steps)
    check_after = _checkpoints(settings.steps, settings.checks)
    film_after = {round(i * settings.steps / max(1, film - 1)) for i in range(film)}
    layers = goal.layers if besides is None else (goal + besides).layers
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    company = _Slots(
        len(targets),
        batch_size or len(targets),
        sizes,
        group,
        settings,
        _beginning(generators, settings, rule, start, device),
    )
    frames: dict[int, list[Tensor]] = {row: [] for row in range(len(targets))}
    done: list[tuple[int, Climb]] = []
    step = 0

    with reading(model, layers, settings.precision) as read:
        while True:
            state = company.state
            parameters = state["parameters"].detach().requires_grad_(True)
            picture = form.picture(parameters)

            # What is due before the step: stages of a film, clean scores, and who is finished.
            with torch.no_grad():
                filmed, checked = company.due(film_after), company.due(check_after)
                leaving = company.due({last}) | company.stuck
                checked |= leaving
                if stop_after is not None:
                    checked = set()
                if filmed or checked or leaving:
                    rounded = _rounded(picture)
                if checked:
                    clean = torch.full((len(company.rows),), -math.inf, device=device)
                    for first in sorted({i - i % group for i in checked}):
                        members = slice(first, first + group)
                        aims = [targets[row] for row in company.rows[members]]
                        clean[members] = goal(read(rounded[members], exact=True), aims)
                    leaving |= company.keep_best(clean, rounded, checked)
                for i in filmed | (leaving if film else set()):
                    # A film that ends early has as many stages, the last of them again.
                    late = sum(after > company.taken[i] for after in film_after)
                    stages = (i in filmed) + (late if i in leaving else 0)
                    frames[company.rows[i]] += [images.to_uint8(rounded[i])] * stages
                for i in sorted(leaving):
                    stopped = rounded if stop_after is not None else None
                    done.append((company.rows[i], company.climb(i, frames, stopped)))
            company.attend()
            if leaving:
                company.refill(leaving)
                if not any(company.live):
                    break
                continue

            x = picture.detach().requires_grad_(True)
            rows = torch.arange(len(company.rows), device=device)
            now = torch.tensor(company.taken, device=device).clamp(max=settings.steps - 1)
            moves = state["moves"][rows, now]  # (N, views, K)
            seen = _joined([moved.apply(x, moves[:, view]) for view in range(views)])
            if moved.noisy:
                # Slots that only fill up take the noise of others: nobody looks at them.
                draws = {
                    row: moved.draw_noise((views, *seen.shape[1:]), generators[row])
                    for row, live in zip(company.rows, company.live, strict=True)
                    if live
                }
                any_draw = next(iter(draws.values()))
                noise = torch.stack([draws.get(row, any_draw) for row in company.rows], 1)
                seen = seen + noise.flatten(0, 1).to(device)
            aims = [targets[row] for row in company.rows] * views
            blocked = company.blocked(views, device)
            activations = read(seen, blocked=blocked) | {PICTURE: _joined([x] * views)}
            each = goal(activations, aims)  # (views * N,), views outermost: groups stay together
            climbed = each if besides is None else each + besides(activations, aims)
            scores = _mean(each.detach().view(views, -1))
            (gradient,) = torch.autograd.grad(climbed.sum() / views, x)
            if settings.transparency:
                state["transparency"] += gradient.abs().mean(1)
            steered, peak = _steered(gradient, x.detach(), settings, rule.steered)
            whole = scores.isfinite() & peak.isfinite()
            (slope,) = torch.autograd.grad(picture, parameters, steered)

            with torch.no_grad():
                memory = {name[7:]: s for name, s in state.items() if name.startswith("memory/")}
                taken = torch.tensor(company.taken)
                change = rule.change(parameters.detach(), slope, memory, taken, settings.steps)
                detail = _detail(form, company.taken, settings, change.dim())
                if detail is not None:
                    change = change * detail.to(device)
                state["trace"][rows, now] = scores
                broken = state["broken"]
                broken = torch.where((broken < 0) & ~whole, now, broken)
                state["broken"] = broken
                own = whole & (peak > 0)
                state["moved"] |= own
                if blocked is not None:
                    own = own & ~blocked.redirected.view(views, -1).any(0)
                state["alive"] |= own
                state["blocked"] = whole & ~own
                going = (broken < 0) & state["moved"]
                if device.type != "cpu" or not going.all():  # elsewhere a question costs more
                    going = going.view(-1, *(1,) * (change.dim() - 1))
                    change = torch.where(going, change, 0)
                state["parameters"] = change.add_(parameters.detach())
            if all(company.live):
                yield Moment(step, picture.detach(), scores, list(company.rows), done)
            else:
                shown = [i for i, live in enumerate(company.live) if live]
                their = [company.rows[i] for i in shown]
                yield Moment(step, picture.detach()[shown], scores[shown], their, done)
            done = []
            step += 1
            company.count_step()
    yield Moment(step, torch.empty(0), torch.empty(0), [], done)


class _Slots:
    """Which pictures climb at the moment, and all that belongs to each of them.

    A slot whose picture is finished is given to the next that waits. When none does, the slots are
    made fewer; where only some `sizes` may be, slots that are not `live` fill up the number.
    """

    def __init__(
        self,
        count: int,
        most: int,
        sizes: Sequence[int],
        group: int,
        settings: Settings,
        begin: Callable[[list[int]], dict[str, Tensor]],
    ):
        self._begin, self._sizes = begin, sorted(sizes)
        self._group, self._settings = group, settings
        self._waiting = list(range(count))
        self._bests: dict[int, list[float]] = {}
        self.rows = self._next(most)
        """whose picture is in each slot"""
        self.live = [True] * len(self.rows)
        self.taken = [0] * len(self.rows)
        """how many steps each slot's picture has behind it"""
        self._attended = [-1] * len(self.rows)
        self.state = begin(self.rows)
        """tensors (slots, ...) by name"""
        self.stuck: set[int] = set()
        """slots whose picture cannot go on: no gradient, or no numbers"""
        self._blocked: set[int] = set()
        self._pack()

    def _next(self, count: int) -> list[int]:
        rows, self._waiting = self._waiting[:count], self._waiting[count:]
        return rows

    def due(self, after: set[int]) -> set[int]:
        """The live slots whose picture has just got one of these numbers of steps behind it."""
        return {
            i
            for i, (live, taken) in enumerate(zip(self.live, self.taken, strict=True))
            if live and taken in after and self._attended[i] != taken
        }

    def attend(self) -> None:
        """What was due has been done."""
        self._attended = list(self.taken)

    def count_step(self) -> None:
        """All have taken a step; now and then see who has no hope, and who needs help."""
        self.taken = [taken + 1 for taken in self.taken]
        if any(t <= _PATIENCE or t % _PATIENCE == 0 for t in self.taken):
            state = self.state
            flags = torch.stack([state["moved"], state["broken"] >= 0, state["blocked"]]).tolist()
            batch_size = [i for i, live in enumerate(self.live) if live]
            self._blocked = {i for i in batch_size if flags[2][i]}
            hopeless = {
                i
                for i in batch_size
                if flags[1][i] or (self.taken[i] >= _PATIENCE and not flags[0][i])
            }
            self.stuck = self._whole_groups(hopeless)

    def _whole_groups(self, batch_size: set[int]) -> set[int]:
        """Of some slots those whose groups are there with all their members."""
        return {
            i
            for i in batch_size
            if all(
                k in batch_size
                for k in range(i - i % self._group, i - i % self._group + self._group)
            )
        }

    def blocked(self, views: int, device: torch.device) -> RedirectedReLUs | None:
        """Help for the pictures that had no gradient of their own when last seen."""
        if not self._blocked:
            return None
        rows = torch.tensor([i in self._blocked for i in range(len(self.rows))], device=device)
        return RedirectedReLUs(rows.repeat(views))

    def keep_best(self, clean: Tensor, pictures: Tensor, checked: set[int]) -> set[int]:
        """Keep the pictures (slots, 3, H, W) whose clean scores are above the best so far.

        Returns the slots that are finished because nothing is gained any more.
        """
        state = self.state
        better = clean > state["best score"]
        state["best"] = torch.where(better.view(-1, 1, 1, 1), pictures, state["best"])
        state["best score"] = torch.where(better, clean, state["best score"])
        taken = torch.tensor(self.taken, device=clean.device)
        state["best step"] = torch.where(better, taken, state["best step"])
        patience, gain = self._settings.patience, self._settings.gain
        if not patience:
            return set()
        done = set()
        for i, best in enumerate(state["best score"].tolist()):
            if i in checked:
                past = self._bests.setdefault(self.rows[i], [])
                past.append(best)
                if len(past) > patience and best - past[-1 - patience] <= gain * abs(best):
                    done.add(i)
        return self._whole_groups(done)

    def climb(self, slot: int, frames: dict[int, list[Tensor]], stopped: Tensor | None) -> Climb:
        """What became of a slot's picture; of one that was stopped, the picture it had come to."""
        # Copies: the slot goes on being written, for the next or for nobody.
        own = {name: value[slot : slot + 1].clone() for name, value in self.state.items()}
        stages = frames.pop(self.rows[slot])
        best = own["best"] if stopped is None else stopped[slot : slot + 1]
        return Climb(
            pictures=best.clone(),
            trace=own["trace"].cpu(),
            best_steps=own["best step"].cpu(),
            clean=torch.where(own["best score"].isfinite(), own["best score"], math.nan).cpu(),
            steps=torch.tensor([self.taken[slot]]),
            alive=own["alive"].cpu(),
            broken=own["broken"].cpu(),
            frames=torch.stack(stages)[None] if stages else torch.empty(1, 0, dtype=torch.uint8),
            transparency=own["transparency"].cpu(),
            parameters=own["parameters"].detach(),
        )

    def refill(self, batch_size: set[int]) -> None:
        """Give these slots to those that wait, or let them go."""
        free = sorted(batch_size)
        entering = self._next(len(free))
        fresh = self._begin(entering) if entering else {}
        for i in free:
            self.live[i] = False
        for i, row in zip(free, entering, strict=False):
            self.rows[i], self.live[i], self.taken[i], self._attended[i] = row, True, 0, -1
        for name, value in fresh.items():
            self.state[name][free[: len(entering)]] = value
        self.stuck -= batch_size
        self._blocked -= batch_size
        self._pack()

    def _pack(self) -> None:
        """Only as many slots as are needed and may be."""
        keep = [i for i, live in enumerate(self.live) if live]
        fitting = [size for size in self._sizes if size >= len(keep)]
        size = min(fitting, default=len(keep))
        if not keep or size == len(self.rows):
            return
        order = [keep[i % len(keep)] for i in range(size)]
        self.state = {name: value[order] for name, value in self.state.items()}
        self.rows = [self.rows[i] for i in order]
        self.taken = [self.taken[i] for i in order]
        self._attended = [self._attended[i] for i in order]
        self.stuck = {new for new, old in enumerate(keep) if old in self.stuck}
        self._blocked = {new for new, old in enumerate(keep) if old in self._blocked}
        self.live = [i < len(keep) for i in range(size)]


def _beginning(
    generators: Sequence[torch.Generator],
    settings: Settings,
    rule: Rule,
    start: Tensor | None,
    device: torch.device,
) -> Callable[[list[int]], dict[str, Tensor]]:
    """A function from rows to the state in which they begin, (N, ...) by name."""
    form, moved, steps = settings.parametrization, settings.transforms, settings.steps

    def begin(rows: list[int]) -> dict[str, Tensor]:
        if start is None:
            parameters = form.start([generators[row] for row in rows]).to(device)
        else:  # one at a time: a matrix product may round by their number
            one = [form.fit(start[row : row + 1].to(device)) for row in rows]
            parameters = torch.cat(one)
        moves = [moved.draw(steps * settings.views, generators[row]) for row in rows]
        with torch.no_grad():
            picture = _rounded(form.picture(parameters))
        count = len(rows)
        side = picture.shape[-2:] if settings.transparency else (0, 0)
        return {
            "parameters": parameters,
            "moves": torch.stack(moves).unflatten(1, (steps, settings.views)).to(device),
            "trace": torch.full((count, steps), math.nan, device=device),
            "alive": torch.zeros(count, dtype=torch.bool, device=device),
            "moved": torch.zeros(count, dtype=torch.bool, device=device),
            "blocked": torch.zeros(count, dtype=torch.bool, device=device),
            "broken": torch.full((count,), -1, device=device),
            "best": picture,
            "best score": torch.full((count,), -math.inf, device=device),
            "best step": torch.zeros(count, dtype=torch.long, device=device),
            "transparency": torch.zeros(count, *side, device=device),
        } | {f"memory/{name}": value for name, value in rule.begin(parameters).items()}

    return begin


def _rounded(pictures: Tensor) -> Tensor:
    """What comes back when pictures are saved with 8 bits, without leaving the device."""
    return pictures.detach().float().mul(255).round_().clamp_(0, 255).div_(255)


def _mean(values: Tensor) -> Tensor:
    """The mean over the first dimension, added one by one, so that it rounds alike for any N."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)


def _detail(
    form: Parametrization, taken: Sequence[int], settings: Settings, dim: int
) -> Tensor | None:
    """Which parameters of each slot may move, (N, ...) or (...), or None when all may."""
    span = settings.coarse * settings.steps
    if all(t + 1 >= span for t in taken):
        return None
    shares = [min(1.0, (t + 1) / span) for t in taken]
    masks = {share: form.detail(share) if share < 1 else None for share in set(shares)}
    some = next(mask for mask in masks.values() if mask is not None)
    if len(masks) == 1:
        return some
    rows = [masks[share] for share in shares]
    stacked = torch.stack([torch.ones_like(some) if row is None else row for row in rows])
    return stacked.view(len(rows), *(1,) * (dim - 1 - some.dim()), *some.shape)


def together(climbs: Sequence[Climb]) -> Climb:
    """Several climbs as one."""
    fields = {name: torch.cat([getattr(c, name) for c in climbs]) for name in vars(climbs[0])}
    return Climb(**fields)


@contextmanager
def reading(model: Model, layers: tuple[str, ...], precision: str) -> Iterator[Callable[..., Any]]:
    """Within the block, a function from pictures to float32 activations by layer.

    Under the name `PICTURE` it gives the pictures themselves, whether they are asked for or not.
    """
    layers = tuple(name for name in layers if name != PICTURE)
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    layout = _layout(model.device, kind)
    cast: dict[str, Tensor] = {}
    if layers and (kind, layout) != (torch.float32, torch.contiguous_format):
        behind = _behind(model, layers)
        for name, value in [*model.net.named_parameters(), *model.net.named_buffers()]:
            if value.is_floating_point() and name.rpartition(".")[0] not in behind:
                value = value.detach().to(kind)
                cast[name] = value.to(memory_format=layout) if value.dim() == 4 else value

    def read(
        pictures: Tensor, *, exact: bool = False, blocked: RedirectedReLUs | None = None
    ) -> dict[str, Tensor]:
        if not layers:
            return {PICTURE: pictures}
        # The taps are there while the model runs and no longer: between two steps it is the
        # caller's.
        with (
            tap(model, layers, stop=True) as taken,
            suppress(StopForward),
            blocked or nullcontext(),
        ):
            if cast and not exact:
                normal = model.normalize(pictures).to(kind).contiguous(memory_format=layout)
                with _SteadyRows():
                    functional_call(model.net, cast, (normal,))
            else:
                model(pictures)
        return {PICTURE: pictures} | {name: value.float() for name, value in taken.items()}

    yield read


def _layout(device: torch.device, kind: torch.dtype) -> torch.memory_format:
    """How convolutions of a kind like their pictures to lie in memory.

    On a CPU with the colours of a pixel side by side: 1.1 times as fast in float32 and 1.5 to 1.9
    times in bfloat16 (an AlexNet forward and back, where the pools gain as much as the
    convolutions). Of CUDA the tensor cores ask the same, and they compute bfloat16 alone.
    """
    if device.type == "cpu" or kind == torch.bfloat16:
        return torch.channels_last
    return torch.contiguous_format


def _behind(model: Model, layers: Sequence[str]) -> set[str]:
    """The paths of leaf modules that run only after the deepest of the layers."""
    order = [layer.path for layer in model.layers.values()]
    deepest = max(order.index(model.layer(name).path) for name in layers)
    paths = {path for path, module in model.net.named_modules() if not any(module.children())}
    return paths & set(order[deepest + 1 :])


class _SteadyRows(TorchFunctionMode):
    """Fully connected layers always see 16 rows, so that they round alike for any batch."""

    rows = 16

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.linear or not args or args[0].dim() != 2:
            return func(*args, **kwargs)
        blocks = []
        for block in args[0].split(self.rows):
            padded = F.pad(block, (0, 0, 0, self.rows - len(block)))
            blocks.append(func(padded, *args[1:], **kwargs)[: len(block)])
        return torch.cat(blocks)


def _checkpoints(steps: int, checks: int) -> set[int]:
    """After which steps of the last half clean scores are taken; the last one always."""
    return {steps - round(i * steps / (2 * max(1, checks))) for i in range(max(1, checks))}


def _group(group: int, goal: Objective, besides: Objective | None) -> int:
    """How many pictures climb side by side: what is asked for, and what the objectives compare."""
    return math.lcm(group, goal.group, besides.group if besides is not None else 1)


def _joined(views: Sequence[Tensor]) -> Tensor:
    return views[0] if len(views) == 1 else torch.cat(list(views))


def _steered(
    gradient: Tensor, pictures: Tensor, settings: Settings, wanted: bool
) -> tuple[Tensor, Tensor]:
    """The direction to take, (N, 3, H, W), and how strong the gradient is somewhere, (N,).

    The direction is the gradient evened out, less what restrains the picture; or, unless that is
    `wanted`, the gradient itself. The strength is no number where a gradient is none.
    """
    steered = torch.empty_like(gradient) if wanted else gradient
    peaks = []
    for slope, shown, out in zip(pieces(gradient), pieces(pictures), pieces(steered), strict=True):
        energy = slope.square().mean(1)  # (1, H, W)
        peaks.append(energy.amax((1, 2)))
        if not wanted:
            continue
        torch.mul(slope, _evened(energy, settings)[:, None], out=out)
        if settings.smooth:
            ripples = torch.sub(shown, _nine(shown), alpha=1 / 9)
            out.sub_(ripples, alpha=settings.smooth)
            out.add_(_nine(ripples), alpha=settings.smooth / 9)
        if settings.calm or settings.plain:
            grey = shown.mean(1, keepdim=True).mul_(settings.plain).add_(0.5 * settings.calm)
            out.sub_(shown, alpha=settings.calm + settings.plain).add_(grey)
    return steered, torch.cat(peaks)


def _nine(pictures: Tensor) -> Tensor:
    """The sum over each pixel's 3x3 neighbourhood, edge pixels repeated."""
    wide = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    rows = (wide[..., :-2] + wide[..., 1:-1]).add_(wide[..., 2:])
    return (rows[..., :-2, :] + rows[..., 1:-1, :]).add_(rows[..., 2:, :])


def _evened(energy: Tensor, settings: Settings) -> Tensor:
    """What to multiply a gradient with, (1, H, W), given its squares (1, H, W)."""
    whole = energy.mean((1, 2), keepdim=True)
    if not settings.even:
        return whole.clamp(min=1e-30).rsqrt()
    height, width = energy.shape[-2:]
    down, up = (t.to(energy.device) for t in _neighbourhood(height, settings.reach))
    right, back = (t.to(energy.device) for t in _neighbourhood(width, settings.reach))
    near = down @ energy @ right.T
    strength = (1 - settings.even) * whole + settings.even * near
    return up @ strength.clamp(min=1e-30).rsqrt() @ back.T


@lru_cache(maxsize=32)
def _neighbourhood(size: int, reach: int) -> tuple[Tensor, Tensor]:
    """Matrices (coarse, size) of a smooth local mean along one side, and (size, coarse) back.

    Two box means over `reach` to each side, reflected at the borders. Taken at a quarter of the
    reach, which nobody can tell from the full size, and interpolated.
    """
    step = max(1, reach // 4)
    pooled = F.avg_pool1d(torch.eye(size, dtype=torch.float64)[None], step, ceil_mode=True)[0].T
    count = len(pooled)
    side = min(max(1, round(reach / step)), count - 1)
    box = torch.zeros(count, count, dtype=torch.float64)
    for offset in range(-side, side + 1):
        spot = (torch.arange(count) + offset).abs()
        box[torch.arange(count), torch.minimum(spot, 2 * (count - 1) - spot)] += 1 / (2 * side + 1)
    eye = torch.eye(count, dtype=torch.float64)[None]
    back = F.interpolate(eye, size=size, mode="linear", align_corners=False)[0].T
    return (box @ box @ pooled).float(), back.float().contiguous()


def ascend_all(
    model: Model,
    goal: Objective,
    targets: Sequence[int],
    seeds: Sequence[int],
    settings: Settings,
    *,
    besides: Objective | None = None,
    start: Tensor | None = None,
    group: int = 1,
    batch_size: int = BLOCK,
    film: int = 0,
    progress: Callable[[int, int], None] | None = None,
    verdicts: dict[tuple[int, int], tuple[int, list[int]]] | None = None,
) -> Iterator[tuple[int, Climb]]:
    """`ascend` for any number of targets: yields (position in `targets`, its climb) as they finish.

    No picture depends on its company, on the CPU to the last bit (`permitted`; only where memory
    does not suffice for `_SLOTS` pictures the last bits are those of fewer). Where memory runs out
    half the slots are given up, and what they held begins again. progress(done, total) counts steps
    of single pictures. `verdicts` keeps what `permitted` found, for calls that differ in their
    targets and seeds alone.

    Raises UserError when there is no memory for a single picture.
    """
    waiting = list(range(len(targets)))
    taken = dict.fromkeys(waiting, 0)
    group = _group(group, goal, besides)
    batch_size = max(group, batch_size - batch_size % group)
    least = -(-_SLOTS // group) * group
    while waiting:
        rows = list(waiting)
        aims, own = [targets[row] for row in rows], [seeds[row] for row in rows]
        begun = None if start is None else start[rows]
        options: dict[str, Any] = {"besides": besides, "start": begun, "group": group}
        many = max(least, min(batch_size, len(rows)))
        try:
            asked = (_even(len(rows), batch_size, group), least)
            verdict = None if verdicts is None else verdicts.get(asked)
            if verdict is None:
                verdict = permitted(
                    model, goal, aims, own, settings, batch_size, least=least, **options
                )
            if verdicts is not None:
                verdicts[asked] = verdict
            many, sizes = verdict
            for moment in climbing(
                model, goal, aims, own, settings, batch_size=many, sizes=sizes, film=film, **options
            ):
                for row, climb in moment.done:
                    waiting.remove(rows[row])
                    taken[rows[row]] = settings.steps
                    yield rows[row], climb
                for row in moment.rows:
                    taken[rows[row]] += 1
                if progress is not None:
                    progress(sum(taken.values()), len(targets) * settings.steps)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            half = many // 2 // group * group
            if many > least:
                batch_size = max(half, least)
            else:
                batch_size = least = half
        if waiting and batch_size < group:
            raise UserError(
                "not enough memory for a single picture; make it smaller (size), "
                "or take a layer that comes earlier"
            )
        if model.device.type == "cuda":
            torch.cuda.empty_cache()


def permitted(
    model: Model,
    goal: Objective,
    targets: Sequence[int],
    seeds: Sequence[int],
    settings: Settings,
    most: int,
    *,
    besides: Objective | None = None,
    start: Tensor | None = None,
    group: int = 1,
    least: int = _SLOTS,
) -> tuple[int, list[int]]:
    """How many slots to climb in, and which other numbers give the same bits.

    Kernels of the CPU may round by the number of pictures. The activations and gradients of a
    step in so many slots are therefore compared, bit by bit, with those in `least`: where they
    agree both may be used, where they do not all climb in `least`, and one at a time where even
    these disagree among themselves. So a picture has the same bits in any company.
    """
    count, group = len(targets), _group(group, goal, besides)
    many = _even(count, most, group)
    if model.device.type != "cpu":
        return many, []
    base = -(-least // group) * group

    def slopes(rows: Sequence[int]) -> Tensor:
        aims, own = [targets[row] for row in rows], [seeds[row] for row in rows]
        begun = None if start is None else start[list(rows)]
        seen: list[Tensor] = []

        def score(activations: Mapping[str, Tensor], targets: Sequence[int]) -> Tensor:
            seen.extend(activations[name].detach().flatten(1) for name in goal.layers)
            return goal.score(activations, targets)

        climb = ascend(
            model,
            replace(goal, score=score),
            aims,
            own,
            replace(settings, rule=_Watch(settings.rule or Adam(settings.rate), seen), coarse=0.0),
            besides=besides,
            start=begun,
            group=group,
            stop_after=1,
        )
        # Rows are views outermost; each picture's own are put side by side.
        own_rows = [values.view(-1, len(rows), values.shape[1]) for values in seen]
        return torch.cat([climb.trace, *(v.transpose(0, 1).flatten(1) for v in own_rows)], 1)

    def filled(rows: Sequence[int]) -> list[int]:
        return [rows[i % len(rows)] for i in range(base)]

    def same(one: Tensor, other: Tensor) -> bool:  # also where both are no number
        return torch.equal(one.view(torch.int32), other.view(torch.int32))

    ends = min(many, base)
    front, back = range(ends), range(many - ends, many)
    backwards = [
        i for first in range(base - group, -1, -group) for i in range(first, first + group)
    ]
    few = slopes(filled(front))
    if not same(few, slopes([filled(front)[i] for i in backwards])[backwards]):
        return group, [group]
    if many == base:
        return base, [base]
    free, last = slopes(range(many)), slopes(filled(back))
    agree = same(free[:ends], few[:ends]) and same(free[-ends:], last[:ends])
    return (many, sorted({base, many})) if agree else (base, [base])


def _even(count: int, most: int, group: int) -> int:
    """How many of `count` pictures at a time, at most `most`, so that all turns are alike."""
    turns = -(-count // most)
    return -(-count // turns // group) * group


class _Watch:
    """A rule that begins with bold pictures and keeps the slope it is given.

    From grey pictures, where an ascent begins, few kernels show how they round.
    """

    def __init__(self, rule: Rule, seen: list[Tensor]):
        self.steered, self.seen = rule.steered, seen

    def begin(self, parameters: Tensor) -> dict[str, Tensor]:
        means = torch.stack([row.mean() for row in parameters])
        parameters += 30 * (parameters - means.view(-1, *(1,) * (parameters.dim() - 1)))
        return {}

    def change(
        self,
        parameters: Tensor,
        slope: Tensor,
        memory: dict[str, Tensor],
        taken: Tensor,
        steps: int,
    ) -> Tensor:
        self.seen.append(slope.flatten(1).clone())
        return torch.zeros_like(parameters)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in ("not enough memory", "out of memory", "can't allocate")
    )
