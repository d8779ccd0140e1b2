"""Which files of a folder are read, which are for validation, which are skipped, and why: none is ignored silently."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from storyladder.corpus.corpora import CORPORA, Corpus
from storyladder.corpus.readers import is_readable
from storyladder.runtime.errors import DataError

_PART_NAME = re.compile(r"(.+)\.first-(\d+)-bytes(\.[^.]+)")  # a partial download, named by sources.py
_VAL_NAME = re.compile(r"(^|[-_.])(val|valid|validation|test|dev|eval)([-_.]|$)", re.IGNORECASE)
_NOTES = re.compile(r"(readme|licen[cs]e|copying|notice|changelog|changes|citation|requirements|sources)\b.*", re.I)
_ARCHIVE = re.compile(r"\.(tar|tgz|7z|rar)(\.\w+)?$")
_NOTES_OF_DATASETS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_OURS = (".bin", ".bin.json", ".part", ".partial", ".lock")  # token files and unfinished files
_NAMED = 5  # names printed of a list; the rest are counted


@dataclasses.dataclass(frozen=True)
class Found:
    """The readable files of a folder, sorted, and the names of skipped files by reason."""

    root: Path
    files: list[Path]
    left_out: dict[str, list[str]]

    def names(self, files: list[Path]) -> list[str]:
        """Their names relative to the folder."""
        return [str(path)[len(str(self.root)) + 1 :] for path in files]

    def lines(self) -> Iterator[str]:
        """The lines to print about them."""
        yield f"reads {counted(len(self.files), 'file')} of {self.root}: {listed(self.names(self.files))}"
        if self.left_out:
            yield f"skips {self.skipped()}"

    def skipped(self) -> str:
        """Names and reasons, such as `a.pdf, b.pdf (unsupported format); c.txt (empty)`."""
        return "; ".join(f"{listed(names)} ({reason})" for reason, names in self.left_out.items())


def listed(names: Iterable[str]) -> str:
    """The first names of a list, and the number of others."""
    names = list(names)
    more = [f"and {len(names) - _NAMED:,} more"] if len(names) > _NAMED else []
    return ", ".join([*names[:_NAMED], *more])


def counted(number: int, noun: str) -> str:
    """`1 story`, `2 stories`, `1,000 files`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def corpus_files(folder: Path, corpus: Corpus, *, alone: bool, others: Iterable[Corpus] = ()) -> Found:
    """The text files of a corpus: those in a subfolder with its name, else those with its file names, else all.

    The last only with `alone`: just one corpus is prepared. Folders of the bundled corpora and of `others` are left to
    those corpora. DataError if `folder` does not exist.
    """
    if not folder.is_dir():
        raise DataError(f"folder {folder} does not exist; pass the folder that holds the stories with --from DIR")
    folders = {_plain(path.name): path for path in sorted(folder.iterdir()) if path.is_dir()}
    looked = [files_of(folders[name]) for name in corpus.folders if name in folders]
    for found in looked:
        if found.files:
            return found
    found = files_of(folder, without={name for other in (*CORPORA, *others) for name in other.folders})
    if named := [path for path in found.files if corpus.files.fullmatch(path.name)]:
        return dataclasses.replace(found, files=named, left_out=found.left_out if alone else {})
    if alone and found.files:
        return found
    return looked[0] if looked and looked[0].left_out else dataclasses.replace(found, files=[])


def files_of(folder: Path, *, without: Iterable[str] = ()) -> Found:
    """Every readable file in a folder and its subfolders, except in subfolders named in `without`."""
    found = Found(folder, [], {})
    for entry in _walk(folder, frozenset(without), frozenset()):
        if reason := _why_not(entry):
            found.left_out.setdefault(reason, []).append(os.path.relpath(entry.path, folder))
        elif not entry.name.lower().endswith(_OURS):
            found.files.append(Path(entry.path))
    return found


def _walk(folder: Path | str, without: frozenset[str], above: frozenset[str]) -> Iterator[os.DirEntry[str]]:
    """All files, sorted; links that lead back to a folder above are not followed."""
    place = os.path.realpath(folder)
    if place in above:
        return
    with contextlib.suppress(PermissionError):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if not entry.is_dir():
                yield entry
            elif not entry.name.startswith(".") and _plain(entry.name) not in without:
                yield from _walk(entry.path, frozenset(), above | {place})


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _why_not(entry: os.DirEntry[str]) -> str:
    """Why a file is skipped; empty if it is read, or is one of our own token files."""
    name = entry.name.lower()
    if entry.is_symlink() and not os.path.exists(entry.path):
        return f"a broken link to {os.readlink(entry.path)}"
    if name.startswith("."):
        return "hidden"
    if name.endswith(_OURS):
        return ""
    if not is_readable(name):
        return "an archive; unpack it there" if _ARCHIVE.search(name) else "unsupported format"
    if _NOTES.fullmatch(name) or name in _NOTES_OF_DATASETS:
        return "documentation, by name"
    return _why_not_open(entry)


def _why_not_open(entry: os.DirEntry[str]) -> str:
    if not entry.is_file():
        return "a device or pipe"
    if not os.access(entry.path, os.R_OK):
        return "no read permission; type chmod u+r"
    return "" if entry.stat().st_size else "empty"


def without_repeats(files: Iterable[Path]) -> list[Path]:
    """Keep only the longest of a file and partial downloads of it, so that nothing is read twice."""
    longest: dict[Path, tuple[float, Path]] = {}
    for path in files:
        part = _PART_NAME.fullmatch(path.name)
        whole, length = (path.with_name(part[1] + part[3]), int(part[2])) if part else (path, math.inf)
        longest[whole] = max(longest.get(whole, (0, path)), (length, path))
    return [path for _, path in longest.values()]


def split_by_name(files: list[Path], root: Path | None) -> tuple[list[Path], list[Path]]:
    """The files for training, and those for validation: with val, valid, test, dev or eval in their name or folder."""
    sides: tuple[list[Path], list[Path]] = ([], [])
    above = len(str(root)) + 1 if root else None
    for path in files:
        names = str(path)[above:].split(os.sep) if root else [path.name]
        sides[any(map(_VAL_NAME.search, (*names[:-1], path.stem)))].append(path)
    if not sides[0]:
        raise DataError(
            f"{listed(path.name for path in sides[1])}: only validation files, by their names; add a training file, "
            "or rename one so that it contains no val, test, dev or eval"
        )
    return sides
