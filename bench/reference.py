# SPDX-License-Identifier: Apache-2.0
"""The reference of bench/engine.py: RoboBrain's own script, one request after the other.

Transformers' image processor, tokenizer and `generate`, greedy, everything read anew for each
question. Only what would break without torchvision is replaced (the processor class, its resizing).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessorList,
    Qwen2VLImageProcessorPil,
    StoppingCriteria,
    StoppingCriteriaList,
)

from robobrain_ros.core.answer_formats import answer_format
from robobrain_ros.core.coordinates import sent_size
from robobrain_ros.core.families import FAMILIES
from robobrain_ros.core.tasks import TaskKind, Think
from robobrain_ros.engines.local.constrained_decoding import Grammar
from robobrain_ros.engines.local.image_patches import resize
from robobrain_ros.engines.reference import ConstrainedLogits

FAMILY = FAMILIES["robobrain2"]
OPENING = FAMILY.openings[Think.DEFAULT]
_PAD = "<|image_pad|>"


@dataclass(frozen=True)
class Question:
    """kind and words, and how many tokens the answer may have."""

    kind: TaskKind
    text: str
    max_new_tokens: int

    @property
    def prompt(self) -> str:
        return FAMILY.build_prompt(self.kind, text=self.text)


class Reference:
    """Plain `generate`. trained: the model ends its answers in the right form by itself; one of
    random weights is constrained by a logits processor, or it would never end.
    """

    def __init__(
        self, directory: Path, dtype: torch.dtype, device: str, trained: bool, **loading: object
    ) -> None:
        """loading: more for from_pretrained, such as a quantization_config."""
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._images = Qwen2VLImageProcessorPil.from_pretrained(directory)
        self._device = device
        if "quantization_config" in loading or device == "cuda":
            loading["device_map"] = {"": device}
        self.model = AutoModelForImageTextToText.from_pretrained(
            directory, dtype=dtype, attn_implementation="sdpa", **loading
        ).eval()
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        size = self.model.config.text_config.vocab_size
        ends = {self._tokenizer.eos_token_id}
        self._grammar = None if trained else Grammar(self._tokenizer, size, ends)

    def ask(self, image: NDArray[np.uint8], question: Question) -> str:
        """Answer one question about an image (H, W, 3)."""
        size = self._images.size
        limits = (size["shortest_edge"], size["longest_edge"])
        factor = self._images.patch_size * self._images.merge_size
        sent = sent_size(image.shape[1], image.shape[0], factor, *limits)
        # Resized as the processor with torchvision does it, which isn't here.
        pixels = Image.fromarray(resize(image, sent))
        features = self._images(images=[pixels], return_tensors="pt")
        grid = features["image_grid_thw"]
        content = [{"type": "image"}, {"type": "text", "text": question.prompt}]
        chat = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        chat = (chat + OPENING).replace(
            _PAD, _PAD * (int(grid.prod()) // self._images.merge_size**2)
        )
        ids = self._tokenizer(chat, return_tensors="pt")["input_ids"].to(self._device)
        pad = self._tokenizer.convert_tokens_to_ids(_PAD)
        written = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=torch.eq(ids, pad).int(),
            pixel_values=features["pixel_values"].to(self._device),
            image_grid_thw=grid.to(self._device),
            max_new_tokens=question.max_new_tokens,
            **self._form(question, sent),
        )
        return self._tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)

    def decode_s(self, image: NDArray[np.uint8], question: Question, tokens: int) -> float:
        """Seconds that `tokens` more tokens take, whatever they are; the first isn't counted."""
        generation, grammar = self.model.generation_config, self._grammar
        ends, generation.eos_token_id, self._grammar = generation.eos_token_id, None, None
        seconds = []
        for count in (1, tokens + 1):
            started = time.perf_counter()
            self.ask(image, replace(question, max_new_tokens=count))
            seconds.append(time.perf_counter() - started)
        generation.eos_token_id, self._grammar = ends, grammar
        return seconds[1] - seconds[0]

    def _form(self, question: Question, sent: tuple[int, int]) -> dict[str, object]:
        form = answer_format(question.kind, FAMILY)
        if self._grammar is None or form is None:
            return {}
        constrained = ConstrainedLogits(self._grammar.constrain(form, sent, OPENING))
        return {
            "logits_processor": LogitsProcessorList([constrained]),
            "stopping_criteria": StoppingCriteriaList([_Complete(constrained)]),
        }


class _Complete(StoppingCriteria):
    def __init__(self, constrained: ConstrainedLogits) -> None:
        self._constrained = constrained

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        done = self._constrained.accept(int(input_ids[0, -1]))
        return torch.tensor([done], device=input_ids.device)
