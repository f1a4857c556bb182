// The view of one result. What it shows stands in the element #data, made by hetecd/report.py (`view`).
//
// Map positions are pixels of the full map: L.latLng(row, col). Where images come from is known to `pictureLayer` and
// `paintLayer` alone. Words from files reach the page as text, never as HTML. Comes after words.js.

const data = JSON.parse(document.getElementById("data").textContent);
const BINS = 100;
const LISTED = 20;
// plasma, of matplotlib: evenly spaced to the eye, rising in lightness, made for colour-blind readers too.
const PLASMA = ["0d0887", "46039f", "7201a8", "9c179e", "bd3786", "d8576b", "ed7953", "fb9f3a", "fdca26", "f0f921"]
  .map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const COLOURS = Array.from({ length: BINS }, (_, bin) => {
  const at = (bin / (BINS - 1)) * (PLASMA.length - 1);
  const low = Math.min(Math.floor(at), PLASMA.length - 2);
  return PLASMA[low].map((value, k) => Math.round(value + (at - low) * (PLASMA[low + 1][k] - value)));
});
const OUTLINE = "#56b4e9", PICKED = "#ffffff";

let threshold = data.threshold;
let picked = null;

// --- words and numbers ---------------------------------------------------------------------------------------------

const hectares = (m2) => `${number(m2 / 1e4, m2 < 1e5 ? 2 : 1)} ha`;
const pixels = (count) => `${number(count)} px`;
const size = (m2, px) => (m2 === null ? pixels(px) : hectares(m2));
const shown = (value) => number(value, Math.abs(value * 100 - Math.round(value * 100)) < 1e-9 ? 2 : 4);
const sum = (values, from) => values.slice(from).reduce((total, value) => total + value, 0);

// --- what a threshold means ----------------------------------------------------------------------------------------

// The first bin that counts as changed. Multiples of 0.01 are edges of bins, so that sums over bins are exact.
const firstBin = (value) => Math.min(BINS, Math.ceil(value * BINS - 1e-9));
const asMapped = () => threshold === data.threshold;

function changed() {
  const bins = data.histogram;
  if (asMapped() && data.changed_pixels !== null)
    return { pixels: data.changed_pixels, area_m2: data.changed_area_m2 };
  if (!bins) return null;
  const from = firstBin(threshold);
  return { pixels: sum(bins.pixels, from), area_m2: bins.area_m2 ? sum(bins.area_m2, from) : null };
}

// What a polygon still holds. The map's own outlines hold all their pixels at its threshold and lose some above.
function left(polygon) {
  if (threshold <= data.threshold || !polygon.bins) return { pixels: polygon.area_px, area_m2: polygon.area_m2 };
  const from = firstBin(threshold) - Math.floor(data.threshold * BINS);
  const share = sum(polygon.bins, from) / (sum(polygon.bins, 0) || 1); // of a simplified outline not all pixels
  const area = polygon.area_m2 === null ? null : polygon.area_m2 * share;
  return { pixels: Math.round(polygon.area_px * share), area_m2: area };
}

// --- map -----------------------------------------------------------------------------------------------------------

const metres = data.pixel_m || [1, 1];
const crs = L.extend({}, L.CRS.Simple, {
  transformation: new L.Transformation(1, 0, 1, 0), // rows count downwards
  distance: (a, b) => Math.hypot((a.lng - b.lng) * metres[0], (a.lat - b.lat) * metres[1]),
});
const bounds = L.latLngBounds([0, 0], [data.height, data.width]);
const nativeZoom = -Math.log2(data.factor); // at which a pixel of the images is one of the screen
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const map = L.map("map", {
  crs, preferCanvas: true, attributionControl: false, zoomSnap: 0, zoomDelta: 0.5, wheelPxPerZoomLevel: 120,
  minZoom: -Math.log2(Math.max(data.height, data.width) / 150), maxZoom: 5, maxBounds: bounds.pad(0.5),
  zoomAnimation: false, fadeAnimation: false, inertia: !still, // the clip of the swipe follows a zoom in one step
});
["images", "paint", "outlines", "swipe"].forEach((name, k) => (map.createPane(name).style.zIndex = 250 + 50 * k));
map.getPane("paint").style.pointerEvents = "none";
if (data.pixel_m) L.control.scale({ imperial: false }).addTo(map);

function pictureLayer(image, pane) {
  if (image.tiles) return tiledPicture(image, pane);
  return L.imageOverlay(image.image, bounds, { pane, alt: image.title });
}

// The probability, painted from the threshold on. `read` gives the bin at a map position, from 1; 0 is no data.
function paintLayer(source) {
  if (source.tiles) return tiledPaint(source);
  const canvas = element("canvas"), grey = new Image();
  let levels = new Uint8Array(0);
  const ready = new Promise((resolve) => (grey.onload = resolve)).then(() => {
    canvas.width = grey.width;
    canvas.height = grey.height;
    levels = levelsOf(grey);
  });
  grey.src = source.image;
  const layer = L.svgOverlay(canvas, bounds, { pane: "paint", opacity: 0.8 }); // takes any element
  layer.repaint = () => ready.then(() => paintLevels(canvas, levels));
  layer.read = (row, col) => levels[Math.floor(row / data.factor) * canvas.width + Math.floor(col / data.factor)] || 0;
  layer.canvas = canvas;
  return layer;
}

function levelsOf(grey) {
  const { width, height } = grey, canvas = element("canvas", "", { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(grey, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  return Uint8Array.from({ length: rgba.length / 4 }, (_, k) => rgba[4 * k]);
}

function paintLevels(canvas, levels) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(canvas.width, canvas.height);
  const pixel = new Uint32Array(image.data.buffer), colours = painted();
  levels.forEach((level, k) => (pixel[k] = colours[level]));
  context.putImageData(image, 0, 0);
}

// The colour of each level, as four bytes in one: transparent below the threshold.
function painted() {
  const bytes = new Uint8Array(4 * 256), from = firstBin(threshold);
  COLOURS.forEach((colour, bin) => bin >= from && bytes.set([...colour, 255], 4 * (bin + 1)));
  return new Uint32Array(bytes.buffer);
}

const paint = data.probability ? paintLayer(data.probability).addTo(map) : null;

function addImages() {
  const sides = data.images.map((image, k) => {
    const pane = map.createPane(`image-${k}`, map.getPane("images"));
    pictureLayer(image, `image-${k}`).addTo(map);
    return pane;
  });
  if (sides.length === 2) addSwipe(sides);
  document.querySelectorAll(".side").forEach((label, k) => {
    label.textContent = data.images[k]?.title ?? "";
    label.hidden = !data.images[k];
  });
}

function addSwipe(panes) {
  const titles = data.images.map((image) => image.title);
  const handle = element("div", "", {
    id: "swipe", role: "slider", tabindex: 0, "aria-valuemin": 0, "aria-valuemax": 100,
    "aria-label": `Swipe: ${titles[0]} on the left, ${titles[1]} on the right`,
  });
  handle.append(element("span", "◂ ▸", { "aria-hidden": "true" }));
  map.getPane("swipe").append(handle); // above the outlines, below a popup
  let share = 50;

  function place() { // a pane moves with the map: what stands still on the screen moves in it
    const { x, y } = map.getSize(), split = (x * share) / 100;
    const corner = (col, row) => { const at = map.containerPointToLayerPoint([col, row]); return `${at.x}px ${at.y}px`; };
    const part = (a, b) => `polygon(${corner(a, 0)}, ${corner(b, 0)}, ${corner(b, y)}, ${corner(a, y)})`;
    panes[0].style.clipPath = part(0, split);
    panes[1].style.clipPath = part(split, x);
    handle.style.height = `${y}px`;
    L.DomUtil.setPosition(handle, map.containerPointToLayerPoint([split, 0]));
  }
  function move(percent) {
    share = Math.min(100, Math.max(0, percent));
    handle.setAttribute("aria-valuenow", Math.round(share));
    handle.setAttribute("aria-valuetext", `${Math.round(share)} % ${titles[0]}`);
    place();
  }
  L.DomEvent.disableClickPropagation(handle);
  handle.addEventListener("pointerdown", (event) => {
    handle.setPointerCapture(event.pointerId);
    handle.focus();
    event.preventDefault();
  });
  handle.addEventListener("pointermove", (event) => {
    if (!handle.hasPointerCapture(event.pointerId)) return;
    const box = byId("map").getBoundingClientRect();
    move((100 * (event.clientX - box.left)) / box.width);
  });
  handle.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -10, PageUp: 10, Home: -100, End: 100 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    move(share + steps[event.key]);
  });
  map.on("move zoom resize viewreset", place);
  move(share);
}

// --- polygons ------------------------------------------------------------------------------------------------------

const outlines = L.layerGroup().addTo(map);
data.polygons.forEach((polygon, k) => {
  const rings = polygon.rings.map((ring) => {
    const points = [];
    for (let at = 0; at < ring.length; at += 2) points.push([ring[at + 1], ring[at]]);
    return points;
  });
  polygon.number = k + 1;
  polygon.casing = L.polygon(rings, { pane: "outlines", color: "#000", weight: 4, opacity: 0.7, fill: false, interactive: false });
  polygon.line = L.polygon(rings, { pane: "outlines", color: OUTLINE, weight: 2, fillOpacity: 0 });
  polygon.line.on("click", (event) => pick(polygon, event.latlng));
  const box = polygon.line.getBounds();
  polygon.across = Math.max(box.getNorth() - box.getSouth(), box.getEast() - box.getWest());
});

// Seen from far away, outlines as wide as ever would hide what they surround.
function lineWeight(polygon) {
  const across = polygon.across * 2 ** map.getZoom();
  return across > 30 ? 2 : 1;
}

function weighOutlines() {
  for (const polygon of data.polygons) {
    const weight = lineWeight(polygon);
    if (weight === polygon.weight) continue;
    polygon.weight = weight;
    polygon.casing.setStyle({ stroke: weight === 2 });
    if (polygon !== picked) polygon.line.setStyle({ weight });
  }
}

function details(polygon) {
  const box = element("div"), list = element("dl"), now = left(polygon);
  const rows = [["Area as mapped", size(polygon.area_m2, polygon.area_px)], ["Pixels", number(polygon.area_px)],
                ["Mean probability", number(polygon.mean_prob, 2)]];
  if (threshold > data.threshold) rows.push([`From ${shown(threshold)}`, size(now.area_m2, now.pixels)]);
  rows.push(["Middle", place(polygon.line.getBounds().getCenter()).replace(", ", "\n")]);
  for (const [name, value] of rows) list.append(element("dt", name), element("dd", value));
  box.append(element("strong", `Change ${polygon.number}`), list);
  return box;
}

function pick(polygon, at) {
  unpick();
  picked = polygon;
  polygon.line.setStyle({ color: PICKED, weight: 4 }).bringToFront();
  const popup = L.popup({ maxWidth: 280 }).setLatLng(at).setContent(details(polygon)).openOn(map);
  popup.on("remove", () => picked === polygon && unpick());
  markPicked();
}

function unpick() {
  picked?.line.setStyle({ color: OUTLINE, weight: lineWeight(picked) });
  picked = null;
  markPicked();
}

function markPicked() {
  for (const button of byId("largest").querySelectorAll("button"))
    button.setAttribute("aria-pressed", String(picked !== null && Number(button.dataset.number) === picked.number));
}

function visit(polygon) {
  const box = polygon.line.getBounds();
  map.fitBounds(box.pad(0.6), { maxZoom: 3, animate: false });
  pick(polygon, box.getCenter());
}

function showOutlines() {
  for (const polygon of data.polygons) {
    const visible = left(polygon).pixels > 0;
    if (visible === outlines.hasLayer(polygon.line)) continue;
    for (const part of [polygon.casing, polygon.line]) visible ? outlines.addLayer(part) : outlines.removeLayer(part);
    if (!visible && polygon === picked) map.closePopup();
  }
}

// --- panel ---------------------------------------------------------------------------------------------------------

function showArea() {
  const now = changed(), of = data.histogram ? sum(data.histogram.pixels, 0) : null;
  byId("threshold-value").textContent = shown(threshold);
  byId("threshold").value = threshold;
  byId("threshold").setAttribute("aria-valuetext", shown(threshold));
  byId("reset").hidden = asMapped();
  const area = byId("area");
  area.replaceChildren();
  if (!now) return area.append("The changed area is not known: there is neither a summary nor a probability raster.");
  const rest = now.area_m2 === null ? [] : [pixels(now.pixels)];
  if (of) rest.push(`${number((100 * now.pixels) / of, 2)} % of the valid pixels`);
  if (data.polygons.length) {
    const alive = data.polygons.filter((polygon) => left(polygon).pixels > 0).length;
    const drawn = data.polygons.length < data.polygons_total ? "drawn polygons" : "polygons";
    rest.push(`${number(alive)} of ${number(data.polygons.length)} ${drawn}`);
  }
  area.append(element("strong", size(now.area_m2, now.pixels)), rest.join(" · "));
}

function showNotes() {
  const own = shown(data.threshold), now = shown(threshold);
  const note = asMapped() ? `Groups of pixels from ${own}, as mapped.`
    : threshold > data.threshold
      ? `Outlines are those mapped at ${own}; hidden where nothing reaches ${now}. The list counts what does.`
      : `Outlines are those mapped at ${own}. What ${now} adds is painted but has no outline; hetecd predict --threshold ${now} draws it.`;
  const drawn = data.tolerance_px ? ` Drawn to within ${number(data.tolerance_px, data.tolerance_px < 10 ? 1 : 0)} px.` : "";
  byId("outline-note").textContent = note + drawn;
}

function showLargest() {
  const order = data.polygons.map((polygon) => ({ polygon, now: left(polygon) })).filter(({ now }) => now.pixels > 0)
    .sort((a, b) => b.now.pixels - a.now.pixels);
  byId("largest").replaceChildren(...order.slice(0, LISTED).map(({ polygon, now }) => {
    const button = element("button", "", { type: "button", "data-number": polygon.number });
    button.append(element("span", `${polygon.number}`), element("span", size(now.area_m2, now.pixels)),
                  element("span", `mean ${number(polygon.mean_prob, 2)}`));
    button.addEventListener("click", () => visit(polygon));
    const item = element("li");
    item.append(button);
    return item;
  }));
  const more = order.length - LISTED, undrawn = data.polygons_total - data.polygons.length;
  byId("largest-rest").textContent = [
    more > 0 ? `${number(more)} smaller ones are on the map.` : "",
    undrawn > 0 ? `Drawn are the largest of ${number(data.polygons_total)}; all are in the file of polygons.` : "",
  ].join(" ");
  markPicked();
}

function showHistogram() {
  if (!data.histogram) return;
  const ns = "http://www.w3.org/2000/svg", from = firstBin(threshold), heights = data.histogram.pixels.map(Math.log1p);
  const top = Math.max(...heights, 1);
  const part = (name, attributes, text = "") => {
    const made = document.createElementNS(ns, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };
  const svg = part("svg", { viewBox: "0 0 300 112", role: "img", "aria-label": "Histogram of probabilities, pixel counts on a logarithmic scale" });
  heights.forEach((height, bin) => {
    const tall = (88 * height) / top;
    const fill = bin >= from ? `rgb(${COLOURS[bin]})` : "#8a939b";
    svg.append(part("rect", { x: 3 * bin, y: 92 - tall, width: 2.6, height: tall, fill }));
  });
  svg.append(part("line", { x1: 300 * threshold, x2: 300 * threshold, y1: 0, y2: 96, stroke: "#000", "stroke-width": 1.5 }),
             part("text", { x: 0, y: 108 }, "0"), part("text", { x: 150, y: 108, "text-anchor": "middle" }, "probability · pixels, log scale"),
             part("text", { x: 300, y: 108, "text-anchor": "end" }, "1"));
  byId("histogram").replaceChildren(svg);
}

function place({ lat: row, lng: col }) {
  const [a, b, c, d, e, f] = data.transform, digits = data.degrees ? 5 : 1;
  const x = a * col + b * row + c, y = d * col + e * row + f;
  return `x ${x.toFixed(digits)}, y ${y.toFixed(digits)}`;
}

function showPosition({ latlng }) {
  const { lat: row, lng: col } = latlng;
  if (!bounds.contains(latlng)) return (byId("position").textContent = "");
  const level = paint ? paint.read(row, col) : 0;
  const prob = level ? ` · probability ${number((level - 1) / BINS, 2)} to ${number(level / BINS, 2)}` : "";
  byId("position").textContent = `${place(latlng)} · ${data.crs}${prob}`;
}

// --- paper: what a swipe shows one after the other stands side by side ---------------------------------------------

const sheet = element("canvas");

function layOutPaper() {
  const figure = (content, caption) => {
    const made = element("figure");
    made.append(content, caption);
    return made;
  };
  const figures = data.images.map((image) =>
    figure(element("img", "", { src: image.image, alt: image.title }), element("figcaption", image.title)));
  if (paint?.canvas) figures.push(figure(sheet, element("figcaption", "", { id: "sheet-caption" })));
  byId("paper").replaceChildren(...figures);
}

function drawSheet() {
  if (!paint?.canvas) return;
  const { width, height } = paint.canvas, context = sheet.getContext("2d"), below = byId("paper").querySelector("img");
  Object.assign(sheet, { width, height });
  context.filter = "grayscale(1) brightness(0.6)"; // yellow on white would be lost
  if (below) context.drawImage(below, 0, 0, width, height);
  context.filter = "none";
  context.drawImage(paint.canvas, 0, 0);
  byId("sheet-caption").textContent = `change, probability from ${shown(threshold)}`;
}

// --- start ---------------------------------------------------------------------------------------------------------

function update() {
  paint?.repaint();
  showOutlines();
  showArea();
  showNotes();
  showLargest();
  showHistogram();
  if (picked) map._popup?.setContent(details(picked));
}

function fillPage() {
  document.title = `${data.title}: change report`;
  byId("title").textContent = data.title;
  if (data.home) byId("headline").after(element("a", "All results", { href: data.home }));
  const start = changed();
  byId("headline").textContent = start ? `${size(start.area_m2, start.pixels)} changed at a threshold of ${shown(threshold)}` : "";
  byId("reset").textContent = `Back to the map's ${shown(data.threshold)}`;
  byId("threshold").disabled = !data.histogram && !paint;
  byId("histogram-section").hidden = !data.histogram;
  byId("largest-section").hidden = byId("legend-outline").hidden = data.polygons.length === 0;
  for (const [id, present] of [["show-probability", paint], ["show-polygons", data.polygons.length]])
    byId(id).parentElement.hidden = !present;
  byId("legend").hidden = !paint && data.polygons.length === 0;
  byId("paint-legend").hidden = !paint;
  byId("ramp").style.background = `linear-gradient(to right, ${COLOURS.map((colour) => `rgb(${colour})`)})`;
  const coarse = data.factor > 1 ? ` Painted from means of ${data.factor} x ${data.factor} pixels; figures count every pixel.` : "";
  byId("legend-paint").textContent = `Painted: from the threshold on.${coarse} Grey beside the images: no data.`;
  for (const [name, value] of data.facts) byId("facts").append(element("dt", name), element("dd", value));
  const lines = [...data.missing, ...data.warnings];
  const list = element("ul");
  list.append(...lines.map((line) => element("li", line)));
  byId("notices").append(list);
  byId("notices").hidden = lines.length === 0;
  byId("footer").textContent = `Made by hetecd ${data.hetecd}. Map drawn with Leaflet ${L.version} (BSD-2-Clause).`;
}

let whole = true; // until a person goes somewhere, a page that changes its size goes on showing everything
function showWhole() {
  map.fitBounds(bounds, { padding: [8, 8], animate: false });
  whole = true;
}

fillPage();
map.on("zoomend dragstart", () => (whole = false));
map.on("resize", () => whole && showWhole());
showWhole();
addImages();
update();
byId("threshold").addEventListener("input", (event) => { threshold = Number(event.target.value); update(); });
byId("reset").addEventListener("click", () => { threshold = data.threshold; update(); byId("threshold").focus(); });
byId("whole").addEventListener("click", showWhole);
const toggle = (id, layer) => byId(id).addEventListener("change", (event) => {
  event.target.checked ? layer?.addTo(map) : layer?.remove();
});
toggle("show-probability", paint);
toggle("show-polygons", outlines);
map.on("mousemove click", showPosition);
const crisp = () => byId("map").classList.toggle("pixels", map.getZoom() > nativeZoom + 1);
map.on("zoomend", crisp);
map.on("zoomend", weighOutlines);
weighOutlines();
crisp();
layOutPaper();
addEventListener("beforeprint", drawSheet);
if (data.bins) loadBins();
