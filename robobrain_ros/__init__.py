# SPDX-License-Identifier: Apache-2.0
"""Language-conditioned perception: pixels and 3D poses for questions about camera images."""

from pkgutil import extend_path

# The generated msg, srv and action modules lie beside an installed copy of this package. Started
# from the repository root (python -m, pytest) Python finds this directory first: the package then
# spans both.
__path__ = extend_path(__path__, __name__)
