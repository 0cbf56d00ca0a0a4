"""What the kernel's type inference is told of the crates: `light_metadata.py CARGO metadata …`.

evcxr asks rust-analyzer for the types of variables, and that reads the source of every crate it knows
of: with all that lies below emoji_lab it takes a first cell 17 seconds instead of 6. Types that cells
can have are emoji_lab's own and those of the few crates in SHOWN. So rust-analyzer gets cargo's
metadata without the rest. What is compiled is not touched: only `cargo metadata` is answered so. evcxr, too, takes
that cargo.

rust-analyzer takes the cargo of the toolchain it is told. `toolchain` makes one that is the real one
by links, except for its cargo, a script (kernel_cargo.sh) that sends `metadata` through this program.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

OURS = ("emoji_lab", "emoji_lab_numerics")
# Crates below ours whose types are in their interface.
SHOWN = ("candle-core", "serde_json")
HERE = Path(__file__).resolve()
# What follows in the script is kernel_cargo.sh.
HEAD = """\
#!/bin/sh
real={real} python={python} light={light}
"""


def lighten(metadata):
    """Takes out of `metadata` (of cargo, format 1) what is only reached through emoji_lab."""
    names = {package["id"]: package["name"] for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    ours = {id for id, name in names.items() if name in OURS and id != root}
    if not ours or root is None:
        return metadata
    # Crates that a cell asked for itself stay whole.
    asked = set(nodes[root]["dependencies"]) - ours
    for id in ours:
        keep(nodes[id], lambda below: names[below] in OURS + SHOWN)
        for below in nodes[id]["dependencies"]:
            if below not in asked | ours:
                keep(nodes[below], lambda _: False)
    seen, left = set(), [root]
    while left:
        id = left.pop()
        if id not in seen:
            seen.add(id)
            left += nodes[id]["dependencies"]
    metadata["packages"] = [package for package in metadata["packages"] if package["id"] in seen]
    metadata["resolve"]["nodes"] = [node for node in metadata["resolve"]["nodes"] if node["id"] in seen]
    return metadata


def keep(node, which):
    node["deps"] = [dependency for dependency in node["deps"] if which(dependency["pkg"])]
    node["dependencies"] = [dependency["pkg"] for dependency in node["deps"]]


def toolchain(folder, sysroot, python):
    """Makes `folder` a toolchain like the one in `sysroot`, whose cargo answers `metadata` in this way."""
    sysroot = Path(sysroot)
    if not (sysroot / "bin" / "cargo").exists():
        return False
    real, python, light = (shlex.quote(str(path)) for path in (sysroot / "bin" / "cargo", python, HERE))
    script = HEAD.format(real=real, python=python, light=light) + HERE.with_name("kernel_cargo.sh").read_text()
    cargo = folder / "bin" / "cargo"
    if cargo.exists() and cargo.read_text() == script:
        return True
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    (part / "bin").mkdir()
    for entry in sysroot.iterdir():
        if entry.name != "bin":
            (part / entry.name).symlink_to(entry)
    for entry in (sysroot / "bin").iterdir():
        if entry.name != "cargo":
            (part / "bin" / entry.name).symlink_to(entry)
    (part / "bin" / "cargo").write_text(script)
    (part / "bin" / "cargo").chmod(0o755)
    part.chmod(0o755)
    if folder.exists():
        # Another kernel may be using it: it is moved aside, not emptied.
        folder.rename(Path(tempfile.mkdtemp(prefix="old.", dir=folder.parent)) / folder.name)
    part.rename(folder)
    return True


def main():
    real, arguments = sys.argv[1], sys.argv[2:]
    done = subprocess.run([real, *arguments], stdout=subprocess.PIPE)
    output = done.stdout
    if done.returncode == 0:
        try:
            output = json.dumps(lighten(json.loads(output))).encode()
        except (ValueError, KeyError, TypeError) as error:
            # Slower, but right.
            print(f"light_metadata: {error!r}; the metadata are passed on as they are", file=sys.stderr)
    sys.stdout.buffer.write(output)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
