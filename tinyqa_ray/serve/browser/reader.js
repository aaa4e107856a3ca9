// A reader of this page's own: the model on ONNX Runtime for the web, with our tokens, windows and spans.

import * as ort from './ort/ort.wasm.min.mjs';
import { ranked, reading, windows } from './spans.js';
import { WordPiece } from './wordpiece.js';

const MAX_ANSWER_TOKENS = 30;

export class Reader {
  // base: URL of the folder that `tinyqa browser` wrote; progress: told the share of the model that has come.
  static async load(base, progress = () => {}) {
    const about = await json(new URL('model/browser.json', base));
    const tokenizer = await json(new URL('model/tokenizer.json', base));
    const weights = await bytes(new URL(about.file, base), about.bytes, progress);
    ort.env.wasm.wasmPaths = new URL('reader/ort/', base).href;
    // Threads share memory, which browsers allow on pages that are isolated by their headers only.
    ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
    const session = await ort.InferenceSession.create(weights, { executionProviders: ['wasm'] });
    return new Reader(about, new WordPiece(about.characters, about.wordpiece, tokenizer.model.vocab), session);
  }

  constructor(about, wordpiece, session) {
    this.about = about;
    this.wordpiece = wordpiece;
    this.session = session;
  }

  // Answers in the form of the server's POST /v1/answer.
  //
  // request: { question, contexts: [{ id, text }], top_k }; pause: awaited before each window, may throw to stop.
  async answer({ question, contexts, top_k: topK = 1 }, pause = async () => {}) {
    const began = performance.now(), asked = this.wordpiece.encode(question).ids, found = [];
    const usage = { contexts: contexts.length, windows: 0, tokens: 0 };
    for (const { id, text } of contexts) {
      const context = this.wordpiece.encode(text), read = [];
      for (const window of windows(asked, context, this.about.window, this.about.template)) {
        await pause();
        read.push({ window, ...await this.logits(window) });
        usage.windows += 1;
        usage.tokens += window.ids.length;
      }
      const letters = Array.from(text);
      found.push({ id, letters, reading: reading(read, context, letters, MAX_ANSWER_TOKENS, topK) });
    }
    const answers = ranked(found, this.about.settings, topK);
    const seconds = (performance.now() - began) / 1000;
    return { answers, results: null, model: this.about.model, usage: { ...usage, seconds } };
  }

  async logits(window) {
    const row = values => new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
    const all = {
      input_ids: row(window.ids),
      attention_mask: row(window.ids.map(() => 1)),
      token_type_ids: row(window.types),
    };
    const output = await this.session.run(Object.fromEntries(this.session.inputNames.map(name => [name, all[name]])));
    return { start: output.start_logits.data, end: output.end_logits.data };
  }
}

async function fetched(url) {
  // Asks the server whether a file of an earlier visit still holds: files of two builds are never mixed.
  const reply = await fetch(url, { cache: 'no-cache' });
  if (!reply.ok) throw new Error(`${url.pathname} cannot be fetched (${reply.status}); build the page again`);
  return reply;
}

async function json(url) {
  return (await fetched(url)).json();
}

// A file of a known size. A server that compresses gives another one in its headers.
async function bytes(url, size, progress) {
  const whole = new Uint8Array(size), stream = (await fetched(url)).body.getReader();
  let have = 0;
  for (;;) {
    const { done, value } = await stream.read();
    if (done) break;
    if (have + value.length > size) break;
    whole.set(value, have);
    have += value.length;
    progress(have / size);
  }
  if (have !== size) throw new Error(`${url.pathname} is not the file that the page was built with; build it again`);
  return whole;
}
