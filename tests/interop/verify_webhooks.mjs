// Checks signatures with the official package of Standard Webhooks: an object on each line of stdin, with secret, headers and body. Says how
// many are good, and refuses a changed body.
import { createInterface } from "node:readline";
import { Webhook } from "standardwebhooks";

let good = 0;
for await (const line of createInterface({ input: process.stdin })) {
  const { secret, headers, body } = JSON.parse(line);
  const webhook = new Webhook(secret);
  webhook.verify(body, headers);
  let refused = false;
  try {
    webhook.verify(`${body} `, headers);
  } catch {
    refused = true;
  }
  if (!refused) throw new Error("a changed body was taken");
  good += 1;
}
console.log(JSON.stringify({ good }));
