"use strict";
// A conversation in which two responses are written side by side; the better one is sent to /v1/feedback.

const at = (id) => document.getElementById(id);
const talk = []; // {role, content}
let name = "prlhf";
let plain = false; // whether the run takes plain prompts, and so one message
let open = null; // {prompt, texts, left: how many are still written, stop} while two responses are shown

function headers() {
  const key = at("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function say(text, error = false) {
  at("status").textContent = text;
  at("status").className = error ? "error" : "";
}

async function refusal(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered with status ${answer.status}`;
  }
}

async function listUsers() {
  const answer = await fetch("v1/models", { headers: headers() });
  at("key").hidden = at("key-label").hidden = answer.status !== 401 && !at("key").value;
  if (!answer.ok) {
    say(answer.status === 401 ? "This server needs a key." : await refusal(answer), true);
    return;
  }
  const models = (await answer.json()).data;
  name = models[0].id;
  plain = models[0].prlhf_plain === true;
  at("name").textContent = document.title = name;
  at("users").replaceChildren(...models.slice(1).map((model) => new Option(model.id.slice(name.length + 1))));
  const notes = [];
  if (plain) notes.push("This run was trained on plain prompts: each message is a prompt of its own.");
  if (models[0].prlhf_logged) notes.push("This server keeps conversations.");
  say(notes.join(" "));
}

// ---- two responses ----

async function ask(prompt) {
  const stop = new AbortController();
  const messages = plain ? [{ role: "user", content: prompt }] : [...talk, { role: "user", content: prompt }];
  show({ role: "user", content: prompt });
  open = { messages, user: at("user").value.trim(), texts: ["", ""], stop };
  at("left").textContent = at("right").textContent = "";
  at("choice").hidden = false;
  at("send").disabled = true;
  say("Writing …");
  try {
    await read(stop.signal);
    ready("Which one is better?");
  } catch (error) {
    if (error.name === "AbortError") ready("Stopped. Which one is better?");
    else withdraw(error.message);
  }
}

async function read(signal) {
  const body = { model: name, messages: open.messages, n: 2, stream: true };
  if (open.user) body.user = open.user;
  const answer = await fetch("v1/chat/completions",
    { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
  if (!answer.ok) throw new Error(await refusal(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n\n");
    held = lines.pop();
    for (const line of lines.filter((one) => one !== "data: [DONE]")) {
      const event = JSON.parse(line.slice("data: ".length));
      if (event.error) throw new Error(event.error.message);
      const { index, delta } = event.choices[0];
      open.texts[index] += delta.content || "";
      at(["left", "right"][index]).textContent = open.texts[index];
    }
  }
}

function ready(text) {
  const same = open.texts[0] === open.texts[1];
  at("choose-left").disabled = at("choose-right").disabled = same;
  at("neither").disabled = false;
  say(same ? "Both responses are the same: press 0 to go on." : text);
  (same ? at("neither") : at("choose-left")).focus();
}

function withdraw(text) {
  at("talk").lastElementChild.remove();
  at("prompt").value = talk.pop().content;
  close();
  say(text, true);
}

function close() {
  open = null;
  at("choice").hidden = true;
  for (const id of ["choose-left", "choose-right", "neither"]) at(id).disabled = true;
  at("send").disabled = false;
  at("prompt").focus();
}

async function choose(better) {
  const { messages, user, texts } = open;
  show({ role: "assistant", content: texts[better ?? 0] });
  close();
  if (better === null) return say("");
  if (!user) return say("The choice was not kept: say as whom you choose, at the top.");
  const body = { prompt: messages, chosen: texts[better], rejected: texts[1 - better], user };
  try {
    const answer = await fetch("v1/feedback", { method: "POST", headers: headers(), body: JSON.stringify(body) });
    if (!answer.ok) throw new Error(await refusal(answer));
    const kept = await answer.json();
    say(`Kept. Choices of ${kept.user}: ${kept.choices}, of which ${kept.learned} were learned from.`);
    watch();
  } catch (error) {
    say(`The choice was not kept: ${error.message}`, true);
  }
}

function show(message) {
  talk.push(message);
  const item = document.createElement("li");
  item.className = message.role;
  item.textContent = message.content;
  at("talk").append(item);
  item.scrollIntoView({ block: "nearest" });
}

// ---- keys and buttons ----

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = at("prompt").value;
  if (open || !prompt.trim()) return;
  at("prompt").value = "";
  ask(prompt);
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("choose-left").addEventListener("click", () => choose(0));
at("choose-right").addEventListener("click", () => choose(1));
at("neither").addEventListener("click", () => choose(null));
at("key").addEventListener("change", listUsers);
at("user").addEventListener("change", watch);
at("compare").addEventListener("click", compare);
at("undo").addEventListener("click", undo);
at("undo").addEventListener("blur", () => { at("undo").textContent = "Undo"; });
at("who").addEventListener("submit", (event) => event.preventDefault());
at("new").addEventListener("click", begin);
document.addEventListener("keydown", (event) => {
  if (event.altKey && event.code === "KeyN") begin();
  if (event.key === "Escape" && open) open.stop.abort();
  const typing = event.target.matches("input, textarea");
  const button = { 1: "choose-left", 2: "choose-right", 0: "neither" }[event.key];
  if (open && button && !typing && !at(button).disabled) {
    event.preventDefault(); // or the number is written into the next message
    at(button).click();
  }
});

function begin() {
  if (open) open.stop.abort();
  talk.length = 0;
  at("talk").replaceChildren();
  close();
  say("");
}

listUsers();
