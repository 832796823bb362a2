// What all views share. Text becomes text nodes, whatever is in it: nothing here makes markup.

// el makes an element; attributes that are null, undefined or false are left out.
export function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const symbols = {problem: '\u25cf', warning: '\u25b2', ok: '\u2713'};

// level is a sign of how something stands: its form tells, not its colour alone.
export function level(name) {
  return el('span', {class: 'level ' + (name in symbols ? name : 'ok'), role: 'img', 'aria-label': name}, symbols[name] ?? '');
}

export const shardLink = (name) => '#/shard/' + encodeURIComponent(name);

// table makes one with a row for each item. Roles are said, as on a phone rows are shown as cards,
// which takes them from a table otherwise.
export function table(title, columns, rows) {
  return el('div', {class: 'scroll'}, el('table', {role: 'table'},
    el('caption', null, title),
    head(columns),
    el('tbody', {role: 'rowgroup'}, ...rows)));
}

export function head(columns) {
  return el('thead', {role: 'rowgroup'}, el('tr', {role: 'row'},
    ...columns.map((c) => el('th', {role: 'columnheader', scope: 'col', class: c.right ? 'right' : null}, c.name))));
}

// cell makes one cell of the server's: its text, and how much it wants to be seen.
export function cell(column, value, content) {
  const classes = [column.right ? 'right' : '', value.style ?? '', value.text === '' && !content ? 'empty' : '', value.text.length <= 28 ? 'short' : ''].join(' ').trim();
  return el('td', {role: 'cell', class: classes || null, 'data-label': column.name}, content ?? value.text);
}

// sheet shows a table as the server has made it; first, if given, makes the content of a row's first cell.
export function sheet(s, first) {
  if (!s || s.rows.length === 0) return null;
  return table(s.title, s.columns, s.rows.map((row) => el('tr', {role: 'row'},
    ...row.map((value, i) => cell(s.columns[i], value, i === 0 && first ? first(value.text) : undefined)))));
}

// duration writes a time in milliseconds as people read it.
export function duration(ms) {
  if (ms < 1000) return Math.round(ms) + ' ms';
  if (ms < 60e3) return (ms / 1000).toFixed(1) + ' s';
  if (ms < 2 * 3600e3) return Math.round(ms / 60e3) + ' min';
  if (ms < 48 * 3600e3) return Math.round(ms / 3600e3) + ' h';
  return Math.round(ms / 86400e3) + ' days';
}

// keep puts children into a node unless they are made of the same value as those that are there:
// what has not changed keeps its focus and its selection.
const made = new WeakMap();
export function keep(node, value, make) {
  const text = JSON.stringify(value);
  if (made.get(node) === text) return;
  made.set(node, text);
  node.replaceChildren(...[make()].flat().filter(Boolean));
}
