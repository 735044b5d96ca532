-- One row per movement of money that was ever accepted for settlement.
create table payments (
    id uuid,
    x402_version smallint not null,
    network text not null,
    scheme text not null,
    asset bytea not null,
    payer bytea not null,
    payee bytea not null,
    amount numeric(78, 0) not null,
    resource text,

    nonce_domain bytea not null,
    nonce bytea not null,
    valid_after timestamptz not null,
    valid_before timestamptz not null,
    digest bytea not null,
    signature bytea not null,
    wallet_factory bytea,
    wallet_factory_call bytea,

    state text not null,
    reason text,
    message text,
    queued_at timestamptz not null default now(),
    transaction_hash bytea,
    log_index bigint,
    block_number bigint,
    block_hash bytea,
    block_time timestamptz,
    confirmations integer not null,
    quarantined_at timestamptz,
    quarantine_reason text,

    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),

    constraint payments_pkey primary key (id),
    constraint payments_one_per_authorization unique (network, nonce_domain, payer, nonce),
    constraint payments_one_per_log unique (network, transaction_hash, log_index),
    constraint payments_version_is_known check (x402_version in (1, 2)),
    constraint payments_network_is_caip2 check (network ~ '^eip155:[1-9][0-9]*$'),
    constraint payments_scheme_is_known check (scheme in ('exact')),
    constraint payments_addresses_have_20_bytes check (
        octet_length(asset) = 20 and octet_length(payer) = 20 and octet_length(payee) = 20 and octet_length(nonce_domain) = 20
    ),
    constraint payments_hashes_have_32_bytes check (
        octet_length(nonce) = 32 and octet_length(digest) = 32
        and octet_length(transaction_hash) = 32 and octet_length(block_hash) = 32
    ),
    constraint payments_amount_is_positive_uint256 check (amount > 0 and amount < 2::numeric ^ 256),
    constraint payments_signature_is_bounded check (octet_length(signature) between 1 and 8192),
    constraint payments_factory_comes_with_its_call check ((wallet_factory is null) = (wallet_factory_call is null)),
    constraint payments_window_is_open check (valid_after < valid_before),
    constraint payments_confirmations_is_positive check (confirmations > 0),
    constraint payments_state_is_known check (
        state in ('queued', 'inflight', 'mined', 'settled', 'final', 'late_settled', 'refused', 'failed')
    ),
    constraint payments_located_iff_money_moved check (
        (state in ('mined', 'settled', 'final', 'late_settled'))
        = (transaction_hash is not null and log_index is not null and block_number is not null and block_hash is not null)
    ),
    constraint payments_location_is_whole check (
        (log_index is null) = (block_number is null) and (log_index is null) = (block_hash is null)
        and (log_index is null) = (block_time is null)
    ),
    constraint payments_inflight_has_a_hash check (state <> 'inflight' or transaction_hash is not null),
    constraint payments_unsent_has_no_hash check (state not in ('queued', 'refused') or transaction_hash is null),
    constraint payments_reason_iff_refused_or_failed check ((state in ('refused', 'failed')) = (reason is not null)),
    constraint payments_quarantine_has_a_reason check ((quarantined_at is null) = (quarantine_reason is null))
);

comment on table payments is 'one movement of money: who, to whom, what, how far it got, where it was mined';
comment on column payments.id is 'uuid v7: rows sort by the time of their acceptance';
comment on column payments.x402_version is 'dialect in which the payment was presented first';
comment on column payments.network is 'CAIP-2';
comment on column payments.amount is 'atomic units of the asset';
comment on column payments.resource is 'what was bought, as the buyer or seller said; advice, never checked';
comment on column payments.nonce_domain is 'contract in which the nonce is used up: the token for EIP-3009';
comment on column payments.nonce is 'chosen by the payer; unique together with network, domain and payer';
comment on column payments.valid_after is 'the chain''s time must be later (whole seconds)';
comment on column payments.valid_before is 'the chain''s time must be earlier (whole seconds)';
comment on column payments.digest is 'the 32 bytes that the payer signed: two presentations are the same payment iff this is equal';
comment on column payments.signature is 'inner signature without an ERC-6492 wrapper';
comment on column payments.wallet_factory is 'allow-listed factory that deploys the payer''s wallet (ERC-6492)';
comment on column payments.state is 'queued → inflight → mined → settled → final, or an exit; see payment_transitions';
comment on column payments.reason is 'stable code of a refusal or failure';
comment on column payments.message is 'the same for people; never a secret';
comment on column payments.queued_at is 'since when it has been waiting for its current transaction';
comment on column payments.transaction_hash is 'newest attempt while in flight, afterwards the transaction that moved the money';
comment on column payments.log_index is 'position of the Transfer log in its block';
comment on column payments.confirmations is 'depth that was promised when the payment was accepted; 1 = in a canonical block';
comment on column payments.quarantined_at is 'set aside for the operator: an assumption did not hold, the state is kept';

create index payments_waiting on payments (network, queued_at) where state = 'queued';
create index payments_unfinal on payments (network, block_number) where state in ('mined', 'settled');
create index payments_by_payer on payments (payer, id desc);
create index payments_by_payee on payments (payee, id desc);
create index payments_by_state on payments (state, id desc);

-- The only ways in which a payment may change. Guarded updates catch races; this table and its trigger catch bugs and operators.
create table payment_transitions (
    from_state text,
    to_state text,
    why text not null,
    constraint payment_transitions_pkey primary key (from_state, to_state)
);

comment on table payment_transitions is 'allowed changes of payments.state';

insert into payment_transitions (from_state, to_state, why) values
    ('queued', 'inflight', 'its bytes, hash and nonce are committed'),
    ('queued', 'refused', 'ejected before any broadcast'),
    ('queued', 'failed', 'proven unable to move money'),
    ('queued', 'mined', 'somebody else submitted the authorization'),
    ('queued', 'settled', 'somebody else submitted the authorization, at depth'),
    ('inflight', 'mined', 'its Transfer is in a canonical block'),
    ('inflight', 'settled', 'its Transfer is in a canonical block, at depth'),
    ('inflight', 'queued', 'its transaction was consumed without effect and the nonce is unused'),
    ('inflight', 'refused', 'its transaction was consumed without effect and it would fail again'),
    ('inflight', 'failed', 'proven unable to move money any more'),
    ('mined', 'settled', 'depth reached'),
    ('mined', 'inflight', 'its block left the chain'),
    ('mined', 'queued', 'its block left the chain, and no transaction of ours carries it'),
    ('settled', 'inflight', 'its block left the chain'),
    ('settled', 'queued', 'its block left the chain, and no transaction of ours carries it'),
    ('settled', 'final', 'beyond the reach of reorganisations'),
    ('refused', 'queued', 'presented again and good'),
    ('refused', 'mined', 'somebody else submitted the authorization'),
    ('refused', 'settled', 'somebody else submitted the authorization, at depth'),
    ('refused', 'failed', 'proven unable to move money any more'),
    ('failed', 'late_settled', 'the proof turned out wrong');

-- Append-only history. State changes are written by the trigger below, so no code path can forget one.
create table events (
    id bigint generated always as identity,
    payment_id uuid not null,
    at timestamptz not null default clock_timestamp(),
    kind text not null,
    from_state text,
    to_state text,
    reason text,
    transaction_hash bytea,
    constraint events_pkey primary key (id),
    constraint events_belong_to_a_payment foreign key (payment_id) references payments (id),
    constraint events_kind_is_known check (kind in ('state', 'granted', 'answered', 'voided', 'quarantined', 'reorged')),
    constraint events_state_kind_names_a_state check ((kind = 'state') = (to_state is not null))
);

comment on table events is 'what happened to a payment, in order';
comment on column events.kind is 'state: a transition; granted, answered, voided: the life of a grant; quarantined; reorged';

create index events_by_payment on events (payment_id, id);

create function payments_guard_transition() returns trigger language plpgsql as $$
begin
    if old.state is distinct from new.state and not exists (
        select from payment_transitions t where t.from_state = old.state and t.to_state = new.state
    ) then
        raise exception 'payment % may not go from % to %', old.id, old.state, new.state
            using errcode = 'check_violation', constraint = 'payments_transition_is_allowed';
    end if;
    new.updated_at := now();
    return new;
end
$$;

create trigger payments_transition_is_allowed before update on payments
    for each row execute function payments_guard_transition();

create function payments_record_transition() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        insert into events (payment_id, kind, to_state, reason, transaction_hash)
        values (new.id, 'state', new.state, new.reason, new.transaction_hash);
    elsif old.state is distinct from new.state then
        insert into events (payment_id, kind, from_state, to_state, reason, transaction_hash)
        values (new.id, 'state', old.state, new.state, new.reason, new.transaction_hash);
    end if;
    return null;
end
$$;

create trigger payments_every_transition_is_recorded after insert or update of state on payments
    for each row execute function payments_record_transition();
