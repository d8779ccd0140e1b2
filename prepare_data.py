"""Encode stories into two token files a corpus: train.bin val.bin train_ch.bin val_ch.bin train_simp.bin val_simp.bin.

python prepare_data.py --sample            the bundled sample stories; no network
python prepare_data.py --download          the three real corpora, 7.4 GB; resumes an interrupted download
python prepare_data.py --download --limit-mb 100         part of each
python prepare_data.py --from DIR          your own copies: .txt .json .jsonl .csv .parquet .arrow, also compressed,
                                           in DIR/tiny, DIR/children and DIR/simple or under their original names
python prepare_data.py --stage children    the corpus of one stage only
python prepare_data.py                     the files in data/raw
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # python -P, or PYTHONSAFEPATH=1, leaves this folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from storyladder.command_line import Parser, as_typed_for, load_ladder, positive_number
from storyladder.runtime.errors import DataError, user_errors
from storyladder.settings import STORY_SEPARATORS, Ladder, StageConfig

if TYPE_CHECKING:
    from storyladder.corpus.corpora import Corpus
    from storyladder.corpus.prepare import CorpusText
    from storyladder.corpus.repeats import Hashes
    from storyladder.corpus.token_file import Sidecar
    from storyladder.runtime.signals import StopRequest


WHERE_FROM = (
    "Add --sample to use bundled stories (no network), --download to fetch the real corpora (7.4 GB; less with "
    "--limit-mb 100), or --from DIR to read your own folder; without a flag, {folder} is read"
)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    parser = Parser(__doc__, "prepare_data.py")
    parser.add_argument("--stage", metavar="NAME", help="only the corpus of this stage")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--from", type=Path, dest="folder", metavar="DIR", help="read stories from this folder")
    where.add_argument("--download", action="store_true", help="fetch the real corpora into data/raw")
    where.add_argument("--sample", action="store_true", help="use the bundled sample stories")
    parser.add_argument(
        "--limit-mb", type=positive_number, metavar="N", help="stop after N MB of training text in each corpus"
    )
    parser.add_argument(
        "--story-separator", choices=STORY_SEPARATORS, help="what separates the stories of .txt files; auto: detect it"
    )
    parser.add_argument("--story-field", metavar="NAME", help="the field or column that holds the story")
    parser.add_argument(
        "--keep-leaks", action="store_true", help="keep training stories that also stand in a validation text"
    )
    return parser.parse(argv)


def main(argv: list[str] | None = None) -> None:
    """Encode the corpora into token files."""
    with user_errors():
        flags = arguments(argv)
        ladder = load_ladder(flags.config, flags.preset)
        corpus = dataclasses.replace(
            ladder.corpus,
            story_separator=flags.story_separator or ladder.corpus.story_separator,
            story_field=flags.story_field or ladder.corpus.story_field,
        )
        ladder = dataclasses.replace(ladder, corpus=corpus)
        stages = [ladder.stage(flags.stage)] if flags.stage else ladder.stages
        first_of = {stage.corpus: stage for stage in reversed(stages)}  # the first stage that uses each corpus
        from storyladder.corpus.corpora import token_files
        from storyladder.corpus.prepare import MB, build_token_files
        from storyladder.corpus.tokenizer import tokenizer_named
        from storyladder.runtime.lock import locked
        from storyladder.runtime.signals import stop_on_signals

        limit_bytes = int(flags.limit_mb * MB) if flags.limit_mb else None
        with as_typed_for(ladder), stop_on_signals() as stop, locked(ladder.folder("data") / ".prepare.lock"):
            for name in first_of:
                with kept_from_training(ladder, name):
                    pass  # refuse before reading or downloading anything
            texts = corpus_texts(flags, ladder, [*reversed(first_of.values())], limit_bytes, stop)
            known = validation_stories(ladder, texts, limit_bytes, stop)
            for name in sorted(texts, key=lambda name: texts[name].val is not None):
                text = texts[name]
                print(*(f"{name} {line}" for line in text.plan), sep="\n", end="\n" if text.plan else "")
                train_path, val_path = token_files(ladder, first_of[name])
                with kept_from_training(ladder, name):
                    built = build_token_files(
                        text,
                        train_path=train_path,
                        val_path=val_path,
                        corpus=ladder.corpus,
                        tokenizer=tokenizer_named(ladder.tokenizer),
                        limit_bytes=limit_bytes,
                        held_back=[hashes for other, hashes in known.items() if other != name],
                        keep_leaks=flags.keep_leaks,
                        check_stop=stop.check,
                    )
                known |= stored_for_validation(ladder, name)
                print_built(name, text, built)
            print_across(flags, ladder)


def print_built(name: str, text: CorpusText, built: dict[Path, Sidecar]) -> None:
    """Print what reading detected, and a line for each token file."""
    from storyladder.corpus import repeats
    from storyladder.corpus.folders import counted
    from storyladder.corpus.prepare import MB

    for line in text.summary():
        print(f"{name}: {line}")
    for path, sidecar in built.items():
        counts = sorted(sidecar.cleaning.items())
        cleaned = ", ".join(f"{action} {count:,}" for action, count in counts if action not in repeats.COUNTS)
        print(
            f"{path}: {counted(sidecar.stories, 'story')}, {sidecar.text_bytes / MB:,.1f} MB of text, "
            f"{sidecar.tokens:,} tokens" + (f" ({cleaned})" if cleaned else ""),
            flush=True,
        )
    print(repeats.told(name, *built.values()), flush=True)


def print_across(flags: argparse.Namespace, ladder: Ladder) -> None:
    """Print which stories several corpora have, and the command that leaves out what validates another corpus."""
    from storyladder.corpus.corpora import token_files
    from storyladder.corpus.repeats import told_across
    from storyladder.corpus.token_file import recorded_sidecar

    first_of = {stage.corpus: stage for stage in reversed(ladder.stages)}
    pairs = {name: token_files(ladder, stage) for name, stage in reversed(first_of.items())}
    files = {name: [(path, recorded_sidecar(path)) for path in pair] for name, pair in pairs.items()}
    lines, leaking = told_across(files)
    print(*lines, sep="\n", end="\n" if lines else "")
    typed = ["--download"] * flags.download + ["--sample"] * flags.sample
    for flag in ("--from", "--limit-mb", "--story-separator", "--story-field"):
        value = flags.folder if flag == "--from" else getattr(flags, flag[2:].replace("-", "_"))
        typed += [flag, f"{value:g}" if isinstance(value, float) else str(value)] if value else []
    for name in leaking:
        command = ladder.command("prepare_data.py", "--stage", first_of[name].name, *typed)
        print(f"to leave them out of the training text of {name}: {command}")


def validation_stories(
    ladder: Ladder, texts: dict[str, CorpusText], limit_bytes: int | None, stop: StopRequest
) -> dict[str, tuple[Hashes, Hashes]]:
    """Hashes of the validation stories of each corpus, as far as they are known before anything is prepared.

    Where a hash of the story decides, they are known once that corpus is prepared, so it is prepared before those with
    validation files. Two such corpora cannot leak into each other: the same hash decides in both.
    """
    from storyladder.corpus.prepare import validation_hashes
    from storyladder.corpus.tokenizer import tokenizer_named

    tokenizer = tokenizer_named(ladder.tokenizer)
    known: dict[str, tuple[Hashes, Hashes]] = {}
    for name in dict.fromkeys(stage.corpus for stage in ladder.stages):
        if name not in texts:
            known |= stored_for_validation(ladder, name)
        elif texts[name].val and len(texts) > 1:
            known[name] = validation_hashes(texts[name], ladder.corpus, tokenizer, limit_bytes, stop.check)
    return known


def stored_for_validation(ladder: Ladder, corpus: str) -> dict[str, tuple[Hashes, Hashes]]:
    """Hashes of the stories in a corpus's validation file, by its name; empty if it has none."""
    from storyladder.corpus.corpora import token_files
    from storyladder.corpus.repeats import stored_hashes
    from storyladder.corpus.token_file import recorded_sidecar

    stage = next(stage for stage in ladder.stages if stage.corpus == corpus)
    _, val_path = token_files(ladder, stage)
    hashes = stored_hashes(val_path, recorded_sidecar(val_path))
    return {corpus: hashes} if hashes else {}


@contextlib.contextmanager
def kept_from_training(ladder: Ladder, corpus: str) -> Iterator[None]:
    """Hold the locks of all stages that read this corpus; refuse if one of them is training now."""
    from storyladder.corpus.corpora import corpus_files
    from storyladder.runtime.lock import locked

    with contextlib.ExitStack() as stack:
        for stage in ladder.stages:
            lock = ladder.lock(stage.name)
            reads = (stage.corpus, *(stage.replay or {}))
            if corpus in reads and lock.parent.exists():  # without that folder, nothing was ever trained
                stack.enter_context(locked(lock, corpus_files(ladder, corpus)[0]))
        yield


def corpus_texts(
    flags: argparse.Namespace, ladder: Ladder, stages: list[StageConfig], limit_bytes: int | None, stop: StopRequest
) -> dict[str, CorpusText]:
    """The text of each stage's corpus, by corpus name; everything is found or downloaded before any text is read.

    A corpus that --sample or --download cannot provide is read from data/raw.
    """
    from storyladder.corpus.corpora import corpus_named
    from storyladder.corpus.prepare import sample_text, text_of_files
    from storyladder.corpus.sources import download_source, hub_endpoint

    texts: dict[str, CorpusText] = {}
    to_fetch = []
    for stage in stages:
        corpus = corpus_named(stage.corpus)
        if flags.sample and corpus.register is not None:
            texts[corpus.name] = sample_text(corpus.name, ladder.corpus)
        elif flags.download and corpus.source is not None:
            to_fetch.append((stage, corpus.source))
        else:
            texts[corpus.name] = text_in_folder(flags.folder, ladder, corpus, alone=len(stages) == 1)
    for stage, source in to_fetch:
        with stop.at_once("the download stops here; the same command resumes it"):
            files = download_source(
                source,
                ladder.raw_folder / stage.corpus,
                stage=stage.name,
                endpoint=hub_endpoint(),
                limit_bytes=limit_bytes,
            )
        texts[stage.corpus] = text_of_files(files, ladder.corpus)
    return {stage.corpus: texts[stage.corpus] for stage in stages}


def text_in_folder(given: Path | None, ladder: Ladder, corpus: Corpus, *, alone: bool) -> CorpusText:
    """The text of a corpus in the given folder, else in data/raw; DataError with what to do if there is none."""
    from storyladder.corpus.corpora import CORPORA, corpus_named
    from storyladder.corpus.folders import Found, corpus_files
    from storyladder.corpus.prepare import text_of_files
    from storyladder.corpus.readers import SUFFIXES

    folder = given or ladder.raw_folder
    found = Found(folder, [], {})
    if given or folder.is_dir():
        others = [corpus_named(stage.corpus) for stage in ladder.stages]
        found = corpus_files(folder, corpus, alone=alone, others=others)
    if found.files:
        return text_of_files(found.files, ladder.corpus, found)
    left_out = f" (skipped: {found.skipped()})" if found.left_out else ""
    lacking = f"no text for corpus {corpus.name} in {folder}{left_out}"
    if given is None and corpus in CORPORA:
        raise DataError(f"{lacking}. {WHERE_FROM.format(folder=folder)}")
    if given is None:
        lacking += f" (only {', '.join(row.name for row in CORPORA)} can be downloaded or sampled)"
    put = f"put files into {folder / corpus.name} ({' '.join(SUFFIXES)})"
    raise DataError(f"{lacking}; {put}, or prepare only another stage with --stage")


if __name__ == "__main__":
    main()
