"""The layers that model.py is built from: GPT-2's formulas, with forms of their own where torch's are slow on a CPU.

Each module holds one layer and works without the C kernels (kernels.py) too: the same mathematics as torch operations.
"""

from storyladder.layers.activation import gelu
from storyladder.layers.attention import causal_attention, merge_heads, split_heads
from storyladder.layers.dropout import Dropout, DropoutAdd
from storyladder.layers.layer_norm import LayerNorm

__all__ = ["Dropout", "DropoutAdd", "LayerNorm", "causal_attention", "gelu", "merge_heads", "split_heads"]
