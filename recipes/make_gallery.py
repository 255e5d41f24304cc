"""The committed gallery: the tour with the bundled model and our own pictures, as a site.

    python recipes/make_gallery.py [--out gallery] [--work FOLDER] [--alexnet FILE --classes FILE]

The results are made in --work (default: a temporary folder), the site replaces --out. It holds only
pictures that the project made or may redistribute, and has at most 12 MB: of the first kernels and
of the layers between it shows a part, and photographs are small JPEG (those that `featviz demo`
makes are not).

With --alexnet, weights of AlexNet itself, its layers, kernels and maximized pictures are shown too,
in results that name it. These pictures are our own; its weights are not part of the site. Results
that are in --work are kept, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

import featviz
from featviz.gallery.build import build_gallery
from featviz.gallery.reader import unit_name
from featviz.tour import Budget, Outcome, run_tour

LIMIT, LARGE, SMALL = 12 * 2**20, 20_000, 3_000  # bytes: of the site, of pictures
SHARP, WIDEST = 48, 1000  # pixels: pictures within figures stay exact up to SHARP
FEW, WITHIN = 6, (160, 84)  # pixels of pictures within a figure of a few, and of more
QUALITY = 78  # of JPEG
INSIDE = re.compile(r"data:image/(png|jpeg);base64,\s*([A-Za-z0-9+/=\s]+)(?=[\"')])")
SHEET = re.compile(r"(?<=>)/9j/[A-Za-z0-9+/=]{100000,}(?=<)")  # of the atlas page
PICTURES, KERNELS = 6, 12  # of a kind, of the first layer
BUDGET = Budget(units=3, classified=6, queries=5, explorer=4.5)
LEFT_OUT = (  # the layers between are seen in AlexNet, and in the explorer
    *(f"{kind}-{layer}" for kind in ("maximize", "examples") for layer in ("conv2", "conv4")),
    *("kernels-conv2", "maps-conv3"),
)
FILES_LEFT_OUT = {  # what other figures or pages show as well
    "*": ("panel.svg", "examples.svg"),
    "atlas": ("mosaic.webp", "print.png", "print.pdf"),
    "cards": ("pictures/panel.svg", "pictures/natural/*", "pictures/ascent.svg"),
    "circuit": ("outputs.csv",),
}
ALEXNET_STEPS, ALEXNET_CLASSES = 128, (0, 36, 60, 100, 145, 189)
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "gallery")
    parser.add_argument("--work", type=Path, help="keep the results here, and go on from them")
    parser.add_argument("--alexnet", type=Path, help="weights of AlexNet itself")
    parser.add_argument("--classes", type=Path, help="names of its classes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch) / "tour"
        tour = run_tour(
            featviz.load("alexnet-mini", device="cpu"),
            featviz.sample_pictures(PICTURES),
            work,
            budget=BUDGET,
            announce=show,
        )
        first = "AlexNet" if arguments.alexnet is not None else None
        if arguments.alexnet is not None:
            add_alexnet(work, arguments.alexnet, arguments.classes)
        shown = Path(scratch) / "shown"
        choose(work, shown)
        build_gallery(shown, arguments.out, first=first, overwrite=True)
    shrink(arguments.out)
    size = sum(p.stat().st_size for p in arguments.out.rglob("*") if p.is_file())
    print(f"{arguments.out}: {size / 1e6:.1f} MB, made in {tour.seconds:.0f} s")
    if size > LIMIT:
        sys.exit(f"the gallery has {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}")


def choose(work: Path, shown: Path) -> None:
    """Copy the results that are shown, without what other figures show as well.

    A unit without a figure of its own has no page. The explorer has pictures of more units.
    """
    found = [one.parent for one in sorted(work.glob("*/result.json"))]
    found = [one for one in found if one.name not in LEFT_OUT]
    documents = {one.name: json.loads((one / "result.json").read_text("utf-8")) for one in found}
    for name, document in documents.items():
        for kind in ("figures", "tables"):
            document[kind] = [one for one in document[kind] if is_shown(name, one)]
    own = {
        unit_name(figure["units"][0])
        for document in documents.values()
        for figure in document["figures"]
        if len(figure.get("units", [])) == 1
    }
    for folder in found:
        target, document = shown / folder.name, documents[folder.name]
        shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.parquet"))
        for figure in document["figures"]:
            figure["units"] = [one for one in figure.get("units", []) if unit_name(one) in own]
        kept = {one["file"] for kind in ("figures", "tables") for one in document[kind]}
        for file in target.rglob("*.*"):
            shown_alone = file.suffix in (".jpg", ".webp", ".png", ".svg", ".csv")
            if shown_alone and file.relative_to(target).as_posix() not in kept:
                file.unlink()
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        (target / "result.json").write_text(text, encoding="utf-8")


def is_shown(result: str, part: dict[str, Any]) -> bool:
    """Whether a figure or a table is shown: of the first layer's kernels only some are."""
    units = part.get("units", [])
    if len(units) == 1 and units[0].startswith("conv1:") and "circuit" not in result:
        return int(unit_name(units[0]).partition(":")[2]) < KERNELS
    left_out = (*FILES_LEFT_OUT["*"], *FILES_LEFT_OUT.get(result, ()))
    return not any(fnmatch(part["file"], pattern) for pattern in left_out)


def shrink(site: Path) -> None:
    """Photographs and textures as small JPEG, other large pictures in 256 colors."""
    for picture in (*site.rglob("*.svg"), *site.rglob("*.html")):
        text = picture.read_text(encoding="utf-8")
        side = WITHIN[len(INSIDE.findall(text)) > FEW]
        short = SHEET.sub(encoded_again, INSIDE.sub(partial(smaller, side), text))
        picture.write_text(short, encoding="utf-8")
    for picture in (*site.rglob("*.jpg"), *site.rglob("*.webp")):
        shown = Image.open(picture)
        if picture.stat().st_size > LARGE and max(shown.size) > WIDEST:
            shown.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
            shown.save(picture, quality=QUALITY, optimize=True)
    for folder in (site / "results").iterdir():
        if folder.is_dir():
            renamed = {p: p.with_suffix(".jpg") for p in folder.rglob("*.png") if made_jpeg(p)}
            for kind in ("json", "csv", "html"):
                for file in folder.rglob(f"*.{kind}"):
                    rename(file, folder, renamed)
            for page in (*site.glob("*.html"), *site.glob("results/*.html"), *site.glob("units/*")):
                rename(page, site, renamed)


def made_jpeg(picture: Path) -> bool:
    """Whether a PNG was replaced by a JPEG; if not, it has at most 256 colors if it is large."""
    size = picture.stat().st_size
    shown = Image.open(picture).convert("RGBA")
    if size < SMALL or shown.getcolors(256):
        return False
    short = jpeg(shown)
    if see_through(shown) or 2 * len(short) > size:
        if size > LARGE:
            shown.quantize(256, Image.Quantize.FASTOCTREE).save(picture, optimize=True)
        return False
    picture.with_suffix(".jpg").write_bytes(short)
    picture.unlink()
    return True


def see_through(picture: Image.Image) -> bool:
    return min(picture.convert("RGBA").getchannel("A").tobytes()) < 255


def rename(text: Path, base: Path, renamed: dict[Path, Path]) -> None:
    """Write the new names of pictures, as seen from a folder, into a text."""
    words = old = text.read_text(encoding="utf-8")
    for before, after in renamed.items():
        words = words.replace(str(before.relative_to(base)), str(after.relative_to(base)))
    if words != old:
        text.write_text(words, encoding="utf-8")


def smaller(side: int, found: re.Match[str]) -> str:
    """A picture within a figure as a small JPEG, where that is much smaller; no strip, no map."""
    content = base64.b64decode(found[2])
    shown = Image.open(io.BytesIO(content))
    strip = not SHARP <= min(shown.size) <= max(shown.size) <= 2 * min(shown.size)
    if strip or len(content) < SMALL or see_through(shown):
        return found[0]
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    short = jpeg(shown)
    if 1.4 * len(short) > len(content):
        return found[0]
    return f"data:image/jpeg;base64,{base64.b64encode(short).decode()}"


def encoded_again(found: re.Match[str]) -> str:
    sheet = Image.open(io.BytesIO(base64.b64decode(found[0])))
    return base64.b64encode(jpeg(sheet)).decode()


def jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def add_alexnet(work: Path, weights: Path, classes: Path | None) -> None:
    """Layers, kernels and maximized pictures of AlexNet itself, without pictures of others."""
    model = featviz.load("alexnet", weights=weights, classes=classes, device="cpu", name="AlexNet")
    count = len(ALEXNET_CLASSES)
    units = {layer: tuple(range(count)) for layer in ("conv2", "conv3", "conv5")}
    units["logits"] = ALEXNET_CLASSES
    steps: dict[str, Callable[[], featviz.results.Result]] = {
        "layers": lambda: featviz.summarize(model),
        "kernels-conv1": lambda: featviz.kernel_sheet(model, "conv1"),
        **{
            f"maximize-{layer}": partial(
                featviz.maximize, model, layer, units=list(chosen), steps=ALEXNET_STEPS
            )
            for layer, chosen in units.items()
        },
    }
    for name, make in steps.items():
        folder = work / f"alexnet-{name}"
        if not (folder / "result.json").is_file():
            make().save(folder)
            print(f"  {folder.name}", flush=True)


def show(outcome: Outcome) -> None:
    state = outcome.refused or ("kept" if outcome.kept else f"{outcome.seconds:.1f} s")
    print(f"  {outcome.folder.name:<20} {state}", flush=True)


if __name__ == "__main__":
    main()
