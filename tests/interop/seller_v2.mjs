// A seller on @x402/express: GET /report costs PRICE, GET /upfront too but is settled before the handler runs, GET /free costs nothing.
import express from "express";
import { HTTPFacilitatorClient } from "@x402/core/server";
import { ExactEvmScheme } from "@x402/evm/exact/server";
import { paymentMiddleware, x402ResourceServer } from "@x402/express";

const { FACILITATOR_URL, FACILITATOR_KEY, PAY_TO, NETWORK = "eip155:84532", PRICE = "$0.01", PORT = "0" } = process.env;
if (!FACILITATOR_URL || !PAY_TO) throw new Error("FACILITATOR_URL and PAY_TO must be set");

const headers = { Authorization: `Bearer ${FACILITATOR_KEY}` };
const createAuthHeaders = FACILITATOR_KEY ? async () => ({ verify: headers, settle: headers, supported: headers }) : undefined;
const facilitator = new HTTPFacilitatorClient({ url: FACILITATOR_URL, createAuthHeaders });
const payments = new x402ResourceServer(facilitator).register(NETWORK, new ExactEvmScheme());
const accepts = { scheme: "exact", network: NETWORK, payTo: PAY_TO, price: PRICE };

const upfront = { ...accepts, extra: { paymentFlow: "upfront" } };
const extensions = { "payment-session": { info: { url: FACILITATOR_URL } } };
const routes = {
  "GET /report": { accepts, description: "A report", extensions },
  "GET /upfront": { accepts: upfront, description: "A report", extensions },
};

let served = 0;
const report = (_req, res) => res.json({ report: "the weather is fine", served: ++served });
const app = express();
app.use(paymentMiddleware(routes, payments));
app.get("/report", report);
app.get("/upfront", report);
app.get("/free", (_req, res) => res.json({ free: true }));

const server = app.listen(Number(PORT), "127.0.0.1", () => {
  console.log(JSON.stringify({ listening: `http://127.0.0.1:${server.address().port}` }));
});
