"""The op table: all cases of all families."""

from __future__ import annotations

import importlib
import pkgutil

from tests.lower import cases
from tests.lower.case import Case, Point, Rejected, points_of

_MODULES = [importlib.import_module(f"{cases.__name__}.{m.name}") for m in pkgutil.iter_modules(cases.__path__)]
CASES: list[Case] = [case for module in _MODULES for case in module.CASES]
REJECTED: list[Rejected] = [case for module in _MODULES for case in module.REJECTED]
POINTS: list[Point] = [point for case in CASES for point in points_of(case)]
