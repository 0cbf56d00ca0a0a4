"""Installs what a notebook run needs and the machine lacks, below one directory of our own.

    $EMOJI_LAB_HOME, or ~/.cache/emoji_lab
      venv/    Jupyter's Python packages, and the kernelspec `rust`
      cargo/   evcxr_jupyter, unless the one on the PATH has the right version
      kernel/  launch_kernel.py, as the kernelspec starts it, and what it imports
      toolchains/  links to the Rust toolchain, see light_metadata.py and light_library.py
      build/   the kernels' build directories
      logs/    what kernels print besides their cells' output

Only Python's standard library is used here: this runs before the virtual environment is there.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cargo_build
import causes
import launch_kernel
import prebuild

EVCXR_VERSION = "0.22.0"
MINIMUM_PYTHON = (3, 10)
MINIMUM_RUST, KERNELS_RUST = (1, 89), (1, 95)  # What the crate is written in, and what evcxr 0.22 is.
HERE = Path(__file__).resolve().parent
ASIDE = "kernel.json.before-emoji_lab"  # Where another kernel's file is kept.
# Of evcxr's own for the classic Notebook: after each cell that is written it checks the code, for which all crates
# are compiled once more, while the next cell waits for minutes.
LINTER = ("kernel.js", "lint.js", "lint.css", "lint-LICENSE")
KERNEL_PROFILE = HERE / "kernel-profile.toml"
SECONDS = json.loads((HERE / "build_seconds.json").read_text())
# Megabytes that each takes while it is made; docs/start-up.md has what stays.
ROOM = {"the kernel": 850, "the crate": 1600, "Jupyter's packages": 150}
FULL = 5  # Megabytes that are free where something just failed for want of room: not every program says why.


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


def run(command, problem, home, **options):
    """Runs a command; a failure becomes a SetupError: one sentence if its cause is known, else what it said and `problem`."""
    try:
        done = subprocess.run([str(word) for word in command], stderr=subprocess.PIPE, text=True, **options)
    except OSError as error:
        raise SetupError(f"{problem} ({error})") from None
    if done.returncode:
        raise failure(done.stderr.splitlines(), problem, home)


def failure(said, problem, home):
    """The SetupError for a command that failed and said so."""
    word = "full" if causes.free(home) < FULL else causes.cause(said)
    if word:
        return SetupError(causes.sentence(word, problem, home))
    shown = "\n".join(f"  {line}" for line in said[-20:])
    return SetupError(f"{problem}; it said:\n{shown}")


def first_line(command):
    """The first line a command prints, or None if it does not run."""
    try:
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return out.splitlines()[0] if out else ""


@contextlib.contextmanager
def only_one(home):
    """Two runs at once: the second waits while the first installs, and shows how far that is."""
    with writing(home, home):
        home.mkdir(parents=True, exist_ok=True)
        lock = open(home / "setup.lock", "w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up to finish")
            wait_for(lock, home / "setup.status")
        try:
            yield
        finally:
            (home / "setup.status").unlink(missing_ok=True)


def wait_for(lock, status):
    """Waits for the lock; shows what the one that holds it says."""
    line = cargo_build.Line()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(OSError):
                line.show(f"waiting, another set-up is at work: {status.read_text().removeprefix('set-up: ')}")
            time.sleep(0.5)
        else:
            line.end()
            return


@contextlib.contextmanager
def writing(place, home):
    """What the system says of a file that cannot be written, as a sentence."""
    try:
        yield
    except OSError as error:
        word = causes.cause([str(error), f"os error {error.errno}"])
        if word is None:
            raise
        raise SetupError(causes.sentence(word, f"cannot write {place}", home)) from None


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
    # One that was cut off while it was made has no pip.
    if not alive or first_line([str(python), "-m", "pip", "--version"]) is None:
        shutil.rmtree(venv, ignore_errors=True)
        run(
            [sys.executable, "-m", "venv", venv],
            "Python cannot make a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)",
            home,
            stdout=subprocess.DEVNULL,
        )
    run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "2", "-r", requirements],
        f"pip could not install Jupyter's packages ({requirements.name})",
        home,
    )
    stamp.write_text(wanted)
    return python


def rust_version():
    """What `rustc --version` says, as numbers; None where it does not run."""
    found = re.search(r"(\d+)\.(\d+)", first_line(["rustc", "--version"]) or "")
    return found and (int(found[1]), int(found[2]))


def ensure_rust(home):
    """rustc, cargo, a linker, and the standard library's source, which evcxr reads types from."""
    cargo_bin = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo") / "bin"
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(cargo_bin)])
    for tool in ("rustc", "cargo"):
        if first_line([tool, "--version"]) is None:
            raise SetupError(f"{tool} does not run; install Rust (https://rustup.rs) and try again")
    version, needed = rust_version(), MINIMUM_RUST if find_evcxr(home) else KERNELS_RUST
    if version and version < needed:
        wanted, there = (".".join(map(str, numbers)) for numbers in (needed, version))
        raise SetupError(f"Rust {wanted} or newer is needed, this is {there}; with rustup: rustup update stable")
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
    run(["rustup", "component", "add", "rust-src"], problem, home, stdout=subprocess.DEVNULL)
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


def find_evcxr(home):
    """The path of an evcxr_jupyter of the pinned version, ours or the one on the PATH; None if there is none."""
    ours, on_path = our_evcxr(home), shutil.which("evcxr_jupyter")
    if is_our_evcxr(ours):
        return ours
    return Path(on_path).absolute() if on_path and is_our_evcxr(on_path) else None


def our_evcxr(home):
    return home / "cargo" / "bin" / "evcxr_jupyter"


def kernel_build(home):
    """The Build that installs evcxr_jupyter; what is compiled stays until all of it is, so that the next run goes on."""
    root = home / "cargo"
    env = dict(os.environ, CARGO_TARGET_DIR=str(root / "target"))
    command = ["cargo", "install", "--verbose", "--locked", "--config", KERNEL_PROFILE, "--root", root]
    command += ["--version", EVCXR_VERSION, "evcxr_jupyter"]
    return cargo_build.Build("the kernel", command, SECONDS["the kernel"], home, env)


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
    for program in ("kernel_cargo.sh", "light_library.py", "light_metadata.py", "launch_kernel.py"):
        write_if_changed(home / "kernel" / program, (HERE / program).read_text())
    kernels = kernels or home / "venv" / "share" / "jupyter" / "kernels"
    folder = kernels / "rust"
    if not (folder / "version.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            env = dict(os.environ, JUPYTER_PATH=scratch)
            run([evcxr, "--install"], "evcxr_jupyter does not run", home, env=env, stdout=subprocess.DEVNULL)
            for resource in (Path(scratch) / "kernels" / "rust").iterdir():
                if resource.name not in ("kernel.json", *LINTER):
                    shutil.copy2(resource, folder / resource.name)
    if not (folder / ASIDE).exists():  # Else they are of the kernel that comes back one day.
        for name in LINTER:
            (folder / name).unlink(missing_ok=True)
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
    spec, aside = folder / "kernel.json", folder / ASIDE
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
    aside = folder / ASIDE
    if aside.exists():
        os.replace(aside, folder / "kernel.json")
        say(f"the earlier kernel is back in {folder}")
    elif is_our_spec(folder / "kernel.json"):
        shutil.rmtree(folder)
        say(f"kernel `rust` removed from {folder}")
    else:
        say(f"no kernel of ours in {folder}")


def check_room(home, wanted):
    """Refuses to begin what the disk has no room for; `wanted` are names of ROOM."""
    needed, there = sum(ROOM[name] for name in wanted), causes.free(home)
    if there < needed:
        raise SetupError(
            f"{', '.join(wanted)}: {needed} MB are needed at {home}, and {there} MB are free; make room there, "
            "or name a folder on another disk in EMOJI_LAB_HOME"
        )


def crate_build(home, notebook, cuda, stack):
    """The Build of the crate that a notebook asks for and that is not built yet, and what is to be noted then; else None."""
    line = notebook and "EVCXR_TMPDIR" not in os.environ and prebuild.asked_for(notebook, cuda)
    if not line:
        return None, None
    slot = stack.enter_context(prebuild.Slot(home, notebook))
    if prebuild.is_built(slot.path, line):
        return None, None
    # As it is now: an edit while it is compiled is compiled again.
    changed = prebuild.newest(prebuild.crate_of(line))
    return prebuild.build(slot.path, line, SECONDS["the crate"], notebook.parent), lambda: prebuild.note(slot.path, line, changed)


def ensure_all(home, lab=False, notebook=None, cuda=False):
    """Everything a run of `notebook` needs; returns the virtual environment's Python and evcxr's path.

    The kernel, the crate and Jupyter's packages need nothing of each other, and are made at the same time.
    """
    own = launch_kernel.own_home(home)
    with only_one(own), writing(own, own), contextlib.ExitStack() as stack:
        ensure_rust(home)
        evcxr = find_evcxr(home)
        if own != home:
            check_shared(home, evcxr)
        kernel = None if evcxr else kernel_build(home)
        crate, note = crate_build(home, notebook, cuda, stack)
        lists = ["requirements.txt"] + ["requirements-lab.txt"] * lab
        packages = cargo_build.Other("Jupyter's packages", lambda: [ensure_venv(home, HERE / name) for name in lists][0])
        builds = [build for build in (kernel, crate, packages) if build]
        # What was begun has its room already.
        begun = {"the kernel": home / "cargo" / "target", "the crate": crate and crate.cwd / "target", packages.name: home / "venv"}
        check_room(own, [build.name for build in builds if not begun[build.name].exists()])
        then = "the cells" if notebook else "that is all"
        for build in cargo_build.run(builds, then, cargo_build.Line(own / "setup.status"), optional=crate):
            if build is packages:
                raise packages.error
            if build is kernel or causes.cause(build.said):
                raise failure(list(build.said), f"cargo could not compile {build.name}", own)
            note = None
            say("the crate does not compile; the notebook's first cell says why")
        if crate and note:
            note()
        if kernel:
            shutil.rmtree(home / "cargo" / "target", ignore_errors=True)
            evcxr = our_evcxr(home)
        if own == home:
            ensure_kernelspec(home, packages.result, evcxr)
            if crate:
                # Beside what was compiled, so that those who only read this folder find it.
                version, sysroot = (launch_kernel.rustc(*what, folder=notebook.parent) for what in (["-vV"], ["--print", "sysroot"]))
                launch_kernel.library_source(home, launch_kernel.host_and_key(version)[1], sysroot)
        return packages.result, evcxr


def check_shared(home, evcxr):
    """Refuses a folder of someone else's that is not ready."""
    stamp, wanted = home / "venv" / "installed-requirements.txt", HERE / "requirements.txt"
    ready = evcxr and stamp.is_file() and stamp.read_text() == wanted.read_text()
    if not ready:
        raise SetupError(
            f"{home} is someone else's, and not set up for this: have its owner run `notebooks/run --setup`, "
            "or name a folder of your own in EMOJI_LAB_HOME"
        )
