// The pages of dixit/play/web.py.

import {startGame} from './game.js';
import {startRuns} from './runs.js';

await (location.pathname === '/runs' ? startRuns() : startGame());
document.body.ariaBusy = 'false'; // the page says first that it is loading
