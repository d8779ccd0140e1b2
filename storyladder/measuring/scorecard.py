"""The story scorecard: numbers of N told stories per stage beside those of N real ones, without a judge model.

Prompts are openings of validation stories of the stage's own corpus; the same stories, as they really continue, are
the yardstick. Writes reports/scorecard.json. The numbers themselves are in metrics.py.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from storyladder.corpus.corpora import token_files
from storyladder.corpus.token_file import TokenFile, open_token_file
from storyladder.corpus.tokenizer import Tokenizer, tokenizer_named
from storyladder.learning.network import BuildModel, LanguageModel
from storyladder.measuring.copies import longest_copies
from storyladder.measuring.made import made
from storyladder.measuring.metrics import METRICS, Corpus, measure
from storyladder.measuring.names import words_of
from storyladder.measuring.real_stories import (
    WORDS_TOKENS,
    RealStory,
    choose_real_stories,
    training_text,
)
from storyladder.measuring.story_text import Story, words
from storyladder.measuring.telling_many import forced_choices, tell_many
from storyladder.results import load_result, stage_command
from storyladder.runtime.errors import DataError, UserError, report
from storyladder.runtime.files import replace_text
from storyladder.runtime.machine import device_text
from storyladder.runtime.progress import Progress, duration_text
from storyladder.settings import Ladder, StageConfig
from storyladder.telling.teller import load_teller

FORMAT_VERSION = 1
_BATCH = 50  # stories told at once; with the default model their cache takes 270 MB
_SEGMENT_WORDS = 100  # diversity is compared over so many words, or fewer where real stories are shorter
_FEWEST_WORDS = 10
_REAL = "real"  # who told the real stories
_WANTED = {"higher": "higher", "lower": "lower", "closer": "closer to real"}
_EXTRAS = ("sacrebleu", "textstat")

CheckStop = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class _Sample:
    """A story and the tokens after its prompt."""

    story: Story
    rest_ids: list[int]


@dataclasses.dataclass(frozen=True)
class _Text:
    """The token files of a corpus, and the real stories chosen from it."""

    name: str
    train: TokenFile
    real: list[RealStory]


def write_scorecard(
    ladder: Ladder,
    build_model: BuildModel,
    *,
    n: int,
    seed: int,
    device: torch.device,
    check_stop: CheckStop = lambda: None,
) -> list[str]:
    """Tell `n` stories with every stage that has a result, write scorecard.json, return the lines of a table.

    Story i is told with seed + i, as generate.py --seed does. UserError if no stage has a result, if `n` is below 2 or
    if a package of requirements-report.txt is missing; DataError for token files that are missing or too short.
    """
    if n < 2:
        raise UserError(f"a scorecard of {n} stories has no intervals; ask for at least 2, better 200")
    if missing := [name for name in _EXTRAS if importlib.util.find_spec(name) is None]:
        install = "python -m pip install -r requirements-report.txt"
        raise UserError(f"the scorecard needs the package {' and '.join(missing)}; run {install}")
    tokenizer = tokenizer_named(ladder.tokenizer)
    told, texts = _tell_all(ladder, build_model, tokenizer, n=n, seed=seed, device=device, check_stop=check_stop)
    limit = ladder.generate.max_new_tokens
    real = {text.name: _real_samples(text.real, tokenizer, limit) for text in texts}
    length = _common_length([sample.story for samples in real.values() for sample in samples])
    rows, corpora = [], {}
    for text in texts:
        report(f"reading the training text of {text.name}")
        corpus = Corpus(words_of(training_text(text.train, tokenizer, check_stop=check_stop)), length)
        corpora[text.name] = {
            "training_tokens": len(text.train.ids),
            "tokens_read_for_words": min(len(text.train.ids), WORDS_TOKENS),
            "vocabulary": len(corpus.words.vocabulary),
            "names": len(corpus.words.names),
        }
        groups = {
            stage.name: told[stage.name] for stage in ladder.stages if stage.name in told and stage.corpus == text.name
        }
        for who, stories in _with_copies({**groups, _REAL: real[text.name]}, text.train, tokenizer, check_stop):
            check_stop()
            metrics = {metric.name: measure(metric, stories, corpus, seed) for metric in METRICS}
            rows.append({"who": who, "corpus": text.name, "stories": len(stories), "metrics": metrics})
    content = {
        "format": FORMAT_VERSION,
        "made": made(command=ladder.command("evaluate.py", "--scorecard", str(n)), machine=device_text(device)),
        "n": n,
        "seed": seed,
        "settings": {
            "temperature": ladder.generate.temperature,
            "top_k": ladder.generate.top_k,
            "max_new_tokens": limit,
            "words_compared": length,
        },
        "corpora": corpora,
        "rows": rows,
        "samples": {stage: _as_plain(samples, seed) for stage, samples in told.items()},
    }
    path = ladder.folder("reports") / "scorecard.json"
    replace_text(path, json.dumps(content, indent=1) + "\n")
    return [*table_lines(content), f"wrote {path}"]


def _as_plain(samples: Sequence[_Sample], seed: int) -> list[dict[str, Any]]:
    """What the JSON keeps of the stories of a stage."""
    return [
        {"prompt": sample.story.prompt, "seed": seed + number, "story": sample.story.text}
        for number, sample in enumerate(samples)
    ]


def _tell_all(
    ladder: Ladder,
    build_model: BuildModel,
    tokenizer: Tokenizer,
    *,
    n: int,
    seed: int,
    device: torch.device,
    check_stop: CheckStop,
) -> tuple[dict[str, list[_Sample]], list[_Text]]:
    """The stories of every stage that has a result, and the texts of their corpora."""
    told: dict[str, list[_Sample]] = {}
    texts: dict[str, _Text] = {}
    for stage in ladder.stages:
        loaded = load_result(ladder, stage)
        if loaded is None:
            continue
        if stage.corpus not in texts:
            texts[stage.corpus] = _open_text(ladder, stage, tokenizer, n=n, seed=seed)
        for note in loaded.notes:
            report(f"warning: {note}")
        model = load_teller(ladder, loaded.path, build_model, device).model
        told[stage.name] = _tell(
            model, tokenizer, texts[stage.corpus].real, ladder, stage, seed=seed, device=device, check_stop=check_stop
        )
    if not told:
        first = stage_command(ladder, ladder.stages[0].name)
        raise UserError(f"no stage has a result in {ladder.folder('checkpoints')}; train one: {first}")
    return told, list(texts.values())


def _open_text(ladder: Ladder, stage: StageConfig, tokenizer: Tokenizer, *, n: int, seed: int) -> _Text:
    """The token files of a stage's corpus, verified, and `n` of its validation stories."""
    train, val = (
        open_token_file(path, tokenizer=tokenizer.fingerprint, vocab_size=ladder.model.vocab_size)
        for path in token_files(ladder, stage)
    )
    longest = max(1, ladder.model.context_length // 2)
    real = choose_real_stories(val, tokenizer, n=n, seed=seed, longest_prompt=longest)
    if len(real) < 2:
        raise DataError(
            f"{val.path} has {len(real)} stories with words after their opening, but a scorecard needs at least 2; "
            "prepare more text with python prepare_data.py"
        )
    if len(real) < n:
        report(f"note: {val.path.name} has only {len(real)} different stories to start from, not {n}")
    return _Text(stage.corpus, train, real)


def _tell(
    model: LanguageModel,
    tokenizer: Tokenizer,
    real: Sequence[RealStory],
    ladder: Ladder,
    stage: StageConfig,
    *,
    seed: int,
    device: torch.device,
    check_stop: CheckStop,
) -> list[_Sample]:
    """One stage's continuations of the openings of real stories."""
    samples, limit = [], ladder.generate.max_new_tokens
    with Progress(f"stories of {stage.name}", step=0, max_steps=len(real)) as bar:
        show = _Telling(bar, len(real), check_stop)
        for start in range(0, len(real), _BATCH):
            batch = real[start : start + _BATCH]
            told = tell_many(
                model,
                tokenizer,
                [story.prompt_ids for story in batch],
                settings=ladder.generate,
                seeds=range(seed + start, seed + start + len(batch)),
                device=device,
                show=functools.partial(show, start, len(batch)),
            )
            for one, story in zip(told, batch, strict=True):
                check_stop()
                reference, reference_ids, _ = story.cut(limit, tokenizer)
                forced = forced_choices(model, tokenizer, story.prompt_ids, reference_ids, device)
                continued = Story(
                    prompt=story.prompt,
                    rest=tokenizer.decode(one.rest),
                    ended=one.ended,
                    reference=reference,
                    forced=tokenizer.decode(forced),
                )
                samples.append(_Sample(continued, one.rest))
    return samples


class _Telling:
    """How far the telling is, and for how long it lasts at most: most stories end before the limit of tokens."""

    def __init__(self, bar: Progress, stories: int, check_stop: CheckStop) -> None:
        self._bar, self._stories, self._check_stop = bar, stories, check_stop
        self._began = time.monotonic()

    def __call__(self, before: int, batch: int, finished: int, read: float) -> None:
        """`finished` of a batch of stories, the longest of which are told to the part `read`, `before` others."""
        self._check_stop()
        told = before + batch * read  # if none ended early
        left = (time.monotonic() - self._began) / told * (self._stories - told) if told else None
        text = "" if left is None else f"at most {duration_text(left)} left"
        self._bar.show(before + finished, self._stories, text)


def _real_samples(real: Sequence[RealStory], tokenizer: Tokenizer, limit: int) -> list[_Sample]:
    """The real stories, cut to the tokens that a model may tell; each one's reference is the next one."""
    cuts = [story.cut(limit, tokenizer) for story in real]
    references = [text for text, _, _ in (*cuts[1:], cuts[0])]
    return [
        _Sample(Story(prompt=story.prompt, rest=text, ended=ended, reference=reference), ids)
        for story, (text, ids, ended), reference in zip(real, cuts, references, strict=True)
    ]


def _common_length(real: Sequence[Story]) -> int:
    """Words over which diversity is compared: nine in ten of the real stories have as many."""
    lengths = [len(words(story.text)) for story in real]
    return max(_FEWEST_WORDS, min(_SEGMENT_WORDS, int(np.percentile(lengths, 10))))


def _with_copies(
    groups: dict[str, list[_Sample]], train: TokenFile, tokenizer: Tokenizer, check_stop: CheckStop
) -> Iterator[tuple[str, list[Story]]]:
    """The stories of each group with the number of words they copy, from one pass over the training text."""
    everything = [sample.rest_ids for samples in groups.values() for sample in samples]

    def check() -> None:
        check_stop()
        train.check_size()

    found = iter(longest_copies(everything, train.ids, check_stop=check))
    for who, samples in groups.items():
        stories = []
        for sample in samples:
            start, length = next(found)
            copied = len(words(tokenizer.decode(sample.rest_ids[start : start + length])))
            stories.append(dataclasses.replace(sample.story, copied_words=copied))
        yield who, stories


def table_lines(content: dict[str, Any]) -> list[str]:
    """The scorecard as one table per corpus: its stages, and its real stories as the yardstick."""
    settings = content["settings"]
    lines = [
        f"{content['n']} stories per stage, seed {content['seed']}, temperature {settings['temperature']:g}, "
        f"top_k {settings['top_k']}, at most {settings['max_new_tokens']:,} tokens; 95 % intervals in brackets"
    ]
    for corpus in dict.fromkeys(row["corpus"] for row in content["rows"]):
        rows = [row for row in content["rows"] if row["corpus"] == corpus]
        table = [["", *(row["who"] if row["who"] != _REAL else f"{_REAL} {corpus}" for row in rows), "better"]]
        table += [["stories", *(f"{row['stories']:,}" for row in rows), ""]]
        for metric in METRICS:
            table.append([metric.name, *(_cell(row["metrics"][metric.name]) for row in rows), _WANTED[metric.better]])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines.append("")
        lines += ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
    return lines


def _cell(number: dict[str, Any]) -> str:
    """A value and its interval."""
    if number["value"] is None:
        return "-"
    value, low, high = (f"{number[key]:.3g}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
