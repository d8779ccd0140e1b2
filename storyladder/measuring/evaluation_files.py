"""The matrix as a table on the terminal, and reports/evaluation.json and .md; each written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storyladder.measuring.made import made
from storyladder.measuring.matrix import MEASURED_ROW, Matrix
from storyladder.runtime.files import replace_text

FORMAT = 1
_COLUMNS = (
    "model",
    "text",
    "bits/byte",
    "without EOT",
    "change",
    "loss",
    "perplexity",
    "tokens",
    "bytes",
    "context",
    "precision",
)
_PROTOCOLS = {
    "windows": "disjoint windows of the context, as in training's evaluation",
    "sliding": "windows that overlap by half a context; each token is scored once",
    "stories": "each story alone behind a prefix token; EOT is scored where the model has one",
}


def write_evaluation(folder: Path, matrix: Matrix, *, command: str, machine: str) -> list[Path]:
    """Write evaluation.json and evaluation.md; returns their paths. SaveFailed if the folder cannot be written."""
    content = {"format": FORMAT, "made": made(command=command, machine=machine), **matrix.record()}
    texts = {
        folder / "evaluation.json": json.dumps(content, indent=1) + "\n",
        folder / "evaluation.md": "\n".join(page(content)) + "\n",
    }
    for path, text in texts.items():
        replace_text(path, text)
    return [*texts]


def table(rows: Sequence[MEASURED_ROW]) -> list[str]:
    """Aligned columns for the terminal."""
    cells = [list(_COLUMNS), *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def page(content: dict[str, Any]) -> list[str]:
    """evaluation.md, from the content of evaluation.json."""
    rows, stamp = content["rows"], content["made"]
    lines = ["# Evaluation", "", f"{stamp['date']}: `{stamp['command']}`", "", f"{stamp['machine']}.", ""]
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        lines += [f"Protocol `{protocol}`: {_PROTOCOLS[protocol]}.", ""]
    lines += [f"| {' | '.join(_COLUMNS)} |", f"| --- | --- |{' ---: |' * (len(_COLUMNS) - 2)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in _cells(row))} |" for row in rows]
    notes = list(dict.fromkeys(note for row in rows for note in row["notes"]))
    sentences = [entry["sentence"] for entry in content["forgetting"]]
    lines += ["", "`change` is that of bits per byte against the best stage on the same text.", ""]
    lines += [f"- {_as_sentence(line)}" for line in (*sentences, *notes)]
    return lines


def _as_sentence(line: str) -> str:
    return line[:1].upper() + line[1:] + "."


def _cells(row: MEASURED_ROW) -> list[str]:
    change = row["change"]
    return [
        str(row["checkpoint"]),
        str(row["corpus"]),
        f"{row['bits_per_byte']:.4f}",
        f"{row['bits_per_byte_text']:.4f}",
        "" if change is None else "best" if change == 0 else f"{change:+.1%}",
        f"{row['loss']:.4f}",
        f"{row['perplexity']:,.2f}",
        f"{row['tokens']:,}",
        f"{row['bytes']:,}",
        f"{row['context']:,}",
        str(row["precision"]),
    ]
