"""A file of weights as tensors by name, whatever it is packed in. No code in it is ever run.

Read: safetensors, torch files (`weights_only=True`), npz. Dictionaries within dictionaries become
one name: the tensor "conv1.weight" in the entry "state_dict" is "state_dict.conv1.weight". Other
files are refused with what they are.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import pickletools
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featviz.errors import UserError


@dataclass(frozen=True)
class WeightsFile:
    """The content of a file of weights."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    """strings stored beside the tensors (safetensors only)"""
    versions: dict[str, int] = field(default_factory=dict)
    """torch's version of each module, by its path in the file (torch files only)"""

    def part(self, name: str) -> WeightsFile:
        """What lies under a name: "ema" keeps "ema.conv1.weight" as "conv1.weight"."""
        start = f"{name}."
        return WeightsFile(
            {k.removeprefix(start): t for k, t in self.tensors.items() if k.startswith(start)},
            self.metadata,
            {
                f"{k}.".removeprefix(start).removesuffix("."): v
                for k, v in self.versions.items()
                if f"{k}.".startswith(start)
            },
        )


_HEAD = 1024  # bytes by which a file is recognized
_PICKLE = 1 << 26  # bytes of an old torch file that are searched for classes
_ERRORS = (
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, AssertionError, ImportError, MemoryError, pickle.PickleError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)
"""What torch, pickle and zipfile raise for damaged files."""

_ARCHIVE = "archive; unpack it and give the file of weights inside"
_OTHER = "; featviz reads PyTorch weights: save a state_dict, best as safetensors"
_MAGIC = (
    (0, b"version https://git-lfs", "a git-lfs pointer, not the file itself; run git lfs pull"),
    (0, b"\x89HDF\r\n", "an HDF5 file (Keras, MATLAB)" + _OTHER),
    (0, b"\x93NUMPY", "one NumPy array without a name; save all by name with numpy.savez"),
    (4, b"TFL3", "a TensorFlow Lite model" + _OTHER),
    (0, b"GGUF", "a GGUF file" + _OTHER),
    (0, b"\x1f\x8b", "a gzip " + _ARCHIVE),
    (0, b"BZh", "a bzip2 " + _ARCHIVE),
    (0, b"\xfd7zXZ", "an xz " + _ARCHIVE),
    (0, b"\x28\xb5\x2f\xfd", "a zstd " + _ARCHIVE),
    (0, b"7z\xbc\xaf", "a 7z " + _ARCHIVE),
    (0, b"Rar!", "a rar " + _ARCHIVE),
    (257, b"ustar", "a tar " + _ARCHIVE),
    (0, b"\x89PNG", "a PNG picture, not weights"),
    (0, b"\xff\xd8\xff", "a JPEG picture, not weights"),
    (0, b"GIF8", "a GIF picture, not weights"),
    (0, b"%PDF", "a PDF document, not weights"),
    (0, b"\x08\x01\x12", "a TensorFlow model" + _OTHER),
)
"""(offset, bytes, what it is) of files that are mistaken for weights."""


def read_weights(path: str | Path) -> WeightsFile:
    """The tensors of a file, by name. No code in it is ever run.

    Raises:
        UserError: if it is absent, cut short, damaged, of no known format, or a pickle that needs
            code.
    """
    path = Path(path)
    head = _head(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return _read_safetensors(path)
    if head[:4] == b"PK\x03\x04":
        return _read_zip(path)
    if (other := _other_format(head, path)) is not None:
        raise UserError(f"{path} is {other}")
    return _read_torch(path)


def _head(path: Path) -> bytes:
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise UserError(f"{path} is a folder; give the file of weights in it")
        if not stat.S_ISREG(kind):
            raise UserError(f"{path} is no ordinary file; give a .safetensors or a torch file")
        with path.open("rb") as file:
            return file.read(_HEAD)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; --weights takes a .safetensors or a torch file"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({plain(error)})") from None


def _other_format(head: bytes, path: Path) -> str | None:
    """What a file is that no reader takes; None where it may be a torch file."""
    if not head.strip(b"\0"):
        return "empty or cut short; get it again"
    for offset, magic, what in _MAGIC:
        if head[offset:].startswith(magic):
            return what
    if head[:1] == b"\x08" and head[2:3] in {b"\x12", b"\x1a", b"\x3a"}:
        return "an ONNX model" + _OTHER
    if (text := _text_format(head)) is not None:
        return text
    if path.suffix == ".safetensors":
        return "damaged, cut short or no safetensors file; get it again"
    return None if head[:1] == b"\x80" else "of no known format, or damaged; get it again"


def _text_format(head: bytes) -> str | None:
    text = head.decode("utf-8", errors="ignore").lstrip("\ufeff \t\r\n")
    if not all(c.isprintable() or c.isspace() for c in text):
        return None
    if text.startswith("<"):
        return "a web page or another XML text, not the file itself; download it again"
    if text[:1] in {"{", "["}:
        return "JSON text, not weights; give the file of weights"
    return "a text, not weights, or is cut short; give a .safetensors or a torch file"


def _read_safetensors(path: Path) -> WeightsFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, *_ERRORS) as error:
        raise UserError(
            f"{path} is damaged, cut short or no safetensors file ({plain(error)}); get it again"
        ) from None
    return WeightsFile(tensors, metadata)


def _read_zip(path: Path) -> WeightsFile:
    """A torch file, or an npz: both are zip archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            program = next((n for n in names if n.endswith(("/constants.pkl", ".py"))), None)
            is_torch = any(n.endswith("/data.pkl") or n == "data.pkl" for n in names)
            is_npz = bool(names) and all(n.endswith(".npy") for n in names)
            if is_npz or (is_torch and program is None):
                _check_entries(archive, path)
    except _ERRORS as error:
        raise UserError(f"{path} is damaged or cut short ({plain(error)}); get it again") from None
    if is_npz:
        return _read_npz(path)
    if program is not None:
        raise UserError(
            f"{path} is a TorchScript program, not weights; save the state_dict of "
            "torch.jit.load(FILE), best as safetensors"
        )
    if not is_torch:
        shown = plain(names[0]) if names else "nothing"
        raise UserError(f"{path} is a zip archive ({shown} ...); unpack it and give the weights")
    return _read_torch(path)


def _check_entries(archive: zipfile.ZipFile, path: Path) -> None:
    """What torch and numpy do not: count the entries, read each, and compare its checksum."""
    entries = archive.infolist()
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _HEAD))
        _, _, end = file.read().rpartition(b"PK\x05\x06")
    (stated,) = struct.unpack("<H", end[6:8])
    if stated not in {len(entries), 0xFFFF}:
        raise zipfile.BadZipFile(f"{len(entries)} of {stated} entries")
    for entry in entries:
        if entry.is_dir() or entry.external_attr & 0x10:
            raise zipfile.BadZipFile(f"{entry.filename} is a folder")
        if entry.CRC:  # torch writes 0 where it is told to compute none
            with archive.open(entry) as content:
                while content.read(1 << 24):
                    pass


def _read_npz(path: Path) -> WeightsFile:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return WeightsFile({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    except _ERRORS as error:
        raise UserError(
            f"{path} holds arrays that are no plain numbers, or is damaged ({plain(error)})"
        ) from None


def _read_torch(path: Path) -> WeightsFile:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles; errors are reported below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _ERRORS as error:
        needed = _needed_code(path)
        if needed:
            raise UserError(
                f"{path} is refused: reading it could run code that it holds "
                f"({plain(', '.join(needed))}), and nothing was run; if you trust it, read it with "
                "torch.load(FILE, weights_only=False) and save its state_dict alone"
            ) from None
        raise UserError(
            f"{path} is no file of weights, is damaged or cut short ({plain(error)}); get it again"
        ) from None
    found = from_content(content)
    if not found.tensors:
        raise UserError(f"{path} holds no tensors by name; save a model's state_dict()")
    return found


def _needed_code(path: Path) -> list[str]:
    """The classes and functions that a pickle asks for beyond those of tensors."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next((n for n in archive.namelist() if n.endswith("data.pkl")), "")
                content = archive.read(name)
        else:
            with path.open("rb") as file:
                content = file.read(_PICKLE)
        found = _globals(content)
    except _ERRORS:
        return []
    return [
        name
        for name in found
        if not name.startswith(("torch._utils.", "collections.OrderedDict"))
        and not (name.startswith("torch.") and name.endswith("Storage"))
    ]


def _globals(content: bytes) -> list[str]:
    """The names of all that pickles ask for, read from their instructions without running them."""
    found: dict[str, None] = {}
    strings: list[Any] = [None]  # those pushed so far, of which STACK_GLOBAL takes the last two
    memo: dict[Any, Any] = {}
    for code, value in _instructions(content):
        if code in {"GLOBAL", "INST"}:
            found[str(value).replace(" ", ".")] = None
        elif code == "STACK_GLOBAL":
            found[".".join(map(str, strings[-2:]))] = None
        elif code == "MEMOIZE":
            memo[len(memo)] = strings[-1]
        elif code.endswith("PUT"):
            memo[value] = strings[-1]
        elif code.endswith("GET"):
            strings.append(memo.get(value))
        elif "UNICODE" in code or "STRING" in code:
            strings.append(value)
    return list(found)


def _instructions(content: bytes) -> Iterator[tuple[str, Any]]:
    """Of one pickle or several behind each other, up to where they are cut short."""
    stream = io.BytesIO(content)
    with contextlib.suppress(*_ERRORS):
        while stream.tell() < len(content):
            for code, value, _ in pickletools.genops(stream):
                yield code.name, value


def from_content(content: Any) -> WeightsFile:
    """All tensors in nested dictionaries by their whole names, and the versions of modules."""
    tensors: dict[str, Tensor] = {}
    versions: dict[str, int] = {}
    seen: set[int] = set()  # a dictionary may hold itself
    left: list[tuple[str, Any]] = [("", content)]
    while left:
        start, value = left.pop()
        if isinstance(value, Tensor) and start:
            tensors[start] = value
        elif isinstance(value, Mapping) and id(value) not in seen:
            seen.add(id(value))
            entries = [(_joined(start, str(k)), v) for k, v in value.items()]
            left.extend(reversed(entries))
            of_modules = getattr(value, "_metadata", None)
            for path, facts in of_modules.items() if isinstance(of_modules, Mapping) else ():
                version = facts.get("version") if isinstance(facts, Mapping) else None
                if isinstance(version, int):
                    versions[_joined(start, str(path))] = version
    return WeightsFile(tensors, {}, versions)


def _joined(start: str, name: str) -> str:
    return f"{start}.{name}" if start and name else start or name


def plain(text: object) -> str:
    """Another library's message or name as one short line without control characters."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= 120 else line[:117] + "..."


def write_tensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or as it was before; the same bytes for the same content.

    Raises:
        UserError: The file cannot be written.
    """
    from safetensors.torch import save

    path = Path(path)
    facts = dict(metadata) if metadata else None
    # Copies: the format has no tensors that share memory.
    apart = {k: t.detach().clone(memory_format=torch.contiguous_format) for k, t in tensors.items()}
    content = _in_order(save(apart, facts))
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error}); choose another place") from None


def _in_order(content: bytes) -> bytes:
    """The bytes of a safetensors file with sorted metadata; the library's order is random.

    The file is 8 bytes with the header's length, the header (JSON), and the tensors.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
