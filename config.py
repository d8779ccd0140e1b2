"""The file you edit: every setting of the ladder, in plain Python. Fields, units, limits: storyladder/settings.py.

python config.py                    print all settings, stage by stage
python config.py --preset demo      the same for another preset
python train_tiny.py --config my_config.py      use an edited copy of this file
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # python -P, or PYTHONSAFEPATH=1, leaves this folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from storyladder.command_line import print_settings

    print_settings(__file__, __doc__)  # reads this file as every command does

from storyladder.settings import CorpusConfig, GenerateConfig, Ladder, ModelConfig, Paths, StageConfig

PATHS = Paths()  # data/, checkpoints/, runs/ and reports/ in the project's folder
GENERATE = GenerateConfig(temperature=0.8, top_k=50, max_new_tokens=400)

# --- the ladder: 27,846,000 parameters, 8,192 tokens per step --------------------------------------------------------

MODEL = ModelConfig(n_layer=8, n_head=8, n_embd=336, context_length=256, dropout=0.1)

TINY = StageConfig(
    name="tiny",
    corpus="tiny",
    script="train_tiny.py",
    result_file="tinystories_28M_final.pt",
    init_from=None,
    max_steps=200_000,  # 1.64 billion tokens: three epochs of TinyStories
    batch_size=32,
    max_lr=3e-4,
    min_lr=3e-5,
    warmup_steps=1_000,
    grad_clip=1.0,
    eval_interval=2_000,
)

CHILDREN = replace(
    TINY,
    name="children",
    corpus="children",
    script="train_children.py",
    result_file="children_stories_fin.pt",
    init_from="tiny",
    replay={
        "tiny": 0.25
    },  # a quarter of each batch, so that TinyStories are not forgotten; docs/measuring.md has figures
    max_steps=120_000,  # one epoch, unless the validation loss stops falling earlier
    max_lr=1e-4,
    min_lr=1e-5,
    warmup_steps=500,
    patience=5,
)

SIMPLE = replace(
    CHILDREN,
    name="simple",
    corpus="simple",
    script="train_simp.py",
    result_file="simple_stories_ckpt.pt",
    init_from="children",
    replay={"tiny": 0.125, "children": 0.125},
    max_steps=80_000,
    max_lr=5e-5,
    min_lr=5e-6,
)

LADDER = Ladder(name="default", model=MODEL, stages=(TINY, CHILDREN, SIMPLE), generate=GENERATE, paths=PATHS)

# --- short: the same model for a few hundred steps, to try the real data on a CPU within an hour ---------------------

SHORT_TINY = replace(TINY, max_steps=300, max_lr=1e-3, min_lr=1e-4, warmup_steps=30, eval_interval=50, val_windows=128)
SHORT_CHILDREN = replace(
    CHILDREN, max_steps=60, max_lr=5e-4, min_lr=5e-5, warmup_steps=10, eval_interval=20, val_windows=128
)
SHORT_SIMPLE = replace(SIMPLE, max_steps=40, max_lr=3e-4, min_lr=3e-5, warmup_steps=5, eval_interval=10)
SHORT = replace(LADDER, name="short", stages=(SHORT_TINY, SHORT_CHILDREN, SHORT_SIMPLE))

# --- demo: all three stages in about three minutes on two laptop cores, on the bundled sample stories ----------------

DEMO_STAGE: dict[str, Any] = dict(
    max_steps=1_200, batch_size=4, min_lr=2e-4, warmup_steps=50, eval_interval=300, val_windows=64
)
DEMO = replace(
    LADDER,
    name="demo",
    model=ModelConfig(n_layer=2, n_head=4, n_embd=128, context_length=256, dropout=0.0),
    stages=(
        replace(TINY, max_lr=4e-3, **DEMO_STAGE),
        replace(CHILDREN, max_lr=3e-3, **DEMO_STAGE),
        replace(SIMPLE, max_lr=3e-3, **DEMO_STAGE),
    ),
    corpus=CorpusConfig(sample_stories=20_000),
)

# --- swift: the same model and files with our fastest recipe; 1,500 steps take about an hour on a laptop -------------

SWIFT_STAGE: dict[str, Any] = dict(optimizer="muon", schedule="linear", min_lr=0.0, lr_horizon=1_500, val_windows=256)
SWIFT_TINY = replace(
    TINY,
    **SWIFT_STAGE,
    max_steps=1_500,
    max_lr=0.02,
    wte_lr=2e-3,
    wpe_lr=2e-3,
    vector_lr=2e-3,
    warmup_steps=20,
    eval_interval=250,
)
SWIFT_CHILDREN = replace(
    CHILDREN,
    **SWIFT_STAGE,
    max_steps=300,
    max_lr=0.01,
    wte_lr=1e-3,
    wpe_lr=1e-3,
    vector_lr=1e-3,
    warmup_steps=20,
    eval_interval=50,
)
SWIFT_SIMPLE = replace(
    SIMPLE,
    **SWIFT_STAGE,
    max_steps=60,
    max_lr=0.005,
    wte_lr=5e-4,
    wpe_lr=5e-4,
    vector_lr=5e-4,
    warmup_steps=5,
    eval_interval=10,
)
SWIFT = replace(
    LADDER,
    name="swift",
    model=replace(MODEL, dropout=0.0),
    stages=(SWIFT_TINY, SWIFT_CHILDREN, SWIFT_SIMPLE),
)

PRESETS = (LADDER, SHORT, DEMO, SWIFT)
