"""Wrong values of every option of every command, made from the commands' own description."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import fields, is_dataclass
from itertools import chain
from pathlib import Path
from typing import get_type_hints

import pytest
from command_line import run
from command_values import (
    CHEAP,
    Option,
    all_options,
    few_wrong_numbers,
    make_files,
    wrong_numbers,
    wrong_texts,
)
from forked import run_forked

from featviz.cli.main import COMMANDS
from featviz.cli.options import describe_options

OPTIONS = all_options()
NUMBERS = [option for option in OPTIONS if option.number]
TEXTS = [option for option in OPTIONS if not option.number]
EACH_TEXT = {option.name: option for option in reversed(TEXTS) if not option.choices}
"""one command for each option that several have"""


def _name(option: Option) -> str:
    return f"{option.command} {option.spelling}"


def _refusal(code: int | None, out: str, err: str) -> str:
    """What is wrong with a refusal, or ""."""
    lines = err.splitlines()
    if code != 2:
        return f"exit code {code}: {err[-300:]}"
    if out or len(lines) != 1 or not lines[0].startswith("featviz: "):
        return f"not one line: {out}{err}"
    return ""


def test_every_number_has_bounds_and_the_help_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(NUMBERS) > 50
    helps = {
        command: " ".join(run(capsys, command, "--help")[1].split())
        for command in {option.command for option in NUMBERS}
    }
    for option in NUMBERS:
        assert option.limits is not None, _name(option)
        assert f"({option.limits})" in helps[option.command], _name(option)


def test_no_option_of_a_command_hides_another() -> None:
    for module in chain(*COMMANDS.values()):
        function = getattr(module, module.__name__.rpartition(".")[2])
        names = Counter(
            name
            for parameter, kind in get_type_hints(function).items()
            for name in (
                [field.name for field in fields(kind)] if is_dataclass(kind) else [parameter]
            )
        )
        spellings = Counter(one.spelling for one in describe_options(function).values())
        assert max((names | spellings).values()) == 1, (module.__name__, names, spellings)


def test_every_text_and_path_has_a_kind_of_wrong_values() -> None:
    assert {option.command for option in OPTIONS} <= set(CHEAP)
    for option in TEXTS:
        assert option.choices or option.content, _name(option)


@pytest.mark.parametrize("option", NUMBERS, ids=_name)
def test_numbers_that_are_none_or_out_of_bounds_are_refused(
    option: Option,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in few_wrong_numbers(option):
        wrong = _refusal(*run(capsys, *option.words(value)))
        assert not wrong, (value, wrong)
    assert not list(tmp_path.iterdir())


def test_each_kind_of_number_refuses_whatever_is_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for option in {option.kinds: option for option in NUMBERS}.values():
        for value in wrong_numbers(option):
            wrong = _refusal(*run(capsys, *option.words(value)))
            assert not wrong, (option, value, wrong)


@pytest.mark.parametrize("option", [option for option in TEXTS if option.choices], ids=_name)
def test_words_that_are_no_choice_are_refused(
    option: Option,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in wrong_texts(option):
        wrong = _refusal(*run(capsys, *option.words(value)))
        assert not wrong, (value, wrong)


def _contents(folder: Path) -> list[bytes]:
    return sorted(
        os.path.join(place, name)
        for place, folders, files in os.walk(os.fsencode(folder))
        for name in [*folders, *files]
    )


@pytest.mark.long
@pytest.mark.parametrize("option", EACH_TEXT.values(), ids=_name)
def test_texts_and_paths_that_are_wrong_are_refused(option: Option, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    make_files(folder)
    before = _contents(folder)
    for value in wrong_texts(option):
        wrong = _refusal(*run_forked(option.words(value), folder))
        assert not wrong, (value, wrong)
        assert _contents(folder) == before, value
