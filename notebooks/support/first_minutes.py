"""What a new user waits for, as one table: cold, warm, four at once, after an edit, and what it takes of the disk.

    python3 notebooks/support/first_minutes.py [cold] [warm] [disk] [four] [edit]

Without a name all of them, in this order. `cold` begins with nothing but Rust, Python and a C compiler (and the
crates downloaded, unless CARGO_HOME is empty) in a new folder below EMOJI_LAB_HOME, which the others then use;
without it they use EMOJI_LAB_HOME as it is. Nothing else should run meanwhile. docs/start-up.md has the tables.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import environment
import launch_kernel

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "notebooks" / "run"
NUMBER = r"([\d.]+) s"
# What it should take at most, in seconds or megabytes, on two cores.
BARS = {
    "from nothing: wall": 450, "from nothing: CPU": 650, "first cell, with rustup": 5, "first cell, without rustup": 7,
    "median other cell": 0.7, "disk after set-up": 1200, "disk of a further kernel": 100, "four lessons at once": 80,
    "the latest of their first cells": 10, "after an edit, to the first result": 40,
}  # fmt: skip
rows = []


def note(what, value, unit):
    bar = BARS[what]
    rows.append((what, value, unit, bar))
    print(f"{what}: {value:.1f} {unit}, at most {bar} {unit}: {'ok' if value <= bar else 'OVER'}", flush=True)


def lesson(home, out, *options, path=None, run=RUN):
    """Runs the lesson; what it printed."""
    env = {name: value for name, value in os.environ.items() if name != "EVCXR_TMPDIR"}
    env |= {"EMOJI_LAB_HOME": str(home)} | ({"PATH": path} if path else {})
    done = subprocess.run([run, *options, "--out", out], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    if done.returncode:
        sys.exit(f"notebooks/run ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def seconds(log, what):
    return float(re.search(rf"^  {what} +{NUMBER}", log, re.MULTILINE)[1])


def first_cell(log):
    return float(re.search(rf"^\[ 1/.*?^        ok \({NUMBER}\)", log, re.MULTILINE | re.DOTALL)[1])


def cold(home, out):
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    lesson(home, out / "cold")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    note("from nothing: wall", time.monotonic() - started, "s")
    note("from nothing: CPU", after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "s")


def warm(home, out):
    lesson(home, out / "warm")  # What is read comes from memory from here on.
    log = lesson(home, out / "warm", "--timings")
    note("first cell, with rustup", seconds(log, "first cell"), "s")
    note("median other cell", seconds(log, "other cells, compiling, median"), "s")
    with tempfile.TemporaryDirectory() as folder:
        # The toolchain's own programs, as a distribution installs them, and a PATH where no rustup is.
        sysroot = Path(launch_kernel.rustc("--print", "sysroot"))
        path = os.pathsep.join([str(sysroot / "bin"), *without_rustup(Path(folder))])
        log = lesson(home, out / "warm", "--timings", path=path)
    note("first cell, without rustup", seconds(log, "first cell"), "s")


def without_rustup(folder):
    """The PATH's folders; of one that has rustup, a copy by links without it and its programs."""
    for number, place in enumerate(os.environ["PATH"].split(os.pathsep)):
        if not (Path(place) / "rustup").exists():
            yield place
            continue
        (folder / str(number)).mkdir()
        for program in Path(place).iterdir():
            if "rustup" not in os.path.realpath(program):
                (folder / str(number) / program.name).symlink_to(program)
        yield str(folder / str(number))


def own_megabytes(folder, seen):
    """What files below `folder` take, except for those in `seen`, which grows."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(os.path.join(place, name))
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total / 1e6


def disk(home, out):
    seen = set()
    builds = home / "build" / launch_kernel.host_and_key(launch_kernel.rustc("-vV"))[1]
    for slot in builds.glob("*"):
        if slot.is_dir() and slot.name not in ("1", ".cargo"):
            shutil.rmtree(slot)
    note("disk after set-up", own_megabytes(home, seen), "MB")
    together(home, out, 2)
    note("disk of a further kernel", own_megabytes(builds / "2", seen), "MB")


def together(home, out, count):
    """The lesson several times at once; wall seconds, and what each printed."""
    logs, started = [None] * count, time.monotonic()

    def one(number):
        logs[number] = lesson(home, out / f"at-once-{number}")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - started, logs


def four(home, out):
    together(home, out, 4)  # Set up before.
    wall, logs = together(home, out, 4)
    note("four lessons at once", wall, "s")
    note("the latest of their first cells", max(map(first_cell, logs)), "s")


def edit(home, out):
    """In a copy of this checkout: a line of a function changes, and the kernel is started again."""
    with tempfile.TemporaryDirectory(dir=home) as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "emoji_lab", copy / "emoji_lab", ignore=shutil.ignore_patterns("target"))
        shutil.copytree(ROOT / "notebooks", copy / "notebooks", ignore=shutil.ignore_patterns("out"))
        shutil.copy2(ROOT / "Cargo.toml", copy / "Cargo.toml")
        run = copy / "notebooks" / "run"
        (copy / "Cargo.toml").write_text((ROOT / "Cargo.toml").read_text().replace(', "tests"]', "]"))
        notebook = copy / "notebooks" / "first.ipynb"
        notebook.write_text((copy / "notebooks" / "regression.ipynb").read_text())
        cut_to_first_cells(notebook)
        lesson(home, out / "edit", notebook, run=run)
        source = copy / "emoji_lab" / "src" / "data" / "split.rs"
        source.write_text(edited(source.read_text()))
        started = time.monotonic()
        lesson(home, out / "edit", notebook, run=run)
        note("after an edit, to the first result", time.monotonic() - started, "s")


def edited(source):
    """The source with another line in its first function."""
    head = re.search(r"^pub fn [^{;]*\{\n", source, re.MULTILINE)
    return source[: head.end()] + '    let _ = std::env::var_os("EMOJI_LAB_EDITED");\n' + source[head.end() :]


def cut_to_first_cells(path):
    """Leaves the parameters, the cell that names the crate and the first one that has a result."""
    book = json.loads(path.read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    book["cells"] = code[:3]
    path.write_text(json.dumps(book))


PARTS = {"cold": cold, "warm": warm, "disk": disk, "four": four, "edit": edit}


def main():
    wanted = sys.argv[1:] or list(PARTS)
    if not set(wanted) <= set(PARTS):
        sys.exit(__doc__)
    home = environment.home_directory()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="first-", dir=home) as folder:
        out = Path(folder) / "out"
        place = Path(folder) / "home" if "cold" in wanted else home
        for name in PARTS:
            if name in wanted:
                PARTS[name](place, out)
    print(f"\n{os.cpu_count()} cores; load at the end {os.getloadavg()[0]:.1f}\n\n| what | measured | at most |\n|---|---|---|")
    for what, value, unit, bar in rows:
        print(f"| {what} | {value:.{1 if bar < 20 else 0}f} {unit} | {bar} {unit} |")
    return 1 if any(value > bar for _, value, _, bar in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
