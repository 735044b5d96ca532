// Shared by the buyers: a fetch that records the payment header it sent, and the line they print.

/** Wraps the global fetch; `sent.header` is the last value of the header `name` that went out. */
export function recordingFetch(name) {
  const sent = { header: null };
  const fetchAndRecord = (input, init) => {
    const request = new Request(input, init);
    sent.header = request.headers.get(name) ?? sent.header;
    return fetch(request);
  };
  return { sent, fetchAndRecord };
}

/** Prints one line: the answer's status and body, its decoded receipt or null, the payment header sent, and further members. */
export async function print(response, receiptName, decode, header, more = {}) {
  const text = await response.text();
  const receipt = response.headers.get(receiptName);
  const line = { status: response.status, body: parsed(text), payment: receipt ? decode(receipt) : null, header, ...more };
  console.log(JSON.stringify(line));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
