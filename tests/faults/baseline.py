"""What most small trainers do, for comparison: torch.save over the only file, and torch.load of it if it exists.

The same toy model, batches and losses as ours, and the usual good will: optimizer and step are saved, batch k and
dropout depend on the step only, so a resumed run that finds its file whole ends in the same weights.
"""

from __future__ import annotations

import argparse
import json
import runpy
from pathlib import Path

import torch
from torch.nn import functional as F

from model import GPT
from storyladder.corpus.corpora import token_files
from storyladder.corpus.token_file import TrainBatches, ValidationWindows, open_token_file
from storyladder.corpus.tokenizer import gpt2_tokenizer


def main() -> None:
    """Train the toy's first stage in the plain way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    ladder = runpy.run_path(str(parser.parse_args().config))["PRESETS"][0]
    stage, context = ladder.stage("tiny"), ladder.model.context_length
    tokenizer = gpt2_tokenizer()
    train, val = (
        open_token_file(path, tokenizer=tokenizer.fingerprint, vocab_size=ladder.model.vocab_size)
        for path in token_files(ladder, stage)
    )
    batches = TrainBatches(train.ids, context_length=context, batch_size=stage.batch_size, seed=stage.seed)
    windows = ValidationWindows(val.ids, context_length=context, limit=None, token_bytes_V=tokenizer.token_bytes_V)
    torch.manual_seed(stage.seed)
    model = GPT(ladder.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.max_lr)
    path, step = ladder.folder("checkpoints") / stage.result_file, 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    path.parent.mkdir(exist_ok=True)
    record = ladder.folder("runs") / "tiny.jsonl"
    record.parent.mkdir(exist_ok=True)
    while True:
        if step % stage.save_interval == 0 or step >= stage.max_steps:
            with path.open("wb") as file:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, file)
        if step >= stage.max_steps:
            break
        torch.manual_seed(step)
        idx_BT, targets_BT = map(torch.from_numpy, batches.batch(step))
        loss = F.cross_entropy(model(idx_BT).flatten(0, 1), targets_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": "train", "step": step, "train_loss": loss.item()}) + "\n")
    assert len(windows)
    print(f"finished at step {step}")


if __name__ == "__main__":
    main()
