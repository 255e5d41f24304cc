"""Help and errors in arguments come at once: neither imports torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import featviz


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """`python WORDS` in a fresh interpreter."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


def imported(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running code."""
    done = run("-c", f"{code}\nimport sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_featviz_imports_no_torch() -> None:
    assert "torch" not in imported("import featviz")


def test_the_test_above_can_fail() -> None:
    assert "torch" in imported("import featviz; featviz.load")


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "matplotlib", "PIL", "sklearn", "scipy", "captum", "faiss"}
    assert not heavy & imported("import featviz.cli.main")


@pytest.mark.parametrize("words", [["--help"], ["maximize", "--help"], ["--version"]])
def test_help_loads_no_torch(words: str) -> None:
    done = run("-X", "importtime", "-m", "featviz", *words)
    assert done.returncode == 0
    assert "| torch" not in done.stderr


def test_version_is_the_package_version() -> None:
    assert run("-m", "featviz", "--version").stdout.split() == ["featviz", featviz.__version__]


def test_public_names_are_sorted_and_all_there() -> None:
    assert featviz.__all__ == sorted(featviz.__all__)
    for name in featviz.__all__:
        assert getattr(featviz, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'maximise'"):
        featviz.maximise  # noqa: B018
