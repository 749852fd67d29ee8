# SPDX-License-Identifier: Apache-2.0
"""RMS norm by a transformers module's weight."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """Normalize x (…, C) in one fused call; the module's own forward makes five."""
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)
