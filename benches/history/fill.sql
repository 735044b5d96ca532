-- A ledger with 100,000 payments over ninety days, like an operator's with some busy sellers: 5,000 payers, 20 payees, two networks,
-- 200 resources, and a session for three payments of ten. A third of the sessions have the same reference, like a buyer's that uses
-- one for everything. The triggers of the schema write the events.
insert into processes (id, version, lease_until) values ('01900000-0000-7000-8000-000000000001', 'bench', now());

insert into lanes (network, signer, next_nonce, epoch, lease_until)
select network, decode(repeat('ab', 20), 'hex'), 1000000, 1, now() from (values ('eip155:84532'), ('eip155:8453')) networks (network);

create temporary table drafts as
with numbered as (
    select n, timestamptz '2026-01-01T00:00:00Z' + n * interval '77.76 seconds' as at, md5('payment ' || n) as dice
    from generate_series(1, 100000) n
)
select
    n, at,
    (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '7' || substr(dice, 1, 3) || '8' || substr(dice, 4, 15))::uuid as id,
    case when n % 20 = 0 then 'eip155:8453' else 'eip155:84532' end as network,
    case when n % 20 = 0 then decode(repeat('83', 20), 'hex') else decode(repeat('03', 20), 'hex') end as asset,
    decode(lpad(lpad(to_hex(abs(hashint8(n)) % 5000), 8, '0'), 40, 'a'), 'hex') as payer,
    -- The first payee has half of all payments; the twentieth has the thirty oldest.
    decode(lpad(lpad(to_hex(case
        when n <= 30 then 20 when n % 2 = 0 then 1 else 2 + abs(hashint8(n + 7)) % 18 end), 2, '0'), 40, 'e'), 'hex') as payee,
    case when n = 77 then 987654321 else 1000 + abs(hashint8(n + 13)) % 1000000 end as amount,
    'https://seller-' || abs(hashint8(n + 17)) % 200 || '.test/report' as resource,
    case
        when n > 99990 then 'queued' when n > 99980 then 'inflight' when n > 97000 then 'settled'
        when n % 97 = 0 then 'failed' when n % 101 = 0 then 'refused' else 'final'
    end as state
from numbered;

insert into payments (id, x402_version, network, scheme, asset, payer, payee, amount, resource, nonce_domain, nonce, valid_after,
    valid_before, digest, signature, state, reason, message, transaction_hash, log_index, block_number, block_hash, block_time,
    confirmations, created_at)
select id, 2, network, 'exact', asset, payer, payee, amount, resource, asset, sha256(convert_to('nonce ' || n, 'utf8')), at - interval '1 minute',
    at + interval '10 minutes', sha256(convert_to('digest ' || n, 'utf8')), decode(repeat('5a', 65), 'hex'), state,
    case state when 'failed' then 'invalid_exact_evm_payload_authorization_valid_before' when 'refused' then 'invalid_exact_evm_insufficient_balance' end,
    case when state in ('failed', 'refused') then 'a sentence about what was expected and what came' end,
    case when state not in ('queued', 'refused') then sha256(convert_to('transaction ' || n, 'utf8')) end,
    case when state in ('settled', 'final') then 1 end,
    case when state in ('settled', 'final') then 1000000 + n end,
    case when state in ('settled', 'final') then sha256(convert_to('block ' || n, 'utf8')) end,
    case when state in ('settled', 'final') then at + interval '2 seconds' end,
    1, at
from drafts order by n;

insert into transactions (id, network, signer, nonce, epoch, kind, state, hash, succeeded, block_number, block_hash, gas_used, gas_price_wei)
select id, network, decode(repeat('ab', 20), 'hex'), n, 1, 'direct', 'mined', sha256(convert_to('transaction ' || n, 'utf8')), true, 1000000 + n,
    sha256(convert_to('block ' || n, 'utf8')), 65000, 1000000007
from drafts where state in ('settled', 'final');

insert into attempts (hash, transaction_id, sequence, raw, gas_limit, max_fee_wei, max_priority_fee_wei)
select sha256(convert_to('transaction ' || n, 'utf8')), id, 0, decode(repeat('02', 400), 'hex'), 100000, 2000000000, 1000000
from drafts where state in ('settled', 'final');

insert into transaction_payments (transaction_id, position, payment_id, outcome)
select id, 0, id, 'transferred' from drafts where state in ('settled', 'final');

insert into sessions (id, cancel_token_hash, client, x402_version, rail, network, asset, payer, payee, amount, accepted,
    requirements_hash, nonce, resource, client_reference, accept_from_block, confirmations, expires_at, payment_id, created_at)
select 'ps_' || translate(substr(md5('session ' || n), 1, 26), 'ilou', '0000'), sha256('token'), '203.0.113.7', 2, 'authorization', network, asset,
    payer, payee, amount, '{}', sha256('terms'), sha256(convert_to('nonce ' || n, 'utf8')), resource,
    case when n % 3 = 0 then 'agent-7' else 'order-' || n end, 1, 1, at + interval '5 minutes', id, at
from drafts where n % 10 < 3;

drop table drafts;
