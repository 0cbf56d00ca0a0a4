// llama.cpp (node-llama-cpp) on a folder that the example export_gguf wrote: token ids, and greedy
// answers. usage: node check_gguf.mjs FOLDER [--large]
//
// Where an answer differs, the step at which it does so is looked at: how far our likeliest token's
// logit was above the next one's. Below the type's margin it is a near tie, which two programs that
// round otherwise may decide otherwise (llama.cpp rounds what a matrix is multiplied with to the
// matrix's type: to 8 bits and a scale for Q8_0 and Q4_0). It is shown, and counted. The values of these two
// are there as F32, too, with which both programs compute alike.
import {existsSync, readFileSync} from "node:fs";
import {join} from "node:path";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

// The largest margin of a near tie, and the least share of answers that must be equal. The share is
// for the embedded model: a large one that is not tuned goes on for as long as it is let.
const RULES = {
    F32: {margin: 0.001, share: 1},
    F16: {margin: 0.05, share: 0.9},
    BF16: {margin: 0.2, share: 0.9},
    "F32 of Q8_0": {margin: 0.001, share: 1},
    "F32 of Q4_0": {margin: 0.001, share: 1},
    Q8_0: {margin: 0.5, share: 0.8},
    Q4_0: {margin: 0.7, share: 0.6},
};

let passed = 0;
let failed = 0;
function check(good, line) {
    console.log(`${good ? "ok    " : "FAILED"} ${line}`);
    good ? passed++ : failed++;
}

const folder = process.argv[2];
// A second thread waits more than it helps where a token takes a millisecond.
const large = process.argv.includes("--large");
const threads = large ? 2 : 1;
const expected = JSON.parse(readFileSync(join(folder, "expected.json"), "utf8"));
const llama = await getLlama({gpu: false, build: "never", maxThreads: threads, logLevel: LlamaLogLevel.warn});

for (const file of expected.files) {
    const path = join(folder, file.file);
    if (!existsSync(path)) {
        check(false, `${file.kind}: no ${path}`);
        continue;
    }
    const model = await llama.loadModel({modelPath: path});
    tokens(file.kind, model);
    await answers(file, model);
    await model.dispose();
}
console.log(`${passed} passed, ${failed} failed, 0 skipped`);
process.exit(failed > 0 ? 1 : 0);

function tokens(kind, model) {
    const other = [];
    for (const {text, ids} of expected.texts) {
        const theirs = model.tokenize(text, true, "trimLeadingSpace");
        if (JSON.stringify(theirs) !== JSON.stringify(ids)) other.push({text, ids, theirs});
    }
    for (const {text, ids, theirs} of other.slice(0, 5)) {
        console.log(`       ${JSON.stringify(text)}: ours ${ids.join(" ")}, llama.cpp's ${theirs.join(" ")}`);
    }
    const count = expected.texts.length;
    check(other.length === 0, `${kind}: token ids of ${count - other.length} of ${count} texts equal`);
    const stops = [model.tokens.bos, model.tokens.eos, model.tokens.eot];
    check(stops.every((id) => id !== null), `${kind}: <bos>, <eos> and end of turn are ${stops.join(", ")}`);
}

async function answers(file, model) {
    const {margin, share} = RULES[file.kind];
    // The cache in f32, as ours: in f16, which is llama.cpp's habit, it is one more rounding.
    const context = await model.createContext({
        contextSize: 512, threads, flashAttention: false,
        experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
    });
    let equal = 0;
    let tokens = 0;
    const ties = [];
    const wrong = [];
    for (const [index, prompt] of expected.prompts.entries()) {
        const {ids, margins} = file.answers[index];
        const sequence = context.getSequence();
        const theirs = [];
        for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
            theirs.push(token);
            if (theirs.length >= ids.length) break;
        }
        sequence.dispose();
        const at = ids.findIndex((id, place) => id !== theirs[place]);
        tokens += at < 0 ? ids.length : at;
        if (at < 0) equal++;
        else (margins[at] < margin ? ties : wrong).push(`row ${index}, token ${at}: margin ${margins[at].toFixed(4)}`);
    }
    await context.dispose();
    for (const line of ties) console.log(`       ${file.kind}: near tie, ${line}`);
    for (const line of wrong) console.log(`       ${file.kind}: no near tie, ${line}`);
    const count = expected.prompts.length;
    const said = `${equal} of ${count} greedy answers equal (${tokens} tokens), ${ties.length} part at a near tie`;
    check(wrong.length === 0 && (large || equal >= share * count), `${file.kind}: ${said}`);
}
