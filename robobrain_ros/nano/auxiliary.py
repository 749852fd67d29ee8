# SPDX-License-Identifier: Apache-2.0
"""Auxiliary heads on image tokens: dense supervision that makes pointing learnable in minutes.

They are trained along with the model and thrown away afterwards.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobrain_ros.nano.architecture import TOKEN_PIXELS
from robobrain_ros.nano.targets import (
    BACKGROUND,
    CLASSES,
    COLOR_CLASSES,
    IGNORED,
    MEASURES,
    NO_COLOR,
    NUMBERS,
)

NAMED_LAYERS, MEANT_LAYERS, FOUND_LAYERS, PLANNED_LAYERS = 2, 3, 4, 5
"""Number of language layers before each of the heads that read the text; `early` is the first."""
_DIGITS = 3
_BACKGROUND_WEIGHT = 0.15


class AuxiliaryHeads(nn.Module):
    """Heads for `targets.token_targets`.

    What and where (kind, color, offsets, size) is read from the image tokens that the vision tower
    emits; the decimal digits of point and boxes after the first language layers, because answers
    are spelt in digits. The others are read from the text, because finding what is meant takes
    longest to learn from answers alone: after `NAMED_LAYERS`, which image tokens each object's
    name is about; after `MEANT_LAYERS` and `FOUND_LAYERS`, where a question's answer begins, which
    ones that is about; after `PLANNED_LAYERS`, before each point of an answer, where that is.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self._splits = [len(CLASSES), COLOR_CLASSES, NUMBERS, MEASURES, 1]
        self.appearance = nn.Linear(width, sum(self._splits))
        self.digits = nn.Linear(width, NUMBERS * _DIGITS * 10)
        self.named, self.meant, self.found = Pointer(width), Pointer(width), Pointer(width)
        self.coming = nn.Linear(width, 2)

    def forward(self, tokens: Tensor, early: Tensor) -> tuple[Tensor, Tensor]:
        """Raw head outputs for vision `tokens` and `early` language states, both (B, N, C)."""
        return self.appearance(tokens), self.digits(early)

    def loss(
        self, appearance: Tensor, digits: Tensor, batch: dict[str, Tensor], columns: int
    ) -> tuple[Tensor, dict[str, float]]:
        """Total loss and log figures (accuracies, and the numbers' mean error in pixels).

        columns: image tokens in a row of the image.
        """
        kind, color, offsets, measures, middle = appearance.float().split(self._splits, dim=-1)
        known = batch["numbers"] != IGNORED
        measured = batch["measures"] != IGNORED
        covered = known[..., 2]
        targets = _offsets(batch["numbers"], columns)
        parts = {
            "kind": _class_loss(kind, batch["kind"], BACKGROUND),
            "color": _class_loss(color, batch["color"], (NO_COLOR,)),
            "offset": 5 * F.smooth_l1_loss(offsets[known], targets[known], beta=0.1),
            "size": F.smooth_l1_loss(measures[measured], batch["measures"][measured], beta=0.1),
            "middle": F.binary_cross_entropy_with_logits(middle[..., 0], batch["middle"]),
        }
        place = torch.tensor([100, 10, 1])
        spelt = batch["numbers"][known][:, None] // place % 10
        guess = digits.float().unflatten(-1, (NUMBERS, _DIGITS, 10))[known]
        parts["digits"] = F.cross_entropy(guess.flatten(0, 1), spelt.flatten())
        with torch.no_grad():
            figures = {
                "kind": _accuracy(kind[covered], batch["kind"][covered]),
                "color": _accuracy(color[covered], batch["color"][covered]),
                "pixels": TOKEN_PIXELS * (offsets - targets)[known].abs().mean().item(),
                "tens": _accuracy(guess[:, 1], spelt[:, 1]),
                "ones": _accuracy(guess[:, 2], spelt[:, 2]),
            }
        return sum(parts.values(), torch.zeros(())), figures

    def planned(self, states: Tensor) -> Tensor:
        """Return the points that come next, (B, P, 2) in image tokens from the image's corner."""
        return self.coming(F.rms_norm(states.float(), states.shape[-1:]))

    @staticmethod
    def planned_loss(planned: Tensor, coming: Tensor) -> tuple[Tensor, float]:
        """Loss of `planned` against pixels, `IGNORED` where there is none; mean error in pixels."""
        known = coming[..., 0] != IGNORED
        guess, target = planned.float()[known], coming[known] / TOKEN_PIXELS
        pixels = TOKEN_PIXELS * (guess - target).detach().abs().mean().item()
        return F.smooth_l1_loss(guess, target, beta=0.3), pixels

    @staticmethod
    def pointing_loss(scores: Tensor, meant: Tensor) -> tuple[Tensor, float]:
        """Cross entropy with any of the tokens that are meant, and how often the best is one."""
        about = meant.any(-1)
        chances, right = scores.float()[about].log_softmax(-1), meant[about]
        loss = -chances.masked_fill(~right, -torch.inf).logsumexp(-1).mean()
        best = chances.argmax(-1, keepdim=True)
        return loss, right.gather(1, best).float().mean().item()


class Pointer(nn.Module):
    """Attention from a text token to the image tokens that it is about."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key = nn.Linear(width, width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.none = nn.Linear(width, 1)

    def forward(self, early: Tensor, asking: Tensor) -> Tensor:
        """Scores (B, Q, N + 1) of the image tokens, and of none.

        early: (B, N, C) of the image tokens, asking: (B, Q, C), both language states.
        """
        query = self.query(asking) * asking.shape[-1] ** -0.5
        scores = torch.matmul(query, self.key(early).transpose(1, 2))
        return torch.cat([scores, self.none(asking)], -1)


def _offsets(numbers: Tensor, columns: int) -> Tensor:
    """Pixels (B, N, 10) relative to their token's middle, in tokens."""
    token = torch.arange(numbers.shape[1])
    middles = torch.stack([token % columns, token // columns], -1) + 0.5
    return numbers / TOKEN_PIXELS - middles.repeat(1, NUMBERS // 2)


def _class_loss(scores: Tensor, target: Tensor, background: tuple[int, ...]) -> Tensor:
    """Cross entropy; background classes, which most tokens show, count less."""
    weight = torch.ones(scores.shape[-1])
    weight[list(background)] = _BACKGROUND_WEIGHT
    return F.cross_entropy(
        scores.flatten(0, 1), target.flatten(), weight=weight, ignore_index=IGNORED
    )


def _accuracy(scores: Tensor, target: Tensor) -> float:
    return (scores.argmax(-1) == target).float().mean().item()
