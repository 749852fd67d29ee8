# SPDX-License-Identifier: Apache-2.0
"""Products with weights on a CPU, by the fastest library that torch comes with.

`F.linear` leaves much undone there: for float32 it calls MKL, which leaves AVX-512 unused on CPUs
that are not Intel's, and for bfloat16 oneDNN, which lays the weights out anew in each call. Weights
that are laid out once are 2 to 4 times faster (Zen 5). Torch offers no switch, so the operators
that its own compiler calls are called here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN takes ten microseconds a call to begin with: with fewer products F.linear is done by then.
_MANY = 2**18
# For how many rows weights are laid out; a layout for many serves few as well, not the reverse.
_ROWS = 128
_ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """What `F.linear` computes for x (…, I) and weight (O, I) that changes from call to call, up to
    rounding.
    """
    many = x.numel() * len(weight) >= 4 * _MANY
    # The operator has no derivative.
    plain = x.dtype is torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled()
    if _ONEDNN and many and plain:
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)


class LaidOut(nn.Module):
    """What `F.linear` computes with weight (O, I) and bias (O,), which never change. No gradients.

    Small weights are kept as they were as well: for few rows that is faster.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._outputs = len(weight)
        self._laid_out = _laid_out(weight.detach())
        needed = self._laid_out is None or weight.numel() < _MANY
        self.weight = nn.Parameter(weight.detach(), requires_grad=False) if needed else None
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, I); returns (…, O)."""
        weight = self.weight
        if weight is None or (self._laid_out is not None and x.numel() * self._outputs >= _MANY):
            return torch.ops.mkldnn._linear_pointwise(x, self._laid_out, self.bias, "none", [], "")
        return F.linear(x, weight, self.bias)


def lay_out(model: nn.Module) -> None:
    """Replace every plain `nn.Linear` of a model that is on a CPU; quantized ones stay."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            plain = type(child) is nn.Linear and child.weight.device.type == "cpu"
            if plain and child.weight.numel():  # none are left of those that were put together
                setattr(module, name, LaidOut(child.weight, child.bias))


def _laid_out(weight: Tensor) -> Tensor | None:
    """The weight as oneDNN wants it, None where it doesn't do it."""
    known = weight.dtype in (torch.float32, torch.bfloat16) and weight.device.type == "cpu"
    if not (_ONEDNN and known):
        return None
    try:
        laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        few = weight.new_zeros(1, weight.shape[1])
        torch.ops.mkldnn._linear_pointwise(few, laid_out, None, "none", [], "")
    except RuntimeError:  # bfloat16 on a CPU that doesn't multiply it
        return None
    return laid_out
