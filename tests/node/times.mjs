// llama.cpp (node-llama-cpp) as a peer of the benchmark `cpu`: it answers lines of JSON on its input with lines
// of JSON. usage: node times.mjs MODEL.gguf THREADS
//
//   {"do": "load"}                              loads the model anew
//   {"do": "generate", "prompt": [ids], "tokens": N}   N greedy tokens after the prompt
//
// Answers have "seconds" (all of it), "first" (to the first token), and the tokens.
import {createInterface} from "node:readline";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [path, threads] = [process.argv[2], Number(process.argv[3])];
const llama = await getLlama({gpu: false, build: "never", maxThreads: threads, logLevel: LlamaLogLevel.error});
let model = null;
let sequence = null;

async function load() {
    await model?.dispose();
    model = await llama.loadModel({modelPath: path});
    const context = await model.createContext({contextSize: 1024, batchSize: 512, threads});
    sequence = context.getSequence();
}

async function generate({prompt, tokens}) {
    await sequence.clearHistory();
    const started = performance.now();
    const answer = [];
    let first = null;
    for await (const token of sequence.evaluate(prompt, {temperature: 0})) {
        first ??= performance.now();
        answer.push(token);
        if (answer.length >= tokens) break;
    }
    const ended = performance.now();
    return {first: (first - started) / 1e3, seconds: (ended - started) / 1e3, answer};
}

await load();
console.log(JSON.stringify({ready: true}));
for await (const line of createInterface({input: process.stdin})) {
    const asked = JSON.parse(line);
    let said;
    if (asked.do === "load") {
        const started = performance.now();
        await load();
        said = {seconds: (performance.now() - started) / 1e3};
    } else {
        said = await generate(asked);
    }
    console.log(JSON.stringify(said));
}
process.exit(0);
