// An operator at the page in headless Chromium, by keyboard alone: logs in, sees a payment arrive, finds it, reads its story, resumes a
// signer, makes and revokes a key. Prints what was seen as JSON. The test settles a payment and pauses a signer when it is told to.
import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { readFile } from "node:fs/promises";
import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [, , url] = process.argv;
const { KEY: key, PAYEE: payee, SCREENSHOTS: screenshots } = process.env;
const LIMIT_MS = 60_000;
// More fields than this come before none of the wanted ones.
const TABS_MAX = 150;
const PAGES = ["/", "/page/payments", "/page/sellers", "/page/signers", "/page/keys", "/page/webhooks", "/page/networks"];
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const answers = createInterface({ input: process.stdin });
const lines = answers[Symbol.asyncIterator]();
// Has the test do something, and returns what came of it.
const ask = async (what) => {
  console.log(JSON.stringify({ ask: what }));
  return JSON.parse((await lines.next()).value);
};

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

const faults = [];
const watch = async (context) => {
  context.on("request", (request) => {
    const address = new URL(request.url());
    if (address.protocol !== "data:" && address.origin !== url) faults.push(`request to ${request.url()}`);
  });
  await context.exposeFunction("reportFault", (fault) => faults.push(fault));
  await context.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => {
      window.reportFault(`${event.violatedDirective} on ${location.pathname}: ${event.blockedURI} ${event.sample}`);
    });
  });
  context.on("page", (page) => {
    page.setDefaultTimeout(LIMIT_MS);
    page.on("pageerror", (error) => faults.push(`error on ${page.url()}: ${error}`));
    page.on("console", (message) => {
      if (/Content Security Policy|Refused to/.test(message.text())) faults.push(message.text());
    });
  });
};

// Tab until the wanted element has the focus.
const tabTo = async (page, selector) => {
  for (let count = 0; count < TABS_MAX; count += 1) {
    const is = await page.evaluate((wanted) => document.activeElement?.matches(wanted) ?? false, selector);
    if (is) return;
    await page.keyboard.press("Tab");
  }
  throw new Error(`${selector} cannot be reached by Tab on ${page.url()}`);
};
// Presses Enter on an element, and waits for the page to which it leads.
const enter = async (page, selector) => {
  await tabTo(page, selector);
  await Promise.all([page.waitForNavigation(), page.keyboard.press("Enter")]);
};
const type = async (page, selector, text) => {
  await tabTo(page, selector);
  await page.keyboard.type(text);
};
const goto = async (page, path) => {
  await page.goto(url);
  await enter(page, `nav a[href="${path}"]`);
};

// The debugger runs axe, so the policy of the page does not concern it.
const examine = async (page, name) => {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run({ resultTypes: ["violations"] }));
  for (const { id, impact, nodes } of violations) {
    if (impact === "serious" || impact === "critical") {
      faults.push(`axe on ${name}: ${id} (${impact}): ${nodes.map((node) => node.html).slice(0, 3).join(" ")}`);
    }
  }
};

const operate = async (page) => {
  await page.goto(url);
  assert.equal(await page.title(), "Log in · x402d");
  await type(page, "#key", key);
  await Promise.all([page.waitForNavigation(), page.keyboard.press("Enter")]);
  await page.waitForFunction(() => document.getElementById("connection").textContent === "live");
  assert.match(await page.textContent("h1"), /All is well/);

  // A payment arrives, and the page is not loaded again.
  await page.evaluate(() => { window.isSamePage = true; });
  const { payment, transaction } = await ask("settle");
  await page.waitForSelector(`#live a[href="/page/payments/${payment}"]`);
  assert.equal(await page.evaluate(() => window.isSamePage), true);

  // It is found by its hash.
  await goto(page, "/page/payments");
  await type(page, "#q", transaction);
  await Promise.all([page.waitForNavigation(), page.keyboard.press("Enter")]);
  assert.equal(new URL(page.url()).pathname, `/page/payments/${payment}`);
  const story = await page.textContent(".timeline");
  assert.match(story, /accepted[\s\S]*transaction written[\s\S]*granted/);
  assert.match(await page.textContent("h1"), /0\.01 USDC/);
  const times = await page.$$eval("time", (all) => all.map((time) => [time.title, time.dateTime]));
  assert.ok(times.length > 3 && times.every(([title, at]) => / UTC$/.test(title) && !Number.isNaN(Date.parse(at))));
  assert.equal(await page.getAttribute(`.facts button[data-copy="${payee}"]`, "title"), payee);

  // A paused signer goes on.
  await goto(page, "/page/signers");
  await ask("pause");
  await page.waitForSelector('button[value="resume"]');
  await enter(page, 'button[value="resume"]');
  await page.waitForSelector(".state.well");
  await page.waitForSelector('button[value="resume"]', { state: "detached" });

  // A key is shown once, and is good until it is revoked.
  await goto(page, "/page/keys");
  await type(page, "#name", "browser shop");
  await type(page, "#payees", payee);
  await enter(page, '.filters button[type="submit"]');
  const made = await page.textContent("#secret");
  assert.match(made, /^x402d_[0-9a-z]{12}_[0-9a-f]{64}$/);
  await ask({ good: made });
  await goto(page, "/page/keys");
  assert.ok(!(await page.content()).includes(made));
  await enter(page, 'button[aria-label="Revoke browser shop"]');
  await page.waitForSelector("text=revoked");
  await ask({ revoked: made });
  return payment;
};

const look = async (context, name, paths) => {
  const page = await context.newPage();
  for (const path of paths) {
    await page.goto(url + path);
    const wider = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    if (wider > 0) faults.push(`${path} is ${wider} px wider than the screen of ${name}`);
    if (screenshots) await page.screenshot({ path: `${screenshots}/${path.split("/").pop() || "overview"}-${name}.png`, fullPage: true });
    await examine(page, `${path} (${name})`);
  }
  await page.close();
};

try {
  const context = await browser.newContext({ colorScheme: "light", viewport: { width: 1280, height: 900 } });
  await watch(context);
  const page = await context.newPage();
  const payment = await operate(page);
  await page.close();
  const state = await context.storageState();
  const paths = [...PAGES, `/page/payments/${payment}`];
  await look(context, "light", paths);
  for (const [name, options] of [
    ["dark", { colorScheme: "dark", viewport: { width: 1280, height: 900 } }],
    ["telephone", { colorScheme: "light", viewport: { width: 375, height: 740 }, isMobile: true, hasTouch: true }],
  ]) {
    const other = await browser.newContext({ ...options, storageState: state });
    await watch(other);
    await look(other, name, paths);
    await other.close();
  }
  const stranger = await browser.newContext();
  await watch(stranger);
  await look(stranger, "stranger", ["/"]);
  console.log(JSON.stringify({ faults }));
} finally {
  answers.close();
  await browser.close();
}
