// The model, in a worker: pictures and texts to embeddings.
import * as ort from "./libraries/onnxruntime.js";
import { Tokenizer } from "./libraries/tokenizers.js";
import { rowsOf, wordsOf } from "./zero-shot.js";

const MOST_PIXELS = 64_000_000; // as in dcclip
const MOST_ASPECT = 100;
const WORK_PIXELS = 16_000_000; // larger pictures are made smaller by the browser first: canvases are bounded
const THUMBNAIL = 480;
const BATCH = 32; // texts
const LARGE = ["libraries/onnxruntime.wasm", "image.onnx", "text.onnx"];
const at = (name) => new URL(name, import.meta.url).href;

let model, checks, images, texts, tokenizer;
const tokenize = (wanted) => rowsOf(tokenizer, model, wanted);
const known = new Map(); // text -> embedding

async function open(name) {
  const response = await fetch(at(name)).catch(() => null);
  if (!response?.ok) throw { code: "missing", detail: name };
  return response;
}

const loadJson = async (name) => (await open(name)).json();

/** A file of the page as bytes; `advance` is called with the number of bytes of each part. */
async function load(name, advance) {
  const bytes = new Uint8Array(checks.sizes[name]);
  const reader = (await open(name)).body.getReader();
  for (let place = 0; ; ) {
    const { done, value } = await reader.read();
    if (done && place === bytes.length) return bytes;
    if (done || place + value.length > bytes.length) throw { code: "damaged", detail: name };
    bytes.set(value, place);
    place += value.length;
    advance(value.length);
  }
}

/** Load model and tokenizer; returns dcclip.json, and whether the tokens are Python's. */
async function start() {
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency ?? 1) : 1;
  ort.env.wasm.wasmPaths = { mjs: at("libraries/onnxruntime-wasm.js") };
  [model, checks] = await Promise.all([loadJson("dcclip.json"), loadJson("checks.json")]);
  const total = LARGE.reduce((sum, name) => sum + checks.sizes[name], 0);
  let done = 0;
  const advance = (bytes) => self.postMessage({ progress: (done += bytes) / total });
  const [definition, wasm, ...graphs] = await Promise.all([
    loadJson("tokenizer.json"),
    ...LARGE.map((name) => load(name, advance)),
  ]);
  ort.env.wasm.wasmBinary = wasm.buffer;
  tokenizer = new Tokenizer(definition, {});
  const same = checks.tokens.every(([text, ids]) => `${tokenize([text])[0]}` === `${ids}`);
  const options = { graphOptimizationLevel: "basic" }; // more takes longer to start, and computes no faster here
  images = await ort.InferenceSession.create(graphs[0], options);
  texts = await ort.InferenceSession.create(graphs[1], options);
  return { model, same };
}

/** The picture in a file, upright, without colour management, as Pillow decodes it. */
async function decode(file) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(file, options).catch(() => null);
  if (!bitmap) throw { code: "unreadable" };
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) throw { code: "large", detail: `${width} × ${height}` };
  if (Math.max(width, height) > MOST_ASPECT * Math.min(width, height)) throw { code: "thin", detail: `${width} × ${height}` };
  if (width * height <= WORK_PIXELS) return bitmap;
  const share = Math.sqrt(WORK_PIXELS / (width * height));
  const size = { resizeWidth: Math.round(width * share), resizeHeight: Math.round(height * share) };
  return createImageBitmap(bitmap, { ...options, ...size, resizeQuality: "high" });
}

/** A canvas with the bitmap on white, as dcclip flattens transparency. */
function draw(bitmap, width, height, options) {
  const context = new OffscreenCanvas(width, height).getContext("2d", options);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return context;
}

/** The embedding of a picture's file, and a small JPEG of it. */
async function embedImage(file) {
  const bitmap = await decode(file);
  const { width, height } = bitmap;
  const rgba = draw(bitmap, width, height, { willReadFrequently: true }).getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; to < rgb.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  const found = await images.run({ rgb_image: new ort.Tensor("uint8", rgb, [1, height, width, 3]) });
  const share = Math.min(1, THUMBNAIL / Math.min(width, height));
  const small = draw(bitmap, Math.max(1, Math.round(width * share)), Math.max(1, Math.round(height * share)));
  const thumbnail = await small.canvas.convertToBlob({ type: "image/jpeg", quality: 0.85 });
  bitmap.close();
  return { embedding: Array.from(found.image_embeds.data), thumbnail, width, height };
}

/** Text -> embedding; each text is computed once. */
async function embedTexts(wanted) {
  const fresh = [...new Set(wanted)].filter((text) => !known.has(text)).sort((a, b) => a.length - b.length);
  for (let begin = 0; begin < fresh.length; begin += BATCH) {
    const batch = fresh.slice(begin, begin + BATCH);
    const rows = tokenize(batch);
    const ids = new ort.Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length]);
    const found = (await texts.run({ input_ids: ids })).text_embeds;
    const width = found.dims[1];
    batch.forEach((text, row) => known.set(text, Array.from(found.data.slice(row * width, (row + 1) * width))));
  }
  return wanted.map((text) => known.get(text));
}

const words = async (wanted) => wanted.map((text) => wordsOf(tokenizer, model, text));
const TASKS = { start, embedImage, embedTexts, words, tokenize: async (wanted) => tokenize(wanted) };
let last = Promise.resolve(); // one task after another: a session runs once at a time
self.onmessage = ({ data: { id, task, argument } }) => {
  last = last.then(async () => {
    try {
      self.postMessage({ id, result: await TASKS[task](argument) });
    } catch (error) {
      self.postMessage({ id, error: { code: error.code ?? "failed", detail: error.detail ?? String(error) } });
    }
  });
};
self.postMessage({ ready: true });
