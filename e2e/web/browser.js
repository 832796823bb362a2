// Opens the fleet page in a real Chromium, for browser_test.go: node browser.js SCENARIO.

const {createRequire} = require('node:module');
const path = require('node:path');
const {chromium} = createRequire(path.join(process.env.PLAYWRIGHT, 'x.js'))('playwright-core');

const {PAGE, CONSUL, PICTURES, CHROMIUM} = process.env;
const patience = 60e3;

function check(is, what) {
  if (!is) throw new Error(what);
}

// change edits the JSON under a key of Consul's.
async function change(key, edit) {
  const value = await (await fetch(`${CONSUL}/v1/kv/${key}?raw`)).json();
  edit(value);
  const answer = await fetch(`${CONSUL}/v1/kv/${key}`, {method: 'PUT', body: JSON.stringify(value)});
  check(answer.ok, `${key}: ${answer.status}`);
}

async function open(browser, options, hash = '') {
  const context = await browser.newContext({viewport: {width: 1360, height: 850}, ...options});
  const page = await context.newPage();
  page.setDefaultTimeout(patience);
  page.wrong = [];
  page.on('pageerror', (e) => page.wrong.push(String(e)));
  page.on('console', (m) => { if (m.type() === 'error') page.wrong.push(m.text()); });
  await page.goto(PAGE + hash, {waitUntil: 'commit'});
  return page;
}

const names = (page) => page.$$eval('.fleet tbody a', (all) => all.map((a) => a.textContent));
const picture = (page, name, full) => page.screenshot({path: path.join(PICTURES, name + '.png'), fullPage: Boolean(full)});

async function noSideways(page, what) {
  const [wide, window] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
  check(wide <= window, `${what}: ${wide} pixels of ${window}`);
}

async function tour(browser) {
  const page = await open(browser, {colorScheme: 'light'});
  await page.waitForFunction(() => document.querySelectorAll('.fleet tbody tr').length === 12);
  await page.waitForSelector('#age.live');
  const order = await names(page);
  check(order[0] === 's002', `the shard without a leader is not first: ${order}`);
  check(order.indexOf('s007') > order.indexOf('s003') && order.indexOf('s007') < order.indexOf('s001'), `a warning stands between problems and what is well: ${order}`);
  await picture(page, 'light');

  // Nobody's markup is obeyed: it is shown.
  const markup = async (what) => {
    check(!(await page.evaluate(() => window.obeyed)), `${what}: markup was obeyed`);
    check(await page.locator('main img, main script').count() === 0, `${what}: there is markup`);
  };
  await markup('shards');
  check((await page.textContent('.fleet')).includes('<img src=x'), 'the markup is not shown as text');

  // Filters.
  await page.selectOption('#alarm', 'paused');
  check(String(await names(page)) === 's005', `paused: ${await names(page)}`);
  check(new URL(page.url()).hash.includes('alarm=paused'), 'the address has no filter: ' + page.url());
  await page.selectOption('#alarm', '');
  await page.selectOption('#host', 'host1');
  const there = await names(page);
  check(there.length > 0 && there.length < 12, `host1: ${there}`);
  await page.selectOption('#host', '');
  await page.selectOption('#zone', 'b');
  check((await names(page)).length === 12, `zone b: ${await names(page)}`);
  await page.selectOption('#zone', '');
  await page.keyboard.press('Escape');
  await page.evaluate(() => document.activeElement.blur());
  await page.keyboard.press('/');
  await page.keyboard.type('s004');
  await page.waitForFunction(() => document.querySelectorAll('.fleet tbody tr').length === 1);

  // By keys alone to a shard.
  await page.keyboard.press('Escape');
  await page.waitForFunction(() => document.querySelectorAll('.fleet tbody tr').length === 12);
  await page.evaluate(() => document.activeElement.blur());
  await page.keyboard.press('j');
  check(await page.evaluate(() => document.activeElement.textContent) === 's002', 'j does not go to the first shard');
  await page.keyboard.press('Enter');
  await page.waitForSelector('#shard .steps li');
  check((await page.textContent('#shard .steps')).includes('lictor failover s002'), 'no command is shown for a shard without a leader');
  const runbook = await page.getAttribute('#shard .steps a', 'href');
  const answer = await page.request.get(PAGE + runbook);
  check(answer.ok() && (await answer.text()).startsWith('# '), `runbook ${runbook}: ${answer.status()}`);
  await picture(page, 'shard-without-leader', true);
  await page.keyboard.press('Escape');
  await page.waitForSelector('.fleet tbody tr');

  // A shard with its events, and a change that is seen live there.
  await page.click('.fleet a:text-is("s004")');
  await page.waitForSelector('#shard .bar');
  const text = await page.textContent('#shard');
  for (const word of ['its host does not answer', 'noticed +8.2 s', 's004_db9', 'PgBouncers', 'Last full backup', 'any' + ' '].slice(0, 5)) {
    check(text.includes(word), `${word} is not shown`);
  }
  await markup('a shard');
  await picture(page, 'shard', true);
  const began = Date.now();
  await change('service/s004/members/s004-db2', (m) => { m.state = 'stopped'; });
  await page.waitForFunction(() => document.querySelector('#shard .steps')?.textContent.includes('s004-db2 is stopped'));
  console.log(`a change is seen in a shard after ${Date.now() - began} ms`);
  await page.context().grantPermissions(['clipboard-read', 'clipboard-write']);
  await page.click('#shard .steps button');
  await page.waitForFunction(() => document.querySelector('#shard .steps button').textContent === 'Copied');
  check(await page.evaluate(() => navigator.clipboard.readText()) === 'lictor list s004', 'the command is not copied');

  for (const view of ['hosts', 'poolers']) {
    await page.click(`nav a[data-view=${view}]`);
    await page.waitForSelector(`#${view} tbody tr`);
    await markup(view);
    await picture(page, view);
  }
  check((await page.textContent('#poolers tbody tr:first-child')).includes('pooler99'), 'the pooler that leads elsewhere is not first');

  // Labels for those who do not see.
  const nameless = await page.$$eval('input, select, button, a', (all) => all.filter((e) => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).length);
  check(nameless === 0, `${nameless} controls have no name`);
  check(page.wrong.length === 0, 'the browser complains: ' + page.wrong.join('; '));

  const dark = await open(browser, {colorScheme: 'dark'});
  await dark.waitForFunction(() => document.querySelectorAll('.fleet tbody tr').length === 12);
  await dark.waitForSelector('#age.live');
  await picture(dark, 'dark');
  check(await dark.evaluate(() => getComputedStyle(document.body).backgroundColor) !== await page.evaluate(() => getComputedStyle(document.body).backgroundColor), 'dark is light');
  await dark.goto(PAGE + '#/shard/s004');
  await dark.waitForSelector('#shard .bar');
  await picture(dark, 'dark-shard', true);

  const phone = await open(browser, {colorScheme: 'light', viewport: {width: 360, height: 740}, deviceScaleFactor: 2, isMobile: true, hasTouch: true});
  await phone.waitForFunction(() => document.querySelectorAll('.fleet tbody tr').length === 12);
  await phone.waitForSelector('#age.live');
  await noSideways(phone, 'shards on a phone');
  await picture(phone, 'phone');
  for (const hash of ['shard/s004', 'shard/s009', 'hosts', 'poolers']) {
    await phone.goto(PAGE + '#/' + hash);
    await phone.waitForSelector(hash.startsWith('shard') ? '#shard h2' : `#${hash} tbody tr`);
    if (hash.startsWith('shard')) await phone.waitForFunction((name) => document.querySelector('#shard h2')?.textContent.includes(name), hash.slice(6));
    await noSideways(phone, hash + ' on a phone');
    await picture(phone, 'phone-' + hash.replace('/', '-'), true);
  }
  check(phone.wrong.length === 0, 'the browser complains: ' + phone.wrong.join('; '));
}

async function many(browser) {
  const page = await open(browser, {colorScheme: 'light'});
  await page.waitForFunction(() => performance.getEntriesByName('fleet').length > 0);
  await page.waitForFunction(() => document.querySelectorAll('.fleet tbody tr').length > 0);
  const [painted, told, rows] = await page.evaluate(() => [
    Math.round(performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? -1),
    Math.round(performance.getEntriesByName('fleet')[0].startTime), document.querySelectorAll('.fleet tbody tr').length]);
  console.log(`first paint after ${painted} ms, the fleet told after ${told} ms, ${rows} rows at once`);
  await page.waitForFunction(() => document.querySelectorAll('.fleet tbody tr').length === 1000);
  await picture(page, 'thousand');
  const took = [];
  for (let i = 0; i < 5; i++) {
    const began = Date.now();
    await change('service/s500/members/s500-db2', (m) => { m.state = 'stopped ' + i; });
    await page.waitForFunction((i) => document.querySelector('.fleet tbody tr')?.textContent.includes('stopped ' + i), i, {polling: 'raf'});
    took.push(Date.now() - began);
  }
  console.log(`a change is seen after ${took.sort((a, b) => a - b)} ms`);
  if (process.env.LICTOR_TEST_FIGURES) {
    check(painted >= 0 && painted <= 1000, `first paint after ${painted} ms`);
    check(took[2] <= 1000, `a change is seen after ${took} ms`);
  }
  await picture(page, 'thousand-one-wrong');
  const phone = await open(browser, {viewport: {width: 360, height: 740}, deviceScaleFactor: 2, isMobile: true, colorScheme: 'dark'});
  await phone.waitForFunction(() => document.querySelectorAll('.fleet tbody tr').length === 1000);
  await noSideways(phone, 'a thousand shards on a phone');
  await picture(phone, 'thousand-phone');
  check(page.wrong.length === 0, 'the browser complains: ' + page.wrong.join('; '));
}

// drill opens the reports of drills that stand in the folder PAGE: what is sent on must be readable by
// everybody, on whatever they have.
async function drill(browser) {
  for (const [device, options] of Object.entries({
    light: {colorScheme: 'light'},
    dark: {colorScheme: 'dark'},
    phone: {colorScheme: 'light', viewport: {width: 360, height: 740}, deviceScaleFactor: 2, isMobile: true, hasTouch: true},
    'phone-dark': {colorScheme: 'dark', viewport: {width: 360, height: 740}, deviceScaleFactor: 2, isMobile: true, hasTouch: true},
  })) {
    for (const name of ['passed', 'surprise', 'under-way']) {
      const what = `${name}, ${device}`;
      const page = await open(browser, options, name + '.html');
      await page.waitForSelector('h1');
      await page.waitForLoadState();
      await noSideways(page, what);
      check(!(await page.evaluate(() => window.obeyed)), `${what}: markup was obeyed`);
      check(await page.locator('img, script').count() === 0, `${what}: there is markup`);
      // What is wider than the window is reached by keys, too, and has a name.
      const stuck = await page.$$eval('*', (all) => all.filter((e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === 'auto' && (e.tabIndex < 0 || !e.getAttribute('aria-label'))).length);
      check(stuck === 0, `${what}: ${stuck} parts cannot be scrolled by keys, or have no name`);
      const faint = await page.evaluate(contrast);
      check(faint.length === 0, `${what}: not readable: ${faint.slice(0, 5).join('; ')}`);
      const headings = await page.$$eval('h1, h2, h3', (all) => all.map((e) => Number(e.tagName[1])));
      check(headings[0] === 1 && headings.every((level, i) => i === 0 || level <= headings[i - 1] + 1), `${what}: headings ${headings}`);
      const nameless = await page.$$eval('th', (all) => all.filter((e) => !e.getAttribute('scope')).length);
      check(nameless === 0, `${what}: ${nameless} headers of tables do not say what of`);
      check(page.wrong.length === 0, `${what}: the browser complains: ${page.wrong.join('; ')}`);
      await picture(page, `drill-${name}-${device}`, true);
      await page.context().close();
    }
  }
  const page = await open(browser, {colorScheme: 'dark'}, 'surprise.html');
  await page.emulateMedia({media: 'print'});
  await picture(page, 'drill-surprise-print', true);
  const paper = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  check(paper === 'rgb(255, 255, 255)', 'paper is ' + paper);
  // By keys alone.
  await page.emulateMedia({media: 'screen'});
  await page.keyboard.press('Tab');
  check(await page.evaluate(() => document.activeElement !== document.body), 'Tab leads nowhere');
}

// contrast lists texts that stand out too little from what is behind them (WCAG 2, AA).
function contrast() {
  const parse = (color) => (color.match(/[\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const out = [];
  for (const e of document.body.querySelectorAll('*')) {
    if (![...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim())) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(parse(style.color)), light(behind(e))].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24 || parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700;
    if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5)) out.push(`${((a + 0.05) / (b + 0.05)).toFixed(1)}: ${e.textContent.trim().slice(0, 40)}`);
  }
  return out;
}

(async () => {
  const browser = await chromium.launch({executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-dev-shm-usage']});
  try {
    await {tour, many, drill}[process.argv[2]](browser);
  } finally {
    await browser.close();
  }
})().catch((e) => {
  console.error(e.stack ?? e);
  process.exit(1);
});
