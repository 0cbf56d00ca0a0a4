// The model: what a browser must have for it, from its files to its answers.
import { needs, start } from "./engine.js";
import { Trouble, fetchModel, forget } from "./files.js";

const NEWER = "A current Chrome, Edge, Firefox or Safari can.";

/** What this browser lacks, as a sentence; nothing if it can run the model. */
export function lacks() {
  const can = (module) => WebAssembly.validate(new Uint8Array(module));
  if (typeof WebAssembly !== "object" || typeof WebAssembly.validate !== "function") {
    return "This browser cannot run the model: WebAssembly is missing or switched off. " + NEWER;
  }
  const missing = Object.keys(needs).find((name) => !can(needs[name]));
  return missing ? `This browser cannot run the model: its WebAssembly has no ${missing}. ${NEWER}` : "";
}

/** Fetches what is missing and starts; `tell` hears of phases ("fetching", share) and ("starting"). */
export async function ready(page, tell) {
  const blobs = await fetchModel(page.model, (share) => tell("fetching", share));
  tell("starting");
  try {
    return await start(page, blobs);
  } catch (error) {
    if (error instanceof Trouble) throw error;
    await forget(page.model);
    const why = String((error && error.message) || error).slice(0, 200);
    throw new Trouble(`The model did not start (${why}). Its file or the library's may be damaged, or there is too little memory: close other tabs and reload.`);
  }
}
