# SPDX-License-Identifier: Apache-2.0
"""The small Qwen2.5-VL that ships with the package: its data, training, weights and evaluation."""
