// The chat page: what is on it and how it is used. Knows nothing about models; it talks to the same API as everyone.
import { apiKey, call, serverState, setApiKey } from "./chat-api.js";
import { answer, tokensOf } from "./chat-ask.js";
import * as copying from "./chat-copy.js";
import { $, button, icon, make, newId, notice } from "./chat-dom.js";
import { MAX_NUMBER, checkedFile, isVideo, kindOf, listenForFiles, mediaPartOf, picture, releaseAddresses, view as mediaView } from "./chat-media.js";
import * as settings from "./chat-settings.js";
import { openSide, showChats, sideNote } from "./chat-side.js";
import * as store from "./chat-store.js";
import * as tree from "./chat-tree.js";
import { AnswerView, userTurn } from "./chat-turns.js";

const CHAT = "ernie45.chat", SHOWN = 40;
let chat = store.newChat();
let attached = [];      // {name, type, blob} of pictures not sent yet
let running = null;     // {controller, ended} of the answer under way
let editing = null;     // the question that the next message stands beside
let shown = SHOWN;      // messages from the end that are drawn

/* ---- one chat ---- */
async function openChat(next) {
  await stop();
  chat = next ?? store.newChat();
  shown = SHOWN;
  setEditing(null);
  releaseAddresses();
  store.releaseMedia();
  try { sessionStorage.setItem(CHAT, chat.id); } catch { /* the newest is opened instead */ }
  await draw();
  showChats(chat.id);
  follow(true);
}

async function draw() {
  const drawing = chat, nodes = tree.path(chat), media = new Map();
  const visible = nodes.slice(-shown);
  for (const node of visible) for (const id of node.media ?? []) media.set(id, await store.readMedia(id));
  if (chat !== drawing) return;
  const turns = visible.map((node) => (node.role === "user" ? userElement(node, media) : answerView(node).turn));
  $("turns").replaceChildren(...turns);
  $("earlier").hidden = nodes.length <= visible.length;
  const last = nodes.at(-1);
  if (last?.role === "user" && !running) $("turns").append(unanswered(last));
  refresh();
}

function userElement(node, media) {
  const element = userTurn(node, node.media.map((id) => media.get(id)), place(node), actions);
  element.querySelector(".pictures")?.classList.toggle("many", node.media.length > 3);
  return element;
}

function answerView(node) { return new AnswerView(node, place(node), actions); }

function place(node) {
  const all = tree.siblings(chat, node);
  return { index: all.indexOf(node), count: all.length };
}

function unanswered(question) {
  const box = make("article", "turn"), line = make("div", "error", "There is no answer to this.");
  box.setAttribute("aria-label", "Answer");
  const ways = make("span", "ways");
  ways.append(button("Try again", () => respond(question), ""));
  line.append(ways);
  box.append(line);
  return box;
}

const actions = {
  edit: (node) => startEdit(node),
  remove: removeTurn,
  retry: (node) => { if (!running) respond(chat.nodes[node.parent]); },
  proceed: (node) => { if (!running) proceed(node); },
  canProceed: (node) => ["length", "stopped", "broken", "interrupted"].includes(node.finish) && Boolean(node.content || node.reasoning) && !settings.get("response_format"),
  other: async (node, step) => {
    if (running) return;
    const all = tree.siblings(chat, node), next = all[all.indexOf(node) + step];
    if (!next) return;
    tree.choose(chat, next);
    await draw();
    const buttons = $("turns").querySelectorAll(`[data-node="${next.id}"] .others button`);
    (buttons[step < 0 ? 0 : 1]?.disabled ? buttons[step < 0 ? 1 : 0] : buttons[step < 0 ? 0 : 1])?.focus();
    store.saveChat(chat);
  },
};

async function startEdit(node) {
  if (running) await stop();
  const media = await Promise.all(node.media.map(store.readMedia));
  setEditing(node);
  compose(node.text, media.filter(Boolean).map(({ name, type, blob }) => ({ name, type, blob })));
}

function setEditing(node) { editing = node; $("editing").hidden = !node; }

async function removeTurn(node) {
  if (running) await stop();
  const before = structuredClone({ nodes: chat.nodes, leaf: chat.leaf }), inside = chat;
  tree.removeTurn(chat, node);
  await draw();
  await store.saveChat(chat);
  $("question").focus();
  notice("The question and its answer were deleted.", { bad: false, action: "Undo", act: async () => {
    Object.assign(inside, before);
    await store.saveChat(inside);
    if (inside === chat) await draw();
  } });
}

/* ---- asking ---- */
function submit() {
  const text = $("question").value.trim(), problem = settings.firstProblem();
  if (running || (!text && !attached.length)) return;
  if (problem) { notice(`${problem}.`, { action: "Settings", act: openSettings }); return; }
  const sent = attached, parent = editing ? chat.nodes[editing.parent] : chat.nodes[chat.leaf];
  compose("", []);
  setEditing(null);
  notice("");
  const media = sent.map((item) => ({ ...item, id: newId(), chat: chat.id }));
  const question = tree.add(chat, parent, { role: "user", text, media: media.map((item) => item.id) });
  if (!chat.title) chat.title = (text || sent[0].name).replace(/\s+/g, " ").slice(0, 80);
  keep(chat, media);
  respond(question);
}

/** The store is no reason to wait: what it is given, it has in memory at once. */
async function keep(inside, media) {
  await Promise.all(media.map(store.saveMedia));
  await store.saveChat(inside);
  const gone = await store.prune(inside.id);
  if (gone) notice(gone === 1 ? "The oldest chat was deleted to make room." : `The ${gone} oldest chats were deleted to make room.`, { bad: false });
  showChats();
}

async function respond(question) {
  const node = tree.add(chat, question, { role: "assistant", content: "", reasoning: "", finish: "", model: "", stats: {} });
  await run(node, question, () => ({}));
}

/** Goes on behind what has come of an answer. */
async function proceed(node) {
  const signal = () => running?.controller.signal;
  await run(node, chat.nodes[node.parent], async () => ({ completion_token_ids: await tokensOf(node, settings.currentModel(), signal()) }));
}

async function run(node, question, extra) {
  const inside = chat, controller = new AbortController();
  let ended;
  running = { controller, ended: new Promise((resolve) => { ended = resolve; }) };
  node.finish = "";
  await draw();
  const view = answerView(node);
  $("turns").lastChild.replaceWith(view.turn);
  refresh();
  if (document.activeElement === document.body && matchMedia("(hover: hover)").matches) $("question").focus();   // its button is gone
  follow(true);
  try { sessionStorage.setItem(CHAT, inside.id); } catch { /* as above */ }
  showChats(inside.id);
  await answer({
    node, view, signal: controller.signal, stop, askKey, shown: () => follow(),
    save: () => { inside.updated = Date.now(); return store.chatOf(inside.id) ? store.saveChat(inside) : null; },
    body: async () => settings.requestBody(await tree.messagesFor(inside, question, mediaPart), await extra()),
    ways: {
      canProceed: () => actions.canProceed(node),
      proceed: () => actions.proceed(node),
      retry: () => retryInPlace(inside, node, question),
      edit: () => editRefused(inside, question),
    },
  });
  running = null;
  ended();
  showChats();
  refresh();
  follow();
}

/** What failed without an answer is not worth keeping beside the next try. */
function retryInPlace(inside, node, question) {
  if (running || inside !== chat) return;
  if (!node.content && !node.reasoning) { delete chat.nodes[node.id]; chat.leaf = question.id; }
  respond(question);
}

async function editRefused(inside, question) {
  if (running || inside !== chat) return;
  const { text } = question, media = (await Promise.all(question.media.map(store.readMedia))).filter(Boolean);
  tree.removeTurn(chat, question);
  if (Object.keys(chat.nodes).length) await store.saveChat(chat); else await store.deleteChat(chat.id);
  await draw();
  showChats();
  compose(text, media.map(({ name, type, blob }) => ({ name, type, blob })));
}

async function mediaPart(id) {
  const media = await store.readMedia(id);
  if (!media) return null;
  return mediaPartOf(media, `data:${media.type};base64,${await store.base64Of(media.blob)}`);
}

async function stop() {
  if (!running) return;
  const { controller, ended } = running;
  controller.abort();
  await ended;
}

/* ---- the key ---- */
let keyAsked = null;
/** Whether there is a key now. One dialog, however many ask. */
function askKey() {
  if (keyAsked) return keyAsked;
  const dialog = $("key-dialog");
  $("key-wrong").hidden = !apiKey();
  setApiKey("");
  $("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  $("key").focus();
  keyAsked = new Promise((resolve) => dialog.addEventListener("close", () => {
    keyAsked = null;
    if (apiKey()) watch();
    resolve(Boolean(apiKey()));
  }, { once: true }));
  return keyAsked;
}

/** What Send would send now; with an empty field, what was sent last. */
async function openCopy() {
  const problem = settings.firstProblem();
  if (problem) { notice(`${problem}.`, { action: "Settings", act: openSettings }); return; }
  const text = $("question").value.trim(), media = [];
  const part = async (item) => {   // of a draft the pictures themselves, else their ids
    const found = item.blob ? item : await store.readMedia(item);
    return found && { media: media[media.push(found) - 1] };
  };
  let question = tree.path(chat).filter((node) => node.role === "user").at(-1);
  if (text || attached.length || !question) {
    question = { parent: editing ? editing.parent : chat.leaf, role: "user", text: text || (attached.length ? "" : "Hello"), media: attached };
  }
  const messages = await tree.messagesFor(chat, question, part);
  copying.open((named) => settings.requestBody(named), messages, media);
}

/* ---- pictures ---- */
async function attach(files) {
  const wrong = [];
  for (const file of files) {
    try {
      const item = await checkedFile(file), kind = isVideo(item.type) ? "video" : "image";
      if (attached.filter((other) => isVideo(other.type) === isVideo(item.type)).length >= MAX_NUMBER[kind]) {
        throw new Error(`${item.name} is one too many: a message may have ${MAX_NUMBER.image} pictures and ${MAX_NUMBER.video} videos.`);
      }
      attached.push(item);
    } catch (error) { wrong.push(error.message); }
  }
  notice(wrong.join(" "));
  showAttached();
}

function showAttached() {
  $("attached").replaceChildren(...attached.map((entry, index) => {
    const item = make("li");
    const remove = button("×", () => { attached.splice(index, 1); showAttached(); $("question").focus(); }, "", `Remove ${entry.name}`);
    item.title = entry.name;
    item.append(mediaView(entry, true), remove);
    return item;
  }));
  refresh();
}

async function showSamples() {
  const samples = await (await call("samples")).json();
  const items = await Promise.all(samples.map(async (sample) => {
    const blob = await (await call(`samples/${encodeURIComponent(sample.file)}`)).blob();
    const item = make("li"), choose = make("button");
    choose.type = "button";
    choose.append(picture(URL.createObjectURL(blob), ""), make("span", "", sample.question));
    choose.onclick = async () => {
      try { compose(sample.question, [await checkedFile(blob, sample.file)]); } catch (error) { notice(error.message); }
    };
    item.append(choose);
    return item;
  }));
  $("samples").replaceChildren(...items);
}

/* ---- the form ---- */
function compose(text, media) {
  $("question").value = text;
  attached = media;
  fit();
  showAttached();
  $("question").focus();
}

function refresh() {
  const go = $("go"), busy = running !== null, shape = busy ? "stop" : "send";
  if (go.dataset.shape !== shape) {
    go.replaceChildren(icon(shape));
    go.dataset.shape = shape;
    go.title = busy ? "Stop" : "Send";
    go.setAttribute("aria-label", go.title);
  }
  go.disabled = !busy && !$("question").value.trim() && !attached.length;
  $("welcome").hidden = $("turns").childElementCount > 0;
}

function fit() {
  const area = $("question");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
  refresh();
}

let pinned = true;
function follow(force) {
  const box = $("scroll");
  if (force) pinned = true;
  if (pinned) box.scrollTop = box.scrollHeight;
}

function openSettings() { $("settings").showModal(); }

function settingsChanged() {
  $("thinking").checked = settings.get("enable_thinking") !== "false";
  const number = settings.numChanged();
  $("settings-count").textContent = number;
  $("settings-count").hidden = !number;
  $("settings-open").setAttribute("aria-label", number ? `Settings, ${number} changed` : "Settings");
}

function listen() {
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); if (running) stop(); else submit(); });
  $("question").addEventListener("input", fit);
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
  });
  $("attach").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => { attach([...$("files").files]); $("files").value = ""; $("question").focus(); });
  $("new").addEventListener("click", async () => { await openChat(null); notice(""); compose("", []); });
  $("earlier").addEventListener("click", async () => {
    const box = $("scroll"), fromEnd = box.scrollHeight - box.scrollTop;
    shown += SHOWN;
    await draw();
    box.scrollTop = box.scrollHeight - fromEnd;
  });
  $("edit-cancel").addEventListener("click", () => { setEditing(null); compose("", []); });
  $("thinking").addEventListener("change", () => settings.set("enable_thinking", $("thinking").checked ? "" : "false"));
  $("settings-open").addEventListener("click", openSettings);
  $("copy-as").addEventListener("click", openCopy);
  $("unlock").addEventListener("click", askKey);
  $("key-form").addEventListener("submit", (event) => { event.preventDefault(); setApiKey($("key").value.trim()); $("key").value = ""; $("key-dialog").close(); });
  for (const close of document.querySelectorAll("[data-close]")) close.addEventListener("click", () => close.closest("dialog").close());
  for (const dialog of document.querySelectorAll("dialog")) dialog.addEventListener("click", (event) => { if (event.target === dialog && dialog.id !== "key-dialog") dialog.close(); });
  let top = 0;
  $("scroll").addEventListener("scroll", () => {   // growing text is no reason to let go, only a user who goes up
    const box = $("scroll");
    if (box.scrollHeight - box.scrollTop - box.clientHeight < 60) pinned = true;
    else if (box.scrollTop < top - 2) pinned = false;
    top = box.scrollTop;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (running) stop(); else if (editing) { setEditing(null); compose("", []); }
  });
  listenForFiles((files) => { attach(files); $("question").focus(); });
}

/* ---- the server's state ---- */
let watching = null, samplesShown = false, asked = false;
async function watch() {
  clearTimeout(watching);
  const { state, models } = await serverState(), model = $("model");
  clearTimeout(watching);
  watching = setTimeout(watch, state === "ready" ? 15000 : state === "locked" ? 60000 : 1000);
  settings.setModels(models);
  model.className = state === "ready" ? "ready" : state === "loading" ? "" : "down";
  model.textContent = state === "ready" ? settings.currentModel()
    : { loading: "loading the model", unreachable: "the server cannot be reached", locked: "the server wants a key" }[state] ?? `the server is ${state}`;
  $("unlock").hidden = state !== "locked";
  if (state === "locked" && !asked) { asked = true; askKey(); }
  if (state !== "locked" && state !== "unreachable" && !samplesShown) {
    samplesShown = true;
    showSamples().catch(() => { samplesShown = false; });
  }
}

async function begin() {
  listen();
  settings.openSettings(settingsChanged);
  settingsChanged();
  refresh();
  watch();
  openSide({ open: openChat, left: () => openChat(null), say: notice, kindOf });
  await store.openStore(sideNote);
  let last = null;
  try { last = sessionStorage.getItem(CHAT); } catch { /* begin with a new one */ }
  const found = last && store.chatOf(last);
  if (found && !running && !Object.keys(chat.nodes).length) await openChat(found); else showChats(chat.id);
}

begin();
