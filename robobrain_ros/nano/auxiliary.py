# SPDX-License-Identifier: Apache-2.0
"""Auxiliary heads on image tokens: dense supervision that makes pointing learnable in minutes.

They are trained along with the model and thrown away afterwards.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobrain_ros.nano.batches import IGNORED

_NUMBERS, _DIGITS = 6, 3
_BACKGROUND_WEIGHT = 0.2


class AuxiliaryHeads(nn.Module):
    """Heads for `batches.token_targets`.

    What and where (kind, colour, offsets) is read from the image tokens that the vision tower
    emits; the decimal digits of point and box after the first language layers, because the
    answer is spelt in digits.
    """

    def __init__(self, width: int, kinds: int, colours: int) -> None:
        super().__init__()
        self._splits = [kinds + 1, colours + 2, _NUMBERS]
        self.appearance = nn.Linear(width, sum(self._splits))
        self.digits = nn.Linear(width, _NUMBERS * _DIGITS * 10)

    def forward(self, tokens: Tensor, early: Tensor) -> tuple[Tensor, Tensor]:
        """Raw head outputs for vision `tokens` and `early` language states, both (B, 108, C)."""
        return self.appearance(tokens), self.digits(early)

    def loss(
        self, appearance: Tensor, digits: Tensor, batch: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        """Total loss and log figures (accuracies, and the point's mean error in tokens)."""
        kind, colour, offsets = appearance.float().split(self._splits, dim=-1)
        covered = batch["numbers"][..., 0] != IGNORED
        kind_loss = _class_loss(kind, batch["kind"])
        colour_loss = _class_loss(colour, batch["colour"])
        error = F.smooth_l1_loss(offsets[covered], batch["offsets"][covered], beta=0.1)
        place = torch.tensor([100, 10, 1])
        spelt = batch["numbers"][covered][..., None] // place % 10
        guess = digits.float()[covered].view(-1, _NUMBERS, _DIGITS, 10)
        digit_loss = F.cross_entropy(guess.flatten(0, 2), spelt.flatten())
        with torch.no_grad():
            figures = {
                "kind": _accuracy(kind[covered], batch["kind"][covered]),
                "colour": _accuracy(colour[covered], batch["colour"][covered]),
                "offset": (offsets - batch["offsets"])[covered][:, :2].abs().mean().item(),
                "tens": _accuracy(guess[:, :, 1], spelt[:, :, 1]),
                "ones": _accuracy(guess[:, :, 2], spelt[:, :, 2]),
            }
        return kind_loss + colour_loss + 2 * error + digit_loss, figures


def _class_loss(scores: Tensor, target: Tensor) -> Tensor:
    """Cross entropy; the last class is the background, which most tokens show."""
    weight = torch.ones(scores.shape[-1])
    weight[-1] = _BACKGROUND_WEIGHT
    return F.cross_entropy(
        scores.flatten(0, 1), target.flatten(), weight=weight, ignore_index=IGNORED
    )


def _accuracy(scores: Tensor, target: Tensor) -> float:
    return (scores.argmax(-1) == target).float().mean().item()
