# SPDX-License-Identifier: Apache-2.0
"""A live view of cameras, answers, TF and latency in rerun's viewer, recorded to a file as well."""
