"""The pictures of the documentation, made by the commands that stand below them in docs/*.md.

    python recipes/make_docs_pictures.py [NAME ...]

A picture in a page is followed by its command:

    ![What is seen](pictures/kernels.svg)
    *`featviz kernels --layer conv1` writes this as `kernels-sorted.svg`.*

Each command runs with the bundled model and pictures. Its file is copied (svg), or shrunk to 1,200
pixels (png, jpg, webp); of an HTML page a screenshot is taken where chromium is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
PICTURE = re.compile(
    r"!\[[^\]]*\]\(pictures/([\w.-]+)\)\n\*`(featviz [^`]+)` writes this as `([^`]+)`"
)
WIDEST = 1200


def main() -> None:
    wanted = set(sys.argv[1:])
    by_command: dict[str, list[tuple[str, str]]] = {}
    for page in sorted((ROOT / "docs").glob("*.md")):
        for name, command, file in PICTURE.findall(page.read_text(encoding="utf-8")):
            if not wanted or Path(name).stem in wanted:
                by_command.setdefault(command, []).append((name, file))
    for command, files in by_command.items():
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "out"
            words = re.sub(r" --out \S+", "", command).split()[1:]
            run = [sys.executable, "-m", "featviz", *words, "--out", str(out), "--quiet"]
            subprocess.run(run, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            for name, file in files:
                convert(out / file, ROOT / "docs" / "pictures" / name)
                print(f"{name:<16} {command}", flush=True)


def convert(source: Path, target: Path) -> None:
    """The file as it is shown in the documentation."""
    target.parent.mkdir(exist_ok=True)
    if source.suffix == ".html":
        shot = source.with_suffix(".screenshot.png")
        if not screenshot(source, shot):
            print(f"{target.name} is left as it is: no chromium", file=sys.stderr)
            return
        source = shot
    if source.suffix == target.suffix == ".svg":
        shutil.copyfile(source, target)
        return
    picture = Image.open(source).convert("RGBA" if target.suffix == ".webp" else "RGB")
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)))
    if target.suffix == ".png":
        picture.quantize(256).save(target, optimize=True)
    else:
        picture.save(target, quality=82, optimize=True)


def screenshot(page: Path, target: Path) -> bool:
    """Whether a picture of the page was taken."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        return False
    options = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,800"]
    options += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    options += ["--virtual-time-budget=8000", f"--screenshot={target}", page.as_uri()]
    subprocess.run([browser, *options], check=True, capture_output=True)
    return True


if __name__ == "__main__":
    main()
