"""Turn stories into the six token files: train.bin val.bin train_ch.bin val_ch.bin train_simp.bin val_simp.bin.

python prepare_data.py --sample            the bundled sample stories; no network
python prepare_data.py --download          the three real corpora, 7.4 GB; goes on where it was interrupted
python prepare_data.py --download --limit-mb 100         a part of each
python prepare_data.py --from DIR          stories that are here already: .txt .json .jsonl .csv .parquet .arrow, packed
                                           or not, in DIR/tiny, DIR/children and DIR/simple or under their own names
python prepare_data.py --stage children    one stage only
python prepare_data.py                     whatever lies in data/raw
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # python -P, or PYTHONSAFEPATH=1, leaves this folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from storyladder.command_line import Parser, as_typed_for, load_ladder, positive_number
from storyladder.runtime.errors import DataError, user_errors
from storyladder.settings import STAGE_NAMES, STORY_SEPARATORS, Ladder

if TYPE_CHECKING:
    from storyladder.corpus.prepare import StageText
    from storyladder.runtime.signals import StopRequest


WHERE_FROM = (
    "Where are the stories? --sample makes the bundled ones (no network), --download fetches the real corpora (7.4 GB; "
    "with --limit-mb 100 less), --from DIR reads a folder of yours; without a flag {folder} is read"
)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    parser = Parser(__doc__, "prepare_data.py")
    parser.add_argument("--stage", choices=STAGE_NAMES, help="only this stage")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--from", type=Path, dest="folder", metavar="DIR", help="read stories from this folder")
    where.add_argument("--download", action="store_true", help="fetch the real corpora into data/raw")
    where.add_argument("--sample", action="store_true", help="use the bundled sample stories")
    parser.add_argument(
        "--limit-mb", type=positive_number, metavar="N", help="stop after N MB of training text in each stage"
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
        from storyladder.corpus.folders import counted
        from storyladder.corpus.prepare import MB, build_token_files
        from storyladder.corpus.tokenizer import gpt2_tokenizer
        from storyladder.runtime.lock import locked
        from storyladder.runtime.signals import stop_on_signals

        folder = ladder.folder("data")
        limit_bytes = int(flags.limit_mb * MB) if flags.limit_mb else None
        with as_typed_for(ladder), stop_on_signals() as stop, locked(folder / ".prepare.lock"):
            for name in [flags.stage] if flags.stage else STAGE_NAMES:
                with kept_from_training(ladder, name):
                    pass  # refused before anything is read or fetched
            texts = stage_texts(flags, ladder, limit_bytes, stop)
            for name, text in texts.items():
                stage = ladder.stage(name)
                print(*(f"{name} {line}" for line in text.said_before), sep="\n", end="\n" if text.said_before else "")
                with kept_from_training(ladder, name):
                    built = build_token_files(
                        text,
                        train_path=folder / stage.train_file,
                        val_path=folder / stage.val_file,
                        corpus=ladder.corpus,
                        tokenizer=gpt2_tokenizer(),
                        limit_bytes=limit_bytes,
                        check_stop=stop.check,
                    )
                for line in text.said_after():
                    print(f"{name}: {line}")
                for path, sidecar in built.items():
                    cleaned = ", ".join(f"{action} {count:,}" for action, count in sorted(sidecar.cleaning.items()))
                    print(
                        f"{path}: {counted(sidecar.stories, 'story')}, {sidecar.text_bytes / MB:,.1f} MB of text, "
                        f"{sidecar.tokens:,} tokens" + (f" ({cleaned})" if cleaned else ""),
                        flush=True,
                    )


def kept_from_training(ladder: Ladder, stage_name: str) -> contextlib.AbstractContextManager[None]:
    """Refuses where the stage trains on the token files that are to be replaced, and keeps it from starting."""
    from storyladder.runtime.lock import locked

    lock, stage = ladder.lock(stage_name), ladder.stage(stage_name)
    if not lock.parent.exists():
        return contextlib.nullcontext()  # nothing has ever been trained
    return locked(lock, ladder.folder("data") / stage.train_file)


def stage_texts(
    flags: argparse.Namespace, ladder: Ladder, limit_bytes: int | None, stop: StopRequest
) -> dict[str, StageText]:
    """The text of every stage that was asked for, found or fetched before any of it is read."""
    from storyladder.corpus.prepare import sample_text, text_of_files
    from storyladder.corpus.sources import SOURCES, download_source, hub_endpoint

    names = [flags.stage] if flags.stage else list(STAGE_NAMES)
    if flags.sample:
        return {name: sample_text(name, ladder.corpus) for name in names}
    if not flags.download:
        return texts_of_folder(flags.folder, ladder, names)
    texts = {}
    for name in names:
        with stop.at_once("the download stops here; the same command resumes it"):
            files = download_source(
                SOURCES[name], ladder.raw_folder / name, endpoint=hub_endpoint(), limit_bytes=limit_bytes
            )
        texts[name] = text_of_files(files, ladder.corpus)
    return texts


def texts_of_folder(given: Path | None, ladder: Ladder, names: list[str]) -> dict[str, StageText]:
    """The text of every stage in a folder, or in data/raw where none was given."""
    from storyladder.corpus.folders import stage_files
    from storyladder.corpus.prepare import text_of_files
    from storyladder.corpus.readers import SUFFIXES

    folder = given or ladder.raw_folder
    texts = {}
    if given is None and not any(folder.glob("**/*.*")):
        raise DataError(WHERE_FROM.format(folder=folder))
    for name in names:
        found = stage_files(folder, name, only_stage=len(names) == 1)
        left_out = f" (not read: {found.left_out_words()})" if found.left_out else ""
        if not found.files and given is None:
            raise DataError(f"no text for stage {name} in {folder}{left_out}. " + WHERE_FROM.format(folder=folder))
        if not found.files:
            raise DataError(
                f"no text for stage {name} in {folder}{left_out}; put files into {folder / name} "
                f"({' '.join(SUFFIXES)}), or prepare another stage alone with --stage"
            )
        texts[name] = text_of_files(found.files, ladder.corpus, found)
    return texts


if __name__ == "__main__":
    main()
