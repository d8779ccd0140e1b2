"""Settings: the promised values, and every problem of a ladder in one message."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import MUON
from running import PROJECT, edited_config, refusal, run_script

import config
from storyladder.corpus.tokenizer import tokenizer_named
from storyladder.runtime.errors import SettingsError
from storyladder.settings import (
    TOKENIZERS,
    CleaningConfig,
    CorpusConfig,
    GenerateConfig,
    Ladder,
    ModelConfig,
    Paths,
    StageConfig,
    check,
    check_part,
    nearest,
    problems,
)


def told(ladder: Ladder) -> list[str]:
    return list(problems(ladder))


def with_tiny(ladder: Ladder, **values: object) -> Ladder:
    return replace(ladder, stages=(replace(ladder.stages[0], **values), *ladder.stages[1:]))


def only_problem(ladder: Ladder) -> str:
    (line,) = told(ladder)
    return line


# --- what was promised ------------------------------------------------------------------------------------------------


def test_the_default_model_has_the_promised_shape_and_27_846_000_parameters() -> None:
    model = config.LADDER.model
    assert dataclasses.asdict(model) == {
        "n_layer": 8,
        "n_head": 8,
        "n_embd": 336,
        "context_length": 256,
        "vocab_size": 50257,
        "dropout": 0.1,
    }
    assert model.n_params == 27_846_000


def test_the_defaults_of_the_classes_are_the_promised_model_too() -> None:
    assert ModelConfig() == config.LADDER.model
    assert Ladder().name == "default" and Paths() == Paths(
        root=".", data="data", checkpoints="checkpoints", runs="runs", reports="reports"
    )


def test_stage_1_is_as_promised() -> None:
    tiny = config.LADDER.stage("tiny")
    assert (tiny.batch_size, tiny.max_steps, tiny.max_lr, tiny.grad_clip) == (32, 200_000, 3e-4, 1.0)
    assert tiny.init_from is None
    assert tiny.patience is None, "all 200,000 steps"
    assert config.LADDER.tokens_per_step(tiny) == 8192


def test_the_files_have_the_promised_names() -> None:
    stages = config.LADDER.stages
    assert [stage.name for stage in stages] == ["tiny", "children", "simple"]
    assert [stage.corpus for stage in stages] == ["tiny", "children", "simple"]
    assert [stage.script for stage in stages] == ["train_tiny.py", "train_children.py", "train_simp.py"]
    assert [stage.result_file for stage in stages] == [
        "tinystories_28M_final.pt",
        "children_stories_fin.pt",
        "simple_stories_ckpt.pt",
    ]


def test_later_stages_start_from_the_one_before_with_lower_rates_and_patience() -> None:
    for preset in config.PRESETS:
        tiny, children, simple = preset.stages
        assert (children.init_from, simple.init_from) == ("tiny", "children")
        assert tiny.max_lr > children.max_lr >= simple.max_lr
        assert tiny.patience is None and children.patience and simple.patience


def test_every_preset_passes_its_check_and_none_shares_files_with_another() -> None:
    assert [check(preset).name for preset in config.PRESETS] == ["default", "short", "demo", "swift"]
    assert {preset.stages[i].result_file for preset in config.PRESETS for i in range(3)} == {
        stage.result_file for stage in config.LADDER.stages
    }, "presets differ in their folder, not in names"
    assert config.SHORT.model == config.LADDER.model
    assert config.SWIFT.model == replace(config.LADDER.model, dropout=0.0)


def test_presets_other_than_the_default_keep_their_files_in_a_folder_of_their_name(tmp_path: Path) -> None:
    paths = Paths(root=str(tmp_path))
    default, demo = replace(config.LADDER, paths=paths), replace(config.DEMO, paths=paths)
    assert [default.folder(kind) for kind in ("data", "checkpoints", "runs")] == [
        tmp_path / "data",
        tmp_path / "checkpoints",
        tmp_path / "runs",
    ]
    assert demo.folder("checkpoints") == tmp_path / "checkpoints" / "demo"
    assert default.raw_folder == demo.raw_folder == tmp_path / "data" / "raw"


def test_a_relative_root_counts_from_the_project_and_not_from_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = config.LADDER.folder("data")
    monkeypatch.chdir(tmp_path)
    assert config.LADDER.folder("data") == before == Path(config.__file__).resolve().parent / "data"


def test_settings_cannot_be_changed_in_place_and_need_their_names() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.TINY.max_steps = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        ModelConfig(8)  # type: ignore[call-arg]


# --- values that make no sense ----------------------------------------------------------------------------------------


def test_every_problem_is_told_at_once_with_its_value_and_a_remedy(toy_ladder: Ladder) -> None:
    wrong = replace(
        with_tiny(toy_ladder, max_lr="3e-4", eval_interval=0),
        model=ModelConfig(dropout=1.5),
        generate=GenerateConfig(top_k=-1),
        corpus=CorpusConfig(val_percent=float("nan"), cleaning=CleaningConfig(lowercase=1)),
        paths=Paths(root=Path("/tmp")),  # type: ignore[arg-type]
    )
    with pytest.raises(SettingsError) as error:
        check(wrong)
    assert str(error.value).splitlines() == [
        "preset 'default' in config.py:",
        "  - model: dropout is 1.5; expected 0 to 0.9, for example 0.1",
        "  - corpus: val_percent is nan; expected a finite number, for example 1.0",
        "  - corpus.cleaning: lowercase is 1; expected True or False, for example False",
        "  - generate: top_k is -1; expected 1 to 65536, for example 50",
        f"  - paths: root is {Path('/tmp')!r}; expected a string, for example '.'",
        "  - stage 'tiny': max_lr is '3e-4'; expected a finite number, for example 0.0003",
        "  - stage 'tiny': eval_interval is 0; expected 1 to 1e+09, for example 2000",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_lr", "3e-4"),
        ("max_lr", float("nan")),
        ("max_lr", float("inf")),
        ("max_lr", 10**400),
        ("max_lr", True),
        ("max_lr", 11),
        ("max_steps", 10.0),
        ("max_steps", True),
        ("max_steps", 0),
        ("max_steps", None),
        ("batch_size", -1),
        ("beta2", 1.0),
        ("seed", -1),
        ("patience", 0),
        ("patience", 2.5),
        ("compact_vocabulary", 1),
        ("corpus", None),
        ("init_from", 5),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_its_limits_is_told_with_its_name(
    toy_ladder: Ladder, field: str, value: object
) -> None:
    assert only_problem(with_tiny(toy_ladder, **{field: value})).startswith(
        f"stage 'tiny': {field} is {value!r}; expected "
    )


def test_the_example_in_a_message_is_a_value_that_would_do(toy_ladder: Ladder) -> None:
    assert only_problem(with_tiny(toy_ladder, init_from=5)).endswith("expected a string or None, for example None")
    assert only_problem(with_tiny(toy_ladder, patience="5")).endswith("expected an integer or None, for example 1")
    assert only_problem(with_tiny(toy_ladder, script=3)).endswith("expected a string, for example 'text'")


def test_whole_numbers_serve_where_any_number_is_expected_and_limits_themselves_are_allowed(toy_ladder: Ladder) -> None:
    assert told(with_tiny(toy_ladder, max_lr=1, save_minutes=5)) == []
    assert told(replace(toy_ladder, model=replace(toy_ladder.model, dropout=0))) == []
    assert told(replace(toy_ladder, generate=GenerateConfig(temperature=0, top_k=None))) == []


def test_ids_that_do_not_fit_into_a_token_file_are_refused(toy_ladder: Ladder) -> None:
    assert told(replace(toy_ladder, model=replace(toy_ladder.model, vocab_size=65_536))) == []
    line = only_problem(replace(toy_ladder, model=replace(toy_ladder.model, vocab_size=65_537)))
    assert line == "model: vocab_size is 65537; expected 2 to 65536, for example 50257"


def test_misspelt_fields_are_refused_at_once_all_of_them_with_the_nearest_also_through_replace() -> None:
    one, two = (
        "StageConfig has no field 'max_step'; did you mean 'max_steps'?",
        "'warm_steps'; did you mean 'warmup_ste",
    )
    with pytest.raises(SettingsError) as error:
        replace(config.TINY, warm_steps=3, max_step=5, max_lr=1e-3)  # type: ignore[call-arg]
    assert str(error.value).startswith(f"{one}; StageConfig has no field {two}")
    with pytest.raises(
        SettingsError, match=r"^StageConfig has no field 'max_step'.*; StageConfig needs a value for co"
    ):
        StageConfig(name="tiny", max_step=5)  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match=r"^Ladder has no field 'modle'; did you mean 'model'\?$"):
        Ladder(modle=3)  # type: ignore[call-arg]


def test_a_field_that_must_be_given_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^StageConfig needs a value for corpus, name, result_file, script$"):
        StageConfig()  # type: ignore[call-arg]


def test_a_field_of_older_copies_of_config_py_is_told_with_what_took_its_place() -> None:
    with pytest.raises(SettingsError, match=r"no field 'train_file'; the stage's corpus names the token files: set co"):
        replace(config.TINY, train_file="train.bin")  # type: ignore[call-arg]


def test_a_word_without_a_neighbour_gets_the_list_of_what_there_is() -> None:
    assert nearest("dmeo", ["default", "demo"]) == "; did you mean 'demo'?"
    assert nearest("xyz", ["default", "demo"]) == "; expected one of default, demo"


@pytest.mark.parametrize(
    ("n_embd", "n_head", "proposed"), [(330, 8, 328), (334, 8, 336), (3, 8, 8), (337, 337, None), (100, 3, 99)]
)
def test_the_width_must_be_a_multiple_of_the_heads(
    toy_ladder: Ladder, n_embd: int, n_head: int, proposed: int | None
) -> None:
    lines = told(replace(toy_ladder, model=ModelConfig(n_embd=n_embd, n_head=n_head)))
    if proposed is None:
        assert lines == []
        return
    assert lines == [f"model: n_embd ({n_embd}) must be a multiple of n_head ({n_head}), for example {proposed}"]
    assert proposed % n_head == 0


def test_the_batch_must_be_a_multiple_of_the_micro_batch(toy_ladder: Ladder) -> None:
    assert only_problem(with_tiny(toy_ladder, batch_size=10, micro_batch_size=4)) == (
        "stage 'tiny': batch_size (10) must be a multiple of micro_batch_size (4); None selects one that fits"
    )
    assert told(with_tiny(toy_ladder, batch_size=10, micro_batch_size=None)) == []


def test_a_stage_can_only_start_from_an_earlier_one(toy_ladder: Ladder) -> None:
    assert only_problem(with_tiny(toy_ladder, init_from="children")) == (
        "stage 'tiny': init_from is 'children'; expected None or an earlier stage: none"
    )
    tiny, children, simple = toy_ladder.stages
    line = only_problem(replace(toy_ladder, stages=(tiny, children, replace(simple, init_from="chldren"))))
    assert line == "stage 'simple': init_from is 'chldren'; expected None or an earlier stage: ['tiny', 'children']"


@pytest.mark.parametrize(
    ("replay", "line"),
    [
        ({"tiny": 0}, "replay of 'tiny' is 0; expected a share between 0 and 1, for example 0.1"),
        ({"tiny": 1.5}, "replay of 'tiny' is 1.5; expected a share between 0 and 1, for example 0.1"),
        (0.1, "replay is 0.1; expected a dict of names and numbers, such as {'tiny': 0.1}, or None, for example None"),
        ({"tiny": "0.1"}, "replay is {'tiny': '0.1'}; expected a dict of names"),
        (
            {"children": 0.1},
            "replay names 'children'; expected a corpus of an earlier stage (['tiny']), or replay=None",
        ),
        ({"simple": 0.1}, "replay names 'simple'; expected a corpus of an earlier stage (['tiny']), or replay=None"),
    ],
)
def test_replay_takes_shares_of_earlier_corpora(toy_ladder: Ladder, replay: Any, line: str) -> None:
    tiny, children, simple = toy_ladder.stages
    found = told(replace(toy_ladder, stages=(tiny, replace(children, replay=replay), simple)))
    assert found[0].startswith(f"stage 'children': {line}")


def test_prompts_of_samples_are_strings(toy_ladder: Ladder) -> None:
    assert "sample_prompts is ('Once', 3)" in only_problem(replace(toy_ladder, sample_prompts=("Once", 3)))
    assert told(replace(toy_ladder, sample_prompts=())) == []


def test_replay_must_leave_room_for_the_stages_own_text(toy_ladder: Ladder) -> None:
    tiny, children, simple = toy_ladder.stages
    both = replace(simple, replay={"tiny": 0.5, "children": 0.5})
    assert only_problem(replace(toy_ladder, stages=(tiny, children, both))) == (
        "stage 'simple': replay adds up to 1, which leaves nothing for the stage's own corpus; expected less than 1"
    )
    own = replace(simple, corpus="tiny", replay={"tiny": 0.5})
    assert "expected a corpus of an earlier stage (['children']), or replay=None" in only_problem(
        replace(toy_ladder, stages=(tiny, children, own))
    )
    half = replace(simple, replay={"tiny": 0.2, "children": 0.3})
    assert told(replace(toy_ladder, stages=(tiny, children, half))) == []


def test_the_warm_up_must_end_before_the_stage_does(toy_ladder: Ladder) -> None:
    assert told(with_tiny(toy_ladder, warmup_steps=5, max_steps=6)) == []
    assert only_problem(with_tiny(toy_ladder, warmup_steps=6, max_steps=6)) == (
        "stage 'tiny': warmup_steps (6) must be below max_steps (6)"
    )


def test_the_lowest_rate_must_not_be_above_the_highest(toy_ladder: Ladder) -> None:
    assert told(with_tiny(toy_ladder, min_lr=1e-2, max_lr=1e-2)) == []
    assert only_problem(with_tiny(toy_ladder, min_lr=2e-2)) == (
        "stage 'tiny': min_lr (0.02) is above max_lr (0.01); lower it"
    )


def test_optimizer_and_schedule_are_words_of_a_list(toy_ladder: Ladder) -> None:
    assert told(with_tiny(toy_ladder, schedule="linear")) == []
    assert only_problem(with_tiny(toy_ladder, optimizer="Muon")) == (
        "stage 'tiny': optimizer is 'Muon'; did you mean 'muon'?"
    )
    assert only_problem(with_tiny(toy_ladder, schedule="line")) == (
        "stage 'tiny': schedule is 'line'; did you mean 'linear'?"
    )
    assert only_problem(replace(toy_ladder, tokenizer="bpe")) == "tokenizer is 'bpe'; expected one of gpt2"
    assert [tokenizer_named(name).vocab_size for name in TOKENIZERS] == [50257], "every one that is offered is there"


def test_muon_needs_rates_for_what_adamw_moves(toy_ladder: Ladder) -> None:
    assert told(with_tiny(toy_ladder, **MUON)) == []
    assert only_problem(with_tiny(toy_ladder, **MUON | {"wte_lr": None, "vector_lr": None})) == (
        "stage 'tiny': wte_lr, vector_lr must be set if optimizer is 'muon' (max_lr is Muon's), for example to 2e-3"
    )
    assert told(with_tiny(toy_ladder, wte_lr=1e-3, lr_horizon=500)) == []  # AdamW may have them


def test_a_ladder_is_any_chain_of_stages_but_none(toy_ladder: Ladder) -> None:
    tiny, children, simple = toy_ladder.stages
    more = replace(simple, name="more", script="train_more.py", result_file="more.pt", init_from="simple")
    own = replace(more, name="own", corpus="own", script="train_own.py", result_file="own.pt", init_from=None)
    for stages in [(tiny,), (own,), (tiny, children), (tiny, children, simple, more), (tiny, own, children)]:
        assert told(replace(toy_ladder, stages=stages)) == []
    assert only_problem(replace(toy_ladder, stages=())) == "stages is (); expected at least one, for example (TINY,)"
    with pytest.raises(
        SettingsError, match=r"^preset 'default' of config\.py has no stage 'tny'; did you mean 'tiny'\?"
    ):
        toy_ladder.stage("tny")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("name", "my stage", "expected letters, digits and _ only, because files are named after it"),
        ("corpus", "../raw", "expected letters, digits and _ only, because files are named after it"),
        ("script", "tales/train.py", "expected a script in the project's folder, for example 'train_tiny.py'"),
        ("script", "train_tiny", "expected a script in the project's folder, for example 'train_tiny.py'"),
    ],
)
def test_names_of_a_stage_are_words(toy_ladder: Ladder, field: str, value: str, expected: str) -> None:
    line = only_problem(replace(toy_ladder, stages=(replace(toy_ladder.stages[0], **{field: value}),)))
    assert line == f"stage {'my stage' if field == 'name' else 'tiny'!r}: {field} is {value!r}; {expected}"


@pytest.mark.parametrize("stages", [[], None, "tiny"])
def test_stages_that_are_no_tuple_are_told(toy_ladder: Ladder, stages: object) -> None:
    assert only_problem(replace(toy_ladder, stages=stages)).startswith(f"stages is {stages!r}; expected tuple")


def test_a_part_of_another_class_is_told_instead_of_crashing(toy_ladder: Ladder) -> None:
    foreign = replace(toy_ladder, stages=(*toy_ladder.stages, ModelConfig()))
    assert "stages holds ModelConfig(" in only_problem(foreign)
    assert told(replace(toy_ladder, stages=(*toy_ladder.stages, 3)))[0] == "stages holds 3; expected StageConfig(...)"
    assert told(replace(toy_ladder, model=toy_ladder.stages[0]))[0].startswith("model is StageConfig(")
    assert any(
        line.startswith("corpus is None; expected CorpusConfig") for line in told(replace(toy_ladder, corpus=None))
    )


@pytest.mark.parametrize("name", ["", "..", ".", "sub/train.bin", "/tmp/train.bin", "sub\\train.bin"])
def test_file_names_are_names_without_folders(toy_ladder: Ladder, name: str) -> None:
    assert only_problem(with_tiny(toy_ladder, result_file=name)) == (
        f"stage 'tiny': result_file is {name!r}; expected a plain file name without folders"
    )


def test_no_stage_may_write_over_the_file_of_another(toy_ladder: Ladder) -> None:
    tiny, children, simple = toy_ladder.stages
    copied = replace(toy_ladder, stages=(tiny, replace(children, result_file=tiny.result_file), simple))
    assert only_problem(copied) == (
        "stage 'children': result_file is 'tinystories_28M_final.pt', as in an earlier stage; use a different one"
    )
    assert told(replace(toy_ladder, stages=(tiny, tiny))) == [
        f"stage 'tiny': {field} is {getattr(tiny, field)!r}, as in an earlier stage; use a different one"
        for field in ("name", "script", "result_file")
    ]


@pytest.mark.parametrize("name", ["", "a/b", "..", "raw"])
def test_a_preset_is_named_like_a_folder_and_not_like_the_one_of_the_raw_text(toy_ladder: Ladder, name: str) -> None:
    assert only_problem(replace(toy_ladder, name=name)).startswith(f"name is {name!r}; expected a name for a folder")


def test_flags_are_checked_like_settings() -> None:
    assert check_part("flag", GenerateConfig(temperature=0)).temperature == 0
    with pytest.raises(SettingsError, match=r"^flag: temperature is -1; expected 0 to 100.*; top_k is 0; expected 1"):
        check_part("flag", GenerateConfig(temperature=-1, top_k=0))
    with pytest.raises(SettingsError, match=r"n_embd \(3\) must be a multiple"):
        check_part("model", ModelConfig(n_embd=3, n_head=2))


# --- what to type next ------------------------------------------------------------------------------------------------


def test_a_command_repeats_config_and_preset_and_can_be_typed_where_the_user_is(
    toy_ladder: Ladder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    ladder = replace(toy_ladder, config_flag="my configs/a b.py", name="night")
    assert toy_ladder.command("train_tiny.py", "--fresh") == "python train_tiny.py --fresh"
    words = ["python", "train_tiny.py", "--config", "my configs/a b.py", "--preset", "night", "--fresh"]
    assert shlex.split(ladder.command("train_tiny.py", "--fresh")) == words
    monkeypatch.chdir(PROJECT.parent)
    assert toy_ladder.command("generate.py") == f"python {shlex.quote(f'{PROJECT.name}/generate.py')}"
    monkeypatch.chdir(tmp_path)
    assert toy_ladder.command("generate.py") == f"python {shlex.quote(str(PROJECT / 'generate.py'))}"


def test_a_message_of_a_room_that_knows_no_ladder_is_told_as_the_user_would_type_it(
    toy_ladder: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    plain = (
        "/x/config.py: lower max_lr in config.py, or run python prepare_data.py --stage tiny; python config.py shows it"
        "; compare it with the original config.py"
    )
    assert toy_ladder.as_typed(plain) == plain
    ladder = replace(toy_ladder, config_flag="my config.py")
    told = ladder.as_typed(plain)
    assert told == (
        "/x/config.py: lower max_lr in my config.py, or run python prepare_data.py --config 'my config.py' --stage tiny"
        "; python config.py --config 'my config.py' shows it; compare it with the original config.py"
    )
    assert ladder.as_typed(told) == told, "what is typed right already stays"
    for flag in ("config.py", "sub/config.py", "p", "c", "a.py", "C:\\x\\config.py"):
        ladder = replace(toy_ladder, config_flag=flag, name="demo")
        told = ladder.as_typed("set it in config.py and run python train_tiny.py")
        assert told == f"set it in {flag} and run python train_tiny.py --config {shlex.quote(flag)} --preset demo"
        assert ladder.as_typed(told) == told


# --- python config.py -------------------------------------------------------------------------------------------------


def printed(*flags: object) -> str:
    done = run_script("config.py", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def row(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(name + " ")]
    return line.removeprefix(name).split()


def test_config_py_prints_parameters_and_every_stage() -> None:
    text = printed()
    shape = "(8 layers, 8 heads, width 336, context 256, 50,257 tokens of gpt2, dropout 0.1)"
    assert text.startswith(f"preset default: 27,846,000 parameters {shape}\n")
    assert row(text, "tokens per step") == ["8,192"] * 3
    assert row(text, "max_steps") == ["200,000", "120,000", "80,000"]
    assert row(text, "tokens in all") == ["1,638,400,000", "983,040,000", "655,360,000"]
    assert row(text, "replay") == ["None", "tiny:0.25", "tiny:0.125,children:0.125"]
    assert row(text, "patience") == ["None", "5", "5"]
    assert row(text, "max_lr") == ["0.0003", "0.0001", "5e-05"]
    for field in dataclasses.fields(StageConfig):
        assert len(row(text, field.name)) == 3, field.name
    for part in (CleaningConfig, CorpusConfig, GenerateConfig, Paths):
        assert f"\n{part.__name__}: {dataclasses.fields(part)[0 if part is not CorpusConfig else 1].name}=" in text


def test_config_py_prints_another_preset_and_an_edited_copy(tmp_path: Path) -> None:
    text = printed("--preset", "demo")
    assert text.startswith(f"preset demo: {config.DEMO.model.n_params:,} parameters")
    assert row(text, "max_steps") == [f"{stage.max_steps:,}" for stage in config.DEMO.stages]
    path = edited_config(tmp_path, "PRESETS = (replace(LADDER, model=replace(MODEL, n_layer=2)),)")
    assert printed("--config", path).startswith("preset default: 19,691,280 parameters (2 layers")


def test_a_copy_of_config_py_prints_itself_and_its_mistakes_in_a_line(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "storyladder", tmp_path / "storyladder", ignore=shutil.ignore_patterns("__pycache__"))
    path = edited_config(tmp_path, "PRESETS = (replace(LADDER, name='night'),)")

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(path), *flags]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)

    assert run("--preset", "night").stdout.startswith("preset night: ")
    path = edited_config(tmp_path, "BAD = replace(TINY, max_lrr=1)")
    done, lines = run(), path.read_text(encoding="utf-8").count("\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: edited.py line {lines}: StageConfig has no field 'max_lrr'; did you mean 'max_lr'?\n"


def test_a_misspelt_preset_names_the_nearest() -> None:
    assert refusal("config.py", "--preset", "dmeo") == "error: config.py has no preset 'dmeo'; did you mean 'demo'?\n"
    assert refusal("train_tiny.py", "--preset", "x") == (
        "error: config.py has no preset 'x'; expected one of default, demo, short, swift\n"
    )


def test_a_wrong_type_in_one_part_does_not_hide_what_does_not_fit_together_elsewhere(toy_ladder: Ladder) -> None:
    tiny, *others = toy_ladder.stages
    wrong = replace(
        toy_ladder,
        model=replace(toy_ladder.model, n_embd=17),
        stages=(replace(tiny, batch_size="x"), replace(others[0], min_lr=1.0), others[1]),  # type: ignore[arg-type]
    )
    told = " ".join(problems(wrong))
    assert "batch_size is 'x'" in told and "n_embd (17)" in told and "min_lr (1) is above" in told


def test_a_result_may_not_have_the_name_of_an_unfinished_stages_file(toy_ladder: Ladder) -> None:
    assert "unfinished stages" in only_problem(with_tiny(toy_ladder, result_file="tiny_best.pt"))
