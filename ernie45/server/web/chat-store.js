// Conversations and their pictures in this browser (IndexedDB). Knows nothing about how they are shown.
//
// conversation: { id, title, created, updated, leaf, nodes: { id: node } }   node: { id, parent, role, created, ... }
//   user: text, media: [id]     assistant: content, reasoning, stats, finish, error
// A picture is { id, chat, name, type, blob }. Where the browser keeps nothing, all lives in memory until the page closes.
import { newId } from "./chat-dom.js";

export const MAX_CHATS = 200;
export const MAX_BYTES = 1000 * 2 ** 20;
const FORMAT = "ernie45-chats", MAX_NODES = 20000, MAX_TEXT = 2 ** 22;

const memory = { chats: new Map(), media: new Map() };
const kept = new Set();   // pictures that are in the store for certain
let database = null;
let report = () => {};

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Never fails. onTrouble(text): called when the browser keeps nothing (more). */
export async function openStore(onTrouble) {
  report = onTrouble;
  try {
    const request = indexedDB.open("ernie45-chats", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("chats", { keyPath: "id" });
      request.result.createObjectStore("media", { keyPath: "id" }).createIndex("chat", "chat");
    };
    database = await Promise.race([done(request), new Promise((_, reject) => setTimeout(() => reject(new Error("no answer")), 4000))]);
    database.onversionchange = () => { database.close(); database = null; };
    for (const value of await all("chats")) { const chat = checked(value); if (chat) memory.chats.set(chat.id, chat); }
    await sweep();
  } catch { lost(); }
}

/** Pictures of messages that were deleted go when it can no longer be undone. Chats are always written before their pictures. */
async function sweep() {
  const shown = new Set([...memory.chats.values()].flatMap((chat) => Object.values(chat.nodes)).flatMap((node) => node.media ?? []));
  const gone = (await done(database.transaction("media").objectStore("media").getAllKeys())).filter((id) => !shown.has(id));
  if (gone.length) await write("media", (store) => gone.forEach((id) => store.delete(id)));
}

function lost() {
  database = null;
  report("This browser does not keep chats: they last until the page is closed.");
}

async function all(store) { return done(database.transaction(store).objectStore(store).getAll()); }

async function write(store, act) {
  if (!database) return false;
  try {
    const transaction = database.transaction(store, "readwrite");
    act(transaction.objectStore(store));
    await new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
    return true;
  } catch (error) {
    if (error?.name === "QuotaExceededError") report("This browser has no room left: delete chats, or the newest are lost when the page closes.");
    else lost();
    return false;
  }
}

export const chats = () => [...memory.chats.values()].sort((a, b) => b.updated - a.updated);
export const chatOf = (id) => memory.chats.get(id) ?? null;

export function newChat() {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, leaf: null, nodes: {} };
}

export async function saveChat(chat) {
  memory.chats.set(chat.id, chat);
  await write("chats", (store) => store.put(structuredClone(chat)));
}

export async function deleteChat(id) {
  memory.chats.delete(id);
  await write("chats", (store) => store.delete(id));
  for (const media of await mediaOf(id)) await forgetMedia(media.id);
}

export async function saveMedia(media) {
  memory.media.set(media.id, media);
  if (await write("media", (store) => store.put(media))) kept.add(media.id);
}

async function forgetMedia(id) {
  memory.media.delete(id);
  await write("media", (store) => store.delete(id));
}

export async function readMedia(id) {
  if (!memory.media.has(id) && database) {
    try {
      const media = await done(database.transaction("media").objectStore("media").get(id));
      if (media?.blob instanceof Blob) { memory.media.set(id, media); kept.add(id); }
    } catch { /* missing, as below */ }
  }
  return memory.media.get(id) ?? null;
}

/** Pictures that no message shows are not held in memory, if the store has them. */
export function releaseMedia() {
  if (database) for (const id of kept) memory.media.delete(id);
}

async function mediaOf(chat) {
  const found = new Map([...memory.media.values()].filter((media) => media.chat === chat).map((media) => [media.id, media]));
  if (database) {
    try {
      for (const media of await done(database.transaction("media").objectStore("media").index("chat").getAll(chat))) found.set(media.id, media);
    } catch { /* what is in memory */ }
  }
  return [...found.values()];
}

/** Deletes the oldest chats while there are too many or too large ones; how many were. `keep` stays. */
export async function prune(keep) {
  const sizes = new Map();
  if (database) {
    try { for (const media of await all("media")) sizes.set(media.chat, (sizes.get(media.chat) ?? 0) + media.blob.size); } catch { return 0; }
  }
  let total = [...sizes.values()].reduce((sum, size) => sum + size, 0), number = 0;
  for (const chat of chats().reverse()) {
    if (memory.chats.size <= MAX_CHATS && total <= MAX_BYTES) break;
    if (chat.id === keep) continue;
    total -= sizes.get(chat.id) ?? 0;
    await deleteChat(chat.id);
    number += 1;
  }
  return number;
}

/* ---- files ---- */
export async function exportChats(some = chats()) {
  const media = {};
  for (const chat of some) {
    for (const item of await mediaOf(chat.id)) media[item.id] = { name: item.name, type: item.type, data: await base64Of(item.blob) };
  }
  return new Blob([JSON.stringify({ format: FORMAT, version: 1, chats: some, media }, null, 1)], { type: "application/json" });
}

/** The chats of a file, as new ones. Error with a line for the user if it is no such file; then nothing has changed. */
export async function importChats(file, kindOf) {
  let data;
  try { data = JSON.parse(await file.text()); } catch { throw new Error(`${file.name} is not JSON.`); }
  if (data?.format !== FORMAT || !Array.isArray(data.chats)) throw new Error(`${file.name} is not a file of chats exported here.`);
  const found = data.chats.map(checked).filter(Boolean).slice(0, MAX_CHATS);
  if (!found.length) throw new Error(`${file.name} has no chats in it.`);
  for (const chat of found) {
    const pictures = [];
    chat.id = newId();
    for (const node of Object.values(chat.nodes)) {
      const ids = [];
      for (const old of node.media ?? []) {
        const media = await decoded(data.media?.[old], kindOf);
        if (media) { ids.push(media.id = newId()); media.chat = chat.id; pictures.push(media); }
      }
      if (node.media) node.media = ids;
    }
    await Promise.all([saveChat(chat), ...pictures.map(saveMedia)]);
  }
  return found.length;
}

async function decoded(item, kindOf) {
  try {
    const bytes = Uint8Array.from(atob(item.data), (character) => character.charCodeAt(0)), found = kindOf(bytes);
    return found && { name: String(item.name).slice(0, 200), type: found.type, blob: new Blob([bytes], { type: found.type }) };
  } catch { return null; }
}

const cache = new WeakMap();
export function base64Of(blob) {
  if (!cache.has(blob)) {
    cache.set(blob, new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(blob);
    }));
  }
  return cache.get(blob);
}

/* ---- what comes from outside has the right form, or is left out ---- */
const text = (value) => (typeof value === "string" ? value.slice(0, MAX_TEXT) : "");
const time = (value) => (Number.isFinite(value) && value > 0 ? Math.min(value, Date.now()) : Date.now());
const isId = (value) => typeof value === "string" && /^[\w-]{1,64}$/.test(value) && !(value in {});   // not "constructor"

function checked(value) {
  if (typeof value !== "object" || value === null || !isId(value.id) || typeof value.nodes !== "object" || value.nodes === null) return null;
  const nodes = {};
  for (const node of Object.values(value.nodes).slice(0, MAX_NODES)) {
    if (typeof node !== "object" || node === null || !isId(node.id)) continue;
    const base = { id: node.id, parent: isId(node.parent) ? node.parent : null, created: time(node.created) };
    if (node.role === "user") {
      nodes[node.id] = { ...base, role: "user", text: text(node.text), media: Array.isArray(node.media) ? node.media.filter(isId) : [] };
    } else if (node.role === "assistant") {
      nodes[node.id] = { ...base, role: "assistant", content: text(node.content), reasoning: text(node.reasoning), model: text(node.model),
        finish: text(node.finish) || "interrupted", stats: checkedStats(node.stats) };
    }
  }
  for (const node of Object.values(nodes)) if (node.parent && (!nodes[node.parent] || inCircle(node, nodes))) node.parent = null;
  const leaf = isId(value.leaf) && nodes[value.leaf] ? value.leaf : Object.values(nodes).sort((a, b) => b.created - a.created)[0]?.id ?? null;
  return { id: value.id, title: text(value.title).slice(0, 200), created: time(value.created), updated: time(value.updated), leaf, nodes };
}

function inCircle(node, nodes) {
  const seen = new Set();
  for (let at = node; at; at = nodes[at.parent]) { if (seen.has(at.id)) return true; seen.add(at.id); }
  return false;
}

const STATS = ["first_ms", "thought_ms", "total_ms", "prompt", "cached", "pictures", "completion", "reasoning"];
function checkedStats(value) {
  return Object.fromEntries(STATS.filter((name) => Number.isFinite(value?.[name])).map((name) => [name, value[name]]));
}
