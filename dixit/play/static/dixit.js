// The pages of dixit/play/web.py.

import {startGame} from './game.js';
import {startRuns} from './runs.js';

if (location.pathname === '/runs') startRuns(); else startGame();
