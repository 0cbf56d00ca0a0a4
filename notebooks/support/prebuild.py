"""The crate compiled where a kernel will look for it, before a kernel starts.

In a kernel the first cell would do it, without a word for minutes. What is built here is what evcxr builds: the
same manifest, flags and folders (evcxr's `Module` and `Config::cargo_command`), so that cargo, in the kernel, finds
all of it fresh. If some day it did not, the first cell would compile, as it would have without this.
"""

import json
import os
import re
import shutil
from pathlib import Path

import launch_kernel
from cargo_build import Build

DEPENDENCY = re.compile(r"^:dep +([\w-]+) *= *(\{.*\}) *$", re.MULTILINE)
PATH = re.compile(r'\bpath *= *"([^"]+)"')
MANIFEST = """
[package]
name = "ctx"
version = "1.0.0"
edition = "2024"

[lib]
crate-type = ["cdylib"]
path = "src/lib.rs"

[profile.dev]
opt-level = 2
debug = false
strip = "debuginfo"
rpath = true
lto = false
debug-assertions = true
codegen-units = 16
panic = 'unwind'
incremental = true
overflow-checks = true

[dependencies]
"""
# In the build directory: what was built there last, and of which versions.
STAMP, LOCK = "built.json", "built.lock"


def asked_for(notebook, cuda=False):
    """The manifest's line by which a notebook asks for the crate, with its path made absolute; None if it does not."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    except (OSError, ValueError, KeyError, TypeError):
        return None  # No notebook: the runner says so.
    found = {name: config for name, config in DEPENDENCY.findall(code)}
    path = PATH.search(found.get("emoji_lab", ""))
    crate = path and (notebook.parent / path[1]).resolve()
    if not crate or not (crate / "Cargo.toml").is_file():
        return None
    config = found["emoji_lab"]
    if cuda and "features" not in config:
        config = config[:-1].rstrip() + ', features = ["cuda"] }'
    return f"emoji_lab = {PATH.sub(lambda _: f'path = {json.dumps(str(crate))}', config)}\n"


def crate_of(line):
    """The crate's folder, from a line of `asked_for`."""
    return Path(json.loads(f'"{PATH.search(line)[1]}"'))


def newest(crate):
    """When the crate's files were last changed."""
    files = [crate / "Cargo.toml", *(file for folder in ("src", "assets", "numerics") for file in (crate / folder).rglob("*"))]
    return max(file.stat().st_mtime for file in files if file.exists())


def is_built(slot, line):
    """Whether the build directory `slot` has the crate as it is now."""
    try:
        stamp = json.loads((slot / STAMP).read_text())
        return stamp["line"] == line and newest(crate_of(line)) <= stamp["newest"]
    except (OSError, ValueError, KeyError):
        return False


def note(slot, line, changed):
    shutil.copy2(slot / "Cargo.lock", slot / LOCK)
    (slot / STAMP).write_text(json.dumps({"line": line, "newest": changed}))


def linker(path):
    """What evcxr adds to the compiler's flags where it finds another linker, and what it starts cargo with."""
    if shutil.which("mold", path=path):
        return "", ["mold", "-run"]
    return (" -Clink-arg=-fuse-ld=lld", []) if shutil.which("lld", path=path) else ("", [])


def build(slot, line, seconds, folder):
    """The Build that compiles the crate into the build directory `slot`, which the caller holds, with the Rust of `folder`."""
    host, _ = launch_kernel.host_and_key(launch_kernel.rustc("-vV", folder=folder))
    (slot / "src").mkdir(parents=True, exist_ok=True)
    (slot / "src" / "lib.rs").write_text("")
    (slot / "Cargo.toml").write_text(MANIFEST + line)
    if (slot / LOCK).exists():
        shutil.copy2(slot / LOCK, slot / "Cargo.lock")  # The versions that are compiled there.
    flags, before = linker(os.environ["PATH"])
    env = {
        **os.environ, "CARGO_TARGET_DIR": "target", "CARGO_BUILD_BUILD_DIR": "target",
        "RUSTFLAGS": "-Cprefer-dynamic" + flags, "RUSTUP_TOOLCHAIN": launch_kernel.rustc("--print", "sysroot", folder=folder),
    }  # fmt: skip
    command = [*before, "cargo", "build", "--verbose", "--target", host]
    return Build("the crate", command, seconds, slot, env)


class Slot:
    """The build directory that the next kernel will take, held meanwhile; `with Slot(home) as slot`."""

    def __init__(self, home, notebook):
        _, key = launch_kernel.host_and_key(launch_kernel.rustc("-vV", folder=notebook.parent))
        self.path, self.lock = launch_kernel.build_directory(home, key, notebook.parent)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.lock)
