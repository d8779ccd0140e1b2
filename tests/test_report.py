"""storyladder/measuring/report.py: page, model card and pictures are views of a ladder's files, whichever there are."""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from stages import recorded

import config
from storyladder.corpus.corpora import token_files
from storyladder.measuring.facts import machine_of, read_citation, read_facts
from storyladder.measuring.model_card import model_card
from storyladder.measuring.page import LARGEST, page
from storyladder.measuring.report import write_report
from storyladder.runtime.errors import DataError, UserError
from storyladder.settings import PROJECT, Ladder

MADE = {"date": "2026-11-28", "command": "python evaluate.py --device cpu", "versions": {"torch": "2.13.0"}}
NASTY = 'Max </p><script>alert("x")</script> <img src=http://example.org/x.png> & | `end`'
PROMPTS = ["Once upon a time", "The <b>old</b> cat"]


def row(checkpoint: str, corpus: str, bits: float, **more: Any) -> dict[str, Any]:
    loss = bits * 2.7
    scored = {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits, "bits_per_byte_text": bits - 0.01}
    return {
        "checkpoint": checkpoint,
        "corpus": corpus,
        "protocol": "windows",
        **scored,
        "tokens": 4321,
        "bytes": 17,
        **more,
    }


def an_evaluation() -> dict[str, Any]:
    bits = {"untrained": (4.1, 4.2), "tiny": (0.629, 2.06), "children": (1.105, 1.47)}
    rows = [
        row(name, text, b) for name, both in bits.items() for text, b in zip(("tiny", "children"), both, strict=True)
    ]
    sentence = "Stage children is 76% worse on tiny than stage tiny was."
    return {"format": 1, "made": MADE, "rows": rows, "forgetting": [{"stage": "children", "sentence": sentence}]}


def a_scorecard() -> dict[str, Any]:
    def metric(value: float) -> dict[str, Any]:
        return {"value": value, "low": value - 0.05, "high": value + 0.05, "better": "higher", "about": "It ends."}

    rows = [
        {
            "who": "tiny",
            "corpus": "tiny",
            "stories": 40,
            "metrics": {"finished": metric(0.333), "name_kept": metric(0.9)},
        },
        {
            "who": "real",
            "corpus": "tiny",
            "stories": 41,
            "metrics": {"finished": metric(0.987), "name_kept": metric(0.94)},
        },
    ]
    return {"format": 1, "made": MADE, "n": 40, "seed": 1, "rows": rows, "samples": {}}


def some_samples(*stories: str) -> dict[str, Any]:
    entries = [
        {"step": step, "tokens": 64 * step, "val_loss": 9.0 - step / 100, "stories": [f"{p} {story}" for p in PROMPTS]}
        for step, story in zip(itertools.count(0, 100), stories)
    ]
    return {"format": 1, "prompts": PROMPTS, "seed": 1, "entries": entries}


def records() -> list[dict[str, Any]]:
    start = {
        "event": "start",
        "step": 0,
        "machine": "device cpu (2 threads), fp32, torch 2.13.0",
        "cpus": 2,
        "settings": {
            "model": {
                "n_layer": 3,
                "n_head": 2,
                "n_embd": 16,
                "context_length": 16,
                "vocab_size": 50257,
                "dropout": 0.0,
            },
            "stages": [{"batch_size": 4, "max_lr": 0.0123, "init_from": None, "seed": 7}],
        },
    }
    evaluated = {"perplexity": 20.1, "bits_per_byte": 1.234, "tokens": 99}
    return [
        start,
        {"event": "evaluation", "step": 0, "val_loss": 10.8, **evaluated, "train_seconds": 0.0},
        {"event": "train", "step": 60, "train_loss": 4.0, "grad_norm": 1.0, "lr": 0.01},
        {"event": "evaluation", "step": 60, "val_loss": 3.0, **evaluated, "train_seconds": 187.0},
        {"event": "train", "step": 90, "train_loss": 3.5, "grad_norm": 1.0, "lr": 0.01},
    ]


PARTS = ("runs", "evaluation", "scorecard", "samples", "data")


def write_part(ladder: Ladder, part: str, write_toy_tokens: Any) -> None:
    reports = ladder.folder("reports")
    if part == "runs":
        recorded(ladder, "tiny", *records())
    elif part == "data":
        for path in token_files(ladder, ladder.stage("tiny")):
            write_toy_tokens(path)
    else:
        made = {"evaluation": an_evaluation, "scorecard": a_scorecard, "samples": lambda: some_samples("goo.", NASTY)}
        path = reports / ("tiny/samples.json" if part == "samples" else f"{part}.json")
        write_json(path, made[part]())


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def full(toy_ladder: Ladder, write_toy_tokens: Any) -> Ladder:
    """The toy ladder with all files that a report reads."""
    for part in PARTS:
        write_part(toy_ladder, part, write_toy_tokens)
    return toy_ladder


def views(ladder: Ladder) -> tuple[str, str]:
    """The page and the card."""
    facts = read_facts(ladder)
    return page(facts), model_card(facts)


class Tags(HTMLParser):
    """All tags of a page, and that they are closed in order."""

    EMPTY = ("meta", "circle", "path", "polyline")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag, f"{tag} closed inside {self.open}"


def test_all_views_are_written_and_named(full: Ladder) -> None:
    written = write_report(full)
    reports = full.folder("reports")
    assert written[:2] == [reports / "index.html", reports / "MODEL_CARD.md"] and all(path.exists() for path in written)
    pytest.importorskip("matplotlib")
    assert written[2:] == [reports / "tiny" / "train.png", reports / "ladder.png"]
    assert not list(reports.rglob("*.partial"))


@pytest.mark.parametrize("have", list(itertools.product((True, False), repeat=len(PARTS))), ids=str)
def test_every_combination_of_missing_files_makes_a_report_that_says_what_to_type(
    toy_ladder: Ladder, write_toy_tokens: Any, have: tuple[bool, ...]
) -> None:
    there = {part for part, is_there in zip(PARTS, have, strict=True) if is_there}
    for part in there:
        write_part(toy_ladder, part, write_toy_tokens)
    if there <= {"data"}:
        with pytest.raises(UserError, match=r"nothing to report.*python train_tiny\.py.*python evaluate\.py"):
            write_report(toy_ladder)
        return
    text, card = views(toy_ladder)
    Tags(text)
    proposed = [html.unescape(code) for code in re.findall(r'class="missing">.*?<code>(.*?)</code>', text)]
    made_by = {
        "runs": "train_tiny.py",
        "evaluation": "evaluate.py",
        "scorecard": "evaluate.py --scorecard",
        "samples": "train_tiny.py",
        "data": "prepare_data.py",
    }
    assert proposed == [f"python {made_by[part]}" for part in PARTS if part not in there]
    assert ("NaN" in card or "nan" in card or "None" in card) is False
    assert ("## Its stories" in card) == ("scorecard" in there) and ("1.105" in card) == ("evaluation" in there)


@pytest.mark.parametrize(
    ("name", "where", "before", "after"),
    [
        ("evaluation", ("rows", 4, "bits_per_byte"), "1.105", 1.777),
        ("evaluation", ("rows", 4, "loss"), "2.9835", 2.4444),
        ("evaluation", ("forgetting", 0, "sentence"), "76% worse", "5% better, says the file."),
        ("scorecard", ("rows", 0, "metrics", "finished", "value"), "0.333", 0.444),
        ("scorecard", ("rows", 1, "metrics", "finished", "high"), "1.037", 0.991),
    ],
)
def test_a_number_changed_in_a_file_is_changed_in_page_and_card(
    full: Ladder, name: str, where: tuple[Any, ...], before: str, after: Any
) -> None:
    assert all(before in view for view in views(full))
    path = full.folder("reports") / f"{name}.json"
    content = part = json.loads(path.read_text(encoding="utf-8"))
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = after
    write_json(path, content)
    for view in views(full):
        assert str(after) in view and before not in view


def test_a_recorded_loss_is_that_of_page_and_card(full: Ladder) -> None:
    (full.folder("reports") / "evaluation.json").unlink()
    text, card = views(full)
    assert "3.0000" in text and "3.0000" in card and "3 min 07 s" in text.replace("\N{NO-BREAK SPACE}", " ")
    changed = records()
    changed[3] = {**changed[3], "val_loss": 2.3456, "train_seconds": 241.0}
    recorded(full, "tiny", *changed)
    text, card = (view.replace("\N{NO-BREAK SPACE}", " ") for view in views(full))
    assert all("2.3456" in view and "4 min 01 s" in view and "3.0000" not in view for view in (text, card))
    assert "0.0123" in text, "a setting as it was trained, not as config.py has it"
    assert "5.76k tokens in" in text and "Still unfinished: tiny." in text


def test_stories_and_names_are_text_and_not_markup(full: Ladder) -> None:
    evaluation = an_evaluation()
    evaluation["rows"].append(row("models/<i>x</i>|", "tiny", 0.9))
    evaluation["forgetting"].append({"sentence": NASTY})
    write_json(full.folder("reports") / "evaluation.json", evaluation)
    text, card = views(full)
    tags = {tag for tag, _ in Tags(text).found}
    assert tags.isdisjoint({"script", "img", "link", "iframe", "object", "b" if "<b>old" in text else "script"})
    assert html.escape(NASTY) in text and "&lt;b&gt;old&lt;/b&gt; cat" in text
    assert "<script" not in card and "<img" not in card and "models/&lt;i&gt;x&lt;/i&gt;\\|" in card


def test_the_page_loads_nothing(full: Ladder) -> None:
    text = views(full)[0]
    tags = Tags(text).found
    policy = [attributes["content"] for tag, attributes in tags if attributes.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    loading = {"src", "srcset", "data", "action", "poster", "background", "xlink:href"}
    assert [attributes for tag, attributes in tags if loading & attributes.keys() or tag in ("link", "base")] == []
    links = [attributes["href"] for tag, attributes in tags if "href" in attributes]
    assert links and all(link and link.startswith("#") for link in links)
    ids = {attributes.get("id") for _, attributes in tags}
    assert {link[1:] for link in links if link} <= ids
    style = text[text.index("<style>") : text.index("</style>")]
    assert "@import" not in style and "url(" not in style
    assert "@media print" in style and "prefers-color-scheme: dark" in style and 'name="viewport"' in text


def test_a_page_of_a_long_training_is_small(full: Ladder) -> None:
    for stage in full.stages:
        log = [
            {"event": event, "step": k, loss: 2 + 9 / (1 + k), "grad_norm": 1.0, "lr": 1e-3}
            for k in range(0, 200_001, 100)
            for event, loss in (("train", "train_loss"), ("evaluation", "val_loss"))
        ]
        recorded(full, stage.name, *log)
        write_json(full.folder("reports") / stage.name / "samples.json", some_samples(*["once " * 400] * 100))
    text = views(full)[0]
    assert len(text.encode()) < 600_000 < LARGEST
    assert text.count('class="story"') == len(PROMPTS) * (3 + 1 + 1), "first, middle and last of stage 1, then the last"


def test_only_the_first_stage_starts_untrained(full: Ladder) -> None:
    (full.folder("reports") / "tiny" / "samples.json").unlink()
    write_json(full.folder("reports") / "children" / "samples.json", some_samples("and so on.", "and on."))
    text = views(full)[0]
    assert "<b>children, step 0</b>" in text and "<b>untrained</b>" not in text
    write_json(full.folder("reports") / "tiny" / "samples.json", some_samples("fog.", "and on."))
    assert "<b>untrained</b>" in views(full)[0]


@pytest.mark.parametrize("kept", [(1,), (2,), (1, 2), (0, 1, 3)], ids=str)
def test_short_logs_have_curves_too(toy_ladder: Ladder, kept: tuple[int, ...]) -> None:
    recorded(toy_ladder, "tiny", *(records()[k] for k in kept))
    text, card = views(toy_ladder)
    assert Tags(text).found and text.count("<svg") == 2 and "nan" not in (text + card).lower()


def test_the_best_of_each_text_is_marked_and_the_others_are_compared_with_it(full: Ladder) -> None:
    text = views(full)[0]
    assert re.findall(r'class="best"[^>]*>([\d.]+)<small>best', text) == ["0.629", "1.470"]
    assert "1.105<small>+76%" in text and "2.06<small>+40%" in text
    heats = [float(heat) for heat in re.findall(r"--Heat:([\d.]+)", text)]
    assert heats[:2] == [0.6, pytest.approx(0.6 * math.sqrt((4.2 / 1.47 - 1) / 4), abs=1e-3)]


def test_real_stories_are_the_yardstick_of_their_column(full: Ladder) -> None:
    text = views(full)[0]
    scores = text[text.index('class="scores"') :]
    heads = re.findall(r"<th>(\w+)<small>", scores[: scores.index("</thead>")])
    assert heads == ["real", "tiny"]
    assert 'class="yardstick">0.987' in scores and 'class="far">0.333' in scores and 'class="near">0.900' in scores
    assert "It ends; higher is better" in scores


def test_the_metadata_of_the_card_is_what_the_hub_reads(full: Ladder) -> None:
    card = views(full)[1]
    from huggingface_hub import ModelCard

    read = ModelCard(card).data
    expected = {"license": "mit", "language": "en", "pipeline_tag": "text-generation", "library_name": "pytorch"}
    assert {name: getattr(read, name) for name in expected} == expected
    results = {(result.dataset_name, result.metric_type): result.metric_value for result in read.eval_results}
    assert results["children, validation text", "bits_per_byte"] == 1.47 and len(results) == 6
    assert "not safe for unattended use by children" in card and MADE["command"] in card


def test_data_from_the_hub_has_its_license_and_own_text_is_the_owners(full: Ladder) -> None:
    assert "as its owner states" in views(full)[0]
    for path in token_files(full, full.stage("tiny")):
        sidecar = path.with_name(path.name + ".json")
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        write_json(sidecar, {**content, "sources": ["TinyStoriesV2-GPT4-train.txt"]})
    text, card = views(full)
    assert "roneneldan/TinyStories" in text and "CDLA-Sharing-1.0" in text and content["sha256"] in text
    assert "datasets:\n- roneneldan/TinyStories" in card and "CDLA-Sharing-1.0" in card
    assert "python prepare_data.py --download" in html.unescape(text)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "cannot be read"),
        ("[1]", "does not have format 1"),
        ('{"format": 2, "rows": []}', "does not have format 1"),
        ('{"format": 1}', "has no list 'rows'"),
        ('{"format": 1, "rows": [{"checkpoint": "tiny"}]}', r"rows\[0\] has no valid 'corpus'"),
        ('{"format": 1, "rows": [], "forgetting": [{}]}', r"forgetting\[0\] has no valid 'sentence'"),
    ],
)
def test_a_damaged_file_is_one_line_that_says_how_to_make_it_again(full: Ladder, content: str, complaint: str) -> None:
    (full.folder("reports") / "evaluation.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=complaint + r".*; make it again: python evaluate\.py"):
        write_report(full)


def test_a_scorecard_of_another_shape_is_one_line(full: Ladder) -> None:
    write_json(
        full.folder("reports") / "scorecard.json",
        {**a_scorecard(), "rows": [{"who": "x", "corpus": "tiny", "metrics": {"a": 1}}]},
    )
    with pytest.raises(
        DataError, match=r"rows\[0\] has no valid 'metrics'; make it again: python evaluate\.py --scorecard"
    ):
        write_report(full)


def test_a_folder_that_cannot_be_written_is_one_line(full: Ladder) -> None:
    (full.folder("reports") / "index.html").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*index\.html"):
        write_report(full)


def test_how_to_cite_comes_from_the_citation_file(full: Ladder, tmp_path: Path) -> None:
    known = read_citation(PROJECT / "CITATION.cff")
    text, card = views(full)
    line = f"{known['authors'][0]}. {known['title']}, version {known['version']}. Software."
    assert line in text and line in card and "@software{storyladder," in card
    person = "authors:\n  - family-names: Doe\n    given-names: Jo\ntitle: T\nrepository-code: https://example.org\n"
    (tmp_path / "other.cff").write_text(person, encoding="utf-8")
    assert read_citation(tmp_path / "other.cff")["authors"] == ["Jo Doe"]


def test_machines_are_described_in_one_line() -> None:
    assert machine_of({"machine": "device cuda", "cpus": 8, "processes": 4}) == "cuda, 8 CPU cores, 4 processes"
    assert machine_of({}) == ""


def test_licenses_stand_for_every_corpus_that_is_downloaded() -> None:
    from storyladder.corpus.corpora import CORPORA

    licenses = {corpus.name: corpus.source.license for corpus in CORPORA if corpus.source}
    assert licenses == {"tiny": "CDLA-Sharing-1.0", "children": "Apache-2.0", "simple": "MIT"}
    assert {stage.corpus for stage in config.LADDER.stages} == licenses.keys()
