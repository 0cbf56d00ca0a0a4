"""Whether kernel-setup.md's table names each setting that a notebook reads, and no other.

    python3 notebooks/support/check_settings.py

Prints one line a difference; ends with 1 if there is one.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def read_by_notebooks():
    """Names in `setting("NAME"…` and `setting_or("NAME"…` of code cells, each with a notebook that has it."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                for name in re.findall(r'\bsetting(?:_or)?(?:::<[^>]*>)?\(\s*"(\w+)"', "".join(cell["source"])):
                    found.setdefault(name, path.name)
    return found


def in_the_table():
    """Names in the first column of the table below `## Settings`."""
    section = (ROOT / "kernel-setup.md").read_text().split("\n## Settings\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(EMOJI_LAB_\w+)`", row)}


def main():
    read, told = read_by_notebooks(), in_the_table()
    if not read or not told:
        print(f"settings: {len(read)} found in notebooks, {len(told)} in the table: this check is broken")
        return 1
    differences = [f"{name} of {read[name]} is not in kernel-setup.md's table" for name in sorted(read.keys() - told)]
    differences += [f"{name} of kernel-setup.md's table is read by no notebook" for name in sorted(told - read.keys())]
    for line in differences:
        print(f"settings: {line}")
    print(f"settings: {len(read.keys() & told)} agree")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
