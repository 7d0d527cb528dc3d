// OpenAI's own client for JavaScript against the endpoint in argv[2]: prints one JSON object.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "unused", maxRetries: 0 });
const asked = {
  model: "shoal-demo",
  messages: [{ role: "user", content: "I love music." }],
  max_tokens: 60,
  temperature: 0,
};
const fish = z.strictObject({ kind: z.enum(["trout", "eel"]) });
const tools = [
  {
    type: "function",
    function: {
      name: "weather",
      parameters: {
        type: "object",
        properties: { city: { type: "string", enum: ["Oslo", "Rome"] } },
        required: ["city"],
      },
    },
  },
];

async function failure(work) {
  try {
    await work();
  } catch (error) {
    return { status: error.status, code: error.code, kind: error.constructor.name };
  }
  throw new Error("it was answered");
}

const whole = await client.chat.completions.create(asked);
const stream = client.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
const final = await stream.finalChatCompletion();
const called = await client.chat.completions
  .stream({ ...asked, tools, tool_choice: "required", parallel_tool_calls: false })
  .finalChatCompletion();
const parsed = await client.chat.completions.parse({
  ...asked,
  response_format: zodResponseFormat(fish, "fish"),
});
const results = {
  text: whole.choices[0].message.content,
  streamed: final.choices[0].message.content,
  usage: final.usage,
  calls: called.choices[0].message.tool_calls.map((call) => [
    call.function.name,
    JSON.parse(call.function.arguments),
  ]),
  object: parsed.choices[0].message.parsed,
  overlong: await failure(() =>
    client.chat.completions.create({
      ...asked,
      messages: [{ role: "user", content: "I love music. ".repeat(4000) }],
    }),
  ),
  wrongModel: await failure(() =>
    client.chat.completions.create({ ...asked, model: "no-such-model" }),
  ),
};
console.log(JSON.stringify(results));
