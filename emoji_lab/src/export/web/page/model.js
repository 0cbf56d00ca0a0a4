// The model: what a browser must have for it, fetching and keeping its file, asking it.

/** An error whose message is a sentence for the person at the page. */
export class Trouble extends Error {}

/** Two small WebAssembly modules: one with a vector, one with a try block. */
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
const EXCEPTIONS = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 10, 8, 1, 6, 0, 6, 64, 25, 11, 11];
const NEWER = "A current Chrome, Edge, Firefox or Safari can.";
const CACHE = "emoji_lab-models";
/** Tokens of a question and its answer. */
const CONTEXT = 2048;

/** What this browser lacks, as a sentence; nothing if it can run the model. */
export function lacks() {
  const can = (module) => WebAssembly.validate(new Uint8Array(module));
  if (typeof WebAssembly !== "object" || typeof WebAssembly.validate !== "function") {
    return "This browser cannot run the model: WebAssembly is missing or switched off. " + NEWER;
  }
  if (!can(SIMD)) return "This browser cannot run the model: its WebAssembly has no SIMD. " + NEWER;
  if (!can(EXCEPTIONS)) return "This browser cannot run the model: its WebAssembly has no exceptions. " + NEWER;
  return "";
}

const count = (number) => number.toLocaleString("en");

/** 291545376 as "292 MB". */
export function megabytes(bytes) {
  const millions = bytes / 1e6;
  return `${millions < 10 ? millions.toFixed(1) : Math.round(millions)} MB`;
}

/** Where a model's file is kept: under its hash, so that a new model is never taken for the old one. */
function place(model) {
  const url = new URL(model.file, document.baseURI);
  url.search = "?sha256=" + encodeURIComponent(model.sha256);
  return url.href;
}

/** The model's file from an earlier visit, if the browser kept it. */
export async function kept(model) {
  try {
    const found = await (await caches.open(CACHE)).match(place(model));
    const blob = found && (await found.blob());
    return blob && blob.size === model.bytes ? blob : null;
  } catch {
    return null; // No cache here: private windows, pages without https.
  }
}

async function keep(model, blob) {
  try {
    const cache = await caches.open(CACHE);
    const here = new URL(place(model));
    for (const { url } of await cache.keys()) {
      if (new URL(url).pathname === here.pathname && url !== here.href) await cache.delete(url);
    }
    await cache.put(here.href, new Response(blob));
  } catch {
    // No room, or no cache: it is fetched again the next time.
  }
}

async function forget(model) {
  try {
    await (await caches.open(CACHE)).delete(place(model));
  } catch {
    // There was none.
  }
}

/** Fetches the model's file; `progress` is told the share that is there. */
async function download(model, progress) {
  const name = `The model's file, ${model.file},`;
  let response;
  try {
    response = await fetch(model.file);
  } catch {
    throw new Trouble(`${name} could not be fetched: the page's server does not answer. Reload the page to try again.`);
  }
  if (!response.ok) {
    throw new Trouble(`${name} is not beside the page (the server says ${response.status}). Export the page again.`);
  }
  const parts = [];
  let size = 0;
  try {
    const reader = response.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      size += part.value.byteLength;
      if (size > model.bytes) {
        await reader.cancel();
        break;
      }
      progress(size / model.bytes);
    }
  } catch {
    throw new Trouble(`The connection broke after ${megabytes(size)} of ${megabytes(model.bytes)}. Reload the page to try again.`);
  }
  const blob = new Blob(parts);
  if ((await blob.slice(0, 4).text()) !== "GGUF") throw new Trouble(`${name} is no model. Export the page again.`);
  if (size < model.bytes) {
    throw new Trouble(`${name} is cut: it has ${count(size)} of ${count(model.bytes)} bytes. Copy it again, or export the page again.`);
  }
  if (size > model.bytes) throw new Trouble(`${name} is another one than the page was made for. Export the page again.`);
  return blob;
}

/** The address of a file of the library, once its hash was compared; elsewhere's file becomes a copy. */
async function part(library, name, type) {
  const { url, integrity } = library.files[name];
  const address = new URL(url, document.baseURI);
  try {
    const response = await fetch(address, { integrity, credentials: "same-origin" });
    if (!response.ok) throw new Error(String(response.status));
    if (!library.linked) return address.href; // Its bytes are in the browser's cache now.
    return URL.createObjectURL(new Blob([await response.arrayBuffer()], { type }));
  } catch {
    const help = library.linked
      ? `did not come from ${address.host}, or is not the one it should be. Reload the page to try again.`
      : "is missing or damaged beside the page. Reload the page, or export it again.";
    throw new Trouble(`A file of the library, ${url.split("/").pop()}, ${help}`);
  }
}

/** As wllama decides it: without these two Safari and older browsers get the other build. */
function needsOther() {
  try {
    new WebAssembly.Memory({ address: "i64", initial: 1n });
    return !WebAssembly.Suspending;
  } catch {
    return true;
  }
}

/** wllama with the model in it. */
async function start(page, blob) {
  const { library } = page;
  const other = needsOther();
  const script = await part(library, "script", "text/javascript");
  const worker = other && (await part(library, "other_script", "text/javascript"));
  const wasm = await part(library, other ? "other_wasm" : "wasm", "application/wasm");
  const { Wllama } = await import(script);
  // It does not end by itself where its worker fails, nor where it cannot read the model.
  let fail;
  const failed = new Promise((_, reject) => (fail = reject));
  const heard = (event) => fail(event.error ?? event);
  addEventListener("error", heard);
  const quiet = () => {};
  const logger = { debug: quiet, log: quiet, warn: quiet, error: heard };
  const wllama = new Wllama({ default: wasm }, { suppressNativeLog: true, logger });
  wllama.setCompat(other ? { worker, wasm } : null);
  // Threads need a page that is isolated from others (two headers, which a Space sends).
  const threads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  const options = { n_threads: threads, n_ctx: CONTEXT, n_gpu_layers: 0, n_parallel: 1 };
  try {
    await Promise.race([wllama.loadModel([blob], options), failed]);
  } finally {
    removeEventListener("error", heard);
    logger.error = quiet;
  }
  if (!wllama.getModelMetadata().hparams.nVocab) throw new Error("it cannot be read");
  return wllama;
}

/** Fetches what is missing and starts; `tell` hears of phases ("fetching", share) and ("starting"). */
export async function ready(page, tell) {
  let blob = await kept(page.model);
  if (!blob) {
    tell("fetching", 0);
    blob = await download(page.model, (share) => tell("fetching", share));
    await keep(page.model, blob);
  }
  tell("starting");
  let wllama;
  try {
    wllama = await start(page, blob);
  } catch (error) {
    if (error instanceof Trouble) throw error;
    await forget(page.model);
    const why = String((error && error.message) || error).slice(0, 200);
    throw new Trouble(`The model did not start (${why}). Its file or the library's may be damaged, or there is too little memory: close other tabs and reload.`);
  }
  return {
    threads: wllama.getNumThreads(),
    /** The answer to `text`. */
    async ask(text, settings, abortSignal) {
      const prompt = page.prompt.before + text + page.prompt.after;
      const asked = { prompt, max_tokens: page.max_new_tokens, cache_prompt: true, abortSignal, ...settings };
      const { choices } = await wllama.createCompletion(asked);
      return choices[0].text;
    },
  };
}
