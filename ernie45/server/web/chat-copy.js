// The request that would be sent, as a curl command and as a Python program. Knows nothing about where it comes from.
//
// Pictures are not written out: both read them from files of the names given, in the folder they run in.
import { apiKey } from "./chat-api.js";
import { $, button, copyText, newId, saveFile } from "./chat-dom.js";
import { mediaPartOf } from "./chat-media.js";

const OPENAI_NAMES = ["model", "messages", "stream", "stream_options", "temperature", "top_p", "max_tokens", "seed", "frequency_penalty",
  "presence_penalty", "stop", "response_format"];
const address = (path) => new URL(path, location.href).href;
const MARK = newId();   // nobody writes it by chance or on purpose
const DATA = new RegExp(`^${MARK}:([\\w/+.-]+):([^"]+)$`);

/** File names for pictures: as they came, without what a shell or a file system could misread; no two alike. */
function fileNames(media) {
  const taken = new Set();
  return media.map((item, index) => {
    const plain = item.name.normalize("NFC").replace(/[^\p{L}\p{N}._-]+/gu, "_").replace(/^[._-]+/, "").slice(-80) || `picture-${index + 1}`;
    let name = plain;
    for (let number = 2; taken.has(name.toLowerCase()); number += 1) name = `${number}-${plain}`;
    taken.add(name.toLowerCase());
    return name;
  });
}

/** Stands for the data URL of a file in a body that `asCurl` and `asPython` get. */
const placeholder = (type, name) => `${MARK}:${type}:${name}`;

function asCurl(body) {
  // Over standard input, as a command line holds no picture. In the text, $, ` and \ are the shell's, and ! where it is used by hand.
  const text = JSON.stringify(body, null, 2).replace(/!(?=[^\s="(])/g, "\\u0021").replace(/[\\$`]/g, "\\$&");
  const filled = text.replace(new RegExp(`"${MARK}:([\\w/+.-]+):([^"]+)"`, "g"), (_, type, name) => `"data:${type};base64,$(base64 < '${name}' | tr -d '\\n')"`);
  const key = apiKey() ? ' \\\n  -H "Authorization: Bearer $ERNIE45_API_KEY"' : "";
  return `curl --no-buffer ${address("v1/chat/completions")} \\\n  -H 'Content-Type: application/json'${key} \\\n  --data-binary @- <<END\n${filled}\nEND\n`;
}

function asPython(body) {
  const own = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI_NAMES.includes(name)));
  const fields = Object.entries(body).filter(([name]) => OPENAI_NAMES.includes(name));
  const files = JSON.stringify(body).includes(MARK);
  const lines = [
    ...(files ? ["import base64"] : []), ...(apiKey() ? ["import os"] : []), ...(files || apiKey() ? [""] : []),
    "from openai import OpenAI", "",
    ...(files ? ["", "def data_url(kind, name):", '    """A file as the address of its own content."""', '    with open(name, "rb") as file:',
      '        return f"data:{kind};base64,{base64.b64encode(file.read()).decode()}"', "", ""] : []),
    `client = OpenAI(base_url=${python(address("v1"))}, api_key=${apiKey() ? 'os.environ["ERNIE45_API_KEY"]' : '"none"'})`,
    "stream = client.chat.completions.create(",
    ...fields.map(([name, value]) => `    ${name}=${python(value, 1)},`),
    ...(Object.keys(own).length ? [`    extra_body=${python(own, 1)},`] : []),
    ")",
    "for chunk in stream:",
    "    for choice in chunk.choices:",
    '        thought = getattr(choice.delta, "reasoning_content", None)',
    '        print(thought or choice.delta.content or "", end="", flush=True)',
    "print()",
  ];
  return lines.join("\n") + "\n";
}

function python(value, depth = 0) {
  const inside = "    ".repeat(depth + 1), end = "    ".repeat(depth);
  if (value === null) return "None";
  if (value === true || value === false) return value ? "True" : "False";
  if (typeof value === "string") {
    const file = DATA.exec(value);
    return file ? `data_url(${quoted(file[1])}, ${quoted(file[2])})` : quoted(value);
  }
  if (typeof value === "number") return String(value);
  const isList = Array.isArray(value);
  const items = isList ? value.map((item) => python(item, depth + 1)) : Object.entries(value).map(([name, item]) => `${quoted(name)}: ${python(item, depth + 1)}`);
  const [open, close] = isList ? "[]" : "{}", short = items.join(", ");
  if (short.length < 90 && !short.includes("\n")) return `${open}${short}${close}`;
  return `${open}\n${items.map((item) => `${inside}${item},\n`).join("")}${end}${close}`;
}

// JSON's escapes are Python's, but for characters that JSON writes as halves of a pair and those that end a line.
function quoted(text) { return JSON.stringify(text).replace(/[\u007f-\u009f\u2028\u2029]/g, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`); }

/** Shows the dialog. bodyOf(messages): the request; `messages` have { media } in place of pictures, which are those of `media`. */
export function open(bodyOf, messages, media) {
  const names = fileNames(media);
  const named = ({ media: item, ...part }) => (item ? mediaPartOf(item, placeholder(item.type, names[media.indexOf(item)])) : part);
  const body = bodyOf(messages.map((message) => (typeof message.content === "string" ? message : { ...message, content: message.content.map(named) })));
  const show = () => { $("copy-text").textContent = document.querySelector("[name=form]:checked").value === "curl" ? asCurl(body) : asPython(body); };
  for (const choice of document.querySelectorAll("[name=form]")) choice.onchange = show;
  $("copy-go").onclick = () => copyText($("copy-text").textContent, $("copy-go"));
  $("copy-files").hidden = !media.length;
  $("copy-files").replaceChildren("It reads these files from its folder; save those that you do not have:",
    ...names.map((name, index) => button(name, () => saveFile(name, media[index].blob), "mini", `Save ${name}`)));
  $("copy-key").hidden = !apiKey();
  show();
  $("copy").showModal();
}
