"""One file a data format; importing this package imports them all, and each registers what it reads.

Of formats that fit a row equally well the one whose file comes first by name wins.
"""

import importlib
import pkgutil

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")
