// One answer, from the request to its end, with all that can go wrong on the way. Knows nothing about the list of chats.
import { ServerError, eventsOf, post, serverState } from "./chat-api.js";
import { announce } from "./chat-dom.js";

const MOST_TRIES = 20, SAVE_EVERY_MS = 1000;

/**
 * Fills the node with what the server answers. Never fails: what went wrong stands in node.finish and on the view.
 *
 * job: { node, view, body() -> request, signal, save(), shown(), askKey() -> whether there is a key now, ways: {retry, edit, proceed} }
 */
export async function answer(job) {
  const { node, view, signal } = job;
  const given = { content: node.content, reasoning: node.reasoning };
  view.begin();
  announce("Working");
  let problem = null;
  for (let tries = 1; ; tries += 1) {
    const before = node.content.length + node.reasoning.length;
    try {
      await stream(job);
      break;
    } catch (error) {
      if (error.name === "AbortError") { node.finish = "stopped"; break; }
      problem = error instanceof ServerError ? error : new ServerError("broken", `This page failed: ${error.message}`);
      const nothingCame = node.content.length + node.reasoning.length === before;
      try {
        if (nothingCame && tries < MOST_TRIES && (await waited(problem, job))) { problem = null; continue; }
      } catch (stopped) { if (stopped.name !== "AbortError") throw stopped; problem = null; node.finish = "stopped"; break; }
      node.finish = "broken";
      break;
    }
  }
  view.noProblem();
  view.end();
  if (problem) show(problem, job, node.content + node.reasoning !== given.content + given.reasoning);
  announce(problem ? "" : node.content || (node.finish === "stopped" ? "Stopped" : "No answer"));
  await job.save();
}

function show(problem, { node, view, ways }, someCame) {
  const kept = node.content || node.reasoning ? " What came is kept." : "";
  const list = [];
  if (problem.kind === "refused" && !someCame) list.push(["Edit", ways.edit]);
  else if (kept && ways.canProceed()) list.push(["Continue", ways.proceed]);
  list.push(["Try again", ways.retry]);
  view.problem(problem.message + (someCame || problem.kind === "broken" ? kept : ""), list);
}

async function stream(job) {
  const { node, view, signal } = job;
  const body = await job.body(), start = performance.now(), before = { ...node.stats }, more = Boolean(body.completion_token_ids);
  const response = await post("v1/chat/completions", body, signal);
  view.noProblem();
  let first = null, saved = start, drawn = false, finish = null;
  const draw = () => { drawn = false; view.update(); job.shown(); };
  const soon = () => { if (!drawn) { drawn = true; if (document.hidden) setTimeout(draw, 200); else requestAnimationFrame(draw); } };
  const since = () => performance.now() - start;
  const base = more ? before.total_ms ?? 0 : 0;
  try {
    for await (const event of eventsOf(response)) {
      if (event.usage) count(node.stats, event.usage, more ? before : {});
      if (event.model) node.model = event.model;
      const choice = event.choices[0];
      if (!choice) continue;
      const { reasoning_content: thought, content } = choice.delta;
      if (thought || content) {
        if (first === null) { first = since(); if (!more) node.stats.first_ms = first; }
        if (thought) { node.reasoning += thought; node.stats.thought_ms = base + since() - node.stats.first_ms; }
        if (content) {
          if (!node.content && node.reasoning) node.stats.thought_ms = base + since() - node.stats.first_ms;
          node.content += content;
        }
      }
      node.stats.total_ms = base + since();
      finish = choice.finish_reason ?? finish;
      soon();
      if (performance.now() - saved > SAVE_EVERY_MS) { saved = performance.now(); job.save(); }
    }
    if (!finish) throw new ServerError("broken", "The connection ended before the answer did.");
    node.finish = finish;
  } catch (error) {
    if (error.kind === "away" || error.kind === "busy") error.kind = "broken";
    throw error;
  } finally { view.update(); }
}

function count(stats, usage, before) {
  stats.prompt = usage.prompt_tokens;
  stats.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  stats.pictures = (usage.prompt_tokens_details?.image_tokens ?? 0) + (usage.prompt_tokens_details?.video_tokens ?? 0);
  stats.completion = (before.completion ?? 0) + usage.completion_tokens;
  stats.reasoning = (before.reasoning ?? 0) + (usage.completion_tokens_details?.reasoning_tokens ?? 0);
}

/** Waits until it makes sense to ask again; whether it does. AbortError if the user stops it. */
async function waited(problem, job) {
  const stop = ["Stop waiting", () => job.stop()];
  if (problem.kind === "key") return job.askKey(problem.message);
  if (problem.kind === "busy") {
    const pause = breakable(job.signal), line = job.view.problem("", [["Try now", pause.end], stop]);
    for (let left = problem.after ?? 5; left > 0 && !pause.over; left -= 1) {
      line.textContent = `${problem.message}. Trying again in ${left} s.`;
      await pause.wait(1000);
    }
    line.textContent = "Trying again.";
    return true;
  }
  if (problem.kind !== "away") return false;
  const pause = breakable(job.signal), line = job.view.problem(problem.message, [["Try now", pause.end], stop]);
  for (let tries = 0; !pause.over; tries += 1) {
    await pause.wait(Math.min(500 * 1.4 ** tries, 5000));
    const { state } = await serverState();
    if (state === "ready" || state === "locked") return true;
    const said = { loading: "The model is being loaded.", restarting: "The engine is started again.", dead: "The engine is started again.",
      draining: "The server is stopping.", unreachable: "The server cannot be reached." }[state] ?? `The server is ${state}.`;
    const text = `${said} The question is sent as soon as it is ready.`;
    if (line.textContent !== text) line.textContent = text;
  }
  return true;
}

/** A pause that ends early by `end` and fails with the signal. */
function breakable(signal) {
  let finish = () => {};
  const pause = {
    over: false,
    end: () => { pause.over = true; finish(); },
    wait: (milliseconds) => new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const timer = setTimeout(resolve, milliseconds);
      finish = () => { clearTimeout(timer); resolve(); };
      signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
    }),
  };
  return pause;
}

/** Token ids of what has come of an answer, which a request then goes on behind. */
export async function tokensOf(node, model, signal) {
  const thought = node.reasoning || node.stats.reasoning, prompt = thought && node.content ? `${node.reasoning}\n</think>\n\n${node.content}` : node.reasoning || node.content;
  return (await (await post("tokenize", model ? { model, prompt } : { prompt }, signal)).json()).tokens;
}

