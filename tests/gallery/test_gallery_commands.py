"""The command lines on result pages, against the commands themselves."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from gallery_run import write_result

from featviz.cli.main import app
from featviz.gallery.commands import RECIPES, Command, command_line
from featviz.gallery.reader import read_entry
from featviz.gallery.kinds import KINDS

WITHOUT_COMMAND = {"growth"}


def command_of(kind: str) -> Any:
    return typer.main.get_command(app).commands[RECIPES[kind].command.split()[0]]


def told(folder: Path, kind: str, **fields: object) -> Command:
    told = command_line(read_entry(write_result(folder, kind=kind, **fields), "r"))
    assert told is not None
    return told


def test_every_kind_has_its_command():
    assert set(RECIPES) == set(KINDS) - WITHOUT_COMMAND


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_the_commands_take_the_options_of_the_table(kind: str):
    recipe = RECIPES[kind]
    command = command_of(kind)
    known = {name for parameter in command.params for name in parameter.opts}
    wanted = {option for option in recipe.options.values() if option} | {"--model"}
    wanted |= {"--data"} if recipe.data else set()
    wanted |= {"--seed"} if recipe.seed else set()
    assert wanted <= known
    if "" in recipe.options.values():
        assert any(p.param_type_name == "argument" for p in command.params)


def test_a_line_gives_back_its_parameters(tmp_path: Path):
    parameters = {
        "layer": "conv5", "units": ["conv5:3", "conv5:4", "conv5:5"], "size": 128, "steps": 64,
        "precision": "float32", "rate": 0.1,
    }
    line = told(
        tmp_path / "r", "maximize", parameters=parameters, seed=7,
        model={"name": "alexnet", "sha256": "ab"}, data={"name": "my pictures", "count": 3},
    )
    words = shlex.split(line.line)
    assert words[:2] == ["featviz", "maximize"]
    context = command_of("maximize").make_context("maximize", words[2:], resilient_parsing=True)
    found = {name: context.params[name] for name in ("layer", "units", "size", "steps", "seed")}
    assert found == {"layer": "conv5", "units": "3-5", "size": 128, "steps": 64, "seed": 7}
    assert str(context.params["data"]) == "my pictures"
    assert context.params["weights"] == "WEIGHTS"
    assert "rate" in line.note
    assert "steps" not in line.note


def test_the_bundled_model_and_pictures_need_no_option(tmp_path: Path):
    line = told(
        tmp_path / "r", "embed", parameters={"layer": "relu7"},
        model={"name": "alexnet-mini"}, data={"name": "featviz-samples", "count": 9},
    )
    assert line == Command("featviz embed --layer relu7", "")


def test_the_name_of_the_bundled_pictures_is_the_one_that_is_left_out():
    from featviz.gallery.commands import BUNDLED_MODEL, BUNDLED_PICTURES
    from featviz.models.load import bundled
    from featviz.samples import sample_pictures

    assert sample_pictures().name == BUNDLED_PICTURES
    assert bundled(BUNDLED_MODEL).is_file()


@pytest.mark.parametrize(
    ("eps", "words"),
    [
        ({"linf": [0.004, 0.008], "l2": [0.5]}, "--eps 0.004,0.008 --eps-l2 0.5"),
        ({"l2": [0.25, 0.5]}, "--eps 0.25,0.5"),
    ],
)
def test_the_audits_grids_are_written_as_its_options_take_them(
    tmp_path: Path, eps: dict[str, list[float]], words: str
):
    line = told(tmp_path / "r", "audit", parameters={"norms": list(eps), "eps": eps}).line
    assert line == f"featviz audit --norm {','.join(eps)} {words}"


def test_hostile_words_stay_one_word_of_the_shell(tmp_path: Path):
    line = told(
        tmp_path / "r", "maps", parameters={"picture": "a; rm -rf $HOME.png", "layer": "`id`"}
    )
    assert shlex.split(line.line) == [
        "featviz", "maps", "a; rm -rf $HOME.png", "--layer", "`id`",
    ]


@pytest.mark.parametrize("picture", ["tensor (3, 64, 64)", "school bus/15"])
def test_a_picture_that_was_no_file_has_no_line(tmp_path: Path, picture: str):
    folder = write_result(tmp_path / "r", kind="maps", parameters={"picture": picture})
    assert command_line(read_entry(folder, "r")) is None


def test_kinds_that_no_command_makes_have_no_line(tmp_path: Path):
    assert command_line(read_entry(write_result(tmp_path / "r", kind="sonograms"), "r")) is None
