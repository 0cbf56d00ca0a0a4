// Which token comes next.

/** The places of the `count` largest values, the largest first. */
export function largest(values, count) {
  const best = [];
  for (let place = 0; place < values.length; place++) {
    if (best.length === count && !(values[place] > values[best[count - 1]])) continue;
    let at = best.length;
    while (at > 0 && values[place] > values[best[at - 1]]) at--;
    best.splice(at, 0, place);
    if (best.length > count) best.pop();
  }
  return best;
}

/**
 * A token by its logits: the likeliest one at temperature 0, else one drawn. Of the `top_k` likeliest those
 * stay that together have the share `top_p`, and each at least `min_p` of the likeliest one's; the temperature
 * then evens out what is left. `random` gives numbers from 0 to 1.
 */
export function pick(logits, { temperature, top_k, top_p = 1, min_p = 0 }, random) {
  if (!temperature) return largest(logits, 1)[0];
  let places = largest(logits, top_k);
  const highest = logits[places[0]];
  const weigh = (heat) => places.map((place) => Math.exp((logits[place] - highest) / heat));
  const sum = (weights) => weights.reduce((total, one) => total + one, 0);
  const shares = weigh(1);
  const all = sum(shares);
  let before = 0;
  places = places.filter((_, at) => {
    const stays = at === 0 || (before < top_p * all && shares[at] >= min_p);
    before += shares[at];
    return stays;
  });
  const weights = weigh(temperature);
  let rest = random() * sum(weights);
  const at = weights.findIndex((weight) => (rest -= weight) < 0);
  return places[at < 0 ? places.length - 1 : at];
}
