"""benchmarks/ladder_picture.py: which records become curves, and a picture of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import edited_config, refusal

from benchmarks.ladder_picture import StageCurve, curves_of, draw, main
from storyladder.command_line import load_ladder
from storyladder.settings import Ladder


def config_in(folder: Path) -> Path:
    return edited_config(folder, f"PRESETS = (replace(DEMO, paths=Paths(root={str(folder)!r})),)")


def recorded(ladder: Ladder, stage: str, *records: dict[str, object]) -> None:
    path = ladder.folder("runs") / f"{stage}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_training_and_validation_losses_become_a_curve_per_stage_that_has_any(tmp_path: Path) -> None:
    ladder = load_ladder(config_in(tmp_path), "demo")
    recorded(ladder, "simple", {"event": "evaluation", "step": 0, "val_loss": 5.0})
    recorded(
        ladder,
        "tiny",
        {"event": "start", "step": 0},
        {"event": "evaluation", "step": 0, "val_loss": 10.8},
        {"event": "train", "step": 10, "train_loss": 9.5},
        {"event": "evaluation", "step": 12, "val_loss": 9.0},
    )
    curves = curves_of(ladder)
    assert curves == [
        StageCurve("tiny", [(10, 9.5)], [(0, 10.8), (12, 9.0)]),
        StageCurve("simple", [], [(0, 5.0)]),
    ]
    assert [curve.steps for curve in curves] == [12, 0]


def test_without_a_record_the_message_says_what_to_type(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    config = config_in(tmp_path)
    message = refusal("benchmarks/ladder_picture.py", "--config", config, "--preset", "demo", "--out", tmp_path)
    assert "no losses in" in message and f"train_tiny.py --config {config} --preset demo" in message


@pytest.mark.slow
def test_both_pictures_are_drawn_from_the_record(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    config = config_in(tmp_path)
    ladder = load_ladder(config, "demo")
    steps = range(0, 100, 10)
    records = [{"event": "evaluation", "step": 0, "val_loss": 10.8}]
    recorded(ladder, "tiny", *records, *({"event": "train", "step": k, "train_loss": 10 / (1 + k)} for k in steps))
    main(["--config", str(config), "--preset", "demo", "--out", str(tmp_path / "pictures")])
    for theme in ("light", "dark"):
        assert (tmp_path / "pictures" / f"ladder-{theme}.png").read_bytes().startswith(b"\x89PNG")
    light, dark = ((tmp_path / "pictures" / f"ladder-{theme}.png").read_bytes() for theme in ("light", "dark"))
    assert light != dark
    draw(curves_of(ladder), tmp_path / "again.png", "light")
    assert (tmp_path / "again.png").read_bytes() == light
