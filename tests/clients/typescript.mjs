// The TypeScript SDK's client, of either generation, against AIMA: what it sees, as one line of JSON.
//   node typescript.mjs {"modules": folder, "generation": 1 or 2, "url"?, "key"?, "command"?, "args"?, "env"?}
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const asked = JSON.parse(process.argv[2]);
const require = createRequire(pathToFileURL(asked.modules + "/"));
const load = (name) => import(pathToFileURL(require.resolve(name)));

async function parts() {
  if (asked.generation === 1) {
    const { Client } = await load("@modelcontextprotocol/sdk/client/index.js");
    const { StdioClientTransport } = await load("@modelcontextprotocol/sdk/client/stdio.js");
    const { StreamableHTTPClientTransport } = await load("@modelcontextprotocol/sdk/client/streamableHttp.js");
    return { Client, StdioClientTransport, StreamableHTTPClientTransport };
  }
  const { Client, StreamableHTTPClientTransport } = await load("@modelcontextprotocol/client");
  const { StdioClientTransport } = await load("@modelcontextprotocol/client/stdio");
  return { Client, StdioClientTransport, StreamableHTTPClientTransport };
}

const { Client, StdioClientTransport, StreamableHTTPClientTransport } = await parts();
const transport = asked.url
  ? new StreamableHTTPClientTransport(new URL(asked.url), { requestInit: { headers: { Authorization: `Bearer ${asked.key}` } } })
  : new StdioClientTransport({ command: asked.command, args: asked.args, env: asked.env, stderr: "inherit" });
const client = new Client({ name: "typescript", version: "1.0.0" });
await client.connect(transport);
const call = (name, args, options) =>
  asked.generation === 1 ? client.callTool({ name, arguments: args }, undefined, options) : client.callTool({ name, arguments: args }, options);

const heard = [];
const tools = (await client.listTools()).tools.map((tool) => tool.name);
const resources = (await client.listResources()).resources.map((resource) => resource.uri);
const prompts = (await client.listPrompts()).prompts.map((prompt) => prompt.name);
const info = (await call("system_info", {})).structuredContent;
const refused = await call("unit_call", { name: "model.get", arguments: { model_id: "tiyn" } });
const verified = await call("unit_call", { name: "model.verify", arguments: { model_id: "tiny" } });
const served = await call("service_create", { model_id: "tiny", name: "tiny" }, { onprogress: (progress) => heard.push(progress.progress) });
const said = await call("inference_chat", { model: "tiny", messages: [{ role: "user", content: "hello" }], max_tokens: 3 });
const prompt = await client.getPrompt({ name: "diagnose", arguments: {} });
const read = await client.readResource({ uri: "aima://models/registry" });
const offered = await client.complete({ ref: { type: "ref/resource", uri: "aima://model/{model_id}" }, argument: { name: "model_id", value: "ti" } });
console.log(
  JSON.stringify({
    tools, resources, prompts, version: info.version, refused: refused.structuredContent, isError: refused.isError,
    verified: verified.structuredContent, service: served.structuredContent, progress: heard, tokens: said.structuredContent.usage,
    prompt: prompt.messages.length, read: JSON.parse(read.contents[0].text).total, offered: offered.completion.values,
  }),
);
await client.close();
