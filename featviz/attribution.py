"""`attribute`: which pixels a class's logit rests on, by four methods of captum.

    saliency               |gradient| of the logit, the largest of the three channels
                           (Simonyan et al. 2013, arXiv:1312.6034)
    integrated_gradients   gradient averaged on the way from a baseline to the picture, times the
                           difference (Sundararajan et al. 2017, arXiv:1703.01365). Its sum must be
                           logit(picture) - logit(baseline); by how much it is not is reported
    grad_cam               maps of a convolution weighted by their mean gradients, summed, ReLU'd
                           (Selvaraju et al. 2017, arXiv:1610.02391), enlarged to the picture
    occlusion              by how much the logit falls when a square is covered (Zeiler & Fergus
                           2013, arXiv:1311.2901), averaged over the squares that cover a pixel

In: pictures (N, 3, H, W). Out: one map (N, H, W) a method in units of the logit (saliency: logit
per unit of pixel value). Every picture is worked on by itself, so neighbours do not matter, and
captum sees at most `batch_size` pictures at once, so memory is bounded.

A map is a claim, not a fact. The deletion check puts a number beside it: the class's probability
after the fifth of the picture that the map points at is replaced by the baseline, against the
same area, in the same pieces, moved to random places.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featviz import plotting, results
from featviz.errors import UserError, nearest
from featviz.images import check_pictures
from featviz.models.frozen import frozen

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featviz.models.model import Model

METHODS = ("saliency", "integrated_gradients", "grad_cam", "occlusion")
NAMES = {
    "saliency": "saliency",
    "integrated_gradients": "integrated gradients",
    "grad_cam": "Grad-CAM",
    "occlusion": "occlusion",
}
UNITS = {
    "saliency": "logit per pixel value",
    "integrated_gradients": "logit",
    "grad_cam": "logit, arbitrary scale",
    "occlusion": "logit",
}
SIGNED = frozenset({"integrated_gradients", "occlusion"})
BASELINES = ("mean", "black", "white")
LARGE_ERROR = 0.05
"""relative completeness error of integrated gradients above which a result warns"""
_CELLS = 14  # the deletion check works on a grid of so many cells a side
_DELETED = 0.2  # of the cells
_DRAWS = 8  # random places of the same area
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True, repr=False)
class Attributed(results.Result):
    """Maps of what the logit of one class a picture rests on."""

    kind: ClassVar[str] = "attribute"

    model_name: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    pictures: Tensor
    """(N, 3, H, W)"""
    targets: tuple[int, ...]
    """the class explained, a picture"""
    probabilities: Tensor
    """(N, classes)"""
    maps: Mapping[str, Tensor]
    """method -> (N, H, W)"""
    layer: str | None
    """where Grad-CAM looked"""
    baseline: str
    completeness: Tensor | None
    """(N,) |sum of the map - (logit(picture) - logit(baseline))| / |that difference|"""
    completeness_logits: Tensor | None
    """(N,) the same error in logits, signed"""
    deletion: Mapping[str, Tensor]
    """method -> (N,) probability of the target with the map's strongest fifth deleted"""
    deletion_random: Mapping[str, Tensor]
    """method -> (N,) the same with that area moved to random places, mean"""

    @property
    def title(self) -> str:
        what = {self.classes[t] for t in self.targets}
        whose = f"for {what.pop()} " if len(what) == 1 else ""
        return f"What {self.model_name} looks at {whose}in {self._count()}"

    def _reading(self) -> str:
        """How the maps are to be read, for the caption."""
        parts = ["Colours end at the 99.5th percentile of the absolute values."]
        if SIGNED & set(self.maps):
            parts.append(
                "Signed maps are red where the picture speaks for the class and blue where it "
                "speaks against it; white is zero."
            )
        if "grad_cam" in self.maps:
            parts.append(f"Grad-CAM looks at {self.layer}.")
        parts.append(f"Baseline, and cover of what is deleted: {self.baseline}.")
        parts.append(
            "Below each map: the class's probability once the map's strongest fifth is deleted, "
            "and once the same area elsewhere is."
        )
        return " ".join(parts)

    def _count(self) -> str:
        return self.names[0] if len(self.names) == 1 else f"{len(self.names)} pictures"

    def numbers(self) -> dict[str, results.Number]:
        rows = torch.arange(len(self.names))
        own = self.probabilities[rows, torch.tensor(self.targets)]
        found = {
            "probability": results.Number(
                float(own.mean()), "fraction", "of the explained class, mean over pictures"
            )
        }
        if self.completeness is not None:
            found["completeness error"] = results.Number(
                float(self.completeness.max()),
                "fraction",
                "of integrated gradients, largest of the pictures: how far the map's sum is from "
                "what it must be",
            )
        for method, left in self.deletion.items():
            found[f"left by {NAMES[method]}"] = results.Number(
                float(left.mean()),
                "fraction",
                "probability once the map's strongest fifth is deleted; in random places "
                f"{100 * float(self.deletion_random[method].mean()):.1f}%",
            )
        return found

    def scale(self, method: str, i: int) -> float:
        """Where the colours of a map end: the 99.5th percentile of its absolute values."""
        values = self.maps[method][i].abs().flatten()
        return float(torch.quantile(values, 0.995)) or float(values.max()) or 1.0

    def write(self, folder: results.Folder) -> None:
        for i, name in enumerate(self.names):
            target = self.classes[self.targets[i]]
            folder.figure(
                f"attribution-{i + 1:02d}.png",
                self.plot_one(i),
                caption=f"{name}, explained: {target}. {self._reading()}",
                alt=f"{name} with attribution maps for {target}",
                units=[f"logits:{self.targets[i]}"],
            )
        columns = ["picture", "target", "probability", "completeness", "completeness_logits"]
        for method in self.deletion:
            columns += [f"left_{method}", f"left_{method}_moved"]
        rows = []
        for i, name in enumerate(self.names):
            row: list[Any] = [
                name,
                self.classes[self.targets[i]],
                float(self.probabilities[i, self.targets[i]]),
            ]
            for errors in (self.completeness, self.completeness_logits):
                row.append("" if errors is None else float(errors[i]))
            for method, left in self.deletion.items():
                row += [float(left[i]), float(self.deletion_random[method][i])]
            rows.append(row)
        folder.table(
            "attribution.csv",
            columns,
            rows,
            caption="Completeness error of integrated gradients (relative and in logits) and the "
            "probability left after deletion of each map's strongest fifth, and of the same "
            "area in random places (moved).",
        )
        folder.arrays(
            "maps.npz",
            {m: values.numpy() for m, values in self.maps.items()},
            caption="The maps (N, H, W), unscaled.",
        )

    def plot(self) -> Figure:
        if len(self.names) == 1:
            return self.plot_one(0)
        figure = plotting.new_figure(self._width(), 4.35 * len(self.names))
        parts: Any = figure.subfigures(len(self.names), 1)
        for i, part in enumerate(parts):
            self._draw(part, i)
        return figure

    def plot_one(self, i: int) -> Figure:
        """One picture: overlays above, maps with their scales below, predictions beside."""
        figure = plotting.new_figure(self._width(), 4.35)
        self._draw(figure, i)
        return figure

    def _width(self) -> float:
        return 2.1 * (1 + len(self.maps)) + 0.5

    def _draw(self, figure: Any, i: int) -> None:
        methods = list(self.maps)
        axes = figure.subplots(2, 1 + len(methods), squeeze=False)
        pixelated = self.pictures.shape[-1] <= 128
        target = self.targets[i]
        probability = 100 * float(self.probabilities[i, target])
        plotting.show_image(axes[0, 0], self.pictures[i], pixelated=pixelated)
        axes[0, 0].set_title(
            f"explained: {self.classes[target]} ({probability:.0f}%)",
            fontsize=8.5,
            color=plotting.INK,
            pad=3,
        )
        self._draw_predictions(axes[1, 0], i)
        grey = self.pictures[i].mean(0, keepdim=True).expand(3, -1, -1)
        for column, method in enumerate(methods, 1):
            values, end = self.maps[method][i], self.scale(method, i)
            signed = method in SIGNED
            above, below = axes[0, column], axes[1, column]
            plotting.show_image(above, 0.35 + 0.5 * grey, NAMES[method], pixelated=pixelated)
            strength = (values.abs() / end).clamp(0, 1).numpy()
            low = -end if signed else 0.0
            colours = plotting.DIVERGING if signed else plotting.SEQUENTIAL
            opacity = 0.9 * strength**0.7
            above.imshow(
                values.numpy(),
                cmap=colours,
                vmin=low,
                vmax=end,
                alpha=opacity,
                interpolation="nearest",
            )
            shown = below.imshow(
                values.numpy(), cmap=colours, vmin=low, vmax=end, interpolation="nearest"
            )
            plotting.bare(below)
            bar = figure.colorbar(
                shown,
                cax=below.inset_axes((0.02, -0.1, 0.96, 0.045)),
                orientation="horizontal",
                extend="both" if signed else "max",
            )
            bar.ax.tick_params(labelsize=6.5)
            bar.ax.locator_params(nbins=5)
            left = 100 * float(self.deletion[method][i])
            moved = 100 * float(self.deletion_random[method][i])
            check = f"its fifth deleted: {left:.0f}%, elsewhere {moved:.0f}%"
            bar.set_label(f"{UNITS[method]}\n{check}", fontsize=7)

    def _draw_predictions(self, ax: Axes, i: int) -> None:
        values, indices = self.probabilities[i].topk(min(5, len(self.classes)))
        names = [self.classes[int(c)] for c in indices]
        names = [n if len(n) <= 16 else n[:15] + "…" for n in names]
        colours = [plotting.RED if int(c) == self.targets[i] else plotting.BLUE for c in indices]
        bars = ax.barh(range(len(names)), (100 * values).tolist(), color=colours, height=0.6)
        ax.bar_label(bars, fmt="%.0f%%", fontsize=7, padding=2)
        ax.set_yticks(range(len(names)), names)
        ax.invert_yaxis()
        plotting.lines(ax, xlabel="probability (%)", ylabel="")
        ax.tick_params(labelsize=7)
        ax.xaxis.label.set_fontsize(7)
        ax.set_xlim(0, 115)
        ax.set_xticks([0, 50, 100])


def attribute(
    model: Model,
    pictures: Tensor,
    *,
    target: int | str | Sequence[int | str] | None = None,
    methods: Sequence[str] = METHODS,
    layer: str | None = None,
    baseline: str | float = "mean",
    steps: int = 64,
    window: float = 1 / 8,
    stride: float = 1 / 16,
    batch_size: int = 32,
    names: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Attributed:
    """Maps of what a class's logit rests on, one a method and picture.

    pictures: (N, 3, H, W) or (3, H, W) in [0, 1]
    target: a class (index or name) for all pictures, or one for each; default: what the model
        answers. Only the logit of that class is explained, not the competition with others
    methods: any of "saliency", "integrated_gradients", "grad_cam", "occlusion"
    layer: of Grad-CAM; default: the last convolution, behind its ReLU where that has a name
    baseline: "mean" (the colour that the net sees as 0), "black", "white" or a grey value; start
        of integrated gradients, cover of occlusion and of deleted areas. What has the baseline's
        colour gets nothing from integrated gradients, so try another where that matters
    steps: of integrated gradients; more make the completeness error smaller
    window, stride: side and step of occlusion's square, as fractions of the picture's side;
        smaller ones show more detail and take more passes: (1/stride)^2 a picture
    batch_size: how many pictures captum may hold at once
    seed: of the random areas in the deletion check

    Raises UserError for an unknown method, class, layer or baseline.

        result = featviz.attribute(model, featviz.read_square("cat.jpg", 256, 224), target="tabby")
        result.save("run/cat")
    """
    started = time.perf_counter()
    batch = check_pictures(pictures, single=True).to(model.device)
    count, side = len(batch), batch.shape[-1]
    methods = check_methods(methods)
    names = tuple(names) if names is not None else tuple(f"picture {i + 1}" for i in range(count))
    place = None if layer is None else model.layer(layer).name
    if "grad_cam" in methods:
        place = place or grad_cam_layer(model)
        if len(model.layer(place).shape) != 3:
            raise UserError(f"Grad-CAM needs maps and {place} has none; take a convolution")
    if not (0 < window <= 1 and 0 < stride <= 1):
        raise UserError("window and stride are fractions of the picture's side, above 0 to 1")
    if steps < 1 or batch_size < 1:
        raise UserError("steps and batch_size must be 1 or more")
    colour = baseline_colour(model, baseline)
    width = max(1, round(window * side))
    hop = min(max(1, round(stride * side)), width)
    with frozen(model):
        with torch.no_grad():
            parts = [model(picture[None]) for picture in batch]
        logits = torch.cat(parts)
        targets = _targets(model, target, logits)
        maps: dict[str, list[Tensor]] = {method: [] for method in methods}
        left: dict[str, list[float]] = {method: [] for method in methods}
        moved: dict[str, list[float]] = {method: [] for method in methods}
        errors, relative = [], []
        total, done = count * len(methods), 0
        for i in range(count):
            x, c = batch[i : i + 1], targets[i]
            cover = colour.expand_as(x)
            for method in methods:
                if progress is not None:
                    progress(done, total, NAMES[method])
                done += 1
                if method == "saliency":
                    values = _saliency(model, x, c)
                elif method == "integrated_gradients":
                    values, delta = _integrated_gradients(model, x, c, cover, steps, batch_size)
                    with torch.no_grad():
                        gain = float(logits[i, c] - model(cover)[0, c])
                    errors.append(delta)
                    relative.append(abs(delta) / abs(gain) if gain else math.inf * (delta != 0))
                elif method == "grad_cam":
                    assert place is not None
                    values = _grad_cam(model, x, c, place)
                else:
                    values = _occlusion(model, x, c, cover, width, hop, batch_size)
                maps[method].append(values.detach().cpu())
                here, elsewhere = _deletion(model, x, c, cover, maps[method][i], seed, batch_size)
                left[method].append(here)
                moved[method].append(elsewhere)
    if progress is not None:
        progress(total, total, "")
    result = Attributed(
        origin=results.origin(
            model,
            parameters={
                "pictures": list(names),
                "targets": targets,
                "methods": list(methods),
                "layer": place,
                "baseline": baseline,
                "steps": steps,
                "window": width,
                "stride": hop,
                "batch_size": batch_size,
            },
            started=started,
            seed=seed,
        ),
        model_name=model.name,
        classes=tuple(model.class_name(c) for c in range(len(model.classes))),
        names=names,
        pictures=batch.cpu(),
        targets=tuple(targets),
        probabilities=logits.softmax(1).cpu(),
        maps={method: torch.stack(values) for method, values in maps.items()},
        layer=place,
        baseline=_baseline_words(baseline),
        completeness=torch.tensor(relative) if errors else None,
        completeness_logits=torch.tensor(errors) if errors else None,
        deletion={method: torch.tensor(values) for method, values in left.items()},
        deletion_random={method: torch.tensor(values) for method, values in moved.items()},
    )
    return Attributed(**{**result.__dict__, "warnings": tuple(_doubts(result))})


def check_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods without doubles. Raises UserError that names every unknown one."""
    wanted = tuple(dict.fromkeys(m.strip().replace("-", "_") for m in methods))
    unknown = [m for m in wanted if m not in METHODS]
    if unknown or not wanted:
        hint = nearest(unknown[0], METHODS) if unknown else ""
        named = f"unknown method {', '.join(unknown)}{hint}" if unknown else "no method was named"
        raise UserError(f"{named} (there are {', '.join(METHODS)})")
    return wanted


def grad_cam_layer(model: Model) -> str:
    """The last convolution, or the ReLU right behind it: where Grad-CAM looks by itself."""
    layers = list(model.layers.values())
    convolutions = [k for k, layer in enumerate(layers) if layer.kind == "Conv2d" and layer.spatial]
    if not convolutions:
        raise UserError(f"{model.name} has no convolution with maps; Grad-CAM needs one")
    last = convolutions[-1]
    behind = layers[last + 1] if last + 1 < len(layers) else None
    if behind is not None and behind.kind == "ReLU" and behind.shape == layers[last].shape:
        return behind.name
    return layers[last].name


def baseline_colour(model: Model, baseline: str | float) -> Tensor:
    """(1, 3, 1, 1) in [0, 1]. Raises UserError for an unknown word or a value out of range."""
    if baseline == "mean":
        return model.mean.clamp(0, 1).view(1, 3, 1, 1)
    grey = {"black": 0.0, "white": 1.0}.get(str(baseline))
    if grey is None:
        try:
            grey = float(baseline)
        except ValueError:
            hint = nearest(str(baseline), BASELINES)
            raise UserError(
                f"unknown baseline {baseline!r}{hint} (mean, black, white or 0 to 1)"
            ) from None
    if not 0 <= grey <= 1:
        raise UserError(f"baseline {grey:g} is out of range; a grey value is 0 to 1")
    return torch.full((1, 3, 1, 1), grey, device=model.device)


def _baseline_words(baseline: str | float) -> str:
    words = {"mean": "the mean colour", "black": "black", "white": "white"}
    return words.get(str(baseline), f"grey {baseline}")


def _targets(
    model: Model, target: int | str | Sequence[int | str] | None, logits: Tensor
) -> list[int]:
    if target is None:
        return [int(c) for c in logits.argmax(1)]
    if isinstance(target, int | str):
        return [model.class_index(target)] * len(logits)
    if len(target) != len(logits):
        raise UserError(f"{len(target)} targets for {len(logits)} pictures; give one a picture")
    return [model.class_index(c) for c in target]


def _saliency(model: nn.Module, x: Tensor, target: int) -> Tensor:
    from captum.attr import Saliency

    gradient = Saliency(model).attribute(x.clone().requires_grad_(True), target=target, abs=True)
    values: Tensor = gradient[0].amax(0)
    return values


def _integrated_gradients(
    model: nn.Module, x: Tensor, target: int, baseline: Tensor, steps: int, batch_size: int
) -> tuple[Tensor, float]:
    from captum.attr import IntegratedGradients

    parts, delta = IntegratedGradients(model).attribute(
        x.clone().requires_grad_(True),
        baselines=baseline.contiguous(),
        target=target,
        n_steps=steps,
        internal_batch_size=min(batch_size, steps),
        return_convergence_delta=True,
    )
    return parts[0].sum(0), float(delta[0])


def _grad_cam(model: Model, x: Tensor, target: int, layer: str) -> Tensor:
    from captum.attr import LayerGradCam

    module = model.net.get_submodule(model.layer(layer).path)
    coarse = LayerGradCam(model, module).attribute(
        x.clone().requires_grad_(True), target=target, relu_attributions=True
    )
    fine = F.interpolate(coarse.detach(), x.shape[-2:], mode="bilinear", align_corners=False)
    return fine[0, 0]


def _occlusion(
    model: nn.Module, x: Tensor, target: int, cover: Tensor, width: int, hop: int, batch_size: int
) -> Tensor:
    from captum.attr import Occlusion

    with torch.no_grad():
        falls = Occlusion(model).attribute(
            x,
            sliding_window_shapes=(3, width, width),
            strides=(3, hop, hop),
            baselines=cover.contiguous(),
            target=target,
            perturbations_per_eval=batch_size,
        )
    # captum gives each channel the whole effect of the square that covers all three.
    values: Tensor = falls[0].mean(0)
    return values


def _deletion(
    model: nn.Module,
    x: Tensor,
    target: int,
    cover: Tensor,
    values: Tensor,
    seed: int,
    batch_size: int,
) -> tuple[float, float]:
    """Probability of the target without the map's strongest cells, and with them moved at random.

    Moved areas (shifted round the edges, mirrored) have the same size and the same pieces: many
    small holes do more harm than one large hole, wherever they are.
    """
    cells = min(_CELLS, x.shape[-1])
    coarse = F.adaptive_avg_pool2d(values[None, None], cells).flatten()
    strongest = coarse.argsort(descending=True, stable=True)[: round(_DELETED * cells * cells)]
    mask = torch.zeros(cells * cells).index_fill_(0, strongest, 1.0).view(cells, cells)
    masks = [mask]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_DRAWS):
        down, right = torch.randint(cells, (2,), generator=generator).tolist()
        mirrored = mask.flip(1) if torch.rand((), generator=generator) < 0.5 else mask
        masks.append(mirrored.roll((down, right), (0, 1)))
    deleted = F.interpolate(torch.stack(masks)[:, None], x.shape[-2:], mode="nearest").to(x.device)
    pictures = torch.where(deleted > 0, cover, x)
    with torch.no_grad():
        parts = [model(pictures[k : k + batch_size]) for k in range(0, len(pictures), batch_size)]
    here, *elsewhere = torch.cat(parts).softmax(1)[:, target].tolist()
    return here, sum(elsewhere) / _DRAWS


def _doubts(result: Attributed) -> list[str]:
    doubts = []
    if result.completeness is not None and result.completeness_logits is not None:
        bad = (result.completeness > LARGE_ERROR).nonzero()[:, 0].tolist()
        if bad:
            worst = max(bad, key=lambda i: float(result.completeness[i]))  # type: ignore[index]
            doubts.append(
                f"integrated gradients are incomplete for {len(bad)} of {len(result.names)} "
                f"pictures: for {result.names[worst]} the map misses its sum by "
                f"{100 * float(result.completeness[worst]):.0f}% "
                f"({float(result.completeness_logits[worst]):+.2g} logits); take more steps or "
                "another baseline"
            )
    own = result.probabilities[torch.arange(len(result.names)), torch.tensor(result.targets)]
    unlikely = int((own < 0.01).sum())
    if unlikely:
        doubts.append(
            f"the explained class has a probability below 1% in {unlikely} of "
            f"{len(result.names)} pictures: the maps show what little speaks for it"
        )
    for method, values in result.maps.items():
        empty = int((values.flatten(1).abs().amax(1) == 0).sum())
        if empty:
            doubts.append(f"{NAMES[method]} is zero everywhere in {empty} pictures")
        worse = int((result.deletion[method] > result.deletion_random[method]).sum())
        if 2 * worse > len(result.names):
            doubts.append(
                f"{NAMES[method]} points at areas that matter less than the same areas elsewhere "
                f"in {worse} of {len(result.names)} pictures (deletion check)"
            )
    return doubts
