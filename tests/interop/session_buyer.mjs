// Buys URL with a payment session: terms, then the transfer, then the request. RAIL is "authorization" or "transfer"; with RAW_HEADER
// it sends that payment header and signs nothing. Written from the API specification (/openapi.json) with viem alone, without x402d's client.
import { createPublicClient, http } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { baseSepolia } from "viem/chains";
import { print, recordingFetch } from "./recording.mjs";

const url = process.argv[2];
const { PRIVATE_KEY, RAW_HEADER, RAIL = "authorization", RPC_URL, FACILITATOR_URL } = process.env;
const { sent, fetchAndRecord } = recordingFetch("PAYMENT-SIGNATURE");
const decode = (text) => JSON.parse(Buffer.from(text, "base64"));
const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64");

async function post(target, body) {
  const response = await fetch(target, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  const answer = await response.json();
  if (!response.ok) throw new Error(`${target}: ${JSON.stringify(answer)}`);
  return answer;
}

async function signedTransaction(account, call) {
  const client = createPublicClient({ chain: baseSepolia, transport: http(RPC_URL) });
  const request = { account: account.address, to: call.to, data: call.data, value: 0n };
  const nonce = await client.getTransactionCount({ address: account.address });
  const fees = await client.estimateFeesPerGas();
  const gas = await client.estimateGas(request);
  return account.signTransaction({ ...request, ...fees, gas, nonce, chainId: call.chainId, type: "eip1559" });
}

async function headerOfSession() {
  const account = privateKeyToAccount(PRIVATE_KEY);
  const challenge = decode((await fetch(url)).headers.get("PAYMENT-REQUIRED"));
  const accepted = challenge.accepts[0];
  const facilitator = FACILITATOR_URL ?? challenge.extensions["payment-session"].info.url;
  const session = await post(`${facilitator}/sessions`, { x402Version: 2, accepted, payer: account.address, rail: RAIL, resource: challenge.resource });
  const submit = (body) => post(`${facilitator}/sessions/${session.sessionId}/transfer?wait=20`, body);
  let payload;
  if (RAIL === "authorization") {
    const authorization = session.authorization.message;
    payload = { authorization, signature: await account.signTypedData(session.authorization) };
    await submit(payload);
    // What everybody can read on the chain buys nothing without the session's id.
    payload.sessionId = session.sessionId;
  } else {
    const { transaction } = await submit({ rawTransaction: await signedTransaction(account, session.transfer) });
    const claim = { ...session.claim, message: { ...session.claim.message, transaction } };
    payload = { type: "session-proof", sessionId: session.sessionId, transaction, signature: await account.signTypedData(claim) };
  }
  const paid = await (await fetch(`${facilitator}/sessions/${session.sessionId}`)).json();
  if (paid.state !== "paid") throw new Error(JSON.stringify(paid));
  console.error(JSON.stringify({ sessionId: session.sessionId, transaction: paid.transaction }));
  return encode({ x402Version: 2, resource: challenge.resource, accepted, payload, extensions: challenge.extensions });
}

const header = RAW_HEADER ?? (await headerOfSession());
const response = await fetchAndRecord(url, { headers: { "PAYMENT-SIGNATURE": header } });
await print(response, "PAYMENT-RESPONSE", decode, sent.header);
