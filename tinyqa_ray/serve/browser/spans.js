// Tokens → windows, and logits → answers: the rules of datasets/windows.py, reader/spans.py and reader/answers.py.

// The windows of a question and a context.
//
// sizes: max_seq_len, doc_stride; template: ids and types around the two. Each window holds `room` context tokens and
// begins `step` later than the one before; there is at least one, also for an empty context.
export function windows(question, context, sizes, template) {
  const { before, between, after } = template.ids;
  const around = before.length + between.length + after.length;
  const room = sizes.max_seq_len - question.length - around, step = room - sizes.doc_stride;
  if (step <= 0) {
    throw new Error(`the question has ${question.length} tokens, which leaves too little of a window of `
      + `${sizes.max_seq_len} for the context; shorten it`);
  }
  const head = [...before, ...question, ...between];
  const headTypes = [...template.types.before, ...question.map(() => template.types.question), ...template.types.between];
  const made = [];
  for (let first = 0; ; first += step) {
    const part = context.ids.slice(first, first + room);
    made.push({
      ids: [...head, ...part, ...after],
      types: [...headTypes, ...part.map(() => template.types.context), ...template.types.after],
      first, contextStart: head.length, contextTokens: part.length,
    });
    if (first + room >= context.ids.length) return made;
  }
}

// What the model read of one context: { spans: [{ start, end, score }], nullScore }, the best span first.
//
// read: [{ window, start, end }], the logits of every window of it. Sums are rounded to 32 bits, as numpy's are.
export function reading(read, context, maxAnswerTokens, topK) {
  const spans = [];
  let nullScore = Infinity;
  for (const { window, start, end } of read) {
    nullScore = Math.min(nullScore, Math.fround(start[0] + end[0]));
    const from = window.contextStart, to = from + window.contextTokens;
    for (const found of bestSpans(start.slice(from, to), end.slice(from, to), maxAnswerTokens, topK)) {
      spans.push({
        start: context.starts[window.first + found.first],
        end: context.ends[window.first + found.last],
        score: found.score,
      });
    }
  }
  return { spans: distinct(spans, topK), nullScore };
}

// The k best spans that share no token; of equal scores the shorter one comes first, then the earlier.
export function bestSpans(starts, ends, maxAnswerTokens, k) {
  const tokens = starts.length, longest = Math.min(maxAnswerTokens, tokens), found = [];
  while (found.length < Math.min(k, tokens)) {
    let best = null;
    for (let more = 0; more < longest; more += 1) {
      for (let first = 0; first + more < tokens; first += 1) {
        const score = Math.fround(starts[first] + ends[first + more]);
        if (best !== null && score <= best.score) continue;
        if (found.some(other => first <= other.last && first + more >= other.first)) continue;
        best = { first, last: first + more, score };
      }
    }
    if (best === null) break;
    found.push(best);
  }
  return found;
}

function distinct(spans, topK) {
  const kept = [];
  for (const span of [...spans].sort((a, b) => b.score - a.score || a.start - b.start || a.end - b.end)) {
    if (kept.some(other => span.start < other.end && other.start < span.end)) continue;
    kept.push(span);
    if (kept.length === topK) break;
  }
  return kept;
}

export function sigmoid(x) {
  const small = Math.exp(-Math.abs(x));
  return (x >= 0 ? 1 : small) / (1 + small);
}

// The answers to one question from all its contexts, best first; null comes first when every context's no-answer
// probability is above the threshold.
//
// read: [{ id, letters, reading }], a context's code points and what was read of it.
export function ranked(read, settings, topK) {
  const made = [], all = [];
  for (const { id, letters, reading: { spans, nullScore } } of read) {
    const naProb = spans.length ? sigmoid(nullScore - spans[0].score) : 1;
    all.push(naProb);
    for (const { start, end, score } of spans) {
      made.push({
        answer: letters.slice(start, end).join(''),
        score: sigmoid((score - nullScore - settings.score_shift) / settings.temperature),
        start, end, na_prob: naProb, document_id: id,
      });
    }
  }
  made.sort((a, b) => b.score - a.score);
  const naProb = Math.min(1, ...all);
  if (naProb > settings.no_answer_threshold || !made.length) {
    const score = made.length ? 1 - made[0].score : 1;
    made.unshift({ answer: null, score, start: 0, end: 0, na_prob: naProb, document_id: null });
  }
  return made.slice(0, topK);
}
