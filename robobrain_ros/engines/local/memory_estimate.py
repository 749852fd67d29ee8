# SPDX-License-Identifier: Apache-2.0
"""Memory that weights take, that a request will take, and that is free."""

from __future__ import annotations

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

USABLE = 0.9
"""Share of the free memory; the rest is for fragments and other processes."""

# Tensors of a layer's width that are alive at once during prefill: input, sum, products.
_ALIVE = 6


def stored_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, with the block scales that nf4 keeps beside its weights."""
    tensors = [*model.parameters(), *model.buffers()]
    states = [getattr(parameter, "quant_state", None) for parameter in model.parameters()]
    tensors += [state.absmax for state in states if state is not None]
    return sum(tensor.nbytes for tensor in tensors)


def free_bytes(device: torch.device) -> int:
    """Bytes that a new tensor on `device` may still take."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free) + int(held)


def prefill_bytes(model: PreTrainedModel, tokens: int, patches: int, itemsize: int) -> int:
    """Bytes of a prefill's activations: the widest layer's tensors for each token and patch."""
    vision, text = model.config.vision_config, model.config.text_config
    of_patch = vision.hidden_size * 4 + vision.intermediate_size * 2
    of_token = text.hidden_size * 4 + text.intermediate_size * 2
    return _ALIVE * itemsize * (patches * of_patch + tokens * of_token) // 2
