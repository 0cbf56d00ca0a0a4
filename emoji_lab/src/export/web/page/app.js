// The page: what is typed, what is shown. Texts of others are put in as text alone.
import { WANTED, characters, isAllEmoji, suggestions } from "./answers.js";
import { Trouble, kept, megabytes } from "./files.js";
import { lacks, ready } from "./model.js";

/** The longest text that is asked about, in characters. */
const LONGEST = 500;
/** A model up to this size is fetched at once. */
const SMALL = 16e6;

const at = (id) => document.getElementById(id);
const show = (id, text) => {
  at(id).textContent = text;
  at(id).hidden = !text;
};
const say = (text) => {
  at("status").textContent = text;
};

let page; // What page.json says.
let starting; // The model, on its way.
let asking = new AbortController();

async function begin() {
  at("unstarted").remove();
  page = await settings();
  document.title = page.title;
  show("title", page.title);
  show("size", `${page.model.kind}, ${megabytes(page.model.bytes)}`);
  show("library", `${page.library.name} ${page.library.version}`);
  link("model", page.model);
  link("terms", page.terms);
  link("licence", page.library.licence);
  at("facts").hidden = false;
  const lacking = lacks();
  if (lacking) throw new Trouble(lacking);
  if (page.example) show("example", `Try “${page.example}”`);
  at("form").hidden = false;
  at("form").addEventListener("submit", submit);
  at("text").addEventListener("keydown", keys);
  at("text").addEventListener("input", typed);
  at("example").addEventListener("click", tryExample);
  if (page.model.bytes <= SMALL || (await kept(page.model))) return void model().catch(showError);
  say(`The model (${megabytes(page.model.bytes)}) is fetched when you begin to type, and kept by this browser.`);
}

async function settings() {
  try {
    const response = await fetch("page.json", { cache: "no-cache" });
    const read = response.ok && (await response.json());
    if (read.format === "emoji_lab page 1") return read;
  } catch {
    // As if it were another file.
  }
  throw new Trouble("The page's settings, page.json, are missing or damaged. Export the page again.");
}

/** Puts a name in, as a link if its address is one that a page may link to. */
function link(id, { name, url }) {
  let address;
  try {
    address = url && new URL(url, document.baseURI);
  } catch {
    // It is shown without.
  }
  if (!address || !/^https?:$/.test(address.protocol)) return show(id, name);
  const target = document.createElement("a");
  target.href = address.href;
  target.rel = "noopener";
  target.textContent = name;
  at(id).replaceChildren(target);
}

/** The model; it is fetched and started once. */
function model() {
  starting ??= ready(page, (phase, share) => {
    at("progress").hidden = phase !== "fetching";
    if (phase === "fetching") {
      at("bar").value = share;
      show("percent", `${Math.floor(100 * share)} % of ${megabytes(page.model.bytes)}`);
    }
    const words = { fetching: "Fetching the model…", starting: "Starting the model…" }[phase];
    if (at("status").textContent !== words) say(words);
  }).then((started) => {
    say("Ready.");
    document.documentElement.dataset.threads = started.threads;
    return started;
  });
  return starting;
}

/** Shows what went wrong. */
function showError(error) {
  at("progress").hidden = true;
  at("answers").replaceChildren();
  say("");
  const sentence = error instanceof Trouble ? error.message : `The page failed: ${String(error?.message || error).slice(0, 200)}. Reload it to try again.`;
  show("error", sentence);
}

function typed() {
  problem("");
  if (!starting) model().catch(showError);
}

function problem(sentence) {
  show("problem", sentence);
  if (sentence) at("text").setAttribute("aria-invalid", "true");
  else at("text").removeAttribute("aria-invalid");
}

/** Enter asks; with shift it begins a line. */
function keys(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("form").requestSubmit();
}

function tryExample() {
  at("text").value = page.example;
  problem("");
  at("form").requestSubmit();
}

function submit(event) {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text) {
    problem("Type a text first.");
    at("text").focus();
    return;
  }
  const length = text.length > 20 * LONGEST ? text.length : characters(text).length;
  if (length > LONGEST) {
    problem(`This text has ${length.toLocaleString("en")} characters. The model reads up to ${LONGEST}: shorten it.`);
    at("text").focus();
    return;
  }
  problem("");
  suggest(text);
}

/** Asks for suggestions; what was asked before is left. */
async function suggest(text) {
  asking.abort();
  const mine = (asking = new AbortController());
  const { signal } = mine;
  show("error", "");
  const list = at("answers");
  const slots = Array.from({ length: WANTED }, () => document.createElement("li"));
  slots.forEach((slot) => slot.classList.add("waiting"));
  list.replaceChildren(...slots);
  list.setAttribute("aria-busy", "true");
  let count = 0;
  try {
    const { ask } = await model();
    if (signal.aborted) return;
    say("Thinking…");
    for await (const answer of suggestions((how) => ask(text, how, signal))) {
      if (signal.aborted) return;
      slots[count].classList.remove("waiting");
      slots[count++].append(button(answer));
    }
    if (signal.aborted) return;
    slots.slice(count).forEach((slot) => slot.remove());
    say(count === WANTED ? "Three suggestions. Choose one to copy it." : few(count));
  } catch (error) {
    if (!signal.aborted) showError(error);
  } finally {
    if (asking === mine) list.removeAttribute("aria-busy");
  }
}

function few(count) {
  if (!count) return "The model has no answer to this. Try other words.";
  return `${count === 1 ? "One suggestion" : "Two suggestions"}: the model came to no other. Choose one to copy it.`;
}

function button(answer) {
  const [made, said, hint] = ["button", "span", "span"].map((tag) => document.createElement(tag));
  made.type = "button";
  made.className = "answer";
  said.className = "said";
  said.textContent = answer;
  if (!isAllEmoji(answer)) said.classList.add("words");
  else if (characters(answer).length > 4) said.classList.add("many");
  hint.className = "hint";
  hint.textContent = "Copy";
  made.append(said, " ", hint);
  made.addEventListener("click", () => copy(answer, made, hint));
  return made;
}

async function copy(answer, made, hint) {
  const done = await toClipboard(answer);
  say(done ? `Copied ${answer}` : "This browser does not let the page copy: select the suggestion and copy it yourself.");
  if (!done) return;
  made.classList.add("copied");
  hint.textContent = "Copied";
  clearTimeout(made.timer);
  made.timer = setTimeout(() => {
    made.classList.remove("copied");
    hint.textContent = "Copy";
  }, 2000);
}

/** Without https there is no clipboard, but the old way. */
async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    const before = document.activeElement;
    field.value = text;
    field.className = "aside";
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    before?.focus();
    return done;
  }
}

begin().catch(showError);
