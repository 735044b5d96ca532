// A seller on x402-express (protocol version 1): GET /report costs PRICE, GET /free costs nothing.
import express from "express";
import { paymentMiddleware } from "x402-express";

const { FACILITATOR_URL, PAY_TO, NETWORK = "base-sepolia", PRICE = "$0.01", PORT = "0" } = process.env;
if (!FACILITATOR_URL || !PAY_TO) throw new Error("FACILITATOR_URL and PAY_TO must be set");

let served = 0;
const app = express();
const routes = { "GET /report": { price: PRICE, network: NETWORK, config: { description: "A report" } } };
app.use(paymentMiddleware(PAY_TO, routes, { url: FACILITATOR_URL }));
app.get("/report", (_req, res) => res.json({ report: "the weather is fine", served: ++served }));
app.get("/free", (_req, res) => res.json({ free: true }));

const server = app.listen(Number(PORT), "127.0.0.1", () => {
  console.log(JSON.stringify({ listening: `http://127.0.0.1:${server.address().port}` }));
});
