-- Payments that were accepted for settlement, what payers have promised, and the history of every payment.
create table payments (
    id uuid,
    x402_version smallint not null,
    network text not null,
    scheme text not null,
    rail text not null default 'authorization',
    asset bytea not null,
    payer bytea not null,
    payee bytea not null,
    amount numeric(78, 0) not null,
    permitted numeric(78, 0),
    signer bytea,
    resource text,

    nonce_domain bytea not null,
    nonce bytea not null,
    valid_after timestamptz not null,
    valid_before timestamptz not null,
    digest bytea not null,
    signature bytea not null,
    wallet_factory bytea,
    wallet_factory_call bytea,
    allowance_permit bytea,
    allowance_approval bytea,

    state text not null,
    reason text,
    message text,
    queued_at timestamptz not null default now(),
    queued_by uuid,
    transaction_hash bytea,
    log_index bigint,
    block_number bigint,
    block_hash bytea,
    block_time timestamptz,
    confirmations integer not null,
    unmatched_reason text,
    quarantined_at timestamptz,
    quarantine_reason text,

    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),

    constraint payments_pkey primary key (id),
    -- The nonce first: with the payer first, a plan made while the ledger is young may read all payments of a payer.
    constraint payments_one_per_authorization unique (nonce, payer, nonce_domain, network),
    -- The hash first: the same index finds the payments of a transaction.
    constraint payments_one_per_log unique (transaction_hash, log_index, network),
    constraint payments_version_is_known check (x402_version in (1, 2)),
    constraint payments_network_is_caip2 check (network ~ '^eip155:[1-9][0-9]*$'),
    constraint payments_scheme_is_known check (scheme in ('exact', 'upto')),
    constraint payments_rail_is_known check (rail in ('authorization', 'transfer')),
    constraint payments_addresses_have_20_bytes check (
        octet_length(asset) = 20 and octet_length(payer) = 20 and octet_length(payee) = 20 and octet_length(nonce_domain) = 20
    ),
    constraint payments_signer_has_20_bytes check (octet_length(signer) = 20),
    constraint payments_hashes_have_32_bytes check (
        octet_length(nonce) = 32 and octet_length(digest) = 32
        and octet_length(transaction_hash) = 32 and octet_length(block_hash) = 32
    ),
    constraint payments_amount_is_uint256 check (amount >= 0 and amount < 2::numeric ^ 256 and (amount > 0 or scheme = 'upto')),
    constraint payments_permitted_is_uint256 check (permitted > 0 and permitted < 2::numeric ^ 256),
    constraint payments_amount_is_permitted check (amount <= permitted and (scheme = 'upto' or amount = permitted)),
    constraint payments_permitted_at_permit2 check (
        permitted is null or nonce_domain = '\x000000000022d473030f116ddee9f6b43ac78ba3'
    ),
    constraint payments_upto_names_its_signer check (
        (scheme = 'upto') = (signer is not null) and (scheme = 'exact' or permitted is not null)
    ),
    constraint payments_signature_is_bounded check (
        octet_length(signature) <= 8192 and (rail = 'transfer' or octet_length(signature) > 0)
    ),
    constraint payments_factory_comes_with_its_call check ((wallet_factory is null) = (wallet_factory_call is null)),
    constraint payments_allowance_is_for_permit2 check (
        (allowance_permit is null or allowance_approval is null)
        and (permitted is not null or (allowance_permit is null and allowance_approval is null))
    ),
    constraint payments_allowance_permit_has_97_bytes check (octet_length(allowance_permit) = 97),
    constraint payments_allowance_approval_is_bounded check (octet_length(allowance_approval) between 1 and 8192),
    constraint payments_window_is_open check (valid_after < valid_before),
    constraint payments_confirmations_is_positive check (confirmations > 0),
    constraint payments_state_is_known check (
        state in ('queued', 'inflight', 'mined', 'settled', 'final', 'late_settled', 'refused', 'failed')
    ),
    constraint payments_transfers_are_sent check (rail <> 'transfer' or state not in ('queued', 'refused')),
    constraint payments_nothing_is_never_sent check (amount > 0 or state not in ('queued', 'inflight', 'mined', 'late_settled')),
    -- A payment of scheme upto that was charged nothing is the one settled payment without a transaction.
    constraint payments_located_iff_money_moved check (
        (state in ('mined', 'settled', 'final', 'late_settled') and amount > 0)
        = (transaction_hash is not null and log_index is not null and block_number is not null and block_hash is not null)
    ),
    constraint payments_location_is_whole check (
        (log_index is null) = (block_number is null) and (log_index is null) = (block_hash is null)
        and (log_index is null) = (block_time is null)
    ),
    constraint payments_inflight_has_a_hash check (state <> 'inflight' or transaction_hash is not null),
    constraint payments_unsent_has_no_hash check (state not in ('queued', 'refused') or transaction_hash is null),
    constraint payments_reason_iff_refused_or_failed check ((state in ('refused', 'failed')) = (reason is not null)),
    constraint payments_only_transfers_are_unmatched check (unmatched_reason is null or rail = 'transfer'),
    constraint payments_quarantine_has_a_reason check ((quarantined_at is null) = (quarantine_reason is null))
);

comment on table payments is 'one payment: payer, payee, amount, state, and where it was mined';
comment on column payments.id is 'uuid v7: rows sort by time of acceptance';
comment on column payments.x402_version is 'version of x402 in which the payment was first presented';
comment on column payments.network is 'CAIP-2';
comment on column payments.scheme is 'exact: all of what was permitted; upto: what the seller charged of it';
comment on column payments.rail is 'authorization: submitted by a lane; transfer: a plain transfer, sent under the payer''s own account nonce';
comment on column payments.asset is 'contract of the token';
comment on column payments.amount is 'atomic units of the asset to be transferred; in scheme upto the charge, which may be 0';
comment on column payments.permitted is 'Permit2: the maximum that the payer signed; null for EIP-3009 and for transfers';
comment on column payments.signer is 'the only signer that may settle it, because the payer signed its address; null: any signer';
comment on column payments.resource is 'what was bought, as buyer or seller named it; never checked';
comment on column payments.nonce_domain is 'contract in which the nonce is used: the token for EIP-3009, or Permit2; zero for a transfer, whose nonce is its session''s';
comment on column payments.nonce is 'chosen by the payer; unique together with network, domain and payer';
comment on column payments.valid_after is 'the block''s time must be later (whole seconds)';
comment on column payments.valid_before is 'the block''s time must be earlier (whole seconds)';
comment on column payments.digest is 'the 32 bytes that the payer signed; two presentations are the same payment iff it is equal; for a transfer the digest of its claim';
comment on column payments.signature is 'inner signature without an ERC-6492 wrapper; may be empty for a transfer that carries its session''s tag';
comment on column payments.wallet_factory is 'allowed factory that deploys the payer''s wallet (ERC-6492)';
comment on column payments.wallet_factory_call is 'calldata for the factory';
comment on column payments.allowance_permit is 'EIP-2612 permit by which Permit2 may take the token: deadline (32 bytes), signature (65 bytes)';
comment on column payments.allowance_approval is 'the same as a transaction that the payer signed';
comment on column payments.state is 'queued, inflight, mined, settled, final; refused, failed, late_settled; see payment_transitions';
comment on column payments.reason is 'stable code of a refusal or failure';
comment on column payments.message is 'the same for people; never a secret';
comment on column payments.queued_at is 'since when it has waited for its current transaction';
comment on column payments.queued_by is 'process that has claimed it while it is queued; null: unclaimed, the owner of any lane takes it';
comment on column payments.transaction_hash is 'newest attempt while in flight, then the transaction that moved the money';
comment on column payments.log_index is 'index of the Transfer log in its block';
comment on column payments.block_time is 'timestamp of the block';
comment on column payments.confirmations is 'blocks promised at acceptance; 1: its own block';
comment on column payments.unmatched_reason is 'the money moved too late to count; never granted';
comment on column payments.quarantined_at is 'quarantined for the operator because an assumption did not hold; the state is kept';
comment on column payments.updated_at is 'time of the last change of the row';

-- Signatures do not get smaller by compression.
alter table payments alter column signature set storage external;

create index payments_waiting on payments (network, queued_at) where state = 'queued';
create index payments_unclaimed on payments (network, queued_at) where state = 'queued' and queued_by is null;
create index payments_unfinal on payments (network, block_number) where state in ('mined', 'settled', 'late_settled');
create index payments_open_transfers on payments (network, id) where rail = 'transfer' and state = 'inflight';
create index payments_given_up on payments (network, valid_before, id)
    where rail = 'authorization' and state in ('refused', 'failed') and quarantined_at is null;
create index payments_promised_at_permit2 on payments (payer, asset, network)
    where permitted is not null and state in ('queued', 'inflight');

-- The allowed changes of a payment's state, as in PaymentState::may_become. Guarded updates catch races; this table and its trigger
-- catch bugs and manual updates.
create table payment_transitions (
    from_state text,
    to_state text,
    why text not null,
    constraint payment_transitions_pkey primary key (from_state, to_state)
);

comment on table payment_transitions is 'allowed changes of payments.state';
comment on column payment_transitions.why is 'event that causes the change';

insert into payment_transitions (from_state, to_state, why) values
    ('queued', 'inflight', 'bytes, hash and nonce of its transaction are committed'),
    ('queued', 'refused', 'refused; no transaction of it is under way'),
    ('queued', 'failed', 'proven unable to move money'),
    ('queued', 'mined', 'a foreign transaction used the authorization'),
    ('queued', 'settled', 'a foreign transaction used the authorization, confirmed'),
    ('inflight', 'mined', 'its Transfer is in a canonical block'),
    ('inflight', 'settled', 'its Transfer is in a canonical block, confirmed'),
    ('inflight', 'queued', 'its transaction was mined without effect and the nonce is unused'),
    ('inflight', 'refused', 'its transaction was mined without effect and would fail again'),
    ('inflight', 'failed', 'proven unable to move money any more'),
    ('mined', 'settled', 'confirmed'),
    ('mined', 'inflight', 'reorg'),
    ('mined', 'queued', 'reorg, and no transaction of ours carries it'),
    ('settled', 'inflight', 'reorg'),
    ('settled', 'queued', 'reorg, and no transaction of ours carries it'),
    ('settled', 'final', 'beyond the reach of reorgs'),
    ('refused', 'queued', 'presented again, and valid'),
    ('refused', 'inflight', 'reorg of the block in which its transaction had no effect'),
    ('refused', 'mined', 'a foreign transaction used the authorization'),
    ('refused', 'settled', 'a foreign transaction used the authorization, confirmed'),
    ('refused', 'failed', 'proven unable to move money any more'),
    ('failed', 'late_settled', 'the proof turned out wrong'),
    ('late_settled', 'inflight', 'reorg'),
    ('late_settled', 'queued', 'reorg, and no transaction of ours carries it');

-- What payers have promised: the sum of their payments that may still move money, one row each. Acceptances of one payer lock its row
-- and so never promise more than its balance.
create table payer_accounts (
    network text,
    asset bytea,
    payer bytea,
    held numeric(78, 0) not null default 0,
    settled_block bigint not null default 0,
    constraint payer_accounts_pkey primary key (network, asset, payer),
    constraint payer_accounts_network_is_caip2 check (network ~ '^eip155:[1-9][0-9]*$'),
    constraint payer_accounts_addresses_have_20_bytes check (octet_length(asset) = 20 and octet_length(payer) = 20),
    constraint payer_accounts_held_is_natural check (held >= 0),
    constraint payer_accounts_settled_block_is_a_height check (settled_block >= 0)
);

comment on table payer_accounts is 'what a payer has promised and not paid yet';
comment on column payer_accounts.held is 'atomic units: sum of its authorizations that are queued or in flight';
comment on column payer_accounts.settled_block is 'newest block with a payment of this payer: a balance read before it still contains that money';

-- Append-only. Written by triggers and by statements that begin at a payment, and payments are never deleted: a foreign key would cost
-- more than everything else about an event.
create table events (
    id bigint generated always as identity,
    payment_id uuid not null,
    at timestamptz not null default clock_timestamp(),
    kind text not null,
    from_state text,
    to_state text,
    reason text,
    transaction_hash bytea,
    -- Events are read by payment.
    constraint events_pkey primary key (payment_id, id),
    constraint events_kind_is_known check (kind in ('state', 'granted', 'answered', 'voided', 'quarantined', 'reorged')),
    constraint events_state_kind_names_a_state check ((kind = 'state') = (to_state is not null))
);

comment on table events is 'what happened to a payment, in order';
comment on column events.kind is 'state: a change of state; granted, answered, voided: its grant; quarantined; reorged';
comment on column events.reason is 'code of a refusal or failure; for a grant the id of the request';

create function payments_touch() returns trigger language plpgsql as $$
begin
    new.updated_at := now();
    return new;
end
$$;

create trigger payments_updates_are_dated before update on payments
    for each row execute function payments_touch();

create function payments_begin() returns trigger language plpgsql as $$
begin
    insert into events (payment_id, kind, to_state, reason, transaction_hash)
    select id, 'state', state, reason, transaction_hash from begun;
    update payer_accounts a set held = a.held + promised.amount
    from (
        select network, asset, payer, sum(amount) as amount from begun
        where rail = 'authorization' and state in ('queued', 'inflight') group by network, asset, payer
    ) promised
    where a.network = promised.network and a.asset = promised.asset and a.payer = promised.payer;
    return null;
end
$$;

create trigger payments_every_beginning_is_recorded after insert on payments
    referencing new table as begun for each statement execute function payments_begin();

-- Guard, events and accounts follow each statement, however many payments it touches. Plans of a function live as long as its
-- connection, and the first may be made for a single payment: an inner join planned as a loop then compares all pairs of a batch.
-- Full joins are never planned as loops, and here every row has its other half.
create function payments_move() returns trigger language plpgsql as $$
declare
    wrong record;
begin
    select was.id, was.state as from_state, now_is.state as to_state into wrong
    from was full join now_is on now_is.id = was.id
    where was.state is distinct from now_is.state and not exists (
        select from payment_transitions t where t.from_state = was.state and t.to_state = now_is.state
    ) limit 1;
    if found then
        raise exception 'payment % may not go from % to %', wrong.id, wrong.from_state, wrong.to_state
            using errcode = 'check_violation', constraint = 'payments_transition_is_allowed';
    end if;
    insert into events (payment_id, kind, from_state, to_state, reason, transaction_hash)
    select now_is.id, 'state', was.state, now_is.state, now_is.reason, now_is.transaction_hash
    from was full join now_is on now_is.id = was.id where was.state is distinct from now_is.state;
    -- Accounts are locked in one order everywhere, so that no two statements wait for each other.
    with changed as (
        select now_is.network, now_is.asset, now_is.payer,
            sum(case when now_is.state in ('queued', 'inflight') then now_is.amount else -now_is.amount end) as amount,
            coalesce(max(now_is.block_number), 0) as settled_block, min(was.block_number) - 1 as reopened_above
        from was full join now_is on now_is.id = was.id
        where coalesce(was.rail, now_is.rail) = 'authorization'
            and (was.state in ('queued', 'inflight')) is distinct from (now_is.state in ('queued', 'inflight'))
        group by now_is.network, now_is.asset, now_is.payer
    ), locked as (
        select a.network, a.asset, a.payer, changed.amount, changed.settled_block, changed.reopened_above
        from payer_accounts a join changed on a.network = changed.network and a.asset = changed.asset and a.payer = changed.payer
        order by a.network, a.asset, a.payer for update of a
    )
    update payer_accounts a set held = a.held + locked.amount,
        -- A reorg may have taken the newest block back.
        settled_block = greatest(least(greatest(a.settled_block, locked.settled_block), locked.reopened_above), 0)
    from locked
    where a.network = locked.network and a.asset = locked.asset and a.payer = locked.payer;
    return null;
end
$$;

create trigger payments_every_transition_is_recorded after update on payments
    referencing old table as was new table as now_is for each statement execute function payments_move();
