"use strict";
// A layered layout, left to right (Sugiyama, Tagawa and Toda 1981): layers by longest path, dummies on edges that cross
// layers, orders by barycenters, and coordinates by least squares.
//
// items: {w, h, order, leaf, side}: side is "in" or "out" for the ports of a group's left and right border.
// edges: {from, fromY, to, toY}: the heights are those of the ports, from the top of their items.
// Sets x and y of the items and the points of the edges; returns the width and height of it all.

const GAP = { item: 16, dummy: 9 };

function layoutLevel(items, edges) {
  const layers = assignLayers(items, edges);
  const segments = splitEdges(layers, edges);
  for (const layer of layers) {
    layer.sort((a, b) => a.order - b.order);
    place(layer, (node) => [node.y ?? 0, 1]);
  }
  orderLayers(layers, segments);
  for (let round = 0; round < 6; round++) sweep(layers, ["before"], false), sweep(layers, ["after"], false);
  for (let round = 0; round < 3; round++) sweep(layers, ["before", "after"], false);
  return setCoordinates(layers, segments, edges);
}

function assignLayers(items, edges) {
  for (const item of items) Object.assign(item, { layer: item.side ? 0 : 1, incoming: [], outgoing: [] });
  for (const edge of edges) edge.to.incoming.push(edge), edge.from.outgoing.push(edge);
  const sorted = items.filter((item) => !item.side).sort((a, b) => a.leaf === b.leaf ? a.order - b.order : a.leaf ? -1 : 1);
  for (const item of sorted) for (const { from } of item.incoming) item.layer = Math.max(item.layer, from.layer + 1);
  const last = Math.max(1, ...sorted.map((item) => item.layer));
  for (const item of sorted) {
    const later = item.outgoing.map(({ to }) => to.side ? last + 1 : to.layer);
    if (!item.incoming.length && later.length) item.layer = Math.min(...later) - 1; // close to its first use
  }
  for (const item of items) if (item.side === "out") item.layer = last + 1;
  const layers = Array.from({ length: last + 2 }, () => []);
  for (const item of items) layers[item.layer].push(item);
  return layers;
}

// Edges from one port share a trunk of dummies up to where they part.
function splitEdges(layers, edges) {
  const trunks = new Map();
  const segments = layers.map(() => []);
  const link = (a, aY, b, bY) => {
    const segment = { a, aY, b, bY, weight: a.leaf ? 1 : a.dummy && b.dummy ? 8 : 4 };
    a.after.push(segment), b.before.push(segment);
    segments[a.layer].push(segment);
  };
  for (const layer of layers) for (const item of layer) item.before = [], item.after = [];
  for (const edge of edges) {
    const { from, to } = edge;
    if (!trunks.has(from)) trunks.set(from, new Map());
    const ports = trunks.get(from);
    if (!ports.has(edge.fromY)) ports.set(edge.fromY, []);
    const trunk = ports.get(edge.fromY);
    for (let layer = from.layer + 1 + trunk.length; layer < to.layer; layer++) {
      const dummy = { dummy: true, w: 0, h: 1, layer, order: from.order + 0.5, before: [], after: [] };
      link(trunk.at(-1) ?? from, trunk.length ? 0 : edge.fromY, dummy, 0);
      trunk.push(dummy), layers[layer].push(dummy);
    }
    edge.via = trunk.slice(0, Math.max(0, to.layer - from.layer - 1));
    link(edge.via.at(-1) ?? from, edge.via.length ? 0 : edge.fromY, to, edge.toY);
  }
  return segments;
}

// Moves the items of a layer, in their order, as close as they fit to where they want to be: isotonic regression.
function place(layer, wanted) {
  const blocks = [];
  let offset = 0, before = null;
  for (const node of layer) {
    if (before) offset += before.h + (before.dummy && node.dummy ? GAP.dummy : GAP.item);
    const [y, weight] = wanted(node);
    blocks.push({ sum: (y - offset) * weight, weight, nodes: [[node, offset]] });
    while (blocks.length > 1) {
      const [a, b] = blocks.slice(-2);
      if (a.sum / a.weight < b.sum / b.weight) break;
      a.sum += b.sum, a.weight += b.weight;
      for (const pair of b.nodes) a.nodes.push(pair);
      blocks.pop();
    }
    before = node;
  }
  for (const { sum, weight, nodes } of blocks) for (const [node, at] of nodes) node.y = sum / weight + at;
}

function sweep(layers, sides, reorder) {
  const fromLeft = sides[0] === "before";
  for (let i = 0; i < layers.length; i++) {
    const layer = layers[fromLeft ? i : layers.length - 1 - i];
    for (const node of layer) {
      let sum = 0, weight = 0;
      for (const side of sides) for (const s of node[side]) {
        const other = side === "before" ? s.a.y + s.aY - s.bY : s.b.y + s.bY - s.aY;
        sum += s.weight * other, weight += s.weight;
      }
      node.wish = weight ? [sum / weight, weight] : [node.y, 0.1];
    }
    if (reorder) layer.sort((a, b) => a.wish[0] + a.h / 2 - b.wish[0] - b.h / 2);
    place(layer, (node) => node.wish);
  }
}

function orderLayers(layers, segments) {
  let least = Infinity, best = null;
  for (let round = 0; round < 8 && least; round++) {
    for (const side of ["before", "after"]) {
      sweep(layers, [side], true);
      const crossings = segments.reduce((sum, list) => sum + countCrossings(list), 0);
      if (crossings < least) least = crossings, best = layers.map((layer) => layer.map((node) => [node, node.y]));
    }
  }
  best.forEach((layer, i) => {
    layers[i].splice(0, Infinity, ...layer.map(([node]) => node));
    for (const [node, y] of layer) node.y = y;
  });
}

function countCrossings(segments) {
  if (segments.length > 400) return segments.length; // too many to compare all pairs
  const ends = segments.map((s) => [s.a.y + s.aY, s.b.y + s.bY]);
  let count = 0;
  for (let i = 0; i < ends.length; i++) for (let j = 0; j < i; j++)
    if ((ends[i][0] - ends[j][0]) * (ends[i][1] - ends[j][1]) < 0) count++;
  return count;
}

function setCoordinates(layers, segments, edges) {
  const top = Math.min(0, ...layers.flat().map((node) => node.y));
  let x = 0, height = 0;
  layers.forEach((layer, i) => {
    const width = Math.max(0, ...layer.map((node) => node.w));
    for (const node of layer) {
      node.y -= top;
      node.x = node.leaf ? x + width - node.w : x;
      node.columnRight = x + width;
      node.columnLeft = x;
      height = Math.max(height, node.y + node.h);
    }
    if (layer.length) x += width;
    const steepest = segments[i].reduce((most, s) => Math.max(most, Math.abs(s.a.y + s.aY - s.b.y - s.bY)), 0);
    if (layer.length && i < layers.length - 1) x += Math.min(160, 22 + steepest / 6);
  });
  for (const edge of edges) {
    const { from, to } = edge;
    const points = [[from.x + from.w, from.y + edge.fromY], [from.columnRight, from.y + edge.fromY]];
    for (const dummy of edge.via) points.push([dummy.columnLeft, dummy.y], [dummy.columnRight, dummy.y]);
    points.push([to.columnLeft, to.y + edge.toY], [to.x, to.y + edge.toY]);
    edge.points = points;
  }
  return { w: x, h: height };
}
