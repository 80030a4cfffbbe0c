// Labels, prompts, batches of tokens, words and probabilities as in dcclip_cli/inference, model/known_words.py and text.py.

const HAN = /[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{3ffff}]/u;
const UNITS = new RegExp(`${HAN.source}|(?:(?!${HAN.source})[\\p{L}\\p{N}_])+`, "gu");
const MOST_UNITS = 16; // of a word
const GAIN = 0.01; // of a text's unknown part by an ignored word
const FIRST = 8; // images that fit a word, at most
const IMAGES_PER_FIT = 500;
// What a label is compared with in multi-label prediction by a model without a bias of its own.
const ANYTHING = { en: "something", zh: "东西" };
const SAME = 0.95; // cosine of texts of one meaning

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

/** The words of a text in order: the longest parts that are one token, else Chinese characters and English words. */
export function wordsOf(tokenizer, model, text) {
  const ids = (part) => rowsOf(tokenizer, model, [part])[0];
  const tokens = (part) => ids(part).filter((id) => id !== model.padding_id).length;
  const units = [...text.matchAll(UNITS)].slice(0, MOST_UNITS * ids(text).length);
  const single = tokens("") + 1;
  const words = [];
  for (let first = 0, last; first < units.length; first = last) {
    const part = () => text.slice(units[first].index, units[last - 1].index + units[last - 1][0].length);
    for (last = Math.min(first + MOST_UNITS, units.length); last > first + 1 && tokens(part()) !== single; ) last -= 1;
    words.push(part());
  }
  return words;
}

/**
 * The texts without any word that the model knows, and of other texts the words that it ignores: red in "a red car".
 * `embed` resolves to the embeddings of texts, `split` to the words of each.
 */
export async function unknown(model, texts, embeddings, embed, split) {
  if (!model.known) return [];
  const { dimension, most } = model.known;
  const parts = async (texts) => (await embed(texts)).map((embedding) => embedding[dimension]);
  const partOf = new Map(texts.map((text, index) => [text, embeddings[index][dimension]]));
  const lists = await split([...partOf.keys()]);
  const wordsOf = [...partOf.keys()].map((text, index) => [text, lists[index]]);
  const sentences = wordsOf.filter(([text, words]) => words.join() !== text);
  const words = [...new Set(sentences.flatMap(([, words]) => words))];
  const alone = await parts(words);
  const known = new Set(words.filter((_, index) => alone[index] <= most));
  const restOf = new Map(sentences.map(([text, words]) => [text, words.filter((word) => known.has(word)).join(" ")]));
  const restsOf = ([text, words]) => words.filter((word) => !known.has(word)).map((word) => [word, restOf.get(text) || text]);
  const probes = [...new Map(sentences.flatMap(restsOf))];
  const rests = await parts(probes.map(([, rest]) => rest));
  const together = await parts(probes.map(([word, rest]) => `${word} ${rest}`));
  const ignored = new Set(probes.filter((_, index) => together[index] - rests[index] > GAIN).map(([word]) => word));
  const namesOf = ([text, words]) => (partOf.get(text) > most && !restOf.get(text) ? [text] : ignoredIn(words, ignored));
  return [...new Set(wordsOf.flatMap(namesOf))];
}

/** Those of the words that are ignored; Chinese characters next to each other, which are no word, as one. */
function ignoredIn(words, ignored) {
  const names = [];
  let wasCharacter = false;
  for (const word of words) {
    const isCharacter = ignored.has(word) && [...word].length === 1 && HAN.test(word);
    if (isCharacter && wasCharacter) names[names.length - 1] += word;
    else if (ignored.has(word)) names.push(word);
    wasCharacter = isCharacter;
  }
  return names;
}

/** Whether some image fits the known words of a query together, and enough of them each. */
export async function queryFits(model, images, query, embed, split) {
  if (!model.known || !images.length) return true;
  const { dimension, most, fits } = model.known;
  const words = [...new Set((await split([query])).flat())];
  const vectors = await embed(words);
  const known = words.filter((_, index) => vectors[index][dimension] <= most);
  if (!known.length) return false;
  const [sentence] = await embed([known.join(" ")]);
  const least = (fits * (1 + Math.min(1, Math.log(images.length) / Math.log(IMAGES_PER_FIT)))) / 2;
  const needed = Math.max(1, Math.min(FIRST, Math.floor(images.length / IMAGES_PER_FIT)));
  const count = (vector) => images.filter((image) => dot(image, vector) >= least).length;
  return count(sentence) > 0 && vectors.every((word) => word[dimension] > most || count(word) >= needed);
}

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
    const values = logits.map((logit, index) => 0.5 * (1 + Math.tanh(0.5 * (logit - others[index]))));
    // 其他, whose embedding is that of anything in a model that knows its words, has 1 minus the highest one of the others.
    const isRest = classes.map((embedding, index) => Boolean(anything && model.known) && dot(embedding, anything[index]) > SAME);
    const highest = Math.max(0, ...values.filter((_, index) => !isRest[index]));
    return values.map((value, index) => (isRest[index] ? 1 - highest : value));
  }
  const highest = Math.max(...logits);
  const exponentials = logits.map((logit) => Math.exp(logit - highest));
  const sum = exponentials.reduce((total, value) => total + value, 0);
  return exponentials.map((value) => value / sum);
}
