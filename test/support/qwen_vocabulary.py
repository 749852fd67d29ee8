# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of Qwen2.5-VL and RoboBrain 2.0, rebuilt from Qwen's published vocabulary.

PyPI's `dashscope` carries that vocabulary, as byte strings with their ranks; nothing of it is kept
in this repository and nothing of the package is imported.
"""

from __future__ import annotations

import base64
import importlib.metadata
import math
from functools import cache
from pathlib import Path

from tokenizers import AddedToken
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from robobrain_ros.nano.tokenizer import SPECIAL_TOKENS
from support.tiny_checkpoints import CHAT_TEMPLATE

LOGITS = 151_936
"""Of Qwen2.5-VL-3B and RoboBrain2.0-3B, padding included."""

# After nano's SPECIAL_TOKENS, which are Qwen's in the order of their ids, from 151,643 on: tokens
# of their own as well, which decoding keeps. <think> and <answer> are none.
_PLAIN_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)


class VocabularyMissing(RuntimeError):
    """The package with the vocabulary is not installed; the message says how to get it."""


@cache
def qwen_tokenizer() -> Qwen2Tokenizer:
    """The tokenizer (3 s). Raises VocabularyMissing."""
    ranks = _ranks()
    vocabulary = {_spelt(token): rank for token, rank in ranks.items()}
    tokenizer = Qwen2Tokenizer(
        vocabulary,
        [tuple(map(_spelt, _halves(token, ranks))) for token in ranks if len(token) > 1],
        eos_token=None,  # added below, with the id that it has
        pad_token=None,
        unk_token=None,
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.add_tokens([AddedToken(text, special=True) for text in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in _PLAIN_TOKENS])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer


def _ranks() -> dict[bytes, int]:
    try:
        package = importlib.metadata.distribution("dashscope")
    except importlib.metadata.PackageNotFoundError:
        raise VocabularyMissing(
            "Qwen's vocabulary is not installed: `make setup`, or `pip install --no-deps dashscope`"
        ) from None
    file = Path(str(package.locate_file("dashscope/resources/qwen.tiktoken")))
    lines = (line.split() for line in file.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that byte pair encoding joins last, those of the lowest rank first."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, math.inf) for a, b in zip(parts, parts[1:])]
        at = joined.index(min(joined))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


_CHARACTERS = bytes_to_unicode()  # how byte-level BPE writes each byte


def _spelt(token: bytes) -> str:
    return token.decode("latin-1").translate(_CHARACTERS)
