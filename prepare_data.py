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
            for name, text in corpus_texts(flags, ladder, [*reversed(first_of.values())], limit_bytes, stop).items():
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
                        check_stop=stop.check,
                    )
                print_built(name, text, built)


def print_built(name: str, text: CorpusText, built: dict[Path, Sidecar]) -> None:
    """Print what reading detected, and a line for each token file."""
    from storyladder.corpus.folders import counted
    from storyladder.corpus.prepare import MB

    for line in text.summary():
        print(f"{name}: {line}")
    for path, sidecar in built.items():
        cleaned = ", ".join(f"{action} {count:,}" for action, count in sorted(sidecar.cleaning.items()))
        print(
            f"{path}: {counted(sidecar.stories, 'story')}, {sidecar.text_bytes / MB:,.1f} MB of text, "
            f"{sidecar.tokens:,} tokens" + (f" ({cleaned})" if cleaned else ""),
            flush=True,
        )


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
