"""The house rules that a machine can check: the wheel, the imports, and what the repository must not hold."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("runtime", "trainer", "export")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WEIGHT_SUFFIXES = {".bin", ".onnx", ".npz", ".npy", ".safetensors", ".data", ".fid", ".tflite"}
PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib"}
# Written so that no line of this file matches one of them.
MACHINE_TRACES = re.compile(
    r"/(?:work|farm|root|tmp|Users)/\w"  # an absolute path of somebody's machine
    r"|/home/\w"
    r"|https?://[^ \"]*(?:pypi|npmjs|debian)\b"  # a package registry: the user's own settings decide which
    r"|--(?:extra-)?index-url"
)


def sources(folder: str) -> list[Path]:
    """The Python files of a folder of the repository."""
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def package_files() -> set[str]:
    """Every file of the three folders by the name that it has in a wheel, such as `fid/runtime/crop.py`."""
    found = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT)
            if path.is_file() and "__pycache__" not in relative.parts:
                found.add(f"fid/{relative.as_posix()}")
    return found


def repository_files() -> list[Path]:
    """Every file that git tracks or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy so that neither a former `build/` nor this build leaves anything in the checkout."""
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in (*FOLDERS, "LICENSES"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    in_wheel = {name for name in wheel.namelist() if name.startswith("fid/")}
    assert in_wheel == package_files()


def test_the_wheel_leaves_the_name_fid_to_a_namespace(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"fid", f"fid_face-{PROJECT['version']}.dist-info"}
    assert "fid/__init__.py" not in wheel.namelist()


def test_the_wheel_carries_licences_and_commands(wheel: zipfile.ZipFile) -> None:
    info = f"fid_face-{PROJECT['version']}.dist-info"
    for name in ("LICENSE", "NOTICE", "LICENSES/random-face-Apache-2.0.txt"):
        assert wheel.read(f"{info}/licenses/{name}") == (ROOT / name).read_bytes()
    entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    for command, target in PROJECT["scripts"].items():
        assert f"{command} = {target}" in entry_points


def test_the_runtime_imports_without_torch_and_other_extras_and_fetches_nothing(tmp_path: Path) -> None:
    modules = [".".join(("fid", *path.relative_to(ROOT).with_suffix("").parts)) for path in sources("runtime")]
    modules = [name.removesuffix(".__init__") for name in modules]
    script = "\n".join(
        [
            "import importlib, sys",
            "for name in ('torch', 'safetensors', 'onnxscript', 'tensorboard', 'tflite', 'openvino', 'pytest',",
            "             'aiortc', 'av', 'prometheus_client', 'python_multipart', 'starlette', 'uvicorn',",
            "             'ray', 'fsspec', 'tritonclient', 'grpc'):",
            "    sys.modules[name] = None  # from now on importing it raises ImportError",
            f"for name in {modules!r}:",
            "    importlib.import_module(name)",
            "loaded = sorted(name for name in sys.modules if name.startswith(('fid.trainer', 'fid.export')))",
            "assert not loaded, loaded",
        ]
    )
    cache = tmp_path / "cache"
    environment = os.environ | {"FID_CACHE": str(cache), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(cache)}
    environment.pop("FID_MODELS", None)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
    assert list(tmp_path.rglob("*")) == []


def distributions_of(*extras: str) -> set[str]:
    """Names of the distributions that a plain install plus `extras` declares, lower case with dashes."""
    required = list(PROJECT["dependencies"])
    for extra in extras:
        required += PROJECT["optional-dependencies"][extra]
    return {re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-") for requirement in required}


def imported_names(nodes: list[ast.stmt]) -> set[str]:
    """Top-level names that absolute imports among `nodes` bring in; what stands inside functions is not looked at."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Try):
            names |= imported_names(node.body)
    return names


@pytest.mark.parametrize(("folder", "extras"), [("runtime", ()), ("trainer", ("train",)), ("export", ("train",))])
def test_modules_import_at_the_top_only_what_their_install_brings(folder: str, extras: tuple[str, ...]) -> None:
    allowed = distributions_of(*extras)
    distributions = importlib.metadata.packages_distributions()
    undeclared = []
    for path in sources(folder):
        for name in imported_names(ast.parse(path.read_text()).body) - set(sys.stdlib_module_names):
            brought_by = {distribution.lower().replace("_", "-") for distribution in distributions.get(name, [name])}
            if not brought_by & allowed:
                undeclared.append(f"{relative(path)} imports {name}")
    assert undeclared == []


def test_no_runtime_module_imports_torch_anywhere() -> None:
    for path in sources("runtime"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "torch" not in imported_names([node]), f"{relative(path)}:{node.lineno}"


def test_imports_are_relative_inside_fid_and_by_full_name_outside() -> None:
    """A bare `import runtime` from the repository's root would load a second copy of everything."""
    for folder in (*FOLDERS, "tests", "benchmarks", "docs"):
        names = {"fid", *FOLDERS} if folder in FOLDERS else set(FOLDERS)
        for path in sources(folder):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    assert not imported_names([node]) & names, f"{relative(path)}:{node.lineno}"


def test_the_layers_hold() -> None:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 broken" in done.stdout


def undocumented(node: ast.AST, name: str) -> list[str]:
    """Public classes, functions and methods at and below `node` that have no docstring, by dotted name.

    The `forward` of a network may be described by the docstring of its class.
    """
    missing = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            dotted = f"{name}.{child.name}"
            setter = any(isinstance(d, ast.Attribute) and d.attr == "setter" for d in child.decorator_list)
            forward = child.name == "forward" and isinstance(node, ast.ClassDef) and ast.get_docstring(node)
            if not ast.get_docstring(child) and not setter and not forward:
                missing.append(dotted)
            if isinstance(child, ast.ClassDef):
                missing += undocumented(child, dotted)
    return missing


@pytest.mark.parametrize("folder", FOLDERS)
def test_public_names_have_docstrings(folder: str) -> None:
    missing = []
    for path in sources(folder):
        tree = ast.parse(path.read_text())
        missing += [] if ast.get_docstring(tree) else [relative(path)]
        missing += undocumented(tree, relative(path))
    assert missing == []


def test_files_have_telling_names() -> None:
    for folder in FOLDERS:
        for path in sources(folder):
            assert not re.search(r"utils?|helpers?|common|manager|misc", path.stem), relative(path)


def test_no_file_mentions_a_machine() -> None:
    found = []
    for path in repository_files():
        data = path.read_bytes()
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode().splitlines(), start=1):
            if match := MACHINE_TRACES.search(line):
                found.append(f"{relative(path)}:{number}: {match.group()}")
    assert found == []


def test_weights_in_the_repository_stay_within_49_mb() -> None:
    sizes = {relative(path): path.stat().st_size for path in repository_files() if path.suffix in WEIGHT_SUFFIXES}
    assert sum(sizes.values()) <= 49e6, sizes


def test_nothing_in_the_repository_is_a_pickle() -> None:
    for path in repository_files():
        assert path.suffix not in PICKLE_SUFFIXES, relative(path)
        assert path.read_bytes()[:2] != b"\x80\x04", relative(path)  # how a pickle of protocol 4 starts
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                assert all(arrays[name].dtype != object for name in arrays), relative(path)


def test_files_are_read_by_the_readers_of_media_alone() -> None:
    """They turn, convert and refuse alike everywhere; OpenCV's own readers do none of it. It reads cameras."""
    allowed = {f"runtime/media/{name}.py" for name in ("camera", "camera_list", "images")}
    for folder in FOLDERS:
        for path in sources(folder):
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            names = {ast.unparse(call.func) for call in calls} & {"cv2.VideoCapture", "cv2.imread", "Image.open"}
            if relative(path) not in allowed:
                assert not names, f"{relative(path)}: {names}"


def test_every_test_asserts_where_it_stands() -> None:
    """By an `assert`, an expected error, or NumPy's and PyTorch's own, and not only in what it calls."""
    silent = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                calls = {ast.unparse(one.func) for one in ast.walk(node) if isinstance(one, ast.Call)}
                told = any("assert" in call or call in ("pytest.raises", "pytest.fail") for call in calls)
                if not told and not any(isinstance(one, ast.Assert) for one in ast.walk(node)):
                    silent.append(f"{relative(path)}:{node.lineno} {node.name}")
    assert not silent, silent


def test_nothing_unpickles_freely() -> None:
    for folder in FOLDERS:
        for path in sources(folder):
            for node in ast.walk(ast.parse(path.read_text())):
                if folder == "runtime" and isinstance(node, ast.Import | ast.ImportFrom):
                    assert not imported_names([node]) & {"pickle", "joblib", "dill"}, f"{relative(path)}:{node.lineno}"
                if not isinstance(node, ast.Call):
                    continue
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("allow_pickle", "False") == "False", f"{relative(path)}:{node.lineno}"
                if ast.unparse(node.func) == "torch.load":
                    assert keywords.get("weights_only") == "True", f"{relative(path)}:{node.lineno}"


def test_the_hooks_of_a_commit_are_steps_of_the_full_run() -> None:
    hooks = re.findall(r"^ +entry: (.+)$", (ROOT / ".pre-commit-config.yaml").read_text(), flags=re.MULTILINE)
    steps = (ROOT / ".ci" / "run").read_text().splitlines()
    assert hooks == ["ruff check", "ruff format --check", "pyright", "lint-imports"]
    assert set(hooks) <= set(steps)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_folders_files_and_functions_can_be_overlooked() -> None:
    """At most 14 modules in a folder, 450 lines in a file, 70 in a function: more than that hides a second thing."""
    too_large = []
    for path in [path for folder in (*FOLDERS, "benchmarks", "docs") for path in sources(folder)]:
        text = path.read_text()
        if text.count("\n") > 450:
            too_large.append(f"{relative(path)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                too_large += [f"{relative(path)}: {node.name} has {lines} lines"] if lines > 70 else []
    for place in {path.parent for folder in FOLDERS for path in sources(folder)}:
        modules = [path for path in place.glob("*.py") if path.stem != "__init__"]
        too_large += [f"{relative(place)}: {len(modules)} modules"] if len(modules) > 14 else []
    assert too_large == []
