// A request as text for a terminal, Python or JavaScript. A key is named, never written out.

const NUM_SHOWN = 40;

const TITLES = { curl: "curl", python: "Python", javascript: "JavaScript" };
const WRITERS = { curl, python, javascript };

export const title = (language) => TITLES[language];

/** Write the request out; `hasKey` adds the header that reads the key from API_KEY. */
export const write = (language, body, hasKey) =>
  WRITERS[language](new URL(path(body), document.baseURI).href, body, hasKey);

const path = ({ labels }) => (labels ? "v1/classify" : "v1/embeddings");

/** The same body with images shortened, for the eye only. */
export function shortened(body) {
  const input = body.input.map((item) =>
    item.image ? { image: `${item.image.slice(0, NUM_SHOWN)}...` } : item);
  return { ...body, input };
}

const json = (body, indent = "") => JSON.stringify(body, null, 2).replaceAll("\n", `\n${indent}`);

function curl(url, body, hasKey) {
  const key = hasKey ? `  -H "Authorization: Bearer $API_KEY" \\\n` : "";
  // A here document takes bodies of any size, and quotes in them need no care.
  return `curl -sS '${url}' \\
  -H 'Content-Type: application/json' \\
${key}  --data-binary @- <<'JSON'
${json(body)}
JSON
`;
}

/** JSON as Python has it: a line that ends a field with true or false is not within a string. */
const literal = (text) => text.replace(/^(\s*"\w+": )(true|false)(,?)$/gm,
  (_, head, value, comma) => head + (value === "true" ? "True" : "False") + comma);

function python(url, body, hasKey) {
  const key = hasKey ? `    headers={"Authorization": f"Bearer {os.environ['API_KEY']}"},\n` : "";
  return `${hasKey ? "import os\n\n" : ""}import requests

response = requests.post(
    "${url}",
${key}    json=${literal(json(body, "    "))},
)
response.raise_for_status()
${body.labels
    ? `labels = [row["prediction"] for row in response.json()["data"]]`
    : `vectors = [row["embedding"] for row in response.json()["data"]]`}
`;
}

function javascript(url, body, hasKey) {
  const key = hasKey ? "\n    Authorization: `Bearer ${process.env.API_KEY}`," : "";
  return `const response = await fetch("${url}", {
  method: "POST",
  headers: {
    "Content-Type": "application/json",${key}
  },
  body: JSON.stringify(${json(body, "  ")}),
});
if (!response.ok) throw new Error((await response.json()).detail);
${body.labels
    ? "const labels = (await response.json()).data.map((row) => row.prediction);"
    : "const vectors = (await response.json()).data.map((row) => row.embedding);"}
`;
}
