"""Installs what a notebook run needs and the machine lacks, below one directory of our own.

    $EMOJI_LAB_HOME, or ~/.cache/emoji_lab
      venv/    Jupyter's Python packages, and the kernelspec `rust`
      cargo/   evcxr_jupyter, unless the one on the PATH has the right version
      kernel/  launch_kernel.py, as the kernelspec starts it, and what it imports
      toolchains/  links to the Rust toolchain, see light_metadata.py
      build/   the kernels' build directories
      logs/    what kernels print besides their cells' output

Only Python's standard library is used here: this runs before the virtual environment is there.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

EVCXR_VERSION = "0.22.0"
MINIMUM_PYTHON = (3, 10)
HERE = Path(__file__).resolve().parent


class SetupError(Exception):
    """One line that says what is missing and how to get it."""


def home_directory():
    """Where everything goes that this program installs."""
    chosen = os.environ.get("EMOJI_LAB_HOME")
    if chosen:
        return Path(chosen).expanduser().resolve()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "emoji_lab"


def say(text):
    print(f"set-up: {text}", flush=True)


def run(command, problem, **options):
    """Runs a command with its output in view; a failure becomes a SetupError that says `problem`."""
    try:
        subprocess.run([str(word) for word in command], check=True, **options)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"{problem} ({error})") from None


def first_line(command):
    """The first line a command prints, or None if it does not run."""
    try:
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return out.splitlines()[0] if out else ""


@contextlib.contextmanager
def only_one(home):
    """Two runs at once: the second waits while the first installs."""
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "setup.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up to finish")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ensure_venv(home, requirements):
    """The virtual environment's Python, with the packages that `requirements` (a file) pins."""
    if sys.version_info < MINIMUM_PYTHON:
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        raise SetupError(f"Python {wanted} or newer is needed, this is {sys.version.split()[0]}")
    venv = home / "venv"
    python = venv / "bin" / "python"
    stamp = venv / f"installed-{requirements.name}"
    wanted = requirements.read_text()
    # A virtual environment dies with the Python that made it (an upgrade, a removed pyenv).
    alive = python.exists() and first_line([str(python), "-c", "print(1)"]) == "1"
    if alive and stamp.exists() and stamp.read_text() == wanted:
        return python
    if not alive:
        say(f"a Python virtual environment in {venv}")
        shutil.rmtree(venv, ignore_errors=True)
        run(
            [sys.executable, "-m", "venv", venv],
            "Python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv",
        )
    say(f"Jupyter's packages ({requirements.name})")
    run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements],
        "pip could not install Jupyter's packages; it needs a package index (see PIP_INDEX_URL)",
    )
    stamp.write_text(wanted)
    return python


def ensure_rust():
    """rustc, cargo, a linker, and the standard library's source, which evcxr reads types from."""
    cargo_bin = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo") / "bin"
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(cargo_bin)])
    for tool in ("rustc", "cargo"):
        if first_line([tool, "--version"]) is None:
            raise SetupError(f"{tool} does not run; install Rust (https://rustup.rs) and try again")
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        raise SetupError("no C compiler; on Debian and Ubuntu: apt-get install gcc")
    sysroot = first_line(["rustc", "--print", "sysroot"])
    source = Path(sysroot) / "lib/rustlib/src/rust/library/std/src/lib.rs"
    if source.exists():
        return
    say("rust-src, the standard library's source")
    problem = (
        f"the standard library's source is not in {sysroot}, and without it the kernel cannot tell the "
        "types of variables. Install it with `rustup component add rust-src`, or, where Rust is a "
        "distribution's package, that distribution's rust-src"
    )
    if shutil.which("rustup") is None:
        raise SetupError(problem)
    run(["rustup", "component", "add", "rust-src"], problem)
    if not source.exists():
        raise SetupError(problem)


def is_our_evcxr(binary):
    """Whether `binary` is an evcxr_jupyter of the pinned version.

    It has no --version; its banner, which holds the version, is one literal in the executable.
    """
    try:
        return f"EvCxR {EVCXR_VERSION} ".encode() in Path(binary).read_bytes()
    except OSError:
        return False


def ensure_evcxr(home):
    """The path of an evcxr_jupyter of the pinned version."""
    ours = home / "cargo" / "bin" / "evcxr_jupyter"
    on_path = shutil.which("evcxr_jupyter")
    if is_our_evcxr(ours):
        return ours
    if on_path and is_our_evcxr(on_path):
        return Path(on_path).absolute()
    say(f"evcxr_jupyter {EVCXR_VERSION}, the Rust kernel: compiled once, about 8 minutes on 2 cores")
    root = home / "cargo"
    env = dict(os.environ, CARGO_TARGET_DIR=str(root / "target"))
    run(
        ["cargo", "install", "--locked", "--root", root, "--version", EVCXR_VERSION, "evcxr_jupyter"],
        "cargo could not install evcxr_jupyter; the lines above say why",
        env=env,
        cwd=home,
    )
    shutil.rmtree(root / "target", ignore_errors=True)
    return ours


def write_if_changed(path, text):
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(text)
        os.replace(part, path)


def kernelspec(home, python, evcxr):
    """The kernelspec's kernel.json."""
    return {
        "argv": [str(python), str(home / "kernel" / "launch_kernel.py"), str(evcxr), str(home), "{connection_file}"],
        "display_name": "Rust",
        "language": "rust",
        # SIGINT to the process group: the kernel ignores it, the library's long steps stop at it.
        "interrupt_mode": "signal",
        "metadata": {"emoji_lab": True},
    }


def ensure_kernelspec(home, python, evcxr, kernels=None):
    """Writes the kernelspec `rust` below `kernels`: by default those of our own environment.

    There, only Jupyter programs of that environment see it. evcxr_jupyter rewrites a kernelspec
    in the user's own directory whose version.txt is not its own, hence its resources go along.
    """
    for program in ("light_metadata.py", "launch_kernel.py"):
        write_if_changed(home / "kernel" / program, (HERE / program).read_text())
    kernels = kernels or home / "venv" / "share" / "jupyter" / "kernels"
    folder = kernels / "rust"
    if not (folder / "version.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            env = dict(os.environ, JUPYTER_PATH=scratch)
            run([evcxr, "--install"], "evcxr_jupyter does not run", env=env, stdout=subprocess.DEVNULL)
            for resource in (Path(scratch) / "kernels" / "rust").iterdir():
                if resource.name != "kernel.json":
                    shutil.copy2(resource, folder / resource.name)
    spec = json.dumps(kernelspec(home, python, evcxr), indent=2) + "\n"
    write_if_changed(folder / "kernel.json", spec)
    return folder


def user_kernels():
    """Where Jupyter looks for a user's own kernelspecs."""
    if os.environ.get("JUPYTER_DATA_DIR"):
        return Path(os.environ["JUPYTER_DATA_DIR"]) / "kernels"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Jupyter" / "kernels"
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "jupyter" / "kernels"


def is_our_spec(spec):
    try:
        return bool(json.loads(spec.read_text()).get("metadata", {}).get("emoji_lab"))
    except (OSError, ValueError):
        return False


def install_for_user(home, python, evcxr):
    """Makes the kernel `rust` known to the user's own Jupyter; keeps a foreign one aside."""
    folder = user_kernels() / "rust"
    spec, aside = folder / "kernel.json", folder / "kernel.json.before-emoji_lab"
    if spec.exists() and not is_our_spec(spec):
        shutil.copy2(spec, aside)
        say(f"the kernel that was there is kept as {aside}")
    # Our own copy of the resources: an older version.txt would have kernel.json rewritten.
    (folder / "version.txt").unlink(missing_ok=True)
    ensure_kernelspec(home, python, evcxr, user_kernels())
    say(f"kernel `rust` installed in {folder}")


def uninstall_for_user():
    """Undoes install_for_user."""
    folder = user_kernels() / "rust"
    aside = folder / "kernel.json.before-emoji_lab"
    if aside.exists():
        os.replace(aside, folder / "kernel.json")
        say(f"the earlier kernel is back in {folder}")
    elif is_our_spec(folder / "kernel.json"):
        shutil.rmtree(folder)
        say(f"kernel `rust` removed from {folder}")
    else:
        say(f"no kernel of ours in {folder}")


def ensure_all(home, lab=False):
    """Everything a run needs; returns the virtual environment's Python and evcxr's path."""
    with only_one(home):
        ensure_rust()
        python = ensure_venv(home, HERE / "requirements.txt")
        if lab:
            ensure_venv(home, HERE / "requirements-lab.txt")
        evcxr = ensure_evcxr(home)
        ensure_kernelspec(home, python, evcxr)
    return python, evcxr
