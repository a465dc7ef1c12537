"""Importing the package registers every planted case."""

import importlib
import pkgutil

from .cases import CASES as CASES
from .cases import Case as Case

for _module in sorted(found.name for found in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")
