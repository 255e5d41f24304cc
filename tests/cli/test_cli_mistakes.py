"""A user's mistake gets one clear line and exit code 2, and nothing half-written stays."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import run
from PIL import Image

from featviz.cli.main import main

Refused = Callable[..., str]
"""runs a command that must be refused and returns its one line"""


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Refused:
    """Run a command that must be refused; return its one line."""
    monkeypatch.chdir(tmp_path)

    def check(*words: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        code, out, err = run(capsys, *words)
        assert code == 2, err
        assert out == ""
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("featviz: ")
        assert sorted(tmp_path.rglob("*")) == before, "something half-written stayed"
        return lines[0]

    return check


def test_an_unknown_model_has_the_nearest_names(refused: Refused) -> None:
    assert "did you mean alexnet" in refused("layers", "--model", "alxnet")


def test_an_unknown_layer_has_the_nearest_names(refused: Refused) -> None:
    line = refused("kernels", "--layer", "conv9")
    assert "has no layer 'conv9'" in line
    assert "did you mean conv5" in line


def test_a_unit_out_of_range_names_the_range(refused: Refused) -> None:
    line = refused("maximize", "--layer", "conv1", "--units", "9999")
    assert "unit 9999 is out of range: conv1 has units 0 to" in line


def test_an_unknown_class_has_the_nearest_names(refused: Refused) -> None:
    line = refused("maximize", "--layer", "logits", "--units", "goldfsh")
    assert "did you mean goldfish" in line


def test_weights_of_another_architecture_name_the_mismatches(
    refused: Refused, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"features.0.weight": torch.zeros(8, 3, 5, 5), "what.bias": torch.zeros(2)}, path)
    line = refused("layers", "--model", "alexnet", "--weights", path)
    assert "features.0.weight is 8x3x5x5, not 64x3x11x11" in line
    assert "features.3.weight is missing" in line


def test_every_truncation_of_a_checkpoint_is_refused(refused: Refused, tmp_path: Path) -> None:
    from safetensors.torch import save

    whole = save({"features.0.weight": torch.zeros(64, 3, 11, 11)})
    path = tmp_path / "cut.safetensors"
    for length in (0, 4, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        line = refused("layers", "--model", "alexnet", "--weights", path)
        assert "cut short" in line


def test_a_truncated_torch_file_is_refused(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    assert "cut short" in refused("layers", "--model", "alexnet", "--weights", path)


class _Attack:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    refused: Refused, tmp_path: Path, how: str
) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "ran"
    if how == "torch":
        torch.save({"features.0.weight": _Attack(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"features.0.weight": _Attack(trace)}))
    line = refused("layers", "--model", "alexnet", "--weights", path)
    assert "refused" in line or "no file of weights" in line
    assert not trace.exists()


def test_a_missing_weights_file_is_named(refused: Refused) -> None:
    assert "nowhere.pt: no such file" in refused("layers", "--weights", "nowhere.pt")


def test_class_names_must_be_as_many_as_classes(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("cat\ndog\n")
    assert "2 class names for a model of 200 classes" in refused("layers", "--classes", path)


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "tpu", "banana"])
def test_an_absent_device_is_named(
    refused: Refused, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device in refused("layers", "--device", device)


@pytest.mark.parametrize("eps", ["abc", "-1", "1/0", "nan", "inf", ""])
@pytest.mark.parametrize("command", ["attack", "audit"])
def test_an_impossible_eps_is_named(refused: Refused, eps: str, command: str) -> None:
    assert "eps" in refused(command, f"--eps={eps}")


@pytest.mark.parametrize(
    "command",
    [
        ["maps", "missing.jpg"],
        ["attribute", "missing.jpg"],
        ["attack", "missing.jpg"],
        ["embed", "--data", "missing"],
        ["audit", "--data", "missing"],
        ["eval", "--data", "missing"],
        ["train", "--data", "missing"],
        ["gallery", "missing"],
        ["neighbors", "--store", "missing"],
        ["atlas", "--store", "missing"],
    ],
    ids=lambda words: words[0],
)
def test_a_missing_path_is_named(refused: Refused, command: list[str]) -> None:
    assert "missing" in refused(*command)


def test_an_empty_folder_is_named(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in refused("embed", "--data", tmp_path / "empty")


def test_a_text_file_named_jpg_is_named(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "words.jpg"
    path.write_text("this is not a picture")
    assert "words.jpg is not a picture" in refused("maps", path)


def test_a_truncated_jpeg_is_named(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 80).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:900])
    assert "cut.jpg cannot be decoded" in refused("attribute", path)


def test_a_decompression_bomb_is_named(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    _png_of_size(path, 60_000, 60_000)
    assert "more than 178 million pixels" in refused("maps", path)


def _png_of_size(path: Path, width: int, height: int) -> None:
    """A PNG file that claims a size and holds next to nothing."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_an_existing_result_is_not_replaced_without_a_word(
    refused: Refused, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "layers"
    assert run(capsys, "layers", "--out", out)[0] == 0
    assert "add --overwrite" in refused("layers", "--out", out)


def test_a_folder_that_featviz_did_not_make_is_never_replaced(
    refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear reader")
    line = refused("layers", "--out", tmp_path / "mine", "--overwrite")
    assert "not a result folder" in line


def test_a_place_that_cannot_be_written_is_named(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused("layers", "--out", tmp_path / "file" / "below")


def test_a_full_disk_is_named_and_leaves_nothing(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from featviz import results

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results, "write_json", full)
    assert "no space left on the disk" in refused("layers", "--out", tmp_path / "out")


def test_an_unknown_option_is_one_line_with_the_nearest(refused: Refused) -> None:
    assert "--model" in refused("layers", "--modl", "alexnet")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("explore", "--rounding", "x"), "--rounding is 'x'; it must be one of float16, int8 ("),
        (("classify", "--top", "x"), "--top is 'x'; it must be a whole number, 1 to 10,000 ("),
        (("train", "--lr", "x"), "--lr is 'x'; it must be a number, above 0, at most 100 ("),
        (("atlas", "--icons", "x"), "--icons is 'x'; it must be one of sample, synthetic, both ("),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(
    refused: Refused, words: tuple[str, ...], line: str
) -> None:
    assert refused(*words).startswith(f"featviz: {line}")


def test_an_unknown_command_is_one_line_with_the_nearest(refused: Refused) -> None:
    assert "'layers'" in refused("layrs")


def test_no_command_at_all_is_a_call_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert code == 0
    assert "Usage: featviz" in out
    assert err == ""


def test_ctrl_c_leaves_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from featviz.models import load

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(load, "load", stop)
    code, _, err = run(capsys, "layers")
    assert code == 130
    assert err == "featviz: stopped\n"


def test_ctrl_c_says_what_was_kept_and_sigterm_acts_as_ctrl_c(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from featviz.checkpoints import open_checkpoint
    from featviz.models import load

    def stop(*_: object, **__: object) -> None:
        with open_checkpoint(tmp_path / "p", {}, total=5000, unit="rows") as kept:
            kept.write("one", {}, size=2304)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(load, "load", stop)
    code, _, err = run(capsys, "layers")
    assert code == 130
    assert err == (
        "featviz: stopped; kept 2,304 of 5,000 rows; give the same command again to go on\n"
    )
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_of_ours_is_one_line_and_a_traceback_under_debug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from featviz.models import load

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(load, "load", fail)
    code, _, err = run(capsys, "layers")
    assert code == 1
    assert err == "featviz: RuntimeError: a bug (--debug shows where)\n"
    with pytest.raises(RuntimeError, match="a bug"):
        main(["layers", "--debug"])


def test_an_end_of_file_within_a_command_is_an_error_and_no_stop(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from featviz.models import load

    def fail(*_: object, **__: object) -> None:
        raise EOFError("no data left in file")

    monkeypatch.setattr(load, "load", fail)
    code, _, err = run(capsys, "layers")
    assert code == 1
    assert err.startswith("featviz: RuntimeError: EOFError: no data left in file")
