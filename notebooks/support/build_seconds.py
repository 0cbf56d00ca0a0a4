"""Where a cold start's seconds go, by crate: builds the kernel and the crate anew, and prints the tables of docs/start-up.md.

    python3 notebooks/support/build_seconds.py [--only kernel|crate] [--write] [--keep DIR]

Both are built in empty folders, one after the other, with the settings of `notebooks/run`; crates are downloaded
before. --write keeps the seconds of each crate in build_seconds.json, by which `notebooks/run` tells how long a
build takes still; --keep leaves what was built in DIR.
"""

import argparse
import collections
import json
import os
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

import cargo_build
import environment
import launch_kernel
import prebuild

SECONDS = Path(__file__).resolve().parent / "build_seconds.json"
UNITS = re.compile(r"^const UNIT_DATA = (\[.*?\]);$", re.MULTILINE | re.DOTALL)
LEAST = 1.0  # Crates below are one number together.
SHOWN = 16


def kernel(folder):
    build = environment.kernel_build(folder)
    return build, folder / "cargo" / "target"


def crate(folder):
    launch_kernel.write_cargo_config(folder)
    notebook = Path(__file__).resolve().parents[1] / "finetune_gemma3_emoji.ipynb"
    build = prebuild.build(folder / "1", prebuild.asked_for(notebook), {}, notebook.parent)
    return build, folder / "1" / "target"


def timed(build, target):
    """Runs a build with --timings: wall, user and system seconds, and the seconds of each crate's units together."""
    build.command.insert(build.command.index("--verbose"), "--timings")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    if cargo_build.run([build], "the tables", cargo_build.Line()):
        sys.exit("\n".join(build.said))
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    page = (target / "cargo-timings" / "cargo-timing.html").read_text()
    seconds, units = collections.Counter(), json.loads(UNITS.search(page)[1])
    for unit in units:
        seconds[unit["name"]] += unit["duration"]
    return wall, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, len(units), seconds


def show(name, wall, user, system, units, seconds):
    total = sum(seconds.values())
    print(f"\n{name}: {wall:.0f} s, {user:.0f} s of user and {system:.0f} s of system time, {len(seconds)} crates, {units} units")
    print("\n| crate | seconds | share |\n|---|---|---|")
    for crate, took in seconds.most_common(SHOWN):
        print(f"| {crate} | {took:.1f} | {took / total:.0%} |")
    rest = seconds.most_common()[SHOWN:]
    print(f"| {len(rest)} others | {sum(took for _, took in rest):.1f} | {sum(took for _, took in rest) / total:.0%} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["kernel", "crate"])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    known = json.loads(SECONDS.read_text())
    with tempfile.TemporaryDirectory(dir=os.environ.get("EMOJI_LAB_HOME")) as scratch:
        for short, make in (("kernel", kernel), ("crate", crate)):
            if args.only not in (None, short):
                continue
            folder = (args.keep.resolve() if args.keep else Path(scratch)) / short
            folder.mkdir(parents=True)
            build, target = make(folder)
            result = timed(build, target)
            show(build.name, *result)
            known[build.name] = {name: round(took, 1) for name, took in sorted(result[-1].items()) if took >= LEAST}
    if args.write:
        SECONDS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
