"""How the exported page looks: sizes, contrast, what axe-core says."""

from pathlib import Path

from page import CUT, FAINT, look

AXE = Path(__file__).resolve().parent / "node_modules" / "axe-core" / "axe.min.js"
WIDTHS = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1100, "height": 760}}


class Looks:
    """A part of check_page.py's checks, which have `tab`, `ask`, `browser` and `out`."""

    def looks(self):
        """phone and desktop, light and dark: nothing cut, contrast of 4.5, axe finds nothing serious"""
        found = []
        for scheme in ["light", "dark"]:
            tab = self.tab(color_scheme=scheme)
            for state in ["new", "answered", "problem"]:
                if state == "answered":
                    self.ask(tab)
                if state == "problem":
                    tab.locator("#text").fill("x" * 501)
                    tab.locator("#text").press("Enter")
                    tab.locator("#problem").wait_for()
                for name, size in [*WIDTHS.items(), ("narrow", {"width": 320, "height": 640})]:
                    tab.set_viewport_size(size)
                    body = tab.locator("body").element_handle()
                    where = f"{name}, {scheme}, {state}"
                    cut, faint = body.evaluate(CUT), body.evaluate(FAINT)
                    assert not cut and not faint, (where, cut, faint)
                    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), where
                    found += self.axe(tab, where)
                    path = self.out / f"{name}-{scheme}-{state}.png"
                    look(self.browser_blank(), tab.screenshot(path=path, full_page=True), where)
            tab.context.close()
        bad = [one for one in found if one.split()[0] in ("serious", "critical")]
        assert not bad, bad
        return f"{2 * 3 * 3} states, {len(found)} lesser findings {found[:3] if found else ''}".strip()

    def browser_blank(self):
        if not hasattr(self, "blank"):
            self.blank = self.browser.new_context().new_page()
        return self.blank

    def axe(self, tab, where):
        tab.evaluate(AXE.read_text())
        result = tab.evaluate("axe.run()")
        assert len(result["passes"]) > 10, f"axe looked at little: {len(result['passes'])} rules"
        return [f"{one['impact']} {one['id']} ({where})" for one in result["violations"]]
