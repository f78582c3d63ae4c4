"""A script's modules in one file: how an installed script starts.

Python's way of finding a module costs about 0.1 ms, so the thirty that a script needs cost as much as half a bare
interpreter start, for each disk of each guest. ``vbdkit install`` therefore writes their compiled code into one
file per script and command, beside the ``.pyc`` files and as safe to use as those: size and time of each source are
compared, and when anything differs or the file is not there, modules load as they always do.

To write the files: ``python -IS .../vbdkit/hot.py SYSTEM``, with the interpreter that the scripts run under.
"""

import gc
import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import NoReturn

    from _typeshed.importlib import PathEntryFinderProtocol

    # name, source, its mtime in ns, its size, whether it is a package, code
    Entry = tuple[str, str, int, int, bool, CodeType]

_FORMAT = 1
# (script, command) -> what a run of it imports first; all that these import comes along. A module that is not in the
# file loads as ever, so this is a matter of speed only.
_ROOTS = {
    ("block", "add"): ("scripts.block", "platform.{}", "engine.attach", "datapaths.file"),
    ("block", "remove"): ("scripts.block", "platform.{}", "engine.detach", "datapaths.file"),
    ("custom", "add"): ("scripts.custom", "platform.{}", "engine.custom", "engine.tool"),
    ("custom", "remove"): ("scripts.custom", "platform.{}", "engine.detach", "engine.tool"),
    ("common", "add"): ("scripts.common",),
    ("common", "remove"): ("scripts.common",),
    ("helper", "add"): ("scripts.helper", "platform.{}"),
}
_HERE = __file__.rpartition("/")[0]


def start(script: str, system: str = "", **settings: "bytes | float") -> "NoReturn":
    """Run a script's ``main`` with these settings; what an installed stub calls. Ends the process."""
    # A run is too short to make garbage worth collecting; loading alone would set the collector off several times.
    gc.disable()
    words = sys.argv[1:]
    load(script, "remove" if "remove" in words or "6" in words else "add", system or sys.platform.rstrip("0123456789"))
    name = "vbdkit.scripts." + script
    __import__(name)
    sys.modules[name].main(system, **settings)
    raise SystemExit(1)  # main ends the process


def path(script: str, command: str, system: str) -> str:
    """Return where one file is, for the running interpreter."""
    return f"{_HERE}/__pycache__/hot-{script}-{command}-{system}.{sys.implementation.cache_tag}"


def load(script: str, command: str, system: str) -> bool:
    """Put the modules of one file into sys.modules; False where there is none that fits. Raises nothing."""
    try:
        fd = posix.open(path(script, command, system), posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            form, entries = marshal.loads(posix.read(fd, posix.fstat(fd).st_size))  # noqa: S302  # trusted as a .pyc
        finally:
            posix.close(fd)
        if form != (_FORMAT, sys.hexversion):
            return False
        for _, source, mtime, size, _, _ in entries:
            status = posix.stat(source)
            if status.st_mtime_ns != mtime or status.st_size != size:
                return False
    except (OSError, ValueError, EOFError, TypeError):
        return False
    modules = sys.modules
    module_type = type(sys)
    entries = [entry for entry in entries if entry[0] not in modules]
    # All are there before the first runs: a package's module may import the package by name.
    for name, source, _, _, package, _ in entries:
        module = modules[name] = module_type(name)
        module.__file__ = source
        module.__package__ = name if package else name.rpartition(".")[0]
        if package:
            module.__path__ = [source.rpartition("/")[0]]
    for name, _, _, _, _, code in entries:
        parent, _, leaf = name.rpartition(".")
        setattr(modules[parent], leaf, modules[name])
        exec(code, modules[name].__dict__)  # noqa: S102  # what the import system does with a .pyc
    return True


def build(script: str, command: str, system: str) -> str:
    """Write one file for the running interpreter and return its path. Raises OSError.

    Only for an interpreter of its own, in which none of the modules is loaded yet.
    """
    import ast
    from importlib.machinery import FileFinder, SourceFileLoader

    entries: list[Entry] = []

    class Bare(ast.NodeTransformer):
        """Takes the annotations of functions away; they would be evaluated at each start."""

        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
            node.returns = None
            self.generic_visit(node)
            return node

        def visit_arg(self, node: ast.arg) -> ast.arg:
            node.annotation = None
            return node

    class Noting(SourceFileLoader):
        """Loads as ever, and notes each module once it is whole, so after all that it imports."""

        def exec_module(self, module: "ModuleType") -> None:
            status = posix.stat(self.path)
            # Without docstrings and annotations, which nobody asks for here: half of the bytes.
            tree = Bare().visit(ast.parse(self.get_data(self.path)))
            code = compile(tree, self.path, "exec", dont_inherit=True, optimize=2)
            exec(code, module.__dict__)  # noqa: S102  # as load() will
            if module.__name__ != "vbdkit":  # which is there when load() is
                package = hasattr(module, "__path__")
                entries.append((module.__name__, self.path, status.st_mtime_ns, status.st_size, package, code))

    ours = FileFinder.path_hook((Noting, [".py"]))

    def hook(folder: str) -> "PathEntryFinderProtocol":
        if folder != root and not folder.startswith(_HERE):
            raise ImportError(folder)
        return ours(folder)

    root = _HERE.rpartition("/")[0]
    sys.path[:] = [root, *sys.path]
    sys.path_hooks.insert(0, hook)
    sys.path_importer_cache.clear()
    for name in _ROOTS[script, command]:
        __import__("vbdkit." + name.format(system))
    whole = path(script, command, system)
    fresh = whole + ".new"
    try:
        posix.mkdir(whole.rpartition("/")[0])
    except FileExistsError:
        pass
    with open(fresh, "wb") as file:
        file.write(marshal.dumps(((_FORMAT, sys.hexversion), entries)))
    posix.rename(fresh, whole)
    return whole


def _build_all(system: str) -> int:
    """Build each file in a process of its own, which has loaded nothing yet."""
    worst = 0
    for script, command in _ROOTS:
        child = posix.fork()
        if child == 0:
            try:
                print(build(script, command, system), flush=True)
                posix._exit(0)
            except OSError as error:
                print(error, file=sys.stderr, flush=True)
            finally:
                posix._exit(1)
        worst = max(worst, posix.waitpid(child, 0)[1])
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(_build_all(sys.argv[1]))
