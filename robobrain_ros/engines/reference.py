# SPDX-License-Identifier: Apache-2.0
"""The reference engine: transformers' own `generate`, one request after the other.

It serves architectures that the local engine doesn't implement, and tests compare the local
engine's answers with its answers. Nothing is cached, batched or drafted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from robobrain_ros.core.requests import (
    FinishReason,
    Generation,
    GenerationOptions,
    GenerationRequest,
    Stage,
    user_message,
)
from robobrain_ros.engines.base import (
    Capabilities,
    EngineUnavailable,
    Memory,
    Progress,
    silent,
)
from robobrain_ros.engines.config import EngineConfig
from robobrain_ros.engines.local.checkpoint import Checkpoint, check_checkpoint, find_checkpoint
from robobrain_ros.engines.local.constrained_decoding import Constraint, Grammar, restrict
from robobrain_ros.engines.local.loading import (
    Placement,
    choose_placement,
    end_token_ids,
    free_caches,
    load_model,
    try_out,
    typed_failure,
)
from robobrain_ros.engines.local.memory_estimate import free_bytes, stored_bytes
from robobrain_ros.engines.local.sequence import Sizes, constrain
from robobrain_ros.engines.local.stepwise import Outcome, check_length, generate
from robobrain_ros.engines.reference_inputs import Inputs, load_inputs


def load_reference_engine(config: EngineConfig, progress: Progress = silent) -> ReferenceEngine:
    """Find, check, load and try a model that AutoModelForImageTextToText knows.

    Raises LoadError. See `engine.load_local_engine`.
    """
    directory = find_checkpoint(config.model, progress)
    checkpoint = check_checkpoint(directory, config.model, config.family, progress)
    placement = choose_placement(checkpoint, config, progress)
    inputs = load_inputs(checkpoint, config.max_pixels)
    progress(f"loading {checkpoint.weight_bytes / 1e6:.1f} MB of weights as {placement}")
    model = load_model(checkpoint, placement)
    engine = ReferenceEngine(checkpoint, placement, inputs, model, config)
    gray = np.full((112, 112, 3), 128, np.uint8)
    messages, options = (user_message("the cup", gray),), GenerationOptions(max_new_tokens=1)
    request = GenerationRequest(messages=messages, options=options)
    try_out(engine, checkpoint, partial(generate, engine, request))
    return engine


@dataclass(eq=False)
class _Job:
    """A request that waits for its turn; started on the clock of time.monotonic()."""

    request: GenerationRequest
    inputs: dict[str, Tensor]
    sent_sizes: Sizes
    constraint: Constraint | None
    started: float
    prepared: float


class ReferenceEngine:
    """A model behind transformers' `generate`. See `stepwise.StepwiseEngine`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        placement: Placement,
        inputs: Inputs,
        model: PreTrainedModel,
        config: EngineConfig,
    ) -> None:
        self.capabilities = Capabilities(
            family=checkpoint.family,
            images_per_request=1,
            videos=False,
            streaming=True,
            constrained_decoding=config.grammar,
            sampling=True,
        )
        self.memory_bytes = stored_bytes(model)
        self.description = checkpoint.described(placement, self.memory_bytes)
        self.steps = 0
        self._device = placement.device
        self._dtype = placement.dtype
        self._inputs = inputs
        self._model: PreTrainedModel | None = model
        self._end_ids = end_token_ids(model, inputs.tokenizer)
        text_config = model.config.get_text_config()
        self._max_tokens = int(text_config.max_position_embeddings)
        self._grammar: Grammar | None = None
        if config.grammar:
            vocabulary = int(text_config.vocab_size)
            self._grammar = Grammar(inputs.tokenizer, vocabulary, self._end_ids)
        # The checkpoint's own settings (a repetition penalty that shifts digits) are for chat.
        model.generation_config = GenerationConfig()
        self._waiting: deque[_Job] = deque()

    def start(self, request: GenerationRequest) -> _Job:
        """Queue a request; see `StepwiseEngine.start`."""
        if self._model is None:
            raise EngineUnavailable("The model has been unloaded: configure the node again.")
        self.capabilities.check(request)
        started = time.monotonic()
        if request.report is not None:
            request.report(Stage.PREPROCESSING, "", 0)
        inputs, sent_sizes = self._inputs.encode(request)
        check_length(inputs["input_ids"].shape[1], request, self._max_tokens)
        constraint = constrain(self._grammar, request, sent_sizes)
        job = _Job(request, inputs, sent_sizes, constraint, started, time.monotonic())
        self._waiting.append(job)
        return job

    def step(self) -> list[Outcome]:
        """Answer the request that waits longest; see `StepwiseEngine.step`."""
        if not self._waiting:
            return []
        self.steps += 1
        job = self._waiting.popleft()
        try:
            with torch.inference_mode():
                return [(job, self._generate(job))]
        # Whatever it is: it ends this request, and the next ones are served.
        except Exception as failure:  # noqa: BLE001
            error = typed_failure(failure, self._device)
        free_caches()
        return [(job, error)]

    def memory(self) -> Memory:
        """Measure the memory usage; see `StepwiseEngine.memory`."""
        return Memory(self.memory_bytes, 0, 0, free_bytes(self._device))

    def clear_cache(self) -> None:
        """Do nothing: there is no cache."""

    def close(self) -> None:
        """Free the model; see `StepwiseEngine.close`."""
        self._waiting.clear()
        self._model = None
        free_caches()

    def _generate(self, job: _Job) -> Generation:
        request = job.request
        constraint = job.constraint
        stop = _Stop(request, None if constraint is None else ConstrainedLogits(constraint))
        stream = _Stream(request, self._inputs.stream())
        tokens: list[int] = []
        if request.stop():
            stop.finish = FinishReason.STOPPED
        else:
            if request.report is not None:
                request.report(Stage.PREFILL, "", 0)
            tokens = self._tokens(job, stop, stream)
        if tokens and tokens[-1] in self._end_ids:
            stop.finish = FinishReason.EOS
        prefilled = stream.first_token or job.prepared
        return Generation(
            text=self._inputs.decode(tokens),
            finish=stop.finish or FinishReason.LENGTH,
            sent_sizes=job.sent_sizes,
            tokens_in=job.inputs["input_ids"].shape[1],
            tokens_out=len(tokens),
            cached_tokens=0,
            preprocess_s=job.prepared - job.started,
            prefill_s=prefilled - job.prepared,
            decode_s=time.monotonic() - prefilled,
        )

    def _tokens(self, job: _Job, stop: _Stop, stream: _Stream) -> list[int]:
        """Run `generate`; returns the generated tokens."""
        assert self._model is not None
        options = job.request.options
        sampling = {"temperature": options.temperature, "top_k": 0, "top_p": 1.0}
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            if options.seed is None:
                torch.seed()
            else:
                torch.manual_seed(options.seed)
            generated = self._model.generate(
                **{name: self._placed(part) for name, part in job.inputs.items()},
                max_new_tokens=options.max_new_tokens,
                eos_token_id=sorted(self._end_ids),
                pad_token_id=min(self._end_ids),
                do_sample=bool(options.temperature),
                **(sampling if options.temperature else {}),
                logits_processor=LogitsProcessorList(
                    [stop.constrained] if stop.constrained else []
                ),
                stopping_criteria=StoppingCriteriaList([stop]),
                streamer=stream,
            )
        return generated[0, job.inputs["input_ids"].shape[1] :].tolist()

    def _placed(self, part: Tensor) -> Tensor:
        return part.to(self._device, self._dtype if part.is_floating_point() else part.dtype)


class ConstrainedLogits(LogitsProcessor):
    """Masks tokens that a constraint doesn't allow; of several ways to spell forced text, only the
    usual one stays.
    """

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint
        self._forced: list[int] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._forced = self._forced or list(self._constraint.forced())
        if self._forced:
            chosen = scores[0, self._forced[0]].clone()
            scores[0] = float("-inf")
            scores[0, self._forced[0]] = chosen
        else:
            restrict(scores[0], self._constraint)
        return scores

    def accept(self, token: int) -> bool:
        """Advance by a token; returns whether the answer is complete."""
        self._forced = self._forced[1:]
        self._constraint.accept([token])
        return self._constraint.finished


class _Stop(StoppingCriteria):
    """Ends a generation when its answer is complete or its request is stopped."""

    def __init__(self, request: GenerationRequest, constrained: ConstrainedLogits | None) -> None:
        self.constrained = constrained
        self.finish: FinishReason | None = None
        self._request = request

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        if self.constrained is not None and self.constrained.accept(int(input_ids[0, -1])):
            self.finish = FinishReason.EOS
        elif self._request.stop():
            self.finish = FinishReason.STOPPED
        return torch.tensor([self.finish is not None], device=input_ids.device)


class _Stream(BaseStreamer):
    """Reports text as it is generated. first_token: when it came, on time.monotonic()."""

    def __init__(self, request: GenerationRequest, text_of: Callable[[int], str]) -> None:
        self.first_token: float | None = None
        self._report = request.report
        self._text_of = text_of
        self._count = -1  # the prompt comes first

    def put(self, value: Tensor) -> None:
        """Take the prompt, and then each token."""
        self._count += 1
        if self._count == 0:
            return
        self.first_token = self.first_token or time.monotonic()
        if self._report is not None:
            self._report(Stage.DECODING, self._text_of(int(value)), self._count)

    def end(self) -> None:
        """Nothing is left to report."""
