"""What a person does with a notebook in JupyterLab, and what they see."""

import base64
import json
import time
from pathlib import Path

# One word for the notebook's panel: `jupyterapp` is there because server.py asks for it.
NOTEBOOK = "window.jupyterapp.shell.currentWidget.content"

CELLS = f"""id => {NOTEBOOK}.widgets.filter(cell => !id || cell.model.id === id).map(cell => ({{
    id: cell.model.id, type: cell.model.type,
    prompt: (cell.node.querySelector('.jp-InputPrompt') || {{}}).innerText || '',
    outputs: cell.model.type === 'code' ? cell.model.outputs.toJSON() : [],
}}))"""

# Texts whose colour is too near to what lies behind them, by WCAG's measure.
FAINT = """node => {
    const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
    const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255).map(
        v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = element => { const layers = [];
        for (let e = element; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
        return layers.reduce((below, top) => over(top, below), [255, 255, 255]); };
    const faint = [];
    const walk = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const text = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement;
        // Jupyter's own: [4], in a pale grey.
        if (!text || element.closest('.jp-OutputPrompt') || !element.getClientRects().length) continue;
        let back = behind(element), front = parse(getComputedStyle(element).color);
        let opacity = 1;
        for (let e = element; e && e !== node; e = e.parentElement) opacity *= Number(getComputedStyle(e).opacity);
        front[3] *= opacity;
        const [a, b] = [light(over(front, back)), light(back)].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) faint.push(`${text.slice(0, 40)} (${ratio.toFixed(1)})`);
    }
    return faint;
}"""

# Elements that are wider than the room they have.
CUT = """node => [node, ...node.querySelectorAll('*')].filter(
    e => e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline'
).map(e => `${e.tagName} ${e.innerText.slice(0, 60)}: ${e.scrollWidth} in ${e.clientWidth} pixels`)"""

# How many colours a picture has, and the share of the most frequent one.
COLOURS = """async url => {
    const bitmap = await createImageBitmap(await (await fetch(url)).blob());
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext('2d');
    context.drawImage(bitmap, 0, 0);
    const data = new Uint32Array(context.getImageData(0, 0, bitmap.width, bitmap.height).data.buffer);
    const count = new Map();
    for (const pixel of data) count.set(pixel, (count.get(pixel) || 0) + 1);
    return [count.size, Math.max(...count.values()) / data.length];
}"""


class NotebookPage:
    """The notebook's tab."""

    def __init__(self, page, address, pictures):
        self.page, self.pictures = page, Path(pictures)
        self.errors = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector(".jp-NotebookPanel-toolbar", timeout=60_000)
        page.wait_for_function(f"() => window.jupyterapp && {NOTEBOOK} && {NOTEBOOK}.widgets.length > 30", timeout=60_000)
        page.wait_for_function(
            "() => (window.jupyterapp.shell.currentWidget.sessionContext.session || {}).kernel?.status === 'idle'",
            timeout=300_000,
        )

    def cells(self):
        return self.page.evaluate(CELLS)

    def cell(self, id):
        return self.page.evaluate(CELLS, id)[0]

    def node(self, id):
        """The cell in the page."""
        index = [cell["id"] for cell in self.cells()].index(id)
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)

    def menu(self, menu, item):
        self.page.locator(".lm-MenuBar-itemLabel", has_text=menu).first.click()
        self.page.locator(".lm-Menu-itemLabel", has_text=item).first.click()

    def run_all(self):
        self.menu("Run", "Run All Cells")

    def press(self, command):
        """Presses a button of the notebook's toolbar."""
        self.page.locator(f'.jp-NotebookPanel-toolbar [data-command="{command}"]').first.click()

    def select(self, id):
        self.page.evaluate(
            f"id => {{ const n = {NOTEBOOK}; n.deselectAll(); n.mode = 'command';"
            " n.activeCellIndex = n.widgets.findIndex(w => w.model.id === id); }",
            id,
        )

    def start(self, id):
        """Runs a cell by the toolbar's button, without waiting for it."""
        self.select(id)
        self.press("notebook:run-cell-and-select-next")

    def add(self, id, source):
        """Puts a new code cell at the end."""
        cell = {"cell_type": "code", "id": id, "source": source, "metadata": {}, "outputs": [], "execution_count": None}
        self.page.evaluate(f"cell => {{ const m = {NOTEBOOK}.model.sharedModel; m.insertCell(m.cells.length, cell); }}", cell)

    def set_source(self, id, source):
        self.page.evaluate(
            f"([id, source]) => {NOTEBOOK}.widgets.find(w => w.model.id === id).model.sharedModel.setSource(source)",
            [id, source],
        )

    def wait(self, id, seconds, each=None):
        """Waits until a cell has run; `each` sees the cell again and again while it runs."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            cell = self.cell(id)
            if each:
                each(cell)
            if cell["prompt"].strip("[]: \n").isdigit():
                return cell
            time.sleep(0.1)
        raise AssertionError(f"cell {id} did not end in {seconds} s; it shows {shown(self.cell(id))[-500:]!r}")

    def run(self, id, source, seconds=60):
        """Runs `source` in a new cell at the end."""
        self.add(id, source)
        self.start(id)
        return self.wait(id, seconds)

    def theme(self, name):
        self.page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})", name)
        dark = "true" if "Dark" not in name else "false"
        self.page.wait_for_selector(f'body[data-jp-theme-light="{dark}"]', state="attached")
        self.page.wait_for_timeout(500)

    def save(self):
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
        self.page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")

    def shot(self, locator, name):
        """A screenshot of an element; it must have a size and more than one colour."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        path = self.pictures / f"{name}.png"
        locator.scroll_into_view_if_needed()
        box = locator.bounding_box()
        assert box and box["width"] > 100 and box["height"] > 16, f"{name} has no size: {box}"
        look(self.page, locator.screenshot(path=path), name)
        return path

    def whole(self, name):
        """A screenshot of the whole notebook: the window is made as high as it is."""
        size = self.page.viewport_size
        height = self.page.evaluate("() => document.querySelector('.jp-WindowedPanel-outer').scrollHeight")
        self.page.set_viewport_size({"width": size["width"], "height": min(height + 200, 15_000)})
        self.page.wait_for_timeout(500)
        self.page.screenshot(path=self.pictures / f"{name}.png")
        self.page.set_viewport_size(size)


def look(page, png, name):
    """A picture must not be blank."""
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    colours, most = page.evaluate(COLOURS, url)
    assert colours > 8 and most < 0.995, f"{name} is blank: {colours} colours, one on {most:.1%} of it"


def shown(cell):
    """All texts that a cell's outputs have."""
    texts = []
    for output in cell["outputs"]:
        if output["output_type"] == "error":
            texts += output["traceback"] or [output["evalue"]]
        texts.append(text(output.get("text", "")))
        texts += [text(value) for kind, value in output.get("data", {}).items() if kind == "text/plain"]
    return "\n".join(texts)


def text(value):
    return "".join(value) if isinstance(value, list) else value if isinstance(value, str) else json.dumps(value)
