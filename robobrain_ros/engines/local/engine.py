# SPDX-License-Identifier: Apache-2.0
"""The local engine: Qwen-VL models (RoboBrain 2.0 and 2.5, nano) on transformers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from robobrain_ros.core.answer_formats import answer_format
from robobrain_ros.core.requests import FinishReason, Generation, GenerationRequest, Stage
from robobrain_ros.core.tasks import TaskKind, Think
from robobrain_ros.engines.base import (
    EngineError,
    EngineOutOfMemory,
    EngineUnavailable,
    LoadError,
    Memory,
)
from robobrain_ros.engines.local.checkpoint import Checkpoint, check_checkpoint, find_checkpoint
from robobrain_ros.engines.local.constrained_decoding import Grammar
from robobrain_ros.engines.local.decode import GraphStepper, Step, plain_step
from robobrain_ros.engines.local.kv_cache import Rows
from robobrain_ros.engines.local.loading import (
    Placement,
    choose_placement,
    first_line,
    free_caches,
    is_out_of_memory,
    load_failure,
    load_model,
)
from robobrain_ros.engines.local.memory_estimate import USABLE, free_bytes, stored_bytes
from robobrain_ros.engines.local.onednn_linear import lay_out
from robobrain_ros.engines.local.prefill import Prompt, Reader
from robobrain_ros.engines.local.prefix_cache import PrefixCache
from robobrain_ros.engines.local.processor import Encoder
from robobrain_ros.engines.local.qwen_language import LanguageModel
from robobrain_ros.engines.local.sequence import Writing
from robobrain_ros.engines.local.speculative import Drafter

_WARM_UP_SIDE = 112  # pixels
_WARM_UP_ROWS = (1, 2)  # pairs of answers at a time
# Prompts of up to this many new tokens are read with the answers in progress, which are filled up
# to their length: that costs less than a forward pass of their own.
_FEW_WORDS = 24
# Tokens of all answers that a step reads in about the time that one takes. bitsandbytes' kernel for
# packed weights takes up to four on every GPU; beyond, on a Jetson, it unpacks them first.
_FEW_TOKENS, _FEW_TOKENS_PACKED = 16, 4


@dataclass(frozen=True)
class Options:
    """grammar: whether answers are held to their form. cache_bytes: what may be kept of images.
    progress: told a line per step of loading, and what doesn't work as it should.
    """

    grammar: bool
    cache_bytes: int
    progress: Callable[[str], None]


def load_transformers_engine(
    model: str,
    *,
    quantization: str,
    device: str,
    precision: str,
    max_pixels: int,
    family: str,
    options: Options,
) -> TransformersEngine:
    """Find, check, load and try a model; see `engines.create_engine`. Raises LoadError."""
    progress = options.progress
    directory = find_checkpoint(model, progress)
    checkpoint = check_checkpoint(directory, model, family, progress)
    placement = choose_placement(checkpoint, quantization, device, precision, progress)
    try:
        encoder = Encoder(directory, max_pixels)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise load_failure(checkpoint, error) from error
    if encoder.factor != checkpoint.family.patch_factor:
        raise LoadError(
            f"The image processor in {directory} makes tokens of {encoder.factor} pixels and a "
            f"{checkpoint.model_type} model needs {checkpoint.family.patch_factor}: get its "
            "preprocessor_config.json again."
        )
    progress(f"loading {checkpoint.weight_bytes / 1e6:.1f} MB of weights as {placement}")
    weights = load_model(checkpoint, placement)
    engine = TransformersEngine(checkpoint, placement, encoder, weights, options)
    progress("warming up")
    try:
        engine.warm_up()
    except EngineError as error:
        engine.close()
        raise LoadError(
            f"The model in {directory} was loaded but can't answer (without quantization it may): "
            f"{error}"
        ) from error
    return engine


class TransformersEngine:
    """A model and its encoder, writing several answers at a time. See `base.Engine`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        placement: Placement,
        encoder: Encoder,
        model: PreTrainedModel,
        options: Options,
    ) -> None:
        self.family = checkpoint.family
        self.memory_bytes = stored_bytes(model)
        self.description = (
            f"{checkpoint.directory.name} ({checkpoint.parameters / 1e6:.1f} M parameters, family "
            f"{self.family.name}), {placement}, {self.memory_bytes / 1e6:.1f} MB"
        )
        self._encoder = encoder
        self._device = placement.device
        self._end_ids = _end_ids(model, encoder)
        self._max_tokens = int(model.config.text_config.max_position_embeddings)
        self._grammar = _grammar(model, encoder, self._end_ids) if options.grammar else None
        self._drafter = Drafter.of(encoder.tokenizer) if options.grammar else None
        packed = placement.quantization == "nf4" or checkpoint.quantized_as is not None
        on_cuda = placement.device.type == "cuda"
        self._few_tokens = _FEW_TOKENS_PACKED if packed and on_cuda else _FEW_TOKENS
        self._prefixes = PrefixCache(options.cache_bytes)
        self._parts: _Parts | None = _Parts.of(model, encoder, self._prefixes, options.progress)
        self._writings: list[Writing] = []  # each at the index of its row
        self._ended: list[Writing] = []

    def warm_up(self) -> None:
        """Answer a grey image, alone and several times at once: what can't run fails now, and
        what is slow the first time isn't later. Raises EngineError.
        """
        image = np.full((_WARM_UP_SIDE, _WARM_UP_SIDE, 3), 128, np.uint8)
        opening = self.family.openings[Think.DEFAULT]
        form = answer_format(TaskKind.POINT, self.family, 1)
        for together in _WARM_UP_ROWS:
            for _ in range(together):
                self.start(GenerationRequest(image, "the cup", opening, 8, form))
                self.start(GenerationRequest(image, "the cup", opening, 2))
            while self._writings or self._ended:
                for _, outcome in self.step():
                    if isinstance(outcome, EngineError):
                        raise outcome
        self.forget()

    def start(self, request: GenerationRequest) -> Writing:
        """Begin an answer; see `base.Engine.start`."""
        error: EngineError
        try:
            with torch.inference_mode():
                return self._start(request)
        except (RuntimeError, MemoryError) as failure:
            error = self._typed(failure)
        # Outside the handler: until it ends, the failure's frames hold the tensors to be freed.
        if isinstance(error, EngineOutOfMemory):
            self._prefixes.clear()
            free_caches()
        raise error

    def step(self) -> list[tuple[object, Generation | EngineError]]:
        """Carry all answers on; see `base.Engine.step`."""
        outcomes: list[tuple[object, Generation | EngineError]] = []
        error: EngineError | None = None
        try:
            with torch.inference_mode():
                self._advance()
        # Whatever it is: it ends those in progress, and the next ones are served.
        except Exception as failure:  # noqa: BLE001
            error = self._typed(failure)
        if error is not None:
            outcomes += [(writing, error) for writing in self._writings]
            self._writings.clear()
            self.forget()
            free_caches()
        outcomes += [(writing, writing.generation()) for writing in self._ended]
        self._ended.clear()
        return outcomes

    def memory(self) -> Memory:
        """Tell where the memory is; see `base.Engine.memory`."""
        answers = 0 if self._parts is None else self._parts.rows.nbytes
        return Memory(self.memory_bytes, self._prefixes.nbytes, answers, free_bytes(self._device))

    def forget(self) -> None:
        """Let go of what is held of images; see `base.Engine.forget`."""
        self._prefixes.clear()
        if self._parts is not None and not self._writings:
            self._parts.rows.free()

    def close(self) -> None:
        """Free the model; see `base.Engine.close`."""
        self._writings.clear()
        self._ended.clear()
        self._parts = None
        self.forget()
        free_caches()

    def _start(self, request: GenerationRequest) -> Writing:
        parts = self._parts
        if parts is None:
            raise EngineUnavailable("The model has been unloaded: configure the node again.")
        started = time.monotonic()
        if request.report is not None:
            request.report(Stage.PREPROCESSING, "", 0)
        prompt = parts.reader.prompt(request)
        self._check_length(prompt, request)
        self._check_memory(parts, prompt, request)
        constraint = None
        if self._grammar is not None and request.form is not None:
            constraint = self._grammar.constrain(request.form, prompt.sent_size, request.opening)
        drafter = self._drafter if request.form and Drafter.knows(request.form) else None
        writing = Writing(
            request, prompt, constraint, self._encoder, self._end_ids, started, drafter
        )
        if request.stop():
            writing.finish = FinishReason.STOPPED
            self._ended.append(writing)
        else:
            self._read(parts, writing)
        return writing

    def _read(self, parts: _Parts, writing: Writing) -> None:
        """Give a new answer a row, read its prompt and choose its first token.

        A few words about an image that is known are read in the next step, with the others'.
        """
        writing.tell(Stage.PREFILL)
        prompt, opening = writing.prompt, writing.open()
        known = prompt.prefix
        length = prompt.length + len(opening)
        row = parts.rows.add(None if known is None else known.keys_values, length)
        if known is not None and length - prompt.cached <= _FEW_WORDS:
            writing.begin(known, opening)
            self._writings.append(writing)
            return
        try:
            scores, offset = parts.reader.read(prompt, opening, parts.rows, row)
        except BaseException:
            parts.rows.remove(row)
            raise
        writing.placed(offset)
        self._writings.append(writing)
        self._choose([writing], scores[None])
        self._collect(parts)

    def _advance(self) -> None:
        """Feed every answer's new tokens and choose its next one."""
        parts = self._parts
        for writing in self._writings:
            if writing.request.stop():
                writing.finish = FinishReason.STOPPED
        if parts is None or not self._collect(parts):
            return
        writings = self._writings
        self._draft()
        tokens = [[*writing.pending, *writing.drafted] for writing in writings]
        filled = [writing.filled for writing in writings]
        parts.rows.reserve(len(writings), max(filled) + max(map(len, tokens)))
        offsets = [writing.offset for writing in writings]
        asked = [1 + len(writing.drafted) for writing in writings]
        self._choose(writings, parts.step(Step.of(tokens, filled, offsets, asked)))
        self._collect(parts)

    def _draft(self) -> None:
        """Let answers guess on, as far as a step of so many tokens takes hardly longer."""
        widest = max(len(writing.pending) for writing in self._writings)
        room = max(self._few_tokens // len(self._writings), widest)
        for writing in self._writings:
            writing.draft(room - len(writing.pending))

    def _choose(self, writings: list[Writing], scores: torch.Tensor) -> None:
        """Write each answer's likeliest next tokens; scores: (B, W, V)."""
        for writing, of_one in zip(writings, scores, strict=True):
            writing.restrict(of_one[0])
        likeliest = scores[:, 0].argmax(-1).tolist()
        for writing, token, of_one in zip(writings, likeliest, scores, strict=True):
            writing.go_on(token, of_one)

    def _collect(self, parts: _Parts) -> int:
        """Take the answers that ended out of their rows; returns how many go on."""
        for row in reversed(range(len(self._writings))):
            if self._writings[row].finish is not None:
                parts.rows.remove(row)
                self._ended.append(self._writings[row])
                self._writings[row] = self._writings[-1]
                self._writings.pop()
        return len(self._writings)

    def _check_length(self, prompt: Prompt, request: GenerationRequest) -> None:
        if prompt.length + request.max_new_tokens > self._max_tokens:
            raise EngineError(
                f"The request is {prompt.length} tokens long and asks for up to "
                f"{request.max_new_tokens} more, and the model can hold {self._max_tokens}: "
                "shorten the text, lower max_pixels or max_new_tokens."
            )

    def _check_memory(self, parts: _Parts, prompt: Prompt, request: GenerationRequest) -> None:
        """Refuse a request that won't fit before it runs. Raises EngineOutOfMemory."""
        tokens = prompt.length + request.max_new_tokens
        most = max([tokens, *(writing.most_tokens for writing in self._writings)])
        rows, columns = parts.rows.shape_for(len(self._writings) + 1, most)
        # Old and new rows are there together while they grow.
        grown = rows * columns * parts.language.column_bytes
        need = (grown if grown > parts.rows.nbytes else 0) + parts.reader.reading_bytes(prompt)
        if need > USABLE * (free := free_bytes(self._device)):
            raise EngineOutOfMemory(
                f"This request ({prompt.length} tokens, up to {request.max_new_tokens} more) needs "
                f"about {need / 1e6:.0f} MB and {free / 1e6:.0f} MB are free: lower max_pixels, "
                "max_new_tokens or max_batch, choose a stronger quantization, or free memory."
            )

    def _typed(self, failure: BaseException) -> EngineError:
        """Say what a failure of torch means for the request."""
        if is_out_of_memory(failure):
            return EngineOutOfMemory(
                f"This request needs more memory than {self._device} has left: lower max_pixels "
                "or max_batch, choose a stronger quantization, or free memory."
            )
        error = EngineUnavailable(
            f"The model failed ({first_line(failure)}): ask again, and configure the node again "
            "if that does not help."
        )
        error.__cause__ = failure
        return error


@dataclass(frozen=True, eq=False)
class _Parts:
    """What lives as long as the model does."""

    model: PreTrainedModel
    language: LanguageModel
    rows: Rows
    reader: Reader
    step: Callable[[Step], torch.Tensor]

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        encoder: Encoder,
        prefixes: PrefixCache,
        progress: Callable[[str], None],
    ) -> _Parts:
        language = LanguageModel(model)
        lay_out(model)
        rows = Rows(language)
        reader = Reader(model, encoder, language, prefixes)
        if language.device.type == "cuda":
            return cls(model, language, rows, reader, GraphStepper(language, rows, progress))
        return cls(model, language, rows, reader, partial(plain_step, language, rows))


def _grammar(model: PreTrainedModel, encoder: Encoder, end_ids: frozenset[int]) -> Grammar:
    return Grammar(encoder.tokenizer, int(model.config.text_config.vocab_size), end_ids)


def _end_ids(model: PreTrainedModel, encoder: Encoder) -> frozenset[int]:
    """Token ids that end an answer, by the generation config and the tokenizer.

    The rest of a checkpoint's generation config (sampling, a repetition penalty that shifts digits)
    is for chat and does not apply here.
    """
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*ids, encoder.tokenizer.eos_token_id) if i is not None)
