"""The page that export_web writes, as a person meets it: type, wait, copy; and what may go wrong.

    check_page.py --chromium CHROMIUM --site DIR --expected FILE [--only-ask] [--out DIR]

DIR has the folder `page`, and `linked` for one whose library comes from elsewhere; which engine it is,
the page says. Prints one line a check; ends with 1 if one fails. A check that cannot go on does not stop
the next.
"""

import argparse
import functools
import json
import shutil
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from checks import run_checks
from page import CUT
from page_looks import WIDTHS, Looks
from page_site import EVIL, LONG, Isolated, Pages, Plain, Recorder

ROOT = Path(__file__).resolve().parent.parent.parent
CHROMIUM = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update", "--disable-sync"]
# What Chromium asks for itself, whatever page is open.
CHROMIUMS = ("googleapis.com:443", "google.com:443", "gvt1.com:443", "http://update.googleapis.com/")
TEXT = "I love my dog"
PATIENCE = 240_000


class Checks(Looks):
    def __init__(self, browser, fresh, pages, plain, recorder, expected, out):
        self.browser, self.fresh, self.pages, self.plain, self.recorder = browser, fresh, pages, plain, recorder
        self.site = pages.site
        self.expected, self.out = expected, out
        self.requests, self.taken = [], []

    def tab(self, address=None, script=None, **options):
        """A tab of a browser that was never here, at the page."""
        context = self.fresh(**{"viewport": WIDTHS["desktop"], **options})
        context.set_default_timeout(PATIENCE)
        context.on("request", lambda request: self.requests.append(request.url))
        if script:
            context.add_init_script(script)
        tab = context.new_page()
        tab.errors = []
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.on("dialog", lambda dialog: (self.taken.append(dialog.message), dialog.dismiss()))
        tab.goto(address or self.plain.at("page/"))
        return tab

    def ask(self, tab, text=TEXT):
        """Types and presses Enter; the answers, and seconds until the first and until the last."""
        started = time.monotonic()
        tab.locator("#text").fill(text)
        tab.locator("#text").press("Enter")
        tab.locator(".answer").first.wait_for()
        first = time.monotonic() - started
        tab.locator("#status", has_text="to copy it").wait_for()
        return tab.locator(".said").all_text_contents(), first, time.monotonic() - started

    def answers(self):
        """a text gets three suggestions, cold, warm and again"""
        began = time.monotonic()
        tab = self.tab()
        tab.locator("#form").wait_for()
        opened = time.monotonic() - began
        said, first, _ = self.ask(tab)
        cold = opened + first
        assert len(said) == 3 and len(set(said)) == 3, said
        assert tab.evaluate("document.documentElement.dataset.threads") == "1"
        began = time.monotonic()
        tab.reload()
        tab.locator("#form").wait_for()
        opened = time.monotonic() - began
        asked = len(self.requests)
        again, first, _ = self.ask(tab)
        warm = opened + first
        assert again == said, (said, again)
        assert not [url for url in self.requests[asked:] if url.endswith(self.pages.model)], "the model was fetched again"
        _, first, last = self.ask(tab, "happy birthday")
        assert not tab.errors, tab.errors
        tab.context.close()
        return f"{' '.join(said)}; the first after {cold:.1f} s cold, {warm:.1f} s warm; then after {first:.2f} s, three after {last:.2f} s"

    def as_in_the_notebook(self):
        """the first suggestion is the notebook's greedy answer"""
        tab = self.tab()
        same, said = 0, []
        for text, answer in self.expected.items():
            shown = self.ask(tab, text)[0][0]
            same += " ".join(shown.split()) == " ".join(answer.split())
            said.append(f"{shown} for {answer}")
        tab.context.close()
        # llama.cpp rounds what a matrix is multiplied with to 8 bits, too: a near tie may fall otherwise.
        assert same >= len(self.expected) - 1, said
        return f"{same} of {len(self.expected)}"

    def large(self):
        """a large model is fetched when someone types, and is there at the next visit"""
        def models():
            return sum(url.endswith(f"large/{self.pages.model}") for url in self.requests)

        tab = self.tab(self.plain.at("large/"))
        note = tab.locator("#status", has_text="is fetched when you begin to type")
        note.wait_for()
        tab.wait_for_timeout(500)
        assert not models()
        tab.locator("#text").press("a")
        tab.locator("#status", has_text="Ready").wait_for()
        assert models() == 1
        tab.reload()
        tab.locator("#status", has_text="Ready").wait_for()
        assert models() == 1
        tab.context.close()
        return "fetched once"

    def copying(self):
        """a click copies a suggestion and says so, with and without the clipboard's permission"""
        for script in [None, "Object.defineProperty(navigator, 'clipboard', { value: undefined })"]:
            tab = self.tab(script=script, permissions=["clipboard-read", "clipboard-write"])
            said, _, _ = self.ask(tab)
            tab.locator(".answer").nth(1).click()
            tab.locator(".answer.copied .hint", has_text="Copied").wait_for()
            assert said[1] in tab.locator("#status").inner_text()
            other = tab if script is None else tab.context.browser.new_context(permissions=["clipboard-read"]).new_page()
            if other is not tab:
                other.goto(self.plain.at("page/style.css"))
                other.bring_to_front()
            clip = other.evaluate("navigator.clipboard.readText()")
            assert clip == said[1], (clip, said[1])
            if other is not tab:
                other.context.close()
            tab.bring_to_front()
            tab.locator(".answer.copied").wait_for(state="detached")
            tab.context.close()
        return said[1]

    def keyboard(self):
        """everything by the keyboard, with a focus that is seen"""
        tab = self.tab(permissions=["clipboard-read", "clipboard-write"])
        tab.locator("#form").wait_for()
        focused = "[document.activeElement.id || document.activeElement.className, getComputedStyle(document.activeElement).outlineStyle, parseFloat(getComputedStyle(document.activeElement).outlineWidth)]"
        seen = []

        def step(wanted):
            tab.keyboard.press("Tab")
            name, style, width = tab.evaluate(focused)
            assert name == wanted and style != "none" and width >= 2, (wanted, name, style, width)
            seen.append(name)

        step("text")
        tab.keyboard.press("Enter")
        tab.locator("#problem", has_text="Type a text first").wait_for()
        tab.keyboard.type(TEXT)
        tab.keyboard.press("Shift+Enter")
        assert tab.locator("#text").input_value() == TEXT + "\n"
        tab.keyboard.press("Enter")
        tab.locator("#status", has_text="to copy it").wait_for()
        for wanted in ["example", "go", "answer", "answer"]:
            step(wanted)
        tab.keyboard.press("Enter")
        tab.locator(".answer.copied").wait_for()
        said = tab.locator(".said").all_text_contents()
        assert tab.evaluate("navigator.clipboard.readText()") == said[1]
        tab.context.close()
        return " → ".join(seen)

    def interrupted(self):
        """a second question while the first is answered leaves only its own answers"""
        tab = self.tab()
        expected = list(self.expected.items())
        for text, _ in expected[:3]:
            tab.locator("#text").fill(text)
            tab.locator("#text").press("Enter")
        tab.locator("#status", has_text="to copy it").wait_for()
        tab.wait_for_timeout(500)
        said = tab.locator(".said").all_text_contents()
        assert 1 <= len(said) <= 3 and said[0] == self.ask(tab, expected[2][0])[0][0], said
        assert not tab.errors and tab.locator("#error").is_hidden()
        tab.context.close()
        return said[0]

    def threads(self):
        """an isolated page uses threads, with the same answers"""
        server = Isolated(self.site)
        tab = self.tab(server.at("page/"))
        said, _, _ = self.ask(tab)
        threads = int(tab.evaluate("document.documentElement.dataset.threads"))
        _, first, last = self.ask(tab, "happy birthday")
        tab.context.close()
        server.stop()
        assert threads > 1, threads
        return f"{threads} threads; {' '.join(said)}; then the first after {first:.2f} s, three after {last:.2f} s"

    def other_build(self):
        """a browser without JSPI, as Safari, gets the other build from beside the page"""
        asked = len(self.requests)
        tab = self.tab(script="delete WebAssembly.Suspending; delete WebAssembly.promising")
        said, _, _ = self.ask(tab)
        tab.context.close()
        names = {url.rsplit("/", 1)[1] for url in self.requests[asked:] if url.startswith("http")}
        assert "wllama-compat.wasm" in names and "wllama.wasm" not in names, names
        return " ".join(said)

    def on_gpu(self):
        """where there is a GPU it answers, with the same words; one that fails does not matter"""
        assert self.ask_on(None)[0] == "wasm", "a GPU made of software is taken"
        real = "Object.defineProperty(GPUAdapterInfo.prototype, 'isFallbackAdapter', { value: false });"
        device, text, said = self.ask_on(real)
        assert device == "webgpu" and said[0] == self.expected[text], (device, said)
        # It says that it is one, and is not there for the worker.
        none = "Object.defineProperty(navigator, 'gpu', { value: { requestAdapter: async () => ({ info: {} }) } })"
        assert self.ask_on(none, gpu=False)[0] == "wasm"
        return " ".join(said)

    def ask_on(self, script, gpu=True):
        browser = self.with_gpu if gpu else self.browser
        context = browser.new_context()
        context.set_default_timeout(PATIENCE)
        if script:
            context.add_init_script(script)
        tab = context.new_page()
        tab.goto(self.plain.at("page/"))
        text = next(iter(self.expected))
        said, _, _ = self.ask(tab, text)
        device = tab.evaluate("document.documentElement.dataset.device")
        context.close()
        return device, text, said

    def hostile(self):
        """texts of a person, a model and a file do nothing, and fit"""
        for folder in ["hostile", "long"]:
            tab = self.tab(self.plain.at(f"{folder}/"), viewport=WIDTHS["phone"])
            tab.locator("#form").wait_for()  # The page has read its settings then.
            if folder == "hostile":
                assert tab.locator("h1").inner_text().split() == EVIL[1].split()
                assert tab.locator("#terms").inner_text() == EVIL[0] and not tab.locator("#terms a, #model a").count()
            for text in [EVIL[0], EVIL[2]]:
                said, _, _ = self.ask(tab, text)
            shown = tab.locator(".said").evaluate_all("all => all.map(one => one.childElementCount)")
            assert shown == [0] * len(said), shown
            assert all(len(one) <= 600 for one in said), [len(one) for one in said]
            assert not tab.locator("main img, main script, main svg, main a").count()
            assert not tab.locator("body").element_handle().evaluate(CUT)
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), folder
            tab.screenshot(path=self.out / f"{folder}.png", full_page=True)
            tab.locator("#text").fill(LONG)
            tab.locator("#text").press("Enter")
            tab.locator("#problem", has_text="This text has 200,000 characters").wait_for()
            assert tab.evaluate("typeof window.taken") == "undefined"
            tab.context.close()
        taken = self.taken + [url for url in self.requests if "/taken" in url]
        assert not taken, taken
        return f"{len(EVIL)} texts, {len(LONG)} letters"

    def faults(self):
        """a file that is missing, cut or wrong gets its sentence"""
        faults = self.pages.faults()
        for folder, sentence in faults.items():
            tab = self.tab(self.plain.at(f"{folder}/"))
            tab.locator("#error", has_text=sentence).wait_for(timeout=30_000)
            assert tab.locator("#unstarted").count() == 0 and tab.locator("#progress").is_hidden()
            if folder == "cut-model":
                tab.screenshot(path=self.out / "cut-model.png")
                assert not self.axe(tab, folder)
            tab.context.close()
        return f"{len(faults)} faults"

    def lacking(self):
        """a browser that lacks something says what"""
        for script, sentence in [
            ("delete globalThis.WebAssembly", "WebAssembly is missing or switched off"),
            ("WebAssembly.validate = () => false", "its WebAssembly has no SIMD"),
        ]:
            tab = self.tab(script=script)
            tab.locator("#error", has_text=sentence).wait_for()
            assert tab.locator("#form").is_hidden()
            tab.context.close()
        for address, options in [(None, {"java_script_enabled": False}), (f"file://{self.site}/page/index.html", {})]:
            tab = self.tab(address, **options)
            tab.wait_for_timeout(2500)
            assert tab.locator("#unstarted").is_visible() and "python3 -m http.server" in tab.locator("#unstarted").inner_text()
            tab.context.close()
        return "no WebAssembly, no SIMD, no JavaScript, opened as a file"

    def linked(self):
        """a page that links to its library takes it by hash and no other"""
        files = json.loads((self.site / "linked" / "page.json").read_text())["library"]["files"]
        local = {one["url"]: name["url"] for one, name in zip(files.values(), self.local().values())}

        def answer(route, spoil):
            body = (self.site / "page" / local[route.request.url]).read_bytes()
            route.fulfill(body=b"//" + body if spoil else body, headers={"access-control-allow-origin": "*"})

        shown = []
        for spoil in [False, True]:
            context = self.browser.new_context()
            context.set_default_timeout(PATIENCE)
            context.route("https://cdn.jsdelivr.net/**", lambda route: answer(route, spoil))
            tab = context.new_page()
            tab.goto(self.plain.at("linked/"))
            if spoil:
                tab.locator("#error", has_text="is not the one it should be").wait_for()
            else:
                shown = self.ask(tab)[0]
            context.close()
        return " ".join(shown)

    def local(self):
        return json.loads((self.site / "page" / "page.json").read_text())["library"]["files"]

    def nothing_left(self):
        """no request left the loopback"""
        ours = ("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:", "file:///")
        foreign = [url for url in self.requests if not url.startswith(ours)]
        assert not foreign, foreign[:5]
        asked = [line for line in self.recorder.asked if not any(name in line for name in CHROMIUMS)]
        assert not asked, asked[:5]
        return f"{len(self.requests)} requests"


ORDER = [
    "answers", "as_in_the_notebook", "large", "copying", "looks", "keyboard", "interrupted", "threads", "other_build",
    "on_gpu", "hostile", "faults", "lacking", "linked", "nothing_left",
]  # fmt: skip
# What one engine alone has.
OF = {"other_build": "gguf", "on_gpu": "onnx"}
SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--chromium", required=True)
    parser.add_argument("--site", type=Path, required=True)
    parser.add_argument("--expected", type=Path, required=True)
    parser.add_argument("--only-ask", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "notebooks" / "out" / "page")
    args = parser.parse_args()
    out = args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    pages = Pages(args.site)
    order = ["answers", "threads", "nothing_left"] if args.only_ask else ORDER
    order = [name for name in order if OF.get(name, pages.engine) == pages.engine]
    if not args.only_ask:
        pages.make_faults()
        pages.make_hostile()
        pages.make_large()
    recorder, plain = Recorder(), Plain(args.site)
    try:
        with sync_playwright() as playwright:
            # Chromium's sandbox wants rights that root in a container does not have.
            flags = [*CHROMIUM, f"--proxy-server={recorder.address}"]
            launch = {"executable_path": args.chromium, "args": flags, "chromium_sandbox": False}
            browser = playwright.chromium.launch(**launch)
            fresh = browser.new_context
            if args.only_ask:
                # What a private window may keep is less than a real model.
                home = args.site.parent / "profile"
                fresh = functools.partial(playwright.chromium.launch_persistent_context, home, **launch)
            checks = Checks(browser, fresh, pages, plain, recorder, json.loads(args.expected.read_text()), out)
            if "on_gpu" in order:
                with_gpu = [flag for flag in flags if flag != "--disable-gpu"] + SOFTWARE_GPU
                checks.with_gpu = playwright.chromium.launch(**{**launch, "args": with_gpu})
            failed = run_checks(f"page, {pages.engine}", checks, order)
            browser.close()
    finally:
        plain.stop()
    print(f"screenshots: {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
