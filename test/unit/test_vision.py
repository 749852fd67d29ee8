# SPDX-License-Identifier: Apache-2.0
"""Patches and features of images, compared with transformers' processor and vision tower."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from PIL import Image  # noqa: E402
from support import tiny_checkpoints  # noqa: E402

from robobrain_ros.engines.local import onednn_linear as products  # noqa: E402
from robobrain_ros.engines.local.image_patches import PatchExtractor, resize  # noqa: E402
from robobrain_ros.engines.local.qwen_vision import VisionTower, patch_grid  # noqa: E402
from robobrain_ros.nano.architecture import MODEL_DIRECTORY, build_image_processor  # noqa: E402

pytestmark = pytest.mark.slow  # runs models

# Rows and columns of image tokens; windows are 4 tokens wide (112 pixels of 28).
TOKENS = [(1, 1), (4, 8), (3, 3), (5, 4), (9, 12), (1, 21), (17, 23), (12, 28)]
TOWERS = ["qwen2_5_vl", "qwen3_vl"]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "qwen2_5_vl": tiny_checkpoints.save_qwen2_5_vl(root / "RoboBrain2.0-3B"),
        "qwen3_vl": tiny_checkpoints.save_qwen3_vl(root / "RoboBrain2.5-4B"),
    }


def load(directory, dtype=torch.float32, device="cpu"):
    """The checkpoint's tower, with norms and biases that matter."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        directory, attn_implementation="sdpa", dtype=torch.float32
    )
    visual = model.model.visual.eval()
    torch.manual_seed(0)
    for parameter in visual.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return visual.to(device, dtype)


def picture(visual, rows, columns):
    """Random patches of a still image, and its grid."""
    merge = visual.spatial_merge_size
    grid = torch.tensor([[1, rows * merge, columns * merge]])
    config = visual.config
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    frame = torch.randn(int(grid.prod()), 3, 1, config.patch_size**2, generator=generator)
    return frame.repeat(1, 1, config.temporal_patch_size, 1).flatten(1), grid


def by_the_library(visual, pixel_values, grid):
    with torch.no_grad():
        seen = visual(pixel_values.to(visual.device, visual.dtype), grid_thw=grid.to(visual.device))
    return [seen.pooler_output, *(getattr(seen, "deepstack_features", None) or [])]


def by_us(tower, pixel_values, grid):
    seen = tower(pixel_values, grid)
    return [seen.tokens, *seen.deepstack]


def difference(actual, expected):
    """Relative difference of lists of tensors, the largest."""
    assert [len(part) for part in actual] == [len(part) for part in expected]
    return max(
        float((a.float().cpu() - e.float().cpu()).norm() / e.float().norm().cpu())
        for a, e in zip(actual, expected)
    )


@pytest.mark.parametrize("name", TOWERS)
def test_equals_the_library(directories, name):
    visual = load(directories[name])
    tower = VisionTower(visual)
    for rows, columns in TOKENS:
        seen = picture(visual, rows, columns)
        actual = by_us(tower, *seen)
        assert difference(actual, by_the_library(visual, *seen)) < 1e-5, (rows, columns)
    assert len(actual) == (2 if name == "qwen3_vl" else 1)


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [(9, 12), (17, 23)])
def test_is_as_exact_as_the_library_in_half_precision(directories, name, dtype, tokens):
    """Both round differently: neither may be much further from float32 than the other."""
    exact = load(directories[name])
    seen = picture(exact, *tokens)
    visual = load(directories[name], dtype)
    expected = by_the_library(exact, *seen)
    actual = by_us(VisionTower(visual), *seen)
    assert all(part.dtype is dtype for part in actual)
    assert difference(actual, expected) < 1.25 * difference(by_the_library(visual, *seen), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.parametrize("name", TOWERS)
def test_equals_the_library_on_cuda(directories, name):
    visual = load(directories[name], device="cuda")
    for tokens in TOKENS:
        pixel_values, grid = picture(visual, *tokens)
        actual = by_us(VisionTower(visual), pixel_values.cuda(), grid)
        assert difference(actual, by_the_library(visual, pixel_values, grid)) < 1e-3


@pytest.mark.skipif(
    not (MODEL_DIRECTORY / "model.safetensors").exists(), reason="no trained weights here"
)
def test_equals_the_library_on_the_shipped_weights():
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        MODEL_DIRECTORY, dtype=torch.float32
    )
    blocks = np.random.default_rng(0).integers(0, 255, (8, 10, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize((336, 252), Image.Resampling.BICUBIC)
    inputs = build_image_processor()(images=[image], return_tensors="pt")
    seen = inputs["pixel_values"], inputs["image_grid_thw"]
    visual = model.model.visual
    actual = by_us(VisionTower(visual), *seen)
    assert difference(actual, by_the_library(visual, *seen)) < 1e-5


def test_windows_of_one_size_are_together(directories):
    visual = load(directories["qwen2_5_vl"])
    grid = patch_grid(visual, torch.tensor([[1, 34, 46]]))
    assert grid.windows == ((20, 64), (4, 48), (5, 16), (1, 12))
    assert grid.order.sort().values.equal(torch.arange(17 * 23))


def test_few_grids_are_kept(directories):
    tower = VisionTower(load(directories["qwen2_5_vl"]))
    for columns in range(1, 9):
        first = by_us(tower, *picture(tower.visual, 1, columns))
    assert len(tower.grids) == 4
    again = by_us(tower, *picture(tower.visual, 1, 8))
    assert difference(again, first) == 0


@pytest.mark.parametrize("grid", [[[2, 4, 4]], [[1, 4, 4], [1, 4, 4]]])
def test_only_one_still_image(directories, grid):
    visual = load(directories["qwen2_5_vl"])
    grid = torch.tensor(grid)
    with pytest.raises(ValueError, match="one still image"):
        VisionTower(visual)(torch.zeros(int(grid.prod(1).sum()), 1176), grid)


def test_works_without_onednn(directories, monkeypatch):
    visual = load(directories["qwen2_5_vl"])
    seen = picture(visual, 17, 23)
    expected = by_us(VisionTower(visual), *seen)
    monkeypatch.setattr(products, "ONEDNN", False)
    assert difference(by_us(VisionTower(visual), *seen), expected) < 1e-5


class TestPatchExtractor:
    @pytest.mark.parametrize("shape", [(28, 28), (252, 336), (336, 784)])
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "temporal_patch_size": 1},
            {"image_mean": 0.25, "image_std": 0.5},
            {"do_normalize": False},
            {"do_rescale": False, "image_mean": [100, 110, 120], "image_std": [50, 60, 70]},
        ],
    )
    def test_equal_the_processors(self, shape, changes):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        processor = transformers.Qwen2VLImageProcessorPil(
            size={"shortest_edge": 28 * 28, "longest_edge": 10**6}, **changes
        )
        expected = processor(images=[Image.fromarray(image)], return_tensors="pt")
        pixel_values, grid = PatchExtractor(processor)(image)
        torch.testing.assert_close(pixel_values, expected["pixel_values"], rtol=0, atol=1e-6)
        torch.testing.assert_close(grid, expected["image_grid_thw"])

    def test_other_sizes_are_refused(self):
        with pytest.raises(ValueError, match="130x70 pixels are not a multiple of 28"):
            PatchExtractor(build_image_processor())(np.zeros((70, 130, 3), np.uint8))

    @pytest.mark.parametrize("size", [(336, 252), (644, 476), (28, 28), (1288, 112)])
    def test_resizing_is_pillows_but_for_rounding(self, size):
        rng = np.random.default_rng(0)
        blocks = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        image = np.asarray(blocks.resize((640, 480), Image.Resampling.BICUBIC))
        expected = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
        actual = resize(image, size)
        assert actual.dtype == np.uint8
        assert np.abs(actual.astype(int) - np.asarray(expected)).max() <= 2

    def test_a_cameras_memory_may_be_read_only_or_a_view(self):
        image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        image.setflags(write=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            small = resize(image, (56, 28))
            mirrored = resize(image[:, ::-1, ::-1], (56, 28))
            same = resize(image, (80, 60))
        assert np.abs(small[:, ::-1, ::-1].astype(int) - mirrored).max() <= 1
        assert same is image
