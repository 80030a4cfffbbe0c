// Token ids of texts, and probabilities, as the web page computes them: node tokens_of.mjs PAGE < QUESTIONS
import { readFile } from "node:fs/promises";

const page = process.argv[2];
const { Tokenizer } = await import(`${page}/libraries/tokenizers.js`);
const { anythingFor, mean, probabilities, rowsOf, split, textsOf, wordsOf } = await import(`${page}/zero-shot.js`);
const json = async (name) => JSON.parse(await readFile(`${page}/${name}`, "utf8"));
const model = await json("dcclip.json");
const tokenizer = new Tokenizer(await json("tokenizer.json"), {});
const { texts, labels, image, classes, templates } = JSON.parse(await readFile("/dev/stdin", "utf8"));
const prompted = { ...model, prompts: templates };
const values = (bias, multi) => probabilities({ ...model, logit_bias: bias }, image, classes, multi, null);
console.log(
  JSON.stringify({
    ids: texts.map((text) => rowsOf(tokenizer, model, [text])[0]),
    together: rowsOf(tokenizer, model, texts.slice(0, 20)),
    words: texts.map((text) => wordsOf(tokenizer, model, text)),
    labels: split(labels),
    texts: textsOf(prompted, split(labels)),
    anything: anythingFor({ ...prompted, logit_bias: null }, split(labels)),
    mean: mean(classes),
    softmax: values(null, false),
    sigmoid: values(-3, true),
    against: probabilities(model, image, classes, true, [...classes].reverse()),
  }),
);
