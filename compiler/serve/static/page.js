"use strict";
// Ask the server that this page comes from; what it says is written as text, never as HTML.
const by = (id) => document.getElementById(id);

function headers() {
  const key = by("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function refused(response) {
  let said = `the server answered ${response.status}`;
  try { said = (await response.json()).error.message; } catch { /* it isn't the server's own answer */ }
  return new Error(said);
}

async function models() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) throw await refused(response);
  const options = (await response.json()).data.map((model) => {
    const about = model.lmmprune;
    const text = `${model.id}: ${about.method ?? "not pruned"}, ${about.image_tokens} of ${about.tokens_before}, ${about.precision}`;
    return new Option(text, model.id);
  });
  by("model").replaceChildren(...options);
}

const read = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

async function stream(request) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const sent = JSON.stringify({ ...request, ...options });
  const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body: sent });
  if (!response.ok) throw await refused(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", times = {}, usage = {};
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") continue;
      const body = JSON.parse(data);
      if (body.error) throw new Error(body.error.message);
      by("answer").textContent += body.choices[0]?.delta.content ?? "";
      times = body.lmmprune ?? times;
      usage = body.usage ?? usage;
    }
  }
  const image = usage.prompt_tokens_details;
  by("times").textContent =
    `${image.original_image_tokens} -> ${image.image_tokens} image tokens; first token after ${times.ttft_ms.toFixed(1)} ms` +
    (times.ms_per_token === null ? "" : `, then ${times.ms_per_token.toFixed(1)} ms each`) +
    `; ${usage.completion_tokens} tokens`;
}

async function draw(request) {
  const response = await fetch("/lmmprune/show", { method: "POST", headers: headers(), body: JSON.stringify(request) });
  if (!response.ok) throw await refused(response);
  URL.revokeObjectURL(by("kept").src);
  by("kept").src = URL.createObjectURL(await response.blob());
  by("kept").hidden = false;
}

by("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  by("ask").disabled = true;
  by("answer").className = by("answer").textContent = by("times").textContent = "";
  by("kept").hidden = true;
  try {
    if (!by("model").options.length) await models();
    const url = await read(by("file").files[0]);
    const content = [{ type: "image_url", image_url: { url } }, { type: "text", text: by("question").value }];
    const request = { model: by("model").value, messages: [{ role: "user", content }], temperature: 0 };
    await stream(request);
    await draw(request);
  } catch (error) {
    by("answer").className = "error";
    by("answer").textContent = error.message;
  }
  by("ask").disabled = false;
});

for (const kind of ["dragenter", "dragover"]) {
  by("drop").addEventListener(kind, (event) => { event.preventDefault(); by("drop").className = "over"; });
}
by("drop").addEventListener("dragleave", () => { by("drop").className = ""; });
by("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  by("drop").className = "";
  if (event.dataTransfer.files.length) by("file").files = event.dataTransfer.files;
});
models().catch(() => {});  // where a key is asked for, they come with the first question
