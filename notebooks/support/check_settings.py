"""Whether kernel-setup.md's table names each parameter of the notebooks, and no other.

    python3 notebooks/support/check_settings.py

No other cell may read a setting of its own. Prints one line a difference; ends with 1 if there is one.
"""

import json
import re
import sys
from pathlib import Path

import parameters

ROOT = Path(__file__).resolve().parents[2]


def read_by_notebooks():
    """The variables of the cells tagged `parameters`, each with a notebook that has it; and what else reads settings."""
    found, astray = {}, []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        for cell in cells:
            source = "".join(cell["source"])
            if parameters.TAG in cell["metadata"].get("tags", []):
                for name in parameters.declared(source):
                    found.setdefault(parameters.variable(name), path.name)
            elif re.search(r"\bsetting(_or)?\b|EMOJI_LAB_", source):
                astray.append(f"cell {cell['id']} of {path.name} reads a setting: make it a parameter")
    return found, astray


def in_the_table():
    """Names in the first column of the table below `## Settings`."""
    section = (ROOT / "kernel-setup.md").read_text().split("\n## Settings\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(EMOJI_LAB_\w+)`", row)}


def main():
    (read, astray), told = read_by_notebooks(), in_the_table()
    if not read or not told:
        print(f"settings: {len(read)} found in notebooks, {len(told)} in the table: this check is broken")
        return 1
    differences = astray + [f"{name} of {read[name]} is not in kernel-setup.md's table" for name in sorted(read.keys() - told)]
    differences += [f"{name} of kernel-setup.md's table is read by no notebook" for name in sorted(told - read.keys())]
    for line in differences:
        print(f"settings: {line}")
    print(f"settings: {len(read.keys() & told)} agree")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
