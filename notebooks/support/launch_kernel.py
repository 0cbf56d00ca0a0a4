"""Starts evcxr_jupyter for Jupyter: `launch_kernel.py EVCXR_JUPYTER HOME CONNECTION_FILE`.

Jupyter calls this through the kernelspec (see environment.py). It prepares the environment and then
becomes evcxr_jupyter by exec, so there is no extra process between Jupyter and the kernel.

- Interrupts are polite. The kernel ignores SIGINT, the library handles it during long steps.
- The build directory is a fixed one, so that compiled dependencies are there at the next start.
  evcxr allows one kernel a directory: each is held by a lock for as long as a process of the
  kernel lives, and a second kernel takes the next directory, filled with what is compiled in the first. Where HOME belongs
  to someone else (a teacher's, for a class), build directories are the user's own, filled from HOME's.
- LD_LIBRARY_PATH names the toolchain's own libstd. Without it, cells that were built below the
  toolchain's top-level directory (both are in the home directory, as a rule) do not load:
  "dlopen failed".
- Type inference, which is rust-analyzer's, sees less of the crates than cargo does, and of the
  standard library: see light_metadata.py and light_library.py.
- Between two cells cargo is asked once, not each time: see kernel_cargo.sh.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import light_library
import light_metadata

# evcxr builds dependencies with opt-level 2, debug assertions and overflow checks. Most of a cold
# start is optimising what computes nothing, so each crate that takes seconds has a level here:
# 3 for the arithmetic, 2 for the tokenizer; 1 where a loop over a vocabulary, a dataset or a file
# runs, but the arithmetic is elsewhere, as in a notebook's steps; 0 for what waits for the network or
# runs once. Those not named, and the cells, are built as evcxr says. Names and not "*": cargo would take
# that for build scripts and procedural macros too, which it leaves unoptimised. docs/start-up.md has the seconds.
LEVELS = {
    3: "emoji_lab_numerics gemm gemm-common gemm-f32 pulp",
    2: "tokenizers",
    1: "emoji_lab candle-core candle-nn gemm-f16 minijinja minijinja-contrib xet-core-structures xet-data zip "
    "regex-automata regex-syntax aho-corasick fancy-regex safetensors serde_json rayon-core crc-fast nom",
    0: "candle-transformers hf-hub hf-xet xet-client xet-runtime redb reqwest reqwest-middleware h2 hyper hyper-util hyper-rustls rustls "
    "rustls-webpki tokio-rustls aws-lc-rs aws-lc-sys gemm-c32 gemm-c64 gemm-f64 serde_yaml_ng unsafe-libyaml tracing-subscriber "
    "tracing-appender sysinfo statrs typed-path chrono time url idna icu_normalizer icu_properties icu_locale_core "
    "encoding_rs raw-cpuid globset plotters tokio tar futures-util http rustix base64",
}
# The arithmetic in one part, so that each loop has what it calls beside it and needs no second look (ThinLTO) among the
# parts of its crate; the steps in many, of which an edit compiles few.
PARTS = {"emoji_lab_numerics": "codegen-units = 1\n", "emoji_lab": "codegen-units = 64\n"}
CARGO_CONFIG = """\
# Written by emoji_lab's launch_kernel.py.
""" + "".join(
    f"[profile.dev.package.{name}]\nopt-level = {level}\ndebug-assertions = false\noverflow-checks = false\n{PARTS.get(name, '')}"
    for level, names in LEVELS.items()
    for name in names.split()
) + """\
[profile.dev]
lto = "off"
"""
LINKED = 100_000  # Bytes from which on a file of a build is a library, an object or a program, and linked.


def rustc(*args, folder=None):
    """What the rustc of `folder` (a file there may choose a toolchain) prints for `args`, or None where there is none."""
    try:
        return subprocess.run(["rustc", *args], check=True, capture_output=True, text=True, cwd=folder).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def link(source, target):
    """A second name for a file that builds replace and never write into; else a symbolic link to it."""
    try:
        os.link(source, target)
    except OSError:  # Another disk, or a file of another user.
        os.symlink(os.path.realpath(source), target)


def is_replaced(path):
    """Whether a build puts a new file in the place of this one; cargo's own notes are written into."""
    notes = path.name in ("output", "stderr") or path.suffix in (".d", ".json", ".html", ".lock", ".timestamp")
    return "target" in path.parts and ".fingerprint" not in path.parts and not notes


def copy_seed(seed, slot):
    """Fills the build directory `slot` with what is compiled in `seed`, which another kernel may be writing to.

    Large files, nearly all of the bytes, are linked: compilers and linkers put a new file in an old one's place. Cargo's
    fingerprints go first: one that is copied then vouches for a file that is older than the copy, so a
    half-written file is never taken for a finished one, only built again. What speeds up the next edit of
    the crate (`incremental`) stays behind.
    """
    part = slot.with_name(slot.name + ".part")
    shutil.rmtree(part, ignore_errors=True)

    def only_fingerprints(folder, names):
        if ".fingerprint" in Path(folder).parts:
            return []
        return [name for name in names if name == "incremental" or name != ".fingerprint" and not (Path(folder) / name).is_dir()]

    def copy(source, target):
        try:
            if is_replaced(Path(source)) and os.path.getsize(source) >= LINKED:
                link(source, target)
            else:
                shutil.copy2(source, target)
                os.chmod(target, os.stat(target).st_mode | 0o200)  # A read-only seed makes no read-only copy.
        except FileNotFoundError:
            pass  # A temporary file of the other kernel's build.

    shutil.copytree(seed, part, ignore=only_fingerprints, copy_function=copy)
    shutil.copytree(
        seed,
        part,
        ignore=lambda _, names: [name for name in names if name in (".fingerprint", "incremental")],
        copy_function=copy,
        dirs_exist_ok=True,
    )
    part.rename(slot)


def write_cargo_config(root):
    """What cargo shall know of builds below `root`; cargo looks for it in the folders above a build's own."""
    config = root / ".cargo" / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    if not config.exists() or config.read_text() != CARGO_CONFIG:
        config.write_text(CARGO_CONFIG)


def forget_another_crate(slot, folder):
    """Has cargo build the crate anew if the build directory `slot` was last used from another checkout.

    `folder` is where the notebook lies, beside the crate. Cargo calls the library of both checkouts alike,
    and would take the other's, which it finds there, for its own: cells then see the other's functions.
    """
    crate = (folder.parent / "emoji_lab").resolve()
    if not (crate / "Cargo.toml").exists():
        return  # Another notebook, with other crates.
    last = slot / "emoji_lab.path"
    if last.exists() and last.read_text() == str(crate):
        return
    for depth in ("*", "*/*"):
        for fingerprint in slot.glob(f"target/{depth}/.fingerprint/emoji_lab-*"):
            shutil.rmtree(fingerprint, ignore_errors=True)
    (slot / "built.json").unlink(missing_ok=True)  # prebuild.py's.
    last.write_text(str(crate))


def is_behind(slot, seed):
    """Whether `seed` was compiled anew (prebuild.py's stamp says so) after `slot` was filled from it, or was built."""
    stamp, own = seed / "built.json", slot / "built.json"
    return stamp.exists() and (not own.exists() or own.stat().st_mtime < stamp.stat().st_mtime)


def own_home(home):
    """`home` if it is this user's to write to, else the user's own: `home` then is shared, and only read."""
    if not home.exists() or os.access(home, os.W_OK):
        return home
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "emoji_lab"


def build_directory(home, key, folder):
    """The first build directory that no other kernel holds, and its lock; `folder` is where the notebook lies."""
    root, shared = own_home(home) / "build" / key, home / "build" / key
    write_cargo_config(root)
    for number in range(1, 1000):
        slot = root / str(number)
        lock = os.open(root / f"{number}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        seeds = [seed for seed in (root / "1", shared / "1") if seed != slot and seed.exists()]
        if seeds and slot.exists() and is_behind(slot, seeds[0]):
            shutil.rmtree(slot, ignore_errors=True)  # Quicker than to compile in it what the seed has.
        if seeds and not slot.exists():
            try:
                copy_seed(seeds[0], slot)
            except (OSError, shutil.Error) as error:
                print(f"launch_kernel: no copy of {seeds[0]}, starting cold: {error}", file=sys.stderr)
        slot.mkdir(exist_ok=True)
        forget_another_crate(slot, folder)
        shutil.rmtree(slot / "kept-command", ignore_errors=True)  # kernel_cargo.sh's, of the kernel before.
        return slot, lock
    raise SystemExit(f"launch_kernel: every build directory below {root} is in use")


def library_source(home, key, sysroot):
    """The folder of light_library.py; a teacher's is only read. None where there can be none."""
    shared, own = (place / "toolchains" / f"{key}-library" for place in (home, own_home(home)))
    folder = shared if shared.exists() else own
    return folder if light_library.library(folder, sysroot) else None


def host_and_key(version):
    """The compiler's host, and the name of the build directories that are its own; `version` is what `rustc -vV` says."""
    host = next(line.split()[1] for line in version.splitlines() if line.startswith("host:"))
    return host, hashlib.sha256(version.encode()).hexdigest()[:12]


def main():
    evcxr, home, connection_file = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    env = dict(os.environ)
    # A Jupyter that was started from a menu may not have cargo's directory in its PATH.
    cargo_home = Path(env.get("CARGO_HOME") or Path.home() / ".cargo")
    env["PATH"] = os.pathsep.join(filter(None, [env.get("PATH"), str(cargo_home / "bin")]))
    os.environ["PATH"] = env["PATH"]

    version, sysroot = rustc("-vV"), rustc("--print", "sysroot")
    if not version or not sysroot:
        raise SystemExit("launch_kernel: rustc does not run; install Rust (https://rustup.rs)")
    host, key = host_and_key(version)
    libraries = f"{sysroot}/lib/rustlib/{host}/lib"
    env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [libraries, env.get("LD_LIBRARY_PATH")]))
    # evcxr sets RUST_BACKTRACE=1; this keeps the backtraces out of errors all the same.
    env.setdefault("RUST_LIB_BACKTRACE", "0")
    # rust-analyzer, in the kernel, takes cargo from the toolchain that rustup is told to use, or where there is no
    # rustup from CARGO.
    if env.get("EMOJI_LAB_ALL_CRATES", "") == "":
        toolchain = own_home(home) / "toolchains" / key
        try:
            if light_metadata.toolchain(toolchain, sysroot, sys.executable):
                if shutil.which("rustup", path=env["PATH"]):
                    env["RUSTUP_TOOLCHAIN"] = str(toolchain)
                else:
                    env["CARGO"] = str(toolchain / "bin" / "cargo")
                    env["PATH"] = os.pathsep.join([str(toolchain / "bin"), env["PATH"]])
            if source := library_source(home, key, sysroot):
                env.setdefault("RUST_SRC_PATH", str(source))
        except OSError as error:
            print(f"launch_kernel: type inference reads more than it must, since {error}", file=sys.stderr)
    if "EVCXR_TMPDIR" not in env:
        slot, lock = build_directory(home, key, Path.cwd())
        # Inherited by evcxr_jupyter and all that it starts: the last of them lets go of it.
        os.set_inheritable(lock, True)
        env["EVCXR_TMPDIR"] = str(slot)
    # exec keeps an ignored signal ignored, in evcxr and in the compilers that it starts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.execve(evcxr, [evcxr, "--control_file", connection_file], env)


if __name__ == "__main__":
    main()
