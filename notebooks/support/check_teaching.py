"""Checks what the notebooks beside the lesson show once they are executed.

    check_teaching.py EXECUTED.ipynb…

Every cell ran and shows something, pictures and tables have a text twin, nothing is of this machine;
in regression.ipynb every cell after the first two asserts and ends with ok, in how_qlora_works.ipynb the pictures are drawn
and every exercise has a hidden answer. Prints one line a check; ends with 1 if one fails.
"""

import re
import sys
from pathlib import Path

from check_lesson import Lesson, count_text_twins, every_cell_ran, nothing_private

PICTURES = {"histogram": 16, "errors": 1, "rank": 1, "lengths": 1}  # Cells, and the lines that are drawn at least.
EXERCISE = re.compile(r"^\*\*Exercise \d+\.", re.MULTILINE)
ANSWER = re.compile(r"<details>\s*<summary>Answer</summary>\n\n.+?\n\n</details>", re.DOTALL)


def text_twins(notebook):
    return f"{count_text_twins(notebook)} tables and pictures"


def asserted(notebook):
    for cell in notebook.code:
        if cell["id"] in ("parameters", "injected-parameters", "setup"):
            continue
        source, shown = "".join(cell["source"]), notebook.data(cell["id"], "stdout")
        assert "assert!(" in source, f"cell {cell['id']} asserts nothing"
        last = (shown.splitlines() or [""])[-1]
        assert last.startswith("ok: "), f"cell {cell['id']} ends with {last!r}, not with ok"
    return f"{sum(''.join(cell['source']).count('assert!(') for cell in notebook.code)} assertions"


def pictures(notebook):
    for step, least in PICTURES.items():
        svg = notebook.data(step, "image/svg+xml")
        drawn = len(re.findall(r"<(?:polyline|rect|line)\b", svg))
        assert drawn >= least + 2, f"cell {step}: {drawn} lines and boxes in its picture"
    return f"{len(PICTURES)} pictures"


def masks(notebook):
    """The two token strips: the loss counts all tokens but the first, then the answer's only."""
    counts = []
    for step in ("tokens", "answer"):
        found = re.match(r"(\d+) tokens, (\d+) of them in the loss", notebook.data(step, "text/plain"))
        assert found, f"cell {step}: no count of tokens"
        counts.append(tuple(map(int, found.groups())))
    (all_tokens, all_counted), (same, answer) = counts
    assert all_counted == all_tokens - 1 and same == all_tokens and 0 < answer < all_counted, counts
    return f"{all_counted} and {answer} of {all_tokens} tokens"


def exercises(notebook):
    asked, answered = len(EXERCISE.findall(notebook.markdown)), len(ANSWER.findall(notebook.markdown))
    assert asked and asked == answered, f"{asked} exercises, {answered} hidden answers"
    return f"{asked} exercises with answers"


CHECKS = {
    "regression": [asserted],
    "how_qlora_works": [pictures, masks, exercises],
}


def main(paths):
    failed = total = 0
    for path in map(Path, paths):
        for check in [every_cell_ran, text_twins, nothing_private, *CHECKS[path.stem]]:
            total += 1
            name = f"{path.stem}: {check.__name__.replace('_', ' ')}"
            try:
                print(f"{name}: ok ({check(Lesson(path))})")
            except (AssertionError, KeyError, ValueError, OSError) as error:
                failed += 1
                print(f"{name}: FAILED: {type(error).__name__}: {error}")
    print(f"notebooks: {total - failed} checks passed, {failed} failed")
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
