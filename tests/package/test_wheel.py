"""The wheel holds all that the tour needs: installed alone, outside the checkout, it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_assets_templates_and_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "featviz/py.typed",
        "featviz/assets/alexnet-mini.safetensors",
        "featviz/assets/pictures/china.jpg",
        "featviz/assets/pictures/flower.jpg",
        "featviz/assets/samples/goldfish.jpg",
    } <= names
    assert any(name.startswith("featviz/gallery/templates/") for name in names)
    assert not any(name.startswith(("tests/", "gallery/", "recipes/")) for name in names)


def test_the_bundled_model_is_small_enough(wheel: Path) -> None:
    info = zipfile.ZipFile(wheel).getinfo("featviz/assets/alexnet-mini.safetensors")
    assert info.file_size <= 8_000_000


@pytest.mark.long
def test_the_installed_wheel_takes_the_quick_tour_outside_the_checkout(
    wheel: Path, tmp_path: Path
) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", site, wheel], check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "featviz", "demo", "--quick", "--json", "--out", "tour"]
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (work / document["gallery"] / "index.html").is_file()
    assert [step for step in document["steps"] if step["refused"]] == []
    where = "import featviz; print(featviz.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(site)
