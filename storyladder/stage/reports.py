"""What a stage writes for people: a row at every evaluation and epoch, stories, TensorBoard files, pictures."""

from __future__ import annotations

import math

from storyladder.command_line import StageRun
from storyladder.corpus.tokenizer import Tokenizer
from storyladder.learning.evaluation import Evaluation
from storyladder.learning.learner import Learner
from storyladder.learning.network import BuildModel
from storyladder.learning.packing import pack_weights
from storyladder.learning.schedule import lr_at
from storyladder.measuring.plots import draw_ladder, draw_stage
from storyladder.measuring.scrapbook import Scrapbook
from storyladder.measuring.tensorboard import TensorBoard
from storyladder.runtime.run_log import RunLog
from storyladder.settings import StageConfig
from storyladder.stage.state import TrainState

_FAR_FROM_KNOWING_NOTHING = 0.5  # nats


class Reports:
    """The reports of one stage, in reports/STAGE. Only rank 0 writes them."""

    def __init__(
        self, run: StageRun, tokenizer: Tokenizer, build_model: BuildModel, learner: Learner, log: RunLog
    ) -> None:
        self._run, self._log, self._learner = run, log, learner
        self._tensorboard: TensorBoard | None = None
        self.scrapbook = Scrapbook(
            run.ladder.folder("reports") / run.stage.name,
            run.ladder.sample_prompts,
            seed=run.stage.seed,
            max_new_tokens=run.stage.sample_tokens,
            settings=run.ladder.generate,
            tokenizer=tokenizer,
            build_model=build_model,
            model=run.ladder.model,
            device=learner.device,
        )

    def begin(self, state: TrainState) -> None:
        """Continue earlier reports from where the stage continues."""
        if not self._learner.group.is_first:
            return
        self.scrapbook.continue_from(state.evaluated_at)
        if self._run.stage.tensorboard:
            folder = self._run.ladder.folder("runs") / f"{self._run.stage.name}.tensorboard"
            # Rows after the resume state are written again; that of this step only if it is not evaluated yet.
            again = state.step % self._learner.stage.eval_interval == 0 and state.evaluated_at != state.step
            self._tensorboard = TensorBoard(folder, first_step=state.step if again else state.step + 1)

    def write_row(self, state: TrainState, *, epoch: float, at: str) -> None:
        """Record the means over the steps since the last row, beside the last evaluation.

        `epoch` is how often the stage's text has been read, `at` what calls for a row: "evaluation" or "epoch".
        """
        schedule, measured = self._learner.stage, state.measured
        row = {
            "step": state.step,
            "epoch": round(epoch, 4),
            "train_loss": state.row_loss / state.row_steps if state.row_steps else None,
            "val_loss": measured.get("val_loss"),
            "perplexity": measured.get("perplexity"),
            "bits_per_byte": measured.get("bits_per_byte"),
            "grad_norm": state.row_norm / state.row_steps if state.row_steps else None,
            "lr": lr_at(max(0, state.step - 1), schedule),
            "tokens": state.step * self._run.ladder.tokens_per_step(schedule),
            "minutes": round(state.train_seconds / 60, 2),
        }
        state.row_steps, state.row_loss, state.row_norm = 0, 0.0, 0.0
        self._log.write("row", at=at, **row)
        if self._tensorboard is not None:
            self._tensorboard.write(state.step, {name: value for name, value in row.items() if value is not None})

    def tell(self, state: TrainState, measured: Evaluation) -> None:
        """Add what the model tells now to the scrapbook."""
        if self._learner.group.is_first and self._run.stage.sample_tokens:
            weights = pack_weights(self._learner.model, self._learner.vocabulary)
            tokens = state.step * self._run.ladder.tokens_per_step(self._learner.stage)
            self.scrapbook.add(weights, step=state.step, tokens=tokens, val_loss=measured.val_loss)

    def draw(self) -> None:
        """Draw the curves of the stage and of the ladder."""
        if not (self._run.stage.pictures and self._learner.group.is_first):
            return
        if draw_stage(self._run.ladder, self._run.stage) is not None:
            draw_ladder(self._run.ladder)


def first_loss_explained(val_loss: float, stage: StageConfig, vocab_size: int) -> str:
    """What is wrong with the validation loss before the first step, in a sentence; empty if nothing is."""
    know_nothing = math.log(vocab_size)
    if stage.init_from is not None or abs(val_loss - know_nothing) <= _FAR_FROM_KNOWING_NOTHING:
        return ""
    why = (
        "it is sure of wrong words, so its first weights are too large (the network's initialization)"
        if val_loss > know_nothing
        else "it knows something already, so validation text is easier than it should be (a few words only?)"
    )
    return (
        f"the first loss is {val_loss:.2f}. A model that has learned nothing takes all {vocab_size:,} tokens for "
        f"equally likely and has a loss of ln {vocab_size:,} = {know_nothing:.2f}; {why}"
    )
