// Which answers are the same, and how to come to three that are not.

/** How many suggestions are wanted, and how often the model is asked for them at most. */
export const WANTED = 3;
export const TRIES = 10;
/** The most characters of an answer that are shown. */
const LONGEST = 200;

const EMOJI = /\p{Extended_Pictographic}|\p{Regional_Indicator}{2}|[0-9#*]\uFE0F?\u20E3/u;
const PICTURE_OF_TEXT = /^[\u00A9\u00AE\u2122\u203C\u2049\u2139]$/u;

/** The characters of a text as people count them. */
export function characters(text) {
  if (typeof Intl === "object" && Intl.Segmenter) {
    return Array.from(new Intl.Segmenter("en", { granularity: "grapheme" }).segment(text), (part) => part.segment);
  }
  return Array.from(text);
}

/** Whether a character is an emoji; ©, ™ and the like are text unless they ask to be pictures. */
export function isEmoji(character) {
  return EMOJI.test(character) && !PICTURE_OF_TEXT.test(character);
}

/** Equal for answers of the same emoji, in whatever order and number; of texts, for the same words. */
export function sameness(answer) {
  const emoji = characters(answer).filter(isEmoji).map((one) => one.replaceAll("\uFE0F", ""));
  if (emoji.length) return "emoji " + [...new Set(emoji)].sort().join(" ");
  return "text " + answer.toLowerCase().replace(/\s+/g, " ");
}

/** The model's words, fit to be shown: no blanks around them, no controls, not endless. */
export function tidy(answer) {
  const plain = String(answer).slice(0, 20 * LONGEST).replace(/[\p{Cc}\u202A-\u202E\u2066-\u2069]+/gu, " ").trim();
  const all = characters(plain);
  return all.length <= LONGEST ? plain : all.slice(0, LONGEST).join("") + "…";
}

/** The settings of the n-th try: the likeliest answer, then samples, first of what is likely, then of more. */
export function settings(n) {
  if (n === 0) return { temperature: 0, top_k: 1 };
  const range = n < 5 ? { top_p: 0.95, min_p: 0 } : { top_p: 1, min_p: 0.01 };
  return { temperature: 0.7 + 0.1 * n, top_k: 40, ...range, seed: n };
}

/** Whether an answer is emoji and nothing else. */
export function isAllEmoji(answer) {
  return characters(answer).every((one) => isEmoji(one) || !one.trim());
}

/**
 * Distinct answers, one by one as they come; `ask` takes settings and gives a text. Where the likeliest
 * answer is emoji, samples with words among them are passed over.
 */
export async function* suggestions(ask) {
  const seen = new Set();
  let inEmoji = false;
  for (let n = 0; n < TRIES && seen.size < WANTED; n++) {
    const answer = tidy(await ask(settings(n)));
    if (n === 0) inEmoji = isAllEmoji(answer);
    const key = sameness(answer);
    if (!answer || seen.has(key) || (inEmoji && !isAllEmoji(answer))) continue;
    seen.add(key);
    yield answer;
  }
}
