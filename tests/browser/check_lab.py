"""The lesson in JupyterLab, as a person meets it: run, look, interrupt, resume, fail, log in.

    check_lab.py --chromium CHROMIUM --venv JUPYTERS_VENV [--out DIR]

Prints one line a check; ends with 1 if one fails. A check that cannot go on does not stop the next.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from checks import run_checks
from page import CUT, FAINT, NotebookPage, look, shown
from server import ROOT, Lab

sys.path.insert(0, str(ROOT / "notebooks" / "support"))
import hostile

WINDOW = {"width": 1280, "height": 1000}
CHROMIUM = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update", "--disable-sync"]
TABLES = {"cleaning": "dataset", "memory": "trainer", "losses": "train", "comparison": "compare", "push": "push"}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
# Typed into the prompt; must be found nowhere.
TYPED = "hf_TYPEDtypedTYPEDtyped0123456789"

TRAINER = """\
let mut long = SftTrainer::new(
    &base_model, &splits.train, Some(&splits.test), &quant_config, Some(&lora_config),
    &SftConfig { output_dir: format!("{output_dir}/interrupted").into(), num_train_epochs: %s, ..args.clone() },
)?;
"""
TRAIN = """\
let stopped = long.train()?;
stopped
"""


# Where the cells of a table's rows begin, one text a row.
COLUMNS = """table => [...table.rows].map(row => [...row.cells].map(c => Math.round(c.getBoundingClientRect().left)).join())"""


class Watch:
    """Sees what a hostile script would do in a page: ask for an address, open a dialog, leave a name."""

    def __init__(self, page):
        self.page, self.seen = page, []
        page.on("request", lambda request: "/taken" in request.url and self.seen.append(request.url))
        page.on("dialog", lambda dialog: (self.seen.append(f"dialog {dialog.message}"), dialog.dismiss()))

    def nothing_ran(self):
        self.page.wait_for_timeout(300)
        assert not self.seen, f"it asked for {self.seen[:3]}"
        taken = self.page.evaluate("() => [typeof window.taken, document.title]")
        assert taken[0] == "undefined" and taken[1] != "taken", f"a script ran: {taken}"
        foreign = self.page.locator('[src*="/taken"], [href^="javascript:"], [onerror], iframe[srcdoc]')
        assert not foreign.count(), f"foreign elements: {foreign.first.evaluate('e => e.outerHTML')[:200]}"


class Checks:
    """What is looked at, in this order; each method that has a docstring is one check."""

    def __init__(self, lab, page, browser, args):
        self.lab, self.page, self.browser, self.args = lab, page, browser, args

    def run_all(self):
        """all cells run to their end, with live lines in training"""
        page, lines = self.page, []
        page.run_all()
        started = time.monotonic()

        def look(cell):
            count = shown(cell).count("\nstep ") + shown(cell).startswith("step ")
            if cell["prompt"].strip() == "[*]:" and count and (not lines or lines[-1] != count):
                lines.append(count)

        page.wait("train", 600, look)
        page.wait("push", 300)
        page.wait("serve", 60)
        code = [cell for cell in page.cells() if cell["type"] == "code"]
        counts = [cell["prompt"].strip("[]: \n") for cell in code]
        # They need not begin at 1: the kernel counts what JupyterLab asks it at first.
        first = int(counts[0] or 0)
        assert counts == [str(first + n) for n in range(len(code))], f"execution counts {counts}"
        for cell in code:
            bad = [o for o in cell["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"]
            assert not bad, f"{cell['id']}: {shown(cell)}"
            assert cell["outputs"] or cell["id"] == "parameters", f"{cell['id']} shows nothing"
        total = sum(line.startswith("step ") for line in shown(page.cell("train")).splitlines())
        assert 12 <= total <= 18, f"{total} progress lines"
        # All at once at the end would be one; on a busy machine not each is seen by itself.
        assert len(lines) >= 6, f"lines seen while the cell ran: {lines}"
        return f"{len(code)} cells in {time.monotonic() - started:.0f} s; {total} lines, {len(lines)} times more of them"

    def pictures(self):
        """tables and plot are visible and readable in both themes, nothing is cut"""
        page, problems = self.page, []
        for name, theme in THEMES.items():
            page.theme(theme)
            for table, cell in TABLES.items():
                page.shot(page.node(cell).locator("table").first.locator("xpath=.."), f"{table}-{name}")
            plot = page.node("plot").locator(".jp-RenderedSVG img, .jp-RenderedSVG svg").first
            page.shot(plot, f"plot-{name}")
            for cell in page.cells():
                if cell["type"] != "code":
                    continue
                output = page.node(cell["id"]).locator(".jp-Cell-outputArea")
                faint, cut = output.evaluate(FAINT), output.evaluate(CUT)
                problems += [f"{cell['id']}, {name}, hardly readable: {text}" for text in faint]
                problems += [f"{cell['id']}, {name}, cut: {text}" for text in cut]
            page.whole(f"page-{name}")
        page.theme(THEMES["light"])
        assert not problems, "\n    ".join(problems[:12])
        return f"{len(TABLES)} tables and the plot, twice"

    def page_in_its_cell(self):
        """the exported page opens in the cell that serves it"""
        cell = self.page.node("serve")
        cell.locator("summary").click()
        frame = cell.frame_locator("iframe")
        # It is there once the page's script has read its settings: Jupyter lets both of them through.
        frame.locator("#form").wait_for(timeout=30_000)
        self.page.shot(cell.locator(".jp-Cell-outputArea"), "page-in-its-cell")
        # The next checks look at the lesson as it was.
        cell.locator("summary").click()
        return frame.locator("#title").text_content()

    def export(self, name):
        """The notebook as it is now, as a page; its path."""
        self.page.save()
        out = self.args.out / name
        code = "import sys, nbformat, pathlib, runner; runner.save_html(nbformat.read(sys.argv[1], 4), pathlib.Path(sys.argv[2]))"
        subprocess.run(
            [self.args.venv / "bin" / "python", "-B", "-c", code, self.lab.notebook, out],
            cwd=ROOT / "notebooks" / "support", check=True,
        )  # fmt: skip
        return out

    def html_export(self):
        """the HTML export needs no network, shows no raw formula, and nothing is cut"""
        page = self.page
        out = self.export("lesson.html")
        context = self.browser.new_context(viewport={"width": 1000, "height": 1000}, offline=True)
        export = context.new_page()
        export.goto(out.as_uri())
        body = export.locator("body")
        formulas = [line for line in body.inner_text().splitlines() if "\\frac" in line or "$$" in line]
        assert not formulas, f"raw formulas: {formulas[:3]}"
        cut = export.locator("main").evaluate(CUT)
        png = export.screenshot(path=self.args.out / "export.png", full_page=True)
        look(page.page, png, "the export")
        tables, plots = export.locator("table:visible").count(), export.locator("svg:visible, img:visible").count()
        context.close()
        assert not cut, "cut: " + "\n    ".join(cut[:8])
        assert tables >= 7 and plots >= 1, f"{tables} tables, {plots} plots"
        return f"{tables} tables, {plots} picture"

    def interrupt(self):
        """interrupted training leaves a checkpoint and all variables; resume goes on to the end"""
        page = self.page
        page.run("long", TRAINER % "3.0")
        page.add("stop", TRAIN)
        page.start("stop")
        self.until("stop", "step ", 60)
        pressed = time.monotonic()
        page.press("notebook:interrupt-kernel")
        cell = page.wait("stop", 30)
        seconds = time.monotonic() - pressed
        text = shown(cell)
        assert "checkpoint saved to out/interrupted/checkpoint-" in text, text
        assert "trainer.resume()? goes on from here" in text, text
        assert not [o for o in cell["outputs"] if o["output_type"] == "error"], text
        kept = page.run("kept", 'println!("at {} of {}, {} rows", long.state().global_step, stopped.total_steps, dataset.len());')
        words = shown(kept).split()
        assert len(words) >= 4 and 0 < int(words[1]) < int(words[3].rstrip(",")), shown(kept)
        page.shot(page.node("stop").locator(".jp-Cell-outputArea"), "interrupt")
        resumed = page.run("resume", "let outcome = long.resume()?;\noutcome", 300)
        assert "← best" in shown(resumed) and "597/597" in shown(resumed), shown(resumed)
        page.shot(page.node("resume").locator(".jp-Cell-outputArea"), "resume")
        return f"stopped {seconds:.1f} s after the button at step {words[1]}, then on to {words[3].rstrip(',')}"

    def nothing_to_resume(self):
        """resuming a run that is at its end says so in a line"""
        return self.fails("again", "long.resume()?;", "nothing to resume")

    def failing_cell(self):
        """a failing cell shows one line, and what it borrowed is kept"""
        source = "let wrong = SftTrainer::new(&base_model, &splits.train, None, &quant_config, Some(&lora_config), &args)?;"
        line = self.fails("fails", source, "eval_dataset")
        kept = self.page.run("still", 'println!("{} {}", splits.train.len(), base_model.is_embedded());')
        assert shown(kept).strip() == "795 true", shown(kept)
        self.page.shot(self.page.node("fails").locator(".jp-Cell-outputArea"), "failing")
        return line

    def prompt(self):
        """the login prompt hides what is typed, and it is saved nowhere"""
        page = self.page
        page.add("prompt", "let asked = login_interactive()?;\nasked")
        page.start("prompt")
        field = page.page.locator(".jp-Stdin-input")
        field.wait_for(timeout=30_000)
        kind = field.get_attribute("type")
        assert kind == "password", f"the field is of type {kind}"
        field.press_sequentially(TYPED)
        page.page.screenshot(path=self.args.out / "prompt.png")
        field.press("Enter")
        page.wait("prompt", 60)
        # Nothing listens at this address; the line that says so comes on stderr, after the prompt's dots.
        self.until("prompt", "127.0.0.1", 10)
        said = shown(page.cell("prompt")).strip().splitlines()
        page.save()
        assert TYPED not in page.page.content(), "what was typed is in the page"
        for path in self.lab.folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert TYPED.encode() not in path.read_bytes(), f"what was typed is in {path}"
        return said[-1]

    def hostile_text(self):
        """rows, names and errors that attack the page run no script, here and in the export"""
        page, rows = self.page, self.lab.folder / "hostile.csv"
        hostile.write_rows(rows)
        (self.lab.folder / "name").write_text(hostile.NAME)
        watch = Watch(page.page)
        cells = {
            "rows": f'let hostile = load_dataset("{rows}", EmojiFilter::None)?;\n'
            'for row in &hostile.examples { say!("{} {}", row.text, row.answer); }\n'
            f'load_dataset("{rows}", EmojiFilter::PurelyEmoji)?.report',
            "table": "use emoji_lab::display::ComparisonRow;\n"
            "fn asked(e: &Example) -> ComparisonRow { ComparisonRow { prompt: e.text.clone(), base: e.text.clone(), "
            "tuned: e.answer.clone(), expected: Some(e.text.clone()) } }\n"
            "Comparison { rows: hostile.examples.iter().map(asked).collect() }",
            "tokens": "emoji_lab::train::tokens_in_training(\n"
            "    &format_chat(&hostile).conversations[2], &base_model.tokenizer, &args)?",
            "error": f'load_dataset(&std::fs::read_to_string("{self.lab.folder}/name")?, EmojiFilter::None)?;',
            # Not ours, and text all the same: the pages escape what a cell prints.
            "printed": f'println!("{{}}", {json.dumps(hostile.PICTURE)});\nprintln!("{{}}", {json.dumps(hostile.TEXTS[8])});',
        }
        for name, source in cells.items():
            page.run(f"hostile-{name}", source)
        self.until("hostile-error", "onerror", 5)
        made = [cell for cell in page.cells() if cell["id"].startswith("hostile-")]
        wrong = hostile.faults(made)
        assert not wrong, "\n    ".join(wrong[:8])
        assert page.node("hostile-table").locator(".jp-RenderedHTMLCommon table").count() == 1
        assert "onerror" in page.node("hostile-table").inner_text()
        page.shot(page.node("hostile-rows").locator(".jp-Cell-outputArea"), "hostile-rows")
        page.shot(page.node("hostile-table").locator(".jp-Cell-outputArea"), "hostile-table")
        # The row in Hebrew is to stand in its column, and not to move the others.
        columns = page.node("hostile-table").locator("table").first.evaluate(COLUMNS)
        assert len(set(columns)) == 1, f"cells stand in {set(columns)}"
        watch.nothing_ran()

        context = self.browser.new_context(viewport={"width": 1000, "height": 1000})
        # What is looked for does happen where such text is taken for HTML.
        trap = context.new_page()
        caught = Watch(trap)
        trap.set_content(hostile.PICTURE)
        trap.wait_for_function("() => window.taken === 1", timeout=10_000)
        assert caught.seen, "the trap asked for nothing"

        export = context.new_page()
        outside = Watch(export)
        export.goto(self.export("hostile.html").as_uri())
        export.wait_for_timeout(1000)
        words = export.locator("body").inner_text()
        for part in ("onerror", "<script>", "␛", "⟨U+202E⟩", "⟨590 more marks⟩"):
            assert part in words, f"the export hides {part}"
        outside.nothing_ran()
        context.close()
        return f"{len(cells)} cells, {len(hostile.TEXTS)} texts"

    def second_interrupt(self):
        """a second interrupt ends the process, and the notebook can be used again"""
        page = self.page
        # A step must outlast the time between two presses: one of very many rows.
        page.run("slow", TRAINER.replace("..args", "per_device_train_batch_size: 700, max_length: 256, progress_lines: 15, ..args") % "60.0")
        page.add("kill", "let killed = long.train()?;\nkilled")
        page.start("kill")
        self.until("kill", "step ", 90)
        page.press("notebook:interrupt-kernel")
        page.page.wait_for_timeout(150)
        page.press("notebook:interrupt-kernel")
        cell = page.wait("kill", 60)
        assert any(o["output_type"] == "error" for o in cell["outputs"]), shown(cell)
        after = page.run("after", 'println!("{}", 6 * 7);', 120)
        assert "42" in shown(after), shown(after)
        return shown(cell).strip().splitlines()[-1][:100]

    def page_errors(self):
        """the page itself had no error"""
        assert not self.page.errors, self.page.errors[:3]
        return "none"

    def until(self, id, text, seconds):
        until = time.monotonic() + seconds
        while text not in shown(self.page.cell(id)):
            assert time.monotonic() < until, f"{id} shows no {text!r}: {shown(self.page.cell(id))}"
            time.sleep(0.05)

    def fails(self, id, source, says):
        """Runs a cell that must end with one line of error, which has `says`."""
        self.page.run(id, source)
        self.until(id, says, 5)  # stderr may come after the cell's end.
        lines = shown(self.page.cell(id)).strip().splitlines()
        assert len(lines) == 1, f"{len(lines)} lines: {lines}"
        return lines[0]


ORDER = [
    "run_all", "pictures", "page_in_its_cell", "html_export", "hostile_text", "interrupt", "nothing_to_resume", "failing_cell",
    "prompt", "second_interrupt", "page_errors",
]  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--chromium", required=True)
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "notebooks" / "out" / "browser")
    args = parser.parse_args()
    args.out = args.out.resolve()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    with Lab(args.venv) as lab, sync_playwright() as playwright:
        # Chromium's sandbox wants rights that root in a container does not have.
        browser = playwright.chromium.launch(
            executable_path=args.chromium, args=CHROMIUM, chromium_sandbox=False
        )
        tab = browser.new_context(viewport=WINDOW).new_page()
        checks = Checks(lab, NotebookPage(tab, lab.address, args.out), browser, args)
        failed = run_checks("browser", checks, ORDER, lambda name: tab.screenshot(path=args.out / f"failed-{name}.png"))
        browser.close()
    print(f"screenshots: {args.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
