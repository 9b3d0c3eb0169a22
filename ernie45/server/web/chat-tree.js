// A conversation as a tree: an edited question or another answer stands beside the first one, and nothing is lost.
// Knows nothing about pages and servers.
import { newId } from "./chat-dom.js";

/** The nodes from the first message to the one shown last. */
export function path(chat) {
  const nodes = [];
  for (let node = chat.nodes[chat.leaf]; node; node = chat.nodes[node.parent]) nodes.unshift(node);
  return nodes;
}

/** The nodes that stand in the place of this one, itself included, oldest first. */
export function siblings(chat, node) {
  return Object.values(chat.nodes).filter((other) => other.parent === node.parent && other.role === node.role);
}

/** Adds a node and shows it. */
export function add(chat, parent, fields) {
  const node = { id: newId(), parent: parent?.id ?? null, created: Date.now(), ...fields };
  chat.nodes[node.id] = node;
  chat.leaf = node.id;
  chat.updated = node.created;
  return node;
}

/** Shows this node, and below it what is newest. */
export function choose(chat, node) {
  const newest = new Map();   // parent -> its newest child
  for (const other of Object.values(chat.nodes)) {
    if (!newest.has(other.parent) || newest.get(other.parent).created <= other.created) newest.set(other.parent, other);
  }
  let last = node;
  while (newest.has(last.id)) last = newest.get(last.id);
  chat.leaf = last.id;
}

/** Takes out a question with all its answers; what followed them follows what was before. */
export function removeTurn(chat, question) {
  const answers = Object.values(chat.nodes).filter((node) => node.parent === question.id);
  const gone = new Set([question.id, ...answers.map((node) => node.id)]);
  for (const node of Object.values(chat.nodes)) if (gone.has(node.parent) && !gone.has(node.id)) node.parent = question.parent;
  for (const id of gone) delete chat.nodes[id];
  if (gone.has(chat.leaf)) {
    chat.leaf = question.parent;
    if (chat.nodes[question.parent]) choose(chat, chat.nodes[question.parent]);
    else { const first = Object.values(chat.nodes).filter((node) => node.parent === null).pop(); if (first) choose(chat, first); }
  }
}

/** The messages up to this question, as the API wants them. mediaPart(id): a part for a picture. Questions without an answer are left out. */
export async function messagesFor(chat, question, mediaPart) {
  const nodes = [];
  for (let node = question; node; node = chat.nodes[node.parent]) nodes.unshift(node);
  const messages = [];
  for (const [index, node] of nodes.entries()) {
    if (node.role === "assistant") continue;
    const answer = nodes[index + 1];
    if (answer && (answer.role !== "assistant" || !answer.content)) continue;
    messages.push({ role: "user", content: await contentOf(node, mediaPart) });
    if (answer) messages.push({ role: "assistant", content: answer.content });
  }
  return messages;
}

async function contentOf(node, mediaPart) {
  const parts = (await Promise.all(node.media.map(mediaPart))).filter(Boolean);
  if (!parts.length) return node.text;
  return node.text ? [...parts, { type: "text", text: node.text }] : parts;
}
