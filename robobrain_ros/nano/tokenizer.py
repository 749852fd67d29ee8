# SPDX-License-Identifier: Apache-2.0
"""Tokenizer of the shipped model: a small byte BPE with Qwen's special tokens and chat format.

Two deliberate differences from Qwen's own tokenizer, beyond the size:
RoboBrain's fixed prompt sentences are one token each (the model's text stays exact, a query costs
a dozen tokens instead of eighty), and nothing is learnt beyond the words of the tabletop world.
As in Qwen, every digit is its own token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, Qwen2TokenizerFast

from robobrain_ros.core.families import FAMILIES

FAMILY_NAME = "robobrain2"
FAMILY = FAMILIES[FAMILY_NAME]

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
RESERVED_TOKENS = ("<think>", "</think>", "<answer>", "</answer>")

# The format that Qwen2.5-VL's own template produces for text and images.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Qwen2's pre-tokenizer: contractions, words with their leading space, single digits,
# punctuation runs, line breaks, other white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MIN_PHRASE_LENGTH = 8
_ANSWER_PUNCTUATION = ("[]", "[(1, 2)]", "[(1, 2), (3, 4)]", "[1, 2, 3, 4]", "[[1, 2], [3, 4]]")


def prompt_phrases() -> list[str]:
    """The fixed sentences around the user's text in the prompts, longest first."""
    phrases = set()
    for kind in FAMILY.prompts:
        before, after = FAMILY.build_prompt(kind, text="\0").split("\0")
        phrases |= {before.rstrip(" "), after}
    return sorted((p for p in phrases if len(p) >= _MIN_PHRASE_LENGTH), key=len, reverse=True)


def build_tokenizer(texts: Iterable[str], vocabulary_size: int = 640) -> Qwen2TokenizerFast:
    """Train the byte BPE on `texts` and wrap it as a Qwen2 tokenizer.

    Args:
        texts: the words and sentences of the training questions; prompt phrases are added apart.
        vocabulary_size: byte and merge tokens, before special tokens and phrases.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    frame = ["system\nYou are a helpful assistant.", "user\n", "assistant\n", *_ANSWER_PUNCTUATION]
    bpe.train_from_iterator([*texts, *frame * 50], trainer)
    state = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2TokenizerFast(
        vocab=state["vocab"],
        merges=[tuple(merge) for merge in state["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    plain = [*RESERVED_TOKENS, *prompt_phrases()]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in plain])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
