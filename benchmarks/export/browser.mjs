// A bundle in JavaScript: transformers.js for tokens and pixels, then the graphs by transformers.js and by
// onnxruntime-web (WebAssembly, as in a browser), the same cosines from both.
//
// npm install --ignore-scripts @huggingface/transformers onnxruntime-web
// node browser.mjs FOLDER_OF_BUNDLES/ BUNDLE PICTURE LABEL...
import { readFile } from "node:fs/promises";
import {
  AutoProcessor, AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection, RawImage, env,
} from "@huggingface/transformers";
import * as ort from "onnxruntime-web";

const [folder, bundle, picture, ...labels] = process.argv.slice(2);
env.localModelPath = folder;
env.allowRemoteModels = false;
ort.env.wasm.numThreads = 1;

const tokenizer = await AutoTokenizer.from_pretrained(bundle);
const processor = await AutoProcessor.from_pretrained(bundle);
const tokens = tokenizer(labels, { padding: true, truncation: true }).input_ids;
const pixels = (await processor(await RawImage.read(picture))).pixel_values;

const cosines = (texts, image) =>
  labels.map((_, row) => image.data.reduce((sum, value, i) => sum + value * texts.data[row * image.data.length + i], 0));

const where = { subfolder: "", dtype: "fp32" }; // "fp32" adds nothing to the file's name, whatever is in it
const text = await CLIPTextModelWithProjection.from_pretrained(bundle, { ...where, model_file_name: "text" });
const vision = await CLIPVisionModelWithProjection.from_pretrained(bundle, { ...where, model_file_name: "image" });
const byTransformers = cosines(
  (await text({ input_ids: tokens })).text_embeds, (await vision({ pixel_values: pixels })).image_embeds,
);

const session = async (name) => ort.InferenceSession.create(await readFile(`${folder}/${bundle}/${name}`));
const texts = await (await session("text.onnx")).run({
  input_ids: new ort.Tensor("int64", BigInt64Array.from(tokens.data), tokens.dims),
});
const image = await session("image.onnx");
const feed = { pixel_values: new ort.Tensor("float32", Float32Array.from(pixels.data), pixels.dims) };
const begin = performance.now();
for (let i = 0; i < 20; i++) await image.run(feed);
const ms = (performance.now() - begin) / 20;
const byWasm = cosines(texts.text_embeds, (await image.run(feed)).image_embeds);

console.log(JSON.stringify({ ids: tokens.tolist().map((row) => row.map(Number)), byTransformers, byWasm, imageMs: ms }));
