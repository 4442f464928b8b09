// The page of a served run: one photo goes out, its classes and its map come back. Nothing is kept.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const settings = JSON.parse($("settings").textContent);
  const drop = $("drop"), canvas = $("canvas"), file = $("file"), SHOWN = 12;
  let picture = null, map = null, turn = 0, asking = null;

  const percent = (p) => (p >= 0.995 && p < 1 ? "> 99 %" : p > 0 && p < 0.005 ? "< 1 %" : `${Math.round(100 * p)} %`);

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
    $("show-map").hidden = $("map-told").hidden = true;
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
      if (!settings.maps || !picture) return;
      const why = await post("/explain", photo, asking.signal).catch((error) => {
        if (error.name !== "AbortError" && mine === turn) fail(`No map: ${error.message}`);
        return null;
      });
      if (mine !== turn || !why) return;
      map = why;
      $("show-map").hidden = $("map-told").hidden = false;
      const extra = why.maps.length > 1 ? ` The strongest of ${why.maps.length} networks: ${strongest().title}.` : "";
      $("map-told").textContent = `Blue speaks for “${why.label}”, orange for “${why.runner_up}”.${extra}`;
      draw();
    } catch (error) {
      if (error.name !== "AbortError" && mine === turn) clear(error.message);
    } finally {
      if (mine === turn) drop.classList.remove("waiting");
    }
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
    $("meaning").textContent = `${word}: ${sure.meaning} (95 %: ${low}–${high} %), out of fold.`;
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
    const weight = (m) => Math.max(...m.cells.flat().map(Math.abs));
    return map.maps.reduce((a, b) => (weight(b) > weight(a) ? b : a));
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
    const most = Math.max(1e-9, ...one.cells.flat().map(Math.abs)), grid = one.cells.length;
    pen.fillStyle = "rgba(20, 20, 20, .45)"; // what was not looked at
    pen.beginPath();
    pen.rect(0, 0, width, height);
    pen.rect(x, y, w, h);
    pen.fill("evenodd");
    const size = Math.max(11, Math.min(w / grid / 4, 18 * (width / (canvas.clientWidth || width))));
    pen.font = `600 ${size}px system-ui, sans-serif`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
    one.cells.forEach((row, i) => row.forEach((value, j) => {
      const [cx, cy] = [x + (j * w) / grid, y + (i * h) / grid], share = Math.abs(value) / most;
      pen.fillStyle = `rgba(${value > 0 ? "0, 114, 178" : "213, 94, 0"}, ${0.6 * share})`;
      pen.fillRect(cx, cy, w / grid, h / grid);
      pen.strokeStyle = "rgba(255, 255, 255, .4)";
      pen.lineWidth = 1;
      pen.strokeRect(cx, cy, w / grid, h / grid);
      if (share < 0.05) return;
      const text = (value > 0 ? "+" : "−") + Math.abs(value).toFixed(1);
      pen.strokeStyle = "#1a1c1e";
      pen.lineWidth = size / 4;
      pen.strokeText(text, cx + w / grid / 2, cy + h / grid / 2);
      pen.fillStyle = "#ffffff";
      pen.fillText(text, cx + w / grid / 2, cy + h / grid / 2);
    }));
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
