"""Flags of other trainers: every one is answered with what does it here."""

from __future__ import annotations

import re

import pytest
from running import PROJECT, SCRIPTS, flags_of, refusal, run_script

from storyladder.command_line import Parser, load_ladder, stage_run
from storyladder.runtime.errors import UserError
from storyladder.unknown_flags import _ANSWERS, FIELDS, answers_to

SOON = {"--precision", "--threads"}  # named only where the command has them


def answer(word: str, script: str, *more: str) -> str:
    (found,) = answers_to([word], [*flags_of(script), "-h", *more], "mine.py")
    assert found.startswith(f"unknown argument {word!r}")
    return found.partition("; ")[2]


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("--lr", "max_lr (StageConfig)"),
        ("--learning_rate", "max_lr (StageConfig)"),
        ("--learning-rate=1e-3", "max_lr (StageConfig)"),
        ("--max_steps", "max_steps (StageConfig)"),
        ("--max-steps=100", "max_steps (StageConfig)"),
        ("--max-step", "max_steps (StageConfig)"),
        ("max_steps=100", "max_steps (StageConfig)"),
        ("--max_iters=5", "max_steps (StageConfig)"),
        ("--batch-size", "batch_size (StageConfig)"),
        ("--batch_size", "batch_size (StageConfig)"),
        ("--n_layer", "n_layer (ModelConfig)"),
        ("--num_hidden_layers", "n_layer (ModelConfig)"),
        ("--weight_decay", "weight_decay (StageConfig)"),
        ("--WD", "weight_decay (StageConfig)"),
        ("--seed", "seed (StageConfig)"),
        ("--dropout", "dropout (ModelConfig)"),
        ("--block_size", "context_length (ModelConfig)"),
        ("--output_dir", "checkpoints (Paths)"),
        ("--data", "data (Paths)"),
        ("--warmup_iters", "warmup_steps (StageConfig)"),
        ("--grad-clip", "grad_clip (StageConfig)"),
    ],
)
def test_what_is_a_setting_is_answered_with_its_field_and_the_file_that_was_given(word: str, field: str) -> None:
    assert answer(word, "train_tiny.py") == f"set {field} in mine.py"


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("--resume", "the same command continues where the stage stopped, and --fresh starts it over"),
        ("--resume-from", "the same command continues"),
        ("--resume_from_checkpoint=x.pt", "the same command continues"),
        ("--resmue", "the same command continues"),
        ("--epochs", "set max_steps in mine.py"),
        ("--wandb", "runs/STAGE.jsonl"),
        ("--compile", "chosen to suit the machine"),
        ("--ckpt", "by file name"),
        ("--num_gpus", "torchrun --nproc_per_node=N"),
        ("--cpu", "did you mean '--device'?"),
        ("--overwrite", "did you mean '--fresh'?"),
        ("--accept_changes", "did you mean '--accept-changes'?"),
        ("--dry-run", "did you mean '--plan'?"),
        ("--plam", "did you mean '--plan'?"),
    ],
)
def test_what_needs_no_flag_here_says_so(word: str, words: str) -> None:
    assert words in answer(word, "train_tiny.py")


@pytest.mark.parametrize(
    ("word", "flag"),
    [
        ("--length", "--max-new-tokens"),
        ("--max_length=50", "--max-new-tokens"),
        ("--max_new_tokens", "--max-new-tokens"),
        ("--n", "--num-samples"),
        ("-n", "--num-samples"),
        ("--num_return_sequences", "--num-samples"),
        ("--temp", "--temperature"),
        ("--top_k", "--top-k"),
        ("--start", "--prompt"),
        ("--ckpt", "--checkpoint"),
        ("--model", "--checkpoint"),
        ("--resume", "--checkpoint"),
    ],
)
def test_the_flags_of_other_tellers(word: str, flag: str) -> None:
    assert answer(word, "generate.py") == f"did you mean {flag!r}?"


@pytest.mark.parametrize(
    ("word", "flag"),
    [("--data", "--text"), ("--model", "--checkpoint"), ("--stride", "--protocol"), ("--stories", "--scorecard")],
)
def test_the_flags_of_other_evaluations(word: str, flag: str) -> None:
    assert answer(word, "evaluate.py") == f"did you mean {flag!r}?"


def test_sampling_that_is_not_offered_says_what_is_until_it_is() -> None:
    assert "not supported: use --temperature and --top-k" in answer("--top_p", "generate.py")
    assert answer("--top_p", "generate.py", "--top-p") == "did you mean '--top-p'?"
    assert answer("--dtype", "train_tiny.py", "--precision") == "did you mean '--precision'?"


def test_all_unknown_flags_of_one_call_are_answered_and_their_values_are_none() -> None:
    words = ["--lr", "1e-3", "--bogus", "-1", "--max_steps=5", "rest", "--wandb"]
    found = answers_to(words, flags_of("train_tiny.py"), "config.py")
    assert [re.match(r"unknown argument '([^']*)'", each)[1] for each in found] == [  # type: ignore[index]
        "--lr",
        "--bogus",
        "--max_steps=5",
        "--wandb",
        "rest",
    ]


def test_words_without_a_flag_are_told_where_they_may_belong() -> None:
    assert answers_to(["upon", "a", "time"], flags_of("generate.py"), "c") == [
        "unknown argument 'upon a time'; did you mean --prompt 'upon a time'? (several words need quotes)"
    ]
    assert answers_to(["mine.py"], flags_of("train_tiny.py"), "c") == [
        "unknown argument 'mine.py'; did you mean --config 'mine.py'?"
    ]
    assert answers_to(["stories"], flags_of("prepare_data.py"), "c") == [
        "unknown argument 'stories'; did you mean --from 'stories'?"
    ]


def test_every_answer_exists() -> None:
    known = {flag for script in SCRIPTS for flag in flags_of(script)}
    for name, answers in _ANSWERS.items():
        assert name == name.lower() and "-" not in name
        for each in answers:
            if " " in each:
                assert {flag for flag in re.findall(r"--[a-z][a-z-]*\b(?!_)", each)} <= known, each
            else:
                assert each in FIELDS or each in known | SOON, each


def test_the_stage_script_answers_in_one_line_with_status_2_and_names_the_given_file(tmp_path: object) -> None:
    assert refusal("train_tiny.py", "--max_steps", "100", "--lr", "1e-3", "--config", "sub dir/my.py") == (
        "error: unknown argument '--max_steps'; set max_steps (StageConfig) in sub dir/my.py; "
        "unknown argument '--lr'; set max_lr (StageConfig) in sub dir/my.py; see python train_tiny.py --help\n"
    )
    assert run_script("generate.py", "--top_p", "0.9").returncode == 2


def test_no_setting_and_no_flag_of_ours_is_hidden_by_a_word_of_others() -> None:
    """Every field is answered by itself, whatever others call it."""
    for field in FIELDS:
        if field not in _ANSWERS:
            assert answer(f"--{field}", "config.py") == f"set {field} ({FIELDS[field]}) in mine.py"
    with pytest.raises(UserError, match=r"set max_lr \(StageConfig\) in config\.py; see python train_simp\.py --help"):
        stage_run("simple", "x", ["--lr", "1"], str(PROJECT / "train_simp.py"))
    assert load_ladder(None, "default").config_flag is None
    with pytest.raises(UserError, match="see python"):
        Parser("x").parse(["--lr"])
