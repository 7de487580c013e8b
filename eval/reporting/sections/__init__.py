"""The sections of the report, one file each, found here: PLACE orders them, `make` returns the section, or None.

`make(report: Report) -> Section | None` of a file draws its pictures into `report.folder`. Both templates loop over the
blocks of whatever sections there are.
"""

import importlib
import pkgutil
from types import ModuleType

from eval.reporting.blocks import Report, Section


def section_modules() -> list[ModuleType]:
    """The files of this folder, in the order of their PLACE."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted((importlib.import_module(f"{__name__}.{name}") for name in names), key=lambda module: module.PLACE)


def make_sections(report: Report) -> list[Section]:
    """All sections that have something to show, their pictures drawn."""
    return [section for module in section_modules() if (section := module.make(report))]
