// What htmx does not do: copying a command, sending photos, and saying when the server does not answer.
"use strict";
const problem = (text) => {
  const place = document.getElementById("problem");
  place.replaceChildren();
  if (!text) return;
  const line = document.createElement("p");
  line.className = "problem";
  line.textContent = text; // text, never markup
  place.append(line);
};

function copying() {
  for (const box of document.querySelectorAll(".command")) {
    const button = box.querySelector("button");
    if (!button || !button.hidden || !navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(box.querySelector("code").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }
}

function sending() {
  const drop = document.getElementById("drop");
  if (!drop) return;
  const files = document.getElementById("files");
  const told = document.getElementById("sending");
  let busy = false;
  async function send(chosen) {
    if (busy || !chosen.length) return;
    problem("");
    const large = chosen.find((file) => file.size > Number(drop.dataset.each));
    const total = chosen.reduce((sum, file) => sum + file.size, 0);
    if (chosen.length > Number(drop.dataset.most)) { problem(`At most ${drop.dataset.most} photos at a time.`); return; }
    if (large) { problem(`${large.name} is too large.`); return; }
    if (total > Number(drop.dataset.total)) { problem("Together these photos are too large; send fewer at a time."); return; }
    busy = true;
    told.textContent = `Predicting ${chosen.length === 1 ? "1 photo" : `${chosen.length} photos`} …`;
    try {
      const head = JSON.stringify(chosen.map((file) => [file.name, file.size]));
      const answer = await fetch(drop.dataset.to, {
        method: "POST",
        headers: { "Content-Type": "application/octet-stream", "X-Unfreeze-Token": drop.dataset.token, "HX-Request": "true" },
        body: new Blob([head, "\n", ...chosen]),
      });
      const text = await answer.text();
      if (answer.ok) document.getElementById("answers").innerHTML = text; // made by the server, every name escaped
      else if (answer.status === 422) document.getElementById("problem").innerHTML = text;
      else problem(text);
    } catch {
      problem("Not sent: the studio does not answer, or a file cannot be read.");
    } finally {
      busy = false;
      told.textContent = "";
      files.value = "";
    }
  }
  files.addEventListener("change", () => send([...files.files]));
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    send([...event.dataTransfer.files]);
  });
}

// What a person has ticked or focused outlives the list's own refreshing.
let ticked = [];
let focused = "";
document.addEventListener("htmx:beforeSwap", (event) => {
  ticked = [...document.querySelectorAll("#runs input:checked")].map((box) => box.value);
  focused = event.detail.target.contains(document.activeElement) ? document.activeElement.id : "";
});
document.addEventListener("htmx:afterSettle", () => {
  for (const box of document.querySelectorAll("#runs input[type=checkbox]")) box.checked = ticked.includes(box.value);
  if (focused && document.activeElement === document.body) document.getElementById(focused)?.focus();
  copying();
});
document.addEventListener("htmx:sendError", () => problem("The studio does not answer: it was ended. Start `unfreeze studio` again; runs and jobs are kept."));
document.addEventListener("htmx:responseError", (event) => problem(event.detail.xhr.responseText || "The studio refused this."));
document.addEventListener("htmx:afterOnLoad", () => { if (document.querySelector("#problem .problem")?.textContent.startsWith("The studio does not")) problem(""); });
copying();
sending();
