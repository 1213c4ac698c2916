"""The op table: all cases of all families."""

from __future__ import annotations

import importlib
import pkgutil

from tests.lower import cases
from tests.lower.case import Case, Rejected

_MODULES = [importlib.import_module(f"{cases.__name__}.{m.name}") for m in pkgutil.iter_modules(cases.__path__)]
CASES: list[Case] = [case for module in _MODULES for case in module.CASES]
REJECTED: list[Rejected] = [case for module in _MODULES for case in module.REJECTED]
