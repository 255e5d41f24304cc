"""Which pictures a path holds: a folder, a tar or zip, several tars, or a list.

Nothing is read but names and labels. Classes are the folders of the first level, as in
torchvision's ImageFolder. What is left out is counted (`LeftOut`).
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from featviz.data import archives, lists, packs
from featviz.errors import UserError
from featviz.pictures.images import SUFFIXES
from featviz.wording import counted, some

STANDARD_INPUT = "standard input"
"""the root of a list that is read from there"""
_HIDDEN = {"__macosx", "@eadir", "thumbnails", "lost+found", "#recycle", "$recycle.bin"}
"""folders of other programs, in lower case; those that begin with a dot are hidden too"""
_UNINTERESTING = {"thumbs.db", "desktop.ini"}
_TINY_IMAGENET = "val_annotations.txt"
_MOST_SHARDS = 100_000
_TAKEN = "give a picture, a folder of pictures, a tar, a zip or a list"
_TRIED = 100  # paths of a list that are looked for


@dataclass(frozen=True)
class LeftOut:
    """What was met while listing and is not among the pictures, and how labels were found."""

    empty: tuple[str, ...] = ()
    """class folders without a picture"""
    unlabeled: tuple[str, ...] = ()
    """pictures beside class folders, or without a label in a list; they are listed"""
    hidden: tuple[str, ...] = ()
    """hidden folders, and hidden files with a picture's ending"""
    dangling: tuple[str, ...] = ()
    """links that lead nowhere"""
    endings: tuple[tuple[str, int], ...] = ()
    """(ending, files) of files that are no pictures by their names, commonest first"""
    remarks: tuple[str, ...] = ()
    """further facts, a sentence each"""

    @property
    def notes(self) -> tuple[str, ...]:
        """A short sentence for each kind of thing."""
        others = sum(count for _, count in self.endings)
        kinds = [f"{ending or 'no ending'} ({count})" for ending, count in self.endings]
        folder = counted(len(self.empty), "class folder")
        picture = counted(len(self.unlabeled), "picture")
        hidden = counted(len(self.hidden), "hidden file or folder", "hidden files and folders")
        link = counted(len(self.dangling), "link that leads nowhere", "links that lead nowhere")
        other = counted(others, "file with another ending", "files with other endings")
        found = (
            (f"{folder} without a picture", self.empty),
            (f"{picture} without a class", self.unlabeled),
            (f"{hidden} left out", self.hidden),
            (f"{link} left out", self.dangling),
            (f"{other} left out", kinds),
        )
        return (*(f"{what}: {some(names)}" for what, names in found if names), *self.remarks)


NOTHING = LeftOut()


class Listing(NamedTuple):
    """The pictures of a path."""

    root: Path
    paths: tuple[str, ...]
    folders: tuple[str, ...]
    """the class of each, "" where there is none"""
    left_out: LeftOut


def list_pictures(path: str | Path) -> Listing:
    """The pictures of a folder, a tar or zip, tars "part-{000..003}.tar", a list, or one file.

    "-" is standard input: one path a line, as in a .txt list, or a NUL behind each, as
    `find -print0` writes them.

    Raises:
        UserError: There is nothing that can be read.
    """
    root = Path(path)
    if root == Path("-"):
        return _list_of(Path(STANDARD_INPUT), lists.read_lines(_standard_input()))
    shards = _braces(root)
    if shards is not None:
        return _list_shards(root.parent, shards)
    kind = _kind(root)
    if stat.S_ISDIR(kind):
        return _list_folder(root)
    if not stat.S_ISREG(kind):
        raise UserError(f"{root} is a device or a pipe; {_TAKEN}")
    if root.name.lower().endswith(archives.COMPRESSED):
        raise UserError(
            f"{root} is a compressed tar, which can be read from its beginning only; "
            "unpack it, or make it a plain .tar"
        )
    if archives.is_archive(root):
        return _list_archive(root)
    if root.suffix.lower() in lists.SUFFIXES:
        return _list_of(root, lists.read_list(root))
    return Listing(root.parent, (root.name,), ("",), NOTHING)


def _standard_input() -> list[str]:
    """Its lines; bytes that are not UTF-8 are kept, as in names of files."""
    text = sys.stdin.buffer.read().decode(errors="surrogateescape")
    return text.split("\0") if "\0" in text else text.splitlines()


def list_several(paths: Sequence[str | Path]) -> Listing:
    """The pictures of several paths in their order, each once, by their common folder.

    Raises:
        UserError: One of the paths holds nothing that can be read.
    """
    if not paths:
        raise UserError("no paths are given; name a picture or a folder")
    listings = [list_pictures(path) for path in paths]
    if len(listings) == 1:
        return listings[0]
    for listing in listings:
        if packs.is_pack(listing.root):
            raise UserError(f"{listing.root} is a pack among several paths; give it alone")
    places: dict[str, str] = {}
    for listing in listings:
        base = _base(listing.root)
        for path, folder in zip(listing.paths, listing.folders, strict=True):
            places.setdefault(os.path.abspath(base / path), folder)
    root = os.path.commonpath([os.path.dirname(place) for place in places])
    return Listing(
        Path(root),
        tuple(os.path.relpath(place, root) for place in places),
        tuple(places.values()),
        _together([listing.left_out for listing in listings]),
    )


def _base(root: Path) -> Path:
    """What the paths of a listing are relative to."""
    if archives.is_archive(root) and not root.is_dir():
        return root
    return root if root.is_dir() else root.parent


def _together(every: Sequence[LeftOut]) -> LeftOut:
    endings = Counter[str]()
    for one in every:
        endings.update(dict(one.endings))
    return LeftOut(
        empty=tuple(name for one in every for name in one.empty),
        unlabeled=tuple(name for one in every for name in one.unlabeled),
        hidden=tuple(name for one in every for name in one.hidden),
        dangling=tuple(name for one in every for name in one.dangling),
        endings=tuple(endings.most_common()),
        remarks=tuple(dict.fromkeys(text for one in every for text in one.remarks)),
    )


def _kind(root: Path) -> int:
    try:
        return os.stat(root).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{root}: no such file or folder; {_TAKEN}") from None
    except (OSError, ValueError) as error:  # NUL in a name is a ValueError
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{root} cannot be read ({why}); {_TAKEN}") from None


@dataclass
class _Found:
    """Names, sorted into pictures and others while they are met."""

    pictures: list[str] = field(default_factory=list)
    tops: dict[str, None] = field(default_factory=dict)
    """folders of the first level"""
    hidden: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)

    def file(self, path: str) -> None:
        name = path.rpartition("/")[2]
        ending = os.path.splitext(name)[1].lower()
        if name.startswith("."):
            if ending in SUFFIXES:
                self.hidden.append(path)
        elif ending in SUFFIXES:
            self.pictures.append(path)
        elif name.lower() not in _UNINTERESTING:
            self.endings[ending] += 1

    def left_out(self, folders: Sequence[str], *remarks: str) -> LeftOut:
        """Everything but the pictures, whose classes are given."""
        known = set(folders)
        beside = [path for path, folder in zip(self.pictures, folders, strict=True) if not folder]
        return LeftOut(
            empty=tuple(top for top in self.tops if top not in known),
            unlabeled=tuple(beside) if len(known) > 1 else (),
            hidden=tuple(self.hidden),
            dangling=tuple(self.dangling),
            endings=tuple(sorted(self.endings.items(), key=lambda pair: (-pair[1], pair[0]))),
            remarks=remarks,
        )


def _list_folder(root: Path) -> Listing:
    if packs.is_pack(root):
        pack = packs.contents(root)
        return Listing(root, pack.paths, pack.folders, NOTHING)
    found = _walk(root)
    if not found.pictures and found.endings.keys() & set(archives.SUFFIXES):
        shards = [root / name for name in sorted(os.listdir(root))]
        shards = [path for path in shards if archives.is_archive(path) and path.is_file()]
        if shards:
            return _list_shards(root, shards)
    _check_any(root, found)
    annotations = root / _TINY_IMAGENET
    if annotations.is_file():
        labels = dict(lists.read_list(annotations))
        folders = [labels.get(path.rpartition("/")[2], "") for path in found.pictures]
        found.tops.clear()
        remark = f"classes are those of {_TINY_IMAGENET}"
        return _listing(root, found, folders, remark)
    folders = [_top(path) for path in found.pictures]
    return _listing(root, found, folders, *_only_class(root, found.pictures))


def _listing(root: Path, found: _Found, folders: Iterable[str], *remarks: str) -> Listing:
    labels = tuple(map(sys.intern, folders))
    return Listing(root, tuple(found.pictures), labels, found.left_out(labels, *remarks))


def _check_any(root: Path, found: _Found) -> None:
    if not found.pictures:
        kinds = ", ".join(sorted(SUFFIXES))
        others = found.left_out(()).notes
        seen = f"; there are {'; '.join(others)}" if others else ""
        raise UserError(f"{root} holds no pictures ({kinds}){seen}; give a folder that does")


def _top(path: str) -> str:
    top, slash, _ = path.partition("/")
    return top if slash else ""


def _only_class(root: Path, paths: Sequence[str]) -> tuple[str, ...]:
    """A remark where all pictures are in one folder of the first level."""
    tops = {_top(path) for path in paths} - {""}
    if len(tops) != 1:
        return ()
    (top,) = tops
    inner = {path.split("/")[1] for path in paths if path.count("/") > 1}
    way_out = f"; if the classes are its {len(inner)} folders, give {root / top}"
    return (f"there is one class only, {top}{way_out * (len(inner) > 1)}",)


def _walk(root: Path) -> _Found:
    """The files below a folder by path; links are followed, but not for ever."""
    found = _Found()
    levels = [("", *_open_folder(root, ""))]
    while levels:
        inside, _, entries = levels[-1]
        entry = next(entries, None)
        if entry is None:
            levels.pop()
            continue
        path = f"{inside}/{entry.name}" if inside else entry.name
        kind = _entry_kind(entry)
        if kind is None:
            found.dangling.append(path)
        elif stat.S_ISREG(kind):
            found.file(path)
        elif stat.S_ISDIR(kind) and _is_hidden(entry.name):
            found.hidden.append(path)
        elif stat.S_ISDIR(kind):
            if not inside:
                found.tops[entry.name] = None
            identity, below = _open_folder(root, path)
            if identity not in {above for _, above, _ in levels}:
                levels.append((path, identity, below))
        else:
            found.endings["devices and pipes"] += 1
    return found


def _entry_kind(entry: os.DirEntry[str]) -> int | None:
    """The mode of what an entry is or links to; None where it leads nowhere."""
    try:
        return entry.stat().st_mode
    except OSError:
        return None


def _open_folder(root: Path, inside: str) -> tuple[tuple[int, int], Iterator[os.DirEntry[str]]]:
    """Which folder of the disk it is, and what it holds, by name."""
    folder = root / inside
    try:
        found = os.stat(folder)
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        # Its pictures would be left out without a word.
        why = error.strerror or error
        raise UserError(
            f"{folder} cannot be read ({why}); its pictures would be missing, so make it "
            "readable or move it away"
        ) from None
    return (found.st_dev, found.st_ino), iter(ordered)


def _is_hidden(folder: str) -> bool:
    return folder.startswith(".") or folder.lower() in _HIDDEN


def _list_archive(root: Path) -> Listing:
    found, labels = _archived(root)
    _check_any(root, found)
    if labels:
        folders = [labels.get(_key(path), "") for path in found.pictures]
        found.tops.clear()
        return _listing(root, found, folders, "classes are those of the .cls and .json files")
    outer = _outer_folder(found.pictures)
    folders = [_top(path.removeprefix(outer)) for path in found.pictures]
    if outer:
        found.tops.clear()
        return _listing(root, found, folders, f"classes are the folders in {outer[:-1]}")
    return _listing(root, found, folders, *_only_class(root, found.pictures))


def _archived(root: Path) -> tuple[_Found, dict[str, str]]:
    """The files of an archive, and the labels of a WebDataset by the key of their pictures."""
    there = archives.contents(root)
    found = _Found(dangling=list(there.dangling))
    beside: dict[str, str] = {}
    hidden: dict[str, None] = {}
    for path in there.files:
        folders = path.split("/")[:-1]
        first = next((i for i, name in enumerate(folders) if _is_hidden(name)), None)
        if first is not None:
            hidden["/".join(folders[: first + 1])] = None
        elif path.endswith((".cls", ".json")):
            beside.setdefault(_key(path), path)
        else:
            found.file(path)
    found.hidden += hidden
    for folder in there.folders:
        found.tops[folder.partition("/")[0]] = None
    labels = {}
    for key in {_key(path) for path in found.pictures} & beside.keys():
        labels[key] = lists.read_label(archives.read(root, beside[key]), beside[key])
    strays = len(beside) - len(labels)
    if strays:
        found.endings[".json or .cls"] += strays
    found.tops.pop(".", None)
    return found, labels


def _key(path: str) -> str:
    """What the files of one example have in common: the path up to the first dot of its name."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _outer_folder(paths: Sequence[str]) -> str:
    """The one folder that holds all class folders, as archives often have it, with its slash."""
    tops = {_top(path) for path in paths}
    inner = {path.split("/")[1] for path in paths if path.count("/") > 1}
    return f"{tops.pop()}/" if len(tops) == 1 and len(inner) > 1 else ""


def _braces(root: Path) -> list[Path] | None:
    """The files of "part-{000..003}.tar"; None for another name."""
    found = re.fullmatch(r"(.*)\{(\d{1,9})\.\.(\d{1,9})\}(.*)", root.name)
    if found is None:
        return None
    before, first, last, behind = found.groups()
    numbers = range(int(first), int(last) + 1)
    if not 0 < len(numbers) <= _MOST_SHARDS:
        raise UserError(f"{root} names {len(numbers):,} files; 1 to {_MOST_SHARDS:,} are possible")
    return [root.with_name(f"{before}{n:0{len(first)}}{behind}") for n in numbers]


def _list_shards(folder: Path, shards: Sequence[Path]) -> Listing:
    """The pictures of several archives; the path of one begins with its archive's name."""
    for shard in shards:
        if not archives.is_archive(shard) or not shard.is_file():
            raise UserError(f"{shard}: no such tar or zip; give the shards that there are")
    found = _Found()
    folders: list[str] = []
    remarks: dict[str, None] = {}
    for shard in shards:
        listed = _list_archive(shard)
        aside = listed.left_out
        found.pictures += [f"{shard.name}/{path}" for path in listed.paths]
        folders += listed.folders
        found.tops |= dict.fromkeys(aside.empty)
        found.hidden += [f"{shard.name}/{path}" for path in aside.hidden]
        found.dangling += [f"{shard.name}/{path}" for path in aside.dangling]
        found.endings.update(dict(aside.endings))
        remarks |= dict.fromkeys(aside.remarks)
    return _listing(folder, found, folders, *remarks)


def _list_of(root: Path, rows: Sequence[lists.Row]) -> Listing:
    """The pictures of a list; relative paths are looked for beside it, then from here."""
    nameless = sum(not row.path for row in rows)
    rows = [row for row in rows if row.path]
    if not rows:
        raise UserError(f"{root} is an empty list; give one that names pictures")
    tried = [row.path for row in rows[:_TRIED] if not os.path.isabs(row.path)]
    remarks = []
    paths = [row.path for row in rows]
    beside = (root.parent / path for path in tried)
    if not any(map(os.path.isfile, beside)) and any(map(os.path.isfile, tried)):
        start = os.path.realpath(root.parent)
        paths = [os.path.relpath(os.path.realpath(path), start) for path in paths]
        remarks.append("paths of the list are relative to the working directory")
    doubled = len(paths) - len(set(paths))
    if nameless:
        remarks.append(f"left out: {counted(nameless, 'line')} of the list without a path")
    if doubled:
        again = counted(doubled, "line")
        remarks.append(f"{again} of the list with a picture that an earlier one names")
    found = _Found(pictures=paths)
    return _listing(root, found, [row.label for row in rows], *remarks)
