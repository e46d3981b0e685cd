// What a program does with the `openai` package for Node, told as facts: the steps and names of `conversation.py`.
// The folder that holds the package comes as second argument, JSON with base URL, keys and models on standard input.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [, , sort, packages] = process.argv;
const { OpenAI } = createRequire(`${packages}/`)("openai");
const { version } = JSON.parse(readFileSync(`${packages}/node_modules/openai/package.json`));

const HELLO = [{ role: "user", content: "Say hello." }];
const PARAMETERS = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const TOOLS = [{ type: "function", function: { name: "weather", parameters: PARAMETERS } }];
const CHOICE = { type: "function", function: { name: "weather" } };
const VERDICT = {
  type: "object",
  properties: { good: { type: "boolean" } },
  required: ["good"],
  additionalProperties: false,
};
const TOKENS = 8;

async function main() {
  const plan = JSON.parse(readFileSync(0));
  const client = new OpenAI({ baseURL: plan.base_url, apiKey: plan.key, maxRetries: 0 });
  const facts = {
    version,
    models: await each(plan.models, (name) => converse(client, name)),
    tools: await each(plan.test_models, (name) => callTools(client, name)),
    options: await each(plan.test_models, (name) => useOptions(client, name)),
    embeddings: await each(plan.embedding_models, (name) => embed(client, name)),
    catalogue: await lookUp(client, plan.models),
    errors: await meetErrors(client, plan),
    limits: await meetLimits(client.withOptions({ apiKey: plan.limited_key }), plan.trouble),
    leaving: await leave(client, plan.trouble),
    retries: await retry(client.withOptions({ maxRetries: 2 }), plan.trouble),
  };
  process.stdout.write(JSON.stringify(facts));
}

async function each(names, step) {
  const facts = {};
  for (const name of names) facts[name] = await step(name);
  return facts;
}

async function converse(client, model) {
  const chat = (more) => client.chat.completions.create({ model, messages: HELLO, max_tokens: TOKENS, ...more });
  const complete = (prompt, more) => client.completions.create({ model, prompt, max_tokens: TOKENS, ...more });
  const whole = await chat();
  const plain = await complete("Once upon");
  const several = await complete(["Once", "Twice"]);
  const schema = { type: "json_schema", json_schema: { name: "verdict", strict: true, schema: VERDICT } };
  return {
    chat: {
      role: whole.choices[0].message.role,
      text: whole.choices[0].message.content,
      finish: whole.choices[0].finish_reason,
      tokens: whole.usage.completion_tokens,
    },
    stream: await chatStreamed(await chat({ stream: true })),
    stream_with_usage: await chatStreamed(await chat({ stream: true, stream_options: { include_usage: true } })),
    schema: JSON.parse((await chat({ response_format: schema, max_tokens: 64 })).choices[0].message.content),
    completion: { text: plain.choices[0].text, tokens: plain.usage.completion_tokens },
    completion_stream: (await completionStreamed(await complete("Once upon", { stream: true })))["0"],
    completions: Object.fromEntries(several.choices.map((choice) => [choice.index, choice.text])),
    completions_stream: await completionStreamed(await complete(["Once", "Twice"], { stream: true })),
  };
}

async function chatStreamed(stream) {
  const facts = { text: "", finish: null, tokens: null, without_choice: 0 };
  for await (const chunk of stream) {
    facts.without_choice += chunk.choices.length === 0;
    if (chunk.usage) facts.tokens = chunk.usage.completion_tokens;
    for (const choice of chunk.choices) {
      facts.text += choice.delta.content ?? "";
      facts.finish = choice.finish_reason ?? facts.finish;
    }
  }
  return facts;
}

async function completionStreamed(stream) {
  const texts = {};
  for await (const chunk of stream) {
    for (const choice of chunk.choices) texts[choice.index] = (texts[choice.index] ?? "") + choice.text;
  }
  return texts;
}

async function callTools(client, model) {
  const asked = { model, messages: HELLO, tools: TOOLS, tool_choice: CHOICE };
  const [whole] = (await client.chat.completions.create(asked)).choices;
  const [call] = whole.message.tool_calls;
  const streamed = { name: "", arguments: "", finish: null };
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
    for (const choice of chunk.choices) {
      streamed.finish = choice.finish_reason ?? streamed.finish;
      for (const delta of choice.delta.tool_calls ?? []) {
        streamed.name += delta.function.name ?? "";
        streamed.arguments += delta.function.arguments ?? "";
      }
    }
  }
  return { whole: { ...call.function, finish: whole.finish_reason }, stream: streamed };
}

async function useOptions(client, model) {
  const chat = async (more) => (await client.chat.completions.create({ model, messages: HELLO, ...more })).choices;
  const several = await chat({ n: 2, logprobs: true, top_logprobs: 2 });
  const word = several[0].message.content.trim().split(/\s+/)[2];
  const streamed = [];
  for await (const chunk of await client.chat.completions.create({ model, messages: HELLO, n: 2, stream: true })) {
    for (const { index, delta } of chunk.choices) streamed[index] = (streamed[index] ?? "") + (delta.content ?? "");
  }
  const seeded = [];
  for (const seed of [1, 1, 2]) seeded.push((await chat({ seed }))[0].message.content);
  return {
    texts: several.map((choice) => choice.message.content),
    streamed,
    logprobs: several[0].logprobs.content.map((entry) => entry.token).join(""),
    rivals: several[0].logprobs.content[0].top_logprobs.length,
    stop_word: word,
    stopped: (await chat({ stop: [word] }))[0].message.content,
    seeded,
  };
}

async function embed(client, model) {
  const ask = (input, more) => client.embeddings.create({ model, input, ...more });
  const tokens = await ask([[101, 7592, 102], [101, 102]]);
  return {
    by_default: (await ask("hello")).data[0].embedding,
    floats: (await ask(["hello", "world"], { encoding_format: "float" })).data[0].embedding,
    used: (await ask(`hello ${Date.now()}`)).usage.total_tokens,
    of_tokens: tokens.data.map((row) => row.index),
    of_one: String((await ask([101, 7592, 102])).data[0].embedding) === String(tokens.data[0].embedding),
  };
}

async function lookUp(client, models) {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  const retrieved = [];
  for (const name of models) retrieved.push((await client.models.retrieve(name)).id);
  return { ids, retrieved };
}

async function meetErrors(client, plan) {
  const chat = (content, more, asking = client) =>
    asking.chat.completions.create({ model: plan.trouble, messages: [{ role: "user", content }], ...more });
  const drain = async (stream) => {
    for await (const _ of await stream);
  };
  const stranger = client.withOptions({ apiKey: "sk-nobody" });
  const embedding = { model: plan.embedding_models[0], input: "hello", dimensions: 100 };
  return {
    wrong_key: await errorOf(() => stranger.models.list()),
    unknown_model: await errorOf(() => chat("hello", { model: "nobody/has:this" })),
    wrong_type: await errorOf(() => chat("hello", { temperature: "hot" })),
    out_of_bounds: await errorOf(() => chat("hello", { temperature: 5 })),
    blamed: await errorOf(() => chat("[[behave:error 400]]")),
    forbidden: await errorOf(() => chat("hello", {}, client.withOptions({ apiKey: plan.auditors_key }))),
    busy: await errorOf(() => chat("[[behave:error 429 retry_after=7]]")),
    crashed: await errorOf(() => chat("[[behave:error 500]]")),
    late: await errorOf(() => chat("[[behave:error 504]]")),
    not_ready: await errorOf(() => chat("[[behave:error 503 retry_after=3]]", { stream: true })),
    fine: (await chat("hello")).choices[0].finish_reason,
    cut: await errorOf(() => drain(chat("[[behave:die chunk:3 rst]]", { stream: true }))),
    too_large: await errorOf(() => chat("x".repeat(11_000_000))),
    dimensions: await errorOf(() => client.embeddings.create(embedding)),
  };
}

async function errorOf(action) {
  try {
    return { none: String(await action()) };
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    return {
      class: error.constructor.name,
      status: error.status ?? null,
      code: error.code ?? null,
      param: error.param ?? null,
      type: error.type ?? null,
      message: error.message,
      request_id: error.requestID ?? null,
      retry_after: error.headers?.get("retry-after") ?? null,
    };
  }
}

async function meetLimits(client, model) {
  const asked = { model, messages: HELLO };
  const { data, response } = await client.chat.completions.create(asked).withResponse();
  return {
    headers: Object.fromEntries(response.headers),
    finish: data.choices[0].finish_reason,
    refused: await errorOf(() => client.chat.completions.create(asked)),
  };
}

async function leave(client, model) {
  const say = (content) => ({ model, messages: [{ role: "user", content: `${content} ${sort}` }] });
  const hanging = async (where, more) => {
    const asked = { ...say(`[[behave:hang]] ${where}`), ...more };
    const error = await errorOf(() => client.chat.completions.create(asked, { timeout: 300 }));
    return { class: error.class, at: now() };
  };
  let text;
  const asked = { ...say("[[behave:slow_chunks 100]] stream"), stream: true };
  for await (const chunk of await client.chat.completions.create(asked)) {
    text = chunk.choices[0].delta.content;
    if (text) break;
  }
  return {
    stream: { text, at: now() },
    plain: await hanging("plain"),
    silence: await hanging("silence", { stream: true }),
  };
}

async function retry(client, model) {
  const chat = async (content) => {
    const messages = [{ role: "user", content: `${content} ${sort}` }];
    return (await client.chat.completions.create({ model, messages })).choices[0].finish_reason;
  };
  return { "busy once": await chat("busy once"), "not ready once": await chat("not ready once") };
}

// Seconds of the system's monotonic clock, as Python's time.monotonic() gives them.
function now() {
  return Number(process.hrtime.bigint()) / 1e9;
}

await main();
