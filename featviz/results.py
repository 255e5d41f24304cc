"""Results and the folders they are saved in.

Every analysis returns a frozen dataclass that inherits `Result`; `save(folder)` writes its
pictures, plots, arrays and tables with one `result.json` (the contract of docs/result-folder.md).
A folder is made beside its place and renamed, so a folder that exists is whole.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import html
import importlib.util
import io
import json
import math
import os
import platform
import re
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from featviz import folders, schema, svg
from featviz.errors import UserError
from featviz.numbers import Number as Number  # noqa: PLC0414 - results.Number is its public name
from featviz.numbers import show_interval as show_interval  # noqa: PLC0414
from featviz.numbers import show_number as show_number  # noqa: PLC0414
from featviz.requirements import Check, check_requirements

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor

    from featviz.data.datasets import Pictures
    from featviz.models.model import Model

SCHEMA = 1
_LONGEST = 100  # characters of a file's stem that is made from a name
_COMPRESSED = {".jpg": "jpeg", ".webp": "webp"}
JPEG_DPI = 108  # of sheets of pictures; plots have 144


_COMMAND: ContextVar[str | None] = ContextVar("command", default=None)


@contextlib.contextmanager
def recording(command: str | None) -> Iterator[None]:
    """Results made within the block record this command line as theirs."""
    token = _COMMAND.set(command)
    try:
        yield
    finally:
        _COMMAND.reset(token)


@dataclass(frozen=True)
class Origin:
    """What a result was made from: enough to make it again."""

    model: Mapping[str, Any] | None
    """name, sha256, input_size, classes, preprocessing"""
    data: Mapping[str, Any] | None
    """name, count, sha256 of the list"""
    parameters: Mapping[str, Any]
    """every argument, resolved"""
    seed: int | None
    device: str
    seconds: float
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    command: str | None = field(default_factory=_COMMAND.get)
    """the command line as given; None where Python made the result"""
    class_names: tuple[str, ...] = ()
    """of the model, for the classes that figures name"""


def origin(
    model: Model | None,
    *,
    parameters: Mapping[str, Any],
    started: float,
    data: Pictures | None = None,
    seed: int | None = None,
    base: Origin | None = None,
) -> Origin:
    """The origin of a result.

    Args:
        model: What was analyzed.
        parameters: Every argument, resolved.
        started: `time.perf_counter()` of its beginning.
        data: The pictures.
        seed: Of all that is random.
        base: The origin of the store that was analyzed, whose model and data are recorded.
    """
    known = {"name": data.name, "count": len(data), "sha256": data.sha256} if data else None
    return Origin(
        model=base.model if base else model.record() if model is not None else None,
        data=base.data if base else known,
        parameters=dict(parameters),
        seed=seed,
        device=_device_name(model),
        class_names=model.classes if model is not None else (),
        seconds=round(time.perf_counter() - started, 3),
    )


def _device_name(model: Model | None) -> str:
    if model is not None and model.device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(model.device)
    return f"cpu ({platform.machine()})"


@dataclass(frozen=True)
class Table:
    """Rows of a result: written as CSV, and given as a DataFrame."""

    file: str
    """its name in the folder: "scores.csv" """
    columns: Sequence[str]
    rows: Iterable[Sequence[Any]]
    """numbers as numbers; None or "" where there is no value"""
    caption: str
    parquet: bool = False
    """write it as Parquet, too, where pyarrow is installed: for tables of many rows"""
    more: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """columns that only Parquet and DataFrames have, such as lists"""

    def write_csv(self, path: Path) -> None:
        """The rows with a heading line."""
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as out:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(self.rows)

    def by_column(self) -> dict[str, list[Any]]:
        """The values of each column; None where there is no value."""
        rows = list(self.rows)
        shown = {
            name: _with_missing([row[i] for row in rows]) for i, name in enumerate(self.columns)
        }
        return shown | {name: _utf8(list(values)) for name, values in self.more.items()}

    def to_pandas(self) -> pandas.DataFrame:
        """A DataFrame. Raises UserError where pandas is not installed."""
        return _pandas().DataFrame(self.by_column())

    def write_parquet(self, path: Path) -> None:
        """The rows as a Parquet file (needs pyarrow)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with path.open("wb") as out:  # pyarrow takes no path that is not UTF-8
            pq.write_table(pa.table(self.by_column()), out)


def _with_missing(values: list[Any]) -> list[Any]:
    """Plain values of one kind; "" among numbers becomes None."""
    known = [value.item() if hasattr(value, "item") else value for value in values]
    if all(isinstance(value, int | float | None) for value in known if value != ""):
        known = [None if value == "" else value for value in known]
    return list(_utf8(known))


def _utf8(value: Any) -> Any:
    """Texts as a CSV file holds them: bytes of a name that are not UTF-8 are escapes."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return [_utf8(part) for part in value] if isinstance(value, list | tuple) else value


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise UserError("pandas is not installed: pip install 'featviz[data]'") from None
    return pandas


def significant(value: float | Tensor, digits: int = 6) -> float | None:
    """A number rounded to so many significant digits, for tables; None where it is not finite."""
    number = float(value)
    return float(f"{number:.{digits}g}") if math.isfinite(number) else None


@dataclass(frozen=True, kw_only=True)
class Result(ABC):
    """What every analysis returns; subclasses define title, numbers, files and plot."""

    kind: ClassVar[str]
    """the command that makes it: "kernels", "maps" ..."""

    origin: Origin
    warnings: tuple[str, ...] = ()
    """what limits this result, in words, shown with it"""

    @property
    @abstractmethod
    def title(self) -> str:
        """A heading for people: "Kernels of conv1 in alexnet"."""

    @abstractmethod
    def numbers(self) -> dict[str, Number]:
        """The result as numbers, the most important first."""

    @abstractmethod
    def write(self, folder: Folder) -> None:
        """Put figures and arrays into the folder, which has the tables (`save` does the rest)."""

    @abstractmethod
    def plot(self) -> Figure:
        """The result as one matplotlib figure."""

    def tables(self) -> Iterable[Table]:
        """The result's rows, the most important table first; `save` writes them."""
        return ()

    def to_pandas(self, table: str | None = None) -> pandas.DataFrame:
        """A table of the result as a pandas DataFrame, with the columns of its CSV.

        Args:
            table: The name of its file without ".csv"; default: the first. Of a result that has
                none of its own, the tables of that name of all parts, with a column `part`.

        Raises:
            UserError: There is no such table, or pandas is not installed.
        """
        tables = {Path(one.file).stem: one for one in self.tables()}
        if not tables and self.parts:
            found = {name: part.to_pandas(table) for name, part in self.parts.items()}
            whole = _pandas().concat(found, names=["part"]).reset_index("part")
            return whole.reset_index(drop=True)
        if not tables or (table is not None and table not in tables):
            had = f"its tables are {', '.join(tables)}" if tables else "it has none"
            raise UserError(f"{self.title} has no table {table or ''}; {had}")
        return tables[table or next(iter(tables))].to_pandas()

    @property
    def parts(self) -> Mapping[str, Result]:
        """Results within this one, by name: each is written into a folder of its own."""
        return {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.title}>"

    def require(self, *requirements: str) -> tuple[Check, ...]:
        """Compare the numbers with requirements, as "top1.low>=0.5" (see `featviz.requirements`).

        Returns:
            One check a requirement; `check.met` says whether it holds.

        Raises:
            UserError: A requirement that cannot be read, or that names no number of this result.
        """
        return check_requirements(requirements, self.numbers())

    def save(
        self, folder: str | Path, *, overwrite: bool = False, checks: Sequence[Check] = ()
    ) -> Path:
        """Write the result folder and return its path.

        Args:
            folder: Is made beside its place and renamed, so that it exists whole or not at all.
            overwrite: Replace an existing result folder.
            checks: Of `require`, to be kept in result.json and shown with the result.

        Raises:
            UserError: The folder exists and `overwrite` is False, or it cannot be written.
        """
        with writing(folder, overwrite=overwrite) as target:
            target.fill(self)
            target.finish(self, checks)
        return Path(folder)

    def _repr_html_(self) -> str:
        title = html.escape(self.title)
        warnings = list(self.warnings)
        try:
            content = base64.b64encode(figure_bytes(self.plot(), "png")).decode()
            picture = (
                f'<img style="max-width:100%" alt="{title}" src="data:image/png;base64,{content}">'
            )
        except UserError as error:  # its pictures are missing
            picture = ""
            warnings.append(str(error))
        rows = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
            for cells in (
                (name, show_number(n), show_interval(n), n.meaning)
                for name, n in self.numbers().items()
            )
        )
        notes = "".join(f"<p>⚠ {html.escape(text)}</p>" for text in warnings)
        return f"<h4>{title}</h4>{picture}<table>{rows}</table>{notes}"


def figure_bytes(figure: Figure, kind: str, *, dpi: float | None = None) -> bytes:
    """A matplotlib figure as the bytes of a "png", "svg" or "pdf" file, the same every time."""
    buffer = io.BytesIO()
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    import matplotlib
    from matplotlib.backend_bases import get_registered_canvas_class
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # names of files and classes may hold "$"
    settings: Any = {
        "svg.hashsalt": "featviz",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "image.composite_image": False,  # one large picture of many, with the gaps between them
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        # Figure.savefig draws everything once more before, for the sake of the layout, which a
        # figure that is drawn makes by itself.
        before, figure.dpi = figure.dpi, dpi or figure.dpi
        canvas = get_registered_canvas_class(kind)(figure)
        getattr(canvas, f"print_{kind}")(buffer, metadata=metadata[kind])
        figure.dpi = before
    content = buffer.getvalue()
    return svg.finish(content.decode()).encode() if kind == "svg" else content


def _compressed(picture: Tensor | Image | Figure | None, kind: str) -> bytes:
    """A picture or a plot as a "jpeg", or as a "webp", which may be transparent."""
    from matplotlib.figure import Figure
    from PIL import Image

    from featviz.pictures import images

    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        content = figure_bytes(picture, "png", dpi=JPEG_DPI)
        image: Image.Image = Image.open(io.BytesIO(content))
    elif isinstance(picture, Image.Image):
        image = picture
    else:
        assert picture is not None
        image = images.to_pillow(picture)
    shown = image.convert("RGB") if kind == "jpeg" else image
    shown.save(buffer, format=kind, quality=80, optimize=True)
    return buffer.getvalue()


class Folder:
    """A result folder that is being written; `Result.write` fills it."""

    def __init__(self, path: Path, *, final: Path | None = None):
        self.path = path
        self.final = final or path
        """where it will be"""
        self.figures: list[dict[str, Any]] = []
        self.tables: list[dict[str, Any]] = []
        self.arrays_: list[dict[str, Any]] = []
        self.warnings: list[str] = []

    def figure(
        self,
        file: str,
        picture: Tensor | Image | Figure | bytes | None,
        *,
        caption: str,
        alt: str,
        units: Sequence[str] = (),
        pixelated: bool = False,
        detail: bool = False,
    ) -> None:
        """Save a picture and list it for the gallery.

        Args:
            file: .png for pictures, .svg or .pdf for plots, .jpg for sheets of many pictures (a
                fifth of the size, and nothing is measured on them), .webp for sheets with gaps,
                which show the color of the page.
            picture: (3, H, W) in [0, 1] or, with gaps, (4, H, W), a pillow image, a matplotlib
                figure, the file's bytes, or None when the file has been written already.
            caption: What is seen and how values are scaled.
            alt: The same for who cannot see it.
            units: Which units it belongs to, as "conv5:12", so that their pages can show it.
            pixelated: Enlarge without smoothing (activations, kernels, small pictures).
            detail: Belongs on its unit's page only.
        """
        from matplotlib.figure import Figure as MatplotlibFigure
        from PIL.Image import Image

        from featviz.pictures import images

        path = self.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, bytes):
            path.write_bytes(picture)
        elif path.suffix in _COMPRESSED and picture is not None:
            path.write_bytes(_compressed(picture, _COMPRESSED[path.suffix]))
        elif isinstance(picture, MatplotlibFigure):
            path.write_bytes(figure_bytes(picture, path.suffix[1:]))
        elif isinstance(picture, Image):
            picture.save(path)
        elif picture is not None:
            images.write_png(picture, path)
        elif not path.is_file():
            raise ValueError(f"{file} has not been written")
        self.figures.append(
            {
                "file": file,
                "caption": caption,
                "alt": alt,
                "units": list(units),
                "pixelated": pixelated,
                "detail": detail,
            }
        )

    def table(self, table: Table) -> None:
        """Save a table as CSV with a heading line, and as Parquet where it asks for it; list it."""
        twice = table.parquet and importlib.util.find_spec("pyarrow") is not None
        table = replace(table, rows=list(table.rows)) if twice else table
        table.write_csv(self.path / table.file)
        columns = list(table.columns)
        entry = {"file": table.file, "caption": table.caption, "columns": columns}
        if twice:
            beside = str(Path(table.file).with_suffix(".parquet"))
            table.write_parquet(self.path / beside)
            entry["parquet"] = beside
        self.tables.append(entry)

    def arrays(self, file: str, arrays: Mapping[str, np.ndarray], *, caption: str) -> None:
        """Save numpy arrays as one .npz and list it."""
        import numpy as np

        np.savez_compressed(self.path / file, **arrays)  # type: ignore[arg-type]
        self.arrays_.append({"file": file, "caption": caption, "names": sorted(arrays)})

    def fill(self, result: Result) -> None:
        """Write all of a result but its result.json."""
        for table in result.tables():
            self.table(table)
        result.write(self)
        for name, part in result.parts.items():
            self.part(name, part)

    def part(self, name: str, result: Result) -> None:
        """Write a result into a folder of its own within this one, and list what it holds here."""
        stem = file_stem(name)
        inner = Folder(self.path / stem, final=self.final / stem)
        inner.path.mkdir()
        inner.fill(result)
        for mine, its in (
            (self.figures, inner.figures),
            (self.tables, inner.tables),
            (self.arrays_, inner.arrays_),
        ):
            for entry in its:
                files = {key: f"{stem}/{entry[key]}" for key in ("file", "parquet") if key in entry}
                mine.append(entry | files)
        for text in (*result.warnings, *inner.warnings):
            self.warn(f"{name}: {text}")

    def _named_classes(self, names: Sequence[str]) -> dict[str, str]:
        """The names of the classes that figures belong to, by their numbers."""
        units = {unit for figure in self.figures for unit in figure["units"]}
        numbers = {unit.removeprefix("logits:") for unit in units if unit.startswith("logits:")}
        found = sorted(int(n) for n in numbers if n.isdecimal() and int(n) < len(names))
        return {str(n): names[n] for n in found}

    def warn(self, text: str) -> None:
        """Add a warning to those of the result itself."""
        self.warnings.append(text)

    def finish(self, result: Result, checks: Sequence[Check] = ()) -> None:
        """Write result.json, last of all."""
        made = result.origin
        of_model = (made.model or {}).get("notes", ())
        document = {
            "schema": SCHEMA,
            "kind": result.kind,
            "title": result.title,
            **({} if made.command is None else {"command": made.command}),
            "model": made.model,
            "data": made.data,
            "parameters": _portable(made.parameters),
            "seed": made.seed,
            "versions": versions() | {"device": made.device},
            "created": made.created,
            "seconds": made.seconds,
            "numbers": {name: _number_record(n) for name, n in result.numbers().items()},
            **({"requirements": [vars(check) for check in checks]} if checks else {}),
            "class_names": self._named_classes(made.class_names),
            "figures": self.figures,
            "tables": self.tables,
            "arrays": self.arrays_,
            "warnings": list(dict.fromkeys([*of_model, *result.warnings, *self.warnings])),
        }
        write_json(self.path / "result.json", document)


def _number_record(number: Number) -> dict[str, Any]:
    """A number for result.json: `low`, `high` and `n` only where it is an estimate."""
    always = ("value", "unit", "meaning")
    return {k: v for k, v in vars(number).items() if k in always or v is not None}


def _portable(value: Any) -> Any:
    """Parameters with absolute paths by their last component, as in the command line."""
    if isinstance(value, Path):
        return value.name if value.is_absolute() else value.as_posix()
    if isinstance(value, str) and value[:1] == "/" and "/" in value[1:]:
        return Path(value).name
    if isinstance(value, Mapping):
        return {name: _portable(item) for name, item in value.items()}
    return [_portable(item) for item in value] if isinstance(value, list | tuple) else value


def file_stem(name: str) -> str:
    """The name of a layer, unit or part as a file name: "features.3:12@6,6" -> "features.3-12-6-6".

    Letters, digits, ".", "_" and "-" stay; each run of other characters becomes one "-". A long
    name is cut.
    """
    return re.sub(r"[^\w.]+", "-", name, flags=re.ASCII)[:_LONGEST].strip("-.") or "unnamed"


def versions() -> dict[str, str]:
    """Versions of featviz, torch and Python."""
    import torch

    from featviz import __version__

    return {
        "featviz": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_json(path: Path, document: Any) -> None:
    """Save a document as JSON that any reader takes: no NaN (null instead), paths as text."""
    text = json.dumps(plain(document), indent=1, ensure_ascii=False, allow_nan=False)
    # Bytes of a file name that are not UTF-8 become escapes, which JSON readers turn back.
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def plain(value: Any) -> Any:
    """A value as JSON has it: no NaN (null instead), sets sorted, arrays as lists."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(v) for v in value), key=str)
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch numbers and arrays
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def read_result(folder: str | Path) -> dict[str, Any]:
    """The result.json of a folder.

    Raises:
        UserError: It is absent, damaged or of another schema.
    """
    path = Path(folder) / "result.json"
    if not os.path.lexists(path):
        raise UserError(f"{folder} is no result folder: it has no result.json")
    document = schema.read_json(path, "make the result again")
    found = document.get("schema") if isinstance(document, dict) else None
    if type(found) is not int or found != SCHEMA:
        shown = found if isinstance(found, int | None) else "of another type"
        raise UserError(f"{path} has schema {shown}, this featviz reads {SCHEMA}")
    assert isinstance(document, dict)
    return document


_ORIGIN = {
    "data": schema.Maybe(dict),
    "parameters": dict,
    "seed": schema.Maybe(int),
    "versions": {str: str},
    "seconds": float,
    "created": str,
    "command": schema.Maybe(str),
}


def read_origin(folder: Path, model: Mapping[str, Any] | None, way_out: str) -> Origin:
    """The origin of a saved result, whose model its own file names. Raises as `read_result`."""
    said = schema.check(read_result(folder), _ORIGIN, folder / "result.json", way_out)
    return Origin(model=model, device=said.pop("versions").get("device", "unknown"), **said)


def list_results(folder: str | Path) -> list[Path]:
    """The result folders in a folder (itself included), sorted by name.

    Hidden folders and unfinished work below it are left out.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")

    def unfinished(part: str) -> bool:
        return part.startswith(".") or part.endswith(folders.PARTIAL)

    found = (path.parent.relative_to(root) for path in root.rglob("result.json"))
    return sorted(root / path for path in found if not any(map(unfinished, path.parts)))


@contextlib.contextmanager
def writing(folder: str | Path, *, overwrite: bool = False) -> Iterator[Folder]:
    """Make a result folder whole or not at all.

    Raises:
        UserError: The target exists and `overwrite` is False, is not a result folder (featviz
            deletes nothing that it did not make), is being written by another run, or cannot be
            written (no right, no space).
    """
    folders.check_target(folder, overwrite=overwrite)
    with folders.whole(folder, overwrite=overwrite) as temporary:
        yield Folder(temporary, final=folders.real_path(folder))
