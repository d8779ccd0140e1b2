"""benchmarks/ladder_picture.py: the picture in README.md, drawn by storyladder/measuring/plots.py on no background."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import edited_config, refusal
from stages import recorded

from benchmarks.ladder_picture import main
from storyladder.command_line import load_ladder


def config_in(folder: Path) -> Path:
    return edited_config(folder, f"PRESETS = (replace(DEMO, paths=Paths(root={str(folder)!r})),)")


def test_without_a_record_the_message_says_what_to_type(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    config = config_in(tmp_path)
    message = refusal("benchmarks/ladder_picture.py", "--config", config, "--preset", "demo", "--out", tmp_path)
    assert "no losses in" in message and f"train_tiny.py --config {config} --preset demo" in message


def test_both_pictures_are_drawn_from_the_record_for_a_light_and_a_dark_page(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    config = config_in(tmp_path)
    ladder = load_ladder(config, "demo")
    records = [{"event": "evaluation", "step": 0, "val_loss": 10.8}]
    records += [{"event": "train", "step": k, "train_loss": 10 / k, "grad_norm": 1.0, "lr": 1e-3} for k in range(1, 99)]
    recorded(ladder, "tiny", *records)
    main(["--config", str(config), "--preset", "demo", "--out", str(tmp_path / "pictures")])
    light, dark = (tmp_path / "pictures" / f"ladder-{theme}.png" for theme in ("light", "dark"))
    assert light.read_bytes() != dark.read_bytes()
    pixels = image.imread(str(light))
    assert pixels.shape[2] == 4 and pixels[0, 0, 3] == 0, "no background"
    assert (pixels[:, :, 3] > 0).any()
