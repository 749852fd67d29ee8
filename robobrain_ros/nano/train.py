# SPDX-License-Identifier: Apache-2.0
"""Train the shipped model from scratch on rendered scenes.

    python -m robobrain_ros.nano.train --data build/nano --out build/nano/model --minutes 96

Stage A trains the vision tower and the first language layers on the auxiliary heads alone, stage
B everything on questions. Both run for a given time, so that a slower machine still ends with an
annealed model. Scenes that are rendered meanwhile are taken in.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing, nn
from torch.utils.data import DataLoader
from transformers import Qwen2_5_VLForConditionalGeneration

from robobrain_ros.nano.architecture import SENT_SIZES, build_config, save_checkpoint
from robobrain_ros.nano.auxiliary import (
    FOUND_LAYERS,
    MEANT_LAYERS,
    NAMED_LAYERS,
    PLANNED_LAYERS,
    AuxiliaryHeads,
)
from robobrain_ros.nano.batches import Layout, TrainingBatches, Words
from robobrain_ros.nano.dataset import ScenePool
from robobrain_ros.nano.fast_forward import FastForward, normalise
from robobrain_ros.nano.scoring import validate
from robobrain_ros.nano.targets import IGNORED
from robobrain_ros.nano.tokenizer import build_tokenizer
from robobrain_ros.nano.views import View, resized_view
from robobrain_ros.nano.vocabulary import vocabulary_texts

_AUXILIARY_WEIGHT = 0.5
_POINTING_WEIGHTS = {"named": 0.3, "meant": 0.2, "found": 0.5}
_PLANNED_WEIGHT = 0.4
_LOG_STEPS = 25
_HEADS_ALONE_STEPS = 200

Batch = dict[str, Tensor]


class Trainer:
    """Model, heads, optimizers and the step of both stages."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dtype = torch.bfloat16 if options.bf16 else torch.float32
        self.tokenizer = build_tokenizer(vocabulary_texts())
        words = Words(self.tokenizer)
        self.model = Qwen2_5_VLForConditionalGeneration(build_config(self.tokenizer)).train()
        self.heads = AuxiliaryHeads(self.model.config.text_config.hidden_size)
        self.embedding = self.model.model.language_model.embed_tokens.weight
        self._parameters = [*self.model.parameters(), *self.heads.parameters()]
        self.optimizers = _optimizers(self.model, self.heads)
        self._heads_alone = 0
        self.networks = [_Network(self, Layout(words, size)) for size in SENT_SIZES]

    def losses(self, batch: Batch, whole: bool) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch and figures for the log; `whole` includes the questions."""
        network = self.networks[int(batch["size"])]
        cos, sin = (t.to(self.dtype) for t in network.forward.rotary(batch["positions"]))
        bias = attention_bias(batch["segment"], self.dtype)
        with torch.autocast("cpu", self.dtype, enabled=self.options.bf16):
            at = batch["named"], batch["asked"], batch["before_point"]
            appearance, digits, *states = network.run(
                batch["patches"], batch["ids"], cos, sin, bias, at, whole
            )
            answered = batch["labels"] != IGNORED
            scores = F.linear(states[-1][answered], self.embedding) if whole else None
        loss, figures = self.heads.loss(appearance, digits, batch, network.layout.columns)
        figures["aux"] = loss.item()
        if scores is None:
            return loss, figures
        target, weights = batch["labels"][answered], batch["weights"][answered]
        losses = F.cross_entropy(scores.float(), target, reduction="none")
        answer_loss = (weights * losses).sum() / weights.sum()
        figures["loss"] = answer_loss.item()
        figures["tokens"] = (scores.argmax(-1) == target).float().mean().item()
        total = answer_loss + _AUXILIARY_WEIGHT * loss
        truths = batch["shown"], batch["meant"], batch["meant"]
        for (name, weight), score, truth in zip(_POINTING_WEIGHTS.items(), states, truths):
            pointing, figures[name] = self.heads.pointing_loss(score, truth)
            total = total + weight * pointing
        planned, figures["planned"] = self.heads.planned_loss(states[3], batch["coming"])
        return total + _PLANNED_WEIGHT * planned, figures

    def step(self, batch: Batch, whole: bool, rate: float) -> dict[str, float]:
        """One optimizer step at learning rate `rate`."""
        loss, figures = self.losses(batch, whole)
        loss.backward()
        if self._heads_alone:
            self._heads_alone -= 1
            self.model.zero_grad(set_to_none=True)
        _average([p.grad for p in self._parameters if p.grad is not None])
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return figures

    def batches(self, length: int, seed: int) -> Iterator[Batch]:
        """An endless stream of batches, prepared in another process."""
        options = self.options
        stream = TrainingBatches(
            options.data,
            self.tokenizer,
            options.batch_size,
            length,
            seed,
            distributed.get_rank(),
        )
        return iter(DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4))

    def save(self, directory: Path) -> None:
        """Write the model for use, and the whole state beside the data to go on from."""
        save_checkpoint(self.model, self.tokenizer, directory)
        state = {"model": self.model.state_dict(), "heads": self.heads.state_dict()}
        torch.save(state, self.options.data / "state.pt")

    def load(self, path: Path) -> None:
        """Go on from a state that `save` wrote, or a model directory; optimizers start anew.

        A model directory has no auxiliary heads: new ones learn alone for the first
        `_HEADS_ALONE_STEPS`, so that they don't spoil what the model knows.
        """
        if path.is_dir():
            self.model.load_state_dict(
                Qwen2_5_VLForConditionalGeneration.from_pretrained(
                    path, dtype=torch.float32
                ).state_dict()
            )
            self._heads_alone = _HEADS_ALONE_STEPS
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"], strict=False)


class _Network:
    """The forward pass for images of one size, compiled."""

    def __init__(self, trainer: Trainer, layout: Layout) -> None:
        self._trainer, self.layout = trainer, layout
        self.forward = FastForward(trainer.model, layout.rows, layout.columns)
        compiles = trainer.options.compile
        self.run: Callable[..., tuple[Tensor, ...]] = (
            torch.compile(self._run, dynamic=False) if compiles else self._run
        )

    def _run(
        self,
        patches: Tensor,
        ids: Tensor,
        cos: Tensor,
        sin: Tensor,
        bias: Tensor,
        at: tuple[Tensor, Tensor, Tensor],
        whole: bool,
    ) -> tuple[Tensor, ...]:
        start = self.layout.image_start
        stop = start + self.layout.image_tokens
        image = self.forward.image_tokens(normalise(patches, self._trainer.dtype))
        x = F.embedding(ids, self._trainer.embedding).to(image.dtype)
        x = torch.cat([x[:, :start], image, x[:, stop:]], 1)
        heads, layers = self._trainer.heads, self.forward.language_layers
        x = layers(x, cos, sin, bias, 0, NAMED_LAYERS)
        early = x[:, start:stop]
        seen = heads(image, early)
        if not whole:
            return seen
        named, asked, before_point = at
        of_names = heads.named(early, _taken(x, named))
        x = layers(x, cos, sin, bias, NAMED_LAYERS, MEANT_LAYERS)
        meant = heads.meant(early, _taken(x, asked))
        x = layers(x, cos, sin, bias, MEANT_LAYERS, FOUND_LAYERS)
        found = heads.found(early, _taken(x, asked))
        x = layers(x, cos, sin, bias, FOUND_LAYERS, PLANNED_LAYERS)
        planned = heads.planned(_taken(x, before_point))
        x = layers(x, cos, sin, bias, PLANNED_LAYERS, None)
        return *seen, of_names, meant, found, planned, self.forward.final_norm(x)


def _taken(x: Tensor, places: Tensor) -> Tensor:
    """Return x (B, L, C) at places (B, Q) of its sequence: (B, Q, C)."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def _average(gradients: list[Tensor]) -> None:
    """Replace gradients by their mean over the processes."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def attention_bias(segment: Tensor, dtype: torch.dtype) -> Tensor:
    """Tree mask (B, 1, L, L): causal, each question sees the prefix (segment 0) and itself."""
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = segment[:, :, None] == segment[:, None, :]
    seen = (same | (segment[:, None, :] == 0)) & causal
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -1e4)[:, None]


def _optimizers(model: nn.Module, heads: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices of the layers, AdamW for everything else."""
    matrices: list[nn.Parameter] = []
    weights: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in [*model.named_parameters(), *heads.named_parameters(prefix="heads")]:
        if parameter.ndim == 2 and "embed_tokens" not in name and not name.startswith("heads"):
            matrices.append(parameter)
        else:
            (vectors if parameter.ndim < 2 else weights).append(parameter)
    muon = torch.optim.Muon(matrices, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": weights, "weight_decay": 0.02},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)]


def learning_rate(step: int, progress: float, peak: float, decay_from: float) -> float:
    """Warm-up of 100 steps, a plateau, and a cosine to 1 % of `peak` as `progress` reaches 1."""
    warm = min(1.0, (step + 1) / 100)
    late = max(0.0, (min(progress, 1.0) - decay_from) / (1 - decay_from)) if decay_from < 1 else 0.0
    return peak * warm * max(0.01, 0.5 * (1 + math.cos(math.pi * late)))


class _Log:
    """Means of the step figures, printed every `_LOG_STEPS` steps."""

    def __init__(self, stage: str) -> None:
        self._stage, self._start, self._mark = stage, time.monotonic(), time.monotonic()
        self._figures: dict[str, list[float]] = defaultdict(list)

    def add(self, step: int, rate: float, figures: dict[str, float], images: int) -> None:
        for key, value in figures.items():
            self._figures[key].append(value)
        if step % _LOG_STEPS:
            return
        means = " ".join(f"{key} {np.mean(v):.3f}" for key, v in self._figures.items())
        now = time.monotonic()
        pace = _LOG_STEPS * images / (now - self._mark)
        where = f"{self._stage} {step} {now - self._start:.0f} s {pace:.1f} images/s lr {rate:.1e}"
        print(where, means, flush=True)
        self._mark, self._figures = now, defaultdict(list)


def minutes_until(clock: str) -> float:
    """Minutes from now to a local time HH:MM of the next 24 hours."""
    now = datetime.now()
    end = datetime.combine(now.date(), datetime.strptime(clock, "%H:%M").time())
    return ((end - now) % timedelta(days=1)).total_seconds() / 60


def train_stage(trainer: Trainer, whole: bool, minutes: float, decay_from: float) -> None:
    """Run one stage for `minutes`; stage B (`whole`) validates and saves on the way.

    The processes step together: the first decides how far the stage is and checks the model.
    """
    options, first = trainer.options, distributed.get_rank() == 0
    log = _Log("B" if whole else "A")
    views = validation_views(options.data, options.validation) if whole and first else []
    length = options.length if whole else 0
    seed = options.seed + whole
    start = last_check = time.monotonic()
    for step, batch in enumerate(trainer.batches(length, seed)):
        progress = torch.tensor((time.monotonic() - start) / (60 * minutes))
        distributed.broadcast(progress, src=0)
        if progress >= 1:
            break
        rate = learning_rate(step, progress.item(), options.rate, decay_from)
        figures = trainer.step(batch, whole, rate)
        if not first:
            continue
        log.add(step, rate, figures, options.batch_size * options.processes)
        if whole and time.monotonic() - last_check > 60 * options.check_minutes:
            _check(trainer, views, time.monotonic() - start)
            last_check = time.monotonic()
    if first and whole:
        _check(trainer, views, time.monotonic() - start)
    elif first:
        trainer.save(options.out)


def validation_views(directory: Path, scenes: int) -> list[View]:
    """Whole views of held-out scenes, at the size that most cameras' images are sent."""
    pool = ScenePool(directory, "validation")
    size = pool.sizes()[0]
    count = min(scenes, pool.scenes(size))
    return [resized_view(pool.scene(size, i), SENT_SIZES[0]) for i in range(count)]


def _check(trainer: Trainer, views: Sequence[View], seconds: float) -> None:
    trainer.save(trainer.options.out)
    figures = validate(trainer.options.out, views)
    print(f"CHECK {seconds:.0f} s {json.dumps(figures)}", flush=True)


def _train(rank: int, options: argparse.Namespace) -> None:
    """Both stages, as process `rank` of `options.processes`.

    Processes of one thread each, not threads: on a CPU with other work to do, a thread that waits
    for another at every operation costs more than it brings.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{options.data.resolve() / 'rendezvous'}",
        rank=rank,
        world_size=options.processes,
    )
    trainer = Trainer(options)
    if rank == 0:
        count = sum(p.numel() for p in trainer.model.parameters())
        print(f"{count / 1e6:.2f} M parameters, {len(trainer.tokenizer)} tokens", flush=True)
    if options.state:
        trainer.load(options.state)
    if options.stage_a_minutes:
        train_stage(trainer, whole=False, minutes=options.stage_a_minutes, decay_from=1.0)
    minutes = minutes_until(options.until) if options.until else options.minutes
    train_stage(trainer, whole=True, minutes=minutes, decay_from=options.decay_from)
    distributed.destroy_process_group()


def main() -> None:
    """Train both stages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, default=Path("build/nano"))
    parser.add_argument("--out", type=Path, default=Path("build/nano/model"))
    parser.add_argument("--state", type=Path, help="go on from this state.pt or model directory")
    parser.add_argument("--stage-a-minutes", type=float, default=14)
    parser.add_argument("--minutes", type=float, default=360, help="of stage B")
    parser.add_argument("--until", help="local time HH:MM at which stage B ends, for --minutes")
    parser.add_argument("--decay-from", type=float, default=0.3, help="share of stage B")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=6, help="per process")
    parser.add_argument("--length", type=int, default=400, help="tokens beside the image's")
    parser.add_argument("--check-minutes", type=float, default=6)
    parser.add_argument("--validation", type=int, default=60, help="scenes per check")
    parser.add_argument("--seed", type=int, default=10, help="of what is drawn from the data")
    parser.add_argument("--processes", type=int, default=2, help="one core each")
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    options = parser.parse_args()
    (options.data / "rendezvous").unlink(missing_ok=True)
    multiprocessing.spawn(_train, (options,), nprocs=options.processes)


if __name__ == "__main__":
    main()
