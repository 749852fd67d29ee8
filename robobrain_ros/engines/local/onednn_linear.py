# SPDX-License-Identifier: Apache-2.0
"""Linear layers on a CPU with weights prepacked for oneDNN.

`F.linear` is slow there: for float32 it calls MKL, which leaves AVX-512 unused on CPUs that are not
Intel's, and for bfloat16 oneDNN, which reorders the weights in each call. Weights that are
reordered once are 2 to 4 times faster (Zen 5). Torch offers no switch for this, so the operators
that its compiler (inductor) emits are called directly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A call of oneDNN has ten microseconds of overhead: below this many products F.linear is faster.
_MIN_PRODUCTS = 2**18
# Rows of the input that weights are packed for; a packing for many rows is also good for few.
_PACKED_ROWS = 128
ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)
"""Whether this torch has oneDNN's operators."""


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Compute `F.linear`, up to rounding, of x (…, I) and a weight (O, I) that is used once."""
    many = x.numel() * len(weight) >= 4 * _MIN_PRODUCTS
    # The operator has no derivative.
    plain = x.dtype is torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled()
    if ONEDNN and many and plain:
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)


class PrepackedLinear(nn.Module):
    """A linear layer of a constant weight (O, I) and bias (O,). No gradients.

    Small weights are kept in their plain layout as well, which is faster for few rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._outputs = len(weight)
        self._packed = _packed(weight.detach())
        needed = self._packed is None or weight.numel() < _MIN_PRODUCTS
        self.weight = nn.Parameter(weight.detach(), requires_grad=False) if needed else None
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, I); returns (…, O)."""
        weight = self.weight
        many = x.numel() * self._outputs >= _MIN_PRODUCTS
        if weight is None or (self._packed is not None and many):
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return F.linear(x, weight, self.bias)


def prepack(model: nn.Module) -> None:
    """Replace every plain `nn.Linear` of a model that is on a CPU; quantized layers stay."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            plain = type(child) is nn.Linear and child.weight.device.type == "cpu"
            if plain and child.weight.numel():  # FusedLinear has emptied those that it took
                setattr(module, name, PrepackedLinear(child.weight, child.bias))


def _packed(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's layout, None where oneDNN doesn't support it."""
    known = weight.dtype in (torch.float32, torch.bfloat16) and weight.device.type == "cpu"
    if not (ONEDNN and known):
        return None
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_ROWS)
        row = weight.new_zeros(1, weight.shape[1])
        torch.ops.mkldnn._linear_pointwise(row, packed, None, "none", [], "")
    except RuntimeError:  # bfloat16 on a CPU without instructions for it
        return None
    return packed
