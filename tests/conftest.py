"""What all tests share: one thread (equal digits everywhere), a toy ladder under a temporary root, toy token files."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import torch

import config
from model import GPT
from storyladder.corpus.corpora import token_files
from storyladder.corpus.token_file import TokenWriter
from storyladder.corpus.tokenizer import EOT, gpt2_tokenizer
from storyladder.runtime.machine import Precision
from storyladder.settings import Ladder, ModelConfig, Paths, check

# Shells ignore SIGINT in what they start in the background, nohup SIGHUP; programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

MUON: dict[str, Any] = {
    "optimizer": "muon",
    "schedule": "linear",
    "max_lr": 0.02,
    "min_lr": 0.0,
    "wte_lr": 0.01,
    "wpe_lr": 0.005,
    "vector_lr": 0.03,
}
pytest.register_assert_rewrite("stages", "steppers")
BOTH_OPTIMIZERS = pytest.mark.parametrize("changes", [{}, MUON], ids=["adamw", "muon"])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of all stages that run")
    parser.addoption("--pretend-amx", action="store_true", help="let torch take this CPU for one with fast bf16")


def pytest_configure(config: pytest.Config) -> None:
    """Here, in the workers of xdist, and through the environment in whatever process a test starts."""
    running.PRECISION = config.getoption("--precision")
    if config.getoption("--pretend-amx"):
        running.pretend_amx()


TOY_MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=16, context_length=16, dropout=0.1)
TOY_STAGE: dict[str, Any] = {
    "max_steps": 6,
    "batch_size": 4,
    "micro_batch_size": 2,
    "max_lr": 1e-2,
    "min_lr": 1e-3,
    "warmup_steps": 2,
    "eval_interval": 3,
    "save_interval": 4,
    "log_interval": 1,
    "replay": None,
    "sample_tokens": 0,
    "pictures": False,
    "seed": 7,
}
TOY_TINY = replace(config.TINY, **TOY_STAGE)
TOY_CHILDREN = replace(config.CHILDREN, **TOY_STAGE, patience=2)
TOY_SIMPLE = replace(config.SIMPLE, **TOY_STAGE, patience=2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def toy_ladder(tmp_path: Path) -> Ladder:
    """Three rungs of a model of about 0.8 M parameters, whose folders lie under tmp_path."""
    paths = Paths(root=str(tmp_path))
    return check(Ladder(model=TOY_MODEL, stages=(TOY_TINY, TOY_CHILDREN, TOY_SIMPLE), paths=paths))


@pytest.fixture(scope="session")
def write_toy_tokens() -> Callable[..., Path]:
    """Writes a token file of `n_tokens` ids below `types`, with stories of about 20 tokens."""

    def write(path: Path, *, n_tokens: int = 700, types: int = 60, seed: int = 0) -> Path:
        ids = np.random.default_rng(seed).integers(0, types, n_tokens).astype(np.uint16)
        ids[19::20] = EOT
        with TokenWriter(path, gpt2_tokenizer().fingerprint) as writer:
            writer.add(ids, stories=n_tokens // 20, text_bytes=3 * n_tokens)
            writer.finish(sources=["toy"], cleaning={})
        return path

    return write


@pytest.fixture
def toy_data(toy_ladder: Ladder, write_toy_tokens: Callable[..., Path]) -> Ladder:
    """The toy ladder with all six token files in place."""
    for number, stage in enumerate(toy_ladder.stages):
        train, val = token_files(toy_ladder, stage)
        write_toy_tokens(train, types=60 + 20 * number, seed=number)
        write_toy_tokens(val, n_tokens=250, types=60 + 20 * number, seed=10 + number)
    return toy_ladder


@pytest.fixture
def small_gpt() -> Callable[..., GPT]:
    """Builds a GPT of 40 tokens without dropout, every parameter of which is far enough from its start to matter."""

    def build(*, seed: int = 0, dtype: torch.dtype = torch.float32, far: float = 0.3, **changes: float) -> GPT:
        sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 16, "vocab_size": 40, "dropout": 0.0}
        torch.manual_seed(seed)
        model = GPT(ModelConfig(**sizes | changes)).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=far)
        return model

    return build


@pytest.fixture(params=["fp32", "bf16"])
def each_precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a promise about numbers holds in: the stages of the test run in it, whatever CPU there is."""
    monkeypatch.setattr(running, "PRECISION", request.param)
    name: str = request.param
    return name


@pytest.fixture
def full_precision() -> Precision:
    """No autocast: products in the type of the weights."""
    return Precision(torch.float32, "a test wants it", "cpu")
