# SPDX-License-Identifier: Apache-2.0
"""The parts of a loaded model that run it: prefill, decode step, KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from robobrain_ros.engines.base import Progress
from robobrain_ros.engines.local.decode import CudaGraphStep, StepInput, eager_step
from robobrain_ros.engines.local.kv_cache import KVCache
from robobrain_ros.engines.local.onednn_linear import prepack
from robobrain_ros.engines.local.prefill import Prefiller
from robobrain_ros.engines.local.prefix_cache import PrefixCache
from robobrain_ros.engines.local.processor import Processor
from robobrain_ros.engines.local.qwen_language import LanguageModel


@dataclass(eq=False)
class ModelRunner:
    """decode: returns the logits (B, W, V) of a step."""

    model: PreTrainedModel
    language: LanguageModel
    cache: KVCache
    prefiller: Prefiller
    decode: Callable[[StepInput], Tensor]

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        processor: Processor,
        prefixes: PrefixCache,
        progress: Progress,
    ) -> ModelRunner:
        """Take over a model's weights. Raises UnsupportedArchitecture."""
        language = LanguageModel(model)
        prepack(model)
        cache = KVCache(language)
        prefiller = Prefiller(model, processor, language, prefixes)
        decode: Callable[[StepInput], Tensor] = partial(eager_step, language, cache)
        if language.device.type == "cuda":
            decode = CudaGraphStep(language, cache, progress)
        return cls(model, language, cache, prefiller, decode)
