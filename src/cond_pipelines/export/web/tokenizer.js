// The tokenizer that `new_text_encoder` makes: byte-level BPE of captions in lower case. The same ids as in Python.

// What Python's str.isspace and Rust's char::is_whitespace mean; JavaScript's \s has U+FEFF too, and lacks U+0085.
const SPACE = "\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const BLANK = new RegExp(`^[${SPACE}\\u001c-\\u001f]*$`, "u");
const SCRIPTS = ["Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"];
const CHARACTER = new RegExp(`[${SCRIPTS.map((name) => `\\p{Script=${name}}`).join("")}]\\p{M}*`, "gu");
const LONG_WORD = new RegExp(`[^${SPACE}]{64}`, "gu");
// Of GPT-2 (Radford et al. 2019).
const WORD = new RegExp(
  `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|[${SPACE}]+(?![^${SPACE}])|[${SPACE}]+`,
  "gu",
);

export class Tokenizer {
  /** @param {{vocab: Object, merges: string[][], special: Object, start: number, end: number, max_length: number}} facts */
  constructor(facts) {
    this.facts = facts;
    this.vocab = new Map(Object.entries(facts.vocab));
    this.special = new Map(Object.entries(facts.special));
    this.ranks = new Map(facts.merges.map((pair, rank) => [pair.join(" "), rank]));
    const names = [...this.special.keys()].map((name) => name.replace(/[^\w]/g, "\\$&"));
    this.splitter = new RegExp(`(${names.join("|")})`);
    this.cache = new Map();
  }

  /** The ids of a caption, cut at the model's length; none for a caption without a word. */
  encode(text) {
    if (BLANK.test(text)) return [];
    const ids = [];
    for (const part of text.split(this.splitter)) {
      if (this.special.has(part)) ids.push(this.special.get(part));
      else if (part) for (const word of words(normalized(part))) ids.push(...this.#bpe(word));
    }
    return [this.facts.start, ...ids.slice(0, this.facts.max_length - 2), this.facts.end];
  }

  /** Bytes of a word, joined in the order in which the pairs were learned (Sennrich et al. 2016). */
  #bpe(word) {
    const known = this.cache.get(word);
    if (known) return known;
    const parts = [...new TextEncoder().encode(word)].map((byte) => BYTES[byte]);
    for (;;) {
      let best = Infinity;
      let at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) break;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    const ids = parts.map((part) => this.vocab.get(part));
    this.cache.set(word, ids);
    return ids;
  }
}

/** Compatibility characters to plain ones, lower case, one space before each line's first word. */
function normalized(text) {
  const lower = [...text.normalize("NFKC")].map((character) => character.toLowerCase()).join("");
  const without = lower.replace(/(?<=^|\n) /g, "");
  return without && ` ${without}`;
}

function words(text) {
  return isolated([text], CHARACTER).flatMap((part) => isolated([part], LONG_WORD)).flatMap((part) => part.match(WORD) ?? []);
}

/** Each text split into its matches of a pattern and what lies between them. */
function isolated(texts, pattern) {
  const parts = [];
  for (const text of texts) {
    let end = 0;
    for (const match of text.matchAll(pattern)) {
      parts.push(text.slice(end, match.index), match[0]);
      end = match.index + match[0].length;
    }
    parts.push(text.slice(end));
  }
  return parts.filter(Boolean);
}

/** GPT-2's visible character for each byte: itself where it can be seen, else one from U+0100 on. */
const BYTES = (() => {
  const isVisible = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(isVisible(byte) ? byte : next++));
})();
