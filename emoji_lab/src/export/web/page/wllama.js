// The engine: wllama, which is llama.cpp in WebAssembly.
import { part } from "./files.js";

/** Small WebAssembly modules, each with what it is called after: one with a vector, one with a try block. */
export const needs = {
  SIMD: [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11],
  exceptions: [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 10, 8, 1, 6, 0, 6, 64, 25, 11, 11],
};
/** Tokens of a question and its answer. */
const CONTEXT = 2048;

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
async function load(page, blob) {
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

/** What asks the model. */
export async function start(page, blobs) {
  const wllama = await load(page, Object.values(blobs)[0]);
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
