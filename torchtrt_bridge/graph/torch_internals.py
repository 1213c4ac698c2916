"""Every private name of PyTorch that this package uses, each behind one function.

Nothing here is promised by PyTorch from one version to the next: `tests/graph/test_torch_internals.py` calls each
function, so that a new version which moves or renames one of these names is noticed in one place.
"""

from __future__ import annotations
