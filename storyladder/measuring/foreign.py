"""Other people's models: a folder in Hugging Face's layout of GPT-2 or Llama, with its own tokenizer.

Read through transformers, from the disk only. Such models are scored on whole stories: one prefix token (BOS, else
EOS), the story's tokens without any others, then EOS. The wrong prefix can ruin a result (lm-evaluation-harness #1586).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from storyladder.measuring.candidates import Candidate, sha256_of_weights
from storyladder.runtime.errors import CheckpointError, UserError

_LAYOUTS = ("gpt2", "llama")
_MOST_CONTEXT = 4096  # tokens; stories are shorter, and memory grows with it
_SAMPLE = 200  # stories on which the tokenizer must give back what it took


def load_foreign(path: Path, stories: Iterable[str], device: torch.device) -> Candidate:
    """The model of a folder. CheckpointError with what is wrong in it; UserError without transformers.

    `stories` are a sample of the text; a note says so if the tokenizer does not give them back unchanged.
    """
    config = _config(path)
    try:
        import transformers
    except ImportError:
        raise UserError(
            f"{path} is a Hugging Face folder, and the package transformers, which reads it, is not installed here; "
            "run python -m pip install -c constraints.txt transformers"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = _tokenizer(transformers, path)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(path), local_files_only=True, dtype=torch.float32, low_cpu_mem_usage=False
        )
    except Exception as error:  # transformers, tokenizers and safetensors each raise their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(f"{path} cannot be loaded: {reason}; is the folder complete?") from None
    model.to(device).eval()
    head = model.get_output_embeddings().weight
    if len(tokenizer) > len(head):
        raise CheckpointError(
            f"{path}: its tokenizer has {len(tokenizer):,} tokens, but its embedding only {len(head):,} rows; "
            "they do not belong together: use the folder's own tokenizer"
        )
    bos, eos = _special(tokenizer, config, "bos"), _special(tokenizer, config, "eos")
    prefix = bos if bos is not None else eos
    if prefix is None:
        raise CheckpointError(f"{path} names neither bos_token nor eos_token; add one to its tokenizer_config.json")
    for token in (prefix, eos):
        if token is not None and not 0 <= token < len(head):
            raise CheckpointError(f"{path}: special token {token} is outside its embedding of {len(head):,} rows")
    return Candidate(
        name=str(path),
        stage=None,
        step=None,
        context=min(int(model.config.max_position_embeddings), _MOST_CONTEXT),
        vocab_size=len(head),
        prefix=prefix,
        eot=eos,
        hidden=lambda idx_BT: model.base_model(input_ids=idx_BT, use_cache=False).last_hidden_state,
        head_weight=head,
        weights_sha256=sha256_of_weights(model.state_dict()),
        encode=lambda texts: _encode(tokenizer, texts),
        notes=tuple(_changes_text(tokenizer, path, stories)),
    )


def _config(path: Path) -> dict[str, Any]:
    """config.json, checked."""
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is a folder without config.json; give --checkpoint a checkpoint file, or a Hugging Face folder"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in _LAYOUTS:
        raise CheckpointError(f"{path} holds a model of type {kind!r}; expected one of {', '.join(_LAYOUTS)}")
    return dict(config)


def _tokenizer(transformers: Any, path: Path) -> Any:
    """The folder's own tokenizer."""
    if (path / "tokenizer.json").exists() and not (path / "tokenizer_config.json").exists():
        return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    return transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True)


def _special(tokenizer: Any, config: dict[str, Any], name: str) -> int | None:
    """The id of BOS or EOS: the tokenizer's, else what config.json itself says."""
    token = getattr(tokenizer, f"{name}_token_id")
    if token is None:
        token = config.get(f"{name}_token_id")
    if isinstance(token, list):
        token = token[0] if token else None
    return token if isinstance(token, int) else None


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids without special tokens; the name of a special token inside a story stays ordinary text."""
    ids: list[list[int]] = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # about texts longer than the context
    )["input_ids"]
    return ids


def _changes_text(tokenizer: Any, path: Path, stories: Iterable[str]) -> Iterator[str]:
    """A note if the tokenizer changes the text: it would buy itself a better number if its own bytes counted."""
    sample = list(itertools.islice(stories, _SAMPLE))
    changed = sum(
        tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) != story
        for story, ids in zip(sample, _encode(tokenizer, sample) if sample else [], strict=True)
    )
    if changed:
        yield (
            f"the tokenizer of {path} changes the text ({changed:,} of {len(sample):,} stories do not come back "
            "as they were); its bits per byte are divided by the bytes of the original text"
        )
