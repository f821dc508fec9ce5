// The writing page: one suggestion at a time, shown as ghost text behind the caret at the end of the text.
"use strict";

const PAUSE_MS = 120; // after the last key, before a suggestion is asked for
const FAST_MS = 4000; // a request is given up after this
const MOST_CHARACTERS = 2400; // of the text's end are sent; cut in steps, so that caches stay useful
const STEP_CHARACTERS = 800;
const ROWS = 12;

const field = (id) => document.getElementById(id);
const text = field("text");
const session = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2);
let ghost = "";
let dismissed = null; // the text for which the suggestion was dismissed
let timer = 0;
let request = null;

field("token").value = sessionStorage.getItem("token") || "";
field("token").addEventListener("change", (event) => sessionStorage.setItem("token", event.target.value));

function show(suggestion) {
  ghost = suggestion;
  field("before").textContent = text.value;
  field("ghost").textContent = ghost;
  field("mirror").scrollTop = text.scrollTop;
}

function say(message) {
  field("state").textContent = message;
}

function atEnd() {
  return text.selectionStart === text.value.length && text.selectionEnd === text.value.length;
}

function stop() {
  clearTimeout(timer);
  if (request) request.abort();
  request = null;
}

function prompted(value) {
  if (value.length <= MOST_CHARACTERS) return value;
  return value.slice(Math.ceil((value.length - MOST_CHARACTERS) / STEP_CHARACTERS) * STEP_CHARACTERS);
}

async function suggest() {
  const value = text.value;
  // Models of the GPT family write a space with the word behind it: typed ones are held back, and matched.
  const prompt = prompted(value.replace(/ +$/, ""));
  const spaces = value.length - value.replace(/ +$/, "").length;
  if (!prompt.trim() || !atEnd() || dismissed === value) return;
  const controller = new AbortController();
  request = controller;
  const late = setTimeout(() => controller.abort(), FAST_MS);
  const headers = { "Content-Type": "application/json" };
  if (field("token").value) headers.Authorization = `Bearer ${field("token").value}`;
  const started = performance.now();
  try {
    const response = await fetch("/v1/completions", {
      method: "POST", headers, signal: controller.signal,
      body: JSON.stringify({ prompt, max_tokens: 24, session_id: session, speculation: { explain: true } }),
    });
    const answer = await response.json();
    if (request !== controller || text.value !== value || !atEnd()) return;
    if (!response.ok) {
      say(response.status === 429 ? "The server is busy; go on typing." : answer.error.message);
      return;
    }
    const whole = answer.choices[0].text;
    note(whole, answer.specpilot, performance.now() - started);
    if (spaces && whole.slice(0, spaces) !== " ".repeat(spaces)) return say("No suggestion fits here.");
    show(whole.slice(spaces));
    const account = answer.specpilot;
    say(account.cached ? "Known already: no target pass." : `${Math.round(account.e2e_ms)} ms, ${account.target_passes} target passes.`);
    field("spoken").textContent = ghost.trim() ? `Suggestion: ${ghost.trim()}` : "";
  } catch (error) {
    if (error.name !== "AbortError") say("The server does not answer.");
  } finally {
    clearTimeout(late);
    if (request === controller) request = null;
  }
}

function note(suggestion, account, took) {
  const cycles = (account.cycle_details || []).map((cycle) => `${cycle.accepted} of ${cycle.proposed} + ${cycle.own_kind}`);
  const cells = [
    suggestion.replace(/\n/g, "⏎").trim() || "(nothing)",
    `${took.toFixed(0)} ms (engine ${(account.engine_ms || 0).toFixed(0)} ms)`,
    account.cached ? "0 (known already)" : String(account.target_passes),
    `${account.verified_tokens} (${account.carried_tokens} known before)`,
    cycles.join("; ") || "–",
    account.stop_cause,
  ];
  const row = document.createElement("tr");
  for (const cell of cells) row.appendChild(document.createElement("td")).textContent = cell;
  field("rows").prepend(row);
  while (field("rows").rows.length > ROWS) field("rows").lastElementChild.remove();
}

let previous = "";
text.addEventListener("input", () => {
  const value = text.value;
  stop();
  const typed = value.startsWith(previous) ? value.slice(previous.length) : null;
  if (ghost && typed !== null && typed && ghost.startsWith(typed) && atEnd()) {
    show(ghost.slice(typed.length)); // typed through: the rest stays, nobody is asked
  } else {
    show("");
  }
  previous = value;
  dismissed = null;
  if (!ghost) timer = setTimeout(suggest, PAUSE_MS);
});

text.addEventListener("keydown", (event) => {
  if (event.isComposing || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Tab" && !event.shiftKey && ghost) {
    event.preventDefault();
    stop();
    text.setRangeText(ghost, text.value.length, text.value.length, "end");
    previous = text.value;
    show("");
    field("spoken").textContent = "Accepted.";
    timer = setTimeout(suggest, PAUSE_MS);
  } else if (event.key === "Escape" && ghost) {
    event.preventDefault();
    stop();
    dismissed = text.value;
    show("");
    field("spoken").textContent = "Dismissed.";
  }
});

text.addEventListener("scroll", () => { field("mirror").scrollTop = text.scrollTop; });
document.addEventListener("selectionchange", () => {
  if (ghost && document.activeElement === text && !atEnd()) show("");
});
