// The page of `./run.sh serve`: sends an image that was chosen, photographed, dropped or pasted, and shows the answer.
"use strict";

const get = (id) => document.getElementById(id);
const maxBytes = Number(document.currentScript.dataset.maxBytes);
const SHOWN = 5;
let underWay = null; // the request of the newest image: an older one's answer is of no use

function say(text, isFault = false) {
  get("status").textContent = text;
  get("status").className = isFault ? "fail" : "soft";
}

function bar({ class: name, probability }) {
  const item = document.createElement("li");
  const percent = `${(100 * probability).toFixed(1)}%`;
  for (const text of [name, percent]) {
    item.append(Object.assign(document.createElement("span"), { textContent: text }), " ");
  }
  const track = Object.assign(document.createElement("span"), { className: "track", ariaHidden: "true" });
  const filled = Object.assign(document.createElement("span"), { className: "bar" });
  filled.style.width = percent;
  track.append(filled);
  item.append(track);
  return item;
}

function show({ file, top, changes, image, grad_cam: heat }) {
  get("bars").replaceChildren(...top.slice(0, SHOWN).map(bar));
  get("changes").textContent = changes.length ? `Prepared: ${changes.join("; ")}.` : "";
  get("seen").src = image;
  if (get("heat") && heat) {
    get("heat").src = heat;
    get("heat").alt = `The same image: the parts that are most evidence for ${top[0].class} are yellow`;
    get("best").textContent = top[0].class;
  }
  get("result").hidden = false;
  say(`${file}: ${top[0].class}, ${(100 * top[0].probability).toFixed(1)}%`);
}

async function classify(file) {
  underWay?.abort();
  const mine = (underWay = new AbortController());
  get("result").hidden = true;
  if (file.size > maxBytes) {
    say(`${file.name} is too large: at most ${maxBytes / 2 ** 20} MiB are taken.`, true);
    return;
  }
  say(`Classifying ${file.name} ...`);
  const body = new FormData();
  body.append("file", file);
  try {
    const response = await fetch("/predict?explain=true", { method: "POST", body, signal: mine.signal });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    show(answer.predictions[0]);
  } catch (error) {
    if (mine.signal.aborted) return;
    say(error instanceof TypeError ? "The server does not answer: is it still running?" : error.message, true);
  }
}

function first(files, source) {
  const file = [...files].find(({ type }) => type.startsWith("image/")) ?? files[0];
  if (file) classify(file);
  else say(`There is no image in what you ${source}.`, true);
}

get("photograph").hidden = !navigator.maxTouchPoints; // phones and tablets: elsewhere it would be a second file dialog
for (const id of ["file", "camera"]) {
  get(id).addEventListener("change", ({ target }) => {
    if (target.files.length) first(target.files, "chose");
    target.value = ""; // so that the same file can be chosen again
  });
}
document.addEventListener("paste", (event) => first(event.clipboardData.files, "pasted"));
for (const [kind, isOver] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // or the browser leaves for the file
    get("drop").classList.toggle("over", isOver);
    if (kind === "drop") first(event.dataTransfer.files, "dropped");
  });
}
