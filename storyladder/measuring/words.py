"""What the report and the model card say in words and rounded figures; both take their sentences from here."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from storyladder.measuring.facts import Facts
from storyladder.measuring.history import short
from storyladder.runtime.progress import duration_text
from storyladder.settings import StageConfig

_PROTOCOLS = {
    "windows": "windows of the context length side by side, as while training",
    "sliding": "windows that overlap by half, so that each token has at least half a context before it",
    "stories": "each story alone, the way models with other tokenizers are compared",
}
_MAIN = ("init_from", "replay", "batch_size", "optimizer", "schedule", "max_lr", "min_lr", "warmup_steps")
_PLACES = ("name", "corpus", "script", "result_file", "seed")


def title(facts: Facts) -> str:
    """The title: what was trained."""
    return f"A storyteller of {_millions(facts.model.n_params)} parameters"


def headline(facts: Facts) -> list[str]:
    """What was trained, and how good it is, in words."""
    model = facts.model
    first = f"A GPT with {model.n_layer} layers and a context of {model.context_length} tokens, trained from scratch"
    if facts.histories:
        names = [history.stage.corpus for history in facts.histories]
        first += f" on {_then(names)}: {short(facts.tokens)} tokens in {duration(facts.seconds)} of training."
    else:
        first += "; its training has left no record here."
    return [first, *([second] if (second := _how_good(facts)) else [])]


def _how_good(facts: Facts) -> str:
    row = final_row(facts)
    if row is None:
        return ""
    text = (
        f"On validation text from {row['corpus']}, it is as unsure of the next token as if it chose among "
        f"{rounded(row['perplexity'])} equally likely ones (its perplexity); knowing nothing, it would choose among "
        f"{facts.model.vocab_size:,}. That is {rounded(row['bits_per_byte'])} bits per byte of text."
    )
    unfinished = [history.name for history in facts.histories if not history.finished]
    return text + (f" Still unfinished: {', '.join(unfinished)}." if unfinished else "")


def final_row(facts: Facts) -> dict[str, Any] | None:
    """The last stage on its own corpus: from the evaluation, or else the best of its evaluations while training."""
    for stage in reversed(facts.ladder.stages):
        for matrix in facts.matrices():
            if row := matrix.rows.get((stage.name, stage.corpus)):
                return row
        for history in facts.histories:
            if history.stage.name == stage.name and (best := history.best):
                known = {name: best.get(name, math.nan) for name in ("perplexity", "bits_per_byte")}
                return {"corpus": stage.corpus, "loss": best["val_loss"], **known}
    return None


def key_figures(facts: Facts) -> list[tuple[str, str]]:
    """The figures below the headline, with their names."""
    figures = [("parameters", short(facts.model.n_params))]
    if facts.histories:
        figures += [("tokens read", short(facts.tokens)), ("training time", duration(facts.seconds))]
    if row := final_row(facts):
        figures += [(f"perplexity, {row['corpus']}", rounded(row["perplexity"]))]
        figures += [(f"bits per byte, {row['corpus']}", rounded(row["bits_per_byte"]))]
    return figures


def settings_rows(facts: Facts) -> tuple[list[list[str]], list[list[str]]]:
    """The settings the stages were trained with, one row each: the main ones, and all others."""
    histories = facts.histories
    main = [
        ["corpus", *(history.stage.corpus for history in histories)],
        ["steps", *(f"{history.last_step:,}" for history in histories)],
        ["tokens per step", *(f"{history.tokens_per_step:,}" for history in histories)],
        ["tokens", *(short(history.tokens) for history in histories)],
        ["training time", *(duration(history.seconds) for history in histories)],
        ["precision", *(str(history.start.get("precision", "")) for history in histories)],
    ]
    known = [history.settings for history in histories]
    main += [[name, *(_shown(values.get(name)) for values in known)] for name in _MAIN if any(name in v for v in known)]
    main.append(["seed", *(str(values.get("seed", "")) for values in known)])
    order = [field.name for field in dataclasses.fields(StageConfig)]
    others = [name for name in (*order, *known[0]) if name not in (*_MAIN, *_PLACES)] if known else []
    rest = [[name, *(_shown(values.get(name)) for values in known)] for name in dict.fromkeys(others)]
    return main, rest


def commands(facts: Facts) -> list[str]:
    """What to type to make all of this again."""
    ladder, texts = facts.ladder, facts.texts
    flags = ["--sample"] if texts and all(text.is_sample for text in texts) else []
    flags += ["--download"] if texts and all(text.source for text in texts) else []
    made = [part["made"].get("command") for part in (facts.evaluation, facts.scorecard) if part and part.get("made")]
    again = [str(command) for command in made if command]
    return list(
        dict.fromkeys(
            [
                ladder.command("prepare_data.py", *flags),
                *(ladder.command(stage.script) for stage in ladder.stages),
                *again,
                ladder.command("evaluate.py", "--report"),
            ]
        )
    )


def license_lines(facts: Facts) -> list[str]:
    """The licenses of the texts, and of the weights apart from them."""
    lines = []
    for text in {text.corpus: text for text in facts.texts}.values():
        where = (
            f"{text.source.repo}, revision {text.source.revision}"
            if text.source
            else ", ".join(text.sidecar["sources"])
        )
        lines.append(f"Text of {text.corpus}: {text.license} ({where}).")
    own = facts.citation.get("license", "")
    return [
        *lines,
        f"Weights: {own}, like Storyladder itself, unless their owner chooses another license; the texts keep theirs.",
    ]


def limits(facts: Facts) -> list[str]:
    """What the model cannot do and should not be used for."""
    return [
        f"It continues stories in English; it knows no facts, and forgets what is more than "
        f"{facts.model.context_length} tokens back.",
        "It repeats what its texts are like, including what is sad, frightening or one-sided in them. It is not safe "
        "for unattended use by children: an adult should read with them.",
        "It may repeat passages of its training text.",
    ]


def citation_text(facts: Facts) -> str:
    """One sentence to cite."""
    known = facts.citation
    url = known.get("repository-code") or known.get("url")
    version = f", version {known['version']}" if known.get("version") else ""
    return f"{' and '.join(known['authors'])}. {known.get('title', '')}{version}. Software.{f' {url}' if url else ''}"


def citation_lines(facts: Facts) -> list[str]:
    """The same as a BibTeX entry."""
    known = facts.citation
    name = re.sub(r"\W+", "", known.get("title", "software")).lower()
    fields = {
        "title": known.get("title"),
        "author": " and ".join(f"{{{author}}}" for author in known["authors"]),
        "version": known.get("version"),
        "url": known.get("repository-code") or known.get("url"),
        "license": known.get("license"),
    }
    return [f"@software{{{name},", *(f"  {key} = {{{value}}}," for key, value in fields.items() if value), "}"]


def protocol_text(protocol: str) -> str:
    """How a protocol cuts the text."""
    return _PROTOCOLS.get(protocol, "see evaluation.json")


def rounded(value: Any) -> str:
    """Three or four digits that matter: 0.894, 2.06, 14.9, 50,257; empty for None and NaN."""
    if not isinstance(value, (int, float)) or math.isnan(value):
        return ""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 2 else 3}f}"


def percent(change: float) -> str:
    """A relative change with its sign: +7%, +0.4%."""
    size = 100 * change
    return f"{size:+,.1f}%" if abs(size) < 2 else f"{size:+,.0f}%"


def duration(seconds: float) -> str:
    """Seconds as hours and minutes, with spaces that do not break."""
    return duration_text(seconds).replace(" ", "\N{NO-BREAK SPACE}")


def _millions(count: int) -> str:
    """27.8 million, 950,000."""
    return f"{count / 1e6:.3g} million" if count >= 1_000_000 else f"{count:,}"


def _then(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and then {names[-1]}" if len(names) > 1 else names[0]


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
