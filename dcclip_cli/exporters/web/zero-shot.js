// Labels, prompts, batches of tokens and probabilities as in dcclip_cli/inference and dcclip_cli/text.py.

const HAN = /[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{3ffff}]/u;
// What a label is compared with in multi-label prediction by a model without a bias of its own.
const ANYTHING = { en: "something", zh: "东西" };

/** The items of a list separated by , ， 、 or line ends, without blanks, empty items and repetitions. */
export const split = (text) => [...new Set(text.split(/[,，、\n]/).map((part) => part.trim()).filter(Boolean))];

/** "zh" for a text with a Chinese character in it, else "en". */
export const languageByScript = (text) => (HAN.test(text) ? "zh" : "en");

const fill = (templates, name) => templates.map((template) => template.replaceAll("{}", name));
const templatesFor = (model, language) => model.prompts[language] ?? ["{}"];

/** For each label the texts that stand for it. */
export const textsOf = (model, labels) => labels.map((label) => fill(templatesFor(model, languageByScript(label)), label));

/** For each label the texts that stand for anything in its language, or null where the model has a bias instead. */
export const anythingFor = (model, labels) =>
  model.logit_bias === null
    ? labels.map((label) => fill(templatesFor(model, languageByScript(label)), ANYTHING[languageByScript(label)]))
    : null;

/** Rows of token ids of one length for texts, by a tokenizer of tokenizers.js: truncation keeps the special tokens. */
export function rowsOf(tokenizer, model, texts) {
  const around = tokenizer.encode("").ids.length;
  const rows = texts.map((text) => {
    const clean = text.split(/[\p{White_Space}\x1c-\x1f]+/u).filter(Boolean).join(" "); // as Python's str.split
    const { ids } = tokenizer.encode(clean);
    if (ids.length <= model.context_length) return ids;
    const inner = tokenizer.encode(clean, { add_special_tokens: false }).ids;
    const before = ids.indexOf(inner[0]);
    const kept = inner.slice(0, model.context_length - around);
    return [...ids.slice(0, before), ...kept, ...ids.slice(before + inner.length)];
  });
  const length = model.fixed_length ? model.context_length : Math.max(...rows.map((row) => row.length));
  return rows.map((row) => [...row, ...Array(length - row.length).fill(model.padding_id)]);
}

export const dot = (first, second) => first.reduce((sum, value, index) => sum + value * second[index], 0);

/** The mean of embeddings, of length 1: a class of zero-shot classification. */
export function mean(embeddings) {
  const sum = embeddings[0].map((_, index) => embeddings.reduce((total, one) => total + one[index], 0));
  const length = Math.sqrt(dot(sum, sum));
  return sum.map((value) => value / length);
}

/** Those of the texts, each with an embedding, that the model never learnt. */
export const unknown = (model, texts, embeddings) =>
  texts.filter((_, index) => model.known && embeddings[index][model.known.dimension] > model.known.most);

/**
 * Whether no class fits an image: `known.fits` is for the best of many images, and half of it for a single one. With six
 * kinds of animals as labels, this refuses 2 % of ImageNet's photographs of them (all of `fits`: 47 %), and 96 % of others.
 */
export const noneFits = (model, image, classes) =>
  Boolean(model.known) && classes.every((embedding) => dot(image, embedding) < model.known.fits / 2);

/** The probability of each class for an image; with `anything`, or a model's bias, each by itself. */
export function probabilities(model, image, classes, multiLabel, anything) {
  const scaled = (embeddings) => embeddings.map((one) => model.logit_scale * dot(image, one));
  const logits = scaled(classes);
  if (multiLabel) {
    const others = anything ? scaled(anything) : logits.map(() => -model.logit_bias);
    return logits.map((logit, index) => 0.5 * (1 + Math.tanh(0.5 * (logit - others[index]))));
  }
  const highest = Math.max(...logits);
  const exponentials = logits.map((logit) => Math.exp(logit - highest));
  const sum = exponentials.reduce((total, value) => total + value, 0);
  return exponentials.map((value) => value / sum);
}
