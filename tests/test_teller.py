"""Who tells: the highest stage's result, sound and fitting, or a clear refusal."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model import GPT
from storyladder.runtime.checkpoint import save_checkpoint
from storyladder.runtime.errors import CheckpointError
from storyladder.settings import Ladder
from storyladder.telling.teller import Teller, load_teller

CPU = torch.device("cpu")
Leave = Callable[..., Path]


@pytest.fixture
def leave(toy_ladder: Ladder, small_gpt: Callable[..., GPT]) -> Leave:
    """Writes a checkpoint as a stage would; all biases of ln_f are `mark`, so that it can be told from others."""

    def write(name: str, stage: str = "tiny", *, mark: float = 0.0, **changes: Any) -> Path:
        model = small_gpt(dropout=0.1)
        weights = model.state_dict()
        weights["transformer.ln_f.bias"].fill_(mark)
        payload = {
            "stage": stage,
            "step": 12345,
            "val_loss": 1.5,
            "settings": {"model": dataclasses.asdict(model.config)},
            "model": weights,
        }
        path = toy_ladder.folder("checkpoints") / name
        save_checkpoint(path, payload | changes, keep_previous=False)
        return path

    return write


def mark_of(teller: Teller) -> float:
    return float(teller.model.state_dict()["transformer.ln_f.bias"][0])


def test_the_highest_stage_tells_and_its_result_comes_before_its_best(toy_ladder: Ladder, leave: Leave) -> None:
    order = [
        ("tiny_best.pt", "tiny"),
        ("tinystories_28M_final.pt", "tiny"),
        ("children_best.pt", "children"),
        ("children_stories_fin.pt", "children"),
        ("simple_best.pt", "simple"),
        ("simple_stories_ckpt.pt", "simple"),
    ]
    for mark, (name, stage) in enumerate(order):
        leave(name, stage, mark=mark)
        teller = load_teller(toy_ladder, None, GPT, CPU)
        assert mark_of(teller) == mark
        assert teller.description == f"{name}: stage {stage}, step 12,345, val_loss 1.5000"


def test_a_resume_state_alone_is_no_result(toy_ladder: Ladder, leave: Leave) -> None:
    leave("tiny_resume.pt")
    with pytest.raises(CheckpointError, match=r"no stage has a result in .*; train one: python train_tiny.py$"):
        load_teller(toy_ladder, None, GPT, CPU)


def test_without_any_result_the_command_that_makes_one_is_told(toy_ladder: Ladder) -> None:
    demo = dataclasses.replace(toy_ladder, name="demo")
    with pytest.raises(CheckpointError, match=r"train one: python train_tiny.py --preset demo$"):
        load_teller(demo, None, GPT, CPU)


def test_a_file_asked_for_by_name_tells(toy_ladder: Ladder, leave: Leave) -> None:
    leave("simple_stories_ckpt.pt", "simple", mark=1)
    asked_for = leave("elsewhere.pt", "children", mark=2)
    assert mark_of(load_teller(toy_ladder, asked_for, GPT, CPU)) == 2


def test_the_model_is_the_one_that_was_saved_and_does_not_drop(toy_ladder: Ladder, leave: Leave) -> None:
    path = leave("tiny_best.pt", mark=3)
    model = load_teller(toy_ladder, None, GPT, CPU).model
    saved = torch.load(path, weights_only=True)["model"]
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert not model.training
    idx_BT = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.hidden(idx_BT), model.hidden(idx_BT))


def test_a_model_that_hardly_makes_sentences_says_so(toy_ladder: Ladder, leave: Leave) -> None:
    leave("tiny_best.pt", val_loss=4.1)
    assert load_teller(toy_ladder, None, GPT, CPU).description.endswith("val_loss 4.1000 (still garbled: train longer)")
    leave("tiny_best.pt", val_loss=3.9)
    assert load_teller(toy_ladder, None, GPT, CPU).description.endswith("val_loss 3.9000")


def test_when_the_result_is_damaged_the_next_best_tells(toy_ladder: Ladder, leave: Leave) -> None:
    leave("tinystories_28M_final.pt", mark=1)
    leave("children_best.pt", "children", mark=2)
    damage(leave("children_stories_fin.pt", "children", mark=3))
    assert mark_of(load_teller(toy_ladder, None, GPT, CPU)) == 2
    damage(leave("children_best.pt", "children", mark=4))
    assert mark_of(load_teller(toy_ladder, None, GPT, CPU)) == 1
    damage(leave("tinystories_28M_final.pt", mark=5))
    with pytest.raises(CheckpointError, match=r"no stage has a result .*tinystories_28M_final.pt is damaged"):
        load_teller(toy_ladder, None, GPT, CPU)


def damage(path: Path) -> None:
    """Turn one bit of a weight."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def refused(toy_ladder: Ladder, path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_teller(toy_ladder, path, GPT, CPU)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99, 0.999])
def test_a_truncated_file_is_refused(toy_ladder: Ladder, leave: Leave, share: float) -> None:
    path = leave("cut.pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(toy_ladder, path)


@pytest.mark.parametrize("content", [b"Once upon a time", b"PK\x03\x04", b"\x80\x04N.", b"\x00" * 1000])
def test_a_file_that_is_no_checkpoint_is_refused(toy_ladder: Ladder, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "story.pt"
    path.write_bytes(content)
    refused(toy_ladder, path)


def test_foreign_checkpoints_folders_and_missing_files_are_refused(
    toy_ladder: Ladder, tmp_path: Path, small_gpt: Callable[..., GPT]
) -> None:
    torch.save(small_gpt().state_dict(), tmp_path / "foreign.pt")
    assert "not a Storyladder checkpoint" in refused(toy_ladder, tmp_path / "foreign.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    refused(toy_ladder, tmp_path / "list.pt")
    assert "there is no checkpoint" in refused(toy_ladder, tmp_path / "missing.pt")
    refused(toy_ladder, tmp_path)


class Surprise:
    """What a malicious file would hold: something that runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(toy_ladder: Ladder, tmp_path: Path) -> None:
    torch.save({"format": Surprise(tmp_path / "ran")}, tmp_path / "bad.pt")
    refused(toy_ladder, tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 16, "vocab_size": 40, "dropout": 0.1}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"model": SMALL | {"n_layer": 3}}, "has 7,488 parameters, but its settings give 10,768"),
        ({"model": SMALL | {"n_embd": 100_000, "context_length": 1_000_000}}, "its settings give"),  # not even tried
        ({"model": SMALL | {"context_length": 40, "vocab_size": 16}}, "its weights do not match its settings"),
        ({"model": SMALL | {"n_head": 3}}, r"n_embd \(16\) must be a multiple of n_head"),
        ({"model": SMALL | {"n_embd": "16"}}, "n_embd is '16'; expected an integer"),
        ({"model": SMALL | {"n_embed": 16}}, "no field 'n_embed'; did you mean 'n_embd'"),
        ({"model": None}, "has no valid model settings"),
        ({"model": [1]}, "has no valid model settings"),
        ({}, "has no valid model settings"),
        ([], "has no valid model settings"),
        (None, "has no valid model settings"),
    ],
)
def test_settings_that_are_not_those_of_the_weights_are_refused(
    toy_ladder: Ladder, leave: Leave, settings: Any, complaint: str
) -> None:
    assert re.search(complaint, refused(toy_ladder, leave("odd.pt", settings=settings)))


@pytest.mark.parametrize("weights", [None, {}, [], {"transformer.wte.weight": 3}, {"w": torch.zeros(7_488)}])
def test_weights_that_are_not_those_of_the_settings_are_refused(toy_ladder: Ladder, leave: Leave, weights: Any) -> None:
    refused(toy_ladder, leave("odd.pt", model=weights))
