"""What a finished stage forgot: its result on the earlier corpora, next to the results that were trained on them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

from storyladder.corpus.corpora import token_files
from storyladder.corpus.token_file import ValidationWindows, open_token_file, recorded_fingerprint
from storyladder.measuring.forgetting import LIMIT, advice
from storyladder.results import StageFiles, check_shapes
from storyladder.runtime.checkpoint import peek_checkpoint
from storyladder.runtime.errors import CheckpointError, DataError, report
from storyladder.settings import Ladder, StageConfig
from storyladder.stage.setup import Stage


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A corpus of an earlier stage, and how well that stage's result predicted it."""

    stage: str
    corpus: str
    val_path: Path
    val_windows: int | None
    val_loss: float  # nats per token, on those windows


def earlier_results(ladder: Ladder, stage: StageConfig) -> Iterator[Earlier]:
    """The stages before this one whose result was evaluated on today's validation text, the nearest first.

    Ends at a result that is missing or not of this model: the stage above is finished all the same.
    """
    corpora = {stage.corpus}
    while stage.init_from is not None:
        stage = ladder.stage(stage.init_from)
        path, (_, val_path) = StageFiles.of(ladder, stage).result, token_files(ladder, stage)
        result = peek_checkpoint(path)
        try:
            check_shapes(result or {}, path, ladder.model)
        except CheckpointError:
            return
        assert result is not None
        if stage.corpus in corpora or result["data"].get(val_path.name) != recorded_fingerprint(val_path):
            continue
        corpora.add(stage.corpus)
        limit = result.get("fitted", {}).get("val_windows", result["settings"]["stages"][-1].get("val_windows"))
        yield Earlier(stage.name, stage.corpus, val_path, limit, result["val_loss"])


def report_forgetting(stage: Stage) -> None:
    """Evaluate the learner on the earlier corpora, and print and record how that compares. All ranks call it.

    The windows are those on which the earlier stages were evaluated. A corpus whose files are gone or have changed is
    left out.
    """
    learner, ladder = stage.learner, stage.run.ladder
    plain = learner.group.on_first(lambda: [vars(known) for known in earlier_results(ladder, stage.run.stage)])
    told = []
    for known in (Earlier(**values) for values in plain):
        try:
            windows = learner.group.together(functools.partial(_windows, stage, known))
            loss = learner.evaluate(windows, stage.stop.check_here).val_loss
        except DataError as error:
            report(f"what was forgotten of {known.corpus} is not known: {error}")
            continue
        change = loss / known.val_loss - 1
        stage.log.write(
            "forgetting",
            step=stage.state.best_step,
            corpus=known.corpus,
            val_loss=loss,
            before=known.val_loss,
            change=change,
        )
        told.append(f"{known.corpus} {known.val_loss:.3f} -> {loss:.3f} ({change:+.1%})")
        if change > LIMIT:
            report(
                f"warning: stage {stage.run.stage.name} forgot: its loss on {known.corpus} is {change:.0%} above that "
                f"of stage {known.stage}{advice(ladder, stage.run.stage.name, known.corpus)}"
            )
    if told:
        print(f"on earlier corpora, since their own stages: {', '.join(told)}")


def _windows(stage: Stage, known: Earlier) -> ValidationWindows:
    text = stage.text
    file = open_token_file(
        known.val_path, tokenizer=text.tokenizer.fingerprint, vocab_size=stage.run.ladder.model.vocab_size
    )
    return ValidationWindows(
        file.ids,
        context_length=text.context_length,
        limit=known.val_windows,
        token_bytes_V=text.tokenizer.token_bytes_V,
        check_size=file.check_size,
    )
