# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of random weights in RoboBrain's architecture, built from a configuration, never
downloaded: what they say means nothing, what they cost does.

Tokenizer, template and image processor are nano's; the image processor's limits are RoboBrain's.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from robobrain_ros.engines.local.checkpoint import NANO_DIRECTORY

_TOWER: dict[str, object] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
# (language model, vision tower); the first two are those of RoboBrain2.0-3B and 7B.
SHAPES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "3B": (
        {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
         "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936,
         "tie_word_embeddings": True},
        _TOWER,
    ),
    "7B": (
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
         "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
         "tie_word_embeddings": False},
        _TOWER,
    ),
    # About the 3B's proportions at a sixteenth of its size: a fifth of the weights see.
    "180M": (
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 14,
         "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 32000,
         "tie_word_embeddings": True},
        {"depth": 10, "hidden_size": 512, "intermediate_size": 1408, "num_heads": 8,
         "fullatt_block_indexes": [4, 9]},
    ),
    "tiny": (
        {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 768,
         "tie_word_embeddings": True},
        {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2,
         "fullatt_block_indexes": [1]},
    ),
}  # fmt: skip
_LIMITS = {"longest_edge": 12845056, "shortest_edge": 3136}  # pixels
_SPREAD = 2.0  # of the layers' weights: answers then depend on image and words


def configuration(shape: str) -> Qwen2_5_VLConfig:
    """The configuration of one of SHAPES, with nano's token ids."""
    nano = json.loads((NANO_DIRECTORY / "config.json").read_text())
    text, vision = SHAPES[shape]
    width = int(text["hidden_size"]) // int(text["num_attention_heads"])
    sections = [width // 8, width * 3 // 16, width * 3 // 16]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    ids = {name: nano[name] for name in nano if name.endswith("token_id")}
    ends = {name: nano["text_config"][name] for name in ("bos_token_id", "eos_token_id")}
    limits = {"max_position_embeddings": 32768, "rope_parameters": rope}
    patches = {"patch_size": 14, "window_size": 112, "spatial_merge_size": 2}
    patches |= {"temporal_patch_size": 2, "out_hidden_size": text["hidden_size"]}
    return Qwen2_5_VLConfig(
        text_config=text | limits | ends,
        vision_config=vision | patches,
        tie_word_embeddings=text["tie_word_embeddings"],
        **ids,
    )


def save(shape: str, directory: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint of a shape; an existing one is kept."""
    if (directory / "config.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = configuration(shape)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(dtype)
        try:
            model = Qwen2_5_VLForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed_tokens" not in name:
                parameter.mul_(_SPREAD)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(NANO_DIRECTORY / name, directory)
    shutil.copy(NANO_DIRECTORY / "generation_config.json", directory)
    images = json.loads((NANO_DIRECTORY / "preprocessor_config.json").read_text())
    (directory / "preprocessor_config.json").write_text(json.dumps(images | {"size": _LIMITS}))
    saved = json.loads((directory / "config.json").read_text())
    saved |= {"robobrain_family": "robobrain2"}
    (directory / "config.json").write_text(json.dumps(saved))
    return directory
