"""Folders in Hugging Face's layout, made here: GPT-2 with our weights and its own tokenizer, and a tiny Llama."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter

from benchmarks.peers import gpt2_of, load_our_weights
from storyladder.corpus import tokenizer as ours
from storyladder.settings import ModelConfig


def gpt2_folder(folder: Path, model: ModelConfig, weights: dict[str, torch.Tensor]) -> Path:
    """An export of one of our models; its tokenizer.json is made from the bundled ranks."""
    gpt2 = gpt2_of(model)
    load_our_weights(gpt2, weights)
    gpt2.save_pretrained(folder)
    converter = TikTokenConverter(str(ours.RANKS_FILE), ours._PATTERN, additional_special_tokens=[ours.EOT_TEXT])
    tokenizer = converter.converted()
    assert tokenizer.token_to_id(ours.EOT_TEXT) == ours.EOT
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": ours.EOT_TEXT for name in ("bos", "eos", "unk")}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2TokenizerFast", **names})
    return folder


def small_tokenizer(stories: list[str], vocab_size: int = 400, *, lowercase: bool = False) -> Tokenizer:
    """A byte-level BPE with <s> and </s>, trained on these stories."""
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(stories, trainer)
    return tokenizer


def llama_folder(
    folder: Path, stories: list[str], *, rows: int = 400, context: int = 64, lowercase: bool = False
) -> Path:
    """A tiny Llama with random weights; `rows` of its embedding."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=1,
    )
    llama = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    llama.save_pretrained(folder)
    small_tokenizer(stories, lowercase=lowercase).save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"},
    )
    return folder


def write_json(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")
