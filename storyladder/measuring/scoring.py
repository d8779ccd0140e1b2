"""Scoring a text with a model: batches of rows through the network, nats of each target, summed into a Tally.

Weights and the log-softmax are always float32; the matmuls are too unless another precision is asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from storyladder.layers.kernels import kernels_for
from storyladder.measuring.candidates import Candidate
from storyladder.measuring.protocols import Batch, Row, batches, rows_of, rows_of_stories
from storyladder.measuring.tally import Tally
from storyladder.measuring.texts import Text
from storyladder.runtime.errors import DataError, OutOfMemory
from storyladder.runtime.machine import Precision, is_out_of_memory

_BATCH_TOKENS = {"cpu": 4096, "cuda": 1 << 16}
_CHUNK_SCORES = {"cpu": 1 << 23, "cuda": 1 << 28}  # scores (logits) at a time
_STORIES_AT_ONCE = 1_000  # encoded together by another tokenizer


def score(
    candidate: Candidate,
    text: Text,
    protocol: str,
    *,
    device: torch.device,
    precision: Precision,
    check_stop: Callable[[], None] = lambda: None,
) -> Tally:
    """Score a whole text, whose tokens the model knows (check_vocabulary). OutOfMemory if not even one row fits."""
    tally = Tally.of(text.n_stories)
    with tqdm(unit="tok", unit_scale=True, desc=f"{candidate.name} on {text.name}", leave=False, disable=None) as bar:
        if candidate.encode is None:
            bar.total = len(text.ids)
            rows = rows_of(protocol, text.ids, text.ends, context=candidate.context, prefix=candidate.prefix)
        else:
            assert protocol == "stories", "windows of several stories compare models of one tokenizer only"
            rows = foreign_rows(candidate, text, tally)
        for batch in batches(rows, _BATCH_TOKENS.get(device.type, _BATCH_TOKENS["cpu"])):
            text.file.check_size()
            nats_N = batch_nats(candidate, batch, device=device, precision=precision)
            targets_N = tally.add(batch, nats_N, eot=candidate.eot, one_story=protocol == "stories")
            if candidate.encode is None:
                tally.text_bytes += int(text.tokenizer.token_bytes_V[targets_N].sum())
            bar.update(len(targets_N))
            check_stop()
    return tally


def check_vocabulary(candidate: Candidate, text: Text) -> None:
    """DataError if a text holds tokens that a model with our tokenizer does not have."""
    largest = text.file.sidecar.largest_id
    if candidate.encode is None and largest >= candidate.vocab_size:
        raise DataError(
            f"{text.name} holds token {largest}, but {candidate.name} has a vocabulary of only "
            f"{candidate.vocab_size:,} (0 to {candidate.vocab_size - 1}); use another --checkpoint or --text"
        )


def foreign_rows(candidate: Candidate, text: Text, tally: Tally) -> Iterator[Row]:
    """Rows of the same stories in the tokens of another tokenizer; counts the bytes of the stories themselves."""
    end = [] if candidate.eot is None else [candidate.eot]

    def encoded() -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
        stories = text.stories()
        while bundle := list(itertools.islice(stories, _STORIES_AT_ONCE)):
            assert candidate.encode is not None
            for story, ids in zip(bundle, candidate.encode(bundle), strict=True):
                tally.text_bytes += len(story.encode())
                yield np.array([*ids, *end], dtype=np.int64)

    return rows_of_stories(encoded(), context=candidate.context, prefix=candidate.prefix)


def batch_nats(
    candidate: Candidate, batch: Batch, *, device: torch.device, precision: Precision
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Nats of a batch's scored targets, (N,). A batch that does not fit in memory is scored in halves."""
    try:
        return _batch_nats(candidate, batch, device, precision)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    B = len(batch.idx_BT)
    if B == 1:
        raise OutOfMemory(
            f"out of memory even with one row of {batch.idx_BT.shape[1]:,} tokens; close other programs, "
            "or try --device cpu"
        )
    halves = (slice(0, B // 2), slice(B // 2, B))
    parts = [Batch(batch.idx_BT[h], batch.targets_BT[h], batch.scored_BT[h], batch.story_B[h]) for h in halves]
    return np.concatenate([batch_nats(candidate, part, device=device, precision=precision) for part in parts])


@torch.inference_mode()
def _batch_nats(
    candidate: Candidate, batch: Batch, device: torch.device, precision: Precision
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    idx_BT = candidate.rows(torch.from_numpy(batch.idx_BT).to(device))
    targets_N = candidate.rows(torch.from_numpy(batch.targets_BT[batch.scored_BT]).to(device))
    with precision.autocast():
        hidden_BTC = candidate.hidden(idx_BT)
    hidden_NC = hidden_BTC[torch.from_numpy(batch.scored_BT).to(device)]
    weight_VC = candidate.head_weight
    if precision.dtype != torch.float32:
        hidden_NC, weight_VC = hidden_NC.to(precision.dtype), weight_VC.to(precision.dtype)
    nats: np.ndarray[tuple[int], np.dtype[np.float32]] = (
        token_nats(hidden_NC, weight_VC, targets_N, log_unseen=candidate.log_unseen).cpu().numpy()
    )
    return nats


def token_nats(hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, *, log_unseen: float = 0.0) -> Tensor:
    """Cross-entropy of each target in nats, (N,) float32, in chunks: the scores of a whole batch never exist.

    `log_unseen` is added to the last score, except where it is the target (learning/vocabulary.py).
    """
    most = _CHUNK_SCORES.get(hidden_NC.device.type, _CHUNK_SCORES["cpu"])
    rows = max(1, most // len(weight_VC))
    nats = [
        _chunk_nats(hidden_NC[start : start + rows] @ weight_VC.T, targets_N[start : start + rows], log_unseen)
        for start in range(0, len(hidden_NC), rows)
    ]
    return torch.cat(nats) if nats else hidden_NC.new_zeros(0, dtype=torch.float32)


def _chunk_nats(scores_RV: Tensor, targets_R: Tensor, log_unseen: float) -> Tensor:
    """Overwrites the scores."""
    kernels = kernels_for(scores_RV, "loss")
    if kernels is not None:
        return kernels.cross_entropy_(scores_RV, targets_R, last_offset=log_unseen, gradient=False)
    wide_RV = scores_RV.float()
    target_scores_R = wide_RV.gather(1, targets_R[:, None])[:, 0]
    wide_RV[:, -1] += log_unseen
    return wide_RV.logsumexp(dim=1) - target_scores_R
