'use strict';
const POLL_MS = 2000;
const SVG = 'http://www.w3.org/2000/svg';
const at = id => document.getElementById(id);
const add = (parent, name, text, cls) => {
  const child = document.createElement(name);
  if (text !== undefined) child.textContent = text;
  if (cls) child.className = cls;
  parent.append(child);
  return child;
};

function bytes(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return (unit && count < 100 ? count.toFixed(1) : Math.round(count)) + ' ' + units[unit];
}
const number = count => Math.round(count).toLocaleString('en');
const rate = count => count < 10 ? count.toFixed(1) : number(count);
function time(seconds) {
  if (seconds < 1e-3) return (seconds * 1e6).toFixed(0) + ' µs';
  if (seconds < 1) return (seconds * 1e3).toFixed(seconds < 0.01 ? 2 : 0) + ' ms';
  if (seconds < 120) return seconds.toFixed(0) + ' s';
  if (seconds < 7200) return (seconds / 60).toFixed(0) + ' min';
  return seconds < 172800 ? (seconds / 3600).toFixed(0) + ' h' : (seconds / 86400).toFixed(0) + ' d';
}
const percent = share => (share * 100).toFixed(1) + ' %';

/* Lines over time. A gap is where nothing was measured. */
function chart(id, series, show, top, seconds) {
  const shown = series.flat().filter(value => value !== null);
  const high = top || Math.max(...shown, 0) * 1.1 || 1;
  const length = series[0].length;
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('class', 'chart');
  svg.setAttribute('viewBox', '0 0 300 60');
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('role', 'img');
  const last = series.map(values => values.findLast(value => value !== null));
  const words = last.map(value => value === undefined ? '–' : show(value)).join(', ');
  svg.setAttribute('aria-label', 'now ' + words + ', scale up to ' + show(high));
  const draw = (tag, set) => {
    const part = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(set)) part.setAttribute(name, value);
    svg.append(part);
  };
  draw('line', { x1: 0, x2: 300, y1: 60, y2: 60 });
  draw('line', { x1: 0, x2: 300, y1: 0, y2: 0 });
  series.forEach((values, which) => {
    let path = '', open = false, first = 0, x = 0;
    const close = () => {
      if (open && which === 0 && path) draw('path', { class: 'area', d: path + `L${x} 60L${first} 60Z` });
      if (open) draw('path', { class: which ? 'second' : '', d: path });
      path = ''; open = false;
    };
    values.forEach((value, index) => {
      if (value === null) return close();
      x = (300 * index / Math.max(1, length - 1)).toFixed(1);
      const y = (60 - 60 * Math.min(1, value / high)).toFixed(1);
      if (!open) first = x;
      path += (open ? 'L' : 'M') + x + ' ' + y;
      open = true;
    });
    close();
  });
  const axis = document.createElement('div');
  axis.className = 'axis';
  add(axis, 'span', seconds * (length - 1) < 1 ? '' : time(seconds * (length - 1)) + ' ago');
  add(axis, 'span', 'up to ' + show(high));
  at(id).replaceChildren(svg, axis);
  at(id + '-now').textContent = words;
}

function budget(now) {
  const { limit_bytes: limit, charged_bytes: charged } = now.budget;
  at('budget').textContent = `${bytes(charged)} of ${bytes(limit)}, ${percent(charged / limit)}`;
  at('budget').dataset.charged = charged;
  at('budget').dataset.limit = limit;
  const bar = document.createDocumentFragment(), legend = document.createDocumentFragment();
  for (const part of ['spans', 'lingering', 'metadata', 'uploads']) {
    const size = now.budget[part + '_bytes'];
    add(bar, 'span', undefined, part).style.width = 100 * size / limit + '%';
    const item = add(legend, 'li');
    add(item, 'i', undefined, part);
    item.append(`${part} ${bytes(size)}`);
  }
  at('budget-bar').replaceChildren(bar);
  at('budget-legend').replaceChildren(legend);
}

function name(area) {
  return `arena ${area.arena}${area.low ? ' below 2 GiB' : ''}`;
}

function map(area, colours) {
  const wide = 512, cells = 2048, canvas = document.createElement('canvas');
  const rows = cells / wide, scale = 4;
  canvas.width = wide;
  canvas.height = rows * scale;
  canvas.style.height = rows * 9 + 'px';
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label',
    `${area.kind} of ${name(area)}: ${bytes(area.used_bytes)} used, ${bytes(area.lingering_bytes)} evicted but needed, ` +
    `${bytes(area.free_bytes)} free of ${bytes(area.bytes)}`);
  const context = canvas.getContext('2d');
  /* What is shown ends where memory ends that was ever committed, so that a large reservation does not hide it. */
  const shown = Math.max(area.shown_bytes, 1), each = shown / cells;
  const paint = (from, to, colour, strength) => {
    context.fillStyle = colour;
    context.globalAlpha = strength;
    for (let cell = Math.floor(from / each); cell * each < to && cell < cells; cell += 1) {
      context.fillRect(cell % wide, Math.floor(cell / wide) * scale, 1, scale);
    }
  };
  for (const [offset, size, used, lingering, free] of area.runs) {
    const end = offset + size;
    if (free) paint(offset, end, colours.free, free / size);
    if (lingering) paint(offset, end, colours.lingering, Math.max(0.3, lingering / size));
    if (used) paint(offset, end, colours.used, Math.max(0.3, used / size));
  }
  for (const [offset, size, heat] of area.hot) paint(offset, offset + size, colours.hot, 0.4 + 0.6 * heat);
  return canvas;
}

function areas(now) {
  const probe = add(document.body, 'i');
  const colours = {};
  for (const name of ['used', 'hot', 'lingering', 'free']) {
    probe.style.color = `var(--${name})`;
    colours[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  const all = document.createDocumentFragment();
  for (const area of now.areas.filter(area => area.shown_bytes > 0)) {
    const box = add(all, 'div', undefined, 'area');
    add(box, 'p', `${name(area)}, ${area.kind}: ${bytes(area.used_bytes)} used in the first ${bytes(area.shown_bytes)} of ${bytes(area.bytes)}`);
    box.append(map(area, colours));
  }
  if (!all.children.length) add(all, 'p', 'Nothing is committed yet.', 'none');
  at('areas').replaceChildren(all);
  at('arenas-now').textContent = `${bytes(now.arena.committed_bytes)} committed, ${percent(now.arena.fragmentation_ratio)} of it free`;
}

function rows(id, list) {
  const body = document.createDocumentFragment();
  for (const cells of list) {
    const row = add(body, 'tr');
    cells.forEach((cell, index) => add(row, 'td', cell, index ? '' : 'name'));
  }
  at(id).tBodies[0].replaceChildren(body);
  const none = at(id + '-none');
  if (none) { none.hidden = list.length > 0; at(id).hidden = list.length === 0; }
}

function show(now) {
  const state = at('state');
  state.textContent = now.draining ? 'draining' : now.ready ? 'ready' : 'not ready: ' + now.reason;
  state.className = 'state ' + (now.ready ? 'good' : 'bad');
  at('about').textContent = `version ${now.version}, up ${time(now.uptime_seconds)}, memory by ${now.arena.strategy}, ` +
    `${number(now.entries.resident)} entries, ${now.executors.running} of ${now.executors.threads} executors busy, ${number(now.executors.queued)} calls wait`;
  budget(now);
  const history = now.history, every = now.interval_seconds;
  chart('charged', [history.charged_bytes], bytes, now.budget.limit_bytes, every);
  chart('hits', [history.hit_ratio], percent, 1, every);
  chart('latency', [history.median_seconds, history.p99_seconds], time, 0, every);
  chart('calls', [history.calls], rate, 0, every);
  chart('installs', [history.installs], rate, 0, every);
  chart('evictions', [history.evictions], rate, 0, every);
  areas(now);
  rows('top', now.top.map(entry => [entry.handle, number(entry.calls), rate(entry.calls_per_second), bytes(entry.charged_bytes), time(entry.idle_seconds) + ' ago']));
  rows('counts', Object.entries(now.counters).map(([name, count]) => [name.replaceAll('_', ' '), number(count)]));
  rows('traps', Object.entries(now.traps).filter(([, count]) => count > 0).map(([kind, count]) => [kind, number(count)]));
  document.body.dataset.shown = now.uptime_seconds;
}

async function poll() {
  try {
    const answer = await fetch('status.json', { cache: 'no-store' });
    if (!answer.ok) throw new Error(`the daemon answers ${answer.status}`);
    show(await answer.json());
  } catch (error) {
    at('state').textContent = 'no answer: ' + error.message;
    at('state').className = 'state bad';
  }
  setTimeout(poll, document.hidden ? 5 * POLL_MS : POLL_MS);
}
poll();
