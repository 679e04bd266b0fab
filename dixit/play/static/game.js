// The page /: the game.

import {$, ask, element, showError} from './page.js';

const MAX_UPLOAD_BYTES = 10_000_000; // as in web.py

let state = null; // the last state from the server
let chosen = null; // the number of a card
let explained = ''; // the round whose explanation is shown
let busy = false;

const picture = (card, look) => `/picture/${state.key}/${card}/${look}.png`;
const nameOf = player => player === state.you ? 'you' : state.names[player];
const listenerOf = player => player in state.agent_listeners ? state.listeners[state.agent_listeners[player]] : null;
const agentsOf = i => // names of the agents that play with listener i
  Object.keys(state.agent_listeners).filter(p => state.agent_listeners[p] === i).map(p => state.names[p]);
const lastRound = () => state.game && state.game.rounds[state.game.rounds.length - 1];
const ended = () => state.game && state.game.phase === 'over';
const showsResult = () => state.game && (state.pending || ended());

function list(names) {
  return names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names[names.length - 1]}`;
}

async function act(path, request) {
  if (busy) return;
  busy = true;
  document.body.ariaBusy = 'true';
  try {
    const next = await ask(path, JSON.stringify(request));
    showError(null);
    chosen = null;
    show(next);
    $('task').focus();
  } catch (error) {
    await refresh();
    showError(error);
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
    showError(error);
  }
}

function show(next) {
  const before = state && state.key;
  state = next;
  $('about').textContent = `${state.run || 'practice table'} · ${state.cards} cards: ${state.deck}`;
  $('lens').hidden = $('own').hidden = !state.run; // both need the listeners of a trained run
  $('practice').hidden = Boolean(state.run);
  if (before !== state.key) {
    $('goal').replaceChildren(...state.goals.map((points, i) =>
      element('option', {value: points}, `${points} points, ${['a short game', 'a longer one', 'a whole one'][i]}`)));
    $('words').maxLength = state.max_clue_length;
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
  $('hint').textContent = 'The storyteller gives a clue for a card. The others each lay down a card that fits it, all ' +
    'are shuffled, and everyone but the storyteller guesses the right one. If all or none find it, the storyteller ' +
    'gets nothing and the others 2 points; otherwise the storyteller and those who found it get 3. Each vote for ' +
    'your card gives you 1. The agents see the cards differently: a good clue is understood by some of them, not all.';
}

function showPlayers() {
  const game = state.game, result = showsResult();
  const teller = result ? lastRound().storyteller : game.storyteller;
  $('players').replaceChildren(...state.names.map((name, p) => {
    const gained = result ? ` (+${lastRound().points[p]})` : '';
    const look = listenerOf(p);
    return element('li', {className: p === teller ? 'teller' : ''},
      element('b', {}, `${game.scores[p]}${gained}`), name,
      element('small', {className: 'soft'}, look ? look.about : 'sees everything',
        p === teller ? ' · storyteller' : ''));
  }));
}

function showTask() {
  const game = state.game, teller = state.names[game.storyteller];
  const round = `Round ${game.rounds.length + 1}. `;
  $('result').replaceChildren();
  if (game.phase === 'tell') {
    $('task').textContent = `${round}You are the storyteller`;
    $('hint').textContent = 'Choose a card of your hand and give a clue that some will understand, but not all.';
    $('confirm').textContent = 'Give this clue';
  } else if (game.phase === 'submit') {
    $('task').textContent = `${round}${teller}’s clue:`;
    $('hint').textContent = 'Choose the card of your hand that fits the clue best.';
    $('confirm').textContent = 'Lay down this card';
  } else {
    $('task').textContent = `${round}Which card is ${teller}’s?`;
    $('hint').textContent = 'Vote for one of the others’ cards.';
    $('confirm').textContent = 'Vote for this card';
  }
  $('table').replaceChildren(...game.table.map((card, place) => {
    const own = game.submitted.includes(card);
    return cardButton(card, `card ${place + 1} on the table`, own ? 'yours' : `card ${place + 1}`);
  }));
}

function showResult() {
  const game = state.game, round = lastRound(), teller = round.storyteller;
  const voters = place => round.votes.flatMap((vote, p) => vote === place ? [p] : []);
  const correct = voters(round.owners.indexOf(teller));
  const others = state.names.length - 1;
  $('task').textContent = ended()
    ? `The game is over: ${list(game.winners.map(p => p === state.you ? 'you' : state.names[p]))} won`
    : `Round ${game.rounds.length}: ${round.points[state.you]} point${round.points[state.you] === 1 ? '' : 's'} for you`;
  $('hint').textContent = ended() ? 'This was the last round:' : '';
  const finders = correct.length === others ? 'Everyone' : correct.length ? list(correct.map(nameOf)) : 'Nobody';
  const storytellerCard = teller === state.you ? 'your card' : `${state.names[teller]}’s card`;
  const gained = correct.length && correct.length < others ? 'so it scores.' : 'so the storyteller gets nothing.';
  $('result').replaceChildren(
    element('p', {}, `${finders[0].toUpperCase()}${finders.slice(1)} found ${storytellerCard}, ${gained}`));
  $('table').replaceChildren(...round.table.map((card, place) => {
    const owner = round.owners[place] === state.you ? 'yours' : `${state.names[round.owners[place]]}’s`;
    const chose = voters(place).map(nameOf);
    const right = round.owners[place] === teller;
    const label = element('span', {className: 'label'}, right ? element('b', {}, `✓ ${owner}`) : owner,
      chose.length ? ` ← ${list(chose)}` : '');
    return cardButton(card, `${owner}${right ? ', the right one' : ''}${chose.length ? `, chosen by ${list(chose)}` : ''}`,
      label, right ? 'card correct' : 'card');
  }));
  if (chosen === null) chosen = round.table[round.owners.indexOf(teller)];
  explainRound(game.rounds.length - 1);
}

function cardButton(card, name, label, className = 'card') {
  const image = element('img', {src: picture(card, 0), alt: `${name}: ${state.texts[card]}`, draggable: false});
  const button = element('button', {type: 'button', className, 'aria-pressed': 'false', 'data-card': card}, image);
  if (label) button.append(typeof label === 'string' ? element('span', {className: 'label'}, label) : label);
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
  const game = state.game, request = {round: game.rounds.length};
  if (game.phase === 'tell') Object.assign(request, {card: chosen, clue: $('words').value});
  if (game.phase === 'submit') request.cards = [chosen];
  if (game.phase === 'vote') request.place = game.table.indexOf(chosen);
  act('/api/move', request).then(() => { if (state.game && state.game.phase !== 'tell') $('words').value = ''; });
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

function perceptionFigures(source, text) { // a figure for each perception, with the players or listeners that have it
  const groups = new Map();
  state.listeners.forEach((look, i) => {
    const agents = agentsOf(i);
    const group = groups.get(look.perception) || {look: i + 1, names: []};
    group.names.push(...(agents.length ? agents : [look.name]));
    groups.set(look.perception, group);
  });
  return [...groups].map(([perception, {look, names}]) => element('figure', {},
    element('img', {src: source(look), alt: `${text}, as seen in ${perception.replaceAll('_', ' ')}`}),
    element('figcaption', {}, element('b', {}, perception.replaceAll('_', ' ')),
      `: ${groups.size > 1 ? list(names) : 'everyone'}`)));
}

function showLens(card) {
  $('lens-hint').hidden = card !== null;
  $('lens-looks').replaceChildren(
    ...(card === null ? [] : perceptionFigures(look => picture(card, look), state.texts[card])));
  const caption = card !== null && state.clues[card];
  $('lens-caption').textContent = caption ? `The speaker’s caption: “${caption}”` : '';
}

function listenerResponse(name, response, images, names) { // one listener’s beliefs given a clue; the target is first
  const right = response.pick === 0, most = response.belief[response.pick];
  const tied = response.belief.filter(p => most - p < 1e-6).length > 1; // its words do not distinguish them
  const bars = response.belief.map((p, i) => element('div', {className: i ? 'bar' : 'bar target'},
    element('img', {src: images[i], alt: names[i]}),
    element('meter', {min: 0, max: 1, value: p, 'aria-label': `${name}: belief in ${names[i]}`}),
    element('span', {}, p.toFixed(2))));
  const chips = response.words.map(([word, effect]) => element('span', {
    className: `word ${effect > .05 ? 'for' : effect < -.05 ? 'against' : ''}`}, `${word} ${effect < 0 ? '−' : '+'}${
    Math.abs(effect).toFixed(2)}`));
  return element('div', {className: 'mind'},
    element('div', {}, element('b', {}, name), ' ', element('span', {className: tied ? 'soft' : right ? 'good' : 'bad'},
      tied ? 'cannot tell' : right ? 'finds it' : `picks ${names[response.pick]}`)),
    ...bars, element('div', {className: 'words'}, ...chips));
}

const listenerName = i => {
  const agents = agentsOf(i);
  return `${state.listeners[i].name}${agents.length ? ` (${list(agents)})` : ''}`;
};

function showWhy(explanation, names) {
  $('why-body').replaceChildren(
    element('p', {}, element('b', {}, `“${explanation.clue}”`)),
    element('p', {className: 'soft'}, 'Bars: belief in each card, the right one first. Words: how much each helps (+) or ',
      'hinders (−) in finding it, measured by leaving it out.'),
    ...explanation.responses.map((response, i) =>
      listenerResponse(listenerName(i), response, explanation.cards.map(card => picture(card, i + 1)), names)));
  $('why').hidden = false;
}

async function explainRound(number) {
  const key = `${state.key} ${number} ${JSON.stringify(lastRound())}`;
  if (explained === key) { $('why').hidden = false; return; }
  try {
    const explanation = await ask('/api/explain', JSON.stringify({round: number}));
    if (!showsResult() || state.game.rounds.length - 1 !== number) return; // the game has gone on meanwhile
    const round = lastRound();
    showWhy(explanation, explanation.cards.map(card => {
      const owner = round.owners[round.table.indexOf(card)];
      return owner === state.you ? 'your card' : `${state.names[owner]}’s card`;
    }));
    explained = key;
  } catch (error) {
    showError(error);
  }
}

async function tryClue() {
  const card = chosen, order = [card, ...state.game.hand.filter(other => other !== card)];
  try {
    const explanation = await ask('/api/explain', JSON.stringify({card, clue: $('words').value}));
    showError(null);
    showWhy(explanation, order.map(other => `card ${state.game.hand.indexOf(other) + 1} of your hand`));
    $('why-title').focus();
    explained = '';
  } catch (error) {
    showError(error);
  }
}

// --- an uploaded image ---

let ownCount = 0;

async function sendImage(file) {
  if (!file) return;
  $('own-status').className = '';
  $('own-status').textContent = 'The speaker looks at it …';
  try {
    if (file.size > MAX_UPLOAD_BYTES) throw new Error(`that is over ${MAX_UPLOAD_BYTES / 1e6} MB; make it smaller`);
    showOwn(await ask('/api/image', file, file.type || 'application/octet-stream'));
    $('own-status').textContent = 'Done.';
  } catch (error) {
    $('own-status').className = 'bad';
    $('own-status').textContent = `That did not work: ${error.message}.`;
  }
  $('file').value = '';
}

function showOwn(result) {
  const speakers = Object.keys(result.captions);
  if (!speakers.length) return;
  ownCount += 1;
  const own = look => `${picture('own', look)}?${ownCount}`;
  const others = [...Array(result.others).keys()].map(i => -1 - i);
  const names = ['your image', ...others.map(i => `other image ${-i}`)];
  const parts = speakers.reverse().map(name => {
    const captions = result.captions[name].map(([text, p]) => element('p', {}, `“${text}” `, element('span',
      {className: 'soft'},
      `probability ${p >= .001 ? p.toFixed(3) : p.toExponential(0)}`)));
    const responses = result.responses[name].map((response, i) => listenerResponse(state.listeners[i].name, response,
      [own(i + 1), ...others.map(card => picture(card, i + 1))], names));
    return element('details', {open: name === 'trained'},
      element('summary', {}, `The ${name} speaker’s captions`), ...captions,
      element('p', {className: 'soft'}, `Would they find it among ${names.length} images by the first caption?`),
      ...responses);
  });
  $('own-body').replaceChildren(element('div', {className: 'looks'}, ...perceptionFigures(own, 'your image')), ...parts);
}

export async function startGame() {
  $('play').hidden = false;
  $('to-play').setAttribute('aria-current', 'page');
  $('start').addEventListener('submit', event => {
    event.preventDefault();
    act('/api/new', {goal: Number($('goal').value)});
  });
  $('again').addEventListener('click', () => { // two clicks, so that a slip costs nothing
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
  if (state) ask('/api/image').then(showOwn, showError);
}
