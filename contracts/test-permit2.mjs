// Permit2 and the two x402 proxies on a local anvil: `node test-permit2.mjs`.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { encodeFunctionData, hashTypedData, hexToBigInt, maxUint256, parseEventLogs, parseSignature, zeroAddress } from "viem";
import { generatePrivateKey, privateKeyToAccount } from "viem/accounts";
import {
  EXACT_PROXY, LENS, MULTICALL3, PERMIT2, UPTO_PROXY, USDC, WALLET_FACTORY, artifact, payee, payer, settler, startChain,
} from "./testchain.mjs";

const DEADLINE = 1_900_000_000n;
const exact = { name: "ExactPermit2Proxy", address: EXACT_PROXY };
const upto = { name: "UptoPermit2Proxy", address: UPTO_PROXY };
const abi = [...artifact("Permit2").abi, ...artifact("UptoPermit2Proxy").abi, ...artifact("TestUsdc").abi];

let chain;
before(async () => {
  chain = await startChain();
  await chain.place("Permit2", PERMIT2);
  await chain.place("ExactPermit2Proxy", EXACT_PROXY);
  await chain.place("UptoPermit2Proxy", UPTO_PROXY);
  await chain.send(USDC, "TestUsdc", "mint", [payer.address, 1_000_000n]);
  await approve(maxUint256);
});
after(() => chain?.stop());

/** Sets the payer's allowance to Permit2, sent as the payer without a key. */
async function approve(amount) {
  await chain.admin.impersonateAccount({ address: payer.address });
  await chain.admin.setBalance({ address: payer.address, value: 10n ** 18n });
  const hash = await chain.writer.writeContract({
    address: USDC, abi, functionName: "approve", args: [PERMIT2, amount], account: payer.address,
  });
  await chain.reader.waitForTransactionReceipt({ hash });
}

const uint = (name) => ({ name, type: "uint256" });
const addr = (name) => ({ name, type: "address" });

async function permit(proxy, changes = {}, signer = payer) {
  const facilitator = proxy === upto ? { facilitator: changes.facilitator ?? settler.address } : {};
  const witness = { to: payee, ...facilitator, validAfter: changes.validAfter ?? 0n };
  const message = {
    permitted: { token: USDC, amount: 10_000n }, spender: proxy.address,
    nonce: changes.nonce ?? hexToBigInt(generatePrivateKey()), deadline: changes.deadline ?? DEADLINE, witness,
  };
  const typed = {
    domain: { name: "Permit2", chainId: 84532, verifyingContract: PERMIT2 },
    primaryType: "PermitWitnessTransferFrom",
    types: {
      PermitWitnessTransferFrom: [
        { name: "permitted", type: "TokenPermissions" }, addr("spender"), uint("nonce"), uint("deadline"),
        { name: "witness", type: "Witness" },
      ],
      TokenPermissions: [addr("token"), uint("amount")],
      Witness: [addr("to"), ...(proxy === upto ? [addr("facilitator")] : []), uint("validAfter")],
    },
    message,
  };
  const { permitted, nonce, deadline } = message;
  return {
    proxy, permit: { permitted, nonce, deadline }, amount: permitted.amount, owner: payer.address, witness,
    digest: hashTypedData(typed), signature: await signer.signTypedData(typed),
  };
}

function argsOf({ proxy, permit, amount, owner, witness, signature }) {
  return [permit, ...(proxy === upto ? [amount] : []), owner, witness, signature];
}

const settle = (signed) => chain.send(signed.proxy.address, signed.proxy.name, "settle", argsOf(signed));

const refused = (signed, error) =>
  assert.rejects(
    chain.reader.simulateContract({
      address: signed.proxy.address, functionName: "settle", args: argsOf(signed), account: settler,
      abi: [...artifact(signed.proxy.name).abi, ...artifact("Permit2").abi.filter((item) => item.type === "error" && item.name !== "InvalidAmount")],
    }),
    (failure) => {
      assert.match(failure.message, new RegExp(error));
      return true;
    },
  );

test("the digests are those of the official Permit2 and proxies", async () => {
  const vector = { nonce: 7n, facilitator: "0x3333333333333333333333333333333333333333" };
  assert.equal((await permit(exact, vector)).digest, "0x5ee092a968e1122befb3e982389460ecb49eea18ae8278f2b9856bb37856e9a3");
  assert.equal((await permit(upto, vector)).digest, "0x4c7d9b366872d727e413b629c0ceebc80007003a383bf3b13600cfddc290fbd0");
  const separator = await chain.view(PERMIT2, "Permit2", "DOMAIN_SEPARATOR", []);
  assert.equal(separator, "0x010f27a92fb9a32622f44f001dc4d15706a85b33499cfc2ce9033113ab26592c");
  const typehash = (proxy) => chain.view(proxy.address, proxy.name, "WITNESS_TYPEHASH", []);
  assert.equal(await typehash(exact), "0xd97b3239a7f32295517bd14cb074edfdd188dfe5eb42f802bb26d4fd1eb12c37");
  assert.equal(await typehash(upto), "0xd4171c445a74218b01d4fd8af34ff1106580ea1e36ff837e64484bfaa2253b75");
  assert.equal(await chain.view(EXACT_PROXY, "ExactPermit2Proxy", "PERMIT2", []), PERMIT2);
});

test("an exact payment settles once and marks its nonce in the bitmap", async (t) => {
  const signed = await permit(exact);
  const receipt = await settle(signed);
  const events = parseEventLogs({ abi, logs: receipt.logs });
  assert.deepEqual(events.map((event) => event.eventName), ["Transfer", "Settled"]);
  assert.deepEqual({ ...events[0].args }, { from: payer.address, to: payee, value: 10_000n });
  const word = await chain.view(PERMIT2, "Permit2", "nonceBitmap", [payer.address, signed.permit.nonce >> 8n]);
  assert.equal((word >> (signed.permit.nonce & 255n)) & 1n, 1n);
  await refused(signed, "InvalidNonce");
  t.diagnostic(`gas of an exact Permit2 settlement: ${receipt.gasUsed}`);
});

test("an exact payment is refused when it is late, early, forged, redirected or not approved", async () => {
  await refused(await permit(exact, { deadline: 1n }), "SignatureExpired");
  await refused(await permit(exact, { validAfter: DEADLINE }), "PaymentTooEarly");
  await refused(await permit(exact, {}, privateKeyToAccount(generatePrivateKey())), "InvalidSigner");
  const redirected = await permit(exact);
  await refused({ ...redirected, witness: { ...redirected.witness, to: settler.address } }, "InvalidSigner");
  await approve(0n);
  await refused(await permit(exact), "TRANSFER_FROM_FAILED");
  await approve(maxUint256);
});

test("an upto payment charges any part of the maximum, once, by its facilitator only", async () => {
  const signed = { ...(await permit(upto)), amount: 2_500n };
  await refused({ ...signed, amount: 10_001n }, "AmountExceedsPermitted");
  await refused({ ...signed, amount: 0n }, "InvalidAmount");
  await refused(await permit(upto, { facilitator: payee }), "UnauthorizedFacilitator");
  const receipt = await settle(signed);
  const [moved] = parseEventLogs({ abi, logs: receipt.logs, eventName: "Transfer" });
  assert.equal(moved.args.value, 2_500n);
  await refused({ ...signed, amount: 1n }, "InvalidNonce");
});

test("an upto row fails inside Multicall3 although the outer call succeeds", async () => {
  const data = encodeFunctionData({ abi: artifact("UptoPermit2Proxy").abi, functionName: "settle", args: argsOf(await permit(upto)) });
  const { result } = await chain.reader.simulateContract({
    address: MULTICALL3, abi: artifact("Multicall3").abi, functionName: "aggregate3", account: settler,
    args: [[{ target: UPTO_PROXY, allowFailure: true, callData: data }]],
  });
  assert.deepEqual(result, [{ success: false, returnData: "0x0f6fae87" }]);
});

/** The lens row of a payment; `sender` is the account that calls the proxy. */
function row(signed, sender) {
  const nonce = signed.permit.nonce;
  const call = (name, functionName, args) => encodeFunctionData({ abi: artifact(name).abi, functionName, args });
  return {
    token: USDC, payer: signed.owner, nonceDomain: PERMIT2, nonceMask: 1n << (nonce & 255n), spender: PERMIT2,
    nonceCall: call("Permit2", "nonceBitmap", [signed.owner, nonce >> 8n]), digest: signed.digest, signature: signed.signature,
    factory: zeroAddress, factoryCall: "0x", settler: signed.proxy.address, sender,
    settlement: call(signed.proxy.name, "settle", argsOf(signed)), gasLimit: 300_000n,
  };
}

async function look(rows) {
  const lens = artifact("Lens");
  const places = [LENS, settler.address, payee];
  const { result } = await chain.reader.simulateContract({
    address: LENS, abi: lens.abi, functionName: "read", args: [rows],
    stateOverride: places.map((address) => ({ address, code: lens.deployedBytecode })),
  });
  return result[2];
}

test("the lens calls a proxy from the sender that a payment names", async () => {
  const used = await permit(exact);
  await settle(used);
  const metered = { ...(await permit(upto)), amount: 2_500n };
  const facts = await look([
    row(await permit(exact), zeroAddress), row(metered, settler.address), row(metered, zeroAddress), row(metered, payee),
    row(used, zeroAddress), row({ ...metered, amount: 10_001n }, settler.address),
  ]);
  assert.deepEqual(facts.map((fact) => fact.transferSucceeds), [true, true, false, false, false, false]);
  assert.deepEqual(facts.map((fact) => fact.nonceUsed), [false, false, false, false, true, false]);
  assert.equal(facts[2].revertData, "0x0f6fae87");
  assert.equal(facts[3].revertData, "0x0f6fae87");
  assert.equal(facts[4].revertData, "0x756688fe");
  assert.equal(facts[5].revertData, "0xfe64b4c7");
  assert.ok(facts.every((fact) => fact.nonceKnown && fact.allowanceKnown && fact.settlerCodeSize > 0n));
  assert.ok(facts.every((fact) => fact.allowance === maxUint256 && fact.gasUsed > 0n));
});

test("an ERC-1271 wallet pays through Permit2", async () => {
  const salt = generatePrivateKey();
  const args = [settler.address, salt];
  const wallet = await chain.view(WALLET_FACTORY, "SmartWalletFactory", "addressOf", args);
  await chain.send(WALLET_FACTORY, "SmartWalletFactory", "createWallet", args);
  await chain.send(USDC, "TestUsdc", "mint", [wallet, 10_000n]);
  const data = encodeFunctionData({ abi: artifact("TestUsdc").abi, functionName: "approve", args: [PERMIT2, maxUint256] });
  await chain.send(wallet, "SmartWallet", "execute", [USDC, 0n, data]);
  const forged = { ...(await permit(exact)), owner: wallet };
  await refused(forged, "InvalidContractSignature");
  const receipt = await settle({ ...(await permit(exact, {}, settler)), owner: wallet });
  const [moved] = parseEventLogs({ abi, logs: receipt.logs, eventName: "Transfer" });
  assert.equal(moved.args.from, wallet);
});

test("settleWithPermit approves Permit2 first and survives a permit that was used already", async () => {
  await approve(0n);
  const nonce = await chain.view(USDC, "TestUsdc", "nonces", [payer.address]);
  const approval = await payer.signTypedData({
    domain: { name: "USDC", version: "2", chainId: 84532, verifyingContract: USDC },
    types: { Permit: [addr("owner"), addr("spender"), uint("value"), uint("nonce"), uint("deadline")] },
    primaryType: "Permit",
    message: { owner: payer.address, spender: PERMIT2, value: 10_000n, nonce, deadline: DEADLINE },
  });
  const { r, s, v } = parseSignature(approval);
  const permit2612 = { value: 10_000n, deadline: DEADLINE, r, s, v: Number(v) };
  const run = async (approving) =>
    chain.send(EXACT_PROXY, "ExactPermit2Proxy", "settleWithPermit", [approving, ...argsOf(await permit(exact))]);
  const names = (receipt) => parseEventLogs({ abi, logs: receipt.logs }).map((event) => event.eventName);

  assert.deepEqual(names(await run(permit2612)), ["Approval", "Transfer", "SettledWithPermit"]);
  await assert.rejects(run({ ...permit2612, value: 9_999n }), /Permit2612AmountMismatch/);
  await assert.rejects(run(permit2612), /TRANSFER_FROM_FAILED/);
  await approve(maxUint256);
  assert.deepEqual(names(await run(permit2612)), ["EIP2612PermitFailedWithData", "Transfer", "SettledWithPermit"]);
});
