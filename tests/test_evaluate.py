"""evaluate.py as a user runs it: the table, what was forgotten, files for the report, one line of JSON, refusals."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hugging_face import llama_folder
from running import TOY_CONFIG, refusal, run_script

import evaluate
from model import GPT
from storyladder.command_line import load_ladder
from storyladder.corpus.corpora import token_files
from storyladder.corpus.sample_stories import sample_stories
from storyladder.corpus.token_file import TokenWriter
from storyladder.corpus.tokenizer import gpt2_tokenizer
from storyladder.learning.network import EMBEDDING
from storyladder.measuring.candidates import untrained
from storyladder.measuring.evaluation_files import table, write_evaluation
from storyladder.measuring.forgetting import Forgetting
from storyladder.measuring.heat_map import draw_heat_map
from storyladder.measuring.matrix import Matrix, measure_matrix
from storyladder.measuring.texts import text_of_file, validation_texts
from storyladder.results import StageFiles, plain_settings
from storyladder.runtime.checkpoint import save_checkpoint
from storyladder.runtime.errors import CheckpointError, DataError, SaveFailed
from storyladder.runtime.machine import Precision
from storyladder.settings import CorpusConfig, Ladder

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def project(tmp_path: Path) -> tuple[Path, Ladder]:
    """A config file and its ladder: three validation files of sample stories, two stages that know word frequencies."""
    config = tmp_path / "toy.py"
    config.write_text(TOY_CONFIG.format(steps=4, root=str(tmp_path)), encoding="utf-8")
    ladder = load_ladder(config, "default")
    tokenizer = gpt2_tokenizer()
    frequencies = {}
    for stage in ladder.stages:
        _, path = token_files(ladder, stage)
        stories = list(sample_stories(stage.corpus, 30, seed=1))
        ids = tokenizer.encode_stories(stories)
        with TokenWriter(path, tokenizer.fingerprint) as writer:
            writer.add(ids, stories=len(stories), text_bytes=sum(map(len, stories)))
            writer.finish(sources=["sample"], cleaning={})
        frequencies[stage.name] = np.bincount(ids, minlength=tokenizer.vocab_size)
    for name in ("tiny", "simple"):
        save_stage(ladder, name, frequencies[name])
    return config, ladder


def save_stage(ladder: Ladder, name: str, counts: np.ndarray, **changes: Any) -> Path:
    """A result that predicts word frequencies: ln_f gives one axis, along which the embedding has their logarithms."""
    torch.manual_seed(0)
    weights = GPT(ladder.model).state_dict()
    seen_V = torch.from_numpy(counts > 0)
    weights[EMBEDDING][:, 0] = torch.from_numpy(np.log(counts + 0.1)).float()
    weights["transformer.ln_f.weight"].zero_()
    weights["transformer.ln_f.bias"][0] = 1.0
    weights[EMBEDDING][~seen_V] = weights[EMBEDDING][~seen_V][:1]
    stage = ladder.stage(name)
    payload = {
        "stage": name,
        "step": 7,
        "val_loss": 2.0,
        "tokenizer": gpt2_tokenizer().fingerprint,
        "settings": plain_settings(ladder, stage, []),
        "seen_tokens": seen_V.to(torch.uint8),
        "model": weights,
    }
    path = StageFiles.of(ladder, stage).result
    save_checkpoint(path, payload | changes, keep_previous=False)
    return path


@pytest.mark.slow
def test_the_whole_table(project: tuple[Path, Ladder]) -> None:
    config, ladder = project
    done = run_script("evaluate.py", "--config", config)
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:10]] == [
        [model, corpus] for model in ("untrained", "tiny", "simple") for corpus in ("tiny", "children", "simple")
    ]
    content = json.loads((ladder.folder("reports") / "evaluation.json").read_text(encoding="utf-8"))
    assert content["format"] == 1 and content["made"].keys() == {"date", "command", "machine", "versions"}
    assert content["made"]["command"] == f"python evaluate.py --config {config}"
    rows = {(row["checkpoint"], row["corpus"]): row for row in content["rows"]}
    assert len(rows) == 9
    assert rows["untrained", "tiny"]["loss"] == pytest.approx(math.log(50257), rel=0.01)
    tiny, simple = rows["tiny", "tiny"], rows["simple", "tiny"]
    assert (tiny["change"], tiny["step"], tiny["stage"], tiny["protocol"]) == (0, 7, "tiny", "windows")
    assert (
        simple["change"] == pytest.approx(simple["bits_per_byte"] / tiny["bits_per_byte"] - 1)
        and simple["change"] > 0.05
    )
    assert {(row["tokens"], row["bytes"], row["text_sha256"]) for row in (tiny, simple, rows["untrained", "tiny"])} == {
        (tiny["tokens"], tiny["bytes"], tiny["text_sha256"])
    }
    (entry,) = content["forgetting"]
    assert (entry["stage"], entry["corpus"], entry["best_stage"]) == ("simple", "tiny", "tiny")
    assert entry["low"] < entry["change"] < entry["high"] and entry["change"] == pytest.approx(simple["change"])
    assert entry["sentence"] in lines
    assert "warning: stage simple is more than 5% worse on tiny; replay={'tiny': 0.1} for this stage" in done.stderr
    page = (ladder.folder("reports") / "evaluation.md").read_text(encoding="utf-8")
    assert entry["sentence"][1:] in page and f"| {tiny['bits_per_byte']:.4f} |" in page
    assert (ladder.folder("reports") / "heat_map.png").read_bytes().startswith(PNG)
    assert not list(ladder.folder("reports").glob("*.partial"))


@pytest.mark.slow
def test_one_text_and_one_checkpoint_end_with_one_line_of_json(project: tuple[Path, Ladder], tmp_path: Path) -> None:
    config, ladder = project
    text = tmp_path / "letter.md"  # read as plain text
    text.write_text("Dear Tom,\n\nI saw a cat.\n", encoding="utf-8")
    checkpoint = StageFiles.of(ladder, ladder.stage("tiny")).result
    done = run_script("evaluate.py", "--config", config, "--text", text, "--checkpoint", checkpoint, "--json")
    assert done.returncode == 0, done
    found = json.loads(done.stdout.splitlines()[-1])
    ids = gpt2_tokenizer().encode_stories(["Dear Tom,", "I saw a cat."])
    assert found["tokens"] == len(ids) - 1
    assert found["bytes"] == len("Dear Tom,I saw a cat.") - len("Dear")
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_byte"] == pytest.approx(found["loss"] * found["tokens"] / math.log(2) / found["bytes"])
    assert (found["checkpoint"], found["corpus"]) == (str(checkpoint), "letter.md")
    assert not ladder.folder("reports").exists(), "a text of one's own does not replace the report's numbers"


@pytest.mark.slow
def test_other_peoples_models_stand_in_the_same_table(project: tuple[Path, Ladder], tmp_path: Path) -> None:
    config, _ = project
    folder = llama_folder(tmp_path / "llama", list(sample_stories("tiny", 10)))
    done = run_script("evaluate.py", "--config", config, "--checkpoint", folder, "--json")
    assert done.returncode == 0, done
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert {row["protocol"] for row in rows} == {"stories"}
    for corpus in ("tiny", "children", "simple"):
        same = [row for row in rows if row["corpus"] == corpus]
        assert [row["checkpoint"] for row in same] == ["untrained", "tiny", "simple", str(folder)]
        assert len({row["bytes"] for row in same}) == 1, "over the same bytes"
        assert [row["context"] for row in same] == [32, 32, 32, 64]
        assert len({row["eot_targets"] for row in same}) == 1
    assert "--protocol stories" in refusal(
        "evaluate.py", "--config", config, "--checkpoint", folder, "--protocol", "windows"
    )


def test_without_a_checkpoint_the_command_that_makes_one_is_told(tmp_path: Path, project: tuple[Path, Ladder]) -> None:
    config, ladder = project
    for path in ladder.folder("checkpoints").iterdir():
        path.unlink()
    assert re.search(
        r"no stage has a result in .*; train one: python train_tiny.py --config",
        refusal("evaluate.py", "--config", config),
    )


@pytest.mark.slow
def test_bad_input_is_refused_in_one_line(project: tuple[Path, Ladder], tmp_path: Path) -> None:
    config, ladder = project
    text, checkpoint = tmp_path / "text.txt", StageFiles.of(ladder, ladder.stage("tiny")).result

    def message(*flags: object) -> str:
        said = refusal("evaluate.py", "--config", config, *flags)
        assert said.count("\n") == 1
        return said

    assert "nowhere.txt does not exist" in message("--text", tmp_path / "nowhere.txt")
    text.write_bytes(b"")
    assert "text.txt is empty (0 bytes)" in message("--text", text)
    text.write_bytes(b" \n\n")
    assert "text.txt holds no story" in message("--text", text)
    text.write_bytes("Zo\u00eb".encode("cp1252") + b" ran.")
    assert re.search("is not UTF-8 .* iconv", message("--text", text))
    text.write_bytes("Zo\u00eb".encode("utf-16"))
    assert "is UTF-16" in message("--text", text)
    assert "there is no checkpoint nowhere.pt" in message("--checkpoint", "nowhere.pt")
    assert "stage children has no result yet; train it: python train_children.py" in message("--checkpoint", "children")
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    assert "is damaged" in message()
    save_stage(ladder, "tiny", np.ones(50257), tokenizer="own:0123")
    assert "was trained with tokenizer own:0123" in message()
    assert "--report takes no --text" in message("--report", "--json")
    assert "is 'x'; expected a whole number from 1 to 100,000" in message("--scorecard", "x")
    assert "did you mean '--text'?" in message("--input", "x.txt")
    for path in ladder.folder("data").glob("val*"):
        path.unlink()
    assert re.search(r"no validation text in .*; create it with python prepare_data.py --config", message())


# ---- in this process


def test_weights_that_are_not_finite_are_refused(project: tuple[Path, Ladder], full_precision: Precision) -> None:
    _, ladder = project
    cpu, tokenizer = torch.device("cpu"), gpt2_tokenizer()
    (text, *_) = validation_texts(ladder, tokenizer, lambda _: None)
    candidate = replace(
        untrained(ladder, GPT, tokenizer, cpu), hidden=lambda idx_BT: torch.full((*idx_BT.shape, 16), math.nan)
    )
    with pytest.raises(CheckpointError, match="untrained gives nan nats per token on tiny"):
        measure_matrix([candidate], [text], "windows", stages=["tiny"], device=cpu, precision=full_precision)


def test_flags_are_repeated_in_the_command_without_those_of_the_settings() -> None:
    typed = ["--config", "a.py", "--protocol", "sliding", "--preset=demo", "--checkpoint", "x.pt"]
    assert evaluate._without_settings(typed) == ["--protocol", "sliding", "--checkpoint", "x.pt"]


def row(model: str, corpus: str, bits: float, change: float | None) -> dict[str, Any]:
    numbers = {"bits_per_byte": bits, "bits_per_byte_text": bits - 0.01, "loss": 1.25, "perplexity": 3.49}
    counts = {"tokens": 12345, "bytes": 54321, "context": 256}
    about = {"checkpoint": model, "corpus": corpus, "protocol": "windows", "precision": "fp32", "notes": ["odd text"]}
    return {**about, **numbers, **counts, "change": change}


@pytest.fixture
def matrix() -> Matrix:
    rows = [
        row("tiny", "a", 0.5, 0.0),
        row("tiny", "b", 2.0, 1.0),
        row("x|y", "a", 0.6, 0.2),
        row("x|y", "b", 1.0, None),
    ]
    return Matrix(rows, [Forgetting("x", "a", "tiny", 0.2, 0.19, 0.21)])


def test_the_table_has_aligned_columns(matrix: Matrix) -> None:
    assert table(matrix.rows)[:3] == [
        "model  text  bits/byte  without EOT   change    loss  perplexity  tokens   bytes  context  precision",
        "tiny   a        0.5000       0.4900     best  1.2500        3.49  12,345  54,321      256       fp32",
        "tiny   b        2.0000       1.9900  +100.0%  1.2500        3.49  12,345  54,321      256       fp32",
    ]


def test_the_files_hold_what_was_measured(matrix: Matrix, tmp_path: Path) -> None:
    written = write_evaluation(tmp_path / "reports", matrix, command="python evaluate.py", machine="cpu")
    assert [path.name for path in written] == ["evaluation.json", "evaluation.md"]
    content = json.loads(written[0].read_text())
    assert content["rows"] == matrix.rows and content["made"]["versions"].keys() >= {"python", "torch"}
    assert content["forgetting"] == [{**asdict(matrix.forgetting[0]), "sentence": matrix.forgetting[0].sentence}]
    page = written[1].read_text()
    assert (
        "| x\\|y | a | 0.6000 |" in page and "- Stage x is 20.0% worse on a" in page and page.count("- Odd text.") == 1
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveFailed, match="cannot write"):
        write_evaluation(tmp_path / "file", matrix, command="", machine="")


def test_the_heat_map_is_drawn_and_nothing_fails_without_matplotlib(
    matrix: Matrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = draw_heat_map(tmp_path / "reports" / "heat_map.png", matrix.rows)
    assert path is not None and path.read_bytes().startswith(PNG) and capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw_heat_map(tmp_path / "none.png", matrix.rows) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pictures need matplotlib: python -m pip install matplotlib" in said
    assert not (tmp_path / "none.png").exists()


def test_a_corpus_without_validation_text_is_named_and_left_out(
    toy_ladder: Ladder, write_toy_tokens: Callable[..., Path]
) -> None:
    said: list[str] = []
    _, path = token_files(toy_ladder, toy_ladder.stage("children"))
    with pytest.raises(DataError, match="there is no validation text"):
        validation_texts(toy_ladder, gpt2_tokenizer(), said.append)
    write_toy_tokens(path)
    assert [text.name for text in validation_texts(toy_ladder, gpt2_tokenizer(), said.append)] == ["children"]
    assert len(said) == 2 and re.search(r"val.bin; to create it: python \S*prepare_data.py", "".join(said))


def test_any_file_of_stories_is_cleaned_and_split_as_in_preparation(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("One\u200b cat.\n<|endoftext|>\n\nTwo\u00a0dogs.\r\n<|endoftext|>\n \n", encoding="utf-8")
    text = text_of_file(path, CorpusConfig(), gpt2_tokenizer(), tmp_path)
    assert list(text.stories()) == ["One cat.", "Two dogs."]
    assert (text.name, text.n_stories, text.file.sidecar.text_bytes) == ("stories.txt", 2, 17)
    assert len(text.sha256) == 64
    path = tmp_path / "letter"
    path.write_text("One cat.\r\n\r\nTwo dogs.\n", encoding="utf-8")
    text = text_of_file(path, CorpusConfig(), gpt2_tokenizer(), tmp_path)
    assert list(text.stories()) == ["One cat.", "Two dogs."], "a file without a suffix is plain text"
