// The list of chats. Knows nothing about what is in them.
import { $, button, make, remembered, saveFile } from "./chat-dom.js";
import * as store from "./chat-store.js";

const OPEN = "ernie45.side";
const wide = matchMedia("(min-width: 56rem)");
let current = null, actions = {}, expanded = null, renaming = null;

/** actions: open(chat), left(chat) after it was deleted, say(text, options), kindOf(bytes). */
export function openSide(given) {
  actions = given;
  $("fold").addEventListener("click", () => setOpen(!isOpen()));
  $("shade").addEventListener("click", () => setOpen(false));
  $("side").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !wide.matches && !renaming) { event.stopPropagation(); setOpen(false); $("fold").focus(); }
  });
  $("search").addEventListener("input", showChats);
  $("export").addEventListener("click", async () => saveFile(`ernie45-chats-${today()}.json`, await store.exportChats()));
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", () => { const [file] = $("import-file").files; $("import-file").value = ""; if (file) load(file); });
  wide.addEventListener("change", () => setOpen(wide.matches && remembered.get(OPEN) !== "no", false));
  setOpen(wide.matches && remembered.get(OPEN) !== "no", false);
}

const today = () => new Date().toISOString().slice(0, 10);
const isOpen = () => $("body").classList.contains("side");

export function setOpen(open, byHand = true) {
  $("body").classList.toggle("side", open);
  $("fold").setAttribute("aria-expanded", String(open));
  const over = open && !wide.matches;   // over the page, which waits under it
  $("page").inert = over;
  $("shade").hidden = !over;
  if (byHand && wide.matches) remembered.set(OPEN, open ? "yes" : "no");
  if (byHand && open && !wide.matches) $("search").focus();
}

export function sideNote(text) { $("side-note").textContent = text; $("side-note").className = "bad"; }

async function load(file) {
  try {
    const number = await store.importChats(file, actions.kindOf);
    await store.prune(current);
    showChats();
    actions.say(number === 1 ? "One chat was imported." : `${number} chats were imported.`, { bad: false });
  } catch (error) { actions.say(error.message); }
}

/** Draws the list; `id` is the chat that is open. */
export function showChats(id) {
  if (typeof id === "string" || id === null) current = id;
  if (renaming) return;
  const wanted = $("search").value.trim().toLowerCase();
  const found = store.chats().filter((chat) => titleOf(chat).toLowerCase().includes(wanted));
  $("chats").replaceChildren(...found.map(item));
  if (!found.length) $("chats").append(make("li", "empty", wanted ? "No chat has this in its title." : "No chats yet."));
  $("export").disabled = !store.chats().length;
}

export const titleOf = (chat) => chat.title || "Untitled";

function item(chat) {
  const entry = make("li", chat.id === current ? "current" : ""), line = make("div", "line"), title = titleOf(chat);
  const open = button("", () => { actions.open(chat); if (!wide.matches) setOpen(false); }, "open");
  const name = make("span", "", title);
  name.dir = "auto";
  open.append(name, make("small", "", when(chat.updated)));
  open.title = title;
  if (chat.id === current) open.setAttribute("aria-current", "true");
  const more = button("⋯", () => { expanded = expanded === chat.id ? null : chat.id; showChats(); focus(chat, ".more"); }, "more", `More about ${title}`);
  more.setAttribute("aria-expanded", String(expanded === chat.id));
  entry.dataset.chat = chat.id;
  line.append(open, more);
  entry.append(line);
  if (expanded === chat.id) entry.append(moreOf(chat, entry));
  return entry;
}

function focus(chat, selector) { $("chats").querySelector(`[data-chat="${chat.id}"] ${selector}`)?.focus(); }

function moreOf(chat, entry) {
  const row = make("div", "row");
  row.append(
    button("Rename", () => rename(chat, entry)),
    button("Export", async () => saveFile(`ernie45-chat-${today()}.json`, await store.exportChats([chat]))),
    button("Delete", () => remove(chat)),
  );
  return row;
}

function rename(chat, entry) {
  const field = make("input", "title-field");
  field.value = titleOf(chat);
  field.maxLength = 200;
  field.setAttribute("aria-label", "Title");
  renaming = chat.id;
  const finish = async (keep) => {
    if (!renaming) return;
    renaming = null;
    expanded = null;
    if (keep && field.value.trim()) { chat.title = field.value.trim(); await store.saveChat(chat); }
    showChats();
    focus(chat, ".open");
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) finish(true);
    if (event.key === "Escape") { event.stopPropagation(); finish(false); }
  });
  field.addEventListener("blur", () => finish(true));
  entry.replaceChildren(field);
  field.select();
}

/** Gone from the list at once; from the store when it can no longer be undone. */
async function remove(chat) {
  expanded = null;
  const file = await store.exportChats([chat]);
  await store.deleteChat(chat.id);
  if (chat.id === current) actions.left(chat);
  showChats();
  $("search").focus();
  actions.say(`“${titleOf(chat).slice(0, 60)}” was deleted.`, { bad: false, action: "Undo", act: () => load(new File([file], "chat")) });
}

function when(time) {
  const date = new Date(time), days = Math.round((new Date().setHours(0, 0, 0, 0) - new Date(time).setHours(0, 0, 0, 0)) / 86400000);
  if (days <= 0) return date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return days === 1 ? "yesterday" : date.toLocaleDateString();
}
