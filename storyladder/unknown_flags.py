"""Hints for unknown flags: which flag of ours, or field of config.py, does what the flag does in other trainers.

Users of other trainers type --lr, --max_iters, --resume or --top_p. Standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence

from storyladder.settings import CleaningConfig, CorpusConfig, GenerateConfig, ModelConfig, Paths, StageConfig

_CLASSES = (StageConfig, ModelConfig, GenerateConfig, CorpusConfig, CleaningConfig, Paths)
FIELDS = {
    field.name: cls.__name__
    for cls in reversed(_CLASSES)
    for field in dataclasses.fields(cls)
    if field.name not in ("name", "cleaning", "root")
}
_RESUME = "no flag needed: the same command continues where the stage stopped, and --fresh starts it over"
_FILES = "no flag needed: stages find their token files, resume states and the previous stage by file name"
_FRESH = "no flag needed: this command always starts over"
_RECORD = "no flag needed: everything measured is written to runs/STAGE.jsonl"
_CHOSEN = "no flag needed: device, precision, compilation and micro-batch size are chosen to suit the machine"
_EPOCHS = "training length is in optimizer steps: set max_steps in {config}; steps per epoch = tokens / "
_EPOCHS += "(batch_size x context_length)"
_PROCESSES = "several GPUs: torchrun --nproc_per_node=N SCRIPT"
_SAMPLING = "not supported: use --temperature and --top-k"

# Names in other trainers, then our answers: a flag, a field or a sentence. The first that this command has is used.
_ELSEWHERE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lr learning_rate learningrate peak_lr base_lr", ("max_lr",)),
    ("lr_min final_lr end_lr", ("min_lr",)),
    ("steps iters max_iters num_steps n_steps iterations num_iterations train_steps max_train_steps", ("max_steps",)),
    ("epochs epoch num_epochs n_epochs max_epochs num_train_epochs", (_EPOCHS,)),
    ("bs batch batchsize train_batch_size total_batch_size per_device_train_batch_size", ("batch_size",)),
    ("device_batch_size gradient_accumulation_steps grad_accum_steps grad_accum", ("micro_batch_size",)),
    ("block_size seq_len seq_length max_seq_len sequence_length ctx n_ctx context context_size", ("context_length",)),
    ("layers n_layers num_layers num_hidden_layers depth", ("n_layer",)),
    ("heads n_heads num_heads num_attention_heads", ("n_head",)),
    ("dim d_model model_dim embd embed_dim embedding_dim hidden_size width n_embed", ("n_embd",)),
    ("vocab", ("vocab_size",)),
    ("wd decay", ("weight_decay",)),
    ("warmup warmup_iters num_warmup_steps warm_up_steps lr_warmup_steps", ("warmup_steps",)),
    ("adam_beta1 b1", ("beta1",)),
    ("adam_beta2 b2", ("beta2",)),
    ("adam_epsilon epsilon", ("eps",)),
    ("clip clip_grad max_grad_norm max_norm gradient_clip gradient_clip_val", ("grad_clip",)),
    ("eval_steps eval_every eval_freq val_interval val_check_interval", ("eval_interval",)),
    ("eval_iters eval_batches", ("val_windows",)),
    ("save_steps save_every checkpoint_interval ckpt_interval", ("save_interval",)),
    ("logging_steps log_every log_freq log_steps", ("log_interval",)),
    ("early_stopping early_stopping_patience", ("patience",)),
    ("random_seed manual_seed", ("--seed", "seed")),
    ("output output_dir out out_dir outdir save_dir checkpoint_dir ckpt_dir save_path", ("checkpoints",)),
    ("log_dir logdir logging_dir run_dir", ("runs",)),
    (
        "input input_dir text text_dir source files folder dir dataset data_dir data_path data",
        ("--from", "--text", "data"),
    ),
    ("val_split val_fraction validation_split", ("val_percent",)),
    ("ckpt ckpt_path checkpoint checkpoint_path weights load model model_path", ("--checkpoint", _FILES)),
    ("init_from pretrained from_checkpoint", ("--checkpoint", "init_from")),
    ("resume resume_from resume_from_checkpoint resume_path continue auto_resume restore", ("--checkpoint", _RESUME)),
    (
        "restart reset overwrite from_scratch scratch overwrite_output_dir force",
        ("--fresh", _FRESH),
    ),
    ("wandb wandb_log wandb_project use_wandb tensorboard report_to log_to logger log_file", (_RECORD,)),
    ("dtype precision mixed_precision amp fp16 bf16 fp32 half tf32", ("--precision", _CHOSEN)),
    ("compile torch_compile backend flash flash_attention use_flash", (_CHOSEN,)),
    ("threads num_threads cpu_threads", ("--threads", _CHOSEN)),
    ("workers num_workers num_proc n_jobs jobs", ("no flag needed: all cores are used",)),
    ("gpu gpus num_gpus n_gpu nproc nproc_per_node ddp distributed world_size multi_gpu", (_PROCESSES,)),
    ("cuda cpu mps no_cuda use_cuda use_cpu accelerator", ("--device",)),
    ("time hours max_time time_limit budget max_minutes", ("--minutes",)),
    ("dry_run estimate profile test", ("--plan",)),
    ("yes y allow_changes ignore_changes", ("--accept-changes",)),
    ("limit max_mb size max_size subset", ("--limit-mb",)),
    ("split corpus task stages", ("--stage",)),
    ("stride sliding_window windows", ("--protocol",)),
    ("demo toy fake synthetic samples", ("--sample", "--num-samples")),
    ("cfg conf config_file settings yaml", ("--config",)),
    ("profile_name preset_name", ("--preset",)),
    ("start prompt_text input_text begin p", ("--prompt",)),
    ("length len max_length max_len max_tokens tokens n_tokens num_tokens n_predict new_tokens", ("--max-new-tokens",)),
    ("n num count n_samples num_stories stories num_return_sequences num_outputs", ("--num-samples", "--scorecard")),
    ("temp t", ("--temperature",)),
    ("topk k", ("--top-k",)),
    ("s", ("--seed",)),
    ("o", ("checkpoints",)),
    ("topp top_p nucleus p_value min_p typical_p repetition_penalty presence_penalty frequency_penalty", (_SAMPLING,)),
    ("beams num_beams beam_size do_sample greedy", (_SAMPLING,)),
)
_ANSWERS = {name: answers for names, answers in _ELSEWHERE for name in names.split()}


def answers_to(words: Sequence[str], flags: Iterable[str], config: str) -> list[str]:
    """A hint for each unknown flag among `words`, the arguments left over; words after a flag are its values.

    `flags` are those that the command has, `config` is the settings file it reads.
    """
    known = {_plain(flag): flag for flag in flags}
    found: list[str] = []
    loose: list[str] = []
    is_value = False
    for word in words:
        name, equals, _ = word.partition("=")
        if _is_flag(word) or (equals and _plain(name) in {*known, *FIELDS, *_ANSWERS}):
            found.append(f"unknown argument {word!r}{_hint(_plain(name), known, config)}")
            is_value = not equals
        elif not is_value:
            loose.append(word)
    return [*found, *([_answer_to_words(" ".join(loose), known)] if loose else [])]


def _is_flag(word: str) -> bool:
    """Whether it starts like a flag and is not a negative number."""
    return word.startswith("-") and not word[1:2].isdigit() and word != "-"


def _plain(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_").lower()


def _hint(name: str, known: dict[str, str], config: str) -> str:
    """What to type instead, after a semicolon: the same or the closest name among flags, settings, other trainers'."""
    near = difflib.get_close_matches(name, [*known, *FIELDS, *(each for each in _ANSWERS if len(each) > 2)], n=1)
    for candidate in (name, *near):
        if candidate in known:
            return f"; did you mean {known[candidate]!r}?"
        for answer in (*_ANSWERS.get(candidate, ()), candidate):
            if answer in known.values():
                return f"; did you mean {answer!r}?"
            if answer in FIELDS:
                return f"; set {answer} ({FIELDS[answer]}) in {config}"
            if " " in answer:
                return "; " + answer.format(config=config)
    return f"; the flags are {', '.join(sorted(known.values()))}"


def _answer_to_words(words: str, known: dict[str, str]) -> str:
    """Suggest the flag that words without a flag may belong to."""
    for flag, fits in (("--config", words.endswith(".py")), ("--prompt", True), ("--from", True)):
        if fits and flag in known.values():
            quotes = " (several words need quotes)" if " " in words else ""
            return f"unknown argument {words!r}; did you mean {flag} {words!r}?{quotes}"
    return f"unknown argument {words!r}"
