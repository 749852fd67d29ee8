# SPDX-License-Identifier: Apache-2.0
"""Configuration of the shipped model: Qwen2.5-VL's architecture with five million parameters."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2TokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from robobrain_ros.nano.tokenizer import FAMILY_NAME

PATCH = 14
MERGE = 2
TOKEN_PIXELS = PATCH * MERGE
# 448 x 252 pixels, which is all of a 16:9 image (16 x 9 image tokens); a little more, so that the
# resize rule's floor cannot lose a row to rounding.
MAX_PIXELS = 112_900
MIN_PIXELS = 56 * 56
SENT_SIZES = ((364, 280), (308, 252), (448, 252))
"""Width and height in which images of 640x480, 320x240 and 1280x720 are sent: training's sizes."""
# 4 x 4 image tokens a window.
WINDOW_PIXELS = 112
MODEL_DIRECTORY = Path(__file__).parent / "model"


def build_config(
    tokenizer: Qwen2TokenizerFast,
    *,
    vision_width: int = 128,
    vision_mlp: int = 384,
    vision_layers: int = 8,
    text_width: int = 192,
    text_mlp: int = 512,
    text_layers: int = 6,
    rope_theta: float = 1000.0,
) -> Qwen2_5_VLConfig:
    """A `Qwen2_5_VLConfig` whose widths are multiples of 64 (nf4 blocks).

    Every second vision block has full attention, evenly spaced as GGUF converters require.
    """
    token_id = tokenizer.convert_tokens_to_ids
    end, pad = token_id("<|im_end|>"), token_id("<|endoftext|>")
    text_heads = 4
    half = text_width // text_heads // 2
    spatial = half * 3 // 8  # Qwen2.5-VL's split of the rotary pairs: 1/4 time, 3/8 row, 3/8 column
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": text_width,
            "intermediate_size": text_mlp,
            "num_hidden_layers": text_layers,
            "num_attention_heads": text_heads,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": rope_theta,
                "mrope_section": [half - 2 * spatial, spatial, spatial],
            },
            "bos_token_id": pad,
            "eos_token_id": end,
            "pad_token_id": pad,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_width,
            "intermediate_size": vision_mlp,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": WINDOW_PIXELS,
            "out_hidden_size": text_width,
            "fullatt_block_indexes": list(range(1, vision_layers, 2)),
            "tokens_per_second": 2,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    config.robobrain_family = FAMILY_NAME
    return config


def build_image_processor() -> Qwen2VLImageProcessorPil:
    """Qwen's image processor, limited to about 448x252 pixels; needs no torchvision."""
    return Qwen2VLImageProcessorPil(size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS})


def save_checkpoint(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2TokenizerFast, directory: Path
) -> None:
    """Write weights (fp16), tokenizer, image processor and configs in Hugging Face's layout."""
    copy = Qwen2_5_VLForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    generation = copy.generation_config
    generation.do_sample = False
    generation.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    generation.pad_token_id = tokenizer.pad_token_id
    copy.to(torch.float16).save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    build_image_processor().save_pretrained(directory)
