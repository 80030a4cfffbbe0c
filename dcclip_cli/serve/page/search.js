// The search page of `dcclip serve`. The address says what is shown: ?text=, ?not=, ?like= (a photo's url), ?under= (a
// folder's url), ?after= and ?before= (days), ?duplicates,
// #3 (the third photo in the lightbox).
import { $, currentLanguage, make, number, showWords, speaker, switchLanguage } from "./common.js";

const say = speaker({
  zh: {
    language: "English",
    text: "想找什么照片？",
    image: "以图搜图",
    go: "搜索",
    like: "以图搜图",
    unlike: "移除图片",
    leaveOut: "排除内容",
    not: "不想看到的内容，比如：人",
    try: "试试：",
    duplicates: "重复照片",
    comparing: "正在比较照片，第一次可能要几分钟…",
    compared: (copies, bursts) => (copies === "0" && bursts === "0" ? "没有副本，也没有连拍。" : `${copies} 组副本，${bursts} 组连拍`),
    copies: "副本：缩放过、重新压缩过或略微裁剪过的同一张照片，最大的在最前面",
    bursts: "连拍：几秒之内拍的相似照片，按拍摄时间排列",
    busy: "正在搜索…",
    photos: (count) => `${count} 张照片`,
    hits: (hits, count, ms) => `${count} 张照片里找到 ${hits} 张，用时 ${ms} 毫秒`,
    nearest: (shown, count, ms) => `${count} 张照片里最接近的 ${shown} 张，用时 ${ms} 毫秒`,
    away: (count) => `有 ${count} 个照片文件夹现在打不开，可能是硬盘没有连上。`,
    filters: "文件夹和日期",
    under: "文件夹",
    everywhere: "所有文件夹",
    after: "从",
    before: "到",
    some: "随便看看",
    unknown: (texts) => `模型不认识这些词，搜索时忽略了：${texts.join("、")}`,
    unfit: "没有很符合的照片，下面是相对接近的。",
    scores: "分数",
    scoreHelp: "分数是余弦相似度，只用来排序，不是概率。",
    more: "显示更多",
    similar: "找相似的照片",
    original: "查看原图",
    download: "下载",
    previous: "上一张",
    next: "下一张",
    close: "关闭",
    noFolder: "服务器还没有照片文件夹。请这样启动：dcclip serve --folder 文件夹",
    token: "请输入访问令牌",
    signIn: "进入",
    wrong: "令牌不对，请重新输入。",
    failed: "连不上服务器，请稍后再试。",
  },
  en: {
    language: "中文",
    text: "Find photos of…",
    image: "Search by image",
    go: "Search",
    like: "Photos like this image",
    unlike: "Remove the image",
    leaveOut: "Leave something out",
    not: "What to leave out, such as: people",
    try: "Try:",
    duplicates: "Duplicates",
    comparing: "Comparing the photos, which may take minutes the first time…",
    compared: (copies, bursts) => (copies === "0" && bursts === "0" ? "There are no copies and no bursts." : `Groups of copies: ${copies}. Bursts: ${bursts}.`),
    copies: "Copies: a photo resized, compressed again or slightly cropped, the largest first",
    bursts: "Bursts: similar photos taken within seconds, in the order of their times",
    busy: "Searching…",
    photos: (count) => (count === "1" ? "1 photo" : `${count} photos`),
    hits: (hits, count, ms) => `${hits} ${hits === "1" ? "hit" : "hits"} in ${count} ${count === "1" ? "photo" : "photos"}, ${ms} ms`,
    nearest: (shown, count, ms) => `The ${shown} nearest of ${count} ${count === "1" ? "photo" : "photos"}, ${ms} ms`,
    away: (count) => `${count === "1" ? "A folder" : `${count} folders`} of photos cannot be reached. A disk may be away.`,
    filters: "Folder and dates",
    under: "Folder",
    everywhere: "All folders",
    after: "From",
    before: "To",
    some: "Some of the photos",
    unknown: (texts) => `The model does not know these words and ignored them: ${texts.join(", ")}`,
    unfit: "Nothing fits well. These photos are the nearest.",
    scores: "Scores",
    scoreHelp: "Scores are cosines: they rank photos and are not probabilities.",
    more: "Show more",
    similar: "More like this",
    original: "Open original",
    download: "Download",
    previous: "Previous photo",
    next: "Next photo",
    close: "Close",
    noFolder: "The server has no folder of photos. Start it with: dcclip serve --folder DIR",
    token: "Enter the access token",
    signIn: "Continue",
    wrong: "The token is wrong. Enter it again.",
    failed: "The server cannot be reached. Try again later.",
  },
});

const FIRST = 24; // photos that are shown at first, and added at a time
const MOST = 1000; // photos of an answer
const FILTERS = ["under", "after", "before"];
const COUNT_MS = 5000; // between two looks at how many photos there are
let library = null; // what /folders answers
let photos = []; // in the grid, or in the groups: {url, path, folder, score, width, height}
let duplicates = null; // what /duplicates answers, if that is shown
let largePhoto = null; // in the lightbox
let shownQuery = null; // for which the grid has been filled
let answer = null; // to a search, with the time it took; null before the first one
let searches = 0; // counts searches, so that an earlier one's answer is not shown late
const uploads = new Map(); // number in history.state -> image file

/** What a request answers. Throws a sentence for the user, or null if the server needs a token. */
async function request(path, options = {}, isImage = false) {
  const headers = { "Accept-Language": currentLanguage(), ...options.headers };
  const response = await fetch(path, { ...options, headers }).catch(() => null);
  if (response?.status === 401) throw null;
  if (isImage && response?.ok) return response.blob();
  const content = response?.status === 204 ? {} : await response?.json().catch(() => null);
  if (!content || content.error) throw content ? `${content.error.message} (${content.error.hint})` : say("failed");
  return content;
}

function showFailure(error) {
  if (error === null) return showSignIn();
  if (typeof error !== "string") throw error;
  $("status").textContent = "";
  if (!answer) for (const id of ["photos", "groups"]) $(id).replaceChildren(); // those of the query before
  $("notes").replaceChildren(make("li", { className: "bad", textContent: error }));
}

function showSignIn() {
  $("sign-in").hidden = false;
  $("page").hidden = true;
  $("token").focus();
}

// ---- the address

const parameters = () => new URLSearchParams(location.search);
const upload = () => uploads.get(history.state?.upload);

/** The url of a photo of the server whose like is searched for. */
const likeUrl = () => (parameters().get("like")?.startsWith("images/") ? parameters().get("like") : null);

/** Show another query, as a new entry of the browser's history. */
function go({ text = $("text").value.trim(), not = $("not").value.trim(), like = likeUrl(), image = history.state?.upload }) {
  const filters = FILTERS.map((id) => [id, $(id).value]);
  const query = new URLSearchParams([...Object.entries({ text, not, like }), ...filters].filter(([, value]) => value));
  history.pushState({ upload: image }, "", query.size ? `?${query}` : "./");
  return follow();
}

/** Show what the address says. */
async function follow() {
  const query = parameters();
  const key = `${query} ${history.state?.upload ?? ""}`;
  if (key !== shownQuery) {
    shownQuery = key;
    answer = duplicates = null;
    $("groups").replaceChildren();
    searches += 1; // the answer to the query before is late
    photos = [];
    showLightbox();
    for (const id of ["text", "not", ...FILTERS]) $(id).value = query.get(id) ?? "";
    $("leave-out").open = query.has("not");
    $("filters").open ||= FILTERS.some((id) => query.has(id));
    const image = upload();
    $("like").hidden = !image && !likeUrl();
    URL.revokeObjectURL($("like").firstChild.src);
    $("like").firstChild.src = image ? URL.createObjectURL(image) : likeUrl() ? `${likeUrl()}?small=true` : "";
    const isQuery = query.get("text")?.trim() || !$("like").hidden;
    if (query.has("duplicates")) await compare();
    else if (isQuery) await search(FIRST * Math.max(1, Math.ceil((place() + 1) / FIRST) || 1));
    else showPhotos(library.samples);
  }
  showLightbox();
}

async function search(count) {
  const mine = ++searches;
  $("status").textContent = say("busy");
  try {
    const form = new FormData();
    for (const id of ["text", "not", ...FILTERS]) if (parameters().get(id)?.trim()) form.append(id, parameters().get(id));
    if (upload()) form.append("image", upload());
    else if (likeUrl()) form.append("image", await request(`${likeUrl()}?small=true`, {}, true));
    form.append("top_k", Math.min(MOST, count));
    const begin = performance.now();
    const content = await request("search", { method: "POST", body: form });
    if (mine !== searches) return;
    // The hits of a text end where half of the best score is not reached.
    const hits = content.fits && !form.has("image") ? Math.min(MOST, content.hits) : null;
    const most = hits ?? (content.fits ? Math.min(MOST, content.images) : FIRST);
    answer = { ...content, hits, most, ms: performance.now() - begin };
    showPhotos(answer.results.slice(0, most));
  } catch (error) {
    if (mine === searches) showFailure(error);
  }
}

async function compare() {
  const mine = searches;
  showPhotos([]); // also hides the controls of the view before
  $("status").textContent = say("comparing");
  try {
    const content = await request("duplicates");
    if (mine !== searches) return;
    duplicates = content;
    showGroups(Math.max(FIRST, place() + 1));
  } catch (error) {
    if (mine === searches) showFailure(error);
  }
}

// ---- what is shown

function showAll() {
  showWords(say);
  if (!library) return;
  $("about").textContent = library.images ? say("photos", number(library.images)) : "";
  const language = currentLanguage();
  const options = library.subfolders.map((folder) => make("option", { value: folder.url, textContent: named(folder) }));
  $("under").replaceChildren(make("option", { value: "", textContent: say("everywhere") }), ...options);
  $("under").value = parameters().get("under") ?? "";
  $("under").hidden = !options.length;
  const links = library.examples.map((example) => make("a", { href: `?text=${encodeURIComponent(example[language])}`, textContent: example[language] }));
  $("examples").replaceChildren(say("try"), ...links);
  if (library.images) showStatus();
  else $("notes").replaceChildren(make("li", { textContent: say("noFolder") }));
}

function showStatus() {
  const text = parameters().get("text");
  const names = library.folders.join(currentLanguage() === "zh" ? "、" : ", ");
  $("name").textContent = names;
  document.title = [duplicates ? say("duplicates") : text, names].filter(Boolean).join(" · ");
  $("examples").hidden = answer !== null || duplicates !== null;
  $("find-duplicates").hidden = duplicates !== null || library.images < 2;
  if (duplicates) $("status").textContent = say("compared", number(duplicates.copies.length), number(duplicates.bursts.length));
  else if (!answer) $("status").textContent = say("some");
  else {
    const counts = [number(answer.images), number(Math.round(answer.ms))];
    $("status").textContent = answer.hits === null || !answer.fits ? say("nearest", number(photos.length), ...counts) : say("hits", number(answer.hits), ...counts);
  }
  $("filters").hidden = !answer;
  const notes = library.away ? [say("away", number(library.away))] : [];
  if (answer?.unknown.length) notes.push(say("unknown", answer.unknown));
  if (answer && !answer.fits) notes.push(say("unfit"));
  $("notes").replaceChildren(...notes.map((textContent) => make("li", { textContent })));
  document.querySelector(".bar .check").hidden = !answer;
  $("score-help").hidden = !answer || !$("scores").checked;
  if (duplicates) $("more").hidden = photos.length === [...duplicates.copies, ...duplicates.bursts].flat().length;
  else $("more").hidden = !answer || photos.length >= answer.most;
}

/** Fill the grid; the first photos stay if the new ones only continue them. */
function showPhotos(next) {
  const isMore = photos.length && photos.length < next.length && photos.every((photo, index) => photo.url === next[index].url);
  if (!isMore) $("photos").replaceChildren();
  $("photos").append(...next.slice(isMore ? photos.length : 0).map((photo, index) => card(photo, index + (isMore ? photos.length : 0))));
  photos = next;
  showStatus();
}

/** Fill the groups, of at least so many photos. */
function showGroups(least) {
  photos = [];
  const sections = ["copies", "bursts"].map((kind) => {
    const lists = [];
    for (const group of duplicates[kind]) {
      if (photos.length >= least) break;
      lists.push(make("ul", { className: "photos" }, ...group.map((photo, index) => card(photo, photos.length + index))));
      photos.push(...group);
    }
    const heading = make("h2");
    heading.dataset.say = kind;
    return lists.length ? [heading, ...lists] : [];
  });
  $("groups").replaceChildren(...sections.flat());
  showWords(say);
  showStatus();
}

const named = (photo) => [library.folders.length > 1 ? library.folders[photo.folder] : "", photo.path].filter(Boolean).join(" / ");

function card(photo, index) {
  const image = make("img", { src: `${photo.url}?small=true`, alt: photo.path, loading: "lazy" });
  const link = make("a", { href: `#${index + 1}` }, image);
  link.onclick = (event) => {
    event.preventDefault();
    history.pushState({ ...history.state, opened: true }, "", link.hash);
    showLightbox();
  };
  const value = make("b", { textContent: photo.width ? `${photo.width} × ${photo.height}` : (photo.score?.toFixed(3) ?? "") });
  return make("li", { title: photo.path, className: photo.video ? "video" : "" }, link, make("p", {}, make("span", { textContent: photo.width ? named(photo) : photo.path }), value));
}

// ---- the lightbox

const place = () => Number(location.hash.slice(1)) - 1;

function showLightbox() {
  const photo = photos[place()];
  const box = $("lightbox");
  const video = $("video");
  if (!photo?.video) {
    video.removeAttribute("src");
    video.load(); // ends the one before
  }
  if (!photo) {
    if (box.open) box.close();
    document.querySelector(`.photos [href="#${photos.indexOf(largePhoto) + 1}"]`)?.focus();
    largePhoto = null;
    return;
  }
  largePhoto = photo;
  if (!box.open) {
    box.showModal();
    $("close").focus(); // not the video, which takes the arrow keys
  }
  const image = $("photo");
  image.src = `${photo.url}?large=true`; // a JPEG of HEIC and others that browsers do not show
  image.alt = photo.path;
  video.hidden = !photo.video;
  image.hidden = !video.hidden;
  video.onerror = () => {
    video.hidden = true; // the browser cannot play it
    image.hidden = false;
  };
  if (photo.video && video.getAttribute("src") !== photo.video) {
    video.src = photo.video;
    video.play().catch(() => {}); // a browser may wait for a click
  }
  $("download").href = (photo.video ?? photo.url).split("#")[0];
  $("photo-name").textContent = named(photo) + ($("scores").checked && answer ? ` · ${photo.score.toFixed(3)}` : "");
  $("original").href = photo.video ?? photo.url;
  $("previous").disabled = place() === 0;
  $("next").disabled = place() === photos.length - 1;
}

function step(by) {
  if (!photos[place() + by]) return;
  history.replaceState(history.state, "", `#${place() + 1 + by}`);
  showLightbox();
}

function closeLightbox() {
  if (history.state?.opened) history.back();
  else {
    history.replaceState(history.state, "", location.pathname + location.search);
    showLightbox();
  }
}

// ---- events

function choose(files) {
  const image = [...files].find((file) => file.type.startsWith("image/"));
  if (!image) return;
  const id = Date.now(); // also after a reload, where the entries of before have lost their images
  uploads.set(id, image);
  go({ like: null, image: id });
}

function listen() {
  $("language").onclick = () => {
    switchLanguage();
    showAll();
  };
  $("sign-in").onsubmit = async (event) => {
    event.preventDefault();
    const token = $("token").value.trim();
    try {
      if (!/^[!-~]+$/.test(token)) throw null; // what no header may contain
      await request("token", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
      await start();
    } catch (error) {
      $("sign-in-error").textContent = error ?? say("wrong");
    }
  };
  $("ask").onsubmit = (event) => {
    event.preventDefault();
    go({});
  };
  $("examples").onclick = (event) => {
    if (!event.target.href) return;
    event.preventDefault();
    go({ text: event.target.textContent });
  };
  for (const id of FILTERS) $(id).onchange = () => go({});
  $("image").onchange = (event) => {
    choose(event.target.files);
    event.target.value = "";
  };
  $("unlike").onclick = () => go({ like: null, image: null });
  $("scores").onchange = () => {
    document.body.classList.toggle("scored", $("scores").checked);
    showStatus();
  };
  $("more").onclick = () => (duplicates ? showGroups : search)(photos.length + FIRST);
  $("previous").onclick = () => step(-1);
  $("next").onclick = () => step(1);
  $("close").onclick = closeLightbox;
  $("similar").onclick = () => go({ text: "", not: "", like: photos[place()].url, image: null });
  $("lightbox").oncancel = (event) => {
    event.preventDefault();
    closeLightbox();
  };
  $("lightbox").onkeydown = ({ key, target }) => target !== $("video") && step({ ArrowLeft: -1, ArrowRight: 1 }[key] ?? NaN);
  addEventListener("popstate", follow);
  document.addEventListener("paste", ({ clipboardData }) => choose(clipboardData.files));
  let depth = 0; // of elements that the pointer is over
  const over = (change) => $("ask").classList.toggle("over", (depth = Math.max(0, depth + change)) > 0);
  document.addEventListener("dragenter", () => over(1));
  document.addEventListener("dragleave", () => over(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(-depth);
    choose(event.dataTransfer.files);
  });
}

async function start() {
  try {
    library = await request("folders");
  } catch (error) {
    $("page").hidden = false;
    return showFailure(error);
  }
  $("sign-in").hidden = true;
  $("page").hidden = false;
  $("ask").hidden = !library.images;
  document.querySelector(".bar").hidden = !library.images;
  showAll();
  if (!library.images) return;
  await follow();
  if (matchMedia("(hover: hover)").matches && !location.search) $("text").focus();
}

showWords(say);
listen();
start();
setInterval(async () => {
  const health = library?.folders.length && !document.hidden && (await request("health").catch(() => null));
  if (!health) return;
  $("about").textContent = say("photos", number((library.images = health.images)));
  if (library.away === health.missing_folders) return;
  library.away = health.missing_folders;
  showStatus();
}, COUNT_MS);
