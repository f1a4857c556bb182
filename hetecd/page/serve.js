// The list of results and the upload of pairs. Words from files reach the page as text, never as HTML. Comes after words.js.

const megabytes = (bytes) => `${number(bytes / 1e6, bytes < 1e7 ? 1 : 0)} MB`;

async function ask(address, options) {
  const answer = await fetch(address, options), text = await answer.text();
  if (!answer.ok) throw new Error(problem(answer.status, text));
  return JSON.parse(text);
}

// What the server says went wrong: a line, or a list of what does not fit.
function problem(status, text) {
  try {
    const { detail } = JSON.parse(text);
    return Array.isArray(detail) ? detail.map((each) => each.msg).join("; ") : detail;
  } catch {
    return `the server failed (${status}); what it wrote to its terminal says why`;
  }
}

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

const lines = new Map(); // id of a job -> the elements that show it, kept: who clicks or listens should not lose them

function lineOf(job) {
  if (!lines.has(job.id)) {
    const item = element("li", job.name), state = element("small"), bar = element("progress", "", { max: 1 });
    const cancel = element("button", "Cancel", { type: "button", "aria-label": `Cancel ${job.name}` });
    cancel.addEventListener("click", () => {
      uploading.get(job.id)?.stop();
      ask(`/api/jobs/${job.id}`, { method: "DELETE" }).then(follow, tell);
    });
    item.append(state, bar, cancel);
    lines.set(job.id, { item, state, bar, cancel });
  }
  return lines.get(job.id);
}

function show(job) {
  const { item, state, bar, cancel } = lineOf(job), sent = uploading.get(job.id), failed = job.state === "failed";
  const part = sent ? sent.sent / sent.all : job.state === "running" && job.percent !== null ? job.percent / 100 : null;
  state.textContent = failed ? job.message
    : sent ? `uploading, ${megabytes(sent.sent)} of ${megabytes(sent.all)}`
    : job.state === "running" ? (job.percent === null ? "starting" : `mapping, ${job.percent} %`) : job.state;
  state.classList.toggle("problem", failed);
  bar.hidden = cancel.hidden = failed;
  bar.setAttribute("aria-label", `${job.name}: ${state.textContent}`);
  if (part !== null) bar.value = part;
  else bar.removeAttribute("value"); // it moves to and fro
  return item;
}

let timer = 0, before = "", lost = false;

async function follow() {
  clearTimeout(timer);
  let going = before; // as long as nothing else is known
  try {
    const jobs = (await ask("/api/jobs")).filter((job) => job.state !== "done").reverse(), items = jobs.map(show);
    if (lost) tell({ message: "" });
    lost = false;
    const list = byId("jobs");
    if (items.length !== list.children.length || items.some((item, i) => item !== list.children[i]))
      list.replaceChildren(...items);
    going = jobs.filter((job) => job.state !== "failed").map((job) => job.id).join();
    if (going !== before) await showResults();
    before = going;
  } catch (error) {
    lost = true;
    throw error;
  } finally {
    if (going) timer = setTimeout(() => follow().catch(tell), 500);
  }
}

function put(job, date, file, sent) {
  return new Promise((done, fail) => {
    const request = new XMLHttpRequest(); // fetch tells nothing while it sends
    const start = sent.sent;
    request.open("PUT", `/api/jobs/${job.id}/${date}`);
    request.upload.addEventListener("progress", (event) => (sent.sent = start + event.loaded));
    request.addEventListener("load", () =>
      request.status < 300 ? done() : fail(new Error(problem(request.status, request.responseText))));
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
