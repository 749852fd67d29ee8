# SPDX-License-Identifier: Apache-2.0
"""Products by oneDNN are those of F.linear."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from robobrain_ros.engines.local import onednn_linear  # noqa: E402
from robobrain_ros.engines.local.onednn_linear import PrepackedLinear, prepack, product  # noqa: E402

F = torch.nn.functional
SMALL, LARGE = (96, 64), (640, 512)  # (O, I); many products are 2**18


def numbers(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 50, 300])
@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("with_bias", [True, False])
def test_prepacked_layers_compute_what_they_did(dtype, rows, shape, with_bias):
    weight = numbers(*shape, dtype=dtype)
    bias = numbers(shape[0], dtype=dtype, seed=1) if with_bias else None
    x = numbers(rows, shape[1], dtype=dtype, seed=2)
    layer = PrepackedLinear(weight, bias)
    with torch.inference_mode():
        # Of sums as long as this; in bfloat16 the last of 8 bits may differ.
        tolerance = {"rtol": 1e-4, "atol": 1e-3} if dtype is torch.float32 else {}
        torch.testing.assert_close(layer(x), F.linear(x, weight, bias), **tolerance)
        torch.testing.assert_close(layer(x[None]), F.linear(x[None], weight, bias), **tolerance)


def test_large_weights_are_not_kept_twice():
    assert PrepackedLinear(numbers(*SMALL)).weight is not None
    assert (PrepackedLinear(numbers(*LARGE)).weight is None) is onednn_linear.ONEDNN


def test_quantized_layers_stay_and_plain_ones_are_prepacked():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = torch.nn.Sequential(torch.nn.Linear(64, 64), Doubled(64, 64), torch.nn.Linear(64, 8))
    x = numbers(40, 64)
    with torch.no_grad():
        before = model(x)
        prepack(model)
        torch.testing.assert_close(model(x), before)
    assert [type(layer) for layer in model] == [PrepackedLinear, Doubled, PrepackedLinear]


@pytest.mark.parametrize("broken", ["absent", "refusing"])
def test_without_onednn_products_are_plain(monkeypatch, broken):
    if broken == "absent":
        monkeypatch.setattr(onednn_linear, "ONEDNN", False)
    else:

        class Refusing:
            def __getattr__(self, name):
                raise RuntimeError("not on this CPU")

        monkeypatch.setattr(torch.ops, "mkldnn", Refusing())
    weight, x = numbers(*LARGE), numbers(50, LARGE[1], seed=2)
    layer = PrepackedLinear(weight)
    assert layer.weight is not None
    assert torch.equal(layer(x), F.linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 50, 4000])
def test_products_of_passing_weights(dtype, rows):
    weight, x = numbers(7, 64, dtype=dtype), numbers(rows, 64, dtype=dtype, seed=2)
    with torch.no_grad():
        torch.testing.assert_close(product(x, weight), F.linear(x, weight))


def test_gradients_are_not_lost():
    weight, x = numbers(700, 64).requires_grad_(), numbers(50, 64, seed=2)
    product(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(700, -1))
