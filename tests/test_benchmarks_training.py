"""The benchmarks of training, generation, start-up and sharing: turns, ratios of medians, equal peers."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import racing
import torch
from racing import Runner
from running import refusal, run_script

from benchmarks import generation, loss_curve, racers, sharing, startup, training, turns, workload
from benchmarks.racers import WITHOUT, Contender, Workload, started_stage
from benchmarks.tellers import NO_CACHE, OURS, THEIRS, Cached, NoCache, Telling, Transformers
from benchmarks.turns import Entry, Measured, race
from storyladder.command_line import load_ladder
from storyladder.corpus.tokenizer import EOT
from storyladder.layers import attention
from storyladder.layers.kernels import PARTS, cpu_kernels, kernels_for
from storyladder.learning import loss
from storyladder.runtime.cores import usable_cores, waiting_policy
from storyladder.runtime.errors import UserError
from storyladder.settings import PROJECT, GenerateConfig, Ladder, ModelConfig

DECIDES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
JSON_KEYS = {
    "tokens_per_s",
    "ratio_plain_fp32",
    "ratio_plain_bf16",
    "ratio_plain_fp32_compact",
    "ratio_plain_bf16_compact",
    "peak_rss_gb",
    "device",
    "versions",
    "n",
}


def silent(_: str) -> None:
    """Ignore the log of a race."""


# --- the race ---------------------------------------------------------------------------------------------------------


def test_contenders_take_turns_and_warm_ups_do_not_count(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    runners = [Runner("a", diary, (9.0, 9.0, 1.0, 2.0, 30.0)), Runner("b", diary, (4.0,))]
    entries = [Entry(each.name, racing.build, each) for each in runners]
    found = race(entries, warmups=2, turns=3, seconds=60, report=silent)
    assert diary.read_text(encoding="utf-8").split() == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3", "a4", "b4"]
    assert found["a"].seconds == [1.0, 2.0, 30.0] and found["a"].median == 2.0
    assert found["b"].facts == {"name": "b", "peak_rss": 1000} and not found["b"].cold


def test_a_contender_that_fails_or_dies_leaves_the_race_and_the_others_continue(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    runners = [Runner("a", diary, fails_at=2), Runner("b", diary, dies_at=1), Runner("c", diary)]
    entries = [Entry(each.name, racing.build, each) for each in runners]
    entries.append(Entry("d", racing.build_none, Runner("d", diary)))
    log: list[str] = []
    found = race(entries, warmups=1, turns=3, seconds=60, report=log.append)
    assert diary.read_text(encoding="utf-8").split() == ["a0", "b0", "c0", "a1", "c1", "c2", "c3"]
    assert found["a"].failure == "ValueError: my leg" and found["a"].median is None
    assert found["b"].failure == "its process died with status 9"
    assert found["d"].failure == "RuntimeError: no such track"
    assert found["c"].failure is None and len(found["c"].seconds) == 3
    assert any("no such track" in line for line in log)


def test_a_contender_that_hangs_is_killed_and_others_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_MIN_TIMEOUT", 1.0)
    runners = [Runner("a", tmp_path / "diary", hangs_at=1), Runner("b", tmp_path / "diary")]
    entries = [Entry(each.name, racing.build, each) for each in runners]
    found = race(entries, warmups=1, turns=2, seconds=4, report=silent)
    assert found["a"].failure == "no answer within 2 s; allow more time with --minutes"
    assert found["b"].failure is None and len(found["b"].seconds) >= 1


@pytest.mark.slow
def test_a_time_limit_drops_rounds_and_without_time_the_warm_up_is_the_reading(tmp_path: Path) -> None:
    entries = [Entry("a", racing.build, Runner("a", tmp_path / "diary", sleeps=0.6))]
    log: list[str] = []
    found = race(entries, warmups=1, turns=1000, seconds=3.0, report=log.append)["a"]
    assert 1 <= len(found.seconds) <= 5 and not found.cold
    assert log[-1] == f"time is up after {len(found.seconds)} of 1000 rounds"
    found = race(entries, warmups=2, turns=10, seconds=0, report=silent)["a"]
    assert len(found.seconds) == 1 and found.cold
    compiled = Runner("c", tmp_path / "diary", compiled=True)
    found = race([Entry("c", racing.build, compiled)], warmups=2, turns=10, seconds=0, report=silent)["c"]
    assert found.median is None and str(found.failure).startswith("compiling took all the time")


def test_contenders_that_do_not_fit_in_memory_together_race_in_pairs_or_are_left_out() -> None:
    needs = {"ours": 2.0, "compact": 1.0, "fp32": 11.0, "bf16": 9.0}
    anchors = ["ours", "compact"]
    assert training.races_that_fit(needs, anchors, 23.0) == ([["ours", "compact", "fp32", "bf16"]], [])
    assert training.races_that_fit(needs, anchors, None) == ([list(needs)], [])
    pairs = [["ours", "compact", "fp32"], ["ours", "compact", "bf16"]]
    assert training.races_that_fit(needs, anchors, 22.0) == (pairs, [])
    assert training.races_that_fit(needs, anchors, 13.0) == (pairs[1:], ["fp32"])
    assert training.races_that_fit(needs, anchors, 11.0) == ([["ours", "compact"]], ["fp32", "bf16"])
    assert training.races_that_fit(needs, anchors, 2.0) == ([], ["fp32", "bf16", *anchors])
    more = {**needs, "graph": 2.0}
    races = [["ours", "compact", "fp32", "graph"], ["ours", "compact", "bf16"]]
    assert training.races_that_fit(more, anchors, 17.0) == (races, [])


@pytest.mark.parametrize(("capability", "ways"), [((9, 0), 4), ((7, 5), 0)])
def test_on_a_gpu_each_technique_races_too(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], ways: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    names = [each.name for each in training.contenders_for("cuda", compiled=False)]
    means = [training.OURS + words for words in (", compiled + CUDA graph", ", CUDA graph", ", compiled")]
    means = [*means, f"{training.OURS}, plain operations"][:ways]
    plain = [*training.PLAIN.values(), f"plain loop, {'bf16' if ways else 'fp32'}, compiled"]
    means = [f"{training.OURS}, one by one", *means, *(f"{training.OURS}, without {part}" for part in WITHOUT)]
    assert names == [training.OURS, training.COMPACT, *plain[:2], *means, plain[2]]


# --- results ----------------------------------------------------------------------------------------------------------


def measured(*seconds: float, rows: int = 50257, **facts: object) -> Measured:
    known = {"precision": "fp32", "rows": rows, "micro_batch": 8, "peak_rss": 1.5e9, **facts}
    return Measured(known, readings=[{"seconds": value, "flops_per_s": 2e12 / value} for value in seconds])


def made_of(*races: dict[str, Measured], left_out: tuple[str, ...] = ()) -> list[training.Result]:
    names = [training.OURS, training.COMPACT, *training.PLAIN.values()]
    contenders = [Contender(name=name, kind="plain") for name in names]
    return training.results_of(load_ladder(None, "default"), contenders, list(races), list(left_out))


def test_ratios_compare_medians_within_a_race() -> None:
    first = {
        training.OURS: measured(2.0, 1.0, 90.0),
        training.COMPACT: measured(1.0, rows=13313, peak_rss=1.75e9),
        training.PLAIN["fp32"]: measured(10.0, 12.0, 1.0),
        "matmuls, fp32": measured(2.0, 1.0, 4.0),
    }
    second = {training.OURS: measured(4.0), training.COMPACT: measured(2.0), training.PLAIN["bf16"]: measured(6.0)}
    found = made_of(first, second)
    line = training.json_line(found, device="cpu")
    assert (line["ratio_plain_fp32"], line["ratio_plain_fp32_compact"]) == (5.0, 10.0)
    assert (line["ratio_plain_bf16"], line["ratio_plain_bf16_compact"]) == (1.5, 3.0)
    assert line["tokens_per_s"] == pytest.approx(8192 / statistics.median([2.0, 1.0, 90.0, 4.0]), abs=0.1)
    assert line["peak_rss_gb"] == 1.75 and line["peak_gpu_gb"] is None
    assert line["n"] == {found[0].name: 4, found[1].name: 2, found[2].name: 3, found[3].name: 1}
    assert found[0].share == pytest.approx(1.3966 / 2.0, abs=1e-4), "1.3966 TFLOP in 2 s, matmuls reach 1 TFLOP/s"
    assert found[1].share_of_full == pytest.approx(1.3966, abs=1e-4)
    assert found[1].share == pytest.approx(6 * (12 * 336**2 * 8 + 13313 * 336 + 8 * 256 * 336) * 8192 / 1e12)
    rows = training.table(found)
    assert "| 5.00 | 1.50 |" in rows[2] and rows[0].count("|") == rows[2].count("|")


def test_a_missing_measurement_is_null_with_a_reason() -> None:
    plain = training.PLAIN["fp32"]
    broken = dataclasses.replace(measured(1.0), failure="its process died with status -9 (memory?)")
    found = made_of({training.OURS: measured(2.0), plain: broken}, left_out=(training.PLAIN["bf16"],))
    line = json.loads(json.dumps(training.json_line(found, device="cpu")))
    assert line.keys() >= JSON_KEYS
    assert line["tokens_per_s"] == 4096.0
    assert [line[key] for key in sorted(JSON_KEYS) if key.startswith("ratio")] == [None] * 4
    assert line["notes"] == {
        plain: "not measured: its process died with status -9 (memory?)",
        training.PLAIN["bf16"]: "left out: not enough free memory",
    }
    assert "died with status -9" in "\n".join(training.table(found))


def test_a_step_of_the_default_model_is_1_40_tflop() -> None:
    assert 8192 * training.flops_per_token(ModelConfig(), 50257) == pytest.approx(1.3966e12, rel=1e-4)


def test_synthetic_text_has_the_vocabulary_of_tinystories() -> None:
    ids = workload.zipf_ids(200_000, workload.TINYSTORIES_TYPES)
    counts = np.bincount(ids, minlength=EOT + 1)
    assert ids.dtype == np.uint16 and len(ids) == 200_000
    assert (counts > 0).sum() == 13_312 and counts[EOT] >= 1000
    assert np.sort(counts)[-2] > 20 * np.sort(counts[counts > 0])[6656], "few types make most of the text"
    assert np.array_equal(ids, workload.zipf_ids(200_000, workload.TINYSTORIES_TYPES))


# --- real steps -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_ladder(
    toy_ladder: Ladder, tmp_path: Path, write_toy_tokens: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Ladder:
    """The toy ladder with a text of its own in place; processes of the race have one thread, as the tests have."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = workload.put_text(toy_ladder, write_toy_tokens(tmp_path / "text.bin", n_tokens=3000))
    assert text == "text.bin: 3,000 tokens of 61 types"
    return toy_ladder


@pytest.mark.slow
def test_the_real_step_races(tiny_ladder: Ladder) -> None:
    contenders = [Contender(name=training.COMPACT, kind="ours", precision="fp32", compact=True)]
    races, left_out = training.run_races(tiny_ladder, contenders, device="cpu", steps=3, seconds=600)
    assert left_out == [] and list(races[0]) == [training.COMPACT, "matmuls, fp32"]
    found = training.results_of(tiny_ladder, contenders, races, left_out)
    line = training.json_line(found, device="cpu")
    assert line.keys() >= JSON_KEYS and line["notes"] == {} and line["n"] == {training.COMPACT: 3}
    assert line["tokens_per_s_compact"] == pytest.approx(4 * 16 / statistics.median(found[0].seconds), abs=0.1)
    assert (found[0].facts["rows"], found[0].facts["micro_batch"]) == (62, 2)
    assert line["peak_rss_gb"] > 0.1 and found[0].share > 0
    expected = started_stage(tiny_ladder, "cpu", compact=True, precision="fp32")
    losses = [expected.learner.steps(expected.batches, k, 1)[0].train_loss for k in range(2 + 3)]
    assert [reading["losses"][0] for reading in races[0][training.COMPACT].readings] == pytest.approx(losses[2:])


@pytest.mark.slow
@pytest.mark.parametrize("part", WITHOUT)
def test_the_step_without_one_technique_gives_the_same_loss(
    tiny_ladder: Ladder, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(loss, "_CHUNK_SCORES", {"cpu": 100})
    monkeypatch.setattr(loss, "_COLUMNS", {"cpu": 64})
    monkeypatch.setattr(attention, "_WIDTHS", {"cpu": 16})
    here = Workload(ladder=tiny_ladder, device="cpu")
    contender = Contender(name="", kind="ours")
    expected = racers.Ours(contender, here).turn(0)["losses"]
    assert racers.Ours(dataclasses.replace(contender, without=part), here).turn(0)["losses"] == pytest.approx(expected)
    at_once, widths = loss.scores_at_once("cpu"), {**loss._COLUMNS, **attention._WIDTHS}
    assert (at_once > 1e9, widths == {}) == (part == "chunks", part == "padding")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_kernels_and_each_that_the_precision_uses_are_switched_off(precision: str) -> None:
    parts = {each.name: each.kernels_off for each in training.kernel_contenders(precision, compiled=True)}
    assert parts.pop(training.ALL_KERNELS) == parts.pop(f"plain loop, {precision}, compiled") == ()
    assert parts.pop(training.NO_KERNELS) == PARTS
    used = {"fp32": ("dropout", "gelu", "loss"), "bf16": PARTS}[precision]
    assert parts == {f"without {part}": (part,) for part in used}


@pytest.mark.skipif(cpu_kernels() is None, reason="no C compiler here")
def test_a_turn_runs_without_the_kernels_that_are_off_and_gives_the_same_loss(tiny_ladder: Ladder) -> None:
    class Watched(racers.Ours):
        def steps(self, first: int, n: int) -> list[float | torch.Tensor]:
            seen.append(tuple(part for part in PARTS if kernels_for(torch.zeros(1), part) is None))
            return super().steps(first, n)

    here, asked = Workload(ladder=tiny_ladder, device="cpu"), [(), ("loss",), PARTS]
    seen: list[tuple[str, ...]] = []
    losses = []
    for off in asked:
        contender = Contender(name="", kind="ours", precision="fp32", kernels_off=off)
        losses += Watched(contender, here).turn(0)["losses"]
    assert seen == asked and losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_times_as_long_compare_medians_of_the_same_race() -> None:
    names = [training.ALL_KERNELS, training.NO_KERNELS, "without gelu"]
    contenders = [Contender(name=name, kind="ours", compact=True) for name in names]
    first = {training.ALL_KERNELS: measured(2.0, 1.0, 9.0), training.NO_KERNELS: measured(4.0, 5.0, 3.0)}
    second = {training.ALL_KERNELS: measured(8.0), "without gelu": dataclasses.replace(measured(9.0), failure="away")}
    found = training.results_of(load_ladder(None, "default"), contenders, [first, second], [])
    rows = training.kernel_table(found)
    assert rows[2].endswith("| 4 | 1.00 |") and rows[3] == "| no kernels | fp32 | 4 (3 to 5) | 3 | 2.00 |"
    assert rows[4] == "| without gelu | | | | |" and rows[-1] == "without gelu: not measured: away."


def test_comparing_kernels_needs_kernels(monkeypatch: pytest.MonkeyPatch, tiny_ladder: Ladder) -> None:
    asked = {"steps": 1, "seconds": 1.0, "bf16": False, "compiled": False}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UserError, match="not on mps; add --device cpu"):
        training.measure_kernels(tiny_ladder, device="mps", **asked)
    assert "cannot be combined" in refusal("benchmarks/training.py", "--kernels", "--curve", "3")


@pytest.mark.slow
def test_the_loss_curves_are_equal_in_fp32(tiny_ladder: Ladder) -> None:
    pytest.importorskip("transformers")
    found = loss_curve.compare_curves(tiny_ladder, steps=15, batch_size=4, device="cpu", precisions=("fp32",))
    assert found["json"]["failures"] == [] and found["json"]["largest_difference"]["fp32"] < 2e-5
    rows = [line for line in found["lines"] if line.startswith(("| 0 |", "| 14 |"))]
    assert len(rows) == 2
    first, last = (float(row.split("|")[2]) for row in rows)
    assert last < first - 1, "the weights moved, or the comparison would be worth nothing"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_all_contenders_generate_the_same_tokens_with_greedy_decoding(toy_ladder: Ladder, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    checkpoint = tmp_path / "random.pt"
    model = dataclasses.replace(toy_ladder.model, context_length=64)
    ladder = dataclasses.replace(toy_ladder, model=model)
    workload.put_random_weights(ladder, checkpoint)
    settings = GenerateConfig(max_new_tokens=5, top_k=10)
    telling = Telling(ladder=ladder, checkpoint=checkpoint, device="cpu", prompt="Once upon", settings=settings)
    tellers = {OURS: Cached(telling), THEIRS: Transformers(telling), NO_CACHE: NoCache(telling)}
    greedy = [teller.facts["greedy"] for teller in tellers.values()]
    assert len(greedy[0]) == 32 and greedy[0] == greedy[1] == greedy[2]
    for teller in tellers.values():
        reading = teller.turn(1)
        assert reading["tokens"] == 5 and reading["first_token"] > 0
    assert tellers[OURS].turn(2)["first_token"] < 5 * tellers[OURS].turn(3)["seconds"]


def test_generation_is_compared_by_medians() -> None:
    def of(*seconds: float) -> Measured:
        return Measured({}, readings=[{"seconds": each, "first_token": 0.5, "tokens": 7} for each in seconds])

    found = {OURS: of(0.1, 0.2, 9.0), THEIRS: of(0.4, 0.4), NO_CACHE: dataclasses.replace(of(), failure="away")}
    line = generation.json_line(found)
    assert (line["tokens_per_s"], line["ratio_transformers"], line["ratio_no_cache"]) == (5.0, 2.0, None)
    assert line["first_token_ms"][OURS] == 500.0 and line["n"] == {OURS: 3, THEIRS: 2, NO_CACHE: 0}
    assert "not measured: away" in generation.table(found)[-1]


@pytest.mark.slow
def test_start_up_reports_the_slowest_help_and_medians(toy_ladder: Ladder, tmp_path: Path) -> None:
    seconds = {"a.py --help": [0.3, 0.1, 0.2], "b.py --help": [0.4], startup.FIRST_STEP: [9.0, 7.0, 8.0]}
    line = startup.json_line({**seconds, startup.FIRST_TOKEN: [2.0]})
    assert (line["help_s"], line["first_step_s"], line["first_token_s"], line["n"]) == (0.4, 8.0, 2.0, 1)
    config, record, checkpoint = startup.prepared(load_ladder(None, "demo"), PROJECT / "config.py", tmp_path)
    moved = load_ladder(config, "demo")
    assert {stage.val_windows for stage in moved.stages} == {stage.log_interval for stage in moved.stages} == {1}
    assert checkpoint.is_file() and record.parent == moved.folder("runs")
    assert (moved.folder("data") / "train.bin").is_file()


@pytest.mark.slow
def test_sharing_is_measured_next_to_a_process_that_uses_all_cores(
    tiny_ladder: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*DECIDES, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    seconds, threads = sharing.measure({"toy": tiny_ladder}, waiting_policy(), n=2)
    assert threads == {("toy", sharing.SPINNING): usable_cores(), ("toy", sharing.OURS): 1}
    assert [len(taken) for taken in seconds.values()] == [2] * 4 and min(map(min, seconds.values())) > 0
    assert len(sharing.table(seconds, threads, {"toy": tiny_ladder})) == 4


def test_the_cost_of_sharing_compares_medians() -> None:
    readings = {sharing.SPINNING: ((1.0, 2.0, 9.0), (60.0,)), sharing.OURS: ((3.0, 1.0, 2.2), (4.4, 4.4, 1.0))}
    seconds = {
        (preset, way, where): list(values)
        for preset in sharing.PRESETS
        for way, both in readings.items()
        for where, values in zip((sharing.ALONE, sharing.SHARED), both, strict=True)
    }
    line = sharing.json_line(seconds)
    both = dict.fromkeys(sharing.PRESETS)
    assert line["times_as_long"] == {
        sharing.SPINNING: {**both, "demo": 30.0, "default": 30.0},
        sharing.OURS: {"demo": 2.0, "default": 2.0},
    }
    assert line["alone_over_spinning"] == {"demo": 1.1, "default": 1.1} and line["n"] == 1
    assert line["at_most"] == {"demo": 3.0, "default": 2.5}


def test_the_other_process_runs_and_is_gone_afterwards() -> None:
    with sharing.busy_cores(1) as burner:
        assert burner.is_alive()
        assert os.getsid(burner.pid) == burner.pid != os.getsid(0), "a session of its own, as another program has"
    assert not burner.is_alive()


@pytest.mark.parametrize("name", ["training", "generation", "startup", "sharing"])
def test_the_scripts_run_from_anywhere_and_refuse_unknown_flags(name: str) -> None:
    done = run_script(f"benchmarks/{name}.py", "--help")
    assert done.returncode == 0 and "--no-results" in done.stdout
    assert "did you mean '--json'?" in refusal(f"benchmarks/{name}.py", "--jsn")
