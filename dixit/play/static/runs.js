// The page /runs: the metrics of runs while they train.

import {$, ask, element, showError} from './page.js';

const GROUPS = [ // title, figures, a note
  ['Reward', /^(eval\/)?reward$/],
  ['Gap between the listeners', /gap/, 'gap_constant: the gap if every image got the commonest caption'],
  ['Accuracy of each listener', /^(eval\/)?accuracy\//],
  ['Reward of each listener', /^reward\//, 'before its weight'],
  ['Spread of each listener’s reward', /^reward_std\//, 'standard deviation among the captions of an image'],
  ['Images without spread', /^frac_reward_zero_std/, 'the share whose captions have equal rewards and teach nothing'],
  ['Loss', /^(eval\/)?loss$/],
  ['Recall', /recall/],
  ['Caption length', /^(eval\/)?length$/, 'tokens'],
  ['Entropy', /^(eval\/)?entropy$/, 'nats per token; near 0 the speaker no longer explores'],
  ['Constant solution', /commonest_caption/, 'the share of images that get the commonest caption; 1: all get the same'],
  ['Kernel', /kernel_distance/, 'how far the prefixes’ kernel has moved from the start: 0 lazy, towards 1 rich'],
  ['Geometry', /prefix_dimensions/, 'how many dimensions the prefixes of the images fill (participation ratio)']];
const COLOURS = ['#7a6ff0', '#e07b39', '#2f9e77', '#c2477f', '#3f88c5', '#a08a1f', '#888'];
const WINDOW = 20; // steps of a running mean

function withGap(row, weights) { // the gap in the batch: mean accuracy of listeners of positive and of negative weight
  const mean = sign => {
    const names = Object.keys(weights).filter(name => weights[name] * sign > 0);
    const accuracies = names.map(name => row[`accuracy/${name}`]);
    return names.length && accuracies.every(Number.isFinite) ? accuracies.reduce((a, b) => a + b) / names.length : NaN;
  };
  const gap = mean(1) - mean(-1);
  return Number.isFinite(gap) ? {...row, gap} : row;
}

function svg(tag, properties, text) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [key, value] of Object.entries(properties)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function runningMean(points) {
  let sum = 0;
  return points.map(([x, y], i) => {
    sum += y - (i >= WINDOW ? points[i - WINDOW][1] : 0);
    return [x, sum / Math.min(i + 1, WINDOW)];
  });
}

function chart(title, rows, keys, note = '') {
  const series = keys.map(key => [key, rows.filter(row => key in row).map(row => [row.step, row[key]])]);
  const all = series.flatMap(([, points]) => points);
  const [W, H, left, low] = [420, 200, 46, 22];
  const range = values => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  const [x0, x1] = range(all.map(p => p[0]));
  let [y0, y1] = range(all.map(p => p[1]));
  if (y0 === y1) [y0, y1] = [y0 - .5, y1 + .5];
  const x = v => left + (W - left - 8) * (x1 > x0 ? (v - x0) / (x1 - x0) : .5);
  const y = v => 8 + (H - low - 8) * (1 - (v - y0) / (y1 - y0));
  const short = v => Math.abs(v) >= 1000 || (v && Math.abs(v) < .01) ? v.toExponential(1) : String(+v.toFixed(3));
  const now = series.map(([key, points]) => `${key} ${short(points[points.length - 1][1])}`);
  const picture = svg('svg', {viewBox: `0 0 ${W} ${H}`, role: 'img',
    'aria-label': `${title} up to step ${x1}; last values: ${now.join(', ')}`});
  for (const value of [y0, (y0 + y1) / 2, y1]) {
    picture.append(svg('line', {x1: left, x2: W - 8, y1: y(value), y2: y(value), class: 'grid'}),
      svg('text', {x: left - 5, y: y(value) + 4, 'text-anchor': 'end'}, short(value)));
  }
  picture.append(svg('text', {x: left, y: H - 4}, `step ${x0}`),
    svg('text', {x: W - 8, y: H - 4, 'text-anchor': 'end'}, String(x1)));
  const line = (points, ink, opacity) => {
    const every = Math.ceil(points.length / 800); // no more points than pixels
    const shown = points.filter((_, i) => i % every === 0 || i === points.length - 1);
    picture.append(svg('polyline', {points: shown.map(p => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join(' '),
      fill: 'none', stroke: ink, 'stroke-width': 2, opacity}));
  };
  series.forEach(([key, points], i) => {
    const ink = COLOURS[i % COLOURS.length];
    const dots = points.length < 30 || key.startsWith('eval/');
    line(points, ink, dots ? .9 : .25);
    if (!dots) line(runningMean(points), ink, 1);
    else for (const p of points) picture.append(svg('circle', {cx: x(p[0]), cy: y(p[1]), r: 2.5, fill: ink}));
  });
  const legend = element('div', {className: 'keys'}, ...now.map((text, i) => {
    const key = element('span', {}, text);
    key.style.setProperty('--key', COLOURS[i % COLOURS.length]);
    return key;
  }));
  return element('section', {className: 'chart'}, element('h3', {}, title),
    note && element('p', {className: 'soft'}, note), picture, legend);
}

function drawRun(name, rows, steps) {
  const last = rows[rows.length - 1];
  if (!last) { $('progress').textContent = `${name} has logged nothing yet.`; return; }
  const pace = Number.isFinite(last.seconds_per_step) ? `, ${last.seconds_per_step.toFixed(1)} s per step` : '';
  $('progress').textContent = `${name}: step ${last.step}${steps ? ` of ${steps}` : ''}${
    last.step >= steps && steps ? ', finished' : pace}.`;
  const keys = new Set(), texts = new Map();
  for (const row of rows) {
    for (const [key, value] of Object.entries(row)) {
      if (typeof value !== 'number') texts.set(key, [...(texts.get(key) || []), [row.step, [].concat(value)]]);
      else if (key !== 'step') keys.add(key);
    }
  }
  const used = new Set(), charts = [];
  for (const [title, pattern, note] of GROUPS) {
    const mine = [...keys].filter(key => pattern.test(key) && !used.has(key));
    mine.forEach(key => used.add(key));
    if (mine.length) charts.push(chart(title, rows, mine, note));
  }
  $('charts').replaceChildren(...charts);
  $('others').replaceChildren(...[...keys].filter(key => !used.has(key)).map(key => chart(key, rows, [key])));
  $('texts').replaceChildren(...[...texts].map(([key, entries]) => captionTable(key, entries)));
}

function captionTable(title, entries) { // the last logged texts, newest first; unchanged ones are dimmed
  const rows = entries.slice(-6).map(([step, texts], i, all) => element('tr', {},
    element('th', {scope: 'row'}, `step ${step}`),
    ...texts.map((text, j) => element('td', {className: i && all[i - 1][1][j] === text ? 'soft' : ''}, text))));
  return element('section', {className: 'chart'},
    element('h3', {}, title === 'eval/captions' ? 'Captions of the same images' : title), element('table', {}, ...rows.reverse()));
}

function saidRound(number, image, rows) { // one image: its captions with the listeners' beliefs
  const names = Object.keys(rows[0]).filter(key => key.startsWith('belief/')).map(key => key.slice('belief/'.length));
  const figure = value => Number.isFinite(value) ? value.toFixed(2) : '';
  const belief = (row, name) => {
    const value = row[`belief/${name}`];
    if (!Number.isFinite(value)) return element('td', {});
    const found = row[`pick/${name}`] === number;
    const title = found ? 'picks this image' : `picks image ${row[`pick/${name}`]}`;
    return element('td', {title}, element('meter', {value, 'aria-label': `belief of ${name}`}),
      ` ${figure(value)}${found ? ' ✓' : ''}`);
  };
  const head = ['caption', ...names, 'reward', 'advantage'].map(text => element('th', {scope: 'col'}, text));
  const body = rows.map(row => element('tr', {}, element('td', {}, row.caption || '(nothing)'),
    ...names.map(name => belief(row, name)), element('td', {}, figure(row.reward)), element('td', {}, figure(row.advantage))));
  return element('section', {className: 'chart'},
    element('img', {src: `data:image/png;base64,${image}`, alt: `validation image ${number}`}),
    element('table', {}, element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body)));
}

function drawSaid(table) {
  $('said').hidden = !table.steps.length;
  $('said-step').replaceChildren(...table.steps.map(step => element('option', {value: step}, String(step))));
  $('said-step').value = table.step;
  const rounds = Map.groupBy(table.rows, row => row.number);
  $('said-rounds').replaceChildren(...[...rounds].map(([number, rows]) => saidRound(number, table.images[number], rows)));
}

export async function startRuns() {
  $('runs').hidden = false;
  $('to-runs').setAttribute('aria-current', 'page');
  let rows = [], fileId = '', offset = 0, name = '', facts = {steps: 0, weights: {}}, timer = 0, shown = NaN;
  const begin = () => { name = $('run').value; fileId = ''; offset = 0; rows = []; shown = NaN; poll(); };
  async function showSaid(step = '') { // the table of a step; '': the last one
    const requested = name;
    const table = await ask(`/api/said?${new URLSearchParams({run: name, step})}`);
    if (requested === name) drawSaid(table);
  }
  async function poll() {
    clearTimeout(timer);
    const requested = name;
    try {
      const part = await ask(`/api/log?${new URLSearchParams({run: name, file_id: fileId, offset})}`);
      if (requested !== name) return; // another run was chosen meanwhile
      showError(null);
      if (part.restarted) { rows = []; facts = part; }
      rows.push(...part.rows.map(row => withGap(row, facts.weights)));
      [fileId, offset] = [part.file_id, part.offset];
      if (part.rows.length || part.restarted) drawRun(name, rows, facts.steps);
      const evaluated = rows.findLast(row => 'eval/gap' in row)?.step ?? 0;
      if (!part.more && evaluated !== shown) { // a new evaluation: its table replaces the one that is shown
        shown = evaluated;
        await showSaid();
      }
      if (part.more) return poll();
    } catch (error) {
      showError(error);
    }
    if ($('follow').checked) timer = setTimeout(poll, 2000);
  }
  $('run').addEventListener('change', begin);
  $('follow').addEventListener('change', poll);
  $('said-step').addEventListener('change', () => showSaid($('said-step').value).catch(showError));
  for (const form of ['which', 'said-which']) $(form).addEventListener('submit', event => event.preventDefault());
  try {
    const listing = await ask('/api/runs');
    $('run').append(...listing.runs.map(run => element('option', {value: run}, run)));
    if (listing.runs.includes(listing.this)) $('run').value = listing.this;
    if (listing.runs.length) begin(); else $('progress').textContent = 'No run here has a log yet.';
  } catch (error) {
    showError(error);
  }
}
