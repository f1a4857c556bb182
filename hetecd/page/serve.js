// The list of results and the upload of pairs. Words from files reach the page as text, never as HTML. Comes after words.js.

const megabytes = (bytes) => `${number(bytes / 1e6, bytes < 1e7 ? 1 : 0)} MB`;

async function ask(address, options) {
  const answer = await fetch(address, options), said = await answer.json();
  if (!answer.ok) throw new Error(words(said));
  return said;
}

// What the server says went wrong: a line, or a list of what does not fit.
const words = ({ detail }) => (Array.isArray(detail) ? detail.map((each) => each.msg).join("; ") : detail);

// --- results -------------------------------------------------------------------------------------------------------

async function showResults() {
  const results = await ask("/api/results");
  byId("none").hidden = results.length > 0;
  byId("results").replaceChildren(...results.map((result) => {
    const item = element("li"), about = [];
    const { changed_area_m2: area, changed_pixels: pixels } = result;
    const figures = area !== null ? `${number(area / 1e4, 1)} ha` : pixels !== null ? `${number(pixels)} px` : "";
    if (result.width) about.push(`${number(result.width)} x ${number(result.height)} px`);
    if (result.created) about.push(new Date(result.created).toLocaleString());
    item.append(result.width ? element("a", result.name, { href: `/results/${encodeURIComponent(result.name)}` }) : result.name,
                element("span", figures, { class: "figures" }), element("small", about.join(" · ")));
    const files = element("small");
    result.files.forEach((file) => files.append(
      element("a", file, { href: `/api/results/${encodeURIComponent(result.name)}/files/${file}`, download: "" }), " "));
    item.append(files);
    item.append(...result.missing.map((line) => element("small", line, { class: "problem" })));
    return item;
  }));
}

// --- pairs on their way --------------------------------------------------------------------------------------------

const uploading = new Map(); // id of a job -> bytes sent and in all, and what ends it

function line(job) {
  const item = element("li", job.name), sent = uploading.get(job.id);
  const part = sent ? sent.sent / sent.all : job.state === "running" && job.percent !== null ? job.percent / 100 : null;
  const state = job.state === "failed" ? job.message
    : sent ? `uploading, ${megabytes(sent.sent)} of ${megabytes(sent.all)}`
    : job.state === "running" ? (job.percent === null ? "starting" : `mapping, ${job.percent} %`) : job.state;
  item.append(element("small", state, job.state === "failed" ? { class: "problem" } : {}));
  if (job.state === "failed" || job.state === "done") return item;
  const bar = element("progress", "", { max: 1, "aria-label": `${job.name}: ${state}` });
  if (part !== null) bar.value = part; // without a value it moves to and fro
  const cancel = element("button", "Cancel", { type: "button", "aria-label": `Cancel ${job.name}` });
  cancel.addEventListener("click", () => {
    sent?.stop();
    ask(`/api/jobs/${job.id}`, { method: "DELETE" }).then(follow, tell);
  });
  item.append(bar, cancel);
  return item;
}

let timer = 0, before = "";

async function follow() {
  clearTimeout(timer);
  const jobs = (await ask("/api/jobs")).filter((job) => job.state !== "done").reverse();
  byId("jobs").replaceChildren(...jobs.map(line));
  const going = jobs.filter((job) => job.state !== "failed").map((job) => job.id).join();
  if (going !== before) await showResults();
  before = going;
  if (going) timer = setTimeout(() => follow().catch(tell), 500);
}

function put(job, date, file, sent) {
  return new Promise((done, fail) => {
    const request = new XMLHttpRequest(); // fetch tells nothing while it sends
    const start = sent.sent;
    request.open("PUT", `/api/jobs/${job.id}/${date}`);
    request.upload.addEventListener("progress", (event) => (sent.sent = start + event.loaded));
    request.addEventListener("load", () =>
      request.status < 300 ? done() : fail(new Error(words(JSON.parse(request.responseText)))));
    request.addEventListener("error", () => fail(new Error(`${file.name}: the server cannot be reached any more`)));
    request.addEventListener("abort", () => fail(new Error(`${job.name}: cancelled`)));
    request.responseType = "text";
    sent.stop = () => request.abort();
    request.send(file);
  });
}

async function upload(form) {
  const files = { before: form.elements.before.files[0], after: form.elements.after.files[0] };
  for (const file of Object.values(files)) // a server that refuses while it is sent to cannot say why
    if (file.size > form.dataset.limit)
      throw new Error(`${file.name}: found ${megabytes(file.size)}, expected at most ${megabytes(Number(form.dataset.limit))}; start the server with a larger --upload-mb`);
  const about = new URLSearchParams({ name: form.elements.name.value.trim() });
  if (form.elements.before_is.value) about.set("before_is", form.elements.before_is.value);
  const job = await ask(`/api/jobs?${about}`, { method: "POST" });
  const sent = { sent: 0, all: files.before.size + files.after.size, stop: () => {} };
  uploading.set(job.id, sent);
  form.reset();
  follow().catch(tell);
  try {
    for (const [date, file] of Object.entries(files)) await put(job, date, file, sent);
  } finally {
    uploading.delete(job.id);
    await follow();
  }
}

function tell(error) {
  byId("problem").textContent = error.message;
}

byId("pair").addEventListener("submit", (event) => {
  event.preventDefault();
  byId("problem").textContent = "";
  upload(event.target).catch(tell);
});
showResults().then(follow).catch(tell);
