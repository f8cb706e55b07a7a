"use strict";
// What the model knows of the person who is named: from how many choices, how surely, what changed, and undo.

let known = null; // the last answer of v1/users/NAME
let later = 0; // the timer of the next look, while the server learns the person
let asked = 0; // comparisons, of which the newest is shown

function person() {
  return at("user").value.trim();
}

async function watch() {
  clearTimeout(later);
  const user = person();
  if (known && known.id !== user) at("example").hidden = true;
  const answer = user && (await fetch(`v1/users/${encodeURIComponent(user)}`, { headers: headers() }));
  if (user !== person()) return; // somebody else was named meanwhile
  if (!answer || !answer.ok) {
    known = null;
    at("person").hidden = true;
    return;
  }
  meet(await answer.json());
}

function meet(found) {
  const before = known && known.id === found.id ? known : null;
  known = found;
  draw();
  clearTimeout(later);
  if (known.learning) later = setTimeout(watch, 1000);
  if (!before || before.version >= known.version) return;
  say(`The model of ${known.id} has changed: it is learned from ${known.versions.at(-1).choices} choices now.`);
  if (question()) compare();
}

function draw() {
  const now = known.versions.at(-1);
  const former = known.versions.at(-2);
  at("person").hidden = false;
  at("person-name").textContent = `What the model knows of ${known.id}`;
  const learning = known.learning ? " They are being learned …" : "";
  const version = now ? `version ${now.version}${now.at ? `, of ${new Date(now.at).toLocaleString()}` : ""}` :
    known.known ? "as trained" : "not known yet, and answered as the generic user";
  at("known").textContent = `${known.choices} choices, ${known.learned} of them learned; ${version}.${learning}`;
  at("sure").hidden = at("versions").hidden = !now;
  if (!now) {
    at("example").hidden = true;
    return;
  }
  at("uncertainty").value = now.uncertainty;
  const was = former ? former.uncertainty : 1;
  at("uncertainty-text").textContent = `${now.uncertainty.toFixed(2)} (before: ${was.toFixed(2)})`;
  at("undo").textContent = "Undo";
}

// ---- before and after ----

function question() {
  const last = talk.findLastIndex((message) => message.role === "user");
  if (last < 0) return null;
  return plain ? [talk[last]] : talk.slice(0, last + 1);
}

async function written(messages, version) {
  const body = { model: name, user: known.id, messages, temperature: 0, prlhf_version: version };
  const answer = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(await refusal(answer));
  return (await answer.json()).choices[0].message.content;
}

async function compare() {
  const messages = question();
  if (!messages) return say("Write a message first: it is answered as before and as now.");
  const mine = ++asked;
  const versions = [known.versions.at(-2) ?? { version: 0, choices: 0 }, known.versions.at(-1)];
  const ids = ["before", "now"];
  ids.forEach((id, which) => {
    at(id).textContent = "…";
    at(`${id}-name`).textContent = `${["Before", "Now"][which]}: ${versions[which].choices} choices`;
  });
  at("example").hidden = false;
  try {
    const texts = await Promise.all(versions.map((one) => written(messages, one.version)));
    if (mine === asked) ids.forEach((id, which) => { at(id).textContent = texts[which]; });
  } catch (error) {
    at("example").hidden = true;
    say(error.message, true);
  }
}

// ---- undo ----

async function undo() {
  const { id, version } = known;
  const left = known.versions.at(-1).choices - (known.versions.at(-2)?.choices ?? 0);
  if (at("undo").textContent === "Undo") {
    at("undo").textContent = `Really undo ${left} choices?`;
    return;
  }
  const body = { user: id, version: known.versions.at(-2)?.version ?? 0 };
  const answer = await fetch("v1/users/rollback", { method: "POST", headers: headers(), body: JSON.stringify(body) });
  if (!answer.ok) return say(await refusal(answer), true);
  at("example").hidden = true;
  asked += 1;
  meet(await answer.json());
  say(`Version ${version} of ${id} was undone.`);
}
