// The page's own words in both languages.

const WORDS = {
  zh: {
    title: "看图识物",
    private: "图片只在这台设备上处理，不会上传。",
    drop: "把图片拖到这里，或直接粘贴",
    choose: "选择图片",
    folder: "选择文件夹",
    mode: "做什么",
    labelsMode: "按标签分类",
    searchMode: "用文字搜索",
    labels: "标签（用逗号、顿号或换行分隔，中英文都可以）",
    labelsDefault: "猫，狗，花，咖啡，建筑，火箭",
    multi: "一张图可以有多个标签，也可以没有",
    search: "要找的内容",
    searchDefault: "一只猫",
    clear: "全部移除",
    remove: (name) => `移除 ${name}`,
    loading: (share) => `正在加载模型 ${share}`,
    starting: "正在启动模型…",
    working: (left) => `正在识别，还剩 ${left} 张`,
    answered: (count) => `共 ${count} 张图片`,
    empty: "还没有图片。",
    noLabels: "请先写出标签。",
    noQuery: "请先写出要找的内容。",
    unknown: (texts) => `模型没有学过：${texts}`,
    nothingFits: "没有很符合的图片。",
    score: "相似度",
    scoreHelp: "分数是余弦相似度，只用来排序，不是概率。",
    more: (count) => `另外 ${count} 个`,
    about: (name, precision, parameters) => `模型：${name}，${precision}，${parameters} 万参数，由 dcclip 导出`,
    thousands: 1e4,
    unreadable: "不是浏览器能读的图片；请转成 JPEG、PNG 或 WebP。",
    large: (detail) => `图片太大（${detail} 像素，最多 6400 万像素）；请先缩小。`,
    thin: (detail) => `图片太窄（${detail} 像素，长边超过短边的 100 倍）；请先裁剪。`,
    missing: (detail) => `缺少文件 ${detail}；请把导出的整个文件夹放到服务器上。`,
    damaged: (detail) => `文件 ${detail} 的大小不对；请重新复制整个文件夹。`,
    nothing: "没有找到图片文件。",
    failed: (detail) => `出错了：${detail}`,
    dismiss: "关闭",
    otherTokens: "此浏览器的分词与 Python 不同，结果可能有出入。",
    language: "English",
  },
  en: {
    title: "What is in the picture?",
    private: "Pictures stay on this device; nothing is uploaded.",
    drop: "Drop or paste pictures here",
    choose: "Choose pictures",
    folder: "Choose a folder",
    mode: "What to do",
    labelsMode: "Classify by labels",
    searchMode: "Search by text",
    labels: "Labels, separated by commas or lines, in English or Chinese",
    labelsDefault: "cat, dog, flower, coffee, building, rocket",
    multi: "A picture may have several labels, or none",
    search: "What to look for",
    searchDefault: "a cat",
    clear: "Remove all",
    remove: (name) => `Remove ${name}`,
    loading: (share) => `Loading the model, ${share}`,
    starting: "Starting the model…",
    working: (left) => `Looking at pictures, ${left} left`,
    answered: (count) => (count === 1 ? "1 picture" : `${count} pictures`),
    empty: "No pictures yet.",
    noLabels: "Write some labels first.",
    noQuery: "Write what to look for first.",
    unknown: (texts) => `The model never learnt: ${texts}`,
    nothingFits: "Nothing fits well.",
    score: "Similarity",
    scoreHelp: "Scores are cosines: they rank pictures and are not probabilities.",
    more: (count) => `${count} more`,
    about: (name, precision, parameters) => `Model: ${name}, ${precision}, ${parameters} million parameters, exported by dcclip`,
    thousands: 1e6,
    unreadable: "is not a picture that this browser reads; convert it to JPEG, PNG or WebP.",
    large: (detail) => `is too large (${detail} pixels, at most 64 million); make it smaller first.`,
    thin: (detail) => `is too thin (${detail} pixels, one side over 100 times the other); crop it first.`,
    missing: (detail) => `The file ${detail} is missing; put the whole exported folder on the server.`,
    damaged: (detail) => `The file ${detail} has another size than it should; copy the whole folder again.`,
    nothing: "There was no picture file in that.",
    failed: (detail) => `Something went wrong: ${detail}`,
    dismiss: "Dismiss",
    otherTokens: "This browser splits texts into other tokens than Python; results may differ.",
    language: "中文",
  },
};

const KEY = "dcclip-language";
const remembered = () => {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null; // storage is switched off
  }
};

let language = remembered() ?? (navigator.languages.find((one) => /^(zh|en)/i.test(one)) ?? "en").slice(0, 2).toLowerCase();
if (!WORDS[language]) language = "en";

export const currentLanguage = () => language;

export function setLanguage(next) {
  language = next;
  try {
    localStorage.setItem(KEY, next);
  } catch {
    // it holds until the page is left
  }
}

/** A word or sentence in the page's language. */
export function say(key, ...values) {
  const found = WORDS[language][key];
  return typeof found === "function" ? found(...values) : found;
}
