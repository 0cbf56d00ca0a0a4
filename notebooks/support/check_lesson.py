"""Checks what an executed lesson shows, and the files that it left.

    check_lesson.py EXECUTED.ipynb [--real | --committed]

The folder of EXECUTED.ipynb must be the one that the lesson wrote its results to; --committed looks
at the notebook alone. With --real, for a run on another model than the embedded one, the tuned
model's answers may be any.
Prints one line a check; ends with 1 if one fails.
"""

import argparse
import json
import math
import re
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import parameters

# The lesson's steps in the order of the Python notebook.
STEPS = [
    "setup", "parameters", "login", "dataset", "custom-dataset", "model", "format", "test-base", "quant-config",
    "lora-config", "sft-config", "trainer", "train", "plot", "merge", "compare", "measure", "sweep", "best", "suggest", "push", "export", "onnx", "page", "serve",
]  # fmt: skip
SECTIONS = [
    "Set up the development environment", "Enable Hugging Face permissions", "Load the dataset",
    "Use your own dataset", "Load the model", "Format the training dataset", "test the base model",
    "Fine-tune the model", "Configure the tuning job", "Start training", "Plot the training results",
    "How to read the curves", "Merge the adapters", "Test the fine-tuned model", "Measure it", "Do better than the recipe", "Three suggestions",
    "Save your model and upload it", "Take it with you", "A page of your own", "Summary and next steps",
]  # fmt: skip


class Tables(HTMLParser):
    """The tables of an HTML text, as lists of rows of cell texts."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def is_emoji(text):
    """Whether `text` has emoji and neither letters nor punctuation; digits only in keycaps."""
    rest = re.sub("[0-9#*]\ufe0f?\u20e3", "", text.strip())
    picture = rest != text.strip() or any(unicodedata.category(c) == "So" for c in rest)
    words = any(unicodedata.category(c)[0] in "LNP" for c in rest)
    return picture and not words


class Lesson:
    def __init__(self, path):
        self.folder = path.parent
        cells = json.loads(path.read_text())["cells"]
        self.raw = path.read_text()
        self.markdown = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        self.code = [cell for cell in cells if cell["cell_type"] == "code"]
        self.by_id = {cell["id"]: cell for cell in self.code}

    def data(self, step, kind):
        """What a step's cell shows as `kind` (a MIME type, or a stream's name)."""
        found = []
        for output in self.by_id[step]["outputs"]:
            if output.get("name") == kind:
                found.append("".join(output["text"]))
            elif kind in output.get("data", {}):
                found.append("".join(output["data"][kind]))
        return "\n".join(found)

    def log_history(self):
        """The history in the last checkpoint, as Hugging Face's Trainer writes it."""
        states = self.folder.glob("myemoji-gemma-adapters/checkpoint-*/trainer_state.json")
        last = max(states, key=lambda path: int(path.parent.name.rsplit("-", 1)[1]))
        return json.loads(last.read_text())["log_history"]


def every_cell_ran(lesson):
    counts = [cell["execution_count"] for cell in lesson.code]
    assert counts == list(range(1, len(counts) + 1)), f"execution counts {counts}"
    for cell in lesson.code:
        assert cell["outputs"] or "parameters" in cell["id"], f"cell {cell['id']} shows nothing"
        kinds = {output["output_type"] for output in cell["outputs"]}
        assert "error" not in kinds, f"cell {cell['id']} has an error"
        noise = lesson.data(cell["id"], "stderr")
        assert not noise, f"cell {cell['id']} printed to stderr: {noise[:200]}"
    return f"{len(counts)} cells"


def steps_in_order(lesson):
    own = [cell["id"] for cell in parameters.without_injected(lesson.code)]
    assert own == STEPS, "the code cells are not the lesson's steps"
    at = [lesson.markdown.lower().find(section.lower()) for section in SECTIONS]
    missing = [section for section, place in zip(SECTIONS, at) if place < 0]
    assert not missing, f"missing sections: {missing}"
    assert at == sorted(at), "sections out of order"
    return f"{len(STEPS)} steps, {len(SECTIONS)} sections"


def count_text_twins(notebook):
    """How many outputs are more than text; each must have its text beside it."""
    rich = 0
    for cell in notebook.code:
        for output in cell["outputs"]:
            data = output.get("data", {})
            if any(kind != "text/plain" for kind in data):
                rich += 1
                assert "".join(data.get("text/plain", "")).strip(), f"cell {cell['id']}: no text beside {list(data)}"
    return rich


def text_twins(lesson):
    rich = count_text_twins(lesson)
    assert rich >= 4, f"only {rich} tables and pictures"
    return f"{rich} tables and pictures"


def picture(lesson):
    svg = lesson.data("plot", "image/svg+xml") or lesson.data("plot", "text/html")
    assert "<svg" in svg and re.search(r"<(polyline|path|line|circle)\b", svg), "no drawn SVG in the plot cell"
    return f"{len(svg)} bytes of SVG"


def loss_falls(lesson):
    history = lesson.log_history()
    told = []
    for key in ("loss", "eval_loss"):
        values = [entry[key] for entry in history if key in entry]
        assert values and all(map(math.isfinite, values)), f"{key}: {values}"
        if len(values) > 1:
            assert values[-1] < values[0], f"{key} does not fall: {values}"
        told.append(f"{key} {values[0]:.3f} → {values[-1]:.3f}")
    return ", ".join(told)


def answers(lesson):
    rows = Tables(lesson.data("compare", "text/html")).rows
    head = next(row for row in rows if "Tuned model" in row)
    base, tuned = head.index("Base model"), head.index("Tuned model")
    pairs = [(row[base], row[tuned]) for row in rows if len(row) == len(head) and row != head]
    assert pairs, "no answers"
    for before, after in pairs:
        assert is_emoji(after), f"the tuned model answers {after!r}"
    changed = sum(before != after for before, after in pairs)
    assert changed, "the tuned model answers as the base model does"
    return " ".join(after for _, after in pairs)


def files(lesson):
    wanted = [
        "myemoji-gemma-adapters/adapter_config.json",
        "myemoji-gemma-adapters/adapter_model.safetensors",
        "myemoji-gemma-merged/config.json",
        "myemoji-gemma-merged/model.safetensors",
        "myemoji-gemma-merged/tokenizer.json",
    ]
    missing = [name for name in wanted if not (lesson.folder / name).is_file()]
    assert not missing, f"missing: {missing}"
    return f"{len(wanted)} files"


def nothing_private(lesson):
    found = re.findall(r"hf_[A-Za-z0-9]{20,}|/(?:root|home|Users|work)/[^\"\\ ]*", lesson.raw)
    assert not found, f"tokens or paths of this machine: {found[:3]}"
    return "no token, no path of this machine"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--committed", action="store_true")
    args = parser.parse_args()
    lesson = Lesson(args.notebook)
    checks = [every_cell_ran, steps_in_order, text_twins, picture]
    if not args.committed:
        checks += [loss_falls, files]
    if not args.real:
        checks += [answers, nothing_private]
    failed = 0
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            print(f"lesson: {name}: ok ({check(lesson)})")
        except (AssertionError, KeyError, ValueError, OSError, StopIteration) as error:
            failed += 1
            print(f"lesson: {name}: FAILED: {type(error).__name__}: {error}")
    print(f"lesson: {len(checks) - failed} checks passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
