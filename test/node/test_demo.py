# SPDX-License-Identifier: Apache-2.0
"""`make demo` as its users run it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import cv2
import pytest
from support.programs import result_of, run_module

pytestmark = pytest.mark.slow

run_demo = partial(run_module, "robobrain_ros.sim.demo")


def test_demo_answers_five_questions_and_draws_them(ros, tmp_path: Path):
    picture = tmp_path / "demo.png"
    run = run_demo("--output", str(picture))
    assert run.returncode == 0, run.stdout + run.stderr
    result = result_of(run)
    assert result["answered"] == 5
    assert result["correct"] >= 4
    assert result["median_error_mm"] <= 10
    shown = cv2.imread(str(picture))
    assert shown.shape == (2 * 480, 3 * 640, 3)
    tiles = [shown[y : y + 480, x : x + 640] for y in (0, 480) for x in (0, 640, 1280)]
    # Five annotated images of one scene, which differ, and the map.
    assert len({tile.tobytes() for tile in tiles}) == 6
    assert min((tile == tiles[0]).all(axis=2).mean() for tile in tiles[1:5]) > 0.9
    assert (tiles[5] == tiles[0]).all(axis=2).mean() < 0.1


def test_demo_asks_a_query_about_the_simulated_scene(ros, tmp_path: Path):
    picture = tmp_path / "demo.png"
    run = run_demo("--query", "Point to the orange bowl", "--output", str(picture))
    assert run.returncode == 0, run.stdout + run.stderr
    result = result_of(run)
    assert (result["answered"], result["correct"]) == (1, 1)
    assert result["median_error_mm"] <= 10
    assert "1 Point to the orange bowl" in run.stdout
    assert cv2.imread(str(picture)).shape == (480, 2 * 640, 3)


def test_demo_points_in_a_photo(ros, scene, tmp_path: Path):
    photo, picture = tmp_path / "photo.png", tmp_path / "answer.png"
    cv2.imwrite(str(photo), scene.truth.frame.rgb[:, :, ::-1])
    run = run_demo("--image", str(photo), "--query", f"the {scene.name}", "--output", str(picture))
    assert run.returncode == 0, run.stdout + run.stderr
    assert result_of(run)["answered"] == 1
    assert "nano knows rendered tabletops only" in run.stdout
    shown, before = cv2.imread(str(picture)), cv2.imread(str(photo))
    assert shown.shape == before.shape
    assert 0.002 < (shown != before).any(axis=2).mean() < 0.1  # the answer and the caption


def test_demo_says_what_is_wrong_with_a_photo(ros, tmp_path: Path):
    run = run_demo("--image", str(tmp_path / "missing.jpg"))
    assert run.returncode != 0 and "there is no file" in run.stderr
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    run = run_demo("--image", str(text))
    assert run.returncode != 0 and "is not an image" in run.stderr
    assert "Starting the nodes" not in run.stdout


def test_demo_fails_when_the_model_can_not_be_loaded(ros):
    run = run_demo("--model", "/does/not/exist")
    assert run.returncode == 1 and "Can't load the model" in run.stderr
