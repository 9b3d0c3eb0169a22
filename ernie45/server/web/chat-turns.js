// How one message looks. Knows nothing about the server.
import { button, copyText, make, seconds } from "./chat-dom.js";
import { render } from "./chat-markdown.js";
import { view as mediaView } from "./chat-media.js";

/** actions: edit, remove, retry, proceed and other, each of a node. place: {index, count} among its alternatives. */
export function userTurn(node, media, place, actions) {
  const turn = make("article", "turn user");
  turn.setAttribute("aria-label", "You");
  turn.dataset.node = node.id;
  if (node.media.length) {
    const row = make("div", "pictures");
    row.append(...media.map((item) => (item ? mediaView(item) : make("span", "gone", "not kept"))));
    turn.append(row);
  }
  if (node.text) {
    const text = make("div", "text", node.text);
    text.dir = "auto";
    turn.append(text);
  }
  const tools = toolbar();
  tools.append(button("Edit", () => actions.edit(node)));
  if (node.text) { const copy = button("Copy", () => copyText(node.text, copy)); tools.append(copy); }
  tools.append(button("Delete", () => actions.remove(node), "quiet", "Delete this question and its answer"));
  tools.append(...alternatives(place, node, actions, "question"));
  turn.append(tools);
  return turn;
}

const toolbar = () => make("div", "actions");

function alternatives({ index, count }, node, actions, what) {
  if (count < 2) return [];
  const box = make("span", "others"), back = button("‹", () => actions.other(node, -1), "quiet", `Earlier ${what}`);
  const next = button("›", () => actions.other(node, 1), "quiet", `Later ${what}`);
  back.disabled = index === 0;
  next.disabled = index === count - 1;
  const number = make("span", "", `${index + 1} of ${count}`);
  box.append(back, number, next);
  return [box];
}

/** Shows an answer, also while it comes: `update` after every change of the node. */
export class AnswerView {
  constructor(node, place, actions) {
    Object.assign(this, { node, place, actions, touched: false, folded: false });
    this.turn = make("article", "turn");
    this.turn.setAttribute("aria-label", "Answer");
    this.turn.dataset.node = node.id;
    this.thought = make("details", "thought");
    this.summary = make("summary");
    this.thoughtText = make("div", "text");
    this.answer = make("div", "answer");
    this.waiting = make("div", "waiting");
    this.numbers = make("div", "numbers");
    this.tools = toolbar();
    this.trouble = make("div");
    this.thoughtText.dir = "auto";
    this.summary.addEventListener("click", () => { this.touched = true; });
    this.thought.addEventListener("toggle", () => this.showThought());
    this.waiting.append(make("i"), make("i"), make("i"), "Reading");
    this.thought.append(this.summary, this.thoughtText);
    this.turn.append(this.thought, this.answer, this.waiting, this.trouble, this.numbers, this.tools);
    this.running = false;
    this.update();
  }

  begin() {
    this.running = true;
    this.touched = false;
    this.trouble.replaceChildren();
    this.thought.open = !this.node.content;
    this.update();
  }

  end() {
    this.running = false;
    this.update();
  }

  update() {
    const { node, running } = this;
    this.turn.classList.toggle("running", running);
    this.turn.setAttribute("aria-busy", String(running));
    this.waiting.hidden = !running || Boolean(node.reasoning || node.content) || this.trouble.hasChildNodes();
    this.thought.hidden = !node.reasoning;
    if (running && node.content && !this.touched && this.thought.open) this.thought.open = false;
    this.summary.textContent = summaryOf(node, running);
    this.showThought();
    render(this.answer, node.content);
    this.answer.hidden = !node.content;
    this.showNumbers();
    this.showTools();
  }

  showThought() {   // a folded thought costs nothing while it grows
    const shown = this.thoughtText.firstChild?.data ?? "", text = this.node.reasoning;
    if (!this.thought.open || shown === text) return;
    if (shown && text.startsWith(shown)) this.thoughtText.firstChild.appendData(text.slice(shown.length));
    else this.thoughtText.textContent = text;
  }

  showNumbers() {
    const said = this.running ? [] : numbersOf(this.node);
    this.numbers.replaceChildren(...said.map((item) => make("span", "", item)));
    this.numbers.hidden = !said.length;
  }

  showTools() {
    const { node, actions, running } = this;
    this.tools.hidden = running;
    if (running) return;
    const tools = [];
    if (node.content) { const copy = button("Copy", () => copyText(node.content, copy)); tools.push(copy); }
    const settled = !this.trouble.hasChildNodes();   // else the ways out stand there
    if (settled) tools.push(button("Retry", () => actions.retry(node)));
    if (settled && actions.canProceed(node)) tools.push(button("Continue", () => actions.proceed(node)));
    this.tools.replaceChildren(...tools, ...alternatives(this.place, node, actions, "answer"));
  }

  /** An error or a wait, with ways out: [[text, act], …]. The element of its text, for a countdown. */
  problem(text, ways) {
    const box = make("div", "error"), line = make("span", "", text), row = make("span", "ways");
    box.setAttribute("role", "alert");
    row.append(...ways.map(([name, act]) => button(name, act, "")));
    box.append(line, row);
    this.trouble.replaceChildren(box);
    this.update();
    return line;
  }

  noProblem() {
    this.trouble.replaceChildren();
    this.update();
  }
}

function summaryOf(node, running) {
  const { stats } = node, tokens = stats.reasoning ? `, ${stats.reasoning} tokens` : "";
  if (running && !node.content) return `Thinking${stats.thought_ms ? ` for ${seconds(stats.thought_ms)}` : ""}${tokens}`;
  if (!node.content) return (node.finish === "length" ? "Thought without an end" : "Thinking, stopped") + tokens;
  return (stats.thought_ms >= 1 ? `Thought for ${seconds(stats.thought_ms)}` : "Thought") + tokens;
}

/** Tokens a second after the first; where all came at once, of the whole time. Null if nothing can be said. */
function speedOf({ completion, total_ms: total, first_ms: first }) {
  if (!(completion > 1) || !(total > 0)) return null;
  const after = total - first, atOnce = !(after > 20);
  return ((atOnce ? completion : completion - 1) / (atOnce ? total : after)) * 1000;
}

const ENDS = { length: "cut at the length limit", stopped: "stopped", broken: "broken off", interrupted: "interrupted" };

function numbersOf({ stats, finish, model }) {
  const said = [];
  if (stats.prompt !== undefined) {
    said.push(`${stats.prompt} tokens in` + (stats.pictures ? `, ${stats.pictures} of pictures` : "") + (stats.cached ? `, ${stats.cached} cached` : ""));
  }
  if (stats.completion !== undefined) {
    said.push(`${stats.completion} out` + (stats.reasoning ? `, ${stats.reasoning} of thought` : ""));
    const speed = speedOf(stats);
    if (speed) said.push(`${speed.toFixed(speed < 9.95 ? 1 : 0)} tokens/s`);
  }
  if (stats.first_ms !== undefined) said.push(`first after ${seconds(stats.first_ms)}`);
  if (ENDS[finish]) said.push(ENDS[finish]);
  if (model) said.push(model);
  return said;
}
