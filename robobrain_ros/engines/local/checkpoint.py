# SPDX-License-Identifier: Apache-2.0
"""Find a model's files and check them before anything is loaded. No torch.

A checkpoint is a directory in the layout of Hugging Face: config.json, safetensors weights (one
file or shards with an index), a tokenizer and an image processor's configuration.
"""

import json
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from robobrain_ros.core.families import MODEL_TYPES, Family, UnknownFamily, detect_family
from robobrain_ros.engines.base import LoadError, Progress, UnsupportedArchitecture

NANO = "nano"
NANO_DIRECTORY = Path(__file__).resolve().parents[2] / "nano" / "model"
HUB_TIMEOUT_S = 10.0

_HUB_ID = re.compile(r"\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?", re.ASCII)
_HUB_FILES = re.compile(r"[^/]+\.(?:json|safetensors|jinja)|merges\.txt")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_UNSAFE_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf")


@dataclass(frozen=True)
class Checkpoint:
    """A directory of checked files, and what they say. quantized_as: the method, or None."""

    directory: Path
    family: Family
    model_type: str
    parameters: int
    weight_bytes: int
    quantized_as: str | None

    def described(self, placement: object, nbytes: int) -> str:
        """A line for the log about the loaded model; nbytes: of the weights in memory."""
        return (
            f"{self.directory.name} ({self.parameters / 1e6:.1f} M parameters, family "
            f"{self.family.name}), {placement}, {nbytes / 1e6:.1f} MB"
        )


def find_checkpoint(model: str, progress: Progress) -> Path:
    """The directory of `model`: "nano", a path, or a hub id (the local copy, else a download).

    Raises LoadError when there is none.
    """
    if model == NANO:
        if not (NANO_DIRECTORY / "config.json").is_file():
            raise LoadError(
                f"The nano model is missing from this installation ({NANO_DIRECTORY}): "
                "install the package again, or train it with `make nano`."
            )
        return NANO_DIRECTORY
    path = Path(model).expanduser()
    if model and path.is_dir():
        return path
    if path.is_file():
        raise LoadError(f'"{model}" is a file: name the directory that holds the model.')
    if not _HUB_ID.fullmatch(model) or ".." in model or "--" in model:
        raise LoadError(
            f'There is no directory "{model}": name an existing one, a hub id such as '
            "BAAI/RoboBrain2.0-3B, or nano."
        )
    return _from_hub(model, progress)


def check_checkpoint(directory: Path, model: str, family: str, progress: Progress) -> Checkpoint:
    """Check that every file is there and complete, and find the model's family.

    model: the name that the user gave, from which the family may follow. family: a family's name
    or "auto". Raises LoadError.
    """
    progress(f"checking the files in {directory}")
    config = _read_json(directory / "config.json")
    model_type = str(config.get("model_type"))
    chosen = str(config.get("robobrain_family", family)) if family == "auto" else family
    text_config = config.get("text_config")
    hidden_size = (text_config if isinstance(text_config, dict) else config).get("hidden_size")
    try:
        known = detect_family(model_type, model, hidden_size, chosen)
    except UnknownFamily as error:
        raise LoadError(f"Can't use the model in {directory}: {error}.") from error
    _check_companions(directory)
    shapes: dict[str, int] = {}
    weight_files = _weight_files(directory)
    for file in weight_files:
        shapes |= _check_safetensors(file)
    quantization = config.get("quantization_config")
    return Checkpoint(
        directory=directory,
        family=known,
        model_type=model_type,
        parameters=sum(shapes.values()),
        weight_bytes=sum(file.stat().st_size for file in weight_files),
        quantized_as=quantization.get("quant_method") if isinstance(quantization, dict) else None,
    )


def check_local_support(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedArchitecture for a model type that the local engine doesn't implement."""
    if checkpoint.model_type not in MODEL_TYPES:
        raise UnsupportedArchitecture(
            f'The local engine does not implement models of type "{checkpoint.model_type}".'
        )


def _from_hub(model: str, progress: Progress) -> Path:
    """The local copy if it is complete, without network access; else a download."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        local = Path(snapshot_download(model, local_files_only=True))
        _weight_files(local)
        _check_companions(local)
        return local
    except (LocalEntryNotFoundError, LoadError):
        return _download(model, progress)


def _download(model: str, progress: Progress) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # useless in a log
    progress(f"asking the hub for {model}")
    try:
        info = HfApi().model_info(model, files_metadata=True, timeout=HUB_TIMEOUT_S)
        files = [file for file in info.siblings or [] if _HUB_FILES.fullmatch(file.rfilename)]
        if not any(file.rfilename.endswith(".safetensors") for file in files):
            raise LoadError(f"The hub's {model} has no safetensors weights: choose another model.")
        for number, file in enumerate(files, 1):
            size = f"{(file.size or 0) / 1e6:.1f} MB"
            progress(f"downloading {number}/{len(files)}: {file.rfilename} ({size})")
            local = hf_hub_download(model, file.rfilename, revision=info.sha)
    except GatedRepoError as error:
        raise LoadError(
            f"The hub gives {model} only to those who accepted its terms: accept them on its page "
            "and set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise LoadError(
            f"The hub knows no model {model}, or hides it: check the spelling, or set HF_TOKEN if "
            "it is private."
        ) from error
    except _http_errors(HfHubHTTPError) as error:
        raise LoadError(
            f"Can't get {model} from the hub ({first_line(error)}): check the network, or name a "
            "directory that holds the model."
        ) from error
    return Path(local).parent


def _http_errors(hub_error: type[Exception]) -> tuple[type[Exception], ...]:
    """Exceptions of the hub client: its own, and the base that its HTTP library defines.

    Which library that is depends on the version.
    """
    return (OSError, *(base for base in hub_error.__bases__ if issubclass(base, Exception)))


def _check_companions(directory: Path) -> None:
    """Raise LoadError when the tokenizer or the image processor's configuration is missing."""
    if not (directory / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            _require(directory / name)
    if not (directory / "processor_config.json").is_file():
        _require(directory / "preprocessor_config.json")


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors files that hold the weights, all of them present."""
    if (directory / _SINGLE).is_file():
        return [directory / _SINGLE]
    if (directory / _INDEX).is_file():
        shards = _read_json(directory / _INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise LoadError(f"{directory / _INDEX} names no weight files: get the model again.")
        files = sorted({directory / str(name) for name in shards.values()})
        for file in files:
            _require(file)
        return files
    unsafe = [file.name for pattern in _UNSAFE_WEIGHTS for file in directory.glob(pattern)]
    if unsafe:
        raise LoadError(
            f"The weights in {directory} are not safetensors ({unsafe[0]}), and other formats may "
            "run code when they are loaded: convert them, or get the model in safetensors."
        )
    raise LoadError(f"There are no weights in {directory} ({_SINGLE}): get the model again.")


def _check_safetensors(file: Path) -> dict[str, int]:
    """Number of elements per tensor; opening checks the header and the file's length."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            names = tensors.keys()
            return {name: prod(tensors.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise LoadError(
            f"{file} is cut off or damaged: delete it and get the model again."
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    _require(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{file} can't be read as JSON ({first_line(error)}): get the model again."
        ) from error
    if not isinstance(content, dict):
        raise LoadError(f"{file} does not hold a JSON object: get the model again.")
    return content


def _require(file: Path) -> None:
    if not file.is_file():
        raise LoadError(
            f"{file.name} is missing from {file.parent}: get the model again, or name the "
            "directory that holds it."
        )


def first_line(error: BaseException) -> str:
    """Shorten a library's error message to fit into a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
