# SPDX-License-Identifier: Apache-2.0
"""Hostile input by the hundred thousand, for bench/fuzz.py and a small run of it in the tests."""
