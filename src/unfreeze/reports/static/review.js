// The review page. The server keeps the corrections; this shows one card, sends a decision, and moves on once it is saved.
"use strict";
const at = (id) => document.getElementById(id);
const source = at("deck");
const deck = JSON.parse(source.textContent);
const token = source.dataset.token;
const base = source.dataset.base; // where the page is mounted; empty if it stands alone
let index = 0;
let busy = false;

const correctionOf = (card) => deck.corrections[card.id];
const percent = (p) => (p >= 0.995 ? "> 99%" : p < 0.005 ? "< 1%" : `${Math.round(100 * p)}%`);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text; // text, never markup: names come from files
  if (className) made.className = className;
  return made;
}

function said(text) { at("said").textContent = text; }

function problem(text) {
  at("problem").textContent = text;
  at("problem").hidden = !text;
}

function showProgress() {
  at("progress").max = Math.max(deck.of, 1);
  at("progress").value = deck.done;
  at("progress-text").textContent = `${deck.done} of ${deck.of} judged`;
}

function decided(correction) {
  if (!correction) return "";
  return { keep: "kept", exclude: "excluded", relabel: `relabeled ${correction.label}` }[correction.action];
}

function showCard() {
  const card = deck.cards[index];
  const correction = correctionOf(card);
  at("done").hidden = true;
  at("card").hidden = false;
  const photo = at("photo");
  photo.src = `${base}/photos/${card.id}/large.jpg`;
  photo.alt = `The photo in question, labeled ${card.label}`;
  at("path").textContent = card.path;
  at("place").textContent = `Suspect ${index + 1} of ${deck.cards.length}`;
  at("correction").hidden = !correction;
  at("correction").textContent = decided(correction);
  at("question").textContent = `Labeled “${card.label}”. Is it “${card.suggested}”?`;
  at("reason").textContent = card.reason[0].toUpperCase() + card.reason.slice(1) + ".";
  at("told").replaceChildren(...card.probabilities.map(([name, p]) => {
    const row = element("tr", undefined, name === card.suggested ? "suggested" : "");
    const head = element("th", name);
    head.scope = "row";
    if (name === card.label) head.append(element("small", "the label"));
    if (name === card.suggested) head.append(element("small", "suggested"));
    const bar = element("td");
    const mark = element("i");
    mark.style.width = `${Math.max(1, 100 * p)}%`;
    bar.append(mark);
    row.append(head, element("td", percent(p), "num"), bar);
    return row;
  }));
  at("keep-label").textContent = card.label;
  at("relabel-label").textContent = card.suggested;
  const is = (word, label) => String(Boolean(correction && correction.action === word && (!label || correction.label === label)));
  at("keep").setAttribute("aria-pressed", is("keep"));
  at("relabel").setAttribute("aria-pressed", is("relabel", card.suggested));
  at("exclude").setAttribute("aria-pressed", is("exclude"));
  at("digits").replaceChildren(...card.keys.map((name, i) => {
    const button = element("button");
    button.type = "button";
    button.append(element("kbd", String(i + 1)), element("span", name));
    button.setAttribute("aria-pressed", is("relabel", name));
    button.disabled = name === card.label;
    button.addEventListener("click", () => relabel(name));
    return button;
  }));
  if (deck.classes.length > card.keys.length) {
    at("pick").hidden = false;
    at("classes").replaceChildren(...deck.classes.filter((c) => c !== card.label).map((c) => {
      const option = element("option", c);
      option.value = c;
      option.selected = c === card.suggested;
      return option;
    }));
  }
  const more = card.mate_count > card.mates.length ? ` (${card.mates.length} of ${card.mate_count})` : "";
  at("mates-title").textContent = card.mates.length ? `Other photos of its group${more}` : "The only photo of its group";
  at("mates").replaceChildren(...card.mates.map((mate) => {
    const item = element("li");
    const box = element("div", undefined, "photo");
    const picture = element("img");
    picture.src = `${base}/photos/${mate.id}/small.jpg`;
    picture.loading = "lazy";
    picture.alt = `Another photo of its group, labeled ${mate.label}`;
    box.append(picture);
    item.append(box, element("p", mate.label, mate.label === card.suggested ? "as-suggested" : "muted"));
    return item;
  }));
  at("previous").disabled = index === 0;
  at("undo").disabled = deck.done === 0;
  const following = deck.cards[index + 1];
  if (following) new Image().src = `${base}/photos/${following.id}/large.jpg`;
  said(`Suspect ${index + 1} of ${deck.cards.length}: labeled ${card.label}, suggested ${card.suggested}. ${decided(correction)}`);
}

function showDone() {
  const counts = deck.counts;
  at("card").hidden = true;
  at("done").hidden = false;
  const left = deck.of - deck.done;
  at("done-title").textContent = left ? `That was the last one; ${left} of ${deck.of} are not judged yet.` : `All ${deck.of} are judged.`;
  at("done-counts").textContent = `${counts.relabel || 0} relabeled, ${counts.exclude || 0} excluded, ${counts.keep || 0} kept.`;
  said(at("done-title").textContent);
}

function show() {
  showProgress();
  if (index >= deck.cards.length) showDone();
  else showCard();
}

function move(steps) {
  index = Math.min(Math.max(index + steps, 0), deck.cards.length);
  show();
}

async function send(address, body) {
  if (busy) return null;
  busy = true;
  problem("");
  try {
    const answer = await fetch(address, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Unfreeze-Token": token },
      body: JSON.stringify(body),
    });
    const kind = answer.headers.get("content-type") || "";
    const content = kind.includes("json") ? await answer.json() : { error: await answer.text() };
    if (!answer.ok) throw new Error(typeof content.error === "string" ? content.error : "The server refused this.");
    for (const key of ["corrections", "counts", "done", "of"]) deck[key] = content[key];
    return content;
  } catch (error) {
    const gone = error instanceof TypeError; // fetch's word for: nobody answers
    problem(gone ? "Not saved: the server does not answer. Start `unfreeze review` again; what was saved is there." : error.message);
    return null;
  } finally {
    busy = false;
  }
}

async function decide(correction, label) {
  const card = deck.cards[index];
  if (!card) return;
  if (await send(base + "/corrections", { id: card.id, action: correction, label: label || "" })) move(1);
}

const relabel = (name) => (name === deck.cards[index]?.label ? decide("keep") : decide("relabel", name));

async function undo() {
  const undone = await send(base + "/corrections/undo", {});
  if (!undone) return;
  const place = deck.cards.findIndex((card) => card.id === undone.id);
  if (place >= 0) index = place;
  show();
}

const shortcuts = {
  k: () => decide("keep"),
  r: () => deck.cards[index] && relabel(deck.cards[index].suggested),
  x: () => decide("exclude"),
  u: undo,
  n: () => move(1),
  j: () => move(1),
  p: () => move(-1),
  ArrowRight: () => move(1),
  ArrowDown: () => move(1),
  ArrowLeft: () => move(-1),
  ArrowUp: () => move(-1),
};

function pressed(event) {
  if (!at("keys-on").checked || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("select, input:not([type=checkbox]), textarea")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const digit = /^[1-9]$/.test(key) ? deck.cards[index]?.keys[Number(key) - 1] : undefined;
  const act = digit === undefined ? shortcuts[key] : () => relabel(digit);
  if (!act) return;
  event.preventDefault();
  act();
}

if (deck.cards.length) {
  at("keep").addEventListener("click", shortcuts.k);
  at("relabel").addEventListener("click", shortcuts.r);
  at("exclude").addEventListener("click", shortcuts.x);
  at("previous").addEventListener("click", shortcuts.p);
  at("next").addEventListener("click", shortcuts.n);
  at("undo").addEventListener("click", undo);
  at("pick-it").addEventListener("click", () => relabel(at("classes").value));
  at("back").addEventListener("click", () => { index = 0; show(); });
  at("photo").addEventListener("error", () => problem(`This photo cannot be shown: ${deck.cards[index]?.path}`));
  at("photo").addEventListener("load", () => problem(""));
  at("keys-on").addEventListener("change", (event) => document.body.classList.toggle("keys-off", !event.target.checked));
  document.addEventListener("keydown", pressed);
  index = deck.cards.findIndex((card) => !correctionOf(card));
  if (index < 0) index = deck.cards.length;
  show();
}
