// Markdown of models as elements, block by block, so that a stream changes only its last block.
// Safe by construction: only createElement and text nodes, links to http(s) and mailto alone, no picture is ever fetched.
// Every search is bounded or remembered when it fails, so hostile text costs no more than long text.
import { button, copyText, make } from "./chat-dom.js";

const MAX_DEPTH = 12;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]{0,40})[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,9})([-*+]|\d{1,9}[.)])(?:[ \t]+(.*)|[ \t]*)$/;
const DIVIDER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*){0,50}\|?[ \t]*$/;
const blank = (line) => !line.trim();
const on = (pattern, line) => (line.length <= 1000 ? pattern.exec(line) : null);   // longer ones would cost their square

/** Shows the text in `target`; what has not changed since the last time stays as it is. */
export function render(target, text) {
  const blocks = split(text.split("\n")), old = target.shownBlocks ?? [];
  let same = 0;
  while (same < old.length && same < blocks.length && old[same] === blocks[same].source) same += 1;
  while (target.childNodes.length > same) target.lastChild.remove();
  for (const block of blocks.slice(same)) target.append(build(block, 0));
  target.shownBlocks = blocks.map((block) => block.source);
}

/* ---- blocks: {kind, lines, source, ...} ---- */
function split(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (blank(lines[at])) { at += 1; continue; }
    const [block, end] = blockAt(lines, at);
    block.source = block.kind + "\0" + lines.slice(at, end).join("\n");
    blocks.push(block);
    at = end;
  }
  return blocks;
}

function blockAt(lines, at) {
  const line = lines[at];
  let match;
  if ((match = on(FENCE, line))) return fence(lines, at, match);
  if (/^ {0,3}(\$\$|\\\[)/.test(line)) return mathBlock(lines, at);
  if ((match = on(HEADING, line))) return [{ kind: "heading", level: match[1].length, text: match[2] }, at + 1];
  if (on(RULE, line)) return [{ kind: "rule" }, at + 1];
  if (QUOTE.test(line)) {
    const end = until(lines, at, (next) => !QUOTE.test(next));
    return [{ kind: "quote", lines: lines.slice(at, end).map((next) => next.replace(QUOTE, "")) }, end];
  }
  if (ITEM.test(line)) return list(lines, at);
  if (isTable(lines, at)) {
    const end = until(lines, at + 2, (next) => blank(next) || !next.includes("|"));
    return [{ kind: "table", lines: lines.slice(at, end) }, end];
  }
  let end = at + 1;
  while (end < lines.length && !blank(lines[end]) && !startsBlock(lines, end)) end += 1;
  return [{ kind: "text", text: lines.slice(at, end).join("\n") }, end];
}

function until(lines, from, stops) {
  let end = from;
  while (end < lines.length && !stops(lines[end])) end += 1;
  return end;
}

const isTable = (lines, at) => at + 1 < lines.length && lines[at].includes("|") && lines[at + 1].includes("-") && on(DIVIDER, lines[at + 1])
  && cells(lines[at]).length === cells(lines[at + 1]).length;
const startsBlock = (lines, at) => [FENCE, HEADING, RULE].some((pattern) => on(pattern, lines[at])) || QUOTE.test(lines[at]) || ITEM.test(lines[at]) || isTable(lines, at)
  || /^ {0,3}(\$\$|\\\[)/.test(lines[at]);

function fence(lines, at, match) {
  const indent = lines[at].search(/\S/), close = match[1];
  const end = until(lines, at + 1, (line) => { const text = line.trim(); return text.length >= close.length && text === close[0].repeat(text.length); });
  const strip = new RegExp(`^ {0,${indent}}`);
  return [{ kind: "code", language: match[2], text: lines.slice(at + 1, end).map((line) => line.replace(strip, "")).join("\n") }, Math.min(end + 1, lines.length)];
}

function mathBlock(lines, at) {
  const open = lines[at].trim().slice(0, 2), close = open === "$$" ? "$$" : "\\]";
  if (lines[at].trim().indexOf(close, 2) >= 0) return [{ kind: "text", text: lines[at] }, at + 1];
  const end = until(lines, at + 1, (line) => line.includes(close) || blank(line));
  const last = end < lines.length && !blank(lines[end]) ? end + 1 : end;
  return [{ kind: "math", text: lines.slice(at, last).join("\n") }, last];
}

function list(lines, at) {
  const [, lead, mark] = ITEM.exec(lines[at]), ordered = /\d/.test(mark), items = [];
  let end = at, loose = false;
  const begins = (line) => {
    const match = ITEM.exec(line);
    return match && match[1].length <= lead.length + 1 && /\d/.test(match[2]) === ordered && !on(RULE, line) ? match : null;
  };
  for (let match; end < lines.length && (match = begins(lines[end]));) {
    const width = match[1].length + match[2].length + 1, content = [match[3] ?? ""];
    for (end += 1; end < lines.length; end += 1) {
      const line = lines[end], indent = line.search(/\S/);
      if (blank(line)) {
        const next = lines[end + 1];
        if (next === undefined || blank(next)) break;
        if (next.search(/\S/) < Math.min(width, match[1].length + 2)) { if (!begins(next)) break; loose = true; end += 1; break; }
        loose = true;
      } else if (indent <= match[1].length + 1 && startsBlock(lines, end)) break;
      content.push(line.replace(new RegExp(`^[ ]{0,${width}}`), ""));
    }
    items.push(content);
  }
  return [{ kind: "list", ordered, start: ordered ? parseInt(mark, 10) : 1, items, loose }, end];
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

/* ---- elements ---- */
function build(block, depth) {
  const builder = { heading, rule: () => make("hr"), quote, list: listElement, table, code, math, text: paragraph }[block.kind];
  return builder(block, depth);
}

function within(lines, depth) {
  return depth >= MAX_DEPTH ? [document.createTextNode(lines.join("\n"))] : split(lines).map((block) => build(block, depth + 1));
}

// Last of all: with every child that comes later the browser would look through all of them again.
function direction(element) { element.dir = "auto"; return element; }

function heading(block) {
  const element = make(`h${Math.min(block.level + 2, 6)}`);   // under the page's own headings
  element.append(...inline(block.text));
  return direction(element);
}

function paragraph(block) {
  const element = make("p");
  element.append(...inline(block.text.trim()));
  return direction(element);
}

function quote(block, depth) {
  const element = make("blockquote");
  element.append(...within(block.lines, depth));
  return direction(element);
}

function listElement(block, depth) {
  const element = make(block.ordered ? "ol" : "ul", block.loose ? "loose" : "");
  if (block.ordered && block.start !== 1) element.start = block.start;
  for (const lines of block.items) {
    const item = make("li");
    const task = /^\[([ xX])\] /.exec(lines[0]);
    if (task) item.append(task[1] === " " ? "☐ " : "☑ ");
    const parts = within(task ? [lines[0].slice(4), ...lines.slice(1)] : lines, depth);
    for (const part of parts) item.append(...(part.tagName === "P" && !block.loose ? part.childNodes : [part]));
    element.append(direction(item));
  }
  return direction(element);
}

function table(block) {
  const box = make("div", "table"), element = make("table"), head = make("thead"), body = make("tbody");
  const sides = cells(block.lines[1]).map((cell) => (/^:-+:$/.test(cell) ? "middle" : /-:$/.test(cell) ? "end" : ""));
  const row = (line, tag) => {
    const found = cells(line), element = make("tr");
    sides.forEach((side, index) => {
      const cell = make(tag, side);
      if (tag === "th") cell.scope = "col";
      cell.append(...inline(found[index] ?? ""));
      element.append(direction(cell));
    });
    return element;
  };
  head.append(row(block.lines[0], "th"));
  body.append(...block.lines.slice(2).map((line) => row(line, "td")));
  element.append(head, body);
  box.append(element);
  box.tabIndex = 0;   // so that a wide one can be scrolled with the keyboard
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", "Table");
  return box;
}

function code(block) {
  const box = make("div", "code"), bar = make("div", "bar"), pre = make("pre");
  const copy = button("Copy", () => copyText(block.text, copy), "mini", "");
  copy.title = "Copy this code";
  bar.append(make("span", "", block.language || "text"), copy);
  pre.append(make("code", "", block.text));
  pre.dir = "ltr";
  pre.tabIndex = 0;
  box.append(bar, pre);
  return box;
}

function math(block) { return make("pre", "math", block.text); }

/* ---- inside a line ---- */
const LINK = /\[((?:[^\[\]\\\n]|\\.){0,500})\]\(\s{0,5}([^\s()<>]{1,2000}(?:\([^\s()]{0,200}\)[^\s()<>]{0,500}){0,5})(?:\s{1,5}"[^"\n]{0,300}")?\s{0,5}\)/y;
const ADDRESS = /https?:\/\/[^\s<>"'`\\]{1,2000}/y;
const ESCAPE = /\\([!-/:-@[-`{-~])/y;
const BREAK = /<br\s{0,3}\/?>/iy;
const TOKEN = /[\\`$*_~[!<h]/g;
const at = (pattern, text, index) => { pattern.lastIndex = index; return pattern.exec(text); };

/** Text nodes and elements of a text. */
export function inline(text, depth = 0) {
  const parts = [], missing = new Set();
  let plain = "", index = 0;
  const add = (element) => { if (plain) parts.push(document.createTextNode(plain)); plain = ""; parts.push(element); };
  while (index < text.length) {
    TOKEN.lastIndex = index;
    const found = TOKEN.exec(text), next = found ? found.index : text.length;
    plain += text.slice(index, next);
    index = next;
    if (!found) break;
    const [element, end] = special(text, index, depth, missing);
    if (element === null) { plain += text.slice(index, end); } else if (typeof element === "string") { plain += element; } else { add(element); }
    index = end;
  }
  if (plain) parts.push(document.createTextNode(plain));
  return parts;
}

/** [element, where it ends]; a null element: the characters up to there are text; a string: that is the text. */
function special(text, index, depth, missing) {
  const character = text[index];
  let match;
  if (character === "\\") {
    const close = { "(": "\\)", "[": "\\]" }[text[index + 1]];
    const end = close ? search(text, close, index + 2, missing) : -1;
    if (end >= 0) return [make("span", "math", text.slice(index, end + 2)), end + 2];
    return (match = at(ESCAPE, text, index)) && !"([".includes(match[1]) ? [match[1], index + 2] : [null, index + 1];
  }
  if (character === "`") return codeSpan(text, index, missing);
  if (character === "$") return dollars(text, index, missing);
  if (character === "!") return text[index + 1] === "[" && (match = at(LINK, text, index + 1)) ? [link(match[2], match[1] || match[2], depth), index + 1 + match[0].length] : [null, index + 1];
  if (character === "[") return (match = at(LINK, text, index)) ? [link(match[2], match[1], depth), index + match[0].length] : [null, index + 1];
  if (character === "<") return (match = at(BREAK, text, index)) ? [make("br"), index + match[0].length] : [null, index + 1];
  if (character === "h") return address(text, index);
  return emphasis(text, index, depth, missing);
}

function search(text, what, from, missing) {
  if (missing.has(what)) return -1;
  const end = text.indexOf(what, from);
  if (end < 0) missing.add(what);
  return end;
}

function codeSpan(text, index, missing) {
  let length = 1;
  while (text[index + length] === "`") length += 1;
  const ticks = "`".repeat(length);
  for (let end = search(text, ticks, index + length, missing); end >= 0; end = text.indexOf(ticks, end)) {
    let close = length;
    while (text[end + close] === "`") close += 1;
    if (close === length) {
      const inner = text.slice(index + length, end);
      return [make("code", "", /^ .*\S.* $/s.test(inner) ? inner.slice(1, -1) : inner), end + length];
    }
    end += close;
  }
  missing.add(ticks);
  return [null, index + length];
}

function dollars(text, index, missing) {
  const mark = text[index + 1] === "$" ? "$$" : "$", from = index + mark.length;
  if (mark === "$" && (/\s/.test(text[from] ?? " ") || /[\w\\]/.test(text[index - 1] ?? ""))) return [null, from];   // an amount of money
  const end = search(text, mark, from, missing);
  if (end <= from) return [null, from];
  const inner = text.slice(from, end);
  if (mark === "$" && (/\s$/.test(inner) || /\d/.test(text[end + 1] ?? "") || inner.includes("\n") || inner.length > 300)) return [null, from];
  return [make("span", "math", text.slice(index, end + mark.length)), end + mark.length];
}

const TAGS = { "***": ["strong", "em"], "**": ["strong"], "*": ["em"], "__": ["strong"], "_": ["em"], "~~": ["s"] };
function emphasis(text, index, depth, missing) {
  const character = text[index];
  let length = 1;
  while (text[index + length] === character) length += 1;
  const mark = character.repeat(length), after = text[index + length] ?? " ", before = text[index - 1] ?? " ";
  if (!(mark in TAGS) || /\s/.test(after) || depth >= MAX_DEPTH || missing.has(mark)) return [null, index + length];
  const word = character === "_";
  if (word && /[\p{L}\p{N}]/u.test(before)) return [null, index + length];
  for (let end = text.indexOf(mark, index + length + 1); end >= 0; end = text.indexOf(mark, end)) {
    let close = length;
    while (text[end + close] === character) close += 1;
    const fits = close === length || (close === 3 && length < 3);
    const from = close === 3 && length === 1 ? end + 2 : end;   // *a **b***
    if (fits && !/\s/.test(text[from - 1]) && !(word && /[\p{L}\p{N}]/u.test(text[end + close] ?? " "))) {
      let element = null, outer = null;
      for (const tag of TAGS[mark]) { const inner = make(tag); if (element) element.append(inner); else outer = inner; element = inner; }
      element.append(...inline(text.slice(index + length, from), depth + 1));
      return [outer, from + length];
    }
    end += close;
  }
  missing.add(mark);
  return [null, index + length];
}

function address(text, index) {
  if (/[\w/]/.test(text[index - 1] ?? " ")) return [null, index + 1];
  const match = at(ADDRESS, text, index);
  if (!match) return [null, index + 1];
  let url = match[0].replace(/[.,;:!?*_~]+$/, "");
  while (url.endsWith(")") && !url.includes("(")) url = url.slice(0, -1);
  return [link(url, null, 0), index + url.length];
}

function link(target, label, depth) {
  const content = () => (label === null || depth >= MAX_DEPTH ? [document.createTextNode(label ?? target)] : inline(label, depth + 1));
  let url = null;
  try { url = new URL(target); } catch { /* not an address */ }
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) {   // shown, so that nothing is hidden, but not to be followed
    const element = make("span");
    element.append(...content(), ` (${target})`);
    return element;
  }
  const element = make("a");
  element.href = url.href;
  element.target = "_blank";
  element.rel = "noopener noreferrer nofollow";
  element.title = url.href;
  element.append(...content());
  return element;
}
