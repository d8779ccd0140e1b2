"""All that the report and the model card say about a ladder, read from its files: one home for every figure.

Reads runs/*.jsonl, reports/evaluation.json, reports/scorecard.json, reports/STAGE/samples.json, the sidecars of the
token files and CITATION.cff. Opens no token file and no checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from storyladder.corpus.corpora import Source, corpus_named, token_files
from storyladder.measuring.history import History, histories_of
from storyladder.runtime.errors import DataError
from storyladder.settings import PROJECT, Ladder, ModelConfig

_Needed = Mapping[str, Mapping[str, type]]  # lists of a file, and the fields of each of their entries
_FORMAT = 1
_OPTIONAL = ("forgetting",)
_SAMPLES = "bundled sample stories"  # what the sidecar of such a token file names as its source
_OF_ROW = {
    "checkpoint": str,
    "corpus": str,
    "protocol": str,
    "loss": float,
    "perplexity": float,
    "bits_per_byte": float,
}


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A token file by its sidecar: how much text of which corpus, from where, under which license."""

    corpus: str
    name: str
    sidecar: dict[str, Any]
    source: Source | None  # the dataset that its files come from, if they are all known by name

    @property
    def license(self) -> str:
        """The license of the text, or what is known of it."""
        if self.source is not None:
            return self.source.license
        return "MIT, made by Storyladder" if self.is_sample else "as its owner states"

    @property
    def is_sample(self) -> bool:
        """Whether the text was made by the bundled grammars."""
        return bool(self.sidecar["sources"] == [_SAMPLES])


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The rows of an evaluation under one protocol: checkpoints down, corpora across."""

    protocol: str
    checkpoints: list[str]
    corpora: list[str]
    rows: dict[tuple[str, str], dict[str, Any]]

    def worse_by(self, checkpoint: str, corpus: str) -> float | None:
        """Relative distance in bits per byte to the best checkpoint on this corpus; 0 for the best itself."""
        best = min(row["bits_per_byte"] for (_, column), row in self.rows.items() if column == corpus)
        row = self.rows.get((checkpoint, corpus))
        return None if row is None else row["bits_per_byte"] / best - 1 if best > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known about a ladder. What has no file is None or empty."""

    ladder: Ladder
    histories: list[History]
    evaluation: dict[str, Any] | None
    scorecard: dict[str, Any] | None
    samples: dict[str, dict[str, Any]]  # by stage
    texts: list[TextFile]
    citation: dict[str, Any]  # title, version, license, authors, url

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to report."""
        return not (self.histories or self.evaluation or self.scorecard or self.samples)

    @property
    def model(self) -> ModelConfig:
        """The network as it was trained last, or else as it is set now."""
        starts = [history.start for history in self.histories if history.start.get("settings")]
        recorded: dict[str, Any] = starts[-1]["settings"]["model"] if starts else {}
        known = {field.name for field in dataclasses.fields(ModelConfig)}
        return dataclasses.replace(self.ladder.model, **{k: v for k, v in recorded.items() if k in known})

    @property
    def tokens(self) -> int:
        """Tokens read in all stages."""
        return sum(history.tokens for history in self.histories)

    @property
    def seconds(self) -> float:
        """Time spent on training steps in all stages."""
        return sum(history.seconds for history in self.histories)

    @property
    def last(self) -> History | None:
        """The last stage that was evaluated while it trained."""
        return next((history for history in reversed(self.histories) if history.evaluations), None)

    @property
    def machines(self) -> dict[str, list[str]]:
        """What the stages ran on, each with the names of its stages."""
        found: dict[str, list[str]] = {}
        for history in self.histories:
            if machine := machine_of(history.start):
                found.setdefault(machine, []).append(history.name)
        return found

    @property
    def versions(self) -> dict[str, str]:
        """Versions of software, as the evaluation or scorecard recorded them."""
        made = [part.get("made", {}) for part in (self.evaluation, self.scorecard) if part]
        return {name: str(version) for part in made for name, version in part.get("versions", {}).items()}

    @property
    def corpora(self) -> list[str]:
        """The corpora of the ladder, in its order."""
        return list(dict.fromkeys(stage.corpus for stage in self.ladder.stages))

    def matrices(self) -> list[Matrix]:
        """The evaluation, one matrix per protocol, with checkpoints and corpora in the order of the ladder."""
        rows = self.evaluation["rows"] if self.evaluation else []
        stages = ["untrained", *(stage.name for stage in self.ladder.stages)]
        found = []
        for protocol in dict.fromkeys(row["protocol"] for row in rows):
            mine = [row for row in rows if row["protocol"] == protocol]
            checkpoints = _ordered((row["checkpoint"] for row in mine), stages)
            corpora = _ordered((row["corpus"] for row in mine), self.corpora)
            found.append(
                Matrix(protocol, checkpoints, corpora, {(row["checkpoint"], row["corpus"]): row for row in mine})
            )
        return found

    def forgetting(self) -> list[str]:
        """What was forgotten, in words."""
        return [str(entry["sentence"]) for entry in (self.evaluation or {}).get("forgetting", [])]


def read_facts(ladder: Ladder) -> Facts:
    """Everything that the ladder's files say. DataError, with the command that makes it again, for a damaged file."""
    reports = ladder.folder("reports")
    samples = {}
    for stage in ladder.stages:
        again = ladder.command(stage.script, "--fresh")
        found = _read(reports / stage.name / "samples.json", again, {"entries": {"step": int, "stories": list}})
        if found is not None:
            samples[stage.name] = found
    evaluated: _Needed = {"rows": _OF_ROW, "forgetting": {"sentence": str}}
    counted: _Needed = {"rows": {"who": str, "corpus": str, "metrics": dict}}
    return Facts(
        ladder=ladder,
        histories=histories_of(ladder),
        evaluation=_read(reports / "evaluation.json", ladder.command("evaluate.py"), evaluated),
        scorecard=_read(reports / "scorecard.json", ladder.command("evaluate.py", "--scorecard"), counted),
        samples=samples,
        texts=list(_texts(ladder)),
        citation=read_citation(PROJECT / "CITATION.cff"),
    )


def _read(path: Path, again: str, needed: _Needed) -> dict[str, Any] | None:
    """A JSON file of ours, or None if it is not there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); make it again: {again}") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DataError(f"{path} does not have format {_FORMAT}; make it again: {again}")
    for name, fields in needed.items():
        entries = content.get(name, [] if name in _OPTIONAL else None)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path} has no list {name!r}; make it again: {again}")
        for number, entry in enumerate(entries):
            for field, kind in fields.items():
                value = entry.get(field)
                valid = isinstance(value, (int, float) if kind is float else kind)
                if kind is dict and valid:
                    valid = all(isinstance(part, dict) for part in value.values())
                if not valid:
                    raise DataError(f"{path}: {name}[{number}] has no valid {field!r}; make it again: {again}")
    return content


def _texts(ladder: Ladder) -> Iterator[TextFile]:
    """The token files that have a readable sidecar."""
    for stage in {stage.corpus: stage for stage in ladder.stages}.values():
        for path in token_files(ladder, stage):
            try:
                sidecar = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(sidecar, dict) and isinstance(sidecar.get("sources"), list):
                yield TextFile(stage.corpus, path.name, sidecar, _source_of(stage.corpus, sidecar["sources"]))


def _source_of(corpus: str, names: list[str]) -> Source | None:
    """The dataset that files of these names belong to; None if one of them is not its."""
    source = corpus_named(corpus).source
    if source is None or not names:
        return None
    known = {name for file in (*source.files, *source.val_files) for name in (file.name, *file.also_named)}
    return source if {Path(name).name for name in names} <= known else None


def read_citation(path: Path) -> dict[str, Any]:
    """Title, version, license, url and authors of a CITATION.cff, whose values we keep on one line each."""
    text = path.read_text(encoding="utf-8")
    fields = dict(re.findall(r"^(title|version|license|repository-code|url|abstract): *(.+?) *$", text, re.MULTILINE))
    authors = re.findall(r"^ +- +name: *(.+?) *$", text, re.MULTILINE)
    people = re.findall(r"family-names: *(.+?)\s+given-names: *(.+?) *$", text, re.MULTILINE)
    return {**fields, "authors": [*authors, *(f"{given} {family}" for family, given in people)]}


def machine_of(start: Mapping[str, Any]) -> str:
    """One line on the machine of a start record: device, precision, torch, cores, processes."""
    parts = [str(start["machine"]).removeprefix("device ")] if start.get("machine") else []
    if start.get("cpus"):
        parts.append(f"{start['cpus']} CPU cores")
    if start.get("processes", 1) > 1:
        parts.append(f"{start['processes']} processes")
    return ", ".join(parts)


def _ordered(names: Iterator[str], order: list[str]) -> list[str]:
    """Distinct names, those of `order` first."""
    found = list(dict.fromkeys(names))
    return [*(name for name in order if name in found), *(name for name in found if name not in order)]
