"""The report as one HTML page that loads nothing: the view of a ladder's files, in words, curves and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from storyladder.measuring.charts import ladder_chart
from storyladder.measuring.facts import Facts, Matrix
from storyladder.measuring.history import History, half_life_for, short
from storyladder.measuring.words import (
    citation_lines,
    citation_text,
    commands,
    duration,
    headline,
    key_figures,
    license_lines,
    limits,
    percent,
    protocol_text,
    rounded,
    settings_rows,
    title,
)
from storyladder.runtime.errors import UserError

LARGEST = 2_000_000  # bytes of the page
# Enforces that the page loads nothing from anywhere.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_WIDE, _NARROW = 760, 350  # pixels of a curve on a desktop and on a phone
_STORY_WORDS = 110  # of a story in the scrapbook
_EARLIER = 3  # entries of the first stage in the scrapbook
_HOTTEST = 4.0  # the relative distance in bits per byte of the strongest color


def page(facts: Facts) -> str:
    """The whole page. UserError if it would be larger than LARGEST bytes."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    sections = (
        ("curves", "How it learned", _curves(facts)),
        ("memory", "What it knows and what it forgot", _memory(facts)),
        ("stories", "Its stories next to real ones", _scorecard(facts)),
        ("scrapbook", "How one story grew up", _scrapbook(facts)),
        ("data", "What it read", _data(facts)),
        ("training", "How it was trained", _training(facts)),
        ("using", "Using and citing it", _using(facts)),
    )
    links = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{escape(text)}</h2>{content}</section>' for name, text, content in sections
    )
    whole = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title(facts))}</title><style>{style}</style></head><body>"
        f"{_opening(facts)}<nav>{links}</nav>{body}{_footer(facts)}</body></html>\n"
    )
    if len(whole.encode("utf-8")) > LARGEST:
        raise UserError(f"the report would have {len(whole):,} characters; expected at most {LARGEST:,} bytes")
    return whole


def _opening(facts: Facts) -> str:
    figures = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in key_figures(facts)
    )
    paragraphs = "".join(f'<p class="lead">{escape(text)}</p>' for text in headline(facts))
    preset = f"preset {facts.ladder.name}"
    return (
        f'<header><p class="eyebrow">Storyladder report, {escape(preset)}</p><h1>{escape(title(facts))}</h1>'
        f'{paragraphs}</header><dl class="figures">{figures}</dl>'
    )


def _curves(facts: Facts) -> str:
    if not facts.histories:
        return _missing("No stage has been trained", facts.ladder.command(facts.ladder.stages[0].script))
    charts = "".join(
        f'<div class="{name}">{ladder_chart(facts.histories, width)}</div>'
        for name, width in (("wide", _WIDE), ("narrow", _NARROW))
    )
    lives = {history.name: life for history in facts.histories if (life := half_life_for(history.steps))}
    smooth = f"; the pale line is as recorded, the full one an average (EMA) whose half-life is {_lives(lives)}"
    vocabulary = facts.histories[0]
    rows = [_curve_row(history) for history in facts.histories]
    heads = ("stage", "steps", "tokens", "val. loss", "perplexity", "bits/byte", "at step", "training")
    return (
        "<p>The loss is how surprised the model is by the next token, on average: lower is better. A model that knows "
        f"nothing yet has ln {vocabulary.vocab_size:,} = {vocabulary.ln_vocabulary:.2f} (dotted). Each later stage "
        "starts with the weights of the one before and meets text it does not know: the loss jumps up, then falls.</p>"
        f'<figure>{charts}<figcaption><span class="key-val">Dots</span>: loss on validation text, never smoothed; the '
        'first and the lowest have numbers. <span class="key-train">Line</span>: training '
        f"loss{smooth if lives else ''}.</figcaption></figure>{_table(heads, rows)}"
    )


def _lives(lives: Mapping[str, int]) -> str:
    if len(set(lives.values())) == 1:
        return f"{next(iter(lives.values())):,} steps"
    return ", ".join(f"{life:,} steps ({name})" for name, life in lives.items())


def _curve_row(history: History) -> list[str]:
    best = history.best
    cells = [history.name, f"{history.last_step:,}", short(history.tokens)]
    if best is None:
        return [*cells, "", "", "", "", duration(history.seconds)]
    cells += [
        f"{best['val_loss']:.4f}",
        rounded(best.get("perplexity", math.nan)),
        rounded(best.get("bits_per_byte", math.nan)),
    ]
    return [*cells, f"{best['step']:,}", duration(history.seconds) + ("" if history.finished else ", unfinished")]


def _memory(facts: Facts) -> str:
    matrices = facts.matrices()
    if not matrices:
        return _missing("No stage has been evaluated on all texts", facts.ladder.command("evaluate.py"))
    stages = [stage.name for stage in facts.ladder.stages]
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in facts.forgetting())
    parts = [f"<ul>{sentences}</ul>" if sentences else ""]
    parts += [_heat_map(matrix, stages) for matrix in matrices]
    rows = [row for matrix in matrices for row in matrix.rows.values()]
    return "".join(
        [*parts, f"<details><summary>All figures of the evaluation</summary>{_evaluation_table(rows)}</details>"]
    )


def _heat_map(matrix: Matrix, stages: Sequence[str]) -> str:
    """Checkpoints down, corpora across, in bits per byte; the color is the distance to the best of the column."""
    head = "".join(f"<th>{escape(corpus)}</th>" for corpus in matrix.corpora)
    rows = []
    for checkpoint in matrix.checkpoints:
        cells = "".join(_heat_cell(matrix, checkpoint, corpus) for corpus in matrix.corpora)
        name = f"after {checkpoint}" if checkpoint in stages else checkpoint
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return (
        f'<div class="box"><table class="heat"><thead><tr><th></th>{head}</tr></thead><tbody>'
        f'{"".join(rows)}</tbody></table></div><p class="note">Bits per byte of validation text, lower is better. '
        "Framed: the best on that text; the stronger the color, the further from it. Protocol "
        f"{escape(matrix.protocol)}: {escape(protocol_text(matrix.protocol))}.</p>"
    )


def _heat_cell(matrix: Matrix, checkpoint: str, corpus: str) -> str:
    row, worse = matrix.rows.get((checkpoint, corpus)), matrix.worse_by(checkpoint, corpus)
    if row is None or worse is None:
        return "<td></td>"
    distance = "best" if worse == 0 else percent(worse)
    heat = 0.6 * min(1.0, math.sqrt(worse / _HOTTEST))
    name = ' class="best"' if worse == 0 else ""
    return f'<td{name} style="--Heat:{heat:.3f}">{rounded(row["bits_per_byte"])}<small>{distance}</small></td>'


def _evaluation_table(rows: Iterable[Mapping[str, Any]]) -> str:
    heads = (
        "checkpoint",
        "text",
        "protocol",
        "loss",
        "perplexity",
        "bits/byte",
        "without EOT",
        "tokens",
        "bytes",
        "context",
    )
    cells = [
        [
            *(str(row[name]) for name in ("checkpoint", "corpus", "protocol")),
            f"{row['loss']:.4f}",
            *(rounded(row.get(name)) for name in ("perplexity", "bits_per_byte", "bits_per_byte_text")),
            *(_whole(row.get(name)) for name in ("tokens", "bytes", "context")),
        ]
        for row in rows
    ]
    return _table(heads, cells)


def _scorecard(facts: Facts) -> str:
    if not facts.scorecard:
        return _missing("The stories have not been counted", facts.ladder.command("evaluate.py", "--scorecard"))
    rows = sorted(facts.scorecard["rows"], key=lambda row: (_place(facts.corpora, row["corpus"]), row["who"] != "real"))
    real = {row["corpus"]: row["metrics"] for row in rows if row["who"] == "real"}
    head = "".join(f"<th>{_who(row)}</th>" for row in rows)
    lines = []
    for name in dict.fromkeys(name for row in rows for name in row["metrics"]):
        metric = next(row["metrics"][name] for row in rows if name in row["metrics"])
        cells = "".join(_score(row, row["metrics"].get(name), real.get(row["corpus"], {}).get(name)) for row in rows)
        about = f"<small>{escape(_wanted(metric))}</small>"
        lines.append(f"<tr><th>{escape(name.replace('_', ' '))}{about}</th>{cells}</tr>")
    return (
        "<p>No model judges these stories; they are counted. Real stories, in gray, are the yardstick: a figure is "
        "good if it is near theirs. Small figures are 95% intervals; ≈ marks a figure whose interval meets that of "
        "the real stories.</p>"
        f'<div class="box"><table class="scores"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
        "</table></div>"
    )


def _who(row: Mapping[str, Any]) -> str:
    """The head of a column: real stories or a stage, the corpus, and how many stories."""
    count = f"{_whole(row.get('stories'))} stories"
    if row["who"] != "real":
        return f"{escape(str(row['who']))}<small>{count}</small>"
    return f"real<small>{escape(row['corpus'])}</small><small>{count}</small>"


def _wanted(metric: Mapping[str, Any]) -> str:
    wanted = {"higher": "higher is better", "lower": "lower is better", "closer": "closer to real is better"}
    about = str(metric.get("about") or "").rstrip(".")
    better = wanted.get(str(metric.get("better")), "")
    return "; ".join(part for part in (about, better) if part)


def _score(row: Mapping[str, Any], metric: Mapping[str, Any] | None, real: Mapping[str, Any] | None) -> str:
    """A cell: the value and its interval."""
    is_real = row["who"] == "real"
    if metric is None or metric.get("value") is None:
        return '<td class="yardstick"></td>' if is_real else "<td></td>"
    low, high = metric.get("low"), metric.get("high")
    interval = f"<small>{rounded(low)}&ndash;{rounded(high)}</small>" if low is not None and high is not None else ""
    near = not is_real and bool(interval) and real is not None and real.get("low") is not None
    near = near and real is not None and low <= real["high"] and real["low"] <= high
    name = "yardstick" if is_real else "near" if near else "far"
    return f'<td class="{name}">{rounded(metric["value"])}{interval}</td>'


def _scrapbook(facts: Facts) -> str:
    """Each prompt's story at rising numbers of steps, over all stages; the first prompt is open."""
    prompts = list(dict.fromkeys(prompt for book in facts.samples.values() for prompt in book.get("prompts", [])))
    if not prompts:
        scripts = facts.ladder.command(facts.ladder.stages[0].script)
        return _missing("No story was written down while training", scripts)
    parts = [
        "<p>The same prompt and the same random numbers, told by the model at different ages. Nothing is corrected; "
        "long stories are cut.</p>"
    ]
    for number, prompt in enumerate(prompts):
        cards = "".join(_cards(facts, prompt))
        grown = f'<div class="grown">{cards}</div>'
        opening = f"<i>{escape(prompt)} …</i>"
        parts.append(
            f"<h3>{opening}</h3>{grown}" if number == 0 else f"<details><summary>{opening}</summary>{grown}</details>"
        )
    return "".join(parts)


def _cards(facts: Facts, prompt: str) -> Iterator[str]:
    first = facts.ladder.stages[0].name
    for number, (stage, book) in enumerate(facts.samples.items()):
        prompts = list(book.get("prompts", []))
        if prompt not in prompts:
            continue
        at = prompts.index(prompt)
        entries = [entry for entry in book["entries"] if len(entry["stories"]) > at]
        for entry in _grown(entries, _EARLIER if number == 0 else 1):
            loss = entry.get("val_loss")
            known = f"<span>loss {loss:.2f}</span>" if isinstance(loss, (int, float)) else ""
            age = "untrained" if stage == first and entry["step"] == 0 else f"{stage}, step {entry['step']:,}"
            text = _shortened(str(entry["stories"][at]))
            yield f'<article class="story"><header><b>{escape(age)}</b>{known}</header>{_told(text, prompt)}</article>'


def _grown(entries: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many entries, the last one among them; earlier ones where the steps roughly multiply."""
    if len(entries) <= most:
        return list(entries)
    if most == 1:
        return [entries[-1]]
    between = [round((len(entries) - 1) ** (k / (most - 1))) for k in range(1, most - 1)]
    return [entries[k] for k in sorted({0, *between, len(entries) - 1})]


def _shortened(story: str) -> str:
    """At most _STORY_WORDS words, or about as many characters as those have."""
    words = story.split(" ")
    text = " ".join(words[:_STORY_WORDS])[: 7 * _STORY_WORDS]
    return text if len(text) == len(story) else text.rstrip() + " …"


def _told(story: str, prompt: str) -> str:
    """A story as paragraphs, its prompt in gray."""
    first = f'<span class="prompt">{escape(prompt)}</span>' if story.startswith(prompt) else ""
    rest = story[len(prompt) :] if first else story
    paragraphs = [escape(part) for part in rest.split("\n") if part.strip()]
    return "".join(f"<p>{part}</p>" for part in [first + "".join(paragraphs[:1]), *paragraphs[1:]])


def _data(facts: Facts) -> str:
    if not facts.texts:
        return _missing("There are no token files", facts.ladder.command("prepare_data.py"))
    rows = []
    for text in facts.texts:
        sidecar = text.sidecar
        sources = text.source.repo if text.source else ", ".join(map(str, sidecar["sources"]))
        digest = escape(str(sidecar.get("sha256", "")))
        rows.append(
            f'<tr><td>{escape(text.name)}<small class="hash">{digest}</small></td><td>{escape(text.corpus)}</td>'
            f"<td>{_whole(sidecar.get('stories'))}</td><td>{_whole(sidecar.get('tokens'))}</td>"
            f'<td class="source">{escape(sources)}<small>{escape(text.license)}</small></td></tr>'
        )
    names = ("token file, SHA-256", "corpus", "stories", "tokens", "source, license")
    head = "".join(f"<th>{name}</th>" for name in names)
    licenses = "".join(f"<li>{escape(line)}</li>" for line in license_lines(facts))
    return (
        f'<div class="box"><table class="data"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f"</div><ul>{licenses}</ul>"
    )


def _training(facts: Facts) -> str:
    parts = []
    if facts.histories:
        names = [history.name for history in facts.histories]
        main, rest = settings_rows(facts)
        parts.append(_table(("", *names), main))
        parts.append(f"<details><summary>All other settings</summary>{_table(('', *names), rest)}</details>")
        machines = [f"{machine} ({', '.join(stages)})" for machine, stages in facts.machines.items()]
        parts.append("<h3>Hardware</h3>" + "".join(f"<p>{escape(machine)}</p>" for machine in machines))
    if facts.versions:
        versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
        parts.append(f"<p>Evaluated with {escape(versions)}.</p>")
    parts.append(f"<h3>The commands</h3><pre>{escape(chr(10).join(commands(facts)))}</pre>")
    return "".join(parts)


def _using(facts: Facts) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in limits(facts))
    return (
        f"<ul>{lines}</ul><h3>How to cite</h3><p>{escape(citation_text(facts))}</p>"
        f"<pre>{escape(chr(10).join(citation_lines(facts)))}</pre>"
    )


def _footer(facts: Facts) -> str:
    made = (facts.evaluation or facts.scorecard or {}).get("made", {})
    date = f"Evaluated {escape(str(made['date']))}. " if made.get("date") else ""
    again = escape(facts.ladder.command("evaluate.py", "--report"))
    where = "Every figure comes from the files in runs/, reports/ and data/."
    return f"<footer>{date}{where} <code>{again}</code> makes this page.</footer>"


def _missing(what: str, command: str) -> str:
    return f'<p class="missing">{escape(what)} yet. Run <code>{escape(command)}</code></p>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in a box of its own, which scrolls where the screen is too narrow."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="box"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _whole(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _place(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)
