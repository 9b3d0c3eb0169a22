// Pictures and videos on their way into a message. Knows nothing about conversations.
import { $, make } from "./chat-dom.js";

export const MAX_BYTES = { image: 20 * 2 ** 20, video: 40 * 2 ** 20 };
export const MAX_NUMBER = { image: 100, video: 10 };   // the server's own limits, unless it is told others

const KINDS = [   // by the first bytes, as the server does it: names and types of files are often wrong
  ["image/png", "image", /^\x89PNG\r\n\x1a\n/],
  ["image/jpeg", "image", /^\xff\xd8\xff/],
  ["image/gif", "image", /^GIF8[79]a/],
  ["image/webp", "image", /^RIFF[^]{4}WEBP/],
  ["image/bmp", "image", /^BM/],
  ["image/tiff", "image", /^(II[*+]\0|MM\0[*+])/],
  ["image/avif", "image", /^[^]{4}ftyp(avi[fs]|mi[af]1|msf1)/],
  ["video/mp4", "video", /^[^]{4}ftyp(?!hei|hev|qt)/],
  ["video/quicktime", "video", /^[^]{4}(ftypqt|moov|mdat|wide|free|skip)/],
  ["video/webm", "video", /^\x1a\x45\xdf\xa3/],
  ["video/x-msvideo", "video", /^RIFF[^]{4}AVI /],
  ["video/ogg", "video", /^OggS/],
  ["video/mpeg", "video", /^\0\0\x01\xba/],
  ["video/x-flv", "video", /^FLV\x01/],
];

/** {type, kind} of a file by its first bytes; null if it is neither picture nor video. */
export function kindOf(bytes) {
  const start = String.fromCharCode(...bytes.subarray(0, 16));
  const found = KINDS.find(([, , pattern]) => pattern.test(start));
  return found ? { type: found[0], kind: found[1] } : null;
}
export const isVideo = (type) => type.startsWith("video/");

/** {name, type, blob} for a message, or an Error that says what is wrong. */
export async function checkedFile(file, name = file.name || "picture") {
  let found;
  try { found = kindOf(new Uint8Array(await file.slice(0, 16).arrayBuffer())); } catch { throw new Error(`${name} cannot be read.`); }
  if (!found) throw new Error(`${name} is not a picture or video that the model can read (PNG, JPEG, WebP, GIF, MP4, WebM …).`);
  const limit = MAX_BYTES[found.kind];
  if (file.size > limit) {
    const way = found.kind === "video" ? "Cut it or scale it down first." : "Scale it down first.";
    throw new Error(`${name} has ${(file.size / 2 ** 20).toFixed(0)} MB, over the ${limit / 2 ** 20} MB for a ${found.kind === "video" ? "video" : "picture"}. ${way}`);
  }
  return { name, type: found.type, blob: file.slice(0, file.size, found.type) };
}

/** The part of a message that shows it. */
export function mediaPartOf({ type }, url) {
  return isVideo(type) ? { type: "video_url", video_url: { url } } : { type: "image_url", image_url: { url } };
}

const addresses = new Map();   // blob -> address, until the chat is left
export function addressOf(blob) {
  if (!addresses.has(blob)) addresses.set(blob, URL.createObjectURL(blob));
  return addresses.get(blob);
}
export function releaseAddresses() {
  for (const address of addresses.values()) URL.revokeObjectURL(address);
  addresses.clear();
}

/** A picture, or a video with controls. `preview`: small, without controls. */
export function view(media, preview = false) {
  if (isVideo(media.type)) {
    const video = make("video");
    video.muted = true;
    video.playsInline = true;
    video.preload = "metadata";
    video.controls = !preview;
    video.setAttribute("aria-label", media.name);
    video.src = addressOf(media.blob);
    return video;
  }
  return picture(addressOf(media.blob), media.name);
}

export function picture(address, name) {
  const image = make("img");
  image.alt = name;
  image.decoding = "async";
  image.onload = () => image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) < 200);
  image.src = address;
  return image;
}

/** act(files): called with what is pasted or dropped anywhere on the page. */
export function listenForFiles(act) {
  let depth = 0;
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length && !document.querySelector("dialog[open]")) { event.preventDefault(); act(files); }
  });
  document.addEventListener("dragenter", (event) => { if (carriesFiles(event)) { depth += 1; $("drop").hidden = false; } });
  document.addEventListener("dragleave", (event) => { if (carriesFiles(event) && --depth <= 0) { depth = 0; $("drop").hidden = true; } });
  document.addEventListener("dragover", (event) => { if (carriesFiles(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    depth = 0;
    $("drop").hidden = true;
    if (carriesFiles(event)) { event.preventDefault(); act([...event.dataTransfer.files]); }
  });
}
