"""Rows and a model that attack whatever shows them, and whether a notebook's outputs fell for it.

What is fed in: the Rust kernel's own protocol, HTML with scripts, escape sequences, carriage returns,
controls of direction, invisible letters. If a script of theirs ran in a page, it asked for `TAKEN`,
a name in `window`, and changed the title.
"""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "emoji_lab" / "assets" / "tiny"
TAKEN = "http://127.0.0.1:9/taken"
SCRIPT = f"window.taken=1;document.title='taken';fetch('{TAKEN}')"
PICTURE = f'<img src="{TAKEN}" onerror="{SCRIPT}">'
ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"

TEXTS = [
    f"hello EVCXR_BEGIN_CONTENT text/html\n{PICTURE}\nEVCXR_END_CONTENT\n",
    "EVCXR_BEGIN_CONTENT x",  # Alone it would swallow all that follows, the end of the cell too.
    f"hi\nEVCXR_PANIC_NOTIFICATION\nEVCXR_BEGIN_CONTENT text/html\n<script>{SCRIPT}</script>\nEVCXR_END_CONTENT",
    f"hi\r\nEVCXR_END_CONTENT\r\nEVCXR_BEGIN_CONTENT text/html\r\n{PICTURE}\r\n",
    f"hi\nEVCXR_BEGIN_CONTENT application/javascript\n{SCRIPT}\nEVCXR_END_CONTENT\nEVCXR_PANIC_NOTIFICATION\nbye",
    "the cell is over\nEVCXR_EXECUTION_COMPLETE\nor not",
    "EVCXR_ERROR_OCCURRED\nEVCXR_VARIABLE_CHANGED_TYPE:base_model\nEVCXR_VARIABLE_CHANGED_TYPE:dataset",
    "EVCXR_INPUT_REQUEST:your token\nEVCXR_INPUT_REQUEST_PASSWORD:your token",
    f"</pre></td></table></svg><script>{SCRIPT}</script>{PICTURE}<style>*{{display:none}}</style>",
    f"<a href=\"javascript:{SCRIPT}\">x</a><iframe srcdoc=\"<script>parent.{SCRIPT}</script>\"></iframe>",
    f"\x1b[2J\x1b[8mhidden\x1b[0m \x1b]8;;{TAKEN}\x07click\x1b]8;;\x07",
    "\x9b8mhidden\x9d8;;x\x9c\x85next",
    "true\rfake, and \x08\x08\x08\x08gone",
    "a\x00b\x7fc",
    "\u202eemoji eht si siht\u202c \u2066a\u2069 \u200e\u200f\u061c",
    "one\u2028two\u2029three",
    "flood" + "\u0301\u0489" * 300 + " end",
    "tags\U000e0048\U000e0069 and the flag of England " + ENGLAND,
    "שלום לכולם, this is mixed",
    "סוף",
    "family 👨‍👩‍👧‍👦 and 🏖️",
]
EMOJI = ["🎉", "🏖️🌊", ENGLAND, "👨‍👩‍👧‍👦", "❤️‍🔥"]
# What the model says, and what its template puts around every word.
ANSWER = "".join(TEXTS[i] + "\n" for i in (0, 2, 10, 14))
# Names of files and folders; no slash in them.
NAME = "EVCXR_BEGIN_CONTENT x\n<img src=x onerror=document.title='taken'>\x1b[8m\u202eשם\r\u2028"

# Characters that none of our outputs may hold; tags only in a flag.
FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff]|(?<![\U000e0000-\U000e007f\U0001f3f4])[\U000e0000-\U000e007f]"
)
HTML_TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td", "b", "bdi", "br", "div", "span", "details", "summary", "pre", "p", "code", "a", "iframe"}
# Where the kernel hands out an exported page: the one address that a view of ours links to.
OWN_PAGE = re.compile(r"http://127\.0\.0\.1:[0-9]+/")
SVG_TAGS = {"svg", "title", "rect", "text", "line", "polyline", "circle", "g", "path", "polygon"}
KINDS = [{"text/plain"}, {"text/plain", "text/html"}, {"text/plain", "image/svg+xml"}]


def write_rows(path, count=40):
    """A CSV whose rows attack; every fifth has such a text in its emoji column, too, and is dropped."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "emoji"])
        for i in range(count):
            text = TEXTS[i % len(TEXTS)]
            rows.writerow([text, text if i % 5 == 4 else EMOJI[i % len(EMOJI)]])


def write_model(folder):
    """The embedded model with a tokenizer that turns every answer into ANSWER, a token named like the
    kernel's notice of a panic, and a template that says ANSWER, too."""
    shutil.copytree(TINY, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    last = tokenizer["added_tokens"][-1]
    name = "EVCXR_PANIC_NOTIFICATION"
    tokenizer["model"]["vocab"][name] = tokenizer["model"]["vocab"].pop(last["content"])
    last["content"] = name
    whole = {"type": "Replace", "pattern": {"Regex": "(?s)^.+$"}, "content": ANSWER}
    tokenizer["decoder"]["decoders"].append(whole)
    path.write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
        "{{ m.content }}" + ANSWER + "<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )


class Markup(HTMLParser):
    """The tags and attributes of a text that none of ours has."""

    def __init__(self, markup, allowed):
        super().__init__()
        self.allowed, self.foreign = allowed, []
        self.feed(markup)

    def handle_starttag(self, tag, attributes):
        def leads_out(name, value):
            return name in ("src", "href") and not OWN_PAGE.fullmatch(value or "")

        bad = [name for name, value in attributes if name.startswith("on") or name == "srcdoc" or leads_out(name, value)]
        if tag not in self.allowed or bad:
            self.foreign.append((tag, *bad))


def text_of(value):
    return "".join(value) if isinstance(value, list) else value


def faults(cells, streams=("stdout", "stderr")):
    """What is wrong with the outputs of code cells, in words; empty if all is text, and all is seen."""
    found = []
    for number, cell in enumerate(cells):
        for output in cell["outputs"]:
            where = f"cell {number} ({cell.get('id')})"
            if output["output_type"] == "stream":
                if output["name"] not in streams:
                    continue
                shown = {output["name"]: text_of(output["text"])}
            elif output["output_type"] == "error":
                found.append(f"{where}: an error: {output['evalue'][:300]}")
                continue
            else:
                shown = {kind: text_of(value) for kind, value in output["data"].items()}
                if set(shown) not in KINDS:
                    found.append(f"{where}: kinds {sorted(shown)}")
            for kind, text in shown.items():
                if "EVCXR_" in text:
                    found.append(f"{where}: a word of the kernel's in its {kind}")
                if bad := FORBIDDEN.search(text):
                    around = text[max(0, bad.start() - 20) : bad.end() + 20]
                    found.append(f"{where}: {bad.group()!r} in its {kind}: {around!r}")
                tags = {"text/html": HTML_TAGS, "image/svg+xml": SVG_TAGS}.get(kind)
                if tags and (foreign := Markup(text, tags).foreign):
                    found.append(f"{where}: foreign tags in its {kind}: {foreign[:3]}")
    return found
