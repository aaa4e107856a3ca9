// Tokens → windows, and logits → answers: the rules of datasets/windows.py and of reader/spans.py,
// reader/answers.py and reader/ranks.py.

const MOST_OF_A_WINDOW = 256, JOINED_CHARACTERS = 8;
const SPACES = '[^\\S\\n\\r\\u2028\\u2029]*';
const JOINED = new RegExp(`^${SPACES}[-\\u2010\\u2011'"\\u2018-\\u201d\\u00ab\\u00bb]?${SPACES}$`, 'u');
const ARTICLES = /(?<![\p{L}\p{N}_])(?:a|an|the)(?![\p{L}\p{N}_])/gu;

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

// What the model read of one context: { spans: [{ start, end, score, more }], nullScore }, the best span first.
//
// read: [{ window, start, end }], the logits of every window of it; letters: the code points of the context. Sums are
// rounded to 32 bits, as numpy's are. More spans of a window are looked at than wanted, as some are fragments.
export function reading(read, context, letters, maxAnswerTokens, topK) {
  const ofWindow = topK === 1 ? 1 : Math.min(2 * topK + 4, MOST_OF_A_WINDOW), spans = [];
  let nullScore = Infinity;
  for (const { window, start, end } of read) {
    nullScore = Math.min(nullScore, Math.fround(start[0] + end[0]));
    const from = window.contextStart, to = from + window.contextTokens;
    for (const found of bestSpans(start.slice(from, to), end.slice(from, to), maxAnswerTokens, ofWindow)) {
      spans.push({
        start: context.starts[window.first + found.first],
        end: context.ends[window.first + found.last],
        score: found.score,
        more: found.last - found.first,
      });
    }
  }
  return { spans: distinct(spans, topK === 1 ? null : letters, topK), nullScore };
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

// The better span first; of equal ones that of fewer tokens, then the earlier.
const order = (a, b) => b.score - a.score || a.more - b.more || a.start - b.start || a.end - b.end;

// The best spans, none of which overlaps a better one or is a fragment beside it; letters: null to look at overlaps only.
function distinct(spans, letters, topK) {
  const kept = [], taken = [];
  for (const span of [...spans].sort(order)) {
    if (kept.length === topK) break;
    if (taken.some(other => span.start < other.end && other.start < span.end)) continue;
    const whole = letters && taken.find(other => beside(letters, span, other));
    if (whole) {
      // What stands beside the two together is a fragment as well.
      whole.start = Math.min(whole.start, span.start);
      whole.end = Math.max(whole.end, span.end);
      continue;
    }
    taken.push({ start: span.start, end: span.end });
    kept.push(span);
  }
  return kept;
}

// Whether two spans are parts of one expression: only spaces, a hyphen or a quotation mark stand between them.
function beside(letters, one, other) {
  const [first, last] = one.end <= other.start ? [one.end, other.start] : [other.end, one.start];
  return last - first <= JOINED_CHARACTERS && JOINED.test(letters.slice(first, last).join(''));
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
  const naProb = Math.min(1, ...all), none = [];
  if (naProb > settings.no_answer_threshold || !made.length) {
    const score = made.length ? 1 - made[0].score : 1;
    none.push({ answer: null, score, start: 0, end: 0, na_prob: naProb, document_id: null });
  }
  return [...none, ...rescored(made.slice(0, topK - none.length), settings)];
}

// Answers, best first, with the chance that each is right, held against every better answer that says something else.
function rescored(answers, settings) {
  const rivals = new Map();
  let left = 1, free = 1, least = 1;
  const made = answers.map(found => {
    const key = sameAnswer(found.answer), known = rivals.has(key);
    if (!known) rivals.set(key, { rank: rivals.size, share: left });
    const { rank, share } = rivals.get(key);
    let score = rank === 0 ? found.score : Math.min(scaled(found.score * share, rank, settings), least);
    if (!known) {
      score = Math.min(score, free);
      left *= 1 - found.score;
      free = Math.max(free - score, 0);
      least = score;
    }
    return { ...found, score };
  });
  return made.sort((a, b) => b.score - a.score);
}

// A chance as the scale that was fitted for the answer's rank, from 0 for the best, corrects it.
function scaled(chance, rank, { rank_temperatures: temperatures, rank_shifts: shifts }) {
  if (rank === 0 || !temperatures.length || chance <= 0 || chance >= 1) return chance;
  const place = Math.min(rank, temperatures.length) - 1;
  return sigmoid((Math.log(chance) - Math.log1p(-chance) - shifts[place]) / temperatures[place]);
}

// A key that is equal for answers that SQuAD's evaluator takes for equal.
function sameAnswer(text) {
  const words = text.toLowerCase().replace(/[!-/:-@[-`{-~]/g, '').replace(ARTICLES, ' ');
  return words.split(/\s+/u).filter(word => word).join(' ') || text;
}
