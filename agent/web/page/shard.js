// One shard: what is wrong and what helps, then all that is known of it.

import {duration, el, keep, level, sheet} from './dom.js';
import * as shards from './shards.js';

const every = 2000; // milliseconds; sooner after each change that the fleet's stream tells of
const patience = 15000; // for an answer
const firstEvents = 8;

let name = null;
let section = null;
let timer = 0;
let asking = false;
let again = false;
let last = null; // what is known of it

// open shows a shard, or none.
export function open(which, where) {
  if (which === name) return;
  name = which;
  section = where;
  clearTimeout(timer);
  last = null;
  keep(where, [which], () => []);
  if (name !== null) ask();
}

// changed says which shards are not as they were.
export function changed(rows) {
  if (name !== null && rows.some((row) => row.name === name)) ask();
}

async function ask() {
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  const asked = name;
  clearTimeout(timer);
  try {
    const answer = await fetch('shards/' + encodeURIComponent(asked), {signal: AbortSignal.timeout(patience)});
    const shard = answer.ok ? await answer.json() : null;
    if (asked === name) {
      if (shard) draw(last = shard, '');
      else if (answer.status === 404) say(`There is no shard ${asked}, or nothing has been read yet.`);
      else old(`the server of this page answers ${answer.status}`);
    }
  } catch {
    if (asked === name) old('the server of this page does not answer');
  }
  asking = false;
  if (name === null) return;
  if (again || asked !== name) {
    again = false;
    ask();
    return;
  }
  timer = setTimeout(() => { if (document.hidden) timer = setTimeout(ask, every); else ask(); }, every);
}

// say shows one sentence in the place of the shard.
function say(text) {
  last = null;
  keep(section, [name, text], () => [back(), el('p', null, text)]);
}

// old leaves what is known of the shard, and says that it is old.
function old(why) {
  if (last) draw(last, `What is shown here is old: ${why}.`);
  else say(`Nothing is known of ${name} yet: ${why}.`);
}

const back = () => el('p', {class: 'back'}, el('a', {href: shards.address()}, '\u2190 all shards'));

// The parts stay where they are; each is made anew when it is about something else.
const parts = ['top', 'steps', 'facts', 'sheets', 'events', 'look'];

function draw(s, trouble) {
  if (!section.querySelector(':scope > .top') || section.dataset.name !== s.name) {
    section.dataset.name = s.name;
    keep(section, [s.name, Math.random()], () => parts.map((part) => el('div', {class: part})));
  }
  const part = (which, value, make) => keep(section.querySelector(':scope > .' + which), value, make);
  part('top', [s.name, s.level, shards.address(), trouble], () => [back(), el('h2', null, level(s.level), s.name), trouble && el('p', {class: 'warning'}, trouble)]);
  part('steps', s.steps, () => s.steps.length === 0 ? null : [el('h3', null, 'What to do'), el('ol', {class: 'steps'}, ...s.steps.map(step))]);
  part('facts', s.facts, () => [el('h3', {class: 'sr'}, 'Facts'), el('dl', null, ...s.facts.map((f) => el('div', null, el('dt', null, f.name), el('dd', {class: f.style ?? null}, f.text))))]);
  part('sheets', s.sheets, () => s.sheets.map((one) => sheet(one)));
  part('events', [s.events, s.unread], () => events(s));
  part('look', s.look, () => [el('h3', null, 'Commands for this shard'), el('ul', {class: 'commands'}, ...(s.look ?? []).map((line) => el('li', null, command(line))))]);
}

function step(s) {
  return el('li', {class: s.level}, el('p', {class: 'what'}, level(s.level), s.what), el('p', null, s.do),
    s.command || s.runbook ? el('p', {class: 'how'}, s.command ? command(s.command) : null,
      s.runbook ? el('a', {href: 'runbooks/' + encodeURIComponent(s.runbook), target: '_blank', rel: 'noopener'}, 'Runbook: ' + s.runbook) : null) : null);
}

// command is one to copy.
function command(line) {
  const code = el('code', null, line);
  const button = el('button', {type: 'button', 'aria-label': 'Copy ' + line, onclick: async () => {
    try {
      await navigator.clipboard.writeText(line);
      button.textContent = 'Copied';
    } catch { // over http browsers do not give the clipboard away
      getSelection().selectAllChildren(code);
      button.textContent = 'Selected';
    }
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  }}, 'Copy');
  return el('span', {class: 'command'}, code, button);
}

function events(s) {
  const title = el('h3', null, 'What happened');
  if (s.unread) return [title, el('p', {class: 'warning'}, 'The events cannot be read: ' + s.unread)];
  if (s.events.length === 0) return [title, el('p', {class: 'faint'}, 'Nothing is recorded yet.')];
  const list = (some) => el('ol', {class: 'timeline'}, ...some.map(event));
  const more = s.events.slice(firstEvents);
  return [title, list(s.events.slice(0, firstEvents)), more.length ? el('details', null, el('summary', null, `${more.length} older`), list(more)) : null];
}

function event(e) {
  const at = new Date(e.at);
  const who = e.from && e.to && e.from !== e.to ? `${e.from} \u2192 ${e.to}` : e.to || e.from || '';
  const notes = [e.timeline ? `timeline ${e.timeline}` : '', e.took_ms ? `took ${duration(e.took_ms)}` : '', e.outcome ?? ''].filter(Boolean).join(', ');
  const moved = ['failover', 'switchover', 'crash', 'bootstrap', 'resumed'].includes(e.kind);
  return el('li', {class: moved ? 'moved' : null},
    el('p', null, el('time', {datetime: e.at, title: e.at}, isNaN(at) ? String(e.at) : at.toLocaleString()), ' ', el('b', null, e.kind), who ? ' ' + who : '', notes ? el('span', {class: 'faint'}, ' \u00b7 ' + notes) : null),
    e.phases?.length ? phases(e) : null,
    e.cause ? el('p', {class: 'cause'}, e.cause) : null);
}

// phases is how long each phase took: a bar of them, and the same in words. A first write that
// came long after, as nobody wrote, has no place in the bar.
function phases(e) {
  const sorted = [...e.phases].sort((a, b) => a.at_ms - b.at_ms);
  const total = Math.max(1, e.took_ms ?? 0, ...sorted.filter((p) => p.name !== 'first write').map((p) => p.at_ms));
  const bar = el('div', {class: 'bar', 'aria-hidden': 'true'});
  const words = el('ul', {class: 'phases'});
  let before = 0;
  sorted.forEach((p, i) => {
    const took = Math.max(0, p.at_ms - before);
    before = p.at_ms;
    if (p.at_ms <= total * 1.5) {
      const part = el('span', {class: 'p' + i % 6});
      part.style.flexGrow = String(Math.max(took / total, 0.004));
      bar.append(part);
    }
    words.append(el('li', null, el('span', {class: 'key p' + i % 6, 'aria-hidden': 'true'}), `${p.name} +${duration(took)}`));
  });
  return el('div', null, bar, words);
}
