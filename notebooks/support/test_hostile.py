"""Rows and a model that attack the notebook, through the real kernel: all of it stays text.

    python3 notebooks/support/test_hostile.py

The lesson's own cells run on them, and cells that a person may write. Looked at are the saved
notebook's outputs: their MIME types, tags, characters; that every cell ended, and that variables stay.
"""

import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import hostile
import parameters
from test_crate import USE
from test_runner import RUN, Run

LESSON = RUN.parent / "finetune_gemma3_emoji.ipynb"
FAILS = "raises-exception"


def kinds(cell):
    """The kinds of a cell's outputs, without their contents."""
    return [output.get("name") or sorted(output["data"]) for output in cell["outputs"]]


def views(cell):
    return [kind for kind in kinds(cell) if kind != "stdout"]


def setUpModule():
    """Builds the crate first, which may take minutes: a cell that then takes long hangs."""
    run = Run(USE)
    assert run.code == 0, run.log[-3000:]


def code(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def with_room(lesson):
    """A copy of the lesson for rows as long as these: with fewer tokens each of them would lose its answer."""
    copy = RUN.parent / "out" / "test-hostile" / lesson.name
    text = lesson.read_text()
    for short, long in (("max_length: 256", "max_length: 2048"), ('path = \\"../emoji_lab', 'path = \\"../../../emoji_lab')):
        assert short in text, short
        text = text.replace(short, long)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(text)
    return copy


class Lesson(unittest.TestCase):
    def test_rows_model_and_names_stay_text(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            rows, model, out = folder / (hostile.NAME + ".csv"), folder / hostile.NAME, folder / "out"
            hostile.write_rows(rows)
            hostile.write_model(model)
            variables = {"EMOJI_LAB_OUTPUT": str(folder / ("results " + hostile.NAME)), "HF_HUB_OFFLINE": "1"}
            run = subprocess.run(
                [RUN, with_room(LESSON), "--model", model, "--data", rows, "--epochs", "1", "--timeout", "180", "--out", out],
                env={**os.environ, **variables}, capture_output=True, text=True, timeout=1800,
            )  # fmt: skip
            log = run.stdout + run.stderr
            self.assertEqual(run.returncode, 0, log[-6000:])
            # A terminal obeys such characters as well.
            self.assertIsNone(hostile.FORBIDDEN.search(log))
            cells, page = code(out / LESSON.name), (out / LESSON.with_suffix(".html").name).read_text()
            self.assertEqual(hostile.faults(cells), [])
            for cell, usual in zip(parameters.without_injected(cells), code(LESSON), strict=True):
                # These rows are long, and max_length says so: there may be more lines, not other kinds.
                self.assertEqual(views(cell), views(usual), cell["id"])
            said = {cell["id"]: json.dumps(cell["outputs"], ensure_ascii=False) for cell in cells}
            for step in ("test-base", "compare"):
                for part in ("onerror", "PANIC_NOTIFICATION", "␛", "⟨U+202E⟩"):
                    self.assertIn(part, said[step], f"{step} hides {part}")
            self.assertIn("dropped: text beside the emoji", said["custom-dataset"])
            self.assertIn("&lt;img src=", page)
            for active in (hostile.PICTURE, f"<script>{hostile.SCRIPT}"):
                self.assertNotIn(active, page)


class Cells(unittest.TestCase):
    def test_cells_of_a_person(self):
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder) / "rows.csv"
            hostile.write_rows(rows)
            model = Path(folder) / "model"
            hostile.write_model(model)
            (Path(folder) / "name").write_text(hostile.NAME)
            missing = f'let missing = std::fs::read_to_string("{folder}/name")?;\n'
            run = Run(
                USE + f'let rows = load_dataset("{rows}", EmojiFilter::None)?;\nlet kept = 42;\n' + missing,
                "for row in &rows.examples { say!(\"{}\\t{}\", row.text, row.answer); }",
                "rows.examples[0].text.clone()",  # The kernel's own display, as Debug has it.
                "let task = Task { system_prompt: rows.examples[4].text.clone(), name: rows.examples[2].text.clone(), "
                "description: rows.examples[8].text.clone(), ..Task::emoji() };\n"
                "say!(\"{}\", format_chat(&Dataset { task: task.clone(), ..rows.clone() }));\ntask",
                "use emoji_lab::display::ComparisonRow;\n"
                "fn asked(e: &Example) -> ComparisonRow { ComparisonRow { prompt: e.text.clone(), base: e.text.clone(), "
                "tuned: e.answer.clone(), expected: Some(e.text.clone()) } }\n"
                "Comparison { rows: rows.examples.iter().map(asked).collect() }",
                f'let model = load_model("{model}", &Device::Cpu)?;\nlet chat = format_chat(&rows);\n'
                "emoji_lab::train::tokens_in_training(&chat.conversations[2], &model.tokenizer, &SftConfig::default())?",
                # An error is plain even where it is printed with println!.
                'let error = load_dataset(&missing, EmojiFilter::None).unwrap_err();\nprintln!("{error}\\n{error:?}");',
                ("let lost = 1;\nload_dataset(&missing, EmojiFilter::None)?;", FAILS),
                ("load_dataset(&missing, EmojiFilter::None).unwrap();", FAILS),
                # Not ours: the kernel does not read its protocol from stderr.
                ('panic!("{}", rows.examples[0].text);', FAILS),
                'println!("{kept} {} {}", rows.len(), model.is_embedded());',
                options=("--timeout", "180"),
            )
            self.assertEqual(run.code, 0, run.log[-6000:])
            # Cells 2 and 9 are the kernel's own display of a String, and a panic with a row in it.
            ours = [cell for number, cell in enumerate(run.cells) if number not in (2, 9)]
            self.assertEqual(hostile.faults(ours), [])
            self.assertIn("onerror", run.text(1))
            self.assertEqual(kinds(run.cells[2]), [["text/plain"]])
            self.assertIn(hostile.ENGLAND, run.text(1))
            self.assertIn("EVCXR\u200b_BEGIN_CONTENT", run.text(6))
            for number in (7, 8):
                self.assertIn("EVCXR\u200b_BEGIN_CONTENT", run.text(number, "stderr"), number)
            self.assertIn("EVCXR_BEGIN_CONTENT", run.text(9, "stderr"))
            self.assertEqual(kinds(run.cells[9]), ["stderr"])
            self.assertEqual(run.text(10), "42 40 false\n")


if __name__ == "__main__":
    unittest.main(verbosity=2)
