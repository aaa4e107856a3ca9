// WordPiece as the model's own tokenizer does it: token ids, and where each token stands in the text.
//
// What becomes of a character before it is looked up (removed, set apart, lower-cased, its accents taken away) stands
// in a table that was read off that tokenizer (characters.py), so no version of Unicode is assumed here.

const WORD = 0, GONE = 1, BLANK = 2, APART = 3, MAPPED = 4, DECOMPOSED = 5;

export class WordPiece {
  // table: `characters` of model/browser.json; wordpiece: its `wordpiece`; vocabulary: token → id.
  constructor(table, wordpiece, vocabulary) {
    this.kinds = new Uint8Array(0x110000);
    this.marks = new Uint8Array(0x110000);
    const kinds = { gone: GONE, blank: BLANK, apart: APART, decomposed: DECOMPOSED };
    for (const [name, kind] of Object.entries(kinds)) fill(this.kinds, table[name], kind);
    // A lone half of a pair is no character, and read as U+FFFD.
    fill(this.kinds, [0xd800, 0xe000], this.kinds[0xfffd]);
    fill(this.marks, table.punctuation, 1);
    this.mapped = new Map(Object.entries(table.mapped).map(([from, to]) => [from.codePointAt(0), to]));
    for (const point of this.mapped.keys()) this.kinds[point] = MAPPED;
    this.vocabulary = new Map(Object.entries(vocabulary));
    this.prefix = wordpiece.prefix;
    this.longest = wordpiece.longest_word;
    this.unknown = wordpiece.unknown_id;
  }

  // { ids, starts, ends }: half-open spans in code points of the text, as Python counts characters.
  encode(text) {
    const made = { ids: [], starts: [], ends: [] };
    let word = [], places = [];
    const flush = () => {
      if (word.length) this.addWord(word, places, made);
      word = [];
      places = [];
    };
    let place = 0;
    for (const character of text) {
      for (const each of this.normalised(character)) {
        const point = each.codePointAt(0);
        if (point === 32) {
          flush();
        } else if (this.marks[point]) {
          flush();
          this.addWord([each], [place], made);
        } else {
          word.push(each);
          places.push(place);
        }
      }
      place += 1;
    }
    flush();
    return made;
  }

  normalised(character) {
    const point = character.codePointAt(0);
    switch (this.kinds[point]) {
      case GONE: return '';
      case BLANK: return ' ';
      case APART: return [' ', character, ' '];
      case MAPPED: return this.mapped.get(point);
      case DECOMPOSED: return character.normalize('NFD');
      default: return [character];
    }
  }

  // The longest piece of the vocabulary, then the longest of the rest, and so on; unknown if a rest has none.
  addWord(word, places, made) {
    const found = word.length <= this.longest ? this.pieces(word) : null;
    if (found === null) {
      made.ids.push(this.unknown);
      made.starts.push(places[0]);
      made.ends.push(places[places.length - 1] + 1);
      return;
    }
    for (const { id, first, end } of found) {
      made.ids.push(id);
      made.starts.push(places[first]);
      made.ends.push(places[end - 1] + 1);
    }
  }

  pieces(word) {
    const found = [];
    let first = 0;
    while (first < word.length) {
      let end = word.length, id;
      for (; end > first; end -= 1) {
        id = this.vocabulary.get((first ? this.prefix : '') + word.slice(first, end).join(''));
        if (id !== undefined) break;
      }
      if (end === first) return null;
      found.push({ id, first, end });
      first = end;
    }
    return found;
  }
}

// ranges: first and end of each, one after the other.
function fill(array, ranges, value) {
  for (let i = 0; i < ranges.length; i += 2) array.fill(value, ranges[i], ranges[i + 1]);
}
