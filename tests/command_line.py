"""Run `featviz WORDS` within a test."""

from __future__ import annotations

import pytest

from featviz.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `featviz WORDS`."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    printed = capsys.readouterr()
    code = left.value.code
    assert code is None or isinstance(code, int)
    return code or 0, printed.out, printed.err
