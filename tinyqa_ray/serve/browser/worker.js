// Reads beside the page, so that the page stays alive: takes { number, path, body }, gives { number, reply | error }.

import { Reader } from './reader.js';

const base = new URL('..', import.meta.url);
const reader = Reader.load(base, share => postMessage({ progress: share }));
let newest = 0;

const replies = {
  'info': async () => {
    const { model, parameters, precision } = (await reader).about;
    return { model, parameters, engine: `ONNX Runtime ${precision}, in this browser` };
  },
  'v1/answer': async (body, number) => {
    newest = number;
    return (await reader).answer(body, async () => {
      // Messages come in between two windows: the newest question wins.
      await new Promise(done => { setTimeout(done); });
      if (newest !== number) throw new Error('another question was asked meanwhile');
    });
  },
};

onmessage = async ({ data: { number, path, body } }) => {
  try {
    postMessage({ number, reply: await replies[path](body, number) });
  } catch (problem) {
    postMessage({ number, error: problem.message });
  }
};
