"""Files of weights: what they hold, what else they may be, and damage of any kind."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from featviz.errors import UserError
from featviz.models.weights_file import read_weights, write_tensors

TENSORS = {
    "features.0.weight": torch.arange(12.0).reshape(3, 4),
    "features.0.bias": torch.tensor([0.5, -2.0, 3.0]),
    "count": torch.tensor(7),
}


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"content")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO(b""))
    return buffer.getvalue()


def one_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


OTHERS = {
    "lfs.safetensors": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
        "a git-lfs pointer, not the file itself; run git lfs pull",
    ),
    "page.pth": (b"<!DOCTYPE html><html>404</html>", "a web page"),
    "page2.safetensors": (b"\n <html>", "a web page"),
    "empty.pth": (b"", "empty or cut short"),
    "zeros.pth": (b"\0" * 400, "empty or cut short"),
    "w.pth.gz": (gzip.compress(b"weights"), "a gzip archive; unpack it"),
    "w.pth.tar": (tarred(), "a tar archive; unpack it"),
    "w.zip": (zipped("model/weights.pth"), r"a zip archive \(model/weights.pth ...\); unpack it"),
    "net.onnx": (b"\x08\x07\x12\x07pytorch\x1a\x032.1", "an ONNX model"),
    "saved_model.pb": (b"\x08\x01\x12\xff\x03", "a TensorFlow model"),
    "net.tflite": (b"\x1c\0\0\0TFL3\x14\0\x20\0", "a TensorFlow Lite model"),
    "net.h5": (b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file"),
    "one.npy": (one_array(), "one NumPy array without a name"),
    "index.json": (b'{"weight_map": {}}', "JSON text, not weights"),
    "notes.txt": ("größe: 3\n".encode(), "a text, not weights"),
    "cat.png": (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    "noise.bin": (bytes(range(1, 200)), "of no known format, or damaged"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_kinds_are_named(name: str, tmp_path: Path) -> None:
    content, what = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is {what}"):
        read_weights(tmp_path / name)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="is a folder; give the file of weights in it"):
        read_weights(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_weights("nul\0.pth")
    with pytest.raises(UserError, match="cannot be read"):
        read_weights("x" * 300)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is no ordinary file"):
        read_weights(tmp_path / "pipe")


def test_a_program_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:  # what torch.jit.save writes
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"script/{name}", b"")
    with pytest.raises(UserError, match="is a TorchScript program, not weights"):
        read_weights(tmp_path / "script.pt")


def save_npz(path: Path) -> None:
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in TENSORS.items()}
    np.savez(path, **arrays)


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return as_bytes(one) == as_bytes(two)


def as_bytes(tensors: dict[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {k: (t.dtype, tuple(t.shape), t.numpy().tobytes()) for k, t in tensors.items()}


def test_the_same_tensors_come_from_every_format(tmp_path: Path) -> None:
    write_tensors(TENSORS, tmp_path / "w.safetensors", {"classes": "[]"})
    torch.save(TENSORS, tmp_path / "w.pth")
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_npz(tmp_path / "w.npz")
    for name in ("w.safetensors", "w.pth", "old.pth", "w.npz"):
        assert equal(read_weights(tmp_path / name).tensors, TENSORS), name
    assert read_weights(tmp_path / "w.safetensors").metadata == {"classes": "[]"}


def test_entries_within_entries_have_one_name(tmp_path: Path) -> None:
    content: dict[Any, Any] = {"epoch": 3, "state": {"net": TENSORS}, 4: {"x": torch.ones(1)}}
    content["again"] = content
    torch.save(content, tmp_path / "w.pth")
    file = read_weights(tmp_path / "w.pth")
    assert set(file.tensors) == {f"state.net.{k}" for k in TENSORS} | {"4.x"}
    assert equal(file.part("state.net").tensors, TENSORS)


def test_versions_of_modules_are_kept(tmp_path: Path) -> None:
    net = nn.Sequential(nn.BatchNorm2d(2))
    torch.save({"model": net.state_dict()}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").versions == {"model": 1, "model.0": 2}


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (argparse.Namespace(lr=0.1), r"argparse\.Namespace"),
        (np.float64(3), r"numpy\._core\.multiarray\.scalar"),
        (Path("x"), r"pathlib\.PosixPath"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_classes_beside_the_tensors_are_named(
    extra: Any, named: str, zipped: bool, tmp_path: Path
) -> None:
    content = {"args": extra, "state_dict": TENSORS}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=named) as caught:
        read_weights(tmp_path / "w.pth")
    text = str(caught.value)
    assert text.isprintable()
    assert "nothing was run" in text
    assert "save its state_dict alone" in text


def test_omegaconf_is_named(tmp_path: Path) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    torch.save({"cfg": omegaconf.OmegaConf.create({"lr": 1}), "m": TENSORS}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"omegaconf\.dictconfig\.DictConfig"):
        read_weights(tmp_path / "w.pth")


def test_a_changed_byte_in_a_torch_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(TENSORS, path)
    content = bytearray(path.read_bytes())
    content[bytes(content).index(TENSORS["features.0.weight"].numpy().tobytes()) + 6] ^= 1
    path.write_bytes(content)
    assert not equal(torch.load(path, weights_only=True), TENSORS)  # torch itself does not notice
    with pytest.raises(UserError, match="is damaged or cut short"):
        read_weights(path)


def test_metadata_are_written_in_one_order(tmp_path: Path) -> None:
    facts = {name: name * 2 for name in "hgfedcba"}
    written = set()
    for _ in range(8):
        write_tensors(TENSORS, tmp_path / "w.safetensors", facts)
        written.add((tmp_path / "w.safetensors").read_bytes())
    assert len(written) == 1
    assert read_weights(tmp_path / "w.safetensors").metadata == facts


def parsed(content: bytes) -> dict[str, tuple[Any, ...]]:
    """A safetensors file read by the description of the format alone: type, shape, bytes."""
    end = 8 + int.from_bytes(content[:8], "little")
    kinds = {"F": "float", "I": "int", "U": "uint"}
    return {
        name: (
            getattr(torch, kinds[entry["dtype"][0]] + entry["dtype"][1:]),
            tuple(entry["shape"]),
            content[end + entry["data_offsets"][0] : end + entry["data_offsets"][1]],
        )
        for name, entry in json.loads(content[8:end]).items()
        if name != "__metadata__"
    }


def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    save_file(TENSORS, folder / "safetensors")
    torch.save({"model": TENSORS}, folder / "pth")
    torch.save(TENSORS, folder / "old", _use_new_zipfile_serialization=False)
    save_npz(folder / "npz.npz")
    (folder / "npz.npz").rename(folder / "npz")
    (folder / "pickle").write_bytes(pickle.dumps({"a": np.zeros(3), "b": [1, {}]}))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4
)


def changed(content: bytes, changes: list[tuple[float, int]], end: float) -> bytes:
    damaged = bytearray(content)
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    return bytes(damaged[: int(end * len(damaged)) + 1])


def read_or_refused(path: Path) -> dict[str, Tensor] | None:
    try:
        return read_weights(path).tensors
    except UserError as error:
        said = str(error)
    assert said.isprintable()
    return None


@pytest.mark.parametrize("kind", ["safetensors", "pth", "old", "npz", "pickle"])
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=CHANGES, end=st.just(1.0) | st.floats(0, 1))
def test_damage_is_an_error_or_changes_nothing(
    kind: str,
    changes: list[tuple[float, int]],
    end: float,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    whole = _WHOLE or _WHOLE.update(contents(tmp_path_factory)) or _WHOLE
    content = changed(whole[kind], changes, end)
    (tmp_path / "w").write_bytes(content)
    tensors = read_or_refused(tmp_path / "w")
    if tensors is None:
        return
    if kind in {"pth", "npz"}:  # these have checksums
        start = "model." if kind == "pth" else ""
        assert equal(tensors, {start + k: t for k, t in TENSORS.items()})
    if kind == "safetensors":  # this has none: what is read is what the file says
        assert as_bytes(tensors) == parsed(content)


_WHOLE: dict[str, bytes] = {}


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    head=st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04", b"\x08\0\0\0\0\0\0\0{"]),
    content=st.binary(max_size=200),
)
def test_any_bytes_are_weights_or_an_error(head: bytes, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(head + content)
    read_or_refused(tmp_path / "w")
