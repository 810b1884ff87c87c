// The console: asks the coordinator once a second how it goes, and draws that. No library, no build step.
'use strict';

// Without the key that the page's own address may carry: requests with one in their address are refused.
const HERE = new URL('console/state', location.origin + location.pathname);
const EVERY_MS = 1000, PATIENCE_MS = 5000, PHI = 0.5;
const $ = (id) => document.getElementById(id);
/** What is shown: the last overview, what is looked at, and the names of nodes by their numbers. */
const view = { overview: null, heard: 0, layer: null, focus: null, names: new Map(), colors: null, hits: new Map() };

// ─── words ───

const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const number = (n) => (n >= 1000 ? compact.format(n) : n >= 100 || Number.isInteger(n) ? String(Math.round(n)) : n.toFixed(1));
const count = (n, word) => `${n.toLocaleString('en')} ${word}${n === 1 ? '' : 's'}`;
const percent = (part) => `${Math.round(100 * part)} %`;
const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString('en-GB');
const name = (id) => view.names.get(id) ?? `n${id}`;
const names = (ids, most = 6) =>
  ids.slice(0, most).map(name).join(', ') + (ids.length > most ? ` and ${ids.length - most} more` : '');
const sum = (list, of = (x) => x) => list.reduce((total, x) => total + of(x), 0);
const largest = (list, of = (x) => x) => list.reduce((most, x) => Math.max(most, of(x)), 0);

function milliseconds(ms) {
  if (!ms) return ['–', ''];
  if (ms >= 10000) return [(ms / 1000).toFixed(0), 's'];
  if (ms >= 1000) return [(ms / 1000).toFixed(1), 's'];
  return [ms >= 100 ? ms.toFixed(0) : ms.toFixed(1), 'ms'];
}

function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  return s < 86400 ? `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min` : `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

// ─── elements ───

function put(parent, tag, options = {}, ...children) {
  const svg = parent instanceof SVGElement || tag === 'svg';
  const element = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  const { text, ...attributes } = options;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  parent.append(element);
  return element;
}

function bar(parent, part, kind = '') {
  const fill = put(put(parent, 'div', { class: `bar ${kind}` }), 'i');
  fill.style.width = `${Math.min(100, 100 * part)}%`;
}

const STATE = { ready: 'good', joining: '', draining: 'warn', silent: 'bad' };
const LEVEL = { info: '', warning: 'warn', error: 'bad' };

// ─── the head ───

function headline(o) {
  const p = o.placement, head = $('headline');
  head.replaceChildren();
  if (o.model) {
    const moe = o.model.moe_layers.length;
    put(head, 'b', { text: p.serving ? `plan ${p.serving} serves` : 'no plan serves yet' });
    head.append(p.target ? `, plan ${p.target} is prepared` : '', p.pinned ? ', pinned' : '');
    head.append(` · ${moe} MoE layers × ${o.model.experts} experts, top ${o.model.top_k}`);
  }
  const roles = ['gateway', 'attention', 'expert'].map((role) => [role, o.nodes.filter((n) => n.role === role).length]);
  head.append((o.model ? ' · ' : '') + roles.map(([role, n]) => (role === 'gateway' ? count(n, role) : `${n} ${role}`)).join(', '));
  head.append(` · leads for ${span(o.at - o.leads_since)}`);
  document.title = `amoe · ${p.serving ? `plan ${p.serving}` : 'no plan'}`;
}

function notice(text, kind = '') {
  const box = $('notice');
  if (box.textContent !== text) box.textContent = text;
  box.className = kind;
  box.hidden = !text;
}

function pulse(kind, text) {
  $('pulse').className = `chip ${kind}`;
  $('pulse-text').textContent = text;
}

// ─── tiles ───

function tiles(o) {
  const box = $('tiles'), history = o.history, last = history.at(-1) ?? {};
  const attention = o.nodes.filter((n) => n.role === 'attention');
  const blocks = sum(attention, (n) => n.kv_blocks), free = sum(attention, (n) => n.kv_blocks_free);
  const running = sum(attention, (n) => n.running), waiting = sum(attention, (n) => n.waiting);
  const peak = largest(history, (s) => s.tokens_per_s);
  const [next, nextUnit] = milliseconds(last.next_token_ms), [first, firstUnit] = milliseconds(last.first_token_ms);
  const of = (key) => history.map((s) => s[key] ?? 0);
  box.replaceChildren();
  tile(box, 'Tokens per second', number(last.tokens_per_s ?? 0), '', `peak ${number(peak)} in 3 min`, of('tokens_per_s'));
  tile(box, 'Time per token', next, nextUnit, 'from token to token', of('next_token_ms'));
  tile(box, 'First token', first, firstUnit, 'after arrival at a node', of('first_token_ms'));
  tile(box, 'Sequences', number(running), 'running', `${number(waiting)} waiting`, of('running'));
  tile(box, 'Queued for experts', number(last.pairs ?? 0), 'pairs', `${number(last.rows ?? 0)} rows on attention nodes`, of('pairs'));
  tile(box, 'KV cache', blocks ? percent(1 - free / blocks) : '–', blocks ? 'in use' : '', blocks ? `${number(free)} of ${number(blocks)} blocks free` : 'no attention node yet', null, blocks ? 1 - free / blocks : 0);
}

function tile(box, title, value, unit, more, line, part) {
  const card = put(box, 'div', { class: 'card tile' });
  put(card, 'h2', { text: title });
  put(put(card, 'p', { class: 'value', text: value }), 'small', { text: unit });
  put(card, 'p', { class: 'more', text: more, title: more });
  if (line) return spark(card, line);
  const level = put(card, 'svg', { viewBox: '0 0 100 38', preserveAspectRatio: 'none', 'aria-hidden': 'true' });
  put(level, 'rect', { class: 'spark-area', x: 0, y: 0, width: 100, height: 38 });
  put(level, 'rect', { x: 0, y: 0, width: 100 * part, height: 38, fill: 'var(--accent)', opacity: 0.55 });
}

function spark(card, line) {
  const svg = put(card, 'svg', { viewBox: '0 0 100 38', preserveAspectRatio: 'none', 'aria-hidden': 'true' });
  const most = largest(line) || 1, begin = 180 - line.length;
  const points = line.map((y, x) => `${((begin + x) / 179 * 100).toFixed(2)},${(36 - 32 * y / most).toFixed(2)}`);
  if (points.length < 2) return;
  put(svg, 'path', { class: 'spark-area', d: `M${points.join('L')}L100,38L${(begin / 179 * 100).toFixed(2)},38Z` });
  put(svg, 'path', { class: 'spark', d: `M${points.join('L')}` });
}

// ─── nodes and links ───

function flow(o) {
  const picture = $('flow-picture');
  const columns = ['gateway', 'attention', 'expert'].map((role) => o.nodes.filter((n) => n.role === role));
  const scrolled = picture.scrollTop;
  picture.replaceChildren();
  if (!o.nodes.length) return void put(picture, 'p', { class: 'empty', text: 'No node has joined yet.' });
  const most = largest(columns, (c) => c.length), wide = Math.max(360, picture.clientWidth);
  const step = Math.max(15, Math.min(72, 400 / most)), slim = step < 48, tall = 30 + step * most;
  const box = Math.min(200, wide * 0.27), height = Math.min(46, step - (slim ? step / 6 : 8));
  const svg = put(picture, 'svg', { viewBox: `0 0 ${wide} ${tall}`, height: tall, width: wide });
  const edges = put(svg, 'g', {}), boxes = put(svg, 'g', {}), at = new Map();
  columns.forEach((column, c) => {
    const x = [0, (wide - box) / 2, wide - box][c], top = 28 + (step * (most - column.length)) / 2;
    put(boxes, 'text', { class: 'title', x: x + 2, y: 13, text: ['Gateways', 'Attention nodes', 'Expert nodes'][c] });
    column.forEach((n, i) => {
      at.set(n.id, { x, y: top + step * i + height / 2 });
      node(boxes, n, x, top + step * i, box, height, slim);
    });
  });
  links(o, edges, at, columns, box);
  picture.scrollTop = scrolled;
}

function node(parent, n, x, y, wide, tall, slim) {
  const group = put(parent, 'g', { class: n.role });
  const doing = n.role === 'attention' ? `${number(n.tokens_per_s)} tokens/s` : n.role === 'expert' ? `${number(n.rows_per_s)} pairs/s` : n.address || '';
  put(group, 'rect', { x: x + 0.5, y: y + 0.5, width: wide - 1, height: tall - 1, rx: 6 });
  put(group, 'path', { class: 'edge-of', d: `M${x + 2.5},${y + 4}v${tall - 8}` });
  const dot = put(group, 'circle', { cx: x + wide - 13, cy: y + (slim ? tall / 2 : 15), r: Math.min(4, tall / 3.4) });
  dot.style.fill = `var(--${STATE[n.state] || 'muted'})`;
  put(group, 'text', { x: x + 13, y: y + (slim ? tall / 2 + 4 : 19), text: fit(n.name, wide - 34, 12), ...(tall < 14 ? { class: 'tiny' } : {}) });
  if (!slim) put(group, 'text', { class: 'sub', x: x + 13, y: y + 36, text: fit(doing, wide - 20) });
  const said = [`${n.name} (${n.role}), ${n.state}`, doing];
  if (n.role !== 'gateway') said.push(`busy ${percent(n.busy)}, ${number(n.rows_per_run)} ${n.role === 'expert' ? 'pairs' : 'rows'} a run`);
  if (n.role === 'expert') said.push(`runs ${n.leased} experts, holds ${n.serving_replicas} of ${n.slots}`);
  tipOn(group, () => said.join('\n'));
  group.addEventListener('mouseenter', () => focusOn(n.id));
  group.addEventListener('mouseleave', () => focusOn(null));
}

function links(o, parent, at, columns, box) {
  const curve = (a, b) => `M${a.x + box},${a.y}C${(a.x + box + b.x) / 2},${a.y} ${(a.x + box + b.x) / 2},${b.y} ${b.x},${b.y}`;
  for (const gateway of columns[0]) {
    for (const attention of columns[1]) put(parent, 'path', { class: 'edge faint', d: curve(at.get(gateway.id), at.get(attention.id)) });
  }
  const most = largest(o.links, (l) => l.answers_per_s), times = o.links.map((l) => l.answer_ms).sort((a, b) => a - b);
  const middle = times[Math.floor(times.length / 2)] ?? 0;
  const crowd = Math.min(1, 24 / o.links.length);
  for (const l of o.links) {
    const a = at.get(l.attention), e = at.get(l.expert);
    if (!a || !e) continue;
    const part = Math.sqrt(l.answers_per_s / most), late = l.answer_ms > 2 * middle + 1;
    const edge = put(parent, 'path', { class: `edge${late ? ' late' : ''}`, d: curve(a, e), 'stroke-width': (0.6 + 5 * part * Math.sqrt(crowd)).toFixed(2), opacity: (0.15 + 0.65 * part * Math.max(crowd, 0.4)).toFixed(2) });
    edge.dataset.ends = `${l.attention} ${l.expert}`;
    tipOn(edge, () => `${name(l.attention)} → ${name(l.expert)}\n${number(l.answers_per_s)} answers/s, ${milliseconds(l.answer_ms).join(' ')} each`);
  }
  $('flow-hint').textContent = o.links.length
    ? `${count(o.links.length, 'link')} in use: width by answers per second; the middle one answers in ${milliseconds(middle).join(' ')}, red ones take more than twice as long.`
    : o.report_ms ? 'No expert node was asked lately.' : 'Nodes do not report what they see (routing.lease_ms is 0), so links and loads are not known.';
  focusOn(view.focus);
}

function focusOn(id) {
  view.focus = id;
  const edges = document.querySelector('#flow svg > g');
  if (!edges) return;
  edges.setAttribute('class', id && edges.querySelector('[data-ends]') ? 'focused' : '');
  for (const edge of edges.children) edge.classList.toggle('hot', (edge.dataset.ends ?? '').split(' ').includes(String(id)));
}

// ─── canvases ───

/** The colours of the sheet, once per colour scheme. */
function colors() {
  if (view.colors) return view.colors;
  const style = getComputedStyle(document.documentElement), of = (key) => style.getPropertyValue(`--${key}`).trim();
  const stops = [0, 1, 2, 3, 4, 5].map((i) => of(`heat-${i}`).match(/[\da-f]{2}/gi).map((hex) => parseInt(hex, 16)));
  const heat = Array.from({ length: 65 }, (_, i) => {
    const place = (i / 64) * 5, low = Math.min(4, Math.floor(place)), part = place - low;
    return `rgb(${stops[low].map((from, c) => Math.round(from + part * (stops[low + 1][c] - from))).join(' ')})`;
  });
  const keys = ['text', 'muted', 'line', 'faint', 'card', 'accent', 'good', 'bad', 'attention', 'expert', 'heat-2'];
  view.colors = { heat, ...Object.fromEntries(keys.map((key) => [key, of(key)])) };
  return view.colors;
}

/** The colour of `value` on a scale that ends at `most`; small values are told apart better than large ones. */
const heat = (value, most) => colors().heat[most > 0 ? Math.round(64 * Math.min(1, Math.max(0, value / most) ** PHI)) : 0];

function draw(canvas, tall) {
  const wide = canvas.parentElement.clientWidth - parseFloat(getComputedStyle(canvas.parentElement).paddingLeft) * 2;
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(tall * ratio)) {
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(tall * ratio);
    canvas.style.height = `${tall}px`;
  }
  const pen = canvas.getContext('2d');
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, wide, tall);
  pen.font = `11px ${FONT}`;
  pen.textBaseline = 'middle';
  return { pen, wide };
}

const FONT = 'system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif';
const ruler = document.createElement('canvas').getContext('2d');

/** The text as far as it fits; of names the number at the end stays. */
function fit(text, most, size = 11) {
  ruler.font = `${size}px ${FONT}`;
  const [tail] = text.match(/[-.]?\d*$/);
  let [head, fits] = [text.slice(0, text.length - tail.length), text];
  while (head && ruler.measureText(fits).width > most) {
    head = head.slice(0, -1);
    fits = `${head}…${tail}`;
  }
  return fits;
}

function say(pen, text, x, y, color, align = 'left', most = Infinity) {
  pen.fillStyle = color;
  pen.textAlign = align;
  pen.fillText(most < Infinity ? fit(text, most) : text, x, y);
}

/** Where the columns of experts lie: to the left labels, to the right a bar per row. */
function grid(wide, columns) {
  const left = wide < 600 ? 62 : 104, right = wide < 600 ? 46 : 104;
  const cell = (wide - left - right) / columns;
  return { left, right, cell, gap: cell >= 4 ? 1 : 0, end: wide - right };
}

function ticks(pen, g, columns, y, first = 0) {
  const every = [1, 2, 4, 8, 16, 32, 64, 128].find((n) => n * g.cell >= 26) ?? 256;
  for (let i = 0; i < columns; i += every) say(pen, String(first + i), g.left + (i + 0.5) * g.cell, y, colors().muted, 'center');
}

function tail(pen, g, wide, y, tall, part, text, color) {
  const room = g.right - 46;
  if (room > 20) {
    pen.fillStyle = colors().faint;
    pen.fillRect(g.end + 10, y + tall * 0.2, room, tall * 0.6);
    pen.fillStyle = color;
    pen.fillRect(g.end + 10, y + tall * 0.2, room * Math.min(1, part), tall * 0.6);
  }
  if (tall >= 10) say(pen, text, wide, y + tall / 2 + 0.5, colors().muted, 'right');
}

// ─── experts ───

function placement(o) {
  const experts = o.nodes.filter((n) => n.role === 'expert'), p = o.placement, has = o.layers.length > 0;
  for (const id of ['layers', 'holders', 'load-legend']) $(id).hidden = !has;
  for (const id of ['layers-title', 'holders-title']) $(id).parentElement.hidden = !has;
  moves(o);
  if (!has) {
    $('placement-hint').textContent = o.model && experts.length ? 'No plan serves yet: the first is made when enough expert nodes have registered.' : 'No plan serves yet.';
    return;
  }
  const all = o.layers.flatMap((l) => l.experts), replicas = sum(all, (e) => e.nodes.length);
  const asked = sum(all, (e) => e.tokens_per_s), doubled = all.filter((e) => e.nodes.length > 1).length;
  $('placement-hint').textContent = `${count(replicas, 'replica')} of ${count(all.length, 'expert')} on ${count(experts.length, 'node')}` +
    `${doubled ? `, ${doubled.toLocaleString('en')} held by several` : ''}; ${number(asked)} (token, expert) pairs per second.`;
  const loads = o.layers.map((l) => nodeLoads(l, experts));
  const uneven = loads.map((load) => (sum(load) > 0 ? largest(load) * load.length / sum(load) : 0));
  if (!o.layers.some((l) => l.layer === view.layer)) view.layer = o.layers[Math.max(0, uneven.indexOf(largest(uneven)))].layer;
  layers(o, uneven);
  holders(o, experts);
  legend(o);
}

/** What each node is to run of a layer, per second. */
function nodeLoads(layer, experts) {
  const loads = new Map(experts.map((n) => [n.id, 0]));
  for (const e of layer.experts) {
    e.nodes.forEach((id, i) => loads.set(id, (loads.get(id) ?? 0) + (e.tokens_per_s * (e.percent[i] ?? 100)) / 100));
  }
  return experts.map((n) => loads.get(n.id));
}

const hottest = (o) => largest(o.layers, (l) => largest(l.experts, (e) => e.tokens_per_s));

function layers(o, uneven) {
  const canvas = $('layers'), columns = o.layers[0].experts.length, most = hottest(o), c = colors();
  const row = Math.max(7, Math.min(20, Math.floor(330 / o.layers.length)));
  const { pen, wide } = draw(canvas, row * o.layers.length + 22);
  pen.translate(0, 3);
  const g = grid(wide, columns), worst = Math.max(2, largest(uneven));
  o.layers.forEach((l, y) => {
    const top = y * row, chosen = l.layer === view.layer;
    l.experts.forEach((e, x) => {
      pen.fillStyle = heat(e.tokens_per_s, most);
      pen.fillRect(g.left + x * g.cell, top, g.cell - g.gap + (g.gap ? 0 : 0.4), row - 1);
    });
    const every = row >= 11 ? 1 : row >= 9 ? 2 : 4;
    if (chosen || (y % every === 0 && Math.abs(y - o.layers.findIndex((x) => x.layer === view.layer)) >= (every > 1 ? 2 : 0)))
      say(pen, `layer ${l.layer}`, g.left - 10, top + row / 2, chosen ? c.accent : c.muted, 'right', g.left - 12);
    tail(pen, g, wide, top, row - 1, (uneven[y] - 1) / (worst - 1), uneven[y] ? `${uneven[y].toFixed(2)}×` : '–', c.expert);
    if (chosen) {
      pen.strokeStyle = c.accent;
      pen.lineWidth = 1.5;
      pen.strokeRect(g.left - 1.5, top - 0.5, g.cell * columns + 2, row);
    }
  });
  ticks(pen, g, columns, row * o.layers.length + 11);
  const cell = (x, y) => {
    const l = o.layers[Math.floor((y - 3) / row)], e = l?.experts[Math.floor((x - g.left) / g.cell)];
    return l && e && x >= g.left ? { l, e, expert: Math.floor((x - g.left) / g.cell) } : null;
  };
  view.hits.set(canvas, {
    tip: (x, y) => { const hit = cell(x, y); return hit && expertSays(hit.l, hit.e, hit.expert); },
    click: (x, y) => { const l = o.layers[Math.floor((y - 3) / row)]; if (l) choose(l.layer); },
  });
}

function expertSays(layer, e, expert) {
  const shares = e.nodes.map((id, i) => name(id) + (e.percent.length ? ` ${e.percent[i]} %` : ''));
  return `layer ${layer.layer}, expert ${expert}\n${number(e.tokens_per_s)} tokens/s\n${shares.join(', ') || 'held by nobody'}`;
}

function choose(layer) {
  view.layer = layer;
  placement(view.overview);
}

function holders(o, experts) {
  const canvas = $('holders'), layer = o.layers.find((l) => l.layer === view.layer), c = colors(), most = hottest(o);
  $('holders-title').textContent = `Layer ${layer.layer}: who holds which expert, and runs it`;
  const row = experts.length <= 12 ? 18 : experts.length <= 24 ? 14 : 11, columns = layer.experts.length;
  const { pen, wide } = draw(canvas, row * experts.length + 22);
  pen.translate(0, 3);
  const g = grid(wide, columns), loads = nodeLoads(layer, experts), peak = largest(loads);
  const changes = new Map(o.placement.moves.filter((m) => m.layer === layer.layer).map((m) => [m.expert, m]));
  experts.forEach((n, y) => {
    const top = y * row;
    say(pen, n.name, g.left - 10, top + row / 2, c.muted, 'right', g.left - 12);
    pen.fillStyle = c.faint;
    pen.fillRect(g.left, top + row - 1.5, g.cell * columns, 0.7);
    layer.experts.forEach((e, x) => holder(pen, e, changes.get(x), n.id, { x: g.left + x * g.cell, y: top, wide: g.cell - g.gap, tall: row - 2 }, most));
    tail(pen, g, wide, top, row - 2, peak ? loads[y] / peak : 0, number(loads[y]), c.expert);
  });
  ticks(pen, g, columns, row * experts.length + 11);
  view.hits.set(canvas, {
    tip: (x, y) => {
      const n = experts[Math.floor((y - 3) / row)], i = Math.floor((x - g.left) / g.cell), e = layer.experts[i];
      if (!n || !e || x < g.left) return null;
      const held = e.nodes.indexOf(n.id);
      const says = held < 0 ? 'has no replica' : e.percent.length ? `is to run ${e.percent[held]} %` : 'runs all of it';
      return `${n.name} ${says}\n${expertSays(layer, e, i)}`;
    },
  });
}

function holder(pen, e, change, id, box, most) {
  const c = colors(), held = e.nodes.indexOf(id);
  const thick = Math.min(2, Math.max(1, box.wide / 6));
  const frame = (color) => {
    pen.strokeStyle = color;
    pen.lineWidth = thick;
    pen.strokeRect(box.x + thick / 2, box.y + thick / 2, Math.max(0.5, box.wide - thick), box.tall - thick);
  };
  if (held >= 0) {
    const part = e.percent[held] ?? 100;
    if (part > 0) {
      pen.fillStyle = heat((e.tokens_per_s * part) / 100, most);
      pen.fillRect(box.x, box.y, Math.max(0.8, box.wide), box.tall);
    } else frame(c['heat-2']);
  }
  if (change?.added.includes(id)) frame(c.good);
  if (change?.removed.includes(id)) frame(c.bad);
}

function legend(o) {
  const box = $('load-legend'), most = hottest(o);
  box.replaceChildren();
  const ramp = put(box, 'span', { text: '0' });
  put(ramp, 'i', { class: 'ramp' });
  ramp.append(`${number(most)} tokens/s of one expert`);
  const swatch = (kind, text) => { const s = put(box, 'span', {}); put(s, 'i', { class: `swatch ${kind}` }); s.append(text); };
  if (o.layers.some((l) => l.experts.some((e) => e.nodes.length > 1))) swatch('idle', 'a replica in reserve');
  if (o.placement.target) {
    swatch('coming', 'is loaded');
    swatch('going', 'is freed');
  }
  put(box, 'span', { text: 'Choose a layer with a click or the arrow keys.' });
}

function moves(o) {
  const p = o.placement, box = $('moves');
  box.hidden = !p.target;
  if (!p.target) return;
  const open = box.querySelector('details')?.open;
  box.replaceChildren();
  const line = put(box, 'p');
  put(line, 'b', { text: `Plan ${p.target} is prepared` });
  line.append(p.serving ? `: ${count(p.adds, 'replica')} to load, ${p.removes.toLocaleString('en')} to free` : ': the first one');
  line.append(p.waiting_for.length ? `; waiting for ${names(p.waiting_for)}.` : '; everybody is ready.');
  const needed = o.nodes.filter((n) => n.target_replicas > 0 || (n.role === 'attention' && n.state !== 'joining'));
  bar(box, needed.length ? needed.filter((n) => !p.waiting_for.includes(n.id)).length / needed.length : 0);
  if (!p.moves.length) return;
  const details = put(box, 'details', open ? { open: '' } : {});
  put(details, 'summary', { text: `what moves${p.moves.length >= 64 ? ` (the first ${p.moves.length} experts)` : ''}` });
  const list = put(details, 'ul');
  for (const m of p.moves) {
    const parts = [...m.added.map((id) => `+${name(id)}`), ...m.removed.map((id) => `−${name(id)}`)];
    put(list, 'li', { text: `layer ${m.layer}, expert ${m.expert}: ${parts.join(' ')}` });
  }
}

// ─── μ-queues ───

function queues(o) {
  const groups = ['attention', 'expert'].map((role) => o.nodes.filter((n) => n.role === role));
  const stages = (o.model?.layers ?? 0) + 1, any = stages > 1 && groups.flat().length > 0;
  $('depths').hidden = $('queue-legend').hidden = !any;
  if (!any) return void ($('queues-hint').textContent = 'No node with layers has joined yet.');
  const peaks = groups.map((group) => largest(group, (n) => largest(n.queued)));
  const totals = groups.map((group) => Array.from({ length: stages }, (_, l) => sum(group, (n) => n.queued[l] ?? 0)));
  $('queues-hint').textContent = totals.map((total, i) => {
    const all = sum(total), deepest = total.indexOf(largest(total)), what = ['row', 'pair'][i], where = ['attention', 'expert'][i];
    return `${count(all, what)} on ${where} nodes${all ? `, most for ${deepest === stages - 1 ? 'the LM head' : `layer ${deepest}`}` : ''}`;
  }).join(' · ');
  const size = groups.flat().length, row = size <= 16 ? 18 : size <= 32 ? 13 : 10, chart = 40;
  const tall = sum(groups, (group) => (group.length ? chart + 8 + row * group.length + 14 : 0)) + 18;
  const { pen, wide } = draw($('depths'), tall), g = grid(wide, stages), cells = [];
  let top = 0;
  groups.forEach((group, i) => {
    if (group.length) top = depths(pen, g, wide, { group, total: totals[i], peak: peaks[i], role: ['attention', 'expert'][i], row, chart, top, cells });
  });
  ticks(pen, g, g.cell >= 26 ? stages - 1 : stages - 3, top + 4);
  say(pen, 'head', g.left + (stages - 0.5) * g.cell, top + 4, colors().muted, 'center');
  queueHits(cells, g, stages, row);
  const box = $('queue-legend');
  box.replaceChildren();
  groups.forEach((group, i) => {
    const ramp = put(box, 'span', { text: '0' });
    put(ramp, 'i', { class: 'ramp' });
    ramp.append(`${count(peaks[i], ['row', 'pair'][i])} of one layer on one ${['attention', 'expert'][i]} node`);
  });
}

/** Bars of what waits for each layer, and below them a row per node; gives where it ends. */
function depths(pen, g, wide, { group, total, peak, role, row, chart, top, cells }) {
  const c = colors(), most = largest(total), base = top + chart;
  say(pen, `${['rows', 'pairs'][role === 'expert' ? 1 : 0]}, all`, g.left - 10, base - 8, c[role], 'right', g.left - 12);
  total.forEach((n, l) => {
    pen.fillStyle = n ? c[role] : c.line;
    const tall = n ? Math.max(2, (chart - 6) * n / most) : 1;
    pen.fillRect(g.left + l * g.cell, base - tall, Math.max(1, g.cell - Math.max(1, g.gap * 2)), tall);
  });
  say(pen, number(sum(total)), wide, base - 8, c.text, 'right');
  group.forEach((n, i) => {
    const y = base + 8 + i * row;
    say(pen, n.name, g.left - 10, y + row / 2, c.muted, 'right', g.left - 12);
    total.forEach((_, l) => {
      if (role === 'expert' && l === total.length - 1) return;
      pen.fillStyle = heat(n.queued[l] ?? 0, peak);
      pen.fillRect(g.left + l * g.cell, y, g.cell - g.gap, row - 2);
    });
    say(pen, number(sum(n.queued)), wide, y + row / 2, c.muted, 'right');
    cells.push({ n, y, unit: role === 'expert' ? 'pairs' : 'rows' });
  });
  return base + 8 + row * group.length + 14;
}

function queueHits(cells, g, stages, row) {
  view.hits.set($('depths'), {
    tip: (x, y) => {
      const hit = cells.find((cell) => y >= cell.y && y < cell.y + row), l = Math.floor((x - g.left) / g.cell);
      if (!hit || x < g.left || l >= stages) return null;
      return `${hit.n.name}, ${l === stages - 1 ? 'LM head' : `layer ${l}`}\n${(hit.n.queued[l] ?? 0).toLocaleString('en')} ${hit.unit} wait`;
    },
  });
}

// ─── tables ───

const byRole = { gateway: 0, attention: 1, expert: 2 };
const natural = new Intl.Collator('en', { numeric: true });

function table(id, heads, rows, empty) {
  const [head, body] = [$(id).querySelector('thead'), $(id).querySelector('tbody')];
  head.replaceChildren();
  body.replaceChildren();
  if (!rows.length) return void put(put(body, 'tr'), 'td', { class: 'empty', text: empty });
  const line = put(head, 'tr');
  for (const title of heads) put(line, 'th', { scope: 'col', text: title });
  for (const cells of rows) {
    const tr = put(body, 'tr');
    for (const cell of cells) cell(put(tr, 'td'));
  }
}

const plain = (text, more) => (td) => { td.textContent = text; if (more) put(td, 'small', { text: ` ${more}` }); };
const nothing = plain('');

function nodes(o) {
  const rows = o.nodes.map((n) => {
    const expert = n.role === 'expert', attention = n.role === 'attention';
    const used = n.kv_blocks ? 1 - n.kv_blocks_free / n.kv_blocks : 0;
    return [
      (td) => { put(td, 'span', { class: `role ${n.role}`, text: n.name }); put(td, 'small', { class: 'address', text: n.address, title: n.address }); },
      (td) => { put(td, 'i', { class: `dot ${STATE[n.state]}` }); td.append(n.state); put(td, 'small', { text: ` for ${span(o.at - n.since)}` }); },
      expert || attention ? (td) => { bar(td, n.busy); td.append(percent(n.busy)); } : nothing,
      attention ? plain(number(n.tokens_per_s), 'tokens/s') : expert ? plain(number(n.rows_per_s), `pairs/s, ${number(n.rows_per_run)} a run`) : nothing,
      attention ? plain(number(n.running), n.waiting ? `+ ${number(n.waiting)} waiting` : 'running') : nothing,
      attention ? (td) => { bar(td, used, used > 0.95 ? 'warn' : ''); td.append(percent(used)); } : nothing,
      expert ? plain(`${n.leased} run`, `${n.serving_replicas}${o.placement.target ? ` → ${n.target_replicas}` : ''} of ${n.slots} held`) : nothing,
      expert ? (td) => { td.textContent = `${n.slowdown.toFixed(2)}×`; if (n.slowdown >= 1.5) td.prepend(put(td, 'i', { class: 'dot warn' })); } : nothing,
    ];
  });
  table('nodes', ['Node', 'State', 'Busy', 'Work', 'Sequences', 'KV cache', 'Experts', 'Slower by'], rows, 'No node has joined yet.');
}

function plans(o) {
  const state = { serving: 'good', target: 'warn', past: '' };
  const rows = o.placement.plans.map((p) => [
    (td) => { put(td, 'span', { class: 'role', text: `plan ${p.epoch}` }); if (p.parent) put(td, 'small', { text: ` after ${p.parent}` }); },
    (td) => { put(td, 'i', { class: `dot ${state[p.state]}` }); td.append(p.state === 'target' ? 'is prepared' : p.state === 'serving' ? 'serves' : 'past'); },
    plain(p.made_at ? clock(p.made_at) : '–', p.made_at ? `${span(o.at - p.made_at)} ago` : ''),
    plain(p.replicas.toLocaleString('en'), `${p.loaded.toLocaleString('en')} loaded anew`),
    (td) => { td.className = 'free'; td.textContent = p.reason; },
  ]);
  table('plans', ['Plan', 'State', 'Made', 'Replicas', 'Why'], rows, 'No plan has been made yet.');
}

function decisions(o) {
  const p = o.placement, r = o.routing, box = $('standing-decisions'), list = $('journal');
  box.replaceChildren();
  const line = (head, text, why) => { const l = put(box, 'p'); put(l, 'b', { text: head }); l.append(text); if (why) put(l, 'span', { class: 'why', text: ` ${why}` }); };
  line('Routing', r.leases
    ? `: the last of ${count(r.leases, 'lease')} was made ${span(o.at - r.leased_at)} ago and moved ${count(r.changed, 'expert')}${r.shared ? `; ${r.shared.toLocaleString('en')} shared` : ''},`
    : `: by ${r.policy}${o.layers.length ? '; every expert has one place to run, so there is nothing to choose' : ''}.`, r.why);
  line('Placement', `: by ${p.policy}${p.pinned ? ', pinned by an operator' : ''}.`,
    p.review ? `Looked at ${span(o.at - p.reviewed_at)} ago: ${p.review}` : '');
  const scrolled = list.scrollTop;
  list.replaceChildren();
  if (!o.decisions.length) put(list, 'li', { class: 'empty', text: 'Nothing has happened yet.' });
  for (const d of o.decisions) {
    const item = put(list, 'li');
    put(item, 'time', { text: clock(d.at) });
    put(item, 'i', { class: `dot ${LEVEL[d.level] || (d.about === 'plan' ? 'good' : '')}`, title: d.level });
    put(item, 'span', { text: d.what });
    if (d.why) put(item, 'span', { class: 'why', text: d.why, title: d.why });
  }
  list.scrollTop = scrolled;
}

// ─── the pointer and the keyboard ───

function tip(text, event) {
  const box = $('tip');
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 6))}px`;
  box.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 18}px`;
}

function tipOn(element, text) {
  element.addEventListener('mousemove', (event) => tip(text(), event));
  element.addEventListener('mouseleave', () => tip(''));
}

for (const canvas of document.querySelectorAll('canvas')) {
  const at = (event) => { const r = canvas.getBoundingClientRect(); return [event.clientX - r.left, event.clientY - r.top]; };
  canvas.addEventListener('mousemove', (event) => tip(view.hits.get(canvas)?.tip(...at(event)), event));
  canvas.addEventListener('mouseleave', () => tip(''));
  canvas.addEventListener('click', (event) => view.hits.get(canvas)?.click?.(...at(event)));
}
$('layers').addEventListener('keydown', (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], all = view.overview?.layers ?? [];
  const next = all[all.findIndex((l) => l.layer === view.layer) + step];
  if (!step || !next) return;
  event.preventDefault();
  choose(next.layer);
});

// ─── the loop ───

function show(o) {
  view.overview = o;
  o.nodes.sort((a, b) => byRole[a.role] - byRole[b.role] || natural.compare(a.name, b.name));
  view.names = new Map(o.nodes.map((n) => [n.id, n.name]));
  $('main').hidden = false;
  for (const part of [headline, tiles, flow, decisions, placement, queues, nodes, plans]) part(o);
}

function take(state) {
  document.body.classList.remove('stale');
  if (state.standing === 'leading') {
    pulse('good', 'live');
    notice(state.overview.nodes.length ? '' : 'This coordinator leads and waits for nodes: none has joined yet.');
    show(state.overview);
    return;
  }
  pulse('warn', 'follows');
  $('main').hidden = true;
  $('headline').textContent = '';
  notice(state.leader
    ? `This coordinator follows the one at ${state.leader}, which leads and knows how it goes: open the console on that one's admin door.`
    : 'No coordinator leads at the moment. The nodes go on with the last plan they had.');
}

function lost(why) {
  pulse('bad', 'no answer');
  document.body.classList.add('stale');
  notice(view.heard ? `${why} What is shown is of ${clock(view.heard / 1000)}, ${span((Date.now() - view.heard) / 1000)} ago.` : why, 'bad');
}

async function ask() {
  const patience = AbortSignal.timeout(PATIENCE_MS);
  const answer = await fetch(HERE, { cache: 'no-store', signal: patience }).catch(() => null);
  if (!answer) return lost('The coordinator does not answer.');
  if ([401, 403].includes(answer.status)) return lost('The key of this browser does not open the console: it wants the scope `admin`.');
  if (!answer.ok) return lost(`The coordinator answers with an error (${answer.status}).`);
  take(await answer.json());
  view.heard = Date.now();
}

async function watch() {
  for (;;) {
    const began = performance.now();
    if (!document.hidden) await ask().catch((error) => lost(`What the coordinator answers cannot be shown: ${error.message}.`));
    await new Promise((resolve) => setTimeout(resolve, Math.max(50, EVERY_MS - (performance.now() - began))));
  }
}

const redraw = () => { view.colors = null; if (view.overview && !$('main').hidden) show(view.overview); };
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
addEventListener('resize', redraw);
watch();
