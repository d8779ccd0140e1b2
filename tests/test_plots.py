"""storyladder/measuring/plots.py: pictures of run logs of all kinds."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stages import recorded, run_of

from model import GPT
from storyladder.measuring.history import History, histories_of, read_history
from storyladder.measuring.plots import LIGHT, draw_ladder, draw_stage, ladder_figure, panel_widths, stage_figure
from storyladder.settings import Ladder
from storyladder.stage.loop import train_stage


def log(steps: int, every: int = 1, *, start: float = 10.0, spike_at: int = -1) -> list[dict[str, Any]]:
    """A run log with an evaluation at step 0 and after each tenth of the steps."""
    records: list[dict[str, Any]] = [{"event": "evaluation", "step": 0, "val_loss": start}]
    for k in range(every, steps + 1, every):
        loss = 2 + (start - 2) / math.sqrt(1 + k) + 30.0 * (k == spike_at)
        records.append(
            {"event": "train", "step": k, "train_loss": loss, "grad_norm": 1 + 99.0 * (k == spike_at), "lr": 1e-3}
        )
        if k % max(every, steps // 10) == 0:
            records.append({"event": "evaluation", "step": k, "val_loss": loss})
    return records


def history_of(ladder: Ladder) -> History:
    history = read_history(ladder, ladder.stage("tiny"))
    assert history is not None
    return history


def is_picture(path: Path | None) -> bool:
    """Whether a PNG is large enough to read and holds more than paper."""
    image = pytest.importorskip("matplotlib.image")
    assert path is not None
    pixels = image.imread(str(path))
    return bool(pixels.shape[0] > 400 and pixels.shape[1] > 1_000 and np.ptp(pixels[:, :, :3]) > 0.5)


def test_a_stage_and_the_ladder_are_drawn_where_reports_lie(toy_data: Ladder) -> None:
    pytest.importorskip("matplotlib")
    train_stage(run_of(toy_data), GPT)
    stage, ladder = draw_stage(toy_data, toy_data.stage("tiny")), draw_ladder(toy_data)
    assert stage == toy_data.folder("reports") / "tiny" / "train.png" and is_picture(stage)
    assert ladder == toy_data.folder("reports") / "ladder.png" and is_picture(ladder)
    assert {path.name for path in toy_data.folder("reports").rglob("*") if path.is_file()} == {
        "train.png",
        "ladder.png",
    }


def test_axes_show_tokens_nats_and_perplexity(toy_ladder: Ladder) -> None:
    pytest.importorskip("matplotlib")
    recorded(toy_ladder, "tiny", *log(400, 10))
    losses, norms, rates, perplexity = stage_figure(history_of(toy_ladder)).axes
    assert losses.get_ylabel() == "loss (nats per token)" and perplexity.get_ylabel() == "perplexity"
    assert losses.get_ylim() == perplexity.get_ylim()
    shown = dict(zip((t.get_text() for t in perplexity.get_yticklabels()), perplexity.get_yticks(), strict=True))
    assert shown["10"] == pytest.approx(math.log(10)) and shown["1,000"] == pytest.approx(math.log(1_000))
    assert (norms.get_ylabel(), rates.get_ylabel(), rates.get_xlabel()) == (
        "gradient norm",
        "learning rate",
        "tokens read",
    )
    texts = " ".join(text.get_text() for text in losses.texts)
    assert "knows nothing yet: ln 50,257 = 10.82" in texts and "validation loss, lowest 2.40" in texts
    dotted = [line for line in losses.lines if line.get_linestyle() == ":"]
    assert dotted[0].get_ydata()[0] == pytest.approx(math.log(50257))
    dots = next(line for line in losses.lines if line.get_marker() == "o")
    assert dots.get_xdata().tolist()[:2] == [0, 40 * toy_ladder.tokens_per_step(toy_ladder.stage("tiny"))]


def test_validation_losses_are_never_smoothed_and_the_average_names_its_half_life(toy_ladder: Ladder) -> None:
    pytest.importorskip("matplotlib")
    records = log(2_000, 1)
    recorded(toy_ladder, "tiny", *records)
    axis = stage_figure(history_of(toy_ladder)).axes[0]
    dots = next(line for line in axis.lines if line.get_marker() == "o")
    assert dots.get_ydata().tolist() == [record["val_loss"] for record in records if record["event"] == "evaluation"]
    assert "EMA with a half-life of 2 steps" in " ".join(text.get_text() for text in axis.texts)
    raw = next(line for line in axis.lines if line.get_alpha() == 0.3)
    assert set(raw.get_ydata()) <= {record["train_loss"] for record in records if record["event"] == "train"}


def test_a_spike_of_one_step_among_200_000_stays(toy_ladder: Ladder) -> None:
    pytest.importorskip("matplotlib")
    recorded(toy_ladder, "tiny", *log(200_000, 10, spike_at=90_000))
    losses, norms = stage_figure(history_of(toy_ladder)).axes[:2]
    raw = next(line for line in losses.lines if line.get_alpha() == 0.3)
    assert raw.get_ydata().max() > 30 and len(raw.get_ydata()) < 2_000
    assert norms.lines[0].get_ydata().max() == 100


@pytest.mark.parametrize("records", [log(0), log(1), log(400, 10)[:1], log(30)[1:4], log(5)[1:2]], ids=len)
def test_short_and_unfinished_logs_are_drawn(toy_ladder: Ladder, records: list[dict[str, Any]]) -> None:
    pytest.importorskip("matplotlib")
    recorded(toy_ladder, "tiny", *records)
    assert is_picture(draw_stage(toy_ladder, toy_ladder.stage("tiny")))
    assert is_picture(draw_ladder(toy_ladder))


def test_the_ladder_has_a_panel_per_stage_wide_enough_to_read(toy_ladder: Ladder) -> None:
    pytest.importorskip("matplotlib")
    for name, steps in (("tiny", 3_000), ("children", 300), ("simple", 30)):
        recorded(toy_ladder, name, *log(steps, 10))
    histories = histories_of(toy_ladder)
    widths = panel_widths(histories)
    assert sum(widths) == pytest.approx(1) and min(widths) >= 0.16 and widths[0] > 0.6
    axes = ladder_figure(histories, LIGHT).axes
    assert [axis.get_title() for axis in axes[:3]] == ["1. tiny", "2. children", "3. simple"]
    assert axes[1].get_xticklabels()[0].get_text() == "192k", "the time line continues where stage 1 ended"


def test_without_matplotlib_there_is_one_line_and_no_failure(
    toy_ladder: Ladder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(toy_ladder, "tiny", *log(10))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw_stage(toy_ladder, toy_ladder.stage("tiny")) is None and draw_ladder(toy_ladder) is None
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 2
    assert "python -m pip install matplotlib" in printed.err


def test_nothing_to_draw_and_a_full_disk_are_one_line_each(
    toy_ladder: Ladder, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert draw_stage(toy_ladder, toy_ladder.stage("tiny")) is None and draw_ladder(toy_ladder) is None
    assert "train_tiny.py" in capsys.readouterr().err
    recorded(toy_ladder, "tiny", *log(10))
    toy_ladder.folder("reports").write_text("a file where a folder should be", encoding="utf-8")
    assert draw_ladder(toy_ladder) is None
    assert capsys.readouterr().err.startswith("warning: cannot write ")
