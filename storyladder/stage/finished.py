"""Running a stage that is already finished: does its result match the current settings and data?

Training never continues from a result: the optimizer state is gone, and the learning rate schedule has ended. So if
settings or data have changed, there is an error with the command that trains the stage again; --accept-changes keeps
the result.
"""

from __future__ import annotations

import dataclasses

from storyladder.command_line import StageRun
from storyladder.corpus.corpora import token_files, training_files
from storyladder.corpus.token_file import recorded_fingerprint
from storyladder.results import StageFiles, broken_links, check_shapes, load_result
from storyladder.runtime.checkpoint import Loaded, Payload, rename_damaged, save_checkpoint
from storyladder.runtime.errors import SaveFailed, UserError, report
from storyladder.stage.changes import changes_since
from storyladder.stage.start import warn_all


def report_finished(run: StageRun, files: StageFiles) -> None:
    """Describe the result, and repair it if it is damaged; UserError if settings or data have changed since."""
    loaded = load_result(run.ladder, run.stage)
    assert loaded is not None
    warn_all(loaded.notes)
    check_shapes(loaded.payload, files.result, run.ladder.model)
    if loaded.path != files.result:
        _rewrite_result(files, loaded)
    _compare(run, loaded.payload)
    if run.minutes is not None:
        minutes = f"{run.minutes:g}"
        report(
            f"--minutes {minutes} has no effect on a finished stage; to train it again in that time: "
            f"{run.again('--fresh', '--minutes', minutes)}"
        )
    print(
        f"stage {run.stage.name} is finished: {loaded.path.name} has validation loss "
        f"{loaded.payload['val_loss']:.4f} from step {loaded.payload['step']:,}. "
        f"To start it over: {run.again('--fresh')}"
    )
    files.forget_resume_state()


def _compare(run: StageRun, payload: Payload) -> None:
    """Raise UserError if the stage would be trained differently now; with --accept-changes, warn."""
    *ancestors, saved = payload["settings"]["stages"]
    asked = dataclasses.asdict(run.stage)
    # Settings that did not exist when the result was written cannot be compared.
    settings = {**payload["settings"], "stages": [*ancestors, {**asked, "corpus": saved.get("name"), **saved}]}
    files = [*token_files(run.ladder, run.stage), *training_files(run.ladder, run.stage)]
    data = {path.name: recorded_fingerprint(path) for path in files}
    there = {name: fingerprint for name, fingerprint in data.items() if fingerprint is not None}
    changes = changes_since({**payload, "settings": settings}, run.ladder, run.stage, there)
    changes += [reason for _, reason in broken_links(run.ladder, run.stage, payload)]
    if changes and not run.accept_changes:
        raise UserError(
            f"stage {run.stage.name} is finished, but was trained differently: {'; '.join(changes)}. To train it "
            f"again and keep the old result under another name: {run.again('--fresh')}; to keep it as it is: "
            f"{run.again('--accept-changes')}"
        )
    if saved.get("patience", run.stage.patience) != run.stage.patience:
        changes.append(f"patience was {saved['patience']} and is {run.stage.patience}")
    if changes:
        report(f"warning: stage {run.stage.name} is kept as it was trained, although {'; '.join(changes)}")


def _rewrite_result(files: StageFiles, best: Loaded) -> None:
    """Replace a damaged result by the best weights; the damaged file is renamed."""
    aside = rename_damaged(files.result)
    try:
        save_checkpoint(files.result, best.payload, keep_previous=False)
    except OSError as error:
        raise SaveFailed(
            f"{files.result} is damaged and could not be rewritten ({error.strerror}); the weights are safe in "
            f"{best.path}. Free some space, then run the same command again"
        ) from None
    report(f"{files.result.name} was rewritten from {best.path.name}; the damaged one is kept as {aside.name}")
