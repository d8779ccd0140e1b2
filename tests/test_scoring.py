"""Scores equal what slow, plain code gives: transformers' GPT-2, one target at a time, the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stages import files_of, run_of
from torch.nn import functional as F

from benchmarks.peers import gpt2_of, load_our_weights
from model import GPT
from storyladder.corpus.token_file import open_token_file
from storyladder.corpus.tokenizer import EOT, gpt2_tokenizer
from storyladder.learning.network import EMBEDDING
from storyladder.learning.vocabulary import start_rows_equal
from storyladder.measuring import scoring
from storyladder.measuring.candidates import Candidate, of_file, sha256_of_weights, untrained
from storyladder.measuring.protocols import padded, rows_of_stories
from storyladder.measuring.scoring import batch_nats, check_vocabulary, score, token_nats
from storyladder.measuring.tally import Tally
from storyladder.measuring.texts import Text, validation_texts
from storyladder.results import plain_settings
from storyladder.runtime.checkpoint import read_checkpoint, save_checkpoint
from storyladder.runtime.errors import CheckpointError, DataError, Interrupted, OutOfMemory
from storyladder.runtime.machine import Precision
from storyladder.runtime.run_log import read_records
from storyladder.settings import Ladder, ModelConfig
from storyladder.stage.loop import train_stage

CPU = torch.device("cpu")
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 16, "dropout": 0.1}


@pytest.fixture
def text(tmp_path: Path, write_toy_tokens: Callable[..., Path]) -> Text:
    path = write_toy_tokens(tmp_path / "toy.bin", n_tokens=333)
    tokenizer = gpt2_tokenizer()
    file = open_token_file(path, tokenizer=tokenizer.fingerprint, vocab_size=tokenizer.vocab_size)
    return Text("toy", file, tokenizer, file.fingerprint)


@pytest.fixture
def checkpoint(toy_ladder: Ladder, tmp_path: Path, text: Text) -> Callable[..., Path]:
    """Writes a checkpoint of random weights, far from their start; the tokens that the text lacks have equal rows."""

    def write(name: str = "weights.pt", *, vocab_size: int = EOT + 1, unseen: int = 1, **changes: object) -> Path:
        torch.manual_seed(3)
        model = GPT(ModelConfig(vocab_size=vocab_size, **SIZES))
        weights = {key: tensor + 0.2 * torch.randn_like(tensor) for key, tensor in model.state_dict().items()}
        seen_V = torch.from_numpy(text.file.seen(EOT + 1))[:vocab_size].clone()
        seen_V[unseen] = False  # the text has a token that training has not seen
        start_rows_equal(weights[EMBEDDING], seen_V)
        ladder = replace(toy_ladder, model=model.config)
        payload = {
            "stage": "tiny",
            "step": 5,
            "val_loss": 1.0,
            "settings": plain_settings(ladder, ladder.stages[0], []),
            "seen_tokens": seen_V.to(torch.uint8),
            "model": weights,
        }
        save_checkpoint(tmp_path / name, payload | changes, keep_previous=False)
        return tmp_path / name

    return write


def load(path: Path) -> Candidate:
    return of_file(path, GPT, gpt2_tokenizer(), CPU)


def whole_model(path: Path) -> GPT:
    payload = read_checkpoint(path)
    model = GPT(ModelConfig(**payload["settings"]["model"]))
    model.load_state_dict(payload["model"])
    return model.eval()


def one_nat(model: GPT, inputs: np.ndarray, target: int) -> float:
    """What a target costs after these inputs, by the whole vocabulary, in double precision."""
    with torch.no_grad():
        logits_V = model(torch.from_numpy(inputs.astype(np.int64))[None])[0, -1].double()
    return float(-logits_V.log_softmax(dim=0)[target])


def test_windows_equal_transformers_gpt2(
    text: Text, checkpoint: Callable[..., Path], full_precision: Precision
) -> None:
    path = checkpoint()
    payload = read_checkpoint(path)
    gpt2 = gpt2_of(ModelConfig(**payload["settings"]["model"])).eval()
    load_our_weights(gpt2, payload["model"])
    ids = torch.from_numpy(text.ids.astype(np.int64))
    nats = 0.0
    for start in range(0, len(ids) - 1, 16):
        window = ids[start : start + 17]
        with torch.no_grad():
            nats += F.cross_entropy(gpt2(window[None, :-1]).logits[0], window[1:], reduction="sum").item()
    tally = score(load(path), text, "windows", device=CPU, precision=full_precision)
    assert tally.tokens == len(ids) - 1
    assert tally.loss == pytest.approx(nats / tally.tokens, abs=1e-4)
    assert tally.text_bytes == gpt2_tokenizer().token_bytes_V[text.ids[1:]].sum()
    assert tally.eot_targets == (text.ids[1:] == EOT).sum()


def test_sliding_gives_every_token_all_the_context_there_is(
    text: Text, checkpoint: Callable[..., Path], full_precision: Precision
) -> None:
    path, ids, last = checkpoint(), text.ids, len(text.ids) - 1
    model, story_of = whole_model(path), np.concatenate(([0], np.cumsum(text.ids == EOT)[:-1]))
    expected = np.zeros(text.n_stories)
    for target in range(1, last + 1):
        stop = 16 if target <= 16 else min(last, 16 + 8 * -(-(target - 16) // 8))
        expected[story_of[target]] += one_nat(model, ids[stop - 16 : target], int(ids[target]))
    tally = score(load(path), text, "sliding", device=CPU, precision=full_precision)
    assert tally.story_nats == pytest.approx(expected, abs=1e-4)
    windows = score(load(path), text, "windows", device=CPU, precision=full_precision)
    assert windows.tokens == tally.tokens and windows.loss != pytest.approx(tally.loss, abs=1e-5)


def test_stories_score_each_story_alone(text: Text, checkpoint: Callable[..., Path], full_precision: Precision) -> None:
    path = checkpoint()
    model, expected = whole_model(path), []
    for story in np.split(text.ids, text.ends + 1):
        ids = np.concatenate(([EOT], story))
        last, nats = len(ids) - 1, 0.0
        for target in range(1, last + 1):
            stop = min(last, 16) if target <= 16 else min(last, 16 + 8 * -(-(target - 16) // 8))
            nats += one_nat(model, ids[max(0, stop - 16) : target], int(ids[target]))
        expected.append(nats)
    tally = score(load(path), text, "stories", device=CPU, precision=full_precision)
    assert tally.story_nats == pytest.approx(np.array(expected), abs=1e-4)
    assert (tally.tokens, tally.eot_targets) == (len(text.ids), len(text.ends))


def test_a_compact_head_is_exact_also_for_tokens_that_training_never_saw(
    text: Text, checkpoint: Callable[..., Path], full_precision: Precision
) -> None:
    compact, whole = load(checkpoint()), load(checkpoint("whole.pt", seen_tokens=torch.ones(EOT + 1)))
    assert len(compact.head_weight) < 100 and len(whole.head_weight) == EOT + 1
    assert (text.ids == 1).any(), "a token of the shared row is a target"
    ours, theirs = (score(each, text, "windows", device=CPU, precision=full_precision) for each in (compact, whole))
    assert ours.story_nats == pytest.approx(theirs.story_nats, rel=1e-5)
    assert compact.weights_sha256 == whole.weights_sha256, "that of the whole weights"


@pytest.mark.parametrize("log_unseen", [0.0, 2.5])
@pytest.mark.parametrize("kernels", [True, False])
def test_nats_of_single_tokens_are_those_of_the_definition(
    log_unseen: float, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        monkeypatch.setattr(scoring, "kernels_for", lambda *_: None)
    monkeypatch.setitem(scoring._CHUNK_SCORES, "cpu", 40)  # several chunks
    torch.manual_seed(0)
    hidden_NC, weight_VC, targets_N = torch.randn(11, 4), torch.randn(9, 4), torch.arange(11) % 9
    scores_NV = (hidden_NC @ weight_VC.T).double()
    sums_N = (scores_NV + log_unseen * (torch.arange(9) == 8)).logsumexp(dim=1)
    expected_N = sums_N - scores_NV[torch.arange(11), targets_N]
    found_N = token_nats(hidden_NC, weight_VC, targets_N, log_unseen=log_unseen)
    assert found_N.dtype == torch.float32
    assert found_N.tolist() == pytest.approx(expected_N.tolist(), abs=1e-5)


def test_windows_equal_the_training_log(toy_data: Ladder, full_precision: Precision) -> None:
    train_stage(run_of(toy_data, precision="fp32"), GPT)
    logged = [record for record in read_records(files_of(toy_data).record) if record["event"] == "evaluation"]
    best = min(logged, key=lambda record: record["val_loss"])
    (text, *_) = validation_texts(toy_data, gpt2_tokenizer(), lambda _: None)
    result = load(files_of(toy_data).result)
    tally = score(result, text, "windows", device=CPU, precision=full_precision)
    assert (text.name, result.step, tally.tokens) == ("tiny", best["step"], best["tokens"])
    assert tally.loss == pytest.approx(best["val_loss"], abs=1e-6)
    assert tally.record()["bits_per_byte"] == pytest.approx(best["bits_per_byte"], abs=1e-6)
    start = untrained(toy_data, GPT, gpt2_tokenizer(), CPU)
    tally = score(start, text, "windows", device=CPU, precision=full_precision)
    assert logged[0]["step"] == 0
    assert tally.loss == pytest.approx(logged[0]["val_loss"], abs=1e-6), "what training measures before its first step"


class Scarce:
    """A network that runs out of memory with more than some rows."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, idx_BT: torch.Tensor) -> torch.Tensor:
        if len(idx_BT) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return F.one_hot(idx_BT, 9).float()


def test_where_memory_runs_out_a_batch_is_scored_in_halves(
    checkpoint: Callable[..., Path], full_precision: Precision
) -> None:
    stories = [np.arange(1, n) for n in (3, 8, 5, 4, 9)]
    batch = padded(list(rows_of_stories(stories, context=16, prefix=0)))
    torch.manual_seed(0)
    plenty = replace(load(checkpoint()), hidden=Scarce(9), head_weight=torch.randn(9, 9), vocabulary=None)
    expected_N = batch_nats(plenty, batch, device=CPU, precision=full_precision)
    scarce = replace(plenty, hidden=Scarce(2))
    assert batch_nats(scarce, batch, device=CPU, precision=full_precision).tolist() == expected_N.tolist()
    with pytest.raises(OutOfMemory, match="one row of 8 tokens"):
        batch_nats(replace(plenty, hidden=Scarce(0)), batch, device=CPU, precision=full_precision)


def test_a_signal_stops_between_batches(
    text: Text, checkpoint: Callable[..., Path], full_precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(scoring._BATCH_TOKENS, "cpu", 32)
    added, add = [], Tally.add
    monkeypatch.setattr(Tally, "add", lambda *args, **flags: added.append(1) or add(*args, **flags))

    def stop() -> None:
        raise Interrupted(2)

    with pytest.raises(Interrupted):
        score(load(checkpoint()), text, "windows", device=CPU, precision=full_precision, check_stop=stop)
    assert added == [1]


def test_checkpoints_that_do_not_fit_are_refused(text: Text, checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"trained with tokenizer gpt2:0, but .* gpt2:[0-9a-f]{16}; use"):
        load(checkpoint(tokenizer="gpt2:0"))
    small = load(checkpoint(vocab_size=30))
    with pytest.raises(DataError, match=r"toy holds token 50256, .* vocabulary of only 30 \(0 to 29\)"):
        check_vocabulary(small, text)
    weights = read_checkpoint(checkpoint())["model"]
    renamed = {name.replace("ln_f", "ln_g"): tensor for name, tensor in weights.items()}
    with pytest.raises(CheckpointError, match="its weights do not match its settings"):
        load(checkpoint(model=renamed))


def test_the_hash_of_weights_depends_on_every_one_of_them() -> None:
    weights = {"b": torch.ones(2, 3), "a": torch.zeros(4)}
    same = {"a": torch.zeros(4), "b": torch.ones(2, 3)}
    assert sha256_of_weights(weights) == sha256_of_weights(same)
    changed = {"a": torch.zeros(4), "b": torch.ones(2, 3)}
    changed["b"][1, 2] = 1.0000001
    assert sha256_of_weights(weights) != sha256_of_weights(changed)
