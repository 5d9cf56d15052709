// The page: zoom, the moments of the passes, folding, search, cards, keys.

const still = matchMedia("(prefers-reduced-motion: reduce)");
const rows = byId("table").querySelectorAll("tbody tr");
let size = { w: 1, h: 1 };

function draw(anchor) {
  const focused = document.activeElement?.dataset?.key;
  const before = anchor && elements.get(anchor)?.getBoundingClientRect();
  elements = new Map(), timed = [];
  const box = arrange(0, route());
  size = { w: box.w + 2 * PAD, h: box.h + 2 * PAD };
  const picture = svg("svg", { viewBox: `0 0 ${size.w} ${size.h}` });
  drawLevel(box, PAD, PAD, picture);
  view.replaceChildren(picture);
  zoom(state.scale);
  if (before) {
    const now = elements.get(anchor).getBoundingClientRect();
    view.scrollBy({ left: now.left - before.left, top: now.top - before.top, behavior: "instant" });
  }
  if (focused) elements.get(focused)?.focus({ preventScroll: true });
  showMoment();
  showHits();
}

// ---- zoom and pan ----

function zoom(scale, x = view.clientWidth / 2, y = view.clientHeight / 2) {
  const picture = view.firstChild, old = picture.getBoundingClientRect(), frame = view.getBoundingClientRect();
  const fx = (frame.left + x - old.left) / (old.width || 1), fy = (frame.top + y - old.top) / (old.height || 1);
  state.scale = Math.min(3, Math.max(0.08, scale));
  picture.setAttribute("width", size.w * state.scale);
  picture.setAttribute("height", size.h * state.scale);
  const room = Math.max(260, innerHeight - (view.getBoundingClientRect().top + scrollY) - 110);
  view.style.height = `${Math.min(room, Math.max(160, size.h * state.scale + 18))}px`;
  const now = picture.getBoundingClientRect();
  view.scrollBy({ left: now.left + fx * now.width - frame.left - x, top: now.top + fy * now.height - frame.top - y, behavior: "instant" });
}

function fit(least) {
  const room = Math.max(260, innerHeight - (view.getBoundingClientRect().top + scrollY) - 110);
  zoom(Math.max(least, Math.min(1.3, (view.clientWidth - 4) / size.w, (room - 20) / size.h)));
}

view.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  const frame = view.getBoundingClientRect();
  zoom(state.scale * Math.exp(-event.deltaY / 300), event.clientX - frame.left, event.clientY - frame.top);
}, { passive: false });

let drag = null, dragged = false;
view.addEventListener("pointerdown", (event) => {
  dragged = false;
  if (event.pointerType === "mouse" && event.button === 0 && !event.target.closest("text"))
    drag = { x: event.clientX, y: event.clientY, left: view.scrollLeft, top: view.scrollTop };
});
addEventListener("pointermove", (event) => {
  if (!drag) return;
  const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
  if (Math.hypot(dx, dy) > 4) dragged = true, view.classList.add("dragged");
  if (dragged) view.scrollTo({ left: drag.left - dx, top: drag.top - dy, behavior: "instant" });
});
addEventListener("pointerup", () => { drag = null, view.classList.remove("dragged"); });

function bringIntoView(element) {
  const r = element.getBoundingClientRect(), f = view.getBoundingClientRect(), margin = 24;
  const shift = (low, high, from, to) => low < from + margin || high > to - margin ? (low + high) / 2 - (from + to) / 2 : 0;
  const left = shift(r.left, r.right, f.left, f.right), top = shift(r.top, r.bottom, f.top, f.bottom);
  view.scrollBy({ left, top, behavior: still.matches ? "instant" : "smooth" });
}

// ---- the moments of both passes ----

const momentsOf = steps.map(() => []);
moments.forEach(([, step], m) => step !== null && momentsOf[step].push(m));

function showMoment() {
  const { moment } = state, [turn, step] = moments[moment - 1] ?? [0];
  for (const [element, from, to] of timed) element.classList.toggle("later", from > moment || to <= moment);
  for (const element of view.querySelectorAll(".now")) element.classList.remove("now");
  document.body.dataset.pass = !state.started || !moment ? "none" : turn ? "backward" : "forward";
  let node = null;
  if (state.started && moment && step !== null) {
    node = elements.get(stepShown(step));
    node.classList.add("now");
    const key = `"${node.dataset.key}"`;  // backward, edges of constants carry nothing
    for (const edge of view.querySelectorAll(turn ? `path[data-to=${key}][data-gradient]` : `path[data-from=${key}]`)) edge.classList.add("now");
  }
  const cells = moment ? [...rows[moment - 1].cells].map((cell) => cell.textContent) : [];
  const sentence = !moments.length ? "There are no steps." : !moment ? `Before the first of ${moments.length} steps`
    : !state.started ? `All ${moments.length} steps are shown. ▶ plays them; the arrow keys go from one to the next.`
    : `step ${cells[0]} of ${moments.length}, ${cells[1]}: ${cells[2]}; ${cells[3]}`;
  byId("sentence").textContent = sentence;
  byId("moment").value = moment;
  byId("moment").setAttribute("aria-valuetext", sentence);
  byId("back").disabled = byId("first").disabled = !moment;
  byId("next").disabled = byId("last").disabled = moment === moments.length;
  return node;
}

function go(moment) {
  state.moment = Math.min(moments.length, Math.max(0, moment));
  state.started = true;
  const node = showMoment();
  if (node) bringIntoView(node);
}

function play(on) {
  clearInterval(state.timer);
  state.timer = 0;
  if (on) {
    if (state.moment === moments.length) go(0);
    state.timer = setInterval(() => state.moment < moments.length ? go(state.moment + 1) : play(false), 1000);
  }
  byId("play").textContent = on ? "⏸\ufe0e Pause" : "▶\ufe0e Play";
  byId("play").setAttribute("aria-label", on ? "pause" : "play");
}

// ---- folding ----

function toggle(g) {
  state.open.has(g) ? state.open.delete(g) : state.open.add(g);
  draw("g" + g);
}

function foldAll(open) {
  state.open = new Set(groups.keys());
  if (!open) state.open = new Set([0]);
  draw();
  fit(0.8);
}

// ---- search ----

const plain = (text) => text.normalize("NFKC").toLowerCase();
const findable = [
  ...groups.map((group, g) => ({ key: "g" + g, text: group.name, around: group.parent, place: group.steps[0] - 0.7 })).filter((_, g) => groups[g].kind === "module"),
  ...steps.map((step, s) => ({ key: stepKey(s), text: `${step.operation} ${values[step.output].name}`, around: step.group, place: s })),
  ...values.map((value, v) => ({ key: leafKey(v), text: value.name, around: value.group, place: (value.uses[0]?.[0] ?? 0) - 0.5 })).filter((_, v) => values[v].step === null),
].map((entry) => ({ ...entry, text: plain(entry.text) })).sort((a, b) => a.place - b.place);

function find(hits) {
  state.base ??= new Set(state.open);
  state.hits = hits, state.hit = 0;
  reveal();
}

function reveal() {
  const hit = state.hits[state.hit];
  state.open = new Set(state.base);
  for (let g = hit?.around ?? null; g !== null; g = groups[g].parent) state.open.add(g);
  draw();
  if (hit) bringIntoView(elements.get(hit.key));
}

function showHits() {
  const shown = new Set(state.hits.map(({ key }) => key));
  for (const [key, element] of elements) element.classList.toggle("found", shown.has(key));
  for (const hit of state.hits) if (closed[hit.around] >= 0) elements.get("g" + closed[hit.around]).classList.add("found");
  const current = state.hits[state.hit];
  if (current) elements.get(current.key)?.classList.add("current");
  const query = byId("search").value.trim();
  byId("hits").textContent = state.hits.length ? `${state.hit + 1} of ${state.hits.length}` : query ? "not found" : "";
}

byId("search").addEventListener("input", () => {
  const query = plain(byId("search").value.trim());
  if (query) return find(findable.filter(({ text }) => text.includes(query)));
  if (state.base) state.open = state.base;
  state.base = null, state.hits = [];
  draw();
});
byId("search").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !state.hits.length) return;
  state.hit = (state.hit + (event.shiftKey ? state.hits.length - 1 : 1)) % state.hits.length;
  reveal();
});

const bad = values.flatMap((value, v) => value.bad ? [value.step === null ? leafKey(v) : stepKey(value.step)] : []);
const alarms = findable.filter(({ key }) => bad.includes(key));
if (bad.length) {
  byId("alarm").hidden = false;
  byId("alarm").textContent = `⚠\ufe0e ${bad.length === 1 ? "1 value has" : `${bad.length} values have`} numbers that are not finite`;
  byId("alarm").addEventListener("click", () => {
    if (state.hits === alarms) state.hit = (state.hit + 1) % alarms.length, reveal();
    else byId("search").value = "", find(alarms);
  });
}

// ---- the card of a node ----

function cardOf(key) { // a heading, and rows of a term and its lines
  const i = +key.slice(1);
  if (key[0] === "v") return values[i].card;
  const [heading, ...lines] = steps[i].card;
  const passes = momentsOf[i].map((m) => [...rows[m].cells].map((cell) => cell.textContent)).map((cells) => [cells[1], cells[3].split("; ")]);
  return [heading, ...passes, ...lines];
}
let hiding = 0, carded = null;
function showCard(node) {
  clearTimeout(hiding);
  carded = node;
  if (node.dataset.key[0] === "g") return hideCard();
  const [heading, ...lines] = cardOf(node.dataset.key);
  const list = document.createElement("dl");
  for (const [term, text] of lines) {
    const name = document.createElement("dt"), content = document.createElement("dd");
    name.textContent = term, content.textContent = text.join("\n"), content.className = term.split(" ")[0];
    list.append(name, content);
  }
  const title = document.createElement("p");
  title.textContent = heading;
  card.replaceChildren(title, list);
  card.hidden = false;
  placeCard();
}
function placeCard() { // below its node, or above it
  const r = carded.getBoundingClientRect(), height = card.offsetHeight, width = card.offsetWidth;
  const top = r.bottom + 6 + height < innerHeight ? r.bottom + 6 : Math.max(6, r.top - height - 6);
  card.style.top = `${top}px`;
  card.style.left = `${Math.max(6, Math.min(innerWidth - width - 6, (r.left + r.right - width) / 2))}px`;
}
function hideCard() { card.hidden = true; }
const hideSoon = () => { clearTimeout(hiding); hiding = setTimeout(hideCard, 250); };
const nodeAt = (event) => event.target.closest?.(".node");

function light(node, on) {
  for (const edge of view.querySelectorAll(on ? `path[data-from="${node.dataset.key}"], path[data-to="${node.dataset.key}"]` : ".lit")) edge.classList.toggle("lit", on);
}
view.addEventListener("pointerover", (event) => {
  const node = nodeAt(event);
  if (node && !drag) showCard(node), light(node, true);
});
view.addEventListener("pointerout", (event) => { if (nodeAt(event)) hideSoon(), light(null, false); });
view.addEventListener("focusin", (event) => { if (nodeAt(event)?.matches(":focus-visible")) showCard(nodeAt(event)), bringIntoView(nodeAt(event)); });
view.addEventListener("focusout", hideSoon);
for (const target of [view, window]) target.addEventListener("scroll", () => card.hidden || placeCard());
card.addEventListener("pointerenter", () => clearTimeout(hiding));
card.addEventListener("pointerleave", hideSoon);
view.addEventListener("click", (event) => {
  const node = nodeAt(event);
  if (dragged || !node || getSelection().type === "Range") return;
  if (node.dataset.key[0] === "g") hideCard(), toggle(+node.dataset.key.slice(1));
  else showCard(node);
});

// ---- keys and buttons ----

addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === "Escape") return hideCard();
  if (target.matches("input[type=search], .scroll")) return;
  const group = target.closest?.(".node.group");
  const actions = {
    ArrowRight: () => go(state.moment + 1), ArrowLeft: () => go(state.moment - 1), Home: () => go(0), End: () => go(moments.length),
    "+": () => zoom(state.scale * 1.25), "-": () => zoom(state.scale / 1.25), 0: () => fit(0),
  };
  if (group && (key === "Enter" || key === " ")) actions[key] = () => toggle(+group.dataset.key.slice(1));
  else if (!target.matches("button, summary, input[type=checkbox]")) actions[" "] = () => play(!state.timer);
  if (!actions[key]) return;
  event.preventDefault();
  if (key.startsWith("Arrow") || key === "Home" || key === "End") play(false);
  actions[key]();
});
const press = { first: () => go(0), back: () => go(state.moment - 1), next: () => go(state.moment + 1), last: () => go(moments.length) };
for (const [id, action] of Object.entries(press)) byId(id).addEventListener("click", () => { play(false); action(); });
byId("play").addEventListener("click", () => play(!state.timer));
byId("moment").max = moments.length;
byId("moment").addEventListener("input", () => { play(false); go(+byId("moment").value); });
byId("in").addEventListener("click", () => zoom(state.scale * 1.25));
byId("out").addEventListener("click", () => zoom(state.scale / 1.25));
byId("fit").addEventListener("click", () => fit(0));
byId("open").addEventListener("click", () => foldAll(true));
byId("fold").addEventListener("click", () => foldAll(false));
for (const id of ["local", "roles"]) byId(id).addEventListener("change", () => { showLegend(); draw(); });
addEventListener("resize", () => zoom(state.scale));
for (const row of rows) row.addEventListener("click", () => { if (getSelection().type !== "Range") play(false), go(row.sectionRowIndex + 1); });

const present = new Set(bad.length ? ["bad"] : []);
for (const { step, kind } of values) if (step === null) present.add(kind);
for (const { kind } of groups.slice(1)) present.add(kind).add("group");
function showLegend() {
  byId("local").checked ? present.add("local") : present.delete("local");
  for (const item of document.querySelectorAll("[data-kind]")) item.hidden = !present.has(item.dataset.kind);
}
document.querySelector(".folds").hidden = groups.length === 1;
showLegend();
draw();
fit(0.8);
view.scrollTo({ left: 0, top: (view.scrollHeight - view.clientHeight) / 2, behavior: "instant" });
