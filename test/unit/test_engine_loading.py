# SPDX-License-Identifier: Apache-2.0
"""Whatever is wrong with a checkpoint, the hub or the settings becomes one sentence."""

import json
import shutil
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from support import tiny_checkpoints  # noqa: E402

from robobrain_ros.engines.base import LoadError  # noqa: E402
from robobrain_ros.engines.config import EngineConfig  # noqa: E402
from robobrain_ros.engines.local import checkpoint as checkpoint_module  # noqa: E402
from robobrain_ros.engines.local import loading  # noqa: E402
from robobrain_ros.engines.local.engine import load_local_engine  # noqa: E402

pytestmark = pytest.mark.slow  # runs models


def load(model, **settings):
    """Load a directory, or what has that name."""
    return load_local_engine(EngineConfig(str(model), **{"device": "cpu"} | settings))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint that loads."""
    root = tmp_path_factory.mktemp("models")
    return tiny_checkpoints.save_qwen2_5_vl(root / "RoboBrain2.0-3B")


@pytest.fixture
def broken(whole, tmp_path):
    """A copy of it to break."""
    return shutil.copytree(whole, tmp_path / "RoboBrain2.0-3B")


def edit_json(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def rename_weights(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def cut_weights(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def cut_header(directory):
    (directory / "model.safetensors").write_bytes(b"\x10\x00\x00")


def garble_header(directory):
    (directory / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"{{{{")


def drop_a_tensor(directory):
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def index_without_shard(directory):
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


BREAKAGES = {
    "wrong architecture": (
        lambda d: edit_json(d / "config.json", model_type="llava"),
        '"llava" is not supported',
    ),
    "no architecture": (lambda d: (d / "config.json").write_text("{}"), "is not supported"),
    "broken JSON": (
        lambda d: (d / "config.json").write_text('{"model_type":'),
        "can't be read as JSON",
    ),
    "JSON of another kind": (lambda d: (d / "config.json").write_text("[]"), "JSON object"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json is missing"),
    "pickled weights": (rename_weights, "not safetensors.*pytorch_model.bin"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no weights"),
    "cut off": (cut_weights, "cut off or damaged"),
    "cut in the header": (cut_header, "cut off or damaged"),
    "garbled header": (garble_header, "cut off or damaged"),
    "a tensor missing": (drop_a_tensor, "lack 1 tensors"),
    "a shard missing": (index_without_shard, "model-00001-of-00001.safetensors is missing"),
    "no tokenizer": (
        lambda d: [(d / name).unlink() for name in ("tokenizer.json", "vocab.json")],
        "vocab.json is missing",
    ),
    "no image processor": (
        lambda d: (d / "preprocessor_config.json").unlink(),
        "preprocessor_config.json is missing",
    ),
    "another model's image processor": (
        lambda d: edit_json(d / "preprocessor_config.json", patch_size=16),
        "preprocessor_config.json again",
    ),
    "no chat template": (lambda d: (d / "chat_template.json").unlink(), "no chat template"),
    "broken tokenizer": (lambda d: (d / "tokenizer.json").write_text("{"), "can't be loaded"),
    "weights of another size": (
        lambda d: edit_json(
            d / "config.json",
            text_config=json.loads((d / "config.json").read_text())["text_config"]
            | {"intermediate_size": 64},
        ),
        "can't be loaded",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_broken_checkpoints(broken, breakage):
    break_it, message = BREAKAGES[breakage]
    break_it(broken)
    with pytest.raises(LoadError, match=message) as caught:
        load(broken)
    assert "\n" not in str(caught.value)


def test_a_sharded_checkpoint_loads(broken):
    model = transformers.AutoModelForImageTextToText.from_pretrained(broken)
    (broken / "model.safetensors").unlink()
    model.save_pretrained(broken, max_shard_size="500KB")
    assert (broken / "model.safetensors.index.json").is_file()
    load(broken).close()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux' /proc")
def test_weights_are_not_left_in_the_mapped_file(broken):
    """A file cut off under a running model ended the process with SIGBUS."""
    engine = load(broken, precision="float32")
    try:
        weights = str(broken / "model.safetensors")
        assert weights not in Path("/proc/self/maps").read_text()
    finally:
        engine.close()


def test_a_directory_without_a_telling_name_needs_a_family(broken, tmp_path):
    renamed = broken.rename(tmp_path / "weights")
    with pytest.raises(LoadError, match="set the family to one of robobrain2, robobrain2_3b"):
        load(renamed)
    engine = load(renamed, family="robobrain2")
    assert engine.capabilities.family.name == "robobrain2"
    engine.close()
    edit_json(renamed / "config.json", robobrain_family="robobrain2_3b")
    engine = load(renamed)
    assert engine.capabilities.family.name == "robobrain2_3b"
    engine.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int3"}, "choose auto, none, int8 or nf4"),
        ({"device": "tpu"}, "choose auto, cuda or cpu"),
        ({"max_pixels": 100}, "784 at least"),
        ({"family": "robobrain9"}, "choose one of"),
    ],
)
def test_impossible_options(whole, options, message):
    with pytest.raises(LoadError, match=message):
        load(whole, **options)


def test_cuda_without_a_gpu(whole, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LoadError, match="no usable CUDA GPU"):
        load(whole, device="cuda")
    engine = load(whole, device="auto")
    assert "CPU" in engine.description
    engine.close()


def test_quantization_without_bitsandbytes(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(LoadError, match="needs bitsandbytes"):
        load(whole, quantization="nf4")


def test_quantizing_a_quantized_checkpoint(broken):
    edit_json(broken / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(LoadError, match=r"already \(awq\)"):
        load(broken, quantization="nf4")


@pytest.fixture
def cuda(monkeypatch):
    """A machine that seems to have a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


def automatic(whole, device="auto", told=print, **values):
    """The quantization that is chosen for a model of 3 G parameters, with `values` set."""
    checkpoint = checkpoint_module.check_checkpoint(whole, str(whole), "auto", lambda _: None)
    checkpoint = replace(checkpoint, **{"parameters": 3_000_000_000} | values)
    config = EngineConfig(str(whole), quantization="auto", device=device)
    return loading.choose_placement(checkpoint, config, told).quantization


def test_automatic_quantization_is_for_large_models_on_a_gpu(whole, cuda, monkeypatch):
    monkeypatch.setattr(loading, "nf4_works", lambda device, _: device.type == "cuda")
    assert automatic(whole) == automatic(whole, "cuda") == "nf4"
    assert automatic(whole, "cpu") == "none"
    assert automatic(whole, parameters=4_000_000) == "none"
    assert automatic(whole, quantized_as="awq") == "none"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert automatic(whole) == "none"


def test_automatic_quantization_where_bitsandbytes_does_not_work(whole, cuda, monkeypatch):
    told = []
    monkeypatch.setattr(loading, "NF4_TRIAL", "raise RuntimeError('named symbol not found')")
    assert automatic(whole, told=told.append) == "none"
    (line,) = told
    assert "bitsandbytes does not work here (RuntimeError: named symbol not found)" in line


def test_bitsandbytes_that_ends_its_process_or_hangs_is_survived(monkeypatch):
    told = []
    monkeypatch.setattr(loading, "NF4_TRIAL", "import os; os._exit(3)")
    assert not loading.nf4_works(torch.device("cpu"), told.append)
    monkeypatch.setattr(loading, "NF4_TRIAL", "import time; time.sleep(60)")
    monkeypatch.setattr(loading, "NF4_TRIAL_S", 0.5)
    assert not loading.nf4_works(torch.device("cpu"), told.append)
    assert "exit status 3" in told[0] and "timed out" in told[1]


def test_where_bitsandbytes_works_it_is_found_to():
    pytest.importorskip("bitsandbytes")
    told = []
    assert loading.nf4_works(torch.device("cpu"), told.append), told


def test_automatic_quantization_loads_without_a_gpu(whole):
    engine = load(whole, quantization="auto")
    assert "float32 on CPU" in engine.description
    engine.close()


def test_memory_that_ends_while_loading(whole, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", fail)
    with pytest.raises(LoadError, match="not enough memory") as caught:
        load(whole)
    assert caught.value.__context__ is None


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    for name in (str(tmp_path / "missing"), "models/best/one", "BAAI/a..b", "best", ""):
        with pytest.raises(LoadError, match="There is no directory"):
            load(name)
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(LoadError, match="is a file"):
        load(str(file))
    monkeypatch.setattr(checkpoint_module, "NANO_DIRECTORY", tmp_path)
    with pytest.raises(LoadError, match="make nano"):
        load("nano")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Point the hub client at an address and an empty cache; returns the function that does."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def use(address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        return tmp_path / "hub"

    return use


@pytest.fixture
def hub_server():
    """A hub whose answer to everything is (status, headers, body), set by the test."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = self.server.answer
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_that_cannot_be_reached(hub):
    hub("http://127.0.0.1:9")
    with pytest.raises(LoadError, match=r"Can't get BAAI/RoboBrain2\.0-3B from the hub"):
        load("BAAI/RoboBrain2.0-3B")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "knows no model"),
        (403, "GatedRepo", "accept them"),
        (500, "", "Can't get"),
    ],
)
def test_a_hub_that_refuses(hub, hub_server, status, code, message):
    hub(f"http://127.0.0.1:{hub_server.server_port}")
    hub_server.answer = (status, {"X-Error-Code": code}, b"{}")
    with pytest.raises(LoadError, match=message):
        load("BAAI/RoboBrain2.0-3B")


def test_a_hub_model_without_safetensors(hub, hub_server):
    hub(f"http://127.0.0.1:{hub_server.server_port}")
    files = [{"rfilename": name} for name in ("config.json", "pytorch_model.bin")]
    listing = {"id": "a/RoboBrain", "sha": "0" * 40, "siblings": files}
    hub_server.answer = (200, {"Content-Type": "application/json"}, json.dumps(listing).encode())
    with pytest.raises(LoadError, match="no safetensors"):
        load("a/RoboBrain")


def test_a_local_copy_of_a_hub_model_needs_no_network(hub, whole):
    cache = hub("http://127.0.0.1:9") / "models--BAAI--RoboBrain2.0-3B"
    revision = "0" * 40
    shutil.copytree(whole, cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(revision)
    engine = load("BAAI/RoboBrain2.0-3B")
    assert engine.capabilities.family.name == "robobrain2_3b"
    engine.close()
    (cache / "snapshots" / revision / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="from the hub"):
        load("BAAI/RoboBrain2.0-3B")
