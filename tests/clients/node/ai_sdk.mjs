// The Vercel AI SDK against the endpoint in argv[2]: prints one JSON object, a result a check.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = process.argv[2];
const MODEL = "shoal-demo";
const providers = {
  openai: createOpenAI({ baseURL, apiKey: "unused" }).chat,
  compatible: createOpenAICompatible({
    name: "shoal",
    baseURL,
    apiKey: "unused",
    supportsStructuredOutputs: true,
    includeUsage: true,
  }),
};
const system = "You are a helpful assistant that translates English to Spanish.";
const asked = { system, prompt: "I love music.", maxOutputTokens: 60, temperature: 0, maxRetries: 0 };
const fish = z.strictObject({
  kind: z.enum(["trout", "eel"]),
  weight: z.number().int().min(0).max(99),
});
const weather = tool({
  description: "The weather of a city.",
  inputSchema: z.strictObject({ city: z.enum(["Oslo", "Rome"]) }),
});

async function failure(work) {
  try {
    await work();
  } catch (error) {
    if (!APICallError.isInstance(error)) throw error;
    return { status: error.statusCode, body: JSON.parse(error.responseBody) };
  }
  throw new Error("it was answered");
}

async function checks(model) {
  const whole = await generateText({ model: model(MODEL), ...asked });
  const parts = [];
  const stream = streamText({ model: model(MODEL), ...asked });
  for await (const part of stream.textStream) parts.push(part);
  const called = await generateText({
    model: model(MODEL), ...asked, tools: { weather }, toolChoice: "required",
  });
  const streamed = streamText({
    model: model(MODEL), ...asked, tools: { weather }, toolChoice: { type: "tool", toolName: "weather" },
  });
  return {
    text: whole.text,
    finish: whole.finishReason,
    usage: whole.usage,
    streamed: parts.join(""),
    streamedUsage: await stream.usage,
    calls: called.toolCalls.map((call) => [call.toolName, call.input]),
    streamedCalls: (await streamed.toolCalls).map((call) => [call.toolName, call.input]),
    object: (await generateObject({ model: model(MODEL), ...asked, schema: fish })).object,
    overlong: await failure(() =>
      generateText({ model: model(MODEL), ...asked, prompt: "I love music. ".repeat(4000) }),
    ),
    wrongModel: await failure(() => generateText({ model: model("no-such-model"), ...asked })),
  };
}

const results = {};
for (const [name, model] of Object.entries(providers)) results[name] = await checks(model);
console.log(JSON.stringify(results));
