// Transformers.js on a folder that the tool export_onnx wrote: token ids, and greedy answers in each variant.
// usage: node check_onnx.mjs FOLDER [SAMPLE.js]
//
// With SAMPLE.js, the page's own file that chooses tokens, also its draws.
//
// Where an answer differs, the step at which it does so is looked at: how far our likeliest token's logit
// was above the next one's. Below the variant's margin it is a near tie, which the rounding of weights may
// decide otherwise. It is shown, and counted.
import {readFileSync} from "node:fs";
import {basename, dirname, join, resolve} from "node:path";
import {AutoModelForCausalLM, AutoTokenizer, Tensor, env} from "@huggingface/transformers";

// The largest margin of a near tie, and the least share of answers that must be equal.
const RULES = {
    fp32: {margin: 0.001, share: 1},
    q8: {margin: 0.3, share: 0.85},
    q4: {margin: 1.5, share: 0.6},
};

let passed = 0;
let failed = 0;
function check(good, line) {
    console.log(`${good ? "ok    " : "FAILED"} ${line}`);
    good ? passed++ : failed++;
}

const folder = resolve(process.argv[2]);
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
env.useFSCache = false;
const {rows} = JSON.parse(readFileSync(join(folder, "ours.json"), "utf8"));
const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8"));

const tokenizer = await AutoTokenizer.from_pretrained(basename(folder));
const other = rows.filter(({messages, prompt}) => {
    const ids = tokenizer.apply_chat_template(messages, {add_generation_prompt: true, return_tensor: false, return_dict: false});
    return JSON.stringify(ids.map(Number)) !== JSON.stringify(prompt);
});
check(other.length === 0, `token ids of ${rows.length - other.length} of ${rows.length} questions equal`);

for (const [dtype, {margin, share}] of Object.entries(RULES)) {
    const model = await AutoModelForCausalLM.from_pretrained(basename(folder), {dtype});
    let equal = 0;
    const ties = [];
    const wrong = [];
    for (const [index, {prompt, answer: {ids, margins}}] of rows.entries()) {
        const theirs = await greedy(model, prompt, ids.length);
        const at = ids.findIndex((id, place) => id !== theirs[place]);
        if (at < 0) equal++;
        else (margins[at] < margin ? ties : wrong).push(`row ${index}, token ${at}: margin ${margins[at].toFixed(4)}`);
    }
    await model.dispose();
    for (const line of ties) console.log(`       ${dtype}: near tie, ${line}`);
    for (const line of wrong) console.log(`       ${dtype}: no near tie, ${line}`);
    const said = `${equal} of ${rows.length} greedy answers equal, ${ties.length} part at a near tie`;
    check(wrong.length === 0 && equal >= share * rows.length, `${dtype}: ${said}`);
}
const {dtype} = config["transformers.js_config"];
const model = await AutoModelForCausalLM.from_pretrained(basename(folder));
check((await greedy(model, rows[0].prompt, 1)).length === 1, `${dtype} is taken where nothing is said`);
if (process.argv[3]) await draws(readFileSync(process.argv[3], "utf8"));
console.log(`${passed} passed, ${failed} failed, 0 skipped`);
process.exit(failed > 0 ? 1 : 0);

/** The likeliest tokens after `prompt`, with the stop token that ends them. */
async function greedy(model, prompt, longest) {
    const ids = (values) => new Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
    const input = {input_ids: ids(prompt), attention_mask: ids(prompt.map(() => 1))};
    const output = await model.generate({...input, max_new_tokens: longest, do_sample: false});
    return Array.from(output.data, Number).slice(prompt.length);
}

/** Whether the page's draws are as often as the tokens' shares say, and what is ruled out does not come. */
async function draws(source) {
    const {largest, pick} = await import(`data:text/javascript,${encodeURIComponent(source)}`);
    const logits = Float32Array.from({length: 500}, (_, place) => Math.sin(place * 7.1) * 4);
    const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a]);
    check(JSON.stringify(largest(logits, 40)) === JSON.stringify(order.slice(0, 40)), "the page finds the likeliest tokens");
    check(pick(logits, {temperature: 0, top_k: 1}, () => 0.999) === order[0], "at temperature 0 it takes the likeliest");

    // Written another way: shares of the k likeliest at temperature 1, cut by top_p and min_p, heated.
    const expected = ({temperature, top_k, top_p = 1, min_p = 0}) => {
        const all = order.slice(0, top_k).map((place) => ({place, share: Math.exp(logits[place])}));
        const total = all.reduce((sum, {share}) => sum + share, 0);
        const kept = [];
        for (let sum = 0, at = 0; at < all.length && (at === 0 || sum < top_p); sum += all[at++].share / total) kept.push(all[at]);
        const heated = kept.filter(({share}) => share >= min_p * all[0].share).map(({place}) => [place, Math.exp(logits[place] / temperature)]);
        const sum = heated.reduce((rest, [, weight]) => rest + weight, 0);
        return new Map(heated.map(([place, weight]) => [place, weight / sum]));
    };
    const count = 40_000;
    for (const settings of [
        {temperature: 0.8, top_k: 40, top_p: 0.95},
        {temperature: 1.5, top_k: 40, min_p: 0.3},
        {temperature: 1, top_k: 3},
    ]) {
        const shares = expected(settings);
        const seen = new Map();
        // Every point of the line once: no chance in it.
        for (let n = 0; n < count; n++) {
            const token = pick(logits, settings, () => (n + 0.5) / count);
            seen.set(token, (seen.get(token) ?? 0) + 1);
        }
        const worst = Math.max(...Array.from(shares, ([place, share]) => Math.abs(share - (seen.get(place) ?? 0) / count)));
        const others = Array.from(seen.keys()).filter((place) => !shares.has(place));
        check(worst < 2 / count && others.length === 0, `it draws ${shares.size} tokens by their shares: ${JSON.stringify(settings)}`);
    }
}
