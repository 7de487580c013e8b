"""Functions and classes of a user's, by 'module:name' or 'folder/file.py:name'."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.process.errors import UserError

MODULE_OF_FILE = "plugin_file_"  # such modules must not take the name of another
SHOWN_NAMES = 5


def load_function(spec: str, words: str) -> Callable[..., Any]:
    """The function that 'module:function' or 'folder/file.py:function' names; see `load_named`.

    Raises:
        UserError: it is no function.
    """
    function = load_named(spec, words, "function", inspect.isroutine)
    if not callable(function):
        raise UserError(f"{words}: {type(function).__name__} is no function")
    return function


def load_class(spec: str, words: str, bases: tuple[type, ...]) -> type:
    """The class that 'module:Class' or 'folder/file.py:Class' names; see `load_named`.

    Raises:
        UserError: it is no class that can be built of one of the `bases`.
    """
    found = load_named(spec, words, "class", inspect.isclass)
    names = " or ".join(base.__name__ for base in bases)
    if not inspect.isclass(found) or not issubclass(found, bases):
        raise UserError(f"{words}: is no class made from {names}")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise UserError(f"{words}: does not define {', '.join(missing)}")
    return found


def load_named(spec: str, words: str, what: str, is_one: Callable[[Any], bool]) -> Any:
    """What 'module:name' or 'folder/file.py:name' names.

    Modules are looked for in the repository and in the current directory.

    Args:
        words: those of the command line that name it, for errors.
        what: "function" or "class".
        is_one: whether something is one, for errors.

    Raises:
        UserError: there is no such file or module, it fails to be imported, or it has nothing of that name.
    """
    module_name, _, name = spec.rpartition(":")
    is_file = module_name.endswith(".py")
    if not module_name or not name or (module_name.startswith(".") and not is_file):
        raise UserError(f"{words}: needs MODULE:{what.upper()} or FILE.py:{what.upper()}")
    if is_file and not Path(module_name).is_file():
        raise UserError(f"{words}: no such file ({module_name})")
    try:
        module = import_file(Path(module_name)) if is_file else import_module(module_name)
        found = getattr(module, name, None)
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything
        if not is_file and is_absent(module_name, error):
            raise UserError(f"{words}: no such module ({' '.join(str(error).split())})") from None
        raise UserError(f"{words}: {module_name} fails to be imported ({reason_of(error)})") from error
    if found is None:
        raise UserError(f"{words}: {module_name} has no {what} {name!r} ({public_names(module, is_one)})")
    return found


def is_absent(module_name: str, error: BaseException) -> bool:
    """Whether importing a module failed because it, or a package around it, is not there; not one that it imports."""
    return isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")


def public_names(module: ModuleType, is_one: Callable[[Any], bool]) -> str:
    """The first functions, or classes, that a module defines, in words."""
    own = (name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
    names = [name for name in own if not name.startswith("_") and is_one(getattr(module, name))]
    more = ", ..." if len(names) > SHOWN_NAMES else ""
    return f"there are {', '.join(names[:SHOWN_NAMES])}{more}" if names else "it defines none"


def import_module(name: str) -> ModuleType:
    """A module by its dotted name; the current directory comes last, so that it hides nothing."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    return importlib.import_module(name)


def import_file(path: Path) -> ModuleType:
    """A module from its file; the same file is imported once. Raises whatever the file raises."""
    name = MODULE_OF_FILE + hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def function_fingerprint(spec: str, flag: str) -> str:
    """sha256 over the function's name and the file that defines it, in hexadecimal; a builtin has its name alone.

    Raises:
        UserError: see `load_function`.
    """
    function = load_function(spec, f"{flag}={spec}")
    try:
        source = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # a builtin, or an object that can be called
        source = inspect.getsourcefile(type(function)) if type(function).__module__ != "builtins" else None
    return fingerprint_of(spec, source)


def fingerprint_of(spec: str, source: str | None) -> str:
    """sha256 over the name in 'module:name' and the file `source` that defines it, if there is one."""
    digest = hashlib.sha256(spec.rpartition(":")[2].encode())
    if source:
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()


def reason_of(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200].removesuffix(":")
