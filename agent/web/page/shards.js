// The table of all shards, worst first.

import {cell, el, head, level, shardLink} from './dom.js';

const rows = new Map(); // the rows of the table, by the shard's name: {data, tr}
let body = null;
let drawing = 0;
let count = 0;
let last = '#/shards';

// shown is how many shards pass the filters.
export const shown = () => count;

// address is where the table was left.
export const address = () => last;

export function passes(row, filter) {
  const members = row.members ?? [];
  return (!filter.text || filter.text.split(/\s+/).every((word) => row.words.includes(word))) &&
    (!filter.host || members.some((m) => m.host === filter.host)) &&
    (!filter.zone || members.some((m) => m.zone === filter.zone)) &&
    (!filter.alarm || (filter.alarm === '*' ? row.kinds.length > 0 : row.kinds.includes(filter.alarm)));
}

export const worstFirst = (a, b) => b.weight - a.weight || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);

function make(data, columns) {
  const tr = el('tr', {role: 'row', class: data.level});
  tr.append(...data.cells.map((value, i) => i > 0 ? cell(columns[i], value) :
    cell(columns[i], value, el('span', {class: 'name'}, level(data.level), el('a', {href: shardLink(data.name)}, data.name)))));
  return tr;
}

// draw shows the shards that pass. The first rows are there at once, the others as the browser
// finds the time.
export function draw(section, fleet, filter) {
  last = location.hash || '#/shards';
  if (!body && fleet.columns.length) {
    body = el('tbody', {role: 'rowgroup'});
    const all = el('table', {role: 'table', class: 'fleet'}, el('caption', null, 'Shards, worst first'), head(fleet.columns), body);
    all.addEventListener('click', (e) => {
      const link = e.target.closest('tr')?.querySelector('a');
      if (link && !e.target.closest('a') && !String(getSelection())) location.hash = link.getAttribute('href');
    });
    section.replaceChildren(el('div', {class: 'scroll'}, all));
  }
  if (!body) return;
  const wanted = [...fleet.rows.values()].filter((row) => passes(row, filter)).sort(worstFirst);
  count = wanted.length;
  for (const name of rows.keys()) if (!fleet.rows.has(name)) rows.delete(name);
  const turn = ++drawing;
  let i = 0;
  const some = (n) => {
    if (turn !== drawing) return;
    for (const end = Math.min(wanted.length, i + n); i < end; i++) {
      const data = wanted[i];
      let row = rows.get(data.name);
      if (row?.data !== data) {
        const old = row?.tr, focused = old?.contains(document.activeElement);
        row = {data, tr: make(data, fleet.columns)};
        rows.set(data.name, row);
        if (old?.parentNode) old.replaceWith(row.tr);
        if (focused) row.tr.querySelector('a').focus({preventScroll: true});
      }
      const there = body.children[i];
      if (there !== row.tr) {
        const focused = row.tr.contains(document.activeElement);
        body.insertBefore(row.tr, there ?? null);
        if (focused) row.tr.querySelector('a').focus({preventScroll: true});
      }
    }
    if (i < wanted.length) {
      requestAnimationFrame(() => some(150));
      return;
    }
    while (body.children.length > wanted.length) body.lastChild.remove();
  };
  some(60);
}

// step moves the focus to the next shard, or the one before.
export function step(by) {
  const links = [...(body?.querySelectorAll('a') ?? [])];
  const at = links.indexOf(document.activeElement);
  links[at < 0 ? 0 : Math.max(0, Math.min(links.length - 1, at + by))]?.focus();
}
