-- Lanes, their account nonces and the transactions signed under them.
create table lanes (
    network text,
    signer bytea,
    next_nonce bigint not null,
    epoch bigint not null,
    owner uuid,
    lease_until timestamptz not null,
    stopped_reason text,
    reopened bigint not null default 0,
    constraint lanes_pkey primary key (network, signer),
    constraint lanes_owned_by_a_process foreign key (owner) references processes (id),
    constraint lanes_network_is_caip2 check (network ~ '^eip155:[1-9][0-9]*$'),
    constraint lanes_signer_has_20_bytes check (octet_length(signer) = 20),
    constraint lanes_numbers_are_natural check (next_nonce >= 0 and epoch > 0)
);

-- One process owns a lane, by lease. The epoch fences a process that slept through the loss of its lease: it may send again what is
-- written, but it can never write a new nonce.
comment on table lanes is 'one signer on one network: its next account nonce, and the process that may use it';
comment on column lanes.next_nonce is 'first account nonce without bytes';
comment on column lanes.epoch is 'number of owners so far; part of every write of a nonce';
comment on column lanes.owner is 'process that owns the lane while lease_until is ahead';
comment on column lanes.stopped_reason is 'set when the lane must write no new nonce without the operator, for instance after repeated foreign use of its key; what it has sent is still followed';
-- The process that sees a reorg is not always the one that owns the lane.
comment on column lanes.reopened is 'counts how often a reorg reopened transactions of the lane; its owner reads them again when it has changed';

-- Foreign use of a signer's key is an event: what rode under the nonce is queued again and the lane goes on. Counted in the database,
-- so that restarts and other processes agree on how often it happened.
create table foreign_nonces (
    network text,
    signer bytea,
    nonce bigint,
    transaction_hash bytea,
    found_at timestamptz not null default now(),
    constraint foreign_nonces_pkey primary key (network, signer, nonce),
    constraint foreign_nonces_belong_to_a_lane foreign key (network, signer) references lanes (network, signer),
    constraint foreign_nonces_are_natural check (nonce >= 0),
    constraint foreign_nonces_hash_has_32_bytes check (octet_length(transaction_hash) = 32)
);

comment on table foreign_nonces is 'account nonces of our signers that foreign transactions used';
comment on column foreign_nonces.network is 'CAIP-2';
comment on column foreign_nonces.nonce is 'account nonce';
comment on column foreign_nonces.transaction_hash is 'the foreign transaction; null when no endpoint could show it';
comment on column foreign_nonces.found_at is 'when it was confirmed; nonces found together count once';

create index foreign_nonces_recent on foreign_nonces (network, signer, found_at);

create table transactions (
    id uuid,
    network text not null,
    signer bytea not null,
    nonce bigint not null,
    epoch bigint not null,
    kind text not null,
    state text not null,
    hash bytea,
    succeeded boolean,
    block_number bigint,
    block_hash bytea,
    gas_used bigint,
    gas_price_wei numeric(78, 0),
    further_fee_wei numeric(78, 0) not null default 0,
    created_at timestamptz not null default now(),
    constraint transactions_pkey primary key (id),
    constraint transactions_one_per_nonce unique (network, signer, nonce),
    constraint transactions_belong_to_a_lane foreign key (network, signer) references lanes (network, signer),
    constraint transactions_kind_is_known check (kind in ('direct', 'batch', 'funding')),
    constraint transactions_state_is_known check (state in ('signed', 'mined', 'lost')),
    constraint transactions_located_iff_mined check (
        (state = 'mined') = (hash is not null and succeeded is not null and block_number is not null
            and block_hash is not null and gas_used is not null and gas_price_wei is not null)
    ),
    constraint transactions_hashes_have_32_bytes check (octet_length(hash) = 32 and octet_length(block_hash) = 32)
);

comment on table transactions is 'one account nonce: its use and its result';
comment on column transactions.epoch is 'epoch of the lane that wrote the nonce';
comment on column transactions.kind is 'direct: one settlement; batch: several, by Multicall3, each of which may fail alone; funding: native currency for a payer''s approval';
comment on column transactions.state is 'signed: its bytes are committed and may have been sent; mined: one of its attempts is in a canonical block; lost: a foreign transaction used the nonce';
comment on column transactions.hash is 'the attempt that was mined';
comment on column transactions.succeeded is 'status of the receipt; says nothing about single payments of a batch';
comment on column transactions.gas_price_wei is 'effective price per gas';
comment on column transactions.further_fee_wei is 'wei paid besides gas_used times gas_price_wei: a rollup''s fee for data, and unused gas where the limit is charged';

create index transactions_unmined on transactions (network, signer, nonce) where state = 'signed';
create index transactions_by_block on transactions (network, block_number) where state = 'mined';

-- Several attempts per transaction once its fee is bumped.
create table attempts (
    hash bytea,
    transaction_id uuid not null,
    sequence smallint not null,
    raw bytea not null,
    empty boolean not null default false,
    gas_limit bigint not null,
    max_fee_wei numeric(78, 0) not null,
    max_priority_fee_wei numeric(78, 0) not null,
    signed_at timestamptz not null default now(),
    broadcast text,
    broadcast_reason text,
    broadcast_at timestamptz,
    constraint attempts_pkey primary key (hash),
    constraint attempts_in_sequence unique (transaction_id, sequence),
    constraint attempts_belong_to_a_transaction foreign key (transaction_id) references transactions (id),
    constraint attempts_hash_has_32_bytes check (octet_length(hash) = 32),
    constraint attempts_broadcast_is_known check (broadcast in ('accepted', 'rejected', 'unknown')),
    constraint attempts_broadcast_has_a_time check ((broadcast is null) = (broadcast_at is null))
);

comment on table attempts is 'signed bytes, committed before they are sent';
comment on column attempts.sequence is 'position among the attempts of the transaction';
comment on column attempts.raw is 'EIP-2718 envelope; sending it again is harmless';
comment on column attempts.empty is 'an empty self-transfer that frees the nonce, in place of a content that is expired or that no node takes';
comment on column attempts.max_fee_wei is 'wei per gas';
comment on column attempts.max_priority_fee_wei is 'wei per gas';
-- For post-mortems; nothing is decided by the reply.
comment on column attempts.broadcast is 'latest reply of the endpoints; unknown: none that counts, the bytes may have been sent; null: none yet';
comment on column attempts.broadcast_reason is 'why it was rejected';
comment on column attempts.broadcast_at is 'time of the latest reply';

-- Calldata full of hashes does not get smaller by compression.
alter table attempts alter column raw set storage external;

create table transaction_payments (
    transaction_id uuid,
    position smallint,
    payment_id uuid not null,
    outcome text,
    constraint transaction_payments_pkey primary key (transaction_id, position),
    constraint transaction_payments_belong_to_a_transaction foreign key (transaction_id) references transactions (id),
    constraint transaction_payments_belong_to_a_payment foreign key (payment_id) references payments (id),
    constraint transaction_payments_outcome_is_known check (outcome in ('transferred', 'elsewhere', 'without_effect'))
);

comment on table transaction_payments is 'the payments of a transaction, and the result of each';
comment on column transaction_payments.position is 'index in the batch';
comment on column transaction_payments.outcome is 'null while the transaction is not mined, or its effect is not decided; elsewhere: another transaction moved this money';

create unique index transaction_payments_one_live_per_payment on transaction_payments (payment_id) where outcome is null;
create index transaction_payments_by_payment on transaction_payments (payment_id);

create function transaction_payments_are_of_its_signer() returns trigger language plpgsql as $$
begin
    -- Looked up row by row: a plan made while the tables are young would read them whole.
    if exists (
        select from riding
        where (select p.signer from payments p where p.id = riding.payment_id)
            <> (select t.signer from transactions t where t.id = riding.transaction_id)
    ) then
        raise exception 'a payment may ride in transactions of the signer that it names alone'
            using errcode = 'check_violation', constraint = 'transaction_payments_ride_with_their_signer';
    end if;
    return null;
end
$$;

create trigger transaction_payments_ride_with_their_signer after insert on transaction_payments
    referencing new table as riding for each statement execute function transaction_payments_are_of_its_signer();

-- Payers can keep the native currency that they get for the gas of their approvals, so it is counted.
create table fundings (
    payment_id uuid,
    network text not null,
    payer bytea not null,
    wei numeric(78, 0) not null,
    transaction_id uuid not null,
    created_at timestamptz not null default now(),
    constraint fundings_one_per_payment primary key (payment_id),
    constraint fundings_belong_to_a_payment foreign key (payment_id) references payments (id),
    constraint fundings_belong_to_a_transaction foreign key (transaction_id) references transactions (id),
    constraint fundings_payer_has_20_bytes check (octet_length(payer) = 20),
    constraint fundings_wei_is_positive check (wei > 0)
);

comment on table fundings is 'native currency given to a payer for gas, once per payment';
comment on column fundings.wei is 'what the payer lacked for its approval';
comment on column fundings.transaction_id is 'our transaction that carries it';

create index fundings_of_a_day on fundings (network, created_at) include (payer, wei);
