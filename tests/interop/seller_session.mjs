// A seller on @x402/express that is paid before its handler runs and says where sessions can be negotiated: configuration alone.
import express from "express";
import { HTTPFacilitatorClient } from "@x402/core/server";
import { ExactEvmScheme } from "@x402/evm/exact/server";
import { paymentMiddleware, x402ResourceServer } from "@x402/express";

const { FACILITATOR_URL, PAY_TO, NETWORK = "eip155:84532", PRICE = "$0.01", PORT = "0" } = process.env;
if (!FACILITATOR_URL || !PAY_TO) throw new Error("FACILITATOR_URL and PAY_TO must be set");

const facilitator = new HTTPFacilitatorClient({ url: FACILITATOR_URL });
const payments = new x402ResourceServer(facilitator).register(NETWORK, new ExactEvmScheme());
const extra = { paymentFlow: "upfront", resourceId: "report" };
const accepts = { scheme: "exact", network: NETWORK, payTo: PAY_TO, price: PRICE, extra };
const extensions = { "payment-session": { info: { url: FACILITATOR_URL } } };

let served = 0;
const app = express();
app.use(paymentMiddleware({ "GET /report": { accepts, extensions, description: "A report" } }, payments));
app.get("/report", (_req, res) => res.json({ report: "the weather is fine", served: ++served }));

const server = app.listen(Number(PORT), "127.0.0.1", () => {
  console.log(JSON.stringify({ listening: `http://127.0.0.1:${server.address().port}` }));
});
