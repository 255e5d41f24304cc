"""Which class of a model each class folder is, and all that does not fit.

A folder without a class, or a class without pictures, changes accuracies silently, so a
`LabelReport` is part of every result that counts right answers.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from featviz.data.listing import NOTHING, LeftOut
from featviz.errors import UserError
from featviz.requirements import Check
from featviz.wording import counted, some, unread


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """How the labels of a data set fit the classes of a model."""

    model: str
    """its name"""
    classes: int
    """how many it has"""
    labels: tuple[int | None, ...]
    """the class of each picture, None where there is none"""
    missing: tuple[str, ...] = ()
    """names of classes without a picture; empty where no picture has a class"""
    unmatched: Mapping[str, int]
    """folders (or labels) that name no class, with their pictures"""
    ambiguous: Mapping[str, tuple[str, ...]]
    """folders that name several classes, with the names of those; they count as none"""
    shared: Mapping[str, tuple[str, ...]]
    """classes that several folders name, with the folders"""
    indices: bool = False
    """folders are numbers and were taken as indices of classes"""
    inner: str = ""
    """a folder whose folders are classes, where those of the first level are not"""
    left_out: LeftOut = NOTHING
    """what was met beside the pictures: empty class folders, hidden folders, ..."""
    unreadable: tuple[str, ...] = ()
    """paths of pictures that could not be read"""
    first_reason: str = ""
    """why the first of those could not"""

    @property
    def empty(self) -> tuple[str, ...]:
        """Class folders without a picture."""
        return self.left_out.empty

    @property
    def labeled(self) -> int:
        """How many pictures have a class of the model."""
        return sum(label is not None for label in self.labels)

    @property
    def complete(self) -> bool:
        """Whether every class has pictures, every folder is one class, and all could be read."""
        return self.labeled > 0 and not (
            self.missing or self.unmatched or self.ambiguous or self.empty or self.unreadable
        )

    def with_unreadable(self, paths: Sequence[str], reason: str) -> LabelReport:
        """The report after the pictures were read; reason: of the first path."""
        return replace(self, unreadable=tuple(paths), first_reason=reason)

    @property
    def ambiguities(self) -> list[str]:
        """A sentence for each folder that names several classes."""
        return [
            f"{folder} names {len(names)} classes of {self.model} ({some(names)}) and does not "
            "count; name it by its synset or in full"
            for folder, names in self.ambiguous.items()
        ]

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each kind of misfit, classes without pictures first."""
        found = []
        if self.missing:
            found.append(
                f"{len(self.missing)} of {self.classes} classes of {self.model} have no picture: "
                f"{some(self.missing)}"
            )
        if self.unmatched:
            n = sum(self.unmatched.values())
            some_names = some(f"{name} ({count})" for name, count in self.unmatched.items())
            found.append(
                f"{n} of {counted(len(self.labels), 'picture')} do not count, because their folder "
                f"or label is no class of {self.model}: {some_names}"
                if self.labeled
                else f"no folder or label is a class of {self.model}: {some_names}"
            )
        if self.inner:
            found.append(f"the folders in {self.inner} are classes of {self.model}: give that one")
        found += self.ambiguities
        for name, folders in self.shared.items():
            found.append(f"{some(folders)} are one class of {self.model}, {name}")
        if self.indices:
            found.append(f"numbers as labels are indices of {self.model}'s classes, from 0")
        if self.unreadable:
            found.append(f"{unread(len(self.unreadable))}, first {self.first_reason}")
        return (*found, *self.left_out.notes)


def report_labels(
    folders: Sequence[str],
    inner: Mapping[str, str],
    left_out: LeftOut,
    *,
    model: str,
    synsets: tuple[str, ...],
    classes: tuple[str, ...],
) -> LabelReport:
    """How class folders fit the classes of a model.

    Args:
        folders: Of each picture, "" where there is none.
        inner: Names of folders of the second level, with the path of the folder around them.
        left_out: What was met while listing.
        model: Its name.
        synsets: Of its classes, "" where there is none.
        classes: Their names, synonyms behind commas.
    """
    find = class_finder(synsets, classes)
    counts = Counter(folders)
    known = {folder: find(folder) for folder in counts if folder}
    numbers = {f for f, found in known.items() if not found and f.isascii() and f.isdecimal()}
    # One number out of range shows that they are not indices, or do not count from 0.
    indices = bool(numbers) and all(int(f) < len(classes) for f in numbers)
    known |= {f: (int(f),) for f in numbers if indices}
    single = {f: found[0] for f, found in known.items() if len(found) == 1}
    by_class = defaultdict(list)
    for folder, label in sorted(single.items()):
        by_class[label].append(folder)
    return LabelReport(
        model=model,
        classes=len(classes),
        labels=tuple(single.get(folder) for folder in folders),
        missing=_missing(synsets, classes, by_class) if single else (),
        unmatched={f: counts[f] for f, found in sorted(known.items()) if not found},
        ambiguous={
            f: tuple(_full(synsets[i], classes[i]) for i in found)
            for f, found in sorted(known.items())
            if len(found) > 1
        },
        shared={classes[i]: tuple(fs) for i, fs in by_class.items() if len(fs) > 1},
        indices=indices,
        inner="" if single else next((top for name, top in inner.items() if find(name)), ""),
        left_out=left_out,
    )


def _missing(
    synsets: Sequence[str], classes: Sequence[str], there: Mapping[int, object]
) -> tuple[str, ...]:
    return tuple(
        name.partition(",")[0] or synset
        for i, (synset, name) in enumerate(zip(synsets, classes, strict=True))
        if i not in there
    )


def _full(synset: str, name: str) -> str:
    return f"{synset} {name}".strip()


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _caseless(name: str) -> str:
    return _composed(name).casefold()


@lru_cache(maxsize=8)
def class_finder(
    synsets: tuple[str, ...], classes: tuple[str, ...]
) -> Callable[[str], tuple[int, ...]]:
    """A function from a name to the classes that it names.

    A synset, a whole name or its first part ("tabby" of "tabby, tabby cat") goes before further
    synonyms, and the exact spelling before one in another case. "_" is a blank, and an accent is
    the same within its letter and behind it, as file systems differ in that.
    """
    spellings: tuple[Callable[[str], str], ...] = (
        str,
        _composed,
        _caseless,
    )
    first: dict[tuple[Callable[[str], str], str], set[int]] = defaultdict(set)
    others: dict[tuple[Callable[[str], str], str], set[int]] = defaultdict(set)
    for index, (synset, full) in enumerate(zip(synsets, classes, strict=True)):
        parts = [part.strip() for part in full.split(",")]
        for names, place in (((synset, full, parts[0]), first), (parts[1:], others)):
            for name in filter(None, names):
                for spelled in spellings:
                    place[spelled, _blank(spelled(name))].add(index)

    def find(name: str) -> tuple[int, ...]:
        for place in (first, others):
            for spelled in spellings:
                found = place.get((spelled, _blank(spelled(name))))
                if found:
                    return tuple(sorted(found))
        return ()

    return find


def _blank(name: str) -> str:
    return name.replace("_", " ").strip()


def no_labels(report: LabelReport, place: object, model: str) -> UserError:
    """The error for data of which no picture has a class of the model."""
    if not report.unmatched and not report.ambiguous:
        return UserError(
            f"{place} has no classes: put the pictures of a class in one folder, or give a list "
            "with labels"
        )
    if report.ambiguous and not report.unmatched:
        return UserError(report.ambiguities[0])
    names = [repr(name) for name in (*report.unmatched, *report.ambiguous)]
    way_out = (
        f"give {report.inner}, whose folders are"
        if report.inner
        else "name them by synset or class name, or give --classes"
    )
    return UserError(
        f"no folder of {place} is named after a class of {model} (the first: {names[0]}); {way_out}"
    )


def strict_checks(report: LabelReport) -> tuple[Check, ...]:
    """That every class has pictures, every folder is one class, and every file can be read."""
    misfits = {
        "pictures without any class": () if report.labeled else ("all",),
        "classes without a picture": report.missing,
        "folders that are no class": tuple(report.unmatched),
        "folders that name several classes": tuple(report.ambiguous),
        "empty class folders": report.empty,
        "unreadable files": report.unreadable,
    }
    return tuple(
        Check(
            "--strict",
            name,
            "value",
            "==",
            0,
            len(found),
            not found,
            note=f"{len(found)}: {some(found)}" if found else "",
        )
        for name, found in misfits.items()
    )
