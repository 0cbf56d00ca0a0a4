// Files: fetching and keeping the model's, and those of the library, each looked at before it is used.

/** An error whose message is a sentence for the person at the page. */
export class Trouble extends Error {}

const CACHE = "emoji_lab-models";

const count = (number) => number.toLocaleString("en");

/** 291545376 as "292 MB". */
export function megabytes(bytes) {
  const millions = bytes / 1e6;
  return `${millions < 10 ? millions.toFixed(1) : Math.round(millions)} MB`;
}

/** Where a file is kept: under its hash, so that a new model's is never taken for the old one's. */
function place(file) {
  const url = new URL(file.file, document.baseURI);
  url.search = "?sha256=" + encodeURIComponent(file.sha256);
  return url.href;
}

/** The file from an earlier visit, if the browser kept it. */
async function keptFile(file) {
  try {
    const found = await (await caches.open(CACHE)).match(place(file));
    const blob = found && (await found.blob());
    return blob && blob.size === file.bytes ? blob : null;
  } catch {
    return null; // No cache here: private windows, pages without https.
  }
}

/** Whether the browser kept all of the model's files. */
export async function kept(model) {
  return (await Promise.all(model.files.map(keptFile))).every(Boolean);
}

async function keep(file, blob) {
  try {
    const cache = await caches.open(CACHE);
    const here = new URL(place(file));
    for (const { url } of await cache.keys()) {
      if (new URL(url).pathname === here.pathname && url !== here.href) await cache.delete(url);
    }
    await cache.put(here.href, new Response(blob));
  } catch {
    // No room, or no cache: it is fetched again the next time.
  }
}

export async function forget(model) {
  try {
    const cache = await caches.open(CACHE);
    for (const file of model.files) await cache.delete(place(file));
  } catch {
    // There was none.
  }
}

/** The model's files, as blobs by their names; `progress` is told the share that is there. */
export async function fetchModel(model, progress) {
  const blobs = {};
  let before = 0;
  for (const file of model.files) {
    let blob = await keptFile(file);
    if (!blob) {
      progress(before / model.bytes);
      blob = await download(file, (bytes) => progress((before + bytes) / model.bytes));
      await keep(file, blob);
    }
    blobs[file.file] = blob;
    before += file.bytes;
  }
  return blobs;
}

/** Fetches a file of the model; `progress` is told how many bytes are there. */
async function download(file, progress) {
  const name = `The model's file, ${file.file.split("/").pop()},`;
  let response;
  try {
    response = await fetch(file.file);
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
      if (size > file.bytes) {
        await reader.cancel();
        break;
      }
      progress(size);
    }
  } catch {
    throw new Trouble(`The connection broke after ${megabytes(size)} of ${megabytes(file.bytes)}. Reload the page to try again.`);
  }
  const blob = new Blob(parts);
  const begins = Array.from(new Uint8Array(await blob.slice(0, 4).arrayBuffer()));
  if (begins.some((byte, at) => byte !== file.begins[at])) throw new Trouble(`${name} is no model. Export the page again.`);
  if (size < file.bytes) {
    throw new Trouble(`${name} is cut: it has ${count(size)} of ${count(file.bytes)} bytes. Copy it again, or export the page again.`);
  }
  if (size > file.bytes) throw new Trouble(`${name} is another one than the page was made for. Export the page again.`);
  return blob;
}

/** The address of a file of the library, once its hash was compared; elsewhere's file becomes a copy. */
export async function part(library, name, type) {
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
