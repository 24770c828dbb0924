"""Compile the fake device with the system's compiler and the headers of the wheels that are installed.

What torch's libraries want and `device/*.c` does not define is read from them and generated: products of cuBLAS do
nothing and succeed; any other function says that it is not supported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import re
import runpy
import shutil
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock

SOURCES = Path(__file__).parent / "device"
LIBRARY = "libcuda.so.1"  # the name under which the driver is asked for; the runtime, cuBLAS and NCCL are in it as well
HEADERS = {"cuda_runtime_api.h": "cudart", "cuda.h": "driver", "crt/host_defines.h": "compiler", "cublasLt.h": "cublas",
           "nccl.h": "nccl"}  # fmt: skip
# The libraries that are stood in for, by their functions' names, and the error of each that says "not supported".
STOOD_IN_FOR = {r"cublas\w+": 0, r"(__)?cuda[A-Z]\w+": 801, r"nccl[A-Z]\w+": 5, r"cu(?!File)[A-Z]\w+": 801}


def why_not() -> str | None:
    """Why the device cannot be built here; None if it can."""
    if platform.system() != "Linux":
        return f"a fake CUDA device needs Linux, this is {platform.system()}"
    for tool in ("cc", "nm"):
        if shutil.which(tool) is None:
            return f"a fake CUDA device needs a C compiler: {tool} is not there"
    cuda = torch_cuda()
    if cuda is None:
        return "torch is a build for CPUs"
    missing = [header for header in HEADERS if _folder_of(header, cuda) is None]
    if missing:
        return f"no installed wheel has the headers {' '.join(missing)} of CUDA {cuda}"
    return None


def torch_cuda() -> str | None:
    """The CUDA that torch was built for, say 12.8; without importing torch, which takes seconds."""
    version: str | None = runpy.run_path(str(_package("torch") / "version.py"))["cuda"]
    return version


def build(folder: Path) -> Path:
    """The library, in `folder`: compiled by the first process that asks.

    Raises:
        RuntimeError: `why_not` says why, or the compiler does.
    """
    if (reason := why_not()) is not None:
        raise RuntimeError(reason)
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / LIBRARY
    with FileLock(folder / "lock"):
        if not library.exists():
            _compile(folder, library)
    return library


def build_once() -> Path:
    """The library, in a folder of the system's temporary one that is used again as long as nothing changes."""
    digest = hashlib.sha256(str(_package("torch")).encode() + str(torch_cuda()).encode() + Path(__file__).read_bytes())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return build(Path(tempfile.gettempdir()) / f"fake-cuda-{digest.hexdigest()[:16]}")


def _compile(folder: Path, library: Path) -> None:
    include = dict.fromkeys(_folder_of(header, torch_cuda() or "") for header in HEADERS)
    options = ["-fPIC", "-O1", *(f"-I{path}" for path in include)]
    objects = []
    for source in sorted(SOURCES.glob("*.c")):
        objects.append(folder / f"{source.stem}.o")
        _run("cc", *options, "-c", source, "-o", objects[-1])
    defined = set(_run("nm", "--defined-only", "--format=just-symbols", *objects).split())
    rest = folder / "rest.c"
    rest.write_text(stubs(wanted() - defined))
    _run("cc", *options, "-c", rest, "-o", folder / "rest.o")
    part = folder / "part.so"
    _run("cc", "-shared", f"-Wl,-soname,{LIBRARY}", *objects, folder / "rest.o", "-o", part, "-lpthread", "-ldl")
    part.rename(library)


def wanted() -> set[str]:
    """The functions of the libraries that are stood in for, which torch's own libraries do not define."""
    found = set()
    for library in sorted((_package("torch") / "lib").glob("lib*.so")):
        for line in _run("nm", "-D", "--undefined-only", library).splitlines():
            name = line.split()[-1].partition("@")[0]
            if any(re.fullmatch(pattern, name) for pattern in STOOD_IN_FOR):
                found.add(name)
    return found


def stubs(names: set[str]) -> str:
    """C functions of these names."""
    lines = ["int unsupported(const char *function, int code);"]
    for name in sorted(names):
        error = next(error for pattern, error in STOOD_IN_FOR.items() if re.fullmatch(pattern, name))
        # Declared without parameters, as C allows: a caller's arguments are not looked at.
        does = f'unsupported("{name}", {error})' if error else "0"
        lines.append(f"int {name}() {{ return {does}; }}")
    return "\n".join(lines) + "\n"


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"{name} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def _folder_of(header: str, cuda: str) -> Path | None:
    """The folder of a header among those of nvidia's wheels and of triton's; of CUDA's major version."""
    nvidia = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (nvidia.submodule_search_locations or [])] if nvidia else []
    folders = [folder for root in roots for folder in sorted(root.glob("*/include"))]
    if importlib.util.find_spec("triton") is not None:
        folders.append(_package("triton") / "backends" / "nvidia" / "include")
    for folder in folders:
        if (folder / header).exists() and _major(folder / header) in (None, cuda.partition(".")[0]):
            return folder
    return None


def _major(header: Path) -> str | None:
    """The CUDA that a header says it is of, if it does."""
    found = re.search(r"#define\s+(?:CUDART_VERSION|CUDA_VERSION)\s+(\d+)\d{3}\b", header.read_text(errors="replace"))
    return found[1] if found else None


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr[-3000:]}")
    return done.stdout
