// The page of a served run: one photo goes out, its classes and its map come back. Nothing is kept.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const settings = JSON.parse($("settings").textContent);
  const drop = $("drop"), canvas = $("canvas"), file = $("file"), SHOWN = 12;
  let picture = null, map = null, turn = 0, asking = null;

  const percent = (p) => (p >= 0.995 && p < 1 ? "> 99%" : p > 0 && p < 0.005 ? "< 1%" : `${Math.round(100 * p)}%`);

  function fail(text) {
    $("problem").textContent = text;
    $("problem").hidden = !text;
  }

  async function post(path, photo, signal) {
    const form = new FormData();
    form.append("file", photo, photo.name || "pasted.png");
    let answer;
    try {
      answer = await fetch(path, { method: "POST", body: form, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer. Is it still running?");
    }
    const told = await answer.json().catch(() => ({ error: `The server answered ${answer.status}.` }));
    if (told.photos) return told.photos[0];
    if (!answer.ok) throw new Error(told.error);
    return told;
  }

  async function take(photo) {
    if (!photo) return;
    const mine = ++turn;
    if (asking) asking.abort();
    asking = new AbortController();
    fail("");
    [picture, map] = [null, null];
    $("caption").textContent = photo.name || "pasted photo";
    $("show-map").hidden = $("map-told").hidden = $("ask-map").hidden = true;
    if (photo.size > settings.body) return clear(`${photo.name}: larger than the server takes.`);
    drop.classList.add("waiting");
    $("answer").textContent = "Looking…";
    try {
      // Some formats that the server reads no browser shows: then there is no picture, but an answer.
      const shown = createImageBitmap(photo, { imageOrientation: "from-image" }).catch(() => null);
      const found = await post("/predict", photo, asking.signal);
      if (mine !== turn) return;
      picture = await shown;
      if (found.error) return clear(`${found.name}: ${found.error}`);
      tell(found);
      draw();
      drop.classList.remove("waiting");
      if (!picture) return;
      if (settings.maps) await explain(photo, mine);
      else {
        $("ask-map").hidden = false;
        $("ask-map").onclick = () => { $("ask-map").hidden = true; explain(photo, mine); };
      }
    } catch (error) {
      if (error.name !== "AbortError" && mine === turn) clear(error.message);
    } finally {
      if (mine === turn) drop.classList.remove("waiting");
    }
  }

  async function explain(photo, mine) {
    const told = $("map-told");
    told.textContent = "Drawing the map…";
    told.hidden = false;
    const why = await post("/explain", photo, asking.signal).catch((error) => {
      if (error.name !== "AbortError" && mine === turn) fail(`No map: ${error.message}`);
      return null;
    });
    if (mine !== turn) return;
    told.hidden = !why;
    if (!why) return;
    map = why;
    $("show-map").hidden = false;
    const one = strongest(), extra = why.maps.length > 1 ? ` One of ${why.maps.length} maps: ${one.title}.` : "";
    const colours = one.method === "rollout" ? "" : `Blue speaks for “${why.label}”, orange for “${why.runner_up}”. `;
    told.textContent = `${colours}${one.meaning}${extra}`;
    draw();
  }

  function clear(text) {
    fail(text);
    $("answer").textContent = "No prediction.";
    $("meaning").textContent = "";
    $("said").textContent = "";
    $("bars").replaceChildren();
    $("all").hidden = true;
    drop.classList.remove("waiting");
    draw();
  }

  function tell(found) {
    const sure = found.certainty;
    $("answer").textContent = `${found.label}, ${percent(sure.probability)}`;
    const word = sure.word[0].toUpperCase() + sure.word.slice(1);
    const [low, high] = [sure.low, sure.high].map((v) => Math.round(100 * v));
    const said = sure.right === null
      ? `${word}: ${sure.meaning}.`
      : `${word}: ${sure.meaning} [${low}%, ${high}%], out of fold.`;
    $("meaning").textContent = said.replaceAll(" %", "\u00a0%");
    $("said").textContent = `${found.label}, ${percent(sure.probability)}. ${word}.`;
    const rows = Object.entries(found.probabilities).sort((a, b) => b[1] - a[1]);
    bars(rows, SHOWN);
    $("all").hidden = rows.length <= SHOWN;
    $("all").textContent = `Show all ${rows.length} classes`;
    $("all").onclick = () => { bars(rows, rows.length); $("all").hidden = true; };
  }

  function bars(rows, count) {
    $("bars").replaceChildren(...rows.slice(0, count).map(([name, p], i) => {
      const row = document.createElement("tr"), head = document.createElement("th"), value = document.createElement("td");
      const cell = document.createElement("td"), bar = document.createElement("i");
      head.scope = "row";
      head.textContent = name;
      value.className = "num";
      value.textContent = percent(p);
      bar.style.width = `${100 * p}%`;
      if (i === 0) row.className = "first";
      cell.append(bar);
      row.append(head, value, cell);
      return row;
    }));
  }

  function strongest() {
    const weight = (m) => Math.max(...m.cells.flat().map(Math.abs)), first = map.maps[0].method;
    return map.maps.filter((m) => m.method === first).reduce((a, b) => (weight(b) > weight(a) ? b : a));
  }

  function draw() {
    canvas.hidden = !picture;
    $("ask").hidden = Boolean(picture);
    drop.classList.toggle("full", Boolean(picture));
    if (!picture) return;
    const scale = Math.min(1, 960 / Math.max(picture.width, picture.height));
    canvas.width = Math.max(1, Math.round(picture.width * scale));
    canvas.height = Math.max(1, Math.round(picture.height * scale));
    const pen = canvas.getContext("2d");
    pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", map ? `The photo with its map: ${$("map-told").textContent}` : "The photo");
    if (map && $("map-on").checked) overlay(pen, strongest());
  }

  function overlay(pen, one) {
    const [left, top, right, bottom] = one.square, { width, height } = canvas;
    const x = left * width, y = top * height, w = (right - left) * width, h = (bottom - top) * height;
    const all = one.cells.flat(), least = one.method === "rollout" ? Math.min(...all) : 0;
    const most = Math.max(1e-9, ...all.map((v) => Math.abs(v - least)));
    const rows = one.cells.length, columns = one.cells[0].length, exact = one.method === "cells";
    pen.fillStyle = "rgba(20, 20, 20, .45)"; // what was not looked at
    pen.beginPath();
    pen.rect(0, 0, width, height);
    pen.rect(x, y, w, h);
    pen.fill("evenodd");
    const size = Math.max(11, Math.min(w / columns / 4, 18 * (width / (canvas.clientWidth || width))));
    pen.font = `600 ${size}px system-ui, sans-serif`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
    if (!exact) return soft(pen, one, least, most, [x, y, w, h]);
    one.cells.forEach((row, i) => row.forEach((value, j) => {
      const [cx, cy] = [x + (j * w) / columns, y + (i * h) / rows], share = Math.abs(value) / most;
      pen.fillStyle = `rgba(${value > 0 ? "0, 114, 178" : "213, 94, 0"}, ${0.6 * share})`;
      pen.fillRect(cx, cy, w / columns, h / rows);
      pen.strokeStyle = "rgba(255, 255, 255, .4)";
      pen.lineWidth = 1;
      pen.strokeRect(cx, cy, w / columns, h / rows);
      if (share < 0.05 || w / columns < 32) return;
      const text = (value > 0 ? "+" : "") + value.toFixed(1);
      pen.strokeStyle = "#1a1c1e";
      pen.lineWidth = size / 4;
      pen.strokeText(text, cx + w / columns / 2, cy + h / rows / 2);
      pen.fillStyle = "#ffffff";
      pen.fillText(text, cx + w / columns / 2, cy + h / rows / 2);
    }));
  }

  // Maps that know no edges: one pixel a cell, grown by the browser.
  function soft(pen, one, least, most, [x, y, w, h]) {
    const small = new OffscreenCanvas(one.cells[0].length, one.cells.length), brush = small.getContext("2d");
    one.cells.forEach((row, i) => row.forEach((value, j) => {
      const share = (value - least) / most;
      brush.fillStyle = `rgba(${share > 0 ? "0, 114, 178" : "213, 94, 0"}, ${0.7 * Math.abs(share)})`;
      brush.fillRect(j, i, 1, 1);
    }));
    pen.save();
    pen.beginPath();
    pen.rect(x, y, w, h);
    pen.clip();
    pen.imageSmoothingQuality = "high";
    pen.drawImage(small, x, y, w, h);
    pen.restore();
  }

  file.addEventListener("change", () => { take(file.files[0]); });
  file.addEventListener("click", () => { file.value = ""; }); // so that the same file may be chosen again
  $("map-on").addEventListener("change", draw);
  document.addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
})();
