"""The lesson in the classic Notebook: all cells run, tables and pictures show, the stop button is polite.

    check_classic.py --chromium CHROMIUM --venv NBCLASSICS_VENV --kernels JUPYTERS_DATA_FOLDER [--out DIR]

Prints one line a check; ends with 1 if one fails. A check that cannot go on does not stop the next.
"""

import argparse
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from checks import run_checks
from check_lab import CHROMIUM, TRAIN, TRAINER, WINDOW
from page import look, shown
from server import ROOT, Classic

CELLS = """() => Jupyter.notebook.get_cells().filter(cell => cell.cell_type === 'code').map(cell => ({
    id: cell.cell_id, prompt: String(cell.input_prompt_number ?? ''), outputs: cell.output_area.toJSON(),
}))"""
READY = "() => window.Jupyter && Jupyter.notebook && Jupyter.notebook.kernel && Jupyter.notebook.kernel.is_connected() && Jupyter.notebook._fully_loaded"
RUN_LIMIT = 600


class Checks:
    """What is looked at, in this order; each method that has a docstring is one check."""

    def __init__(self, page, out):
        self.page, self.out = page, out

    def cells(self):
        return self.page.evaluate(CELLS)

    def run_all(self):
        """all cells run to their end in the classic Notebook"""
        self.page.locator("#celllink").click()
        self.page.locator("#run_all_cells").click()
        started = time.monotonic()
        while not all(cell["prompt"].isdigit() for cell in self.cells()):
            assert time.monotonic() - started < RUN_LIMIT, f"not all ran: {[cell['prompt'] for cell in self.cells()]}"
            time.sleep(0.3)
        cells = self.cells()
        for number, cell in enumerate(cells, 1):
            bad = [o for o in cell["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"]
            assert not bad, f"cell {number}: {shown(cell)}"
        silent = [number for number, cell in enumerate(cells, 1) if not cell["outputs"]]
        assert len(silent) == 1, f"cells {silent} show nothing; only the parameters do"
        return f"{len(cells)} cells in {time.monotonic() - started:.0f} s"

    def pictures(self):
        """tables and plots are there to be seen"""
        tables, plots = self.page.locator(".output_html table:visible"), self.page.locator(".output_svg svg:visible")
        assert tables.count() >= 7 and plots.count() >= 1, f"{tables.count()} tables, {plots.count()} plots"
        png = plots.first.screenshot(path=self.out / "classic-plot.png")
        look(self.page, png, "the plot")
        return f"{tables.count()} tables, {plots.count()} plots"

    def interrupt(self):
        """the stop button ends training with a checkpoint, and all variables stay"""
        self.execute(TRAINER % "3.0")
        before = len(self.cells())
        self.execute(TRAIN, wait=False)
        self.until(before, lambda cell: "step " in shown(cell), 90)
        self.page.locator('button[data-jupyter-action="jupyter-notebook:interrupt-kernel"]').first.click()
        cell = self.until(before, lambda cell: cell["prompt"].isdigit(), 60)
        assert "checkpoint saved to out/interrupted/checkpoint-" in shown(cell), shown(cell)[-400:]
        kept = self.execute('println!("{} rows, {} steps", dataset.len(), long.state().global_step);')
        assert int(shown(kept).split()[2]) > 0, shown(kept)
        return shown(kept).strip()

    def execute(self, source, wait=True):
        """Runs `source` in a new cell at the end."""
        number = len(self.cells())
        self.page.evaluate(
            "source => { const n = Jupyter.notebook; const c = n.insert_cell_at_bottom('code'); c.set_text(source);"
            " n.select(n.ncells() - 1); n.execute_cell(); }",
            source,
        )
        return self.until(number, lambda cell: cell["prompt"].isdigit(), 120) if wait else None

    def until(self, number, holds, seconds):
        until = time.monotonic() + seconds
        while not holds(cell := self.cells()[number]):
            assert time.monotonic() < until, f"cell {number + 1} shows {shown(cell)[-400:]!r}"
            time.sleep(0.1)
        return cell


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--chromium", required=True)
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--kernels", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "notebooks" / "out" / "browser")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with Classic(args.venv, args.kernels) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=CHROMIUM, chromium_sandbox=False)
        page = browser.new_context(viewport=WINDOW).new_page()
        page.goto(server.address)
        page.wait_for_function(READY, timeout=300_000)
        checks = Checks(page, args.out)
        picture = lambda name: page.screenshot(path=args.out / f"failed-classic-{name}.png")  # noqa: E731
        failed = run_checks("browser", checks, ["run_all", "pictures", "interrupt"], picture)
        browser.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
