// The page of dixit/play/web.py: the game on /, the curves of training on /runs. Text is only ever set as text, never as HTML.
'use strict';

const MOST_BYTES = 10_000_000; // as in web.py
const $ = id => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value; else element.setAttribute(key, value);
  }
  element.append(...children.filter(child => child));
  return element;
}

async function ask(path, body, type = 'application/json') {
  const options = body === undefined ? {} : {method: 'POST', body, headers: {'Content-Type': type}};
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error('the server does not answer; is it still running?');
  }
  const found = await answer.json().catch(() => ({error: `the server failed (${answer.status})`}));
  if (found.error) throw new Error(found.error);
  return found;
}

function complain(error) {
  $('error').hidden = !error;
  $('error').textContent = error ? error.message : '';
}

// --- the game ---

let state = null; // what the server last said
let chosen = null; // a card, by its number
let explained = ''; // which round's explanation is shown
let busy = false;

const picture = (card, look) => `/picture/${state.key}/${card}/${look}.png`;
const who = player => player === state.you ? 'you' : state.names[player];
const eyes = player => player in state.eyes ? state.looks[state.eyes[player]] : null;
const lastRound = () => state.game && state.game.rounds[state.game.rounds.length - 1];
const ended = () => state.game && state.game.phase === 'over';
const showsResult = () => state.game && (state.pending || ended());

function list(names) {
  return names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names[names.length - 1]}`;
}

async function act(path, asked) {
  if (busy) return;
  busy = true;
  document.body.ariaBusy = 'true';
  try {
    const next = await ask(path, JSON.stringify(asked));
    complain(null);
    chosen = null;
    show(next);
    $('task').focus();
  } catch (error) {
    await refresh();
    complain(error);
  } finally {
    busy = false;
    document.body.ariaBusy = 'false';
    allowMove();
  }
}

async function refresh() {
  try {
    const next = await ask('/api/state');
    if (JSON.stringify(next) !== JSON.stringify(state)) show(next);
  } catch (error) {
    complain(error);
  }
}

function show(next) {
  const before = state && state.key;
  state = next;
  $('about').textContent = `${state.run || 'practice table'} · ${state.cards} cards: ${state.deck}`;
  $('lens').hidden = $('own').hidden = !state.run; // both need a trained run's eyes
  $('practice').hidden = Boolean(state.run);
  if (before !== state.key) {
    $('goal').replaceChildren(...state.goals.map((points, i) =>
      make('option', {value: points}, `${points} points, ${['a short game', 'a longer one', 'a whole one'][i]}`)));
    $('words').maxLength = state.letters;
  }
  const game = state.game, result = showsResult();
  $('start').hidden = Boolean(game) && !ended();
  $('again').hidden = !game || ended();
  $('next').hidden = !result || ended();
  $('move').hidden = !game || result;
  $('telling').hidden = $('move').hidden || game.phase !== 'tell';
  $('players').hidden = $('hand').hidden = $('hand-title').hidden = !game;
  $('result').hidden = !result;
  $('table').hidden = !game || !(result || game.table.length);
  $('clue').hidden = !game || !(result || game.clue);
  if (!result) $('why').hidden = true;
  if (!game) return showStart();
  $('clue').textContent = result ? lastRound().clue : game.clue;
  showPlayers();
  if (result) showResult(); else showTask();
  $('hand-title').textContent = result && !ended() ? 'Your next hand' : 'Your hand';
  $('hand').replaceChildren(...game.hand.map((card, i) => cardButton(card, `card ${i + 1} of your hand`, null)));
  if (chosen === null) showLens(null);
  choose(chosen);
}

function showStart() {
  $('task').textContent = 'A game against three agents';
  $('hint').textContent = 'The storyteller gives a clue for a card. The others each lay down a card that suits it, all ' +
    'are shuffled, and everyone but the storyteller guesses the right one. If all or none find it, the storyteller ' +
    'gets nothing and the others 2 points; else the storyteller and who found it get 3. A vote for your card is ' +
    'worth 1 to you. The agents see the cards differently: a good clue is understood by some of them, not by all.';
}

function showPlayers() {
  const game = state.game, result = showsResult();
  const teller = result ? lastRound().storyteller : game.storyteller;
  $('players').replaceChildren(...state.names.map((name, p) => {
    const gained = result ? ` (+${lastRound().points[p]})` : '';
    const look = eyes(p);
    return make('li', {className: p === teller ? 'teller' : ''},
      make('b', {}, `${game.scores[p]}${gained}`), name,
      make('small', {className: 'soft'}, look ? `sees: ${look.name}` : 'sees everything',
        p === teller ? ' · tells' : ''));
  }));
}

function showTask() {
  const game = state.game, teller = state.names[game.storyteller];
  const round = `Round ${game.rounds.length + 1}. `;
  $('result').replaceChildren();
  if (game.phase === 'tell') {
    $('task').textContent = `${round}You are the storyteller`;
    $('hint').textContent = 'Choose a card of your hand and give a clue that some will understand, but not all.';
    $('confirm').textContent = 'Tell';
  } else if (game.phase === 'submit') {
    $('task').textContent = `${round}${teller} says:`;
    $('hint').textContent = 'Choose the card of your hand that suits the clue best.';
    $('confirm').textContent = 'Lay down this card';
  } else {
    $('task').textContent = `${round}Which card is ${teller}’s?`;
    $('hint').textContent = 'Vote for one of the others’ cards.';
    $('confirm').textContent = 'Vote for this card';
  }
  $('table').replaceChildren(...game.table.map((card, place) => {
    const own = game.laid.includes(card);
    return cardButton(card, `card ${place + 1} on the table`, own ? 'yours' : `card ${place + 1}`);
  }));
}

function showResult() {
  const game = state.game, round = lastRound(), teller = round.storyteller;
  const voters = place => round.votes.flatMap((vote, p) => vote === place ? [p] : []);
  const found = voters(round.owners.indexOf(teller));
  const others = state.names.length - 1;
  $('task').textContent = ended()
    ? `The game is over: ${list(game.winners.map(p => p === state.you ? 'you' : state.names[p]))} won`
    : `Round ${game.rounds.length}: ${round.points[state.you]} point${round.points[state.you] === 1 ? '' : 's'} for you`;
  $('hint').textContent = ended() ? 'This was the last round:' : '';
  const finders = found.length === others ? 'Everyone' : found.length ? list(found.map(who)) : 'Nobody';
  const told = teller === state.you ? 'your card' : `${state.names[teller]}’s card`;
  const gained = found.length && found.length < others ? 'so it scores.' : 'so the storyteller gets nothing.';
  $('result').replaceChildren(make('p', {}, `${finders[0].toUpperCase()}${finders.slice(1)} found ${told}, ${gained}`));
  $('table').replaceChildren(...round.table.map((card, place) => {
    const owner = round.owners[place] === state.you ? 'yours' : `${state.names[round.owners[place]]}’s`;
    const chose = voters(place).map(who);
    const right = round.owners[place] === teller;
    const label = make('span', {className: 'label'}, right ? make('b', {}, `✓ ${owner}`) : owner,
      chose.length ? ` ← ${list(chose)}` : '');
    return cardButton(card, `${owner}${right ? ', the right one' : ''}${chose.length ? `, chosen by ${list(chose)}` : ''}`,
      label, right ? 'card told' : 'card');
  }));
  if (chosen === null) chosen = round.table[round.owners.indexOf(teller)];
  explainRound(game.rounds.length - 1);
}

function cardButton(card, name, label, className = 'card') {
  const image = make('img', {src: picture(card, 0), alt: `${name}: ${state.texts[card]}`, draggable: false});
  const button = make('button', {type: 'button', className, 'aria-pressed': 'false', 'data-card': card}, image);
  if (label) button.append(typeof label === 'string' ? make('span', {className: 'label'}, label) : label);
  button.addEventListener('click', () => choose(card));
  return button;
}

function choose(card) {
  chosen = card;
  for (const button of document.querySelectorAll('button.card')) {
    button.setAttribute('aria-pressed', String(button.getAttribute('data-card') === String(card)));
  }
  if (card !== null) showLens(card);
  allowMove();
}

function ready() { // whether the chosen card can be played now
  const game = state && state.game;
  if (!game || showsResult() || chosen === null) return false;
  if (game.phase === 'vote') return game.may_vote.includes(game.table.indexOf(chosen));
  return game.hand.includes(chosen);
}

function allowMove() {
  const words = $('words').value.trim(), telling = state && state.game && state.game.phase === 'tell';
  $('confirm').disabled = busy || !ready() || (telling && !words);
  $('suggest').disabled = busy || !ready() || !(state.clues[chosen] || '').trim();
  $('try').disabled = busy || !ready() || !words;
}

function play(event) {
  event.preventDefault();
  if ($('confirm').disabled) return;
  const game = state.game, asked = {round: game.rounds.length};
  if (game.phase === 'tell') Object.assign(asked, {card: chosen, clue: $('words').value});
  if (game.phase === 'submit') asked.cards = [chosen];
  if (game.phase === 'vote') asked.place = game.table.indexOf(chosen);
  act('/api/move', asked).then(() => { if (state.game && state.game.phase !== 'tell') $('words').value = ''; });
}

function digit(event) { // 1 to 9 choose a card, then Enter plays it
  if (!state || !state.game || event.ctrlKey || event.altKey || event.metaKey || !/^[1-9]$/.test(event.key)) return;
  if (event.target.closest('input, select, textarea')) return;
  const row = $('table').hidden ? 'hand' : 'table';
  const button = $(row).children[Number(event.key) - 1];
  if (!button) return;
  button.click();
  const next = state.game.phase === 'tell' && !showsResult() ? $('words') : $('confirm');
  (next.disabled || next.closest('[hidden]') ? button : next).focus();
  event.preventDefault();
}

// --- lens and explanations ---

function looks(source, text) { // a figure for each way of seeing, with who sees so
  const groups = new Map();
  state.looks.forEach((look, i) => {
    const agents = Object.keys(state.eyes).filter(p => state.eyes[p] === i).map(p => state.names[p]);
    const group = groups.get(look.perception) || {look: i + 1, names: []};
    group.names.push(...(agents.length ? agents : [look.name]));
    groups.set(look.perception, group);
  });
  return [...groups].map(([perception, {look, names}]) => make('figure', {},
    make('img', {src: source(look), alt: `${text}, as seen in ${perception.replaceAll('_', ' ')}`}),
    make('figcaption', {}, make('b', {}, perception.replaceAll('_', ' ')), `: ${list(names)}`)));
}

function showLens(card) {
  $('lens-hint').hidden = card !== null;
  $('lens-looks').replaceChildren(...(card === null ? [] : looks(look => picture(card, look), state.texts[card])));
  const said = card !== null && state.clues[card];
  $('lens-said').textContent = said ? `The speaker says: “${said}”` : '';
}

function mind(name, opinion, images, names) { // what one listener makes of a clue; the target is first
  const right = opinion.pick === 0, most = opinion.belief[opinion.pick];
  const torn = opinion.belief.filter(p => most - p < 1e-6).length > 1; // it understands nothing that would decide
  const bars = opinion.belief.map((p, i) => make('div', {className: i ? 'bar' : 'bar target'},
    make('img', {src: images[i], alt: names[i]}),
    make('meter', {min: 0, max: 1, value: p, 'aria-label': `${name} believes in ${names[i]}`}),
    make('span', {}, p.toFixed(2))));
  const chips = opinion.words.map(([word, effect]) => make('span', {
    className: `word ${effect > .05 ? 'for' : effect < -.05 ? 'against' : ''}`}, `${word} ${effect < 0 ? '−' : '+'}${
    Math.abs(effect).toFixed(2)}`));
  return make('div', {className: 'mind'},
    make('div', {}, make('b', {}, name), ' ', make('span', {className: torn ? 'soft' : right ? 'good' : 'bad'},
      torn ? 'cannot tell' : right ? 'finds it' : `picks ${names[opinion.pick]}`)),
    ...bars, make('div', {className: 'words'}, ...chips));
}

const mindName = i => {
  const agents = Object.keys(state.eyes).filter(p => state.eyes[p] === i).map(p => state.names[p]);
  return `${state.looks[i].name}${agents.length ? ` (${list(agents)})` : ''}`;
};

function showWhy(found, names) {
  $('why-body').replaceChildren(
    make('p', {}, make('b', {}, `“${found.clue}”`)),
    make('p', {className: 'soft'}, 'Bars: belief in each card, the right one first. Words: how much each helps (+) or ',
      'hinders (−) in finding it, measured by leaving it out.'),
    ...found.opinions.map((opinion, i) => mind(mindName(i), opinion, found.cards.map(card => picture(card, i + 1)), names)));
  $('why').hidden = false;
}

async function explainRound(number) {
  const key = `${state.key} ${number} ${JSON.stringify(lastRound())}`;
  if (explained === key) { $('why').hidden = false; return; }
  try {
    const found = await ask('/api/explain', JSON.stringify({round: number}));
    if (!showsResult() || state.game.rounds.length - 1 !== number) return; // the game has gone on meanwhile
    const round = lastRound();
    showWhy(found, found.cards.map(card => {
      const owner = round.owners[round.table.indexOf(card)];
      return owner === state.you ? 'your card' : `${state.names[owner]}’s card`;
    }));
    explained = key;
  } catch (error) {
    complain(error);
  }
}

async function tryClue() {
  const card = chosen, order = [card, ...state.game.hand.filter(other => other !== card)];
  try {
    const found = await ask('/api/explain', JSON.stringify({card, clue: $('words').value}));
    complain(null);
    showWhy(found, order.map(other => `card ${state.game.hand.indexOf(other) + 1} of your hand`));
    $('why-title').focus();
    explained = '';
  } catch (error) {
    complain(error);
  }
}

// --- an image of one's own ---

let ownCount = 0;

async function sendImage(file) {
  if (!file) return;
  $('own-status').className = '';
  $('own-status').textContent = 'The speaker looks at it …';
  try {
    if (file.size > MOST_BYTES) throw new Error(`that is over ${MOST_BYTES / 1e6} MB; make it smaller`);
    showOwn(await ask('/api/image', file, file.type || 'application/octet-stream'));
    $('own-status').textContent = 'Done.';
  } catch (error) {
    $('own-status').className = 'bad';
    $('own-status').textContent = `That did not work: ${error.message}.`;
  }
  $('file').value = '';
}

function showOwn(found) {
  const speakers = Object.keys(found.captions);
  if (!speakers.length) return;
  ownCount += 1;
  const own = look => `${picture('own', look)}?${ownCount}`;
  const others = [...Array(found.others).keys()].map(i => -1 - i);
  const names = ['your image', ...others.map(i => `other image ${-i}`)];
  const parts = speakers.reverse().map(name => {
    const said = found.captions[name].map(([text, p]) => make('p', {}, `“${text}” `, make('span', {className: 'soft'},
      `probability ${p >= .001 ? p.toFixed(3) : p.toExponential(0)}`)));
    const minds = found.opinions[name].map((opinion, i) => mind(state.looks[i].name, opinion,
      [own(i + 1), ...others.map(card => picture(card, i + 1))], names));
    return make('details', {open: name === 'trained'}, make('summary', {}, `The ${name} speaker says`), ...said,
      make('p', {className: 'soft'}, `Would they find it among ${names.length} images by the first caption?`), ...minds);
  });
  $('own-body').replaceChildren(make('div', {className: 'looks'}, ...looks(own, 'your image')), ...parts);
}

async function startGame() {
  $('play').hidden = false;
  $('to-play').setAttribute('aria-current', 'page');
  $('start').addEventListener('submit', event => {
    event.preventDefault();
    act('/api/new', {goal: Number($('goal').value)});
  });
  $('again').addEventListener('click', () => { // twice, so that a slip costs nothing
    if ($('again').dataset.sure) { delete $('again').dataset.sure; act('/api/new', {goal: state.game.goal}); }
    else $('again').dataset.sure = 'yes';
    $('again').textContent = $('again').dataset.sure ? 'Really start another game?' : 'Give up this game and start another';
  });
  $('again').addEventListener('blur', () => {
    delete $('again').dataset.sure;
    $('again').textContent = 'Give up this game and start another';
  });
  $('move').addEventListener('submit', play);
  $('next').addEventListener('click', () => act('/api/next', {}));
  $('words').addEventListener('input', allowMove);
  $('suggest').addEventListener('click', () => { $('words').value = state.clues[chosen].trim(); allowMove(); $('words').focus(); });
  $('try').addEventListener('click', tryClue);
  document.addEventListener('keydown', digit);
  window.addEventListener('focus', () => { if (!busy) refresh(); });
  $('file').addEventListener('change', () => sendImage($('file').files[0]));
  for (const kind of ['dragover', 'drop']) {
    document.addEventListener(kind, event => { // anywhere on the page
      event.preventDefault();
      $('drop').classList.toggle('over', kind === 'dragover');
      if (kind === 'drop') sendImage(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener('dragleave', () => $('drop').classList.remove('over'));
  await refresh();
  if (state) ask('/api/image').then(showOwn, complain);
}

// --- training, as it goes ---

const GROUPS = [ // title, figures, what to look for
  ['Reward', /^(eval\/)?reward$/],
  ['Gap between the listeners', /gap/, 'gap_constant: the gap if the commonest caption were said of every image'],
  ['Accuracy of each listener', /^(eval\/)?accuracy\//],
  ['Loss', /^(eval\/)?loss$/],
  ['Recall', /recall/],
  ['Caption length', /^(eval\/)?length$/, 'tokens'],
  ['Entropy', /^(eval\/)?entropy$/, 'nats a token; near 0 the speaker tries nothing new'],
  ['Constant solution', /commonest_caption/, 'the share of images that get the commonest caption; 1: all the same'],
  ['Kernel', /kernel_distance/, 'how far the prefixes’ kernel has moved from the start: 0 lazy, towards 1 rich'],
  ['Geometry', /prefix_dimensions/, 'how many dimensions the prefixes of the images fill (participation ratio)']];
const INKS = ['#7a6ff0', '#e07b39', '#2f9e77', '#c2477f', '#3f88c5', '#a08a1f', '#888'];
const WINDOW = 20; // steps of a running mean

function withGap(row, weights) { // the gap in the batch: mean accuracy of listeners of positive and of negative weight
  const mean = sign => {
    const found = Object.keys(weights).filter(name => weights[name] * sign > 0).map(name => row[`accuracy/${name}`]);
    return found.length && found.every(Number.isFinite) ? found.reduce((a, b) => a + b) / found.length : NaN;
  };
  const gap = mean(1) - mean(-1);
  return Number.isFinite(gap) ? {...row, gap} : row;
}

function drawn(tag, properties, text) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [key, value] of Object.entries(properties)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
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
  const picture = drawn('svg', {viewBox: `0 0 ${W} ${H}`, role: 'img',
    'aria-label': `${title} up to step ${x1}; last values: ${now.join(', ')}`});
  for (const value of [y0, (y0 + y1) / 2, y1]) {
    picture.append(drawn('line', {x1: left, x2: W - 8, y1: y(value), y2: y(value), class: 'grid'}),
      drawn('text', {x: left - 5, y: y(value) + 4, 'text-anchor': 'end'}, short(value)));
  }
  picture.append(drawn('text', {x: left, y: H - 4}, `step ${x0}`),
    drawn('text', {x: W - 8, y: H - 4, 'text-anchor': 'end'}, String(x1)));
  const line = (points, ink, opacity) => {
    const every = Math.ceil(points.length / 800); // more than there are pixels
    const kept = points.filter((_, i) => i % every === 0 || i === points.length - 1);
    picture.append(drawn('polyline', {points: kept.map(p => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join(' '),
      fill: 'none', stroke: ink, 'stroke-width': 2, opacity}));
  };
  series.forEach(([key, points], i) => {
    const ink = INKS[i % INKS.length];
    const dots = points.length < 30 || key.startsWith('eval/');
    line(points, ink, dots ? .9 : .25);
    if (!dots) line(runningMean(points), ink, 1);
    else for (const p of points) picture.append(drawn('circle', {cx: x(p[0]), cy: y(p[1]), r: 2.5, fill: ink}));
  });
  const legend = make('div', {className: 'keys'}, ...now.map((text, i) => {
    const key = make('span', {}, text);
    key.style.setProperty('--key', INKS[i % INKS.length]);
    return key;
  }));
  return make('section', {className: 'chart'}, make('h3', {}, title), note && make('p', {className: 'soft'}, note), picture,
    legend);
}

function drawRun(name, rows, steps) {
  const last = rows[rows.length - 1];
  if (!last) { $('progress').textContent = `${name} has logged nothing yet.`; return; }
  const pace = Number.isFinite(last.seconds_per_step) ? `, ${last.seconds_per_step.toFixed(1)} s a step` : '';
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
  $('texts').replaceChildren(...[...texts].map(([key, said]) => sayings(key, said)));
}

function sayings(title, said) { // the last texts, newest first; what is as it was the time before is dimmed
  const rows = said.slice(-6).map(([step, texts], i, all) => make('tr', {}, make('th', {scope: 'row'}, `step ${step}`),
    ...texts.map((text, j) => make('td', {className: i && all[i - 1][1][j] === text ? 'soft' : ''}, text))));
  return make('section', {className: 'chart'}, make('h3', {}, title === 'eval/captions' ? 'What is said of the same images'
    : title), make('table', {}, ...rows.reverse()));
}

async function startRuns() {
  $('runs').hidden = false;
  $('to-runs').setAttribute('aria-current', 'page');
  let rows = [], mark = '', at = 0, name = '', facts = {steps: 0, weights: {}}, timer = 0;
  const begin = () => { name = $('run').value; mark = ''; at = 0; rows = []; poll(); };
  async function poll() {
    clearTimeout(timer);
    const asked = name;
    try {
      const part = await ask(`/api/log?${new URLSearchParams({run: name, mark, at})}`);
      if (asked !== name) return; // another run was chosen meanwhile
      complain(null);
      if (part.anew) { rows = []; facts = part; }
      rows.push(...part.rows.map(row => withGap(row, facts.weights)));
      [mark, at] = [part.mark, part.at];
      if (part.rows.length || part.anew) drawRun(name, rows, facts.steps);
      if (part.more) return poll();
    } catch (error) {
      complain(error);
    }
    if ($('follow').checked) timer = setTimeout(poll, 2000);
  }
  $('run').addEventListener('change', begin);
  $('follow').addEventListener('change', poll);
  $('which').addEventListener('submit', event => event.preventDefault());
  try {
    const found = await ask('/api/runs');
    $('run').append(...found.runs.map(run => make('option', {value: run}, run)));
    if (found.runs.includes(found.this)) $('run').value = found.this;
    if (found.runs.length) begin(); else $('progress').textContent = 'No run here has a log yet.';
  } catch (error) {
    complain(error);
  }
}

if (location.pathname === '/runs') startRuns(); else startGame();
