"""Every setting of Storyladder: its name, unit, default and limits, as frozen keyword-only dataclasses.

config.py fills them with values. This module imports the standard library only and knows no file, tensor or story.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import re
import shlex
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from storyladder.runtime.errors import SettingsError

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: object) -> Any:  # noqa: D103
        return lambda decorator: decorator


PROJECT = Path(__file__).resolve().parents[1]
STORY_SEPARATORS = ("auto", "endoftext", "blank-line", "line", "file")
TOKENIZERS = ("gpt2",)
DEFAULT_PRESET = "default"
_RAW = "raw"

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass; SettingsError for fields that it lacks or that are not given, all in one."""
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    plain_init = cls.__init__
    default_of = {field.name: field.default for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    required = {name for name, default in default_of.items() if default is dataclasses.MISSING}

    @functools.wraps(plain_init)
    def init(self: Any, **values: Any) -> None:
        problems = [
            f"{cls.__name__} has no field {name!r}{_MOVED.get(name) or nearest(name, default_of)}"
            for name in sorted(values.keys() - default_of)
        ]
        if missing := sorted(required - values.keys()):
            problems.append(f"{cls.__name__} needs a value for {', '.join(missing)}")
        if problems:
            raise SettingsError("; ".join(problems))
        plain_init(self, **values)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


# What stood in older copies of config.py.
_MOVED = dict.fromkeys(("train_file", "val_file"), "; the stage's corpus names the token files: set corpus")


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint `; did you mean 'x'?`, or the list of what there is when nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


@settings
class ModelConfig:
    """The network. Two models with equal ModelConfig can exchange weights."""

    n_layer: int = 8
    n_head: int = 8
    n_embd: int = 336  # width of the residual stream
    context_length: int = 256  # tokens the model sees (nanoGPT: block_size)
    vocab_size: int = 50257  # GPT-2's tokens
    dropout: float = 0.1  # on embeddings and both residual branches, in training only

    @property
    def n_params(self) -> int:
        """Trainable numbers; the head is tied to the embedding and counted once."""
        block = 12 * self.n_embd**2 + 13 * self.n_embd
        return (self.vocab_size + self.context_length + 2) * self.n_embd + self.n_layer * block


@settings
class StageConfig:
    """One rung of the ladder: which text, from which weights, how long, how fast."""

    name: str
    corpus: str  # its text: tiny, children, simple, or one of your own, which lies in data/raw/NAME
    script: str  # what trains it, in the project's folder
    result_file: str  # what this stage leaves in the checkpoints folder
    init_from: str | None = None  # the stage whose result this one starts from; None: random weights
    max_steps: int = 200_000  # optimizer steps; a maximum where `patience` is set
    batch_size: int = 32  # sequences per optimizer step, over all micro-batches and processes
    micro_batch_size: int | None = None  # sequences per forward; None: chosen from the memory there is
    threads: int | None = None  # on a CPU; None: as many as the model gains from
    optimizer: str = "adamw"  # adamw; muon: Muon moves the hidden matrices, AdamW everything else
    schedule: str = "cosine"  # cosine or linear: the way from max_lr to min_lr
    max_lr: float = 3e-4  # after the warm-up; under muon that of the hidden matrices
    min_lr: float = 3e-5  # at max_steps
    wte_lr: float | None = None  # AdamW's for the token embedding where max_lr stands; None: max_lr
    wpe_lr: float | None = None  # likewise for the position embedding
    vector_lr: float | None = None  # likewise for biases and layer norms
    lr_horizon: int | None = None  # optimizer steps that the rates suit; a stage k times as long has k^-0.32 of them
    warmup_steps: int = 1_000  # optimizer steps of linear warm-up
    weight_decay: float = 0.1  # on matrices only
    beta1: float = 0.9
    beta2: float = 0.99  # 8,192 tokens a step are a small batch; 0.95 is for half a million
    eps: float = 1e-8
    momentum: float = 0.95  # Muon's: the weight of the past in its averaged gradients
    grad_clip: float = 1.0  # largest L2 norm of the whole gradient
    eval_interval: int = 2_000  # optimizer steps
    val_windows: int | None = None  # windows of context_length read by an evaluation; None: the whole file
    patience: int | None = None  # evaluations without improvement before the stage ends; None: never
    save_interval: int = 10_000  # optimizer steps between resume states: two seconds of saving, seldom enough for a GPU
    save_minutes: float = 10.0  # and at least this often
    log_interval: int = 10  # optimizer steps between records
    compact_vocabulary: bool = True  # tokens that the text never uses share one row while training; same mathematics
    seed: int = 1337


@settings
class CleaningConfig:
    """What happens to a story before it becomes tokens. Everything done is counted in the token file's sidecar."""

    repair_text: bool = True  # mojibake, control characters, exotic spaces
    ascii_punctuation: bool = False  # curly quotes, dashes and ellipses become ASCII
    lowercase: bool = False
    strip_markup: bool = False  # HTML tags and entities
    min_chars: int = 1  # shorter stories are dropped
    max_chars: int | None = None  # longer stories are dropped; None: no limit
    drop_fragments: bool = False  # stories that start in lower case or stop in mid-sentence


@settings
class CorpusConfig:
    """How text becomes token files."""

    cleaning: CleaningConfig = CleaningConfig()
    val_percent: float = 1.0  # of the stories, chosen by a hash of their text, where a corpus has no validation file
    sample_stories: int = 20_000  # stories a stage in the bundled sample corpus
    story_separator: str = "auto"  # what separates the stories of a .txt: auto, endoftext, blank-line, line or file
    story_field: str | None = None  # the field or column that holds the story; None: found by its name


@settings
class GenerateConfig:
    """How stories are told."""

    temperature: float = 0.8  # 0: always the likeliest token
    top_k: int | None = 50  # choose among the k likeliest tokens; None: among all
    max_new_tokens: int = 400
    num_samples: int = 1


@settings
class Paths:
    """Where things lie. A relative root counts from the project's folder."""

    root: str = "."
    data: str = "data"
    checkpoints: str = "checkpoints"
    runs: str = "runs"


@settings
class Ladder:
    """All settings of one chain of stages; --preset chooses one by its name."""

    name: str = DEFAULT_PRESET
    model: ModelConfig = ModelConfig()
    tokenizer: str = "gpt2"
    stages: tuple[StageConfig, ...] = ()
    corpus: CorpusConfig = CorpusConfig()
    generate: GenerateConfig = GenerateConfig()
    paths: Paths = Paths()
    config_flag: str | None = None  # --config as it was typed; load_ladder fills it in

    def stage(self, name: str) -> StageConfig:
        """The stage of that name; SettingsError if the ladder does not have it."""
        stages = {stage.name: stage for stage in self.stages}
        if name not in stages:
            raise SettingsError(
                f"preset {self.name!r} of {self.config_file} has no stage {name!r}{nearest(name, stages)}"
            )
        return stages[name]

    def tokens_per_step(self, stage: StageConfig) -> int:
        """Tokens that one optimizer step learns from."""
        return stage.batch_size * self.model.context_length

    @property
    def config_file(self) -> str:
        """What the user calls the file that these settings stand in."""
        return self.config_flag or "config.py"

    def lock(self, stage_name: str) -> Path:
        """What a stage holds while it trains, and prepare_data.py while it replaces the stage's token files."""
        return self.folder("checkpoints") / f".{stage_name}.lock"

    def command(self, script: str, *words: str) -> str:
        """What to type in the user's folder to run a script on these settings: with their --config and --preset.

        Flags that say how to run here and now, such as --device, are repeated only by StageRun.again.
        """
        flags = [] if self.config_flag is None else ["--config", self.config_flag]
        flags += [] if self.name == DEFAULT_PRESET else ["--preset", self.name]
        return " ".join(["python", *map(quoted, (typed_path(script), *flags, *words))])

    def as_typed(self, message: str) -> str:
        """A message of a room that knows no ladder, with its commands and `config.py` as this user would type them."""
        given = {re.escape(word) for word in (quoted(self.config_file), self.config_file)}
        there = rf"(?<!\S)(?:{'|'.join(sorted(given, reverse=True))})(?!\w)"  # typed as it should be already

        def as_typed(match: re.Match[str]) -> str:
            if match["script"]:
                return self.command(match["script"])
            return self.config_file if match["file"] else match[0]

        return re.sub(f"{_COMMAND}|{there}|{_CONFIG_FILE}", as_typed, message)

    def folder(self, kind: str) -> Path:
        """The data, checkpoints or runs folder; a preset other than the default keeps its own in a subfolder."""
        base: Path = PROJECT / self.paths.root / getattr(self.paths, kind)
        return base if self.name == DEFAULT_PRESET else base / self.name

    @property
    def raw_folder(self) -> Path:
        """Text as it was downloaded or put there by hand; shared by all presets."""
        return PROJECT / self.paths.root / self.paths.data / _RAW


# Not where the flags stand there already, nor where a path or the original file is meant.
_COMMAND = r"\bpython (?P<script>\w+\.py)\b(?! --(?:config|preset)\b)"
_CONFIG_FILE = r"(?<!python )(?<!original )(?<![\w./\\-])(?P<file>config\.py)\b"


def typed_path(script: str) -> str:
    """A script of the project as it is typed in the folder where the user is."""
    path = PROJECT / script
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):  # elsewhere; a folder that was deleted
        return str(path)


def quoted(word: str) -> str:
    """A word as the shell takes it for one."""
    if os.name != "nt":
        return shlex.quote(word)
    import subprocess  # which --help need not wait for

    return subprocess.list2cmdline([word])


def check(ladder: Ladder, config_file: str = "config.py") -> Ladder:
    """The ladder itself, or a SettingsError that lists every problem with its value and the way out."""
    found = list(problems(ladder))
    if found:
        raise SettingsError(f"preset {ladder.name!r} in {config_file}:\n" + "\n".join(f"  - {line}" for line in found))
    return ladder


def check_part(where: str, part: T) -> T:
    """One settings object itself, or a SettingsError that lists what is wrong with it."""
    found = list(_field_problems(part)) or list(_own_problems(part))
    if found:
        raise SettingsError(f"{where}: {'; '.join(found)}")
    return part


def problems(ladder: Ladder) -> Iterator[str]:
    """Everything in the ladder that cannot be meant, a sentence each."""
    stages = ladder.stages if isinstance(ladder.stages, tuple) else ()
    parts: list[tuple[str, object]] = [("", ladder), ("model: ", ladder.model), ("corpus: ", ladder.corpus)]
    parts += [("corpus.cleaning: ", getattr(ladder.corpus, "cleaning", None)), ("generate: ", ladder.generate)]
    parts += [("paths: ", ladder.paths)]
    parts += [(f"stage {getattr(stage, 'name', stage)!r}: ", stage) for stage in stages]
    foreign = [stage for stage in stages if not isinstance(stage, StageConfig)]
    yield from (f"stages holds {stage!r}; expected StageConfig(...)" for stage in foreign)
    comparable = not foreign  # the stages with each other
    for where, part in parts:
        wrong = list(_field_problems(part))
        comparable = comparable and not (wrong and isinstance(part, (Ladder, StageConfig)))
        yield from (where + line for line in wrong or _own_problems(part))
    if comparable:
        yield from _family_problems(ladder)


# Limits by field name: one name means one thing in every class. (lowest, highest), both allowed.
_LIMITS: dict[str, tuple[float, float]] = {
    name: limits
    for names, limits in (
        ("n_layer n_head", (1, 1_000)),
        ("threads", (1, 1_024)),
        ("n_embd", (1, 100_000)),
        ("context_length", (2, 1_000_000)),
        ("vocab_size", (2, 65_536)),  # ids are stored as uint16
        ("dropout", (0, 0.9)),
        ("max_steps lr_horizon", (1, 10**9)),
        ("warmup_steps", (0, 10**9)),
        ("batch_size micro_batch_size", (1, 10**6)),
        ("max_lr wte_lr wpe_lr vector_lr", (1e-12, 10)),
        ("min_lr weight_decay", (0, 10)),
        ("beta1 beta2 momentum", (0, 0.999999)),
        ("eps", (1e-30, 1)),
        ("grad_clip", (1e-9, 1e9)),
        ("eval_interval save_interval log_interval val_windows", (1, 10**9)),
        ("save_minutes", (0.001, 10**6)),
        ("patience max_new_tokens", (1, 10**6)),
        ("seed", (0, 2**63 - 1)),
        ("min_chars max_chars", (1, 10**9)),
        ("val_percent", (0.001, 50)),
        ("sample_stories", (100, 10**7)),
        ("temperature", (0, 100)),
        ("top_k", (1, 65_536)),
        ("num_samples", (1, 10_000)),
    )
    for name in names.split()
}
# Fields that take one of a few words.
_CHOICES = {
    "story_separator": STORY_SEPARATORS,
    "tokenizer": TOKENIZERS,
    "optimizer": ("adamw", "muon"),
    "schedule": ("cosine", "linear"),
}


def _field_problems(part: object) -> Iterator[str]:
    """Values of the wrong type, outside their limits or not among their choices, of one dataclass."""
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        yield f"expected one of the classes of storyladder/settings.py, got {part!r}"
        return
    hints = typing.get_type_hints(type(part))
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        kind = hints[field.name]
        if not _is_of_type(value, kind):
            yield f"{field.name} is {value!r}; expected {_type_words(kind)}, for example {_example(field, kind)}"
        elif value not in _CHOICES.get(field.name, (value,)):
            yield f"{field.name} is {value!r}{nearest(str(value), _CHOICES[field.name])}"
        elif field.name in _LIMITS and value is not None:
            low, high = _LIMITS[field.name]
            if not low <= value <= high:  # also true of NaN
                yield f"{field.name} is {value!r}; expected {low:g} to {high:g}, for example {_example(field, kind)}"


def _is_of_type(value: object, kind: Any) -> bool:
    """Whether a value fits a field's type; whole numbers serve as floats, booleans do not serve as numbers."""
    if isinstance(kind, types.UnionType):
        return any(_is_of_type(value, option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _type_words(kind: Any) -> str:
    words = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text", type(None): "None"}
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return " or ".join(words.get(option, getattr(option, "__name__", str(option))) for option in options)


def _example(field: dataclasses.Field[Any], kind: Any) -> str:
    """A value that would do: the default where there is one."""
    if field.default is not dataclasses.MISSING and field.default is not None:
        return repr(field.default)
    if field.name in _LIMITS:
        return repr(_LIMITS[field.name][0])
    return repr("text") if kind is str else repr(None)


def _own_problems(part: object) -> Iterator[str]:
    """What the fields of one model or one stage must agree on, each of them being sound."""
    if isinstance(part, ModelConfig) and part.n_embd % part.n_head:
        fitting = part.n_head * round(part.n_embd / part.n_head) or part.n_head
        yield f"n_embd ({part.n_embd}) must be a multiple of n_head ({part.n_head}), for example {fitting}"
    if isinstance(part, StageConfig):
        yield from _stage_problems(part)


def _stage_problems(stage: StageConfig) -> Iterator[str]:
    for field in ("name", "corpus"):
        if not (value := getattr(stage, field)).isidentifier():
            yield f"{field} is {value!r}; expected a word of letters, digits and _, which names files"
    if not re.fullmatch(r"\w+\.py", stage.script):
        yield f"script is {stage.script!r}; expected a script in the project's folder, for example 'train_tiny.py'"
    if not _is_plain_name(stage.result_file):
        yield f"result_file is {stage.result_file!r}; expected a plain file name without folders"
    elif stage.result_file.endswith(_OURS):
        yield f"result_file is {stage.result_file!r}; names ending in {' or '.join(_OURS)} are for a stage not finished"
    own = ("wte_lr", "wpe_lr", "vector_lr")
    if stage.optimizer == "muon" and (missing := [field for field in own if getattr(stage, field) is None]):
        yield f"{', '.join(missing)} must have a value where Muon has max_lr ({stage.max_lr:g}), for example 2e-3"
    if stage.min_lr > stage.max_lr:
        yield f"min_lr ({stage.min_lr:g}) is above max_lr ({stage.max_lr:g}); lower it"
    if stage.warmup_steps >= stage.max_steps:
        yield f"warmup_steps ({stage.warmup_steps}) must be below max_steps ({stage.max_steps})"
    if stage.micro_batch_size and stage.batch_size % stage.micro_batch_size:
        yield (
            f"batch_size ({stage.batch_size}) must be a multiple of micro_batch_size ({stage.micro_batch_size}); "
            "None chooses one that fits"
        )


def _family_problems(ladder: Ladder) -> Iterator[str]:
    """What the stages together must agree on: where each begins, and that none overwrites what another one wrote."""
    if not _is_plain_name(ladder.name) or ladder.name == _RAW:
        yield f"name is {ladder.name!r}; expected a plain word, which becomes a folder, and not {_RAW!r}"
    if not ladder.stages:
        yield "stages is (); expected at least one, for example (TINY,)"
    for index, stage in enumerate(ladder.stages):
        where, before = f"stage {stage.name!r}: ", ladder.stages[:index]
        earlier = [other.name for other in before]
        if stage.init_from is not None and stage.init_from not in earlier:
            yield f"{where}init_from is {stage.init_from!r}; expected None or an earlier stage: {earlier or 'none'}"
        for field in ("name", "script", "result_file"):
            value = getattr(stage, field)
            if value in [getattr(other, field) for other in before]:
                yield f"{where}{field} is {value!r}, as in a stage before it; give each its own"


_OURS = ("_best.pt", "_resume.pt", "_resume.prev.pt")


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")
