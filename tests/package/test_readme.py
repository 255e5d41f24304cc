"""The README's Python runs as written; links and paths of the documents exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.slow
def test_the_example_makes_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    text = code[1]
    for long, short in (("steps=128", "steps=16"), ('"teapot"]', '"teapot"], steps=16')):
        assert text.count(long) == 1
        text = text.replace(long, short)
    names: dict[str, Any] = {}
    exec(compile(text, "README.md", "exec"), names)  # the test is that this text runs
    assert (tmp_path / "run" / "maximize-conv5" / "result.json").is_file()
    assert (tmp_path / "run" / "gallery" / "index.html").is_file()
    assert (tmp_path / "fish.png").stat().st_size > 10_000
    assert names["result"].images.shape[:2] == (2, 3)


@pytest.mark.long
@pytest.mark.parametrize("page", ["activations.md", "from-python.md"])
def test_the_blocks_of_a_guide_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 3
    exec(compile("\n".join(blocks), page, "exec"), {})  # the test is that this text runs


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [t.partition("#")[0] for t in re.findall(r"\]\(([^)#\s]+)", text)]
    made_by_the_site = re.compile(r"^reference/(api|commands)/")
    missing = [
        t
        for t in targets
        if "://" not in t
        and not made_by_the_site.match(t)
        and not ((ROOT / page).parent / t).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"])
def test_every_path_that_is_named_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:featviz|tests|docs|recipes|benchmarks)/[\w./-]*)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_documented_command_line_has_known_options(page: str) -> None:
    from typer.main import get_command

    from featviz.cli.main import app

    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    for name, options in re.findall(
        r"^ *(?:.*[`|&] ?)?featviz ([a-z-]+)\b([^`\n]*)", text, re.MULTILINE
    ):
        if name not in commands:
            continue
        known = {option for parameter in commands[name].params for option in parameter.opts}
        known |= {option for p in commands[name].params for option in p.secondary_opts}
        assert set(re.findall(r"(?<!\S)--[\w-]+", options)) <= known | {"--help"}, f"featviz {name}"
