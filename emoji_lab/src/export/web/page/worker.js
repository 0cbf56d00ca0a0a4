// Where Transformers.js computes: the model, and answers token by token.
import { pick } from "./sample.js";

let library, tokenizer, model;
/** The last question: its tokens, what the model knows after it, and the logits of the first token to come. */
let held = { prompt: null };
/** Questions whose answers nobody waits for any more. */
const left = new Set();
/** Questions wait for one another: the model answers one at a time. */
let turn = Promise.resolve();

self.onmessage = ({ data: { id, task, ...rest } }) => {
  if (task === "leave") return void left.add(id);
  turn = turn.then(async () => {
    try {
      self.postMessage({ id, result: await { load, ask }[task](rest, id) });
    } catch (error) {
      self.postMessage({ id, error: String((error && error.message) || error) });
    }
  });
};

/** The library's settings: what it asks for comes from the page, and from nowhere else. */
async function load({ script, glue, wasm, blobs, threads, device, dtype, folder }) {
  library = await import(script);
  const { AutoModelForCausalLM, AutoTokenizer, env } = library;
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = "/";
  env.useBrowserCache = false;
  env.useWasmCache = false;
  env.logLevel = 50;
  env.fetch = async (url) => {
    const name = String(url).replace(/^\/+/, "");
    const blob = Object.hasOwn(blobs, name) ? blobs[name] : null;
    if (!blob) return new Response(null, { status: 404 });
    return new Response(blob, { headers: { "content-length": String(blob.size) } });
  };
  const runtime = env.backends.onnx.wasm;
  runtime.wasmBinary = await (await fetch(wasm)).arrayBuffer();
  runtime.wasmPaths = { mjs: glue, wasm };
  runtime.numThreads = threads;
  tokenizer = await AutoTokenizer.from_pretrained(folder);
  model = await AutoModelForCausalLM.from_pretrained(folder, { dtype, device });
}

/** The model's logits after `ids`, which follow what is in `past`, and what it knows then. */
async function read(ids, past) {
  const { DynamicCache, Tensor } = library;
  const whole = (length, value) => new Tensor("int64", BigInt64Array.from({ length }, value), [1, length]);
  const total = ids.length + (past?.get_seq_length() ?? 0);
  const output = await model({
    input_ids: whole(ids.length, (_, at) => BigInt(ids[at])),
    attention_mask: whole(total, () => 1n),
    past_key_values: past,
  });
  const { logits, ...present } = output;
  const entries = Object.entries(present).map(([name, tensor]) => [name.replace("present", "past_key_values"), tensor]);
  const known = new DynamicCache(Object.fromEntries(entries.filter(([name]) => name.startsWith("past_key_values"))));
  return { logits: Float32Array.from(logits.data), known };
}

async function ask({ prompt, bos, stop, longest, settings }, id) {
  if (held.prompt !== prompt) {
    await held.known?.dispose();
    held = { prompt: null };
    const ids = [bos, ...tokenizer.encode(prompt, { add_special_tokens: false })];
    held = { prompt, ...(await read(ids)) };
  }
  const random = new library.random.Random(settings.seed ?? 0);
  let { logits, known } = held;
  const answer = [];
  while (answer.length < longest) {
    // Between tokens a message may come.
    await new Promise((resolve) => setTimeout(resolve));
    if (left.has(id)) break;
    const token = pick(logits, settings, () => random.random());
    if (stop.includes(token)) break;
    answer.push(token);
    if (answer.length === longest) break;
    const before = known;
    ({ logits, known } = await read([token], before));
    if (before !== held.known) await before.dispose();
  }
  if (known !== held.known) await known.dispose();
  if (left.delete(id)) throw new Error("nobody waits for it");
  return tokenizer.decode(answer, { skip_special_tokens: true });
}
