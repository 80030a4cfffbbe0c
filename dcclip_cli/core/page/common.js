// What the exported page and that of `dcclip serve` share: elements, and the page's language.

export const $ = (id) => document.getElementById(id);

export const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

const KEY = "dcclip-language";
const remembered = () => {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null; // storage is switched off
  }
};

const preferred = navigator.languages.find((language) => /^(zh|en)/i.test(language)) ?? "en";
let language = (remembered() ?? preferred).slice(0, 2).toLowerCase() === "zh" ? "zh" : "en";

export const currentLanguage = () => language;

/** Change to the other language. */
export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  try {
    localStorage.setItem(KEY, language);
  } catch {
    // it holds until the page is left
  }
}

/** A function that gives a word or sentence of `words`, which has those of both languages, in the page's language. */
export const speaker = (words) => (key, ...values) => {
  const sentence = words[language][key];
  return typeof sentence === "function" ? sentence(...values) : sentence;
};

/** Write the words of all elements that name theirs, and those that name a placeholder, a title or a label. */
export function showWords(say) {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  for (const element of document.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say);
  for (const element of document.querySelectorAll("[data-label]")) {
    element.title = element.ariaLabel = say(element.dataset.label);
    if ("placeholder" in element) element.placeholder = say(element.dataset.label);
  }
  $("language").lang = language === "zh" ? "en" : "zh-Hans";
}

export const number = (value) => value.toLocaleString(language, { maximumFractionDigits: value < 100 ? 1 : 0 });
