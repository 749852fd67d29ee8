# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of random weights in RoboBrain's architecture, built from a configuration, never
downloaded: what they say means nothing, what they cost does.

The vocabulary is Qwen's where it is installed and the model has logits for it, otherwise nano's.
The image processor is nano's with RoboBrain's limits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parents[1] / "test"))
from support import qwen_vocabulary

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
    # The 3B at a sixteenth of its size, but for the vocabulary: a fifth of the weights see.
    "180M": (
        {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16,
         "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 151936,
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


def tokenizer_of(shape: str) -> Any:
    """The tokenizer of one of SHAPES."""
    if int(str(SHAPES[shape][0]["vocab_size"])) >= qwen_vocabulary.LOGITS:
        try:
            return qwen_vocabulary.qwen_tokenizer()
        except qwen_vocabulary.VocabularyMissing as missing:
            print(f"{missing}. With nano's tokenizer instead, texts have other tokens.")
    return AutoTokenizer.from_pretrained(NANO_DIRECTORY)


def configuration(shape: str, tokenizer: Any) -> Qwen2_5_VLConfig:
    """The configuration of one of SHAPES, with the token ids of a tokenizer."""
    text, vision = SHAPES[shape]
    width = int(text["hidden_size"]) // int(text["num_attention_heads"])
    sections = [width // 8, width * 3 // 16, width * 3 // 16]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    limits = {"max_position_embeddings": 32768, "rope_parameters": rope}
    patches = {"patch_size": 14, "window_size": 112, "spatial_merge_size": 2}
    patches |= {"temporal_patch_size": 2, "out_hidden_size": text["hidden_size"]}
    return Qwen2_5_VLConfig(
        text_config=text | limits | _end_ids(tokenizer),
        vision_config=vision | patches,
        tie_word_embeddings=text["tie_word_embeddings"],
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )


def _end_ids(tokenizer: Any) -> dict[str, int]:
    return {"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}


def save(shape: str, directory: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint of a shape; an existing one is kept."""
    if (directory / "config.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = tokenizer_of(shape)
    config = configuration(shape, tokenizer)
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
    tokenizer.save_pretrained(directory)
    generation = _end_ids(tokenizer) | {"pad_token_id": tokenizer.pad_token_id, "do_sample": False}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    images = json.loads((NANO_DIRECTORY / "preprocessor_config.json").read_text())
    (directory / "preprocessor_config.json").write_text(json.dumps(images | {"size": _LIMITS}))
    saved = json.loads((directory / "config.json").read_text())
    saved |= {"robobrain_family": "robobrain2"}
    (directory / "config.json").write_text(json.dumps(saved))
    return directory
