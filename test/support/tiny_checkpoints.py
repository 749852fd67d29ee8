# SPDX-License-Identifier: Apache-2.0
"""Random Qwen-VL checkpoints of a few hundred kilobytes in the file layout of the real ones."""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# What Qwen2.5-VL's template says, without its branches for videos and picture numbers.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def save_tokenizer(directory: Path, *, template_in_tokenizer: bool = True) -> Tokenizer:
    """Write tokenizer.json, tokenizer_config.json, vocab.json, merges.txt, chat_template.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["point to the red cup", "You are a helpful assistant."], trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.add_tokens(list(TAGS))
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer.model.save(str(directory))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL_TOKENS),
    }
    if template_in_tokenizer:
        config["chat_template"] = CHAT_TEMPLATE
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    return tokenizer


def save_qwen2_5_vl(directory: Path, **config: object) -> Path:
    """A random checkpoint in the layout of RoboBrain2.0-3B; `config` goes into config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tokenizer(directory, template_in_tokenizer=False)
    text = _text_config(tokenizer)
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 96,  # like the real one's 3420, no multiple of an nf4 block
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_token_ids(tokenizer))
    )
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    return _save(directory, model, preprocessor, config)


def save_qwen3_vl(directory: Path, **config: object) -> Path:
    """A random checkpoint in the layout of RoboBrain 2.5; `config` goes into config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tokenizer(directory)
    text = _text_config(tokenizer) | {"head_dim": 32}
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": [1],
    }
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, **_token_ids(tokenizer))
    )
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"longest_edge": 16777216, "shortest_edge": 4096},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return _save(directory, model, preprocessor, config)


# Llava's, in the chat format of the tokenizer above.
_LLAVA_TEMPLATE = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")


def save_llava(directory: Path) -> Path:
    """A random checkpoint of an architecture that only the reference engine knows."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tokenizer(directory)
    (directory / "chat_template.json").unlink()
    fast = AutoTokenizer.from_pretrained(directory)
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = _text_config(tokenizer)
    text["vocab_size"] = -(-len(fast) // 64) * 64
    del text["rope_parameters"]
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    vision = size | {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=LlamaConfig(**text),
            vision_config=CLIPVisionConfig(**vision),
            image_token_index=fast.convert_tokens_to_ids("<image>"),
            tie_word_embeddings=True,
        )
    )
    _amplify(model)
    model.save_pretrained(directory)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    processor = LlavaProcessor(
        images,
        fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=_LLAVA_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(directory)
    return directory


MODEL_TYPES = {
    "qwen2_5_vl": (save_qwen2_5_vl, "RoboBrain2.0-3B"),
    "qwen3_vl": (save_qwen3_vl, "RoboBrain2.5-4B"),
}


def save(model_type: str, root: Path) -> Path:
    """A random checkpoint of a RoboBrain of one of MODEL_TYPES, in a directory of its name."""
    maker, name = MODEL_TYPES[model_type]
    return maker(root / name)


def _text_config(tokenizer: Tokenizer) -> dict[str, object]:
    return {
        "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [4, 6, 6],
        },
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }


def _token_ids(tokenizer: Tokenizer) -> dict[str, object]:
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids = {name: tokenizer.token_to_id(f"<|{name}|>") for name in names}
    return {
        "image_token_id": ids["image_pad"],
        "video_token_id": ids["video_pad"],
        "vision_start_token_id": ids["vision_start"],
        "vision_end_token_id": ids["vision_end"],
        "tie_word_embeddings": True,
    }


def _amplify(model: PreTrainedModel) -> None:
    """Let layers outweigh the embedding: answers depend on the input and don't repeat a token."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed_tokens" not in name:
                parameter.mul_(8)


def _save(
    directory: Path,
    model: PreTrainedModel,
    preprocessor: dict[str, object],
    config: dict[str, object],
) -> Path:
    _amplify(model)
    model.save_pretrained(directory)
    # Sampling as the real checkpoints ask for it: the engine must not follow.
    generation = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.05, "top_k": 1}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    saved = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(saved | config))
    return directory
