"""Seeds of more than 32 bits, which some libraries do not take."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_values import CHEAP
from forked import run_forked

from featviz.types import seed_32


@pytest.mark.long
@pytest.mark.parametrize("command", ["maximize", "attribute", "embed", "attack", "corrupt"])
def test_a_seed_of_more_than_32_bits_is_taken(command: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    words = [command, *CHEAP[command], f"--seed={2**40}", "--out=out", "-q"]
    code, _, err = run_forked(words, folder)
    assert code == 0, err


def test_small_seeds_are_kept_and_others_differ() -> None:
    assert [seed_32(seed) for seed in (0, 7, 2**32 - 1)] == [0, 7, 2**32 - 1]
    large = [seed_32(2**32 + i) for i in range(100)]
    assert len(set(large)) == 100
    assert max(large) < 2**32
