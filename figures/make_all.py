"""Every figure drawn again from results/; where there are none, the command that makes them.

python -m figures.make_all
"""

import importlib
import pkgutil
from types import ModuleType

import figures


def modules() -> list[ModuleType]:
    """The modules here that draw a figure, which are those that have a `draw`."""
    names = [f"figures.{module.name}" for module in pkgutil.iter_modules(figures.__path__)]
    found = [importlib.import_module(name) for name in names]
    return [module for module in found if hasattr(module, "draw")]


def main() -> None:
    failed = []
    for module in modules():
        print(f"{module.__name__}:")
        try:
            module.main([])
        except SystemExit as missing:
            print(missing)
        except ValueError as wrong:  # runs that can't be compared, say: the others are drawn
            print(wrong)
            failed.append(module.__name__)
    if failed:
        raise SystemExit(f"not drawn: {', '.join(failed)}")


if __name__ == "__main__":
    main()
