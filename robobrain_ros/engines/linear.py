# SPDX-License-Identifier: Apache-2.0
"""Products with a matrix of weights, by the faster of the libraries that torch comes with.

For float32 on x86, `F.linear` calls MKL, which leaves AVX-512 unused on CPUs that are not Intel's.
oneDNN, which torch ships too, uses it: twice the speed on an AMD Zen 5. Torch offers no switch, so
the operator that its own compiler calls is called here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN takes ten microseconds a call to begin with: MKL is done with fewer products by then.
_MANY = 2**20
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What `F.linear` computes for x (…, I), weight (O, I) and bias (O,), up to rounding."""
    many = x.numel() * len(weight) >= _MANY
    # The operator has no derivative.
    plain = x.dtype is torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled()
    if _ONEDNN and many and plain:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def linear(x: Tensor, layer: nn.Module) -> Tensor:
    """What `layer`, an `nn.Linear` or a quantized one, makes of x (…, I)."""
    if type(layer) is nn.Linear:  # quantized ones derive from it
        return product(x, layer.weight, layer.bias)
    return layer(x)
