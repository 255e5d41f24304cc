"""The committed gallery: small, whole, AlexNet beside the bundled model, without its weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from featviz.gallery.story import STEPS

GALLERY = Path(__file__).parents[2] / "gallery"
SUFFIXES = {".html", ".json", ".csv", ".svg", ".png", ".jpg", ".webp", ".gif", ".css", ".js"}

pytestmark = pytest.mark.skipif(not GALLERY.is_dir(), reason="only in the repository")


def test_it_is_small_and_holds_pages_pictures_and_tables_only() -> None:
    files = [path for path in GALLERY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12 * 2**20
    assert {path.suffix for path in files} <= SUFFIXES


def test_it_tells_the_whole_story_with_the_explorer() -> None:
    page = (GALLERY / "index.html").read_text(encoding="utf-8")
    assert page.index('id="story"') < page.index('id="wall"') < page.index('id="chapter-1"')
    assert all(step.title in page and f"explorer.html#{step.place}" in page for step in STEPS)


def test_every_link_and_picture_is_there() -> None:
    for page in (GALLERY / "index.html", *GALLERY.glob("results/*.html"), *GALLERY.glob("units/*")):
        text = page.read_text(encoding="utf-8")
        for link in set(re.findall(r' (?:href|src)="([^"#:]+)', text)):
            assert (page.parent / link).is_file(), f"{page.name}: {link}"


def test_alexnet_is_named_and_no_folder_of_a_machine_is() -> None:
    models = set()
    for file in GALLERY.glob("results/*/result.json"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"/(tmp|home|root|work)/", text), file
        models.add((json.loads(text)["model"] or {}).get("name"))
    assert {"AlexNet", "alexnet-mini"} <= models
