// The best label of pictures by an export for transformers.js, one line of JSON each, to compare with those of
// `dcclip predict --jsonl`.
//
// npm install --ignore-scripts @huggingface/transformers
// node browser.mjs FOLDER_OF_EXPORTS/ EXPORT LABEL,LABEL... PICTURE...
import { env, pipeline } from "@huggingface/transformers";

const [folder, name, labels, ...pictures] = process.argv.slice(2);
env.localModelPath = folder;
env.allowRemoteModels = false;
const classify = await pipeline("zero-shot-image-classification", name);
for (const picture of pictures) {
  const [best] = await classify(picture, labels.split(","), { hypothesis_template: "{}" });
  console.log(JSON.stringify({ image: picture, ...best }));
}
