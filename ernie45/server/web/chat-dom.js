// Small tools of the page. Knows nothing about conversations.
// Text of users and models only ever becomes text nodes: the page's policy refuses anything else (Trusted Types).

export const $ = (id) => document.getElementById(id);

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const SHAPES = {
  send: "M12 19V5m0 0-6 6m6-6 6 6",
  stop: "M7 7h10v10H7z",
};

export function icon(shape) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), path = document.createElementNS(svg.namespaceURI, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", SHAPES[shape]);
  svg.append(path);
  return svg;
}

export function button(text, act, className = "quiet", label = "") {
  const element = make("button", className, text);
  element.type = "button";
  if (label) element.setAttribute("aria-label", label);
  element.addEventListener("click", act);
  return element;
}

/** A line above the message field, with at most one thing to do about it. `bad`: it is an error. */
export function notice(text, { bad = true, action = "", act = null } = {}) {
  const box = $("notice");
  box.replaceChildren();
  box.hidden = !text;
  box.className = bad ? "bad" : "";
  box.setAttribute("role", bad ? "alert" : "status");
  if (!text) return;
  box.append(make("span", "", text));
  if (action) box.append(button(action, () => { notice(""); act(); }, "mini"));
  box.append(button("×", () => notice(""), "mini close", "Dismiss"));
}

/** Read out once by screen readers; not called for every token. */
export function announce(text) {
  $("announce").textContent = text.length > 1000 ? text.slice(0, 1000) + " …" : text;
}

export async function copyText(text, from) {
  const before = from.textContent;
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {   // not allowed, or not over https: the old way
    const area = make("textarea", "hidden");
    area.value = text;
    (from.closest("dialog") ?? document.body).append(area);
    area.select();
    if (!document.execCommand("copy")) said = "Not allowed";
    area.remove();
    from.focus();
  }
  from.textContent = said;
  announce(said);
  setTimeout(() => { from.textContent = before; }, 1500);
}

export function saveFile(name, blob) {
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

export function seconds(milliseconds) {
  return milliseconds < 950 ? `${milliseconds.toFixed(0)} ms` : `${(milliseconds / 1000).toFixed(milliseconds < 9950 ? 1 : 0)} s`;
}

export const remembered = {
  get(name) { try { return localStorage.getItem(name); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(name, value); } catch { /* it lasts until the page closes */ } },
};

export const newId = () => [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
