// Token ids as Python's tokenizers computes them, from tokenizer.json.
import { Tokenizer } from "./libraries/tokenizers.js";

// Python's white space; JavaScript's \s is not the same.
const SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+";
const PUNCTUATION = "[\\p{P}!-/:-@\\[-`{-~]";

const splitAt = (Regex, behavior) => ({ type: "Split", pattern: { Regex }, behavior, invert: false });

/** A pre-tokenizer with steps of which tokenizers.js does something else, written as steps that it does exactly. */
function exact(step) {
  if (step?.type === "Sequence") return { ...step, pretokenizers: step.pretokenizers.map(exact) };
  if (step?.type === "WhitespaceSplit") return splitAt(SPACE, "Removed");
  if (step?.type === "Punctuation" && (step.behavior ?? "Isolated") === "Isolated") return splitAt(PUNCTUATION, "Isolated");
  return step;
}

// What Python's tokenizers takes for a part of a word on either side of a token with single_word.
const PART_OF_WORD = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]";
const ENDS_IN_WORD = new RegExp(`${PART_OF_WORD}$`, "u");
const STARTS_IN_WORD = new RegExp(`^${PART_OF_WORD}`, "u");

/** Sections of a text that are tokens or between them: tokenizers.js takes "ale" out of "whale", whatever single_word says. */
function sectionsOf(split, tokens) {
  return (text) => {
    const sections = [];
    let at = 0;
    let between = false;
    for (const part of split(text)) {
      const touches = () => ENDS_IN_WORD.test(text.slice(0, at)) || STARTS_IN_WORD.test(text.slice(at + part.length));
      const isToken = tokens.has(part) && !(tokens.get(part).single_word && touches());
      if (between && !isToken) sections.push(sections.pop() + part);
      else sections.push(part);
      between = !isToken;
      at += part.length;
    }
    return sections;
  };
}

/** A function from texts to rows of ids of one length; `model` is dcclip.json. */
export function loadTokenizer(definition, model) {
  const tokenizer = new Tokenizer({ ...definition, pre_tokenizer: exact(definition.pre_tokenizer) }, {});
  const splitter = tokenizer.splitter_normalized;
  splitter.split = sectionsOf(splitter.split.bind(splitter), tokenizer.added_tokens_map);
  const call = tokenizer.model._call.bind(tokenizer.model);
  tokenizer.model._call = (words) => words.flatMap((word) => call([word])); // unknown characters are fused within a word
  const around = tokenizer.encode("").ids.length; // special tokens, which truncation keeps
  const space = new RegExp(SPACE, "u");

  const encode = (text) => {
    const clean = text.split(space).filter(Boolean).join(" ");
    const ids = tokenizer.encode(clean).ids;
    if (ids.length <= model.context_length) return ids;
    const inner = tokenizer.encode(clean, { add_special_tokens: false }).ids;
    const before = ids.indexOf(inner[0]);
    const kept = inner.slice(0, model.context_length - around);
    return [...ids.slice(0, before), ...kept, ...ids.slice(before + inner.length)];
  };
  return (texts) => {
    const rows = texts.map(encode);
    const length = model.fixed_length ? model.context_length : Math.max(...rows.map((row) => row.length));
    return rows.map((row) => [...row, ...Array(length - row.length).fill(model.padding_id)]);
  };
}
