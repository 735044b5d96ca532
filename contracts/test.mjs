// Runs the contracts on a local anvil: `npm ci && node build.mjs && node test.mjs`.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import {
  concat, decodeErrorResult, encodeErrorResult, encodeFunctionData, hashTypedData, hexToBigInt, keccak256, pad,
  parseEventLogs, parseSignature, serializeSignature, size, slice, toHex, zeroAddress,
} from "viem";
import { generatePrivateKey, privateKeyToAccount } from "viem/accounts";
import {
  LENS, MULTICALL3, USDC, WALLET_FACTORY, artifact, payee, payer, settler, startChain,
} from "./testchain.mjs";

const token = artifact("TestUsdc");
const lens = artifact("Lens");
const multicall = artifact("Multicall3");
const factory = artifact("SmartWalletFactory");
const LATER = 1_900_000_000n;
const HALF = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;

let chain;
before(async () => {
  chain = await startChain();
  await chain.send(USDC, "TestUsdc", "mint", [payer.address, 1_000_000_000n]);
});
after(() => chain?.stop());

const types = {
  TransferWithAuthorization: [
    { name: "from", type: "address" },
    { name: "to", type: "address" },
    { name: "value", type: "uint256" },
    { name: "validAfter", type: "uint256" },
    { name: "validBefore", type: "uint256" },
    { name: "nonce", type: "bytes32" },
  ],
};

/** A signed payment; `from` differs from the signer's address when a contract wallet pays. */
async function pay(changes = {}, signer = payer, verifyingContract = USDC) {
  const message = {
    from: signer.address, to: payee, value: 10_000n, validAfter: 0n, validBefore: LATER,
    nonce: generatePrivateKey(), ...changes,
  };
  const domain = { name: "USDC", version: "2", chainId: 84532, verifyingContract };
  const typed = { domain, types, primaryType: "TransferWithAuthorization", message };
  return { ...message, token: verifyingContract, digest: hashTypedData(typed), signature: await signer.signTypedData(typed) };
}

function bytesArgs(payment) {
  const { from, to, value, validAfter, validBefore, nonce, signature } = payment;
  return [from, to, value, validAfter, validBefore, nonce, signature];
}

function vrsArgs(payment) {
  const v = Number(slice(payment.signature, 64, 65));
  return [...bytesArgs(payment).slice(0, 6), v, slice(payment.signature, 0, 32), slice(payment.signature, 32, 64)];
}

const settle = (payment, args = vrsArgs(payment)) =>
  chain.send(payment.token, "TestUsdc", "transferWithAuthorization", args);

const balance = (account, at = USDC) => chain.view(at, "TestUsdc", "balanceOf", [account]);

const refused = (payment, text, args = vrsArgs(payment)) =>
  assert.rejects(settle(payment, args), (error) => {
    assert.match(error.message, new RegExp(text));
    return true;
  });

function row(payment, changes = {}) {
  const args = size(payment.signature) === 65 ? vrsArgs(payment) : bytesArgs(payment);
  return {
    token: payment.token, payer: payment.from, nonceDomain: payment.token, nonceMask: 1n, spender: zeroAddress,
    nonceCall: encodeFunctionData({ abi: token.abi, functionName: "authorizationState", args: [payment.from, payment.nonce] }),
    digest: payment.digest, signature: payment.signature, factory: zeroAddress, factoryCall: "0x",
    settler: payment.token, sender: zeroAddress,
    settlement: encodeFunctionData({ abi: token.abi, functionName: "transferWithAuthorization", args }),
    gasLimit: 300_000n, ...changes,
  };
}

async function look(rows, options = {}) {
  const { result } = await chain.reader.simulateContract({
    address: LENS, abi: lens.abi, functionName: "read", args: [rows],
    stateOverride: [{ address: LENS, code: lens.deployedBytecode }], ...options,
  });
  return result;
}

const revertText = (data) => decodeErrorResult({ abi: [], data }).args[0];

async function newWallet(owner = payer.address, salt = generatePrivateKey()) {
  const wallet = await chain.view(WALLET_FACTORY, "SmartWalletFactory", "addressOf", [owner, salt]);
  await chain.send(USDC, "TestUsdc", "mint", [wallet, 1_000_000n]);
  const factoryCall = encodeFunctionData({ abi: factory.abi, functionName: "createWallet", args: [owner, salt] });
  return { wallet, factoryCall, create: () => chain.send(WALLET_FACTORY, "SmartWalletFactory", "createWallet", [owner, salt]) };
}

const freshAddress = () => privateKeyToAccount(generatePrivateKey()).address;

test("a transfer authorisation settles with AuthorizationUsed before Transfer", async (t) => {
  const payment = await pay();
  const before = await balance(payee);
  const receipt = await settle(payment);
  assert.equal(receipt.status, "success");
  const events = parseEventLogs({ abi: token.abi, logs: receipt.logs });
  assert.deepEqual(events.map((event) => event.eventName), ["AuthorizationUsed", "Transfer"]);
  assert.deepEqual({ ...events[0].args }, { authorizer: payer.address, nonce: payment.nonce });
  assert.deepEqual({ ...events[1].args }, { from: payer.address, to: payee, value: 10_000n });
  assert.equal((await balance(payee)) - before, 10_000n);
  assert.equal(await chain.view(USDC, "TestUsdc", "authorizationState", [payer.address, payment.nonce]), true);
  const again = await settle(await pay());
  t.diagnostic(`gas of a direct transfer: first to a payee ${receipt.gasUsed}, later ${again.gasUsed}`);
});

test("the known digest and signature of Base Sepolia's USDC are the token's", async () => {
  const payment = await pay({ nonce: `0x${"ab".repeat(32)}` });
  assert.equal(payment.digest, "0x381b86af084fb5aae332949d22d96326ab5f699c65fe1a865807217d5ecb7c86");
  const separator = await chain.view(USDC, "TestUsdc", "DOMAIN_SEPARATOR", []);
  assert.equal(separator, "0x71f17a3b2ff373b803d70a5a07c046c1a2bc8e89c09ef722fcb047abe94c9818");
  assert.equal((await settle(payment)).status, "success");
});

test("the bytes overload settles an ECDSA signature too", async () => {
  const payment = await pay();
  assert.equal((await settle(payment, bytesArgs(payment))).status, "success");
});

test("a used, expired, early, forged or malformed authorisation is refused with USDC's messages", async () => {
  const used = await pay();
  await settle(used);
  await refused(used, "FiatTokenV2: authorization is used or canceled");
  await refused(await pay({ validBefore: 1n }), "FiatTokenV2: authorization is expired");
  await refused(await pay({ validAfter: LATER }), "FiatTokenV2: authorization is not yet valid");
  await refused({ ...(await pay()), value: 10_001n }, "FiatTokenV2: invalid signature");
  await refused(await pay({ value: 10n ** 30n }), "ERC20: transfer amount exceeds balance");

  const payment = await pay();
  const { r, s, yParity } = parseSignature(payment.signature);
  const high = toHex(HALF - hexToBigInt(s), { size: 32 });
  const twin = serializeSignature({ r, s: high, yParity: 1 - yParity });
  await refused({ ...payment, signature: twin }, "ECRecover: invalid signature 's' value");
  const lowV = concat([r, s, toHex(yParity, { size: 1 })]);
  await refused({ ...payment, signature: lowV }, "ECRecover: invalid signature 'v' value");
  const short = slice(payment.signature, 0, 64);
  await refused(payment, "ECRecover: invalid signature length", bytesArgs({ ...payment, signature: short }));
});

test("validAfter and validBefore are exclusive bounds on the block's time", async () => {
  const { timestamp } = await chain.reader.getBlock();
  const at = timestamp + 100n;
  const attempt = async (changes) => {
    const payment = await pay(changes);
    return look([row(payment)], { blockOverrides: { time: at } }).then(({ 1: time, 2: facts }) => {
      assert.equal(time, at);
      return facts[0].transferSucceeds;
    });
  };
  assert.equal(await attempt({ validAfter: at }), false);
  assert.equal(await attempt({ validAfter: at - 1n }), true);
  assert.equal(await attempt({ validBefore: at }), false);
  assert.equal(await attempt({ validBefore: at + 1n }), true);
});

test("pause and blacklist stop a transfer", async () => {
  const payment = await pay();
  await chain.send(USDC, "TestUsdc", "pause", [true]);
  await refused(payment, "Pausable: paused");
  await chain.send(USDC, "TestUsdc", "pause", [false]);
  for (const account of [payer.address, payee]) {
    const held = await balance(account);
    await chain.send(USDC, "TestUsdc", "blacklist", [account, true]);
    assert.equal(await balance(account), held);
    await refused(payment, "Blacklistable: account is blacklisted");
    await chain.send(USDC, "TestUsdc", "blacklist", [account, false]);
  }
  assert.equal((await settle(payment)).status, "success");
});

test("a cancelled authorisation cannot be settled", async () => {
  const payment = await pay();
  const signature = await payer.signTypedData({
    domain: { name: "USDC", version: "2", chainId: 84532, verifyingContract: USDC },
    types: { CancelAuthorization: [{ name: "authorizer", type: "address" }, { name: "nonce", type: "bytes32" }] },
    primaryType: "CancelAuthorization",
    message: { authorizer: payer.address, nonce: payment.nonce },
  });
  const receipt = await chain.send(USDC, "TestUsdc", "cancelAuthorization", [payer.address, payment.nonce, signature]);
  const [event] = parseEventLogs({ abi: token.abi, logs: receipt.logs });
  assert.equal(event.eventName, "AuthorizationCanceled");
  await refused(payment, "FiatTokenV2: authorization is used or canceled");
});

test("receiveWithAuthorization is for the payee only", async () => {
  const message = {
    from: payer.address, to: settler.address, value: 7n, validAfter: 0n, validBefore: LATER, nonce: generatePrivateKey(),
  };
  const sign = (content) => payer.signTypedData({
    domain: { name: "USDC", version: "2", chainId: 84532, verifyingContract: USDC },
    types: { ReceiveWithAuthorization: types.TransferWithAuthorization },
    primaryType: "ReceiveWithAuthorization",
    message: content,
  });
  const own = { ...message, signature: await sign(message) };
  const receipt = await chain.send(USDC, "TestUsdc", "receiveWithAuthorization", bytesArgs(own));
  assert.equal(receipt.status, "success");
  const other = { ...message, to: payee };
  const call = chain.send(USDC, "TestUsdc", "receiveWithAuthorization", bytesArgs({ ...other, signature: await sign(other) }));
  await assert.rejects(call, /FiatTokenV2: caller must be the payee/);
});

test("a permit sets an allowance once and transferFrom spends it", async () => {
  const spender = settler.address;
  const nonce = await chain.view(USDC, "TestUsdc", "nonces", [payer.address]);
  const fields = ["value", "nonce", "deadline"].map((name) => ({ name, type: "uint256" }));
  const signature = await payer.signTypedData({
    domain: { name: "USDC", version: "2", chainId: 84532, verifyingContract: USDC },
    types: { Permit: [{ name: "owner", type: "address" }, { name: "spender", type: "address" }, ...fields] },
    primaryType: "Permit",
    message: { owner: payer.address, spender, value: 500n, nonce, deadline: LATER },
  });
  const { r, s, v } = parseSignature(signature);
  const args = [payer.address, spender, 500n, LATER, Number(v), r, s];
  assert.equal((await chain.send(USDC, "TestUsdc", "permit", args)).status, "success");
  await assert.rejects(chain.send(USDC, "TestUsdc", "permit", args), /EIP2612: invalid signature/);
  await chain.send(USDC, "TestUsdc", "transferFrom", [payer.address, payee, 400n]);
  assert.equal(await chain.view(USDC, "TestUsdc", "allowance", [payer.address, spender]), 100n);
  const tooMuch = chain.send(USDC, "TestUsdc", "transferFrom", [payer.address, payee, 101n]);
  await assert.rejects(tooMuch, /ERC20: transfer amount exceeds allowance/);
});

test("an ERC-1271 wallet pays through the bytes overload", async () => {
  const { wallet, create } = await newWallet();
  await create();
  const payment = await pay({ from: wallet });
  assert.equal((await settle(payment, bytesArgs(payment))).status, "success");
  assert.equal(await balance(wallet), 990_000n);
  const stranger = privateKeyToAccount(generatePrivateKey());
  const forged = await pay({ from: wallet }, stranger);
  await refused(forged, "FiatTokenV2: invalid signature", bytesArgs(forged));
});

test("a wallet's runtime can be placed by hand with its owner in slot 0 and executes for the owner only", async () => {
  const address = freshAddress();
  await chain.place("SmartWallet", address);
  await chain.admin.setStorageAt({ address, index: 0, value: pad(settler.address, { size: 32 }) });
  await chain.send(USDC, "TestUsdc", "mint", [address, 5n]);
  const data = encodeFunctionData({ abi: token.abi, functionName: "transfer", args: [payee, 5n] });
  await chain.send(address, "SmartWallet", "execute", [USDC, 0n, data]);
  assert.equal(await balance(address), 0n);
  const call = { address, abi: artifact("SmartWallet").abi, functionName: "execute", args: [USDC, 0n, data], account: payer };
  await assert.rejects(chain.reader.simulateContract(call), /NotOwner/);
  await assert.rejects(chain.send(address, "SmartWallet", "initialize", [payer.address]), /AlreadyOwned/);
});

test("the factory creates a wallet once at the address it names", async () => {
  const { wallet, create } = await newWallet();
  await create();
  const code = await chain.reader.getCode({ address: wallet });
  assert.equal(code, artifact("SmartWallet").deployedBytecode);
  assert.equal((await create()).status, "success");
  assert.equal(await chain.view(wallet, "SmartWallet", "owner", []), payer.address);
});

test("the lens distinguishes valid, forged and used payments", async () => {
  const [good, used, poor] = [await pay(), await pay(), await pay({ value: 10n ** 30n })];
  const receipt = await settle(used);
  const forged = { ...(await pay()), value: 10_001n };
  const [number, time, facts] = await look([row(good), row(forged), row(used), row(poor)]);
  const block = await chain.reader.getBlock();
  assert.ok(number >= block.number && time >= block.timestamp);
  const held = await balance(payer.address);
  for (const fact of facts) {
    assert.equal(fact.tokenCodeSize, BigInt(size(artifact("TokenProxy").deployedBytecode)));
    assert.equal(fact.payerCodeSize, 0n);
    assert.equal(fact.signatureValid, false);
    assert.ok(fact.nonceKnown && fact.balanceKnown);
    assert.equal(fact.balance, held);
  }
  assert.deepEqual(facts.map((fact) => fact.transferSucceeds), [true, false, false, false]);
  assert.deepEqual(facts.map((fact) => fact.nonceUsed), [false, false, true, false]);
  assert.equal(facts[0].revertData, "0x");
  assert.match(revertText(facts[1].revertData), /invalid signature/);
  assert.match(revertText(facts[2].revertData), /authorization is used or canceled/);
  assert.match(revertText(facts[3].revertData), /transfer amount exceeds balance/);
  // A transaction costs 21,000 gas and its calldata on top of the call that the lens measures.
  assert.ok(facts[0].gasUsed > 40_000n && facts[0].gasUsed < receipt.gasUsed);
});

test("rows of one payer do not disturb each other", async () => {
  const owner = privateKeyToAccount(generatePrivateKey());
  await chain.send(USDC, "TestUsdc", "mint", [owner.address, 10_000n]);
  const payment = await pay({}, owner);
  const [, , facts] = await look([row(payment), row(payment), row(await pay({}, owner))]);
  assert.deepEqual(facts.map((fact) => fact.transferSucceeds), [true, true, true]);
  assert.deepEqual(facts.map((fact) => fact.balance), [10_000n, 10_000n, 10_000n]);
  assert.equal(new Set(facts.slice(0, 2).map((fact) => fact.gasUsed)).size, 1);
});

test("the lens checks the signature with a contract payer", async () => {
  const { wallet, create } = await newWallet();
  await create();
  const good = await pay({ from: wallet });
  const forged = await pay({ from: wallet }, privateKeyToAccount(generatePrivateKey()));
  const [, , facts] = await look([row(good), row(forged)]);
  assert.deepEqual(facts.map((fact) => fact.signatureValid), [true, false]);
  assert.deepEqual(facts.map((fact) => fact.transferSucceeds), [true, false]);
  assert.ok(facts.every((fact) => fact.payerCodeSize > 0n && !fact.payerDelegated));
});

test("the lens simulates an undeployed payer after its factory call", async () => {
  const { wallet, factoryCall } = await newWallet();
  const payment = await pay({ from: wallet });
  // Creating this wallet takes about 320,000 gas, more than the limit of a transfer.
  const created = row(payment, { factory: WALLET_FACTORY, factoryCall, gasLimit: 500_000n });
  const [, , facts] = await look([created, row(payment)]);
  assert.ok(facts[0].payerCodeSize > 0n && facts[0].signatureValid && facts[0].transferSucceeds);
  assert.equal(facts[0].balance, 1_000_000n);
  assert.equal(facts[1].payerCodeSize, 0n);
  assert.equal(facts[1].transferSucceeds, false);
  assert.equal(await chain.reader.getCode({ address: wallet }), undefined);
});

test("the lens recognises a delegated payer, whose ECDSA signature no longer counts", async () => {
  const owner = privateKeyToAccount(generatePrivateKey());
  await chain.send(USDC, "TestUsdc", "mint", [owner.address, 10_000n]);
  await chain.admin.setCode({ address: owner.address, bytecode: concat(["0xef0100", MULTICALL3]) });
  const [, , [fact]] = await look([row(await pay({}, owner))]);
  assert.equal(fact.payerCodeSize, 23n);
  assert.equal(fact.payerDelegated, true);
  assert.equal(fact.signatureValid, false);
  assert.equal(fact.transferSucceeds, false);
  assert.match(revertText(fact.revertData), /invalid signature/);
});

test("an address without a token knows neither nonce nor balance and transfers nothing", async () => {
  const payment = await pay({}, payer, freshAddress());
  const [, , [fact]] = await look([row(payment)]);
  assert.equal(fact.tokenCodeSize, 0n);
  assert.ok(!fact.nonceKnown && !fact.balanceKnown && !fact.transferSucceeds);
});

test("a revert bomb is cut and leaves the next row alone", async () => {
  const bomb = freshAddress();
  await chain.place("RevertBomb", bomb);
  const [, , facts] = await look([row(await pay({}, payer, bomb)), row(await pay())]);
  assert.equal(facts[0].transferSucceeds, false);
  assert.equal(facts[0].revertData, `0x${"42".repeat(512)}`);
  assert.ok(facts[0].nonceKnown && !facts[0].nonceUsed && facts[0].balanceKnown);
  assert.equal(facts[1].transferSucceeds, true);
});

test("a gas-burning wallet costs its own row no more than its allowance", async () => {
  const wallet = freshAddress();
  await chain.place("GasBurningWallet", wallet);
  await chain.send(USDC, "TestUsdc", "mint", [wallet, 10_000n]);
  const payment = await pay({ from: wallet });
  const rows = [row(payment), row(await pay())];
  const [, , calm] = await look(rows);
  assert.ok(calm[0].signatureValid && calm[0].transferSucceeds);
  await chain.send(wallet, "GasBurningWallet", "setBurning", [true]);
  const [, , facts] = await look(rows);
  assert.ok(!facts[0].signatureValid && !facts[0].transferSucceeds && facts[0].balanceKnown);
  assert.ok(facts[0].gasUsed <= 310_000n);
  assert.ok(facts[1].transferSucceeds);
});

test("a row without enough gas is all zero instead of wrong", async () => {
  const payment = await pay();
  for (const gas of [700_000n, 1_000_000n, 1_500_000n]) {
    const [, , [fact]] = await look([row(payment)], { gas });
    assert.equal(fact.tokenCodeSize, 0n);
    assert.ok(!fact.nonceKnown && !fact.balanceKnown && !fact.transferSucceeds);
  }
  const [, , [fact]] = await look([row(payment, { gasLimit: 2n ** 256n - 1n })]);
  assert.equal(fact.tokenCodeSize, 0n);
  const [, , [poor]] = await look([row(payment, { gasLimit: 20_000n })]);
  assert.ok(poor.balanceKnown && !poor.transferSucceeds);
});

test("a hundred rows fit one call and an oversized signature harms only its own row", async () => {
  const payment = await pay();
  const rows = Array.from({ length: 100 }, () => row(payment));
  rows[3] = row({ ...payment, signature: `0x${"00".repeat(40_000)}` });
  const [, , facts] = await look(rows, { gas: 29_000_000n });
  assert.ok(facts.every((fact, index) => fact.transferSucceeds === (index !== 3)));
  assert.match(revertText(facts[3].revertData), /invalid signature length/);
});

test("Multicall3 isolates failures and reports the block", async () => {
  const [good, bad, last] = [await pay(), { ...(await pay()), value: 1n }, await pay()];
  const calls = [good, bad, last].map((payment) => ({
    target: USDC, allowFailure: true,
    callData: encodeFunctionData({ abi: token.abi, functionName: "transferWithAuthorization", args: vrsArgs(payment) }),
  }));
  const request = { address: MULTICALL3, abi: multicall.abi, functionName: "aggregate3", account: settler };
  const { result } = await chain.reader.simulateContract({ ...request, args: [calls] });
  assert.deepEqual(result.map((entry) => entry.success), [true, false, true]);
  assert.match(revertText(result[1].returnData), /invalid signature/);
  const receipt = await chain.send(MULTICALL3, "Multicall3", "aggregate3", [calls]);
  const events = parseEventLogs({ abi: token.abi, logs: receipt.logs, eventName: "Transfer" });
  assert.equal(events.length, 2);

  const strict = calls.map((call) => ({ ...call, allowFailure: false }));
  await assert.rejects(chain.reader.simulateContract({ ...request, args: [strict] }), /Multicall3: call failed/);
  assert.equal(await chain.view(MULTICALL3, "Multicall3", "getChainId", []), 84532n);
  const held = await chain.reader.getBalance({ address: settler.address });
  assert.equal(await chain.view(MULTICALL3, "Multicall3", "getEthBalance", [settler.address]), held);
});

test("aggregate3Value passes on value and demands that all of it is spent", async () => {
  const call = (value) => [{ target: payee, allowFailure: false, value, callData: "0x" }];
  const request = { address: MULTICALL3, abi: multicall.abi, functionName: "aggregate3Value", value: 5n };
  const { result } = await chain.reader.simulateContract({ ...request, args: [call(5n)], account: settler });
  assert.equal(result[0].success, true);
  const wrong = chain.reader.simulateContract({ ...request, args: [call(4n)], account: settler });
  await assert.rejects(wrong, /Multicall3: value mismatch/);
});

test("the odd token misbehaves in each of its modes", async () => {
  const odd = freshAddress();
  await chain.place("OddToken", odd);
  await chain.send(odd, "OddToken", "mint", [payer.address, 1_000_000n]);
  const expected = [
    { events: ["AuthorizationUsed", "Transfer"], used: true, to: payee, value: 10_000n },
    { events: ["AuthorizationUsed"], used: true },
    { events: ["AuthorizationUsed", "Transfer"], used: true, to: payee, value: 9_999n },
    { events: [], used: false },
    { events: ["AuthorizationUsed", "Transfer"], used: true, to: "0x000000000000000000000000000000000000dEaD", value: 10_000n },
  ];
  for (const [mode, want] of expected.entries()) {
    await chain.send(odd, "OddToken", "setMode", [mode]);
    const payment = await pay({}, payer, odd);
    const receipt = await settle(payment);
    const events = parseEventLogs({ abi: token.abi, logs: receipt.logs });
    assert.deepEqual(events.map((event) => event.eventName), want.events, `mode ${mode}`);
    assert.equal(events[1]?.args.to, want.to);
    assert.equal(events[1]?.args.value, want.value);
    const used = await chain.view(odd, "OddToken", "authorizationState", [payer.address, payment.nonce]);
    assert.equal(used, want.used);
  }
  await chain.send(odd, "OddToken", "setMode", [0]);
  await chain.send(odd, "OddToken", "setDomain", ["Other", ""]);
  await refused(await pay({}, payer, odd), "FiatTokenV2: invalid signature");
});

test("a block-parity wallet agrees in even blocks only", async () => {
  const wallet = freshAddress();
  await chain.place("BlockParityWallet", wallet);
  await chain.send(USDC, "TestUsdc", "mint", [wallet, 10_000n]);
  const payment = await pay({ from: wallet });
  const answers = [];
  for (const number of [1000n, 1001n]) {
    const [, , [fact]] = await look([row(payment)], { blockOverrides: { number } });
    answers.push([fact.signatureValid, fact.transferSucceeds]);
  }
  assert.deepEqual(answers, [[true, true], [false, false]]);
});
