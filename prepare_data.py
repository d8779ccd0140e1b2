"""Turn stories into the six token files: train.bin val.bin train_ch.bin val_ch.bin train_simp.bin val_simp.bin.

python prepare_data.py --sample            the bundled sample stories; no network
python prepare_data.py --download          the three real corpora, 7.4 GB; goes on where it was interrupted
python prepare_data.py --download --limit-mb 100         a part of each
python prepare_data.py --from DIR          stories that are here already: .txt .json .jsonl .parquet,
                                           in DIR/tiny, DIR/children and DIR/simple or under their original names
python prepare_data.py --stage children    one stage only
python prepare_data.py                     whatever lies in data/raw
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from storyladder.command_line import Parser, load_ladder, positive_number
from storyladder.runtime.errors import DataError, user_errors
from storyladder.settings import STAGE_NAMES, Ladder

if TYPE_CHECKING:
    from storyladder.corpus.prepare import StageText
    from storyladder.runtime.signals import StopRequest


WHERE_FROM = (
    "Where are the stories? --sample makes the bundled ones (no network), --download fetches the real corpora (7.4 GB; "
    "with --limit-mb 100 less), --from DIR reads a folder of yours; without a flag {folder} is read"
)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    parser = Parser(__doc__)
    parser.add_argument("--stage", choices=STAGE_NAMES, help="only this stage")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--from", type=Path, dest="folder", metavar="DIR", help="read stories from this folder")
    where.add_argument("--download", action="store_true", help="fetch the real corpora into data/raw")
    where.add_argument("--sample", action="store_true", help="use the bundled sample stories")
    parser.add_argument(
        "--limit-mb", type=positive_number, metavar="N", help="stop after N MB of training text in each stage"
    )
    return parser.parse(argv)


def main(argv: list[str] | None = None) -> None:
    """Prepare the token files."""
    with user_errors():
        flags = arguments(argv)
        ladder = load_ladder(flags.config, flags.preset)
        from storyladder.corpus.prepare import MB, build_token_files
        from storyladder.corpus.tokenizer import gpt2_tokenizer
        from storyladder.runtime.lock import locked
        from storyladder.runtime.signals import stop_on_signals

        folder = ladder.folder("data")
        limit_bytes = int(flags.limit_mb * MB) if flags.limit_mb else None
        with stop_on_signals() as stop, locked(folder / ".prepare.lock"):
            texts = stage_texts(flags, ladder, limit_bytes, stop)
            for name, text in texts.items():
                stage = ladder.stage(name)
                built = build_token_files(
                    text,
                    train_path=folder / stage.train_file,
                    val_path=folder / stage.val_file,
                    corpus=ladder.corpus,
                    tokenizer=gpt2_tokenizer(),
                    limit_bytes=limit_bytes,
                    check_stop=stop.check,
                )
                for path, sidecar in built.items():
                    cleaned = ", ".join(f"{action} {count:,}" for action, count in sorted(sidecar.cleaning.items()))
                    print(
                        f"{path}: {sidecar.stories:,} stories, {sidecar.text_bytes / MB:,.1f} MB of text, "
                        f"{sidecar.tokens:,} tokens" + (f" ({cleaned})" if cleaned else ""),
                        flush=True,
                    )


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
        texts[name] = text_of_files(files)
    return texts


def texts_of_folder(given: Path | None, ladder: Ladder, names: list[str]) -> dict[str, StageText]:
    """The text of every stage in a folder, or in data/raw where none was given."""
    from storyladder.corpus.prepare import find_stage_files, text_of_files

    folder = given or ladder.raw_folder
    found = {}
    if given is None and not any(folder.glob("**/*.*")):
        raise DataError(WHERE_FROM.format(folder=folder))
    for name in names:
        files = find_stage_files(folder, name, only_stage=len(names) == 1)
        if not files and given is None:
            raise DataError(f"no text for stage {name} in {folder}. " + WHERE_FROM.format(folder=folder))
        if not files:
            raise DataError(
                f"no text for stage {name} in {folder}; put .txt, .json, .jsonl or .parquet files into "
                f"{folder / name}, or prepare another stage alone with --stage"
            )
        found[name] = text_of_files(files)
    return found


if __name__ == "__main__":
    main()
