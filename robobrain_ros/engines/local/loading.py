# SPDX-License-Identifier: Apache-2.0
"""Load a checked checkpoint with transformers: device, precision, quantization."""

import ctypes
import gc
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from robobrain_ros.engines.base import (
    EngineError,
    EngineOutOfMemory,
    EngineUnavailable,
    LoadError,
    Progress,
)
from robobrain_ros.engines.config import EngineConfig
from robobrain_ros.engines.local.checkpoint import Checkpoint, first_line
from robobrain_ros.engines.local.processor import Processor
from robobrain_ros.engines.local.stepwise import StepwiseEngine

# The vision tower's widths don't fit nf4's kernels, and it is small beside the language model.
NOT_QUANTIZED = ["model.visual", "lm_head"]
# A model up to this size is not worth quantizing, and decodes faster in float32 on a CPU; for
# larger ones bfloat16 halves the memory and, where the CPU multiplies it natively, the time.
_SMALL_PARAMETERS = 50_000_000
# In a process of its own: where its kernels don't support the GPU, bitsandbytes ends the process.
NF4_TRIAL = """
import sys, torch, bitsandbytes
layer = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float16, quant_type="nf4")
layer.to(sys.argv[1])(torch.ones(1, 64, dtype=torch.float16, device=sys.argv[1])).sum().item()
"""
NF4_TRIAL_S = 120.0
_PRECISIONS = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# They log every int8 matrix product's cast, and an optional kernel that is not installed.
_NOISY_LOGGERS = ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops")
_TRANSFORMERS_FAILURES = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    KeyError,
    TypeError,
    AttributeError,
    SafetensorError,
)


@dataclass(frozen=True)
class Placement:
    """Device and precision that a model runs in."""

    device: torch.device
    dtype: torch.dtype  # of what is not quantized, and of activations
    quantization: str

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        dtype = str(self.dtype).removeprefix("torch.")
        weights = dtype if self.quantization == "none" else f"{self.quantization} with {dtype}"
        return f"{weights} on {name}"


def choose_placement(checkpoint: Checkpoint, config: EngineConfig, progress: Progress) -> Placement:
    """Choose device, precision and quantization. Raises LoadError for what this machine can't do.

    The quantization `auto` is nf4 on CUDA, but none for a small model, for one that is quantized
    already, and where bitsandbytes doesn't work, which `progress` is told.
    """
    quantization, device, precision = config.quantization, config.device, config.precision
    if precision not in _PRECISIONS:
        choices = ", ".join(_PRECISIONS)
        raise LoadError(f'There is no precision "{precision}": choose one of {choices}.')
    if quantization not in ("auto", "none"):
        _check_quantization(checkpoint, quantization)
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise LoadError(
            "There is no usable CUDA GPU (or this torch was built without CUDA): set the device to "
            "auto or cpu."
        )
    if device not in ("auto", "cuda", "cpu"):
        raise LoadError(f'There is no device "{device}": choose auto, cuda or cpu.')
    small = checkpoint.parameters <= _SMALL_PARAMETERS
    on_cuda = device != "cpu" and has_cuda
    if on_cuda:
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if has_bfloat16 else torch.float16
        where = torch.device("cuda", torch.cuda.current_device())
    else:
        dtype = torch.float32 if small else torch.bfloat16
        where = torch.device("cpu")
    if quantization == "auto":
        worthwhile = on_cuda and not small and checkpoint.quantized_as is None
        quantization = "nf4" if worthwhile and nf4_works(where, progress) else "none"
    return Placement(where, _PRECISIONS[precision] or dtype, quantization)


def nf4_works(device: torch.device, progress: Progress) -> bool:
    """Whether bitsandbytes works on `device`; `progress` is told why it doesn't."""
    command = [sys.executable, "-c", NF4_TRIAL, str(device)]
    try:
        trial = subprocess.run(command, capture_output=True, text=True, timeout=NF4_TRIAL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = first_line(error)
    else:
        if trial.returncode == 0:
            _silence_libraries()
            return True
        reason = (trial.stderr.strip() or f"exit status {trial.returncode}").splitlines()[-1][:200]
    progress(f"not quantizing, because bitsandbytes does not work here ({reason})")
    return False


def load_processor(checkpoint: Checkpoint, max_pixels: int) -> Processor:
    """Load a Qwen-VL model's tokenizer and image processor. Raises LoadError."""
    try:
        processor = Processor(checkpoint.directory, max_pixels)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise load_failure(checkpoint, error) from error
    if processor.factor != checkpoint.family.patch_factor:
        raise LoadError(
            f"The image processor in {checkpoint.directory} makes tokens of {processor.factor} "
            f"pixels and a {checkpoint.model_type} model needs {checkpoint.family.patch_factor}: "
            "get its preprocessor_config.json again."
        )
    return processor


def end_token_ids(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """Token ids that end an answer, by the generation config and the tokenizer.

    The rest of a checkpoint's generation config (sampling, a repetition penalty that shifts digits)
    is for chat and does not apply here.
    """
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)


def load_model(checkpoint: Checkpoint, placement: Placement) -> PreTrainedModel:
    """Load the weights, ready for inference. Raises LoadError."""
    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {}
    if placement.quantization != "none":
        options["quantization_config"] = quantization_config(placement)
    if placement.quantization != "none" or placement.device.type == "cuda":
        options["device_map"] = {"": placement.device}
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            checkpoint.directory,
            dtype=placement.dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except _TRANSFORMERS_FAILURES as error:
        if not is_out_of_memory(error):
            raise load_failure(checkpoint, error) from error
    else:
        model, report = loaded
        return _complete(checkpoint, model, report["missing_keys"])
    # Outside the handler: within it, the error's frames hold the half-loaded model.
    free_caches()
    raise LoadError(
        f"There is not enough memory for the model in {checkpoint.directory} "
        f"({checkpoint.weight_bytes / 1e9:.1f} GB of weights): choose the quantization nf4, a "
        "smaller model, or free memory."
    )


def _complete(
    checkpoint: Checkpoint, model: PreTrainedModel, missing_keys: Iterable[str]
) -> PreTrainedModel:
    """Prepare a loaded model for inference. Raises LoadError when weights are missing."""
    # Transformers initializes missing weights at random and goes on.
    if missing := sorted(missing_keys):
        raise LoadError(
            f"The weights in {checkpoint.directory} lack {len(missing)} tensors that config.json "
            f"asks for (such as {missing[0]}): get the model again."
        )
    model.eval()
    _copy_mapped_weights(model)
    return model


def _copy_mapped_weights(model: PreTrainedModel) -> None:
    """Copy weights out of the memory-mapped checkpoint.

    If the file were truncated while the model answers, the process would end with SIGBUS; if it
    were overwritten, so would the weights be.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def try_out(engine: StepwiseEngine, checkpoint: Checkpoint, answer: Callable[[], object]) -> None:
    """Have a loaded engine answer once; LoadError, and the engine closed, if it can't."""
    try:
        answer()
    except EngineError as error:
        engine.close()
        raise LoadError(
            f"The model in {checkpoint.directory} was loaded but can't answer (without "
            f"quantization it may): {error}"
        ) from error


def load_failure(checkpoint: Checkpoint, error: BaseException) -> LoadError:
    """The LoadError for an error of transformers, torch or bitsandbytes."""
    return LoadError(
        f"The model in {checkpoint.directory} can't be loaded ({first_line(error)}): check that "
        "its files belong together, and the versions of transformers and torch."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on any device."""
    message = str(error).lower()
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in message
        or "can't allocate memory" in message
    )


def free_caches() -> None:
    """Return unreferenced memory to the operating system and the device."""
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if malloc_trim is not None:
        malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def typed_failure(failure: BaseException, device: torch.device) -> EngineError:
    """The EngineError for a failure while a model runs."""
    if is_out_of_memory(failure):
        return EngineOutOfMemory(
            f"This request needs more memory than {device} has left: lower max_pixels "
            "or max_batch, choose a stronger quantization, or free memory."
        )
    error = EngineUnavailable(
        f"The model failed ({first_line(failure)}): ask again, and configure the node again "
        "if that does not help."
    )
    error.__cause__ = failure
    return error


def _check_quantization(checkpoint: Checkpoint, quantization: str) -> None:
    if quantization not in ("int8", "nf4"):
        raise LoadError(
            f'There is no quantization "{quantization}": choose auto, none, int8 or nf4.'
        )
    if checkpoint.quantized_as is not None:
        raise LoadError(
            f"The model in {checkpoint.directory} is quantized already "
            f"({checkpoint.quantized_as}): set the quantization to auto or none."
        )
    _silence_libraries()
    try:
        import bitsandbytes  # noqa: F401  only to learn whether it works here
    except (ImportError, OSError, RuntimeError) as error:
        raise LoadError(
            f"The quantization {quantization} needs bitsandbytes, which does not work here "
            f"({first_line(error)}): install it, or set the quantization to none."
        ) from error


def _silence_libraries() -> None:
    for module in _NOISY_LOGGERS:
        logging.getLogger(module).setLevel(logging.ERROR)


def quantization_config(placement: Placement) -> BitsAndBytesConfig:
    """Settings for bitsandbytes to quantize the language layers."""
    if placement.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=NOT_QUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=placement.dtype,
        llm_int8_skip_modules=NOT_QUANTIZED,
    )
