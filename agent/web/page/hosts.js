// All hosts: which shards lead there, and which members there are not well.

import {el, keep, level, shardLink, table} from './dom.js';
import {passes} from './shards.js';

const most = 400; // rows are drawn; search finds the others
const columns = [{name: 'Host'}, {name: 'Zone'}, {name: 'Leads', right: true}, {name: 'Members', right: true}, {name: 'Not running'}, {name: 'Leads shards'}];

export function draw(section, fleet, filter) {
  const hosts = new Map();
  for (const row of fleet.rows.values()) {
    if (!passes(row, {...filter, text: ''})) continue;
    for (const m of row.members ?? []) {
      const name = m.host || '(no address)';
      if (!hosts.has(name)) hosts.set(name, {name, zones: new Set(), members: 0, leads: [], down: []});
      const h = hosts.get(name);
      h.members++;
      if (m.zone) h.zones.add(m.zone);
      if (m.leads) h.leads.push(row.name);
      if (m.state !== 'running') h.down.push([row.name, `${m.name}: ${m.state}`]);
    }
  }
  const all = [...hosts.values()].map((h) => ({...h, zone: [...h.zones].sort().join(', ')}))
    .filter((h) => (!filter.host || h.name === filter.host) && (!filter.zone || h.zones.has(filter.zone)) && filter.text.split(/\s+/).every((word) => [h.name, h.zone, ...h.leads].join('\n').toLowerCase().includes(word)))
    .sort((a, b) => b.down.length - a.down.length || b.leads.length - a.leads.length || (a.name < b.name ? -1 : 1));
  const shown = all.slice(0, most);
  keep(section, [all.length, shown], () => all.length === 0 ? el('p', null, 'No host is like that.') : [
    table('Hosts, worst first', columns, shown.map(host)),
    all.length > most ? el('p', null, `and ${all.length - most} more: search for them`) : null,
  ]);
}

function host(h) {
  const links = (names) => {
    const out = [];
    for (const name of names.slice(0, 12)) out.push(out.length ? ', ' : '', el('a', {href: shardLink(name)}, name));
    if (names.length > 12) out.push(` and ${names.length - 12} more`);
    return out;
  };
  const td = (i, classes, ...content) => el('td', {role: 'cell', class: classes || null, 'data-label': columns[i].name}, ...content);
  return el('tr', {role: 'row', class: h.down.length ? 'problem' : 'ok'},
    td(0, '', el('span', {class: 'name'}, level(h.down.length ? 'problem' : 'ok'), el('a', {href: '#/shards?host=' + encodeURIComponent(h.name)}, h.name))),
    td(1, h.zone ? '' : 'empty', h.zone),
    td(2, 'right', String(h.leads.length)),
    td(3, 'right', String(h.members)),
    td(4, h.down.length ? 'bad' : 'empty', ...h.down.slice(0, 6).flatMap(([name, what], i) => [i ? '; ' : '', el('a', {href: shardLink(name)}, what)]), h.down.length > 6 ? ` and ${h.down.length - 6} more` : ''),
    td(5, h.leads.length ? '' : 'empty', ...links(h.leads)));
}
