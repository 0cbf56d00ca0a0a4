// The engine: Transformers.js, on WebGPU where there is one, else in WebAssembly. It computes in a worker,
// so that the page goes on while it does.
import { part } from "./files.js";

/** Small WebAssembly modules, each with what it is called after: one with a vector. */
export const needs = {
  SIMD: [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11],
};

/** Whether there is a GPU; one that is made of software is slower than WebAssembly. */
async function hasGpu() {
  try {
    const adapter = await navigator.gpu.requestAdapter();
    return Boolean(adapter) && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
  } catch {
    return false;
  }
}

/** A worker with the model in it: what it is told, it answers to who told it. */
async function load(task) {
  const worker = new Worker("worker.js", { type: "module" });
  const waiting = new Map();
  let next = 0;
  const fail = (error) => {
    for (const { reject } of waiting.values()) reject(error);
    waiting.clear();
  };
  worker.onerror = (event) => fail(new Error(event.message || "the worker failed"));
  worker.onmessage = ({ data: { id, result, error } }) => {
    const { resolve, reject } = waiting.get(id) ?? {};
    waiting.delete(id);
    if (error === undefined) resolve?.(result);
    else reject?.(new Error(error));
  };
  const call = (message, signal) =>
    new Promise((resolve, reject) => {
      const id = next++;
      waiting.set(id, { resolve, reject });
      worker.postMessage({ id, ...message });
      signal?.addEventListener("abort", () => waiting.has(id) && worker.postMessage({ id, task: "leave" }));
    });
  try {
    await call({ task: "load", ...task });
  } catch (error) {
    worker.terminate();
    throw error;
  }
  return call;
}

/** What asks the model. */
export async function start(page, blobs) {
  const { library } = page;
  const [script, glue, wasm] = await Promise.all([
    part(library, "script", "text/javascript"),
    part(library, "glue", "text/javascript"),
    part(library, "wasm", "application/wasm"),
  ]);
  // Threads need a page that is isolated from others (two headers, which a Space sends).
  const threads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  const on = (device) => load({ script, glue, wasm, blobs, threads, device, dtype: page.model.dtype, folder: page.model.folder });
  let device = (await hasGpu()) ? "webgpu" : "wasm";
  let call;
  try {
    call = await on(device);
  } catch (error) {
    if (device === "wasm") throw error;
    device = "wasm"; // A GPU that is too small, or not what it says.
    call = await on(device);
  }
  document.documentElement.dataset.device = device;
  const { bos, stop } = page.model;
  return {
    threads: device === "wasm" ? threads : 1,
    /** The answer to `text`. */
    ask(text, settings, abortSignal) {
      const prompt = page.prompt.before + text + page.prompt.after;
      return call({ task: "ask", prompt, bos, stop, longest: page.max_new_tokens, settings }, abortSignal);
    },
  };
}
