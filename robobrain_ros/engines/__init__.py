# SPDX-License-Identifier: Apache-2.0
"""Engines generate answers to requests about images; `factory.create_engine` makes one."""
