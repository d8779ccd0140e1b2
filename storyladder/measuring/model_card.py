"""reports/MODEL_CARD.md: the card of the trained model in the form that Hugging Face reads, from the ladder's files."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from storyladder.measuring.facts import Facts
from storyladder.measuring.history import short
from storyladder.measuring.words import (
    citation_lines,
    citation_text,
    commands,
    duration,
    final_row,
    headline,
    license_lines,
    limits,
    protocol_text,
    rounded,
    title,
)

_METRICS = ("loss", "perplexity", "bits_per_byte")


def model_card(facts: Facts) -> str:
    """The card: metadata for machines on top, then the same in words. Markdown."""
    return "\n".join(["---", metadata(facts), "---", *_lines(facts)]) + "\n"


def metadata(facts: Facts) -> str:
    """The YAML block, with every evaluated text of the last stage in `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData  # here: it takes a second

    sources = {text.source.repo: text for text in facts.texts if text.source}
    repos = {text.corpus: repo for repo, text in sources.items()}
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Next-token prediction",
            dataset_type=repos.get(row["corpus"], str(row["corpus"])),
            dataset_name=f"{row['corpus']}, validation text",
            dataset_split="validation",
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=round(float(row[name]), 4),
        )
        for row in _results(facts)
        for name in _METRICS
        if row[name] == row[name]  # not NaN
    ]
    card = ModelCardData(
        language="en",
        license=str(facts.citation.get("license", "other")).lower(),
        library_name="pytorch",
        pipeline_tag="text-generation",
        tags=["storyladder", "gpt2", "stories", "from-scratch"],
        datasets=list(sources) or None,
        metrics=["perplexity"],
        model_name=f"storyladder-{facts.ladder.name}",
        eval_results=results or None,
    )
    return str(card.to_yaml())


def _results(facts: Facts) -> list[dict[str, Any]]:
    """The last stage on every text, under the first protocol; or its best evaluation while training."""
    last = final_row(facts)
    if last is None:
        return []
    name = last.get("checkpoint")
    return [row for (checkpoint, _), row in facts.matrices()[0].rows.items() if checkpoint == name] if name else [last]


def _lines(facts: Facts) -> Iterator[str]:
    """The card below its metadata."""
    yield from (f"# {title(facts)}", "")
    for paragraph in headline(facts):
        yield from (paragraph, "")
    yield from ("## Intended use", "")
    yield from (
        "For studying and teaching how language models learn, and for telling short stories under supervision.",
        "",
    )
    yield from ("## Held-out figures", "", *_figures(facts), "")
    if sentences := facts.forgetting():
        yield from ("What it forgot of earlier stages:", "", *(f"- {_plain(line)}" for line in sentences), "")
    yield from _scores(facts)
    yield from ("## Training data and licenses", "")
    for text in facts.texts:
        sidecar = text.sidecar
        size = f"{sidecar.get('stories', 0):,} stories, {sidecar.get('tokens', 0):,} tokens"
        yield f"- `{text.name}`: {size}, SHA-256 `{sidecar.get('sha256')}`"
    yield from (*(f"- {_plain(line)}" for line in license_lines(facts)), "")
    yield from ("## Training", "")
    for history in facts.histories:
        steps = f"{history.last_step:,} steps of {history.tokens_per_step:,} tokens ({short(history.tokens)})"
        state = "" if history.finished else ", unfinished"
        yield f"- {history.name}: {steps} in {duration(history.seconds)}{state}"
    for machine, stages in facts.machines.items():
        yield f"- Hardware of {', '.join(stages)}: {_plain(machine)}"
    yield from ("", "```", *commands(facts), "```", "")
    yield from ("## Limits", "", *(f"- {line}" for line in limits(facts)), "")
    yield from ("## How to cite", "", citation_text(facts), "", "```bibtex", *citation_lines(facts), "```")


def _figures(facts: Facts) -> Iterator[str]:
    """Every evaluation as a table, or those while training if there is no other."""
    yield from (
        "| checkpoint | text | protocol | loss | perplexity | bits/byte |",
        "| --- | --- | --- | --- | --- | --- |",
    )
    matrices = facts.matrices()
    for matrix in matrices:
        for (checkpoint, corpus), row in matrix.rows.items():
            values = f"{row['loss']:.4f} | {rounded(row['perplexity'])} | {rounded(row['bits_per_byte'])}"
            yield f"| {_plain(checkpoint)} | {_plain(corpus)} | {matrix.protocol} | {values} |"
    for history in [] if matrices else facts.histories:
        if best := history.best:
            values = (
                f"{best['val_loss']:.4f} | {rounded(best.get('perplexity'))} | {rounded(best.get('bits_per_byte'))}"
            )
            yield f"| {history.name} | {history.stage.corpus} | while training | {values} |"
    for matrix in matrices:
        yield from ("", f"Protocol {matrix.protocol}: {protocol_text(matrix.protocol)}.")


def _scores(facts: Facts) -> Iterator[str]:
    """The scorecard as a table, with real stories next to the model's."""
    if not facts.scorecard:
        return
    rows = facts.scorecard["rows"]
    heads = [
        f"{'real, ' if row['who'] == 'real' else ''}{row['corpus'] if row['who'] == 'real' else row['who']}"
        for row in rows
    ]
    yield from ("## Its stories next to real ones", "", f"| | {' | '.join(map(_plain, heads))} |")
    yield f"| --- |{' --- |' * len(rows)}"
    for name in dict.fromkeys(name for row in rows for name in row["metrics"]):
        cells = [_cell(row["metrics"].get(name)) for row in rows]
        yield f"| {_plain(name.replace('_', ' '))} | {' | '.join(cells)} |"
    yield ""


def _cell(metric: dict[str, Any] | None) -> str:
    if not metric:
        return ""
    low, high = rounded(metric.get("low")), rounded(metric.get("high"))
    return rounded(metric.get("value")) + (f" ({low} to {high})" if low and high else "")


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, no table borders, no line ends."""
    return escape(" ".join(str(text).split()), quote=False).replace("|", "\\|")
