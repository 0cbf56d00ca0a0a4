"""papermill on notebooks in Rust: other parameters, failures, values that are refused. See tests/papermill/run."""

import json
import subprocess
import tempfile
import unittest
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
RUST = {"name": "rust", "display_name": "Rust", "language": "rust"}
PYTHON = {"name": "python3", "display_name": "Python 3", "language": "python"}


class Papermill(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.out = self.folder / "executed.ipynb"

    def write(self, *sources, kernel=RUST):
        """A notebook whose first cell is tagged `parameters`."""
        cells = [
            {"cell_type": "code", "id": f"cell-{n}", "metadata": {} if n else {"tags": ["parameters"]}, "source": source,
             "outputs": [], "execution_count": None}
            for n, source in enumerate(sources)
        ]  # fmt: skip
        path = self.folder / "it.ipynb"
        path.write_text(json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}))
        return path

    def papermill(self, notebook, *options):
        """Exit code, what was printed, and the cells of the executed notebook."""
        command = ["papermill", notebook, self.out, "--no-progress-bar", *options]
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        cells = json.loads(self.out.read_text())["cells"] if self.out.exists() else []
        return done.returncode, done.stdout, [cell for cell in cells if cell["cell_type"] == "code"]

    def test_the_regression_notebook_with_another_seed(self):
        options = ["--cwd", NOTEBOOKS, "-p", "seed", "7", "-p", "output_dir", self.folder]
        code, log, cells = self.papermill(NOTEBOOKS / "regression.ipynb", *options)
        self.assertEqual(code, 0, log)
        self.assertEqual(text(cells[1]).splitlines()[1:], ["let seed: u64 = 7;", f'let output_dir = "{self.folder}";'])
        asserting = [cell for cell in cells if "assert!(" in text(cell)]
        self.assertEqual(len(asserting), 8)
        for cell in asserting:
            self.assertIn("\nok: ", "\n" + printed(cell))

    def test_values_have_the_type_that_the_notebook_declares(self):
        cells = ('let rate = 1e-3;\nlet rows: usize = 5;\nlet name = "a";\nlet push = false;', 'println!("{rate:?} {} {name} {push}", rows + 1);')
        options = ["-p", "rate", "1", "-p", "rows", "64", "-p", "push", "True", "-r", "name", 'a "b"\\ {c}']
        code, log, cells = self.papermill(self.write(*cells), *options)
        self.assertEqual((code, printed(cells[2])), (0, '1.0 65 a "b"\\ {c} true\n'), log)
        self.assertEqual(cells[1]["metadata"]["tags"], ["injected-parameters"])

    def test_what_ends_a_cell_early_fails_the_run(self):
        for failing, says in {
            'assert!(rows == 6, "rows: expected 6, found {rows}");': "it ended early: an error through `?`, or a panic",
            'let n: i32 = "a".parse()?;': "it ended early: an error through `?`, or a panic",
            "let n: i32 = true;": "mismatched types",
        }.items():
            with self.subTest(failing):
                code, log, cells = self.papermill(self.write("let rows: usize = 5;", failing, 'println!("never");'), "-p", "rows", "7")
                self.assertEqual(code, 1, log)
                self.assertIn(says, log)
                self.assertEqual((cells[2]["metadata"]["papermill"]["status"], cells[3]["outputs"]), ("failed", []))

    def test_values_of_another_kind_and_names_that_are_none(self):
        path = self.write("let rows: usize = 5;", 'println!("{rows}");')
        for value in ("-1", "[1, 2]", "None"):
            code, log, cells = self.papermill(path, "-y", f"rows: {value if value != 'None' else 'null'}")
            self.assertEqual((code, cells), (1, []), log)
            self.assertIn(f"rows={value}: ", log)
        code, log, _ = self.papermill(path, "-p", "row", "1", "--prepare-only")
        self.assertIn("Passed unknown parameter: row", log)

    def test_what_can_be_set_is_told(self):
        code, log, _ = self.papermill(NOTEBOOKS / "finetune_gemma3_emoji.ipynb", "--help-notebook")
        self.assertEqual(code, 0, log)
        self.assertRegex(log, r"max_rows: usize \(default usize::MAX\)")

    def test_notebooks_in_python_are_papermills_own(self):
        path = self.write("a = 1", "print(a + 1)", kernel=PYTHON)
        code, log, cells = self.papermill(path, "-p", "a", "2")
        self.assertEqual((code, printed(cells[2])), (0, "3\n"), log)


def text(cell):
    return "".join(cell["source"])


def printed(cell):
    return "".join("".join(output["text"]) for output in cell["outputs"] if output.get("name") == "stdout")


if __name__ == "__main__":
    unittest.main(verbosity=2)
