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
    """A frozen, keyword-only dataclass; one SettingsError lists all unknown and all missing fields."""
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


# Fields of older copies of config.py.
_MOVED = dict.fromkeys(("train_file", "val_file"), "; the stage's corpus names the token files: set corpus")


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint `; did you mean 'x'?`, or the list of known names if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(known)}"


def limited(default: T, low: float, high: float, flag: str = "") -> T:
    """A field whose value must be from `low` to `high`, both included, or None where its type allows that.

    A field of GenerateConfig is also a flag of generate.py, whose help is `flag`.
    """
    return dataclasses.field(default=default, metadata={"limits": (low, high), "flag": flag})


def one_of(default: str, *others: str) -> str:
    """A field that takes one of a few names."""
    return dataclasses.field(default=default, metadata={"choices": (default, *others)})


@settings
class ModelConfig:
    """The network. Two models with equal ModelConfig can exchange weights."""

    n_layer: int = limited(8, 1, 1_000)
    n_head: int = limited(8, 1, 1_000)
    n_embd: int = limited(336, 1, 100_000)  # width of the residual stream
    context_length: int = limited(256, 2, 1_000_000)  # tokens the model sees (nanoGPT: block_size)
    vocab_size: int = limited(50257, 2, 65_536)  # GPT-2's tokens; token files store uint16
    dropout: float = limited(0.1, 0, 0.9)  # on embeddings and both residual branches, in training only

    @property
    def n_params(self) -> int:
        """Trainable parameters; the head is tied to the embedding and counted once."""
        block = 12 * self.n_embd**2 + 13 * self.n_embd
        return (self.vocab_size + self.context_length + 2) * self.n_embd + self.n_layer * block


@settings
class StageConfig:
    """One rung of the ladder: its text, starting weights, length and learning rates."""

    name: str
    corpus: str  # tiny, children, simple, or one of your own, in data/raw/NAME
    script: str  # the script that trains it, in the project's folder
    result_file: str  # its result, in the checkpoints folder
    init_from: str | None = None  # start from the result of this stage; None: random weights
    replay: dict[str, float] | None = None  # share of each batch from earlier corpora, as {"tiny": 0.1}; None: nothing
    max_steps: int = limited(200_000, 1, 10**9)  # optimizer steps; a maximum if `patience` is set
    batch_size: int = limited(32, 1, 10**6)  # sequences per optimizer step, over all micro-batches and processes
    micro_batch_size: int | None = limited(None, 1, 10**6)  # sequences per forward; None: as memory allows
    threads: int | None = limited(None, 1, 1_024)  # on a CPU; None: as many as speed up this model
    optimizer: str = one_of("adamw", "muon")  # muon: Muon for the hidden matrices, AdamW for the rest
    schedule: str = one_of("cosine", "linear")  # decay from max_lr to min_lr
    max_lr: float = limited(3e-4, 1e-12, 10)  # after the warm-up; with muon, of the hidden matrices
    min_lr: float = limited(3e-5, 0, 10)  # at max_steps
    wte_lr: float | None = limited(None, 1e-12, 10)  # max_lr of the token embedding; None: max_lr
    wpe_lr: float | None = limited(None, 1e-12, 10)  # the same for the position embedding
    vector_lr: float | None = limited(None, 1e-12, 10)  # the same for biases and layer norms
    lr_horizon: int | None = limited(None, 1, 10**9)  # max_steps the rates fit; k times that: rates * k^-0.32
    warmup_steps: int = limited(1_000, 0, 10**9)  # optimizer steps of linear warm-up
    weight_decay: float = limited(0.1, 0, 10)  # on matrices only
    beta1: float = limited(0.9, 0, 0.999999)
    beta2: float = limited(0.99, 0, 0.999999)  # 8,192 tokens a step are a small batch; 0.95 is for half a million
    eps: float = limited(1e-8, 1e-30, 1)
    momentum: float = limited(0.95, 0, 0.999999)  # Muon's: the weight of the past in its averaged gradients
    grad_clip: float = limited(1.0, 1e-9, 1e9)  # largest L2 norm of the whole gradient
    eval_interval: int = limited(2_000, 1, 10**9)  # optimizer steps
    val_windows: int | None = limited(None, 1, 10**9)  # windows of context_length per evaluation; None: all
    patience: int | None = limited(None, 1, 10**6)  # stop after so many evaluations without improvement; None: never
    save_interval: int = limited(10_000, 1, 10**9)  # optimizer steps between resume states; a save takes two seconds
    save_minutes: float = limited(10.0, 0.001, 10**6)  # and at least this often
    log_interval: int = limited(10, 1, 10**9)  # optimizer steps between records
    sample_tokens: int = limited(100, 0, 10**5)  # of each story told at every evaluation, into reports/; 0: none
    pictures: bool = True  # draw the curves at the end, into reports/
    tensorboard: bool = False  # event files for TensorBoard too, in runs/
    compact_vocabulary: bool = True  # tokens that the text never uses share one row while training; exact
    seed: int = limited(1337, 0, 2**63 - 1)


@settings
class CleaningConfig:
    """How stories are cleaned before encoding. The token file's sidecar counts every change."""

    repair_text: bool = True  # mojibake, control characters, exotic spaces
    ascii_punctuation: bool = False  # curly quotes, dashes and ellipses become ASCII
    lowercase: bool = False
    strip_markup: bool = False  # HTML tags and entities
    min_chars: int = limited(1, 1, 10**9)  # shorter stories are dropped
    max_chars: int | None = limited(None, 1, 10**9)  # longer stories are dropped; None: no limit
    drop_fragments: bool = False  # stories that start in lower case or end in mid-sentence


@settings
class CorpusConfig:
    """How text becomes token files."""

    cleaning: CleaningConfig = CleaningConfig()
    val_percent: float = limited(1.0, 0.001, 50)  # of the stories, chosen by hash, without a validation file
    sample_stories: int = limited(20_000, 100, 10**7)  # stories per corpus from the bundled sample grammars
    story_separator: str = one_of(*STORY_SEPARATORS)  # between the stories of a .txt file
    story_field: str | None = None  # the field or column that holds the story; None: found by its name


@settings
class GenerateConfig:
    """How stories are sampled."""

    temperature: float = limited(0.8, 0, 100, "0 always takes the likeliest token")
    top_k: int | None = limited(50, 1, 65_536, "sample among the N likeliest tokens")  # None: among all
    max_new_tokens: int = limited(400, 1, 10**6, "tokens of the longest story")
    num_samples: int = limited(1, 1, 10_000, "how many stories")


@settings
class Paths:
    """Where files are kept. A relative root is relative to the project's folder."""

    root: str = "."
    data: str = "data"
    checkpoints: str = "checkpoints"
    runs: str = "runs"
    reports: str = "reports"


_PROMPTS = (
    "Once upon a time, there was a",
    "One day, a little girl named Lily",
    "The old bear was hungry, so he",
    'Tom said, "I am not afraid of',
    "It was raining. Mia and her brother",
)


@settings
class Ladder:
    """All settings of one chain of stages; --preset selects one by name."""

    name: str = DEFAULT_PRESET
    model: ModelConfig = ModelConfig()
    tokenizer: str = one_of(*TOKENIZERS)
    stages: tuple[StageConfig, ...] = ()
    corpus: CorpusConfig = CorpusConfig()
    generate: GenerateConfig = GenerateConfig()
    sample_prompts: tuple[str, ...] = _PROMPTS  # of the stories told at every evaluation
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
        """Tokens per optimizer step."""
        return stage.batch_size * self.model.context_length

    @property
    def config_file(self) -> str:
        """The file with these settings, as the user typed it."""
        return self.config_flag or "config.py"

    def lock(self, stage_name: str) -> Path:
        """The lock file that training holds, and prepare_data.py while it replaces the stage's token files."""
        return self.folder("checkpoints") / f".{stage_name}.lock"

    def command(self, script: str, *arguments: str) -> str:
        """The command that runs a script with these settings, as typed in the current folder, with its flags.

        Flags of a single run, such as --device, are repeated only by StageRun.again.
        """
        flags = [] if self.config_flag is None else ["--config", self.config_flag]
        flags += [] if self.name == DEFAULT_PRESET else ["--preset", self.name]
        return " ".join(["python", *map(quoted, (typed_path(script), *flags, *arguments))])

    def as_typed(self, message: str) -> str:
        """A message from code that knows no ladder, with its commands and `config.py` as this user would type them."""
        given = {re.escape(name) for name in (quoted(self.config_file), self.config_file)}
        there = rf"(?<!\S)(?:{'|'.join(sorted(given, reverse=True))})(?!\w)"  # already as the user types it

        def as_typed(match: re.Match[str]) -> str:
            if match["script"]:
                return self.command(match["script"])
            return self.config_file if match["file"] else match[0]

        return re.sub(f"{_COMMAND}|{there}|{_CONFIG_FILE}", as_typed, message)

    def folder(self, kind: str) -> Path:
        """The data, checkpoints, runs or reports folder; a subfolder of it for a preset other than the default."""
        base: Path = PROJECT / self.paths.root / getattr(self.paths, kind)
        return base if self.name == DEFAULT_PRESET else base / self.name

    @property
    def raw_folder(self) -> Path:
        """Downloaded text and the user's own, as it came; shared by all presets."""
        return PROJECT / self.paths.root / self.paths.data / _RAW


# Not if the flags are there already, nor for a path or the original file.
_COMMAND = r"\bpython (?P<script>\w+\.py)\b(?! --(?:config|preset)\b)"
_CONFIG_FILE = r"(?<!python )(?<!original )(?<![\w./\\-])(?P<file>config\.py)\b"


def typed_path(script: str) -> str:
    """A script of the project as it is typed in the current folder."""
    path = PROJECT / script
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):  # another folder; a deleted folder
        return str(path)


def quoted(argument: str) -> str:
    """An argument, quoted for the shell."""
    if os.name != "nt":
        return shlex.quote(argument)
    import subprocess  # here, so that --help need not wait for it

    return subprocess.list2cmdline([argument])


def check(ladder: Ladder, config_file: str = "config.py") -> Ladder:
    """Return the ladder, or raise a SettingsError that lists each problem, its value and the fix."""
    found = list(problems(ladder))
    if found:
        raise SettingsError(f"preset {ladder.name!r} in {config_file}:\n" + "\n".join(f"  - {line}" for line in found))
    return ladder


def check_part(where: str, part: T) -> T:
    """Return one settings object, or raise a SettingsError that lists what is wrong with it."""
    found = list(_field_problems(part)) or list(_own_problems(part))
    if found:
        raise SettingsError(f"{where}: {'; '.join(found)}")
    return part


def problems(ladder: Ladder) -> Iterator[str]:
    """Every invalid setting of the ladder, one sentence each."""
    stages = ladder.stages if isinstance(ladder.stages, tuple) else ()
    parts: list[tuple[str, object]] = [("", ladder), ("model: ", ladder.model), ("corpus: ", ladder.corpus)]
    parts += [("corpus.cleaning: ", getattr(ladder.corpus, "cleaning", None)), ("generate: ", ladder.generate)]
    parts += [("paths: ", ladder.paths)]
    parts += [(f"stage {getattr(stage, 'name', stage)!r}: ", stage) for stage in stages]
    foreign = [stage for stage in stages if not isinstance(stage, StageConfig)]
    yield from (f"stages holds {stage!r}; expected StageConfig(...)" for stage in foreign)
    comparable = not foreign  # whether the stages can be checked against each other
    for where, part in parts:
        wrong = list(_field_problems(part))
        comparable = comparable and not (wrong and isinstance(part, (Ladder, StageConfig)))
        yield from (where + line for line in wrong or _own_problems(part))
    if comparable:
        yield from _family_problems(ladder)


def _field_problems(part: object) -> Iterator[str]:
    """Values of the wrong type, outside their limits or not among their choices, of one dataclass."""
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        yield f"expected one of the classes of storyladder/settings.py, got {part!r}"
        return
    hints = typing.get_type_hints(type(part))
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        kind, limits, choices = hints[field.name], field.metadata.get("limits"), field.metadata.get("choices")
        if not _is_of_type(value, kind):
            yield f"{field.name} is {value!r}; expected {_type_name(kind)}, for example {_example(field, kind)}"
        elif choices and value not in choices:
            yield f"{field.name} is {value!r}{nearest(str(value), choices)}"
        elif limits and value is not None:
            low, high = limits
            if not low <= value <= high:  # also true of NaN
                yield f"{field.name} is {value!r}; expected {low:g} to {high:g}, for example {_example(field, kind)}"


def _is_of_type(value: object, kind: Any) -> bool:
    """Whether a value fits a field's type; an int is a valid float, a bool is not a valid number."""
    if isinstance(kind, types.UnionType):
        return any(_is_of_type(value, option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        is_text = typing.get_args(kind)[0] is str
        return isinstance(value, tuple) and not (is_text and any(not isinstance(item, str) for item in value))
    if typing.get_origin(kind) is dict:
        key, content = typing.get_args(kind)
        return isinstance(value, dict) and all(
            _is_of_type(name, key) and _is_of_type(item, content) for name, item in value.items()
        )
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _type_name(kind: Any) -> str:
    names = {int: "an integer", float: "a finite number", bool: "True or False", str: "a string", type(None): "None"}
    names[dict[str, float]] = "a dict of names and numbers, such as {'tiny': 0.1},"
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return " or ".join(names.get(option, getattr(option, "__name__", str(option))) for option in options)


def _example(field: dataclasses.Field[Any], kind: Any) -> str:
    """A valid value: the default if there is one."""
    if field.default is not dataclasses.MISSING and field.default is not None:
        return repr(field.default)
    if "limits" in field.metadata:
        return repr(field.metadata["limits"][0])
    return repr("text") if kind is str else repr(None)


def _own_problems(part: object) -> Iterator[str]:
    """Conflicts between the fields of one model or stage, each of which is valid by itself."""
    if isinstance(part, ModelConfig) and part.n_embd % part.n_head:
        fitting = part.n_head * round(part.n_embd / part.n_head) or part.n_head
        yield f"n_embd ({part.n_embd}) must be a multiple of n_head ({part.n_head}), for example {fitting}"
    if isinstance(part, StageConfig):
        yield from _stage_problems(part)


def _stage_problems(stage: StageConfig) -> Iterator[str]:
    yield from _replay_problems(stage.replay or {})
    for field in ("name", "corpus"):
        if not (value := getattr(stage, field)).isidentifier():
            yield f"{field} is {value!r}; expected letters, digits and _ only, because files are named after it"
    if not re.fullmatch(r"\w+\.py", stage.script):
        yield f"script is {stage.script!r}; expected a script in the project's folder, for example 'train_tiny.py'"
    if not _is_plain_name(stage.result_file):
        yield f"result_file is {stage.result_file!r}; expected a plain file name without folders"
    elif stage.result_file.endswith(_OURS):
        yield f"result_file is {stage.result_file!r}; names ending in {' or '.join(_OURS)} are for unfinished stages"
    own = ("wte_lr", "wpe_lr", "vector_lr")
    if stage.optimizer == "muon" and (missing := [field for field in own if getattr(stage, field) is None]):
        yield f"{', '.join(missing)} must be set if optimizer is 'muon' (max_lr is Muon's), for example to 2e-3"
    if stage.min_lr > stage.max_lr:
        yield f"min_lr ({stage.min_lr:g}) is above max_lr ({stage.max_lr:g}); lower it"
    if stage.warmup_steps >= stage.max_steps:
        yield f"warmup_steps ({stage.warmup_steps}) must be below max_steps ({stage.max_steps})"
    if stage.micro_batch_size and stage.batch_size % stage.micro_batch_size:
        yield (
            f"batch_size ({stage.batch_size}) must be a multiple of micro_batch_size ({stage.micro_batch_size}); "
            "None selects one that fits"
        )


def _replay_problems(replay: dict[str, float]) -> Iterator[str]:
    for corpus, share in replay.items():
        if not 0 < share < 1:
            yield f"replay of {corpus!r} is {share:g}; expected a share between 0 and 1, for example 0.1"
    if (whole := sum(replay.values())) >= 1:
        yield f"replay adds up to {whole:g}, which leaves nothing for the stage's own corpus; expected less than 1"


def _family_problems(ladder: Ladder) -> Iterator[str]:
    """Conflicts between the stages: each must start from an earlier one, and none may overwrite another's files."""
    if not _is_plain_name(ladder.name) or ladder.name == _RAW:
        yield f"name is {ladder.name!r}; expected a name for a folder, without slashes and other than {_RAW!r}"
    if not ladder.stages:
        yield "stages is (); expected at least one, for example (TINY,)"
    for index, stage in enumerate(ladder.stages):
        where, before = f"stage {stage.name!r}: ", ladder.stages[:index]
        earlier = [other.name for other in before]
        if stage.init_from is not None and stage.init_from not in earlier:
            yield f"{where}init_from is {stage.init_from!r}; expected None or an earlier stage: {earlier or 'none'}"
        corpora = list(dict.fromkeys(other.corpus for other in before if other.corpus != stage.corpus))
        for corpus in sorted((stage.replay or {}).keys() - corpora):
            known = corpora or "there is none"
            yield f"{where}replay names {corpus!r}; expected a corpus of an earlier stage ({known}), or replay=None"
        for field in ("name", "script", "result_file"):
            value = getattr(stage, field)
            if value in [getattr(other, field) for other in before]:
                yield f"{where}{field} is {value!r}, as in an earlier stage; use a different one"


_OURS = ("_best.pt", "_resume.pt", "_resume.prev.pt")


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")
