# SPDX-License-Identifier: Apache-2.0
"""Points and boxes on held-out scenes during training, decoded greedily without the library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robobrain_ros.nano.batches import IMAGE_TOKENS, Layout, patches_of
from robobrain_ros.nano.dataset import ScenePool
from robobrain_ros.nano.fast_forward import FastForward
from robobrain_ros.nano.questions import prompt_for
from robobrain_ros.nano.views import Target, View, make_view
from robobrain_ros.sim.truth import box_iou
from robobrain_ros.tasks import TaskKind

_MAX_ANSWER_TOKENS = 24
_IMAGES_PER_BATCH = 20


@dataclass(frozen=True)
class _Question:
    image: int
    view: View
    target: Target
    kind: TaskKind
    prompt: tuple[int, ...]

    def score(self, answer: str) -> float:
        numbers = [int(n) for n in re.findall(r"\d+", answer)]
        if self.kind is TaskKind.GROUNDING:
            return box_iou(numbers, self.target.box) if len(numbers) == 4 else 0.0
        if len(numbers) != 2:
            return 0.0
        x, y = numbers
        height, width = self.view.labels.shape
        return float(x < width and y < height and self.view.labels[y, x] == self.target.label)


class Validation:
    """Scores a model in training on the whole views of the validation scenes.

    `scenes` caps the number of scenes; two objects each are asked for a point and one for a box.
    """

    def __init__(self, directory: Path, layout: Layout, scenes: int) -> None:
        self._layout = layout
        pool = ScenePool(directory, "validation")
        self._views = [make_view(pool[i], None) for i in range(min(scenes, len(pool)))]

    def _questions(self, views: Sequence[View]) -> list[_Question]:
        return [
            _Question(image, view, target, kind, self._layout.prompt(prompt_for(kind, text)))
            for image, view in enumerate(views)
            for kind, verb, targets in (
                (TaskKind.POINT, "Point to the", view.targets[:2]),
                (TaskKind.GROUNDING, "the", view.targets[-1:]),
            )
            for target in targets
            for text in [f"{verb} {target.info.name}"]
        ]

    @torch.inference_mode()
    def score(
        self, forward: FastForward, embedding: Tensor, dtype: torch.dtype
    ) -> dict[str, float]:
        """Share of points in the right mask, and mean box IoU."""
        scores: dict[TaskKind, list[float]] = {TaskKind.POINT: [], TaskKind.GROUNDING: []}
        for first in range(0, len(self._views), _IMAGES_PER_BATCH):
            views = self._views[first : first + _IMAGES_PER_BATCH]
            questions = self._questions(views)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                pixels = np.stack([patches_of(view.rgb) for view in views])
                images = forward.image_tokens(normalise(torch.from_numpy(pixels), dtype))
                answers = self._greedy(forward, embedding, images, questions)
            for question, answer in zip(questions, answers, strict=True):
                scores[question.kind].append(question.score(answer))
        return {
            "points_in_mask": float(np.mean(scores[TaskKind.POINT])),
            "box_iou": float(np.mean(scores[TaskKind.GROUNDING])),
        }

    def _greedy(
        self,
        forward: FastForward,
        embedding: Tensor,
        images: Tensor,
        questions: Sequence[_Question],
    ) -> list[str]:
        layout, rows = self._layout, len(questions)
        prefix = len(layout.prefix)
        lengths = torch.tensor([prefix + len(q.prompt) for q in questions])
        limit = int(lengths.max()) + _MAX_ANSWER_TOKENS
        ids = torch.full((rows, limit), layout.pad)
        for row, question in enumerate(questions):
            ids[row, : lengths[row]] = torch.tensor([*layout.prefix, *question.prompt])
        positions = torch.arange(limit).expand(3, rows, -1) - prefix + layout.next_position
        positions = positions.clone()
        positions[:, :, :prefix] = torch.from_numpy(layout.prefix_positions)[:, None]
        cos, sin = (t.to(images.dtype) for t in forward.rotary(positions))
        bias = torch.full((limit, limit), -1e4, dtype=images.dtype).triu(1)[None, None]
        picked = images[torch.tensor([q.image for q in questions])]
        start, ends = layout.image_start, lengths.clone()
        done = torch.zeros(rows, dtype=torch.bool)
        while not done.all() and int(ends.max()) < limit:
            stop = int(ends.max())
            x = F.embedding(ids[:, :stop], embedding).to(picked.dtype)
            x = torch.cat([x[:, :start], picked, x[:, start + IMAGE_TOKENS :]], 1)
            x = forward.language_layers(
                x, cos[:, :, :stop], sin[:, :, :stop], bias[:, :, :stop, :stop], 0, None
            )
            last = forward.final_norm(x[torch.arange(rows), ends - 1])
            token = F.linear(last, embedding).argmax(-1)
            ids[torch.arange(rows), ends] = token
            done |= token == layout.end
            ends += ~done
        return [layout.decode(ids[row, lengths[row] : ends[row]]) for row in range(rows)]


_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])  # CLIP's, as Qwen2.5-VL's processor
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def normalise(patches: Tensor, dtype: torch.dtype) -> Tensor:
    """Patches (B, N, 3*196) uint8 as the image processor's normalised values."""
    mean, std = (t.repeat_interleave(patches.shape[-1] // 3) for t in (_MEAN, _STD))
    return ((patches.float() / 255 - mean) / std).to(dtype)
