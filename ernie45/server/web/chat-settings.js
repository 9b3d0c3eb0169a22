// Settings, each one field of the API. What is left at its default is left out of the request.
// Knows nothing about conversations.
import { $, make, remembered } from "./chat-dom.js";

const STORED = "ernie45.settings", THEME = "ernie45.theme";
const WHOLE = { step: 1, max: 2 ** 31 - 1 };
// name, kind, what it says, limits, placeholder. The limits are those of the API.
const FIELDS = [
  ["model", "model", "the model, or an adapter of it"],
  ["system", "long", "sent as the first message, with the role system", { api: "messages[0]" }, "none"],
  ["enable_thinking", "choice", "think before answering", { options: [["", "as the model does"], ["true", "true"], ["false", "false"]] }],
  ["reasoning_max_tokens", "number", "tokens of thought at most, then it is closed", { ...WHOLE, min: 1 }, "0.8 × max_tokens"],
  ["max_tokens", "number", "tokens of thought and answer at most", { ...WHOLE, min: 1 }, "what the context has left"],
  ["temperature", "number", "0 always takes the likeliest token", { min: 0, max: 100 }, "1.0, or the model's"],
  ["top_p", "number", "keeps the likeliest tokens of this total probability", { min: 0, above: true, max: 1 }, "0.7, or the model's"],
  ["top_k", "number", "keeps so many of the likeliest tokens; 0: all", { step: 1, min: -1, max: 2 ** 31 - 1 }, "0"],
  ["min_p", "number", "least probability, as a share of the likeliest token's", { min: 0, max: 1 }, "0"],
  ["seed", "number", "the same seed and request give the same answer", { step: 1, min: 0, max: Number.MAX_SAFE_INTEGER }, "random"],
  ["repetition_penalty", "number", "above 1: tokens of prompt and answer become less likely", { min: 0, above: true, max: 100 }, "1.0, or the model's"],
  ["frequency_penalty", "number", "for each time that a token was said", { min: -2, max: 2 }, "0"],
  ["presence_penalty", "number", "for tokens that were said at all", { min: -2, max: 2 }, "0"],
  ["stop", "lines", "texts that end the answer, one a line, 16 at most", {}, "none"],
  ["response_format", "choice", "the form of the answer", { options: [["", "free text"], ["json_object", "json_object"], ["json_schema", "json_schema"]] }],
  ["json_schema", "long", "a JSON schema, for response_format json_schema", { api: "response_format.json_schema" }, '{"type": "object", …}'],
];
const DESCRIPTIONS = Object.fromEntries(FIELDS.map(([name, ...rest]) => [name, rest]));

let values = {};        // name -> text as typed; "" or absent is the default
let models = [];
let changed = () => {};

/** onChange: called after every change, also those made by `set`. */
export function openSettings(onChange) {
  changed = onChange;
  try {
    const stored = JSON.parse(remembered.get(STORED) ?? "{}");
    for (const [name] of FIELDS) if (typeof stored?.[name] === "string") values[name] = stored[name];
  } catch { /* not ours: begin anew */ }
  $("fields").replaceChildren(...FIELDS.map(([name]) => row(name)));
  $("theme").addEventListener("click", nextTheme);
  showTheme();
  $("settings-reset").addEventListener("click", () => { values = {}; show(); keep(); });
  show();
}

export const get = (name) => values[name] ?? "";
export function set(name, value) { values[name] = value; show(); keep(); }

/** The names that /v1/models lists, the model first. */
export function setModels(names) {
  if (!names.length || names.join("\0") === models.join("\0")) return;
  models = names;
  const select = $("set-model");
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  show();
  changed();
}
export const currentModel = () => (models.includes(get("model")) ? get("model") : models[0] ?? "");

function keep() {
  remembered.set(STORED, JSON.stringify(values));
  changed();
}

function row(name) {
  const [kind, description, limits = {}, placeholder = ""] = DESCRIPTIONS[name];
  const box = make("div", "field"), label = make("label", "", name === "system" ? "system prompt" : name), note = make("p", "", description);
  const input = make(kind === "choice" || kind === "model" ? "select" : kind === "number" ? "input" : "textarea");
  input.id = `set-${name}`;
  label.htmlFor = input.id;
  note.id = `about-${name}`;
  input.setAttribute("aria-describedby", `about-${name} wrong-${name}`);
  if (kind === "choice") input.append(...limits.options.map(([value, text]) => new Option(text, value)));
  if (kind === "number") { input.inputMode = limits.step ? "numeric" : "decimal"; input.autocomplete = "off"; }
  if (input.tagName === "TEXTAREA") input.rows = name === "system" || name === "json_schema" ? 3 : 2;
  if (placeholder) input.placeholder = placeholder;
  const wrong = make("p", "wrong");
  wrong.id = `wrong-${name}`;
  input.addEventListener(input.tagName === "SELECT" ? "change" : "input", () => { values[name] = input.value; mark(name); keep(); if (name === "response_format") show(); });
  box.append(label, input, note, wrong);
  return box;
}

function show() {
  for (const [name] of FIELDS) {
    const input = $(`set-${name}`), value = name === "model" ? currentModel() : get(name);
    if (input.value !== value) input.value = value;
    mark(name);
  }
  $("set-json_schema").closest(".field").hidden = get("response_format") !== "json_schema";
}

function mark(name) {
  const problem = problemOf(name);
  $(`set-${name}`).setAttribute("aria-invalid", String(Boolean(problem)));
  $(`wrong-${name}`).textContent = problem;
}

/** What is wrong with a value; "" if nothing is. */
function problemOf(name) {
  const [kind, , limits = {}] = DESCRIPTIONS[name], value = get(name).trim();
  if (kind === "number" && value) {
    const number = Number(value), { min, max, above, step } = limits;
    const rule = `${name} must be ${step ? "a whole number" : "a number"} ${above ? `above ${min}` : `from ${min}`} to ${max}`;
    if (!Number.isFinite(number) || number > max || (above ? number <= min : number < min) || (step && !Number.isInteger(number))) return rule;
  }
  if (name === "stop" && lines(get(name)).length > 16) return "stop must have at most 16 lines";
  if (name === "stop" && lines(get(name)).some((line) => line.length > 256)) return "a line of stop must have at most 256 characters";
  if (name === "json_schema" && get("response_format") === "json_schema") {
    try { if (!isObject(JSON.parse(value))) return "json_schema must be a JSON object"; } catch { return "json_schema must be JSON"; }
  }
  return "";
}

const lines = (text) => text.split("\n").filter((line) => line !== "");
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** The first thing that keeps a request from being made; "" if it can be. */
export function firstProblem() { return FIELDS.map(([name]) => problemOf(name)).find(Boolean) ?? ""; }

/** How many settings differ from their defaults. */
export function numChanged() {
  return FIELDS.filter(([name]) => name !== "model" && name !== "json_schema" && get(name).trim()).length + (models.length > 0 && currentModel() !== models[0]);
}

/** The body of a chat request: exactly what is sent, and what "copy as" shows. */
export function requestBody(messages, extra = {}) {
  const body = {};
  if (currentModel()) body.model = currentModel();
  const system = get("system").trim();
  body.messages = system ? [{ role: "system", content: system }, ...messages] : messages;
  body.stream = true;
  body.stream_options = { include_usage: true, continuous_usage_stats: true };
  if (get("enable_thinking")) body.enable_thinking = get("enable_thinking") === "true";
  for (const [name, kind] of FIELDS) if (kind === "number" && get(name).trim()) body[name] = Number(get(name));
  if (lines(get("stop")).length) body.stop = lines(get("stop"));
  const form = get("response_format");
  if (form === "json_object") body.response_format = { type: form };
  if (form === "json_schema") body.response_format = { type: form, json_schema: { name: "answer", schema: JSON.parse(get("json_schema")) } };
  return { ...body, ...extra };
}

/* ---- light and dark, which are no field of the API ---- */
function nextTheme() {
  const order = ["", "light", "dark"], now = order.indexOf(remembered.get(THEME) ?? ""), next = order[(now + 1) % 3];
  remembered.set(THEME, next);
  dispatchEvent(new Event("ernie45-theme"));
  showTheme();
}
function showTheme() {
  const name = { light: "light", dark: "dark" }[remembered.get(THEME)] ?? "as the system";
  $("theme").title = `Colours: ${name}`;
  $("theme").setAttribute("aria-label", `Colours: ${name}`);
}
