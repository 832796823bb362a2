// The fleet page: what the server tells of the fleet, and which view of it is shown.

import * as shards from './shards.js';
import * as hosts from './hosts.js';
import * as shard from './shard.js';
import {duration, keep, sheet} from './dom.js';

const $ = (id) => document.getElementById(id);

// fleet is what is known of it. rows are the shards by name.
const fleet = {rows: new Map(), columns: [], poolers: null, known: false};
// A moment by both clocks: one stands still while the computer sleeps, the other may be set.
const moment = () => ({steady: performance.now(), wall: Date.now()});
const since = (then) => Math.max(performance.now() - then.steady, Date.now() - then.wall);

// told is how old that was when the server last said so (age, in milliseconds), and when it did.
const told = {age: -1, problem: '', at: moment()};
// seen is since when the page is seen, opened since when its stream is open.
let seen = moment();
let opened = moment();

let view = 'shards';

// The address after # is VIEW, or shard/NAME, and the filters: it can be kept and sent on.
function route() {
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?');
  const [first, ...rest] = path.split('/');
  const known = ['shards', 'hosts', 'poolers', 'shard'];
  let name = '';
  try {
    name = decodeURIComponent(rest.join('/'));
  } catch {
    // not a name
  }
  return {view: known.includes(first) && (first !== 'shard' || name) ? first : 'shards', name, query: new URLSearchParams(query)};
}

function filters() {
  return {text: $('search').value.trim().toLowerCase(), host: $('host').value, zone: $('zone').value, alarm: $('alarm').value};
}

// fill has a select offer these values, and keeps the one that is chosen.
function fill(select, values, fixed, chosen) {
  const wanted = [...new Set(chosen && ![...fixed].some((o) => o.value === chosen) ? [...values, chosen] : values)].sort();
  keep(select, wanted, () => [...fixed, ...wanted.map((value) => new Option(value, value))]);
  select.value = chosen;
}
const fixed = Object.fromEntries(['host', 'zone', 'alarm'].map((id) => [id, [...$(id).options]]));

function choices(chosen) {
  const sets = {host: new Set(), zone: new Set(), alarm: new Set()};
  for (const row of fleet.rows.values()) {
    for (const m of row.members ?? []) {
      if (m.host) sets.host.add(m.host);
      if (m.zone) sets.zone.add(m.zone);
    }
    for (const kind of row.kinds) sets.alarm.add(kind);
  }
  for (const id of Object.keys(sets)) fill($(id), [...sets[id]], fixed[id], chosen ? chosen.get(id) ?? '' : $(id).value);
}

// show shows the view that the address names.
function show() {
  const at = route();
  const moved = at.view !== view || at.view === 'shard';
  view = at.view;
  if (view !== 'shard') {
    $('search').value = at.query.get('q') ?? '';
    choices(at.query);
  }
  for (const id of ['shards', 'hosts', 'poolers', 'shard']) $(id).hidden = id !== view;
  $('filters').hidden = view === 'shard' || view === 'poolers';
  for (const link of document.querySelectorAll('nav a')) {
    if (link.dataset.view === (view === 'shard' ? 'shards' : view)) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  shard.open(view === 'shard' ? at.name : null, $('shard'));
  draw();
  if (moved && view === 'shard') {
    scrollTo(0, 0);
    $('main').focus({preventScroll: true});
  }
}

function draw() {
  if (view === 'shards') shards.draw($('shards'), fleet, filters());
  if (view === 'hosts') hosts.draw($('hosts'), fleet, filters());
  if (view === 'poolers') keep($('poolers'), fleet.poolers, () => sheet(fleet.poolers) ?? (fleet.known ? 'No bouncer has told Consul of itself.' : 'reading Consul'));
  let alarmed = 0, problems = 0;
  for (const row of fleet.rows.values()) {
    if (row.level !== 'ok') alarmed++;
    if (row.level === 'problem') problems++;
  }
  const shown = view === 'shards' ? shards.shown() : fleet.rows.size;
  const of = `${fleet.rows.size} ${fleet.rows.size === 1 ? 'shard' : 'shards'}`;
  keep($('summary'), [of, shown, alarmed, fleet.known], () => fleet.known ?
    `${shown < fleet.rows.size ? shown + ' of ' : ''}${of}, ${alarmed} with alarms` : 'reading Consul');
  document.title = (view === 'shard' ? route().name + ' \u00b7 ' : '') + (problems ? `(${problems}) ` : '') + 'Lictor fleet';
}

// refilter puts the filters into the address.
function refilter() {
  const query = new URLSearchParams();
  for (const [name, id] of [['q', 'search'], ['host', 'host'], ['zone', 'zone'], ['alarm', 'alarm']]) {
    if ($(id).value) query.set(name, $(id).value);
  }
  history.replaceState(null, '', `#/${view}${query.size ? '?' + query : ''}`);
  draw();
}

function heard(message) {
  if (message.whole) {
    fleet.rows.clear();
    fleet.columns = message.columns;
  }
  for (const row of message.shards) {
    row.words = [row.name, ...row.cells.map((c) => c.text), ...(row.members ?? []).flatMap((m) => [m.name, m.host, m.zone ?? ''])].join('\n').toLowerCase();
    fleet.rows.set(row.name, row);
  }
  for (const name of message.gone ?? []) fleet.rows.delete(name);
  if (message.poolers) fleet.poolers = message.poolers;
  const first = !fleet.known;
  fleet.known = true;
  if (first) performance.mark('fleet');
  choices(first && view !== 'shard' ? route().query : null);
  draw();
  shard.changed(message.shards);
}

// age says how old is what is shown: the server's word, and the time since then.
function age() {
  const silent = since(told.at);
  const old = told.age < 0 ? -1 : told.age + silent;
  const silence = Math.min(silent, since(seen)) > 4000;
  const stale = silence || old > 5000 || told.problem !== '';
  $('age').className = old < 0 ? 'waiting' : stale ? 'stale' : 'live';
  const text = old < 0 ? 'connecting' : stale ? `as of ${duration(Math.max(1000, Math.floor(old / 1000) * 1000)).replace('.0', '')} ago` : 'live';
  if ($('age-text').textContent !== text) $('age-text').textContent = text;
  const problem = silence ? 'The server of this page does not answer. What is shown may have changed.' : told.problem;
  if ($('problem').textContent !== problem) $('problem').textContent = problem;
  $('problem').hidden = problem === '';
}

// The stream is open while the page is seen: a browser has few connections to one server. One that is
// refused is closed for good, and one whose network has gone may look open for long.
let source = null;
function listen() {
  if (document.hidden) {
    source?.close();
    source = null;
    return;
  }
  if (source && source.readyState !== EventSource.CLOSED && Math.min(since(told.at), since(opened)) < 15e3) return;
  source?.close();
  opened = moment();
  source = new EventSource('live');
  source.addEventListener('shards', (e) => heard(JSON.parse(e.data)));
  source.addEventListener('age', (e) => {
    const m = JSON.parse(e.data);
    Object.assign(told, {age: m.age_ms, problem: m.problem ?? '', at: moment()});
    age();
  });
}

// The address after # names a view: this link has none of its own.
document.querySelector('.skip').addEventListener('click', (e) => {
  e.preventDefault();
  $('main').focus();
});
$('filters').addEventListener('input', refilter);
$('filters').addEventListener('submit', (e) => e.preventDefault());
addEventListener('hashchange', show);
document.addEventListener('visibilitychange', () => { seen = moment(); listen(); age(); });
setInterval(() => { age(); listen(); }, 1000);

document.addEventListener('keydown', (e) => {
  const typing = e.target.matches('input, select');
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.key === '/' && !typing) {
    e.preventDefault();
    if ($('filters').hidden) location.hash = '#/shards';
    $('search').focus();
  } else if (e.key === 'Escape' && view === 'shard') {
    location.hash = shards.address();
  } else if (e.key === 'Escape' && e.target === $('search')) {
    $('search').value = '';
    refilter();
  } else if (view === 'shards' && (e.key === 'j' || e.key === 'k') && !typing) {
    shards.step(e.key === 'j' ? 1 : -1);
  }
});

listen();
show();
