"""Turn stories into token files, two a corpus: train.bin val.bin train_ch.bin val_ch.bin train_simp.bin val_simp.bin.

python prepare_data.py --sample            the bundled sample stories; no network
python prepare_data.py --download          the three real corpora, 7.4 GB; goes on where it was interrupted
python prepare_data.py --download --limit-mb 100         a part of each
python prepare_data.py --from DIR          stories that are here already: .txt .json .jsonl .csv .parquet .arrow, packed
                                           or not, in DIR/tiny, DIR/children and DIR/simple or under their own names
python prepare_data.py --stage children    the corpus of one stage only
python prepare_data.py                     whatever lies in data/raw
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
    "Where are the stories? --sample makes the bundled ones (no network), --download fetches the real corpora (7.4 GB; "
    "with --limit-mb 100 less), --from DIR reads a folder of yours; without a flag {folder} is read"
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
        "--story-separator", choices=STORY_SEPARATORS, help="what separates the stories of .txt files; auto: found out"
    )
    parser.add_argument("--story-field", metavar="NAME", help="the field or column that holds the story")
    return parser.parse(argv)


def main(argv: list[str] | None = None) -> None:
    """Prepare the token files."""
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
        first_of = {stage.corpus: stage for stage in reversed(stages)}  # of the stages that a corpus is for
        from storyladder.corpus.corpora import token_files
        from storyladder.corpus.prepare import MB, build_token_files
        from storyladder.corpus.tokenizer import tokenizer_named
        from storyladder.runtime.lock import locked
        from storyladder.runtime.signals import stop_on_signals

        limit_bytes = int(flags.limit_mb * MB) if flags.limit_mb else None
        with as_typed_for(ladder), stop_on_signals() as stop, locked(ladder.folder("data") / ".prepare.lock"):
            for name in first_of:
                with kept_from_training(ladder, name):
                    pass  # refused before anything is read or fetched
            for name, text in corpus_texts(flags, ladder, [*reversed(first_of.values())], limit_bytes, stop).items():
                print(*(f"{name} {line}" for line in text.said_before), sep="\n", end="\n" if text.said_before else "")
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
    """What was found out while reading, and a line for each token file."""
    from storyladder.corpus.folders import counted
    from storyladder.corpus.prepare import MB

    for line in text.said_after():
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
    """Refuses where a stage trains on the token files that are to be replaced, and keeps it from starting."""
    from storyladder.corpus.corpora import token_files
    from storyladder.runtime.lock import locked

    with contextlib.ExitStack() as stack:
        for stage in ladder.stages:
            lock = ladder.lock(stage.name)
            if stage.corpus == corpus and lock.parent.exists():  # else nothing has ever been trained
                stack.enter_context(locked(lock, token_files(ladder, stage)[0]))
        yield


def corpus_texts(
    flags: argparse.Namespace, ladder: Ladder, stages: list[StageConfig], limit_bytes: int | None, stop: StopRequest
) -> dict[str, CorpusText]:
    """The text of the corpus of each stage by its name, found or fetched before any of it is read.

    What --sample and --download do not have lies in data/raw.
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
    """The text of a corpus in the folder that was given, else in data/raw; a DataError says what to do without any."""
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
    left_out = f" (not read: {found.left_out_words()})" if found.left_out else ""
    lacking = f"no text for corpus {corpus.name} in {folder}{left_out}"
    if given is None and corpus in CORPORA:
        raise DataError(f"{lacking}. {WHERE_FROM.format(folder=folder)}")
    if given is None:
        lacking += f" (only {', '.join(row.name for row in CORPORA)} can be downloaded, or made up as samples)"
    put = f"put files into {folder / corpus.name} ({' '.join(SUFFIXES)})"
    raise DataError(f"{lacking}; {put}, or prepare another stage alone with --stage")


if __name__ == "__main__":
    main()
