# SPDX-License-Identifier: Apache-2.0
"""Qwen-VL models (RoboBrain, nano) in this process, on torch and transformers."""
