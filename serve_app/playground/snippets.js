// A request as text for a terminal, Python or JavaScript. A key is named, never written out.

const NUM_SHOWN = 40;

const TITLES = { curl: "curl", python: "Python", javascript: "JavaScript" };
const WRITERS = { curl, python, javascript };

export const title = (language) => TITLES[language];

/** Write the request out; `hasKey` adds the header that reads the key from API_KEY. */
export const write = (language, body, hasKey) =>
  WRITERS[language](new URL("v1/embeddings", document.baseURI).href, body, hasKey);

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

function python(url, body, hasKey) {
  const key = hasKey ? `    headers={"Authorization": f"Bearer {os.environ['API_KEY']}"},\n` : "";
  return `${hasKey ? "import os\n\n" : ""}import requests

response = requests.post(
    "${url}",
${key}    json=${json(body, "    ")},
)
response.raise_for_status()
vectors = [row["embedding"] for row in response.json()["data"]]
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
const vectors = (await response.json()).data.map((row) => row.embedding);
`;
}
