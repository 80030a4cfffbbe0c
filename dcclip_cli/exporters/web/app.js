// The page: pictures and words in, probabilities or a ranking out. The model is in a worker (engine.js).
import { anythingFor, dot, mean, noneFits, probabilities, queryFits, split, textsOf, unknown } from "./zero-shot.js";
import { $, currentLanguage, make, number, showWords, switchLanguage } from "./common.js";
import { say } from "./words.js";

const SHOWN = 3; // labels of a picture
const PAUSE_MS = 250; // after typing
const AGAIN_MS = 1000; // between answers while pictures are added
const EXAMPLES = ["example-cat.jpg", "example-coffee.jpg", "example-rocket.jpg"];

// ---- the worker

// A worker made from a blob is under this page's Content-Security-Policy; one from a file would be under its own.
const source = new Blob([`import ${JSON.stringify(new URL("engine.js", import.meta.url).href)};`], { type: "text/javascript" });
const worker = new Worker(URL.createObjectURL(source), { type: "module" });
const waiting = new Map();
let calls = 0;
let loaded = 0; // share of the model
const ready = new Promise((resolve, reject) => {
  worker.onerror = (event) => reject({ code: "failed", detail: event.message ?? "engine.js" });
  worker.onmessage = ({ data }) => {
    if (data.ready) return resolve();
    if (data.progress !== undefined) return showLoading(data.progress);
    const { resolve: done, reject: fail } = waiting.get(data.id);
    waiting.delete(data.id);
    data.error ? fail(data.error) : done(data.result);
  };
});

async function call(task, argument) {
  await ready;
  return new Promise((resolve, reject) => {
    waiting.set(++calls, { resolve, reject });
    worker.postMessage({ id: calls, task, argument });
  });
}

// ---- state

let model = null;
let pictures = []; // {name, embedding, url, card, rows}, newest last; rows: [text, number] of the last answer
let left = 0; // pictures that are not embedded yet
let failures = []; // {name, code, detail}
let heading = []; // of the rows of the last answer
let answers = 0; // counts questions, so that an earlier one's answer is not shown late

const mode = () => document.querySelector("input[name=mode]:checked").value;

// ---- what is shown

function showAll() {
  showWords(say);
  document.title = say("title");
  if (model) $("about").textContent = say("about", model.name, model.precision, number(model.parameters / say("thousands")));
  showStatus();
  showFailures();
  [...$("examples").querySelectorAll("button")].forEach((button, index) => (button.ariaLabel = say("example", EXAMPLES[index])));
  for (const picture of pictures) showName(picture);
}

const percent = (value) => value.toLocaleString(currentLanguage(), { style: "percent", minimumFractionDigits: 1 });

function showLoading(share) {
  loaded = share;
  showStatus();
}

function showStatus(sentence) {
  const busy = !model || left > 0;
  $("progress").hidden = !busy;
  if (!model && loaded < 1) $("progress").value = loaded;
  else $("progress").removeAttribute("value");
  const loading = loaded < 1 ? say("loading", percent(loaded)) : say("starting");
  const done = pictures.length ? say("answered", pictures.length) : say("empty");
  $("status").textContent = sentence ?? (!model ? loading : left ? say("working", left) : done);
  $("clear").hidden = $("table").hidden = pictures.length === 0;
  $("examples").hidden = pictures.length + left > 0;
}

function showFailures() {
  $("errors").replaceChildren(
    ...failures.map((failure) => {
      const sentence = say(failure.code, failure.detail);
      const close = make("button", { type: "button", className: "quiet", textContent: say("dismiss") });
      close.onclick = () => {
        failures = failures.filter((one) => one !== failure);
        showFailures();
      };
      return make("li", {}, failure.name ? make("b", { textContent: failure.name }) : "", " ", sentence, close);
    }),
  );
}

function fail(error, name = "") {
  const code = ["unreadable", "large", "thin", "missing", "damaged", "nothing"].includes(error.code) ? error.code : "failed";
  failures.push({ name, code, detail: error.detail ?? String(error) });
  showFailures();
}

function showName({ name, remove }) {
  remove.setAttribute("aria-label", say("remove", name));
  remove.title = say("remove", name);
}

const hidden = (element) => (element.setAttribute("aria-hidden", "true"), element);

/** A row of a picture's answer: a label, its number, and a bar as long as `share`. */
const row = (label, text, share) =>
  make(
    "li",
    {},
    make("span", { textContent: label }),
    make("span", { textContent: text, className: "number" }),
    hidden(make("meter", { min: 0, max: 1, value: share })),
  );

function showProbabilities(picture, labels, values) {
  const order = labels.map((_, index) => index).sort((a, b) => values[b] - values[a]);
  picture.rows = order.map((index) => [labels[index], values[index].toFixed(6)]);
  const rows = order.map((index) => row(labels[index], percent(values[index]), values[index]));
  picture.answer.replaceChildren(...rows.slice(0, SHOWN));
  picture.rest.replaceChildren();
  if (rows.length > SHOWN) {
    picture.rest.append(
      make("summary", { textContent: say("more", rows.length - SHOWN) }),
      make("ol", {}, ...rows.slice(SHOWN)),
    );
  }
  picture.rest.hidden = rows.length <= SHOWN;
}

// ---- answers

async function answer() {
  const mine = ++answers;
  if (!model || !pictures.length) return showStatus();
  try {
    if (mode() === "labels") await classify(mine);
    else await search(mine);
  } catch (error) {
    fail(error);
  }
}

async function classify(mine) {
  const labels = split($("labels").value);
  if (!labels.length) return showStatus(say("noLabels"));
  const texts = textsOf(model, labels);
  const anything = $("multi").checked ? anythingFor(model, labels) : null;
  const embeddings = await embed([...texts, ...(anything ?? [])].flat());
  if (mine !== answers) return;
  const next = (several) => several.map((one) => mean(embeddings.splice(0, one.length)));
  const classes = next(texts);
  const others = anything && next(anything);
  const note = await notLearnt(labels, classes);
  if (mine !== answers) return;
  heading = ["image", "label", "probability"];
  for (const picture of pictures) {
    const values = probabilities(model, picture.embedding, classes, $("multi").checked, others);
    picture.none.hidden = $("multi").checked || !noneFits(model, picture.embedding, classes);
    showProbabilities(picture, labels, values);
  }
  arrange(pictures.map((picture) => picture.card).reverse()); // the newest first
  showStatus(note);
}

const embed = (texts) => call("embedTexts", texts);
const wordsOf = (texts) => call("words", texts);

/** What to say of texts and words that the model never learnt, or nothing. */
async function notLearnt(texts, embeddings) {
  const names = await unknown(model, texts, embeddings, embed, wordsOf);
  return names.length ? say("unknown", names.join(", ")) : undefined;
}

/** Put the cards in this order; what is in order stays untouched, and keeps the focus. */
function arrange(cards) {
  if (cards.some((card, index) => card !== $("pictures").children[index])) $("pictures").append(...cards);
}

async function search(mine) {
  const query = $("query").value.trim();
  if (!query) return showStatus(say("noQuery"));
  const [embedding] = await embed([query]);
  const note = await notLearnt([query], [embedding]);
  const fits = await queryFits(model, pictures.map((picture) => picture.embedding), query, embed, wordsOf);
  if (mine !== answers) return;
  const scored = pictures.map((picture) => ({ picture, score: dot(picture.embedding, embedding) }));
  scored.sort((a, b) => b.score - a.score);
  heading = ["image", "text", "score"];
  for (const { picture, score } of scored) {
    picture.answer.replaceChildren(row(say("score"), score.toFixed(3), Math.max(0, score)));
    picture.rest.hidden = picture.none.hidden = true;
    picture.rows = [[query, score.toFixed(6)]];
  }
  arrange(scored.map(({ picture }) => picture.card));
  showStatus(note || (fits ? undefined : say("nothingFits")));
}

// ---- pictures

async function add(files) {
  if (!files.length) return fail({ code: "nothing" });
  left += files.length;
  showStatus();
  let last = -Infinity;
  for (const file of files) {
    try {
      addPicture(file.name, await call("embedImage", file));
    } catch (error) {
      fail(error, file.name);
    }
    left -= 1;
    if (left && performance.now() - last < AGAIN_MS) {
      showStatus();
      continue;
    }
    await answer();
    last = performance.now();
  }
}

function addPicture(name, { embedding, thumbnail }) {
  const url = URL.createObjectURL(thumbnail);
  const remove = make("button", { type: "button", className: "remove", textContent: "×" });
  const answers = make("ol");
  const none = make("p", { className: "none", hidden: true, textContent: say("none") });
  none.dataset.say = "none";
  const rest = make("details", { hidden: true });
  const image = make("img", { src: url, alt: name });
  const card = make("li", {}, image, remove, make("p", { className: "name", textContent: name }), none, answers, rest);
  const picture = { name, embedding, url, card, remove, none, answer: answers, rest, rows: [] };
  remove.onclick = () => {
    drop(picture);
    ($("pictures").querySelector(".remove") ?? $("files")).focus();
  };
  pictures.push(picture);
  $("pictures").prepend(card);
  showName(picture);
}

/** Save the answers as a table. Its byte order mark tells Excel that it is UTF-8; no cell is taken for a formula. */
function saveTable() {
  const cell = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? "'" : "") + text.replaceAll('"', '""')}"`;
  const rows = pictures.flatMap(({ name, rows }) => rows.map(([text, value]) => [cell(name), cell(text), value]));
  const lines = [heading, ...rows].map((row) => `${row}\r\n`);
  const url = URL.createObjectURL(new Blob(["\ufeff", ...lines], { type: "text/csv" }));
  make("a", { href: url, download: "dcclip.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

function drop(picture) {
  pictures = pictures.filter((one) => one !== picture);
  URL.revokeObjectURL(picture.url);
  picture.card.remove();
  showStatus();
}

const arePictures = (files) => [...files].filter((file) => file.type.startsWith("image/"));

/** The files that were dropped, also those in folders. */
async function dropped(items) {
  const entries = [...items].map((item) => item.webkitGetAsEntry?.() ?? null).filter(Boolean);
  const found = [];
  const walk = async (entry) => {
    if (entry.isFile) return found.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return;
      for (const one of some) await walk(one);
    }
  };
  for (const entry of entries) await walk(entry);
  return entries.every((entry) => entry.isFile) ? found : arePictures(found); // files by name: say what is wrong with them
}

// ---- events

function listen() {
  const later = (() => {
    let timer;
    return () => {
      clearTimeout(timer);
      timer = setTimeout(answer, PAUSE_MS);
    };
  })();
  $("labels").oninput = later;
  $("query").oninput = later;
  $("multi").onchange = answer;
  for (const choice of document.querySelectorAll("input[name=mode]")) {
    choice.onchange = () => {
      $("labels-form").hidden = mode() !== "labels";
      $("search-form").hidden = mode() !== "search";
      answer();
    };
  }
  $("files").onchange = (event) => add([...event.target.files]).finally(() => (event.target.value = ""));
  $("folder").onchange = (event) => add(arePictures(event.target.files)).finally(() => (event.target.value = ""));
  $("folder-choice").hidden = !("webkitdirectory" in $("folder")) || matchMedia("(pointer: coarse)").matches;
  $("table").onclick = saveTable;
  for (const name of EXAMPLES) {
    const button = make("button", { type: "button" }, make("img", { src: name, alt: "" }));
    button.onclick = async () => add([new File([await (await fetch(name)).blob()], name)]);
    $("examples").append(button);
  }
  $("clear").onclick = () => {
    [...pictures].forEach(drop);
    $("files").focus();
  };
  $("language").onclick = () => {
    const before = [say("labelsDefault"), say("searchDefault")];
    switchLanguage();
    if ($("labels").value === before[0]) $("labels").value = say("labelsDefault");
    if ($("query").value === before[1]) $("query").value = say("searchDefault");
    showAll();
    answer();
  };
  document.addEventListener("paste", (event) => {
    const files = arePictures(event.clipboardData.files);
    if (files.length) {
      event.preventDefault();
      add(files);
    }
  });
  let depth = 0; // of elements that the pointer is over
  const over = (change) => $("drop").classList.toggle("over", (depth = Math.max(0, depth + change)) > 0);
  document.addEventListener("dragenter", () => over(1));
  document.addEventListener("dragleave", () => over(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    over(-depth);
    add(await dropped(event.dataTransfer.items));
  });
}

// ---- begin

document.querySelector(".unserved").remove();
$("page").hidden = false;
$("labels").value = say("labelsDefault");
$("query").value = say("searchDefault");
listen();
showAll();
try {
  const found = await call("start");
  model = found.model;
  if (!found.same) failures.push({ name: "", code: "otherTokens" });
  showAll();
  answer();
} catch (error) {
  fail(error);
  $("progress").hidden = true;
  $("status").textContent = "";
}

/** For tests and for your own scripts: the calls of the engine, with the numbers behind what is shown. */
export const dcclip = { call, pictures: () => pictures };
