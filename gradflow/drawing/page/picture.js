// The picture: the graph's data, what of it is visible, the sizes of what is drawn, and its drawing.

const { groups, values, steps, outputs, moments } = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const view = byId("view"), card = byId("card");
const PAD = 16, HEAD = 28, RADIUS = 17, LINE = 15;

const state = { open: new Set(), moment: moments.length, started: false, scale: 1, hits: [], hit: 0, base: null, timer: 0 };
groups.forEach((group, i) => group.open && state.open.add(i));
const inside = groups.map(() => ({ groups: [], steps: [], leaves: [] }));
groups.forEach((group, i) => i && inside[group.parent].groups.push(i));
steps.forEach((step, i) => inside[step.group].steps.push(i));
values.forEach((value, i) => { value.uses = []; if (value.step === null) inside[value.group].leaves.push(i); });
steps.forEach((step, s) => step.inputs.forEach((v, k) => values[v].uses.push([s, k])));

// ---- text ----

const pen = document.createElement("canvas").getContext("2d");
const family = getComputedStyle(document.body).fontFamily;
const fonts = { label: `12px ${family}`, full: "11px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace", name: `600 12px ${family}` };
const widths = new Map();
function widthOf(text, kind = "label") {
  const key = kind + text;
  if (!widths.has(key)) pen.font = fonts[kind], widths.set(key, pen.measureText(text).width);
  return widths.get(key);
}
function shortened(text, most = 170) {
  if (widthOf(text, "name") <= most) return text;
  const letters = [...new Intl.Segmenter().segment(text)].map((part) => part.segment); // without its middle
  const cut = (n) => [...letters.slice(0, Math.ceil(n / 2)), "…", ...letters.slice(letters.length - (n >> 1))].join("");
  let n = Math.min(letters.length - 1, 80);
  while (n > 1 && widthOf(cut(n), "name") > most) n--;
  return cut(n);
}
const kindOf = (line) => /^ *\[/.test(line) ? "full" : line.startsWith("⚠") ? "name" : "label";
const spansOf = (lines, tone) => lines.map((line) => [[kindOf(line), line, tone]]);
const widest = (lines) => Math.max(0, ...lines.map((spans) => spans.reduce((sum, [kind, text]) => sum + widthOf(text, kind), 0)));

// ---- what is visible, and the edges of each unfolded group ----

let closed; // for each group the outermost folded group around it, or -1
const leafKey = (v) => "v" + v, stepKey = (s) => "s" + s;
const shownAs = (group, key) => closed[group] < 0 ? key : "g" + closed[group];
const stepShown = (s) => shownAs(steps[s].group, stepKey(s));
const sourceShown = (v) => values[v].step === null ? shownAs(values[v].group, leafKey(v)) : stepShown(values[v].step);

function chain(group) { // the unfolded groups around what is shown in a group, the innermost first
  let g = closed[group] < 0 ? group : groups[closed[group]].parent;
  const list = [];
  for (; g !== null; g = groups[g].parent) list.push(g);
  return list;
}

function route() {
  closed = [];
  groups.forEach((group, i) => closed.push(group.parent !== null && closed[group.parent] >= 0 ? closed[group.parent] : state.open.has(i) || !i ? -1 : i));
  const levels = groups.map(() => ({ edges: new Map(), ins: new Set(), outs: new Set() }));
  const leaving = new Map();
  values.forEach((value, v) => {
    if (!value.uses.length) return;
    const source = sourceShown(v);
    const up = chain(value.step === null ? value.group : steps[value.step].group);
    for (const [s, k] of value.uses) {
      const target = stepShown(s);
      if (source === target) continue;
      if (source[0] === "g") leaving.set(source, (leaving.get(source) ?? new Set()).add(v));
      const add = (level, from, to) => {
        const key = `${from.key}:${from.port}>${to.key}:${to.port}`;
        if (!levels[level].edges.has(key)) levels[level].edges.set(key, { from, to, values: new Set() });
        levels[level].edges.get(key).values.add(v);
      };
      const down = chain(steps[s].group);
      const common = up.find((g) => down.includes(g));
      let end = { key: source, port: "out" };
      for (const g of up.slice(0, up.indexOf(common))) {
        levels[g].outs.add(v);
        add(g, end, { key: "out" + v, port: 0 });
        end = { key: "g" + g, port: v };
      }
      let level = common;
      for (const g of down.slice(0, down.indexOf(common)).reverse()) {
        levels[g].ins.add(v);
        add(level, end, { key: "g" + g, port: v });
        end = { key: "in" + v, port: 0 };
        level = g;
      }
      add(level, end, { key: target, port: target[0] === "s" ? k : "in" });
    }
  });
  return { levels, leaving };
}

// ---- sizes ----

function labelled(item, v, named) { // the lines above and below the edge that leaves an item
  const value = values[v];
  item.value = v;
  item.above = spansOf(value.forward, "forward");
  if (named) {
    const name = value.name ? ["name", shortened(value.name)] : ["label", shortened(value.label), "muted"];
    if (item.above.length === 1 && kindOf(value.forward[0]) !== "full") item.above[0] = [name, ["label", " = ", "muted"], ...item.above[0]];
    else item.above.unshift([name]);
  }
  item.below = value.gradient.map(([from, to, lines]) => ({ from, to, lines: spansOf(lines, "gradient") }));
  item.strip = Math.max(24, ...[item.above, ...item.below.map(({ lines }) => lines)].map((lines) => widest(lines) + 14));
  if (outputs.includes(v)) item.strip += 12, item.output = true;
}

function sized(item, up, down) {
  item.up = Math.max(up, (item.above?.length ?? 0) * LINE + 5);
  item.down = Math.max(down, ...(item.below ?? []).map(({ lines }) => lines.length * LINE + 5));
  item.w = item.left + item.body + item.strip;
  item.h = item.up + item.down;
  item.out = () => item.up;
  return item;
}

function stepItem(s) {
  const step = steps[s], local = byId("local").checked;
  const item = { key: stepKey(s), order: s, step, left: 8, ports: [] };
  const notes = step.inputs.map((_, k) => ({ local: local ? step.local[k] : "", received: step.received[k] }));
  const texts = notes.flatMap(({ local, received }) => [local, ...received.map((part) => part[2])]).filter(Boolean);
  const noted = texts.length > 0;
  if (noted) item.left = 16 + Math.max(...texts.map((text) => widthOf(text)));
  item.notes = notes;
  item.wide = step.symbol.length > 3 || step.inputs.length > 2;
  item.shape = item.wide ? Math.max(widthOf(step.symbol) + 20, 2 * RADIUS) : 2 * RADIUS;
  item.role = byId("roles").checked ? step.role : "";
  item.body = Math.max(item.shape, widthOf(item.role));
  labelled(item, step.output, true);
  const space = noted ? 2 * LINE + 2 : step.inputs.length > 2 ? 11 : 16;
  const spread = (step.inputs.length - 1) / 2 * space;
  const free = noted ? LINE : 4;
  item.half = item.wide ? Math.max(RADIUS, spread + 6) : RADIUS;
  sized(item, Math.max(item.half, spread + free), Math.max(item.role ? item.half + LINE : item.half, spread + free));
  item.ports = step.inputs.map((_, k) => item.up - spread + k * space);
  item.in = (k) => item.ports[k];
  return item;
}

function leafItem(v) {
  const value = values[v], name = value.bare ? value.label : shortened(value.name || value.label);
  const item = { key: leafKey(v), leaf: true, order: (value.uses[0]?.[0] ?? steps.length) - 0.5, left: 0, name };
  item.body = widthOf(name, "name") + 18;
  if (value.bare) item.value = v, item.strip = 0;
  else labelled(item, v, false);
  return sized(item, 12, 12);
}

const spanOf = ({ steps: [first, last] }) => `${first + 1} to ${last + 1}`;

function foldedItem(g, leaving) {
  const group = groups[g], out = [...leaving.get("g" + g) ?? []], count = group.steps[1] - group.steps[0] + 1;
  const item = { key: "g" + g, order: group.steps[0], group: g, left: 8, strip: 0, name: shortened(group.name, 200) };
  item.detail = count === 1 ? "1 step" : `${count.toLocaleString("en")} steps: ${spanOf(group)}`;
  item.body = Math.max(widthOf(item.name, "name"), widthOf(item.detail)) + 34;
  if (out.length === 1) labelled(item, out[0], true);
  else if (out.length) item.above = [[["label", `${out.length} values`, "muted"]]], item.strip = widest(item.above) + 14;
  sized(item, 25, 25);
  item.in = () => item.up;
  return item;
}

function openItem(g, routes) {
  const box = arrange(g, routes), group = groups[g];
  const item = { key: "g" + g, order: group.steps[0], group: g, box, name: shortened(group.name, Math.max(150, box.w - 150)) };
  if (group.kind === "steps") item.name += ` (${spanOf(group)})`;
  item.w = Math.max(box.w + 2 * PAD, widthOf(item.name, "name") + 44);
  item.h = box.h + HEAD + PAD;
  item.in = (v) => HEAD + box.ports.get("in" + v).y;
  item.out = (v) => HEAD + box.ports.get("out" + v).y;
  return item;
}

function arrange(g, routes) {
  const { edges, ins, outs } = routes.levels[g], here = inside[g];
  const items = [
    ...here.leaves.map(leafItem),
    ...here.steps.map(stepItem),
    ...here.groups.map((i) => state.open.has(i) ? openItem(i, routes) : foldedItem(i, routes.leaving)),
  ];
  const ports = new Map();
  for (const [side, set] of [["in", ins], ["out", outs]]) for (const v of set) {
    const port = { key: side + v, side, dummy: true, w: 0, h: 1, order: v, in: () => 0, out: () => 0 };
    ports.set(port.key, port), items.push(port);
  }
  const found = new Map(items.map((item) => [item.key, item]));
  const lines = [...edges.values()].map(({ from, to, values: shown }) => {
    const a = found.get(from.key), b = found.get(to.key);
    b.fed = true;
    return { from: a, fromY: a.out(from.port), to: b, toY: b.in(to.port), values: [...shown] };
  });
  return { items: items.filter((item) => !item.side), ports, lines, ...layoutLevel(items, lines) };
}

// ---- drawing ----

let elements = new Map(), timed = [];

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const at = (from, element, to = null) => (timed.push([element, from, to ?? Infinity]), element);
const arrow = (x, y) => svg("path", { class: "arrow", d: `M${x} ${y}l-7 -3.5v7z` });

function textLine(spans, x, y, anchor) {
  const look = ([kind, , tone]) => tone ? `${kind} ${tone}` : kind;
  if (spans.length === 1) return svg("text", { x, y, "text-anchor": anchor, class: look(spans[0]) }, spans[0][1]);
  return svg("text", { x, y, "text-anchor": anchor }, ...spans.map((span) => svg("tspan", { class: look(span) }, span[1])));
}

function drawLabels(item, into) {
  const x0 = item.left + item.body, middle = x0 + (item.strip - (item.output ? 12 : 0)) / 2, y = item.up;
  const value = values[item.value]; // none behind a group that several values leave
  if (item.strip) into.append(at(value?.at ?? 0, svg("path", { class: "edge strip", d: `M${x0 - (item.body - (item.shape ?? item.body)) / 2} ${y}H${item.w}` })));
  if (item.output) into.append(at(value.at, arrow(item.w, y)));
  const draw = (lines, top, from, to) => {
    const full = lines.flat().some(([kind]) => kind === "full");
    const start = full ? middle - widest(lines) / 2 : middle;
    lines.forEach((spans, i) => {
      const line = top + i * LINE, text = textLine(spans, start, line, full ? "start" : "middle");
      if (spans.some(([, words]) => words.startsWith("⚠"))) {
        const w = widest([spans]) + 8, left = full ? start - 4 : middle - w / 2;
        into.append(at(from, svg("rect", { class: "alarm", x: left, y: line - 11.5, width: w, height: 15, rx: 3 }), to));
        text.classList.add("alarmed");
      }
      into.append(at(from, text, to));
    });
  };
  draw(item.above ?? [], y - 5 - ((item.above?.length ?? 0) - 1) * LINE, value?.at ?? 0);
  for (const { lines, from, to } of item.below ?? []) draw(lines, y + 13, from, to);
}

function describe(item) {
  if (item.group !== undefined) return `${item.name}, ${item.detail ?? "open"}`;
  const [heading, ...lines] = cardOf(item.key);
  return [heading, ...lines.slice(0, 3).map(([term, text]) => `${term}: ${text.join(" ")}`)].join("; ");
}

function nodeFor(item, x, y, kind, role) {
  const node = svg("g", { class: `node ${kind}`, tabindex: 0, role, "data-key": item.key, "aria-label": describe(item), transform: `translate(${x} ${y})` },
    svg("rect", { class: "hit", width: item.w, height: item.h }));
  elements.set(item.key, node);
  return node;
}

function drawStep(item, x, y) {
  const { step } = item, node = nodeFor(item, x, y, "step", "img"), cx = item.left + item.body / 2, cy = item.up;
  item.ports.forEach((py, k) => {
    const value = values[step.inputs[k]], dy = item.wide ? Math.abs(py - cy) : Math.min(Math.abs(py - cy), RADIUS - 2);
    const end = item.wide ? cx - item.shape / 2 : cx - Math.sqrt(RADIUS ** 2 - dy ** 2);
    const to = cy + Math.sign(py - cy) * dy, start = item.left - 8;
    node.append(at(value.at, svg("path", { class: "edge stub", d: `M0 ${py}H${start}` + (to === py ? `H${end}` : `L${end} ${to}`) })));
    node.append(at(value.at, arrow(end, to)));
    const { local, received } = item.notes[k];
    if (local) node.append(at(value.at, svg("text", { class: "local", x: 2, y: py - 4 }, local)));
    for (const [from, to, text] of received) node.append(at(from, svg("text", { class: "gradient", x: 2, y: py + 13 }, text), to));
  });
  drawLabels(item, node);
  node.append(item.wide
    ? svg("rect", { class: "shape", x: cx - item.shape / 2, y: cy - item.half, width: item.shape, height: 2 * item.half, rx: 8 })
    : svg("circle", { class: "shape", cx, cy, r: RADIUS }));
  node.append(svg("text", { class: item.wide ? "word" : step.symbol.length > 2 ? "symbol long" : "symbol", x: cx, y: cy + (step.symbol.length > 2 ? 4 : 5.5), "text-anchor": "middle" }, step.symbol));
  if (item.role) node.append(svg("text", { class: "role", x: cx, y: cy + item.half + 13, "text-anchor": "middle" }, item.role));
  at(values[step.output].at, node);
  return node;
}

function drawLeaf(item, x, y) {
  const value = values[item.value], node = nodeFor(item, x, y, "leaf", "img"), height = 24;
  const round = value.kind === "parameter" ? 4 : height / 2;
  node.append(svg("rect", { class: `shape ${value.kind}`, x: 0.5, y: item.up - height / 2, width: item.body - 1, height, rx: round }));
  node.append(svg("text", { class: value.name ? "name" : value.bare ? "forward" : "muted", x: item.body / 2, y: item.up + 4, "text-anchor": "middle" }, item.name));
  drawLabels(item, node);
  return node;
}

function drawFolded(item, x, y) {
  const node = nodeFor(item, x, y, "group folded", "button"), top = item.up - 22, width = item.body - 5;
  node.setAttribute("aria-expanded", "false");
  if (item.fed) node.append(svg("path", { class: "edge", d: `M0 ${item.up}H8` }), arrow(8, item.up));
  for (const shift of [5, 0]) node.append(svg("rect", { class: `shape folded ${groups[item.group].kind}`, x: 8 + shift, y: top + shift, width, height: 40, rx: 6 }));
  node.append(
    svg("text", { class: "name", x: 32, y: top + 17 }, item.name),
    svg("path", { class: "toggle", d: `M16 ${top + 8}l7 4.5l-7 4.5z` }),
    svg("text", { class: "muted", x: 32, y: top + 32 }, item.detail));
  drawLabels(item, node);
  return node;
}

function drawOpen(item, x, y, into) {
  const { kind } = groups[item.group];
  into.append(svg("rect", { class: `box ${kind}`, x, y, width: item.w, height: item.h, rx: 8 }));
  drawLevel(item.box, x + PAD, y + HEAD, into);
  const head = svg("g", { class: "node group opened", tabindex: 0, role: "button", "aria-expanded": "true", "aria-label": describe(item), "data-key": item.key, transform: `translate(${x} ${y})` },
    svg("rect", { class: "hit", width: Math.min(item.w, widthOf(item.name, "name") + 44), height: HEAD }),
    svg("path", { class: "toggle", d: "M12 11h9l-4.5 7z" }),
    svg("text", { class: "name", x: 28, y: 19 }, item.name));
  elements.set(item.key, head);
  into.append(head);
}

function drawLevel(box, ox, oy, into) {
  for (const { from, to, points, values: carried } of box.lines) {
    if (from.side) points[0][0] = -PAD;
    if (to.side) points.at(-1)[0] = box.w + PAD + (box.extra ?? 0);
    const p = points.map(([x, y]) => [+(x + ox).toFixed(1), +(y + oy).toFixed(1)]);
    let d = `M${p[0]}H${p[1][0]}`;
    for (let i = 2; i < p.length; i += 2) {
      const [x0, y0] = p[i - 1], [x1, y1] = p[i], middle = (x0 + x1) / 2;
      d += `C${middle} ${y0} ${middle} ${y1} ${x1} ${y1}H${p[i + 1][0]}`;
    }
    const moment = Math.min(...carried.map((v) => values[v].at));
    const look = { class: carried.length > 1 ? "edge several" : "edge", d, "data-from": from.key, "data-to": to.key };
    if (carried.some((v) => values[v].gradient.length)) look["data-gradient"] = "";
    into.append(at(moment, svg("path", look)));
  }
  for (const item of box.items) if (item.box) drawOpen(item, item.x + ox, item.y + oy, into);
  for (const item of box.items) {
    if (item.box) continue;
    const draw = item.step ? drawStep : item.leaf ? drawLeaf : drawFolded;
    into.append(draw(item, item.x + ox, item.y + oy));
  }
}
