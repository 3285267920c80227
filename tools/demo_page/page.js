import { outlineOf, rectangle } from "/outlines.js";

const SCORES = { box_score: "box score", mask_iou: "mask IoU", mask_score: "mask score" };
const SVG = "http://www.w3.org/2000/svg";
// Mask IoUs between which the outlines' colour changes.
const DOUBTFUL = 0.4;

const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
let model = { scores: ["box_score"], names: [], limits: {} };
let file = null;
let request = null;
let detections = [];

// ---- the model -------------------------------------------------------------------------------

async function describeModel() {
  model = await (await fetch("/model")).json();
  const { names, canvases, limits } = model;
  const few = names.length > 5 ? `${names.slice(0, 4).join(", ")} and ${names.length - 4} more` : names.join(", ");
  $("model").textContent = names.length ? `Finds ${few}` : "";
  $("model").title = `${names.join(", ")} (canvas ${canvases.join(", ")})`;
  $("limit").textContent = `, up to ${Math.floor(limits.upload_bytes / 2 ** 20)} MB`;
  $("picture").style.imageOrientation = model.exif === "apply" ? "from-image" : "none";
  const rescores = model.scores.includes("mask_iou");
  for (const part of document.querySelectorAll("[data-score]")) {
    if (!shows(part.dataset.score)) part.hidden = true;
  }
  $("sorts").hidden = !rescores;
  $("scale").hidden = !rescores;
  $("about").hidden = !rescores;
  document.body.dataset.rescores = rescores;
  if (!rescores) $("controls").elements.sort.value = "box_score";
  document.body.dataset.ready = true;
}

/** Whether a score is shown: without a MaskIoU head, the mask score repeats the box score. */
function shows(score) {
  return score === "box_score" || model.scores.includes("mask_iou");
}

// ---- a picture -------------------------------------------------------------------------------

async function detect(chosen) {
  file = chosen;
  request?.abort();
  const mine = (request = new AbortController());
  clear();
  showPicture();
  document.body.dataset.state = "busy";
  say("Finding objects …");
  try {
    const answer = await send(file, mine.signal);
    if (mine === request) show(answer);
  } catch (error) {
    if (mine === request) complain(error);
  }
}

async function send(picture, signal) {
  const { upload_bytes: most } = model.limits;
  if (picture.size > most) {
    throw new Refusal(`${picture.name} has ${(picture.size / 2 ** 20).toFixed(1)} MB, more than the ${Math.floor(most / 2 ** 20)} MB that this server accepts.`, false);
  }
  const type = picture.type === "image/png" ? "image/png" : "image/jpeg";
  const response = await fetch("/predict?masks=rle,probabilities", {
    method: "POST", body: picture, headers: { "Content-Type": type }, signal,
  });
  const answer = await response.json();
  if (!response.ok) throw new Refusal(answer.error, response.status >= 500);
  return answer;
}

class Refusal extends Error {
  constructor(sentence, canRetry) {
    super(sentence);
    this.canRetry = canRetry;
  }
}

function complain(error) {
  const refused = error instanceof Refusal;
  document.body.dataset.state = "refused";
  $("problem").textContent = refused ? error.message : "The server does not answer. Is it still running?";
  $("retry").hidden = refused && !error.canRetry;
  say("");
}

function showPicture() {
  URL.revokeObjectURL($("picture").src);
  $("picture").src = URL.createObjectURL(file);
  $("picture").alt = `The picture ${file.name}`;
  $("caption").textContent = file.name;
}

function clear() {
  detections = [];
  $("list").replaceChildren();
  $("outlines").replaceChildren();
  $("problem").textContent = "";
  $("retry").hidden = true;
  $("tag").hidden = true;
}

// ---- its detections --------------------------------------------------------------------------

function show({ image, detections: found }) {
  detections = found.map((entry) => ({ ...entry, colour: colourOf(entry) }));
  $("outlines").setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
  $("caption").textContent = `${file.name}, ${image.width} × ${image.height} pixels`;
  for (const detection of detections) {
    detection.row = makeRow(detection);
    detection.outline = makeOutline(detection);
    for (const part of [detection.row, detection.outline]) connect(part, detection);
  }
  // Small ones lie on top, so that the pointer reaches them.
  const bySize = [...detections].sort((a, b) => area(b.box) - area(a.box));
  $("outlines").replaceChildren(...bySize.map(({ outline }) => outline));
  $("list").replaceChildren(...detections.map(({ row }) => row));
  document.body.dataset.state = "shown";
  place(image.width / image.height);
  update();
}

function area([y1, x1, y2, x2]) {
  return (y2 - y1) * (x2 - x1);
}

/** From orange for doubtful masks to teal for sure ones, or a hue of its own for each class. */
function colourOf({ mask_iou: iou, name }) {
  if (iou === undefined) return `oklch(82% 0.15 ${(185 + 137.5 * model.names.indexOf(name)) % 360})`;
  const sure = Math.min(Math.max((iou - DOUBTFUL) / (1 - DOUBTFUL), 0), 1);
  return `oklch(82% 0.15 ${50 + 135 * sure})`;
}

function makeRow(detection) {
  const row = $("row").content.firstElementChild.cloneNode(true);
  row.style.setProperty("--colour", detection.colour);
  row.querySelector(".name b").textContent = detection.name;
  for (const part of row.querySelectorAll(".score")) {
    const { score } = part.dataset;
    part.hidden = !shows(score);
    if (part.hidden) continue;
    part.title = SCORES[score];
    part.querySelector("b").textContent = detection[score].toFixed(2);
    part.style.setProperty("--share", Math.min(Math.max(detection[score], 0), 1));
  }
  return row;
}

function makeOutline(detection) {
  const group = document.createElementNS(SVG, "g");
  group.setAttribute("role", "option");
  group.setAttribute("tabindex", "-1");
  group.style.setProperty("--colour", detection.colour);
  const paths = { box: rectangle(detection.box), halo: outlineOf(detection), line: outlineOf(detection) };
  for (const [name, d] of Object.entries(paths)) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    path.setAttribute("d", d);
    group.append(path);
  }
  return group;
}

/** Shows what passes the thresholds, in order, with its ranks by both scores. */
function update() {
  const { elements } = $("controls");
  const least = Object.keys(SCORES).filter(shows).map((score) => [score, Number(elements[score].value)]);
  for (const [score, value] of least) {
    elements[score].parentElement.querySelector("output").textContent = value.toFixed(2);
  }
  const passes = (one) => least.every(([score, value]) => value === 0 || one[score] >= value);
  const shown = detections.filter(passes);
  rank(shown);
  const before = tops();
  for (const one of detections) {
    one.isShown = shown.includes(one);
    one.row.hidden = !one.isShown;
    one.outline.classList.toggle("hidden", !one.isShown);
  }
  const order = sorted(shown, elements.sort.value);
  order.forEach((one, index) => describe(one, index + 1));
  $("list").append(...order.map(({ row }) => row));
  glide(before);
  if (!shown.some((one) => one === active())) activate(null);
  roving(order[0]);
  summarise(shown);
}

function sorted(some, score) {
  const key = shows(score) ? score : "box_score";
  return [...some].sort((a, b) => b[key] - a[key]);
}

function rank(shown) {
  for (const score of ["box_score", "mask_score"]) {
    sorted(shown, score).forEach((one, index) => (one[`rank_${score}`] = index + 1));
  }
}

function describe(one, position) {
  const [before, after] = [one.rank_box_score, one.rank_mask_score];
  const scores = Object.keys(SCORES).filter(shows).map((score) => `${SCORES[score]} ${one[score].toFixed(2)}`);
  const ranks = model.scores.includes("mask_iou") ? [`rank ${before} by box score, ${after} by mask score`] : [];
  const label = [one.name, ...scores, ...ranks].join(", ");
  one.row.setAttribute("aria-label", label);
  one.outline.setAttribute("aria-label", label);
  one.row.querySelector(".place").textContent = position;
  const moved = one.row.querySelector(".rank");
  moved.textContent = `${before} → ${after}`;
  moved.dataset.moved = Math.sign(before - after);
}

function summarise(shown) {
  const count = detections.length;
  const moved = shown.filter((one) => one.rank_box_score !== one.rank_mask_score).length;
  const rescoring = model.scores.includes("mask_iou") && shown.length > 1
    ? `; rescoring moves ${moved || "none"}` : "";
  $("download").disabled = !shown.length;
  if (!count) say("The model finds no object in this picture.");
  else if (!shown.length) say(`All ${count} detections are below these thresholds.`);
  else say(`${shown.length} of ${count} detections shown${rescoring}.`);
}

function say(sentence) {
  $("status").textContent = sentence;
}

/** Positions of the rows, from where `glide` moves them to their new ones. */
function tops() {
  return calm.matches ? new Map() : new Map(detections.map(({ row }) => [row, row.hidden ? null : row.offsetTop]));
}

function glide(before) {
  for (const [row, top] of before) {
    if (row.hidden || top === null || top === row.offsetTop) continue;
    const from = { transform: `translateY(${top - row.offsetTop}px)` };
    row.animate([from, { transform: "none" }], { duration: 350, easing: "cubic-bezier(.2, .7, .2, 1)" });
  }
}

// ---- pointing at a detection -----------------------------------------------------------------

function active() {
  return detections.find(({ row }) => row.classList.contains("active"));
}

function activate(chosen) {
  for (const one of detections) {
    for (const part of [one.row, one.outline]) {
      part.classList.toggle("active", one === chosen);
      part.setAttribute("aria-selected", one === chosen);
    }
  }
  $("outlines").classList.toggle("dimmed", Boolean(chosen));
  $("tag").hidden = !chosen;
  if (chosen) label(chosen);
}

function label({ name, box, colour, ...scores }) {
  const score = scores.mask_score ?? scores.box_score;
  const [, , width, height] = $("outlines").getAttribute("viewBox").split(" ").map(Number);
  const [left, top] = [Math.max(box[1], 0) / width, Math.max(box[0], 0) / height];
  const tag = $("tag");
  tag.textContent = `${name} ${score.toFixed(2)}`;
  tag.style.setProperty("--colour", colour);
  tag.style.top = `${100 * top}%`;
  tag.classList.toggle("inside", top * $("frame").clientHeight < 32);
  tag.style.left = left < 0.6 ? `${100 * left}%` : "auto";
  tag.style.right = left < 0.6 ? "auto" : `${100 * (1 - Math.min(box[3], width) / width)}%`;
}

function connect(part, detection) {
  part.addEventListener("pointerenter", () => point(detection, part));
  part.addEventListener("pointerleave", () => activate(focused()));
  part.addEventListener("focus", () => { roving(detection); point(detection, part); });
  part.addEventListener("blur", () => activate(null));
}

function point(detection, part) {
  activate(detection);
  if (part === detection.outline) reveal(detection.row);
}

/** Scrolls the list, and not the page, to a row. */
function reveal(row) {
  const list = $("list");
  const bottom = row.offsetTop + row.offsetHeight - list.clientHeight;
  list.scrollTop = Math.min(Math.max(list.scrollTop, bottom), row.offsetTop);
}

function focused() {
  return detections.find(({ row, outline }) => [row, outline].includes(document.activeElement)) ?? null;
}

/** Makes one detection the stop of the Tab key in the list and among the outlines. */
function roving(stop) {
  for (const one of detections) {
    for (const part of [one.row, one.outline]) part.setAttribute("tabindex", one === stop ? 0 : -1);
  }
}

function walk(event) {
  const here = focused();
  const order = sorted(detections.filter(({ isShown }) => isShown), $("controls").elements.sort.value);
  const last = order.length - 1;
  const index = order.indexOf(here);
  const targets = {
    ArrowDown: Math.min(index + 1, last), ArrowRight: Math.min(index + 1, last),
    ArrowUp: Math.max(index - 1, 0), ArrowLeft: Math.max(index - 1, 0), Home: 0, End: last,
  };
  if (event.key === "Escape") document.activeElement.blur();
  if (!here || !(event.key in targets)) return;
  event.preventDefault();
  const target = order[targets[event.key]];
  (event.currentTarget === $("list") ? target.row : target.outline).focus();
}

/** Fits the picture into the space that is left for it. */
function place(ratio) {
  $("frame").style.setProperty("--ratio", ratio);
}

// ---- download --------------------------------------------------------------------------------

function download() {
  const entries = sorted(detections.filter(({ isShown }) => isShown), $("controls").elements.sort.value)
    .map(({ category_id, bbox, score, box_score, mask_iou, mask_score, segmentation }) => ({
      image_id: 0, file_name: file.name, category_id, bbox, score, box_score, mask_iou, mask_score, segmentation,
    }));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(entries)], { type: "application/json" }));
  link.download = `${file.name.replace(/\.[^.]*$/, "")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// ---- input -----------------------------------------------------------------------------------

function take(files) {
  const [first] = [...(files ?? [])];
  if (first) detect(first);
  return Boolean(first);
}

$("file").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
$("picture").addEventListener("load", ({ target }) => place(target.naturalWidth / target.naturalHeight));
$("choose").addEventListener("click", () => $("file").click());
$("retry").addEventListener("click", () => detect(file));
$("download").addEventListener("click", download);
$("controls").addEventListener("input", update);
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("list").addEventListener("keydown", walk);
$("outlines").addEventListener("keydown", walk);
addEventListener("paste", (event) => take(event.clipboardData.files));
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files);
});
describeModel().catch(complain);
