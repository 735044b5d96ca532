-- A lane is one signer on one network. Exactly one process owns it, by lease; the epoch fences a process that slept through
-- the loss of its lease: it can send again what is written, but it can never write a new nonce.
create table lanes (
    network text,
    signer bytea,
    next_nonce bigint not null,
    epoch bigint not null,
    owner uuid,
    lease_until timestamptz not null,
    stopped_reason text,
    constraint lanes_pkey primary key (network, signer),
    constraint lanes_owned_by_a_process foreign key (owner) references processes (id),
    constraint lanes_network_is_caip2 check (network ~ '^eip155:[1-9][0-9]*$'),
    constraint lanes_signer_has_20_bytes check (octet_length(signer) = 20),
    constraint lanes_numbers_are_natural check (next_nonce >= 0 and epoch > 0)
);

comment on table lanes is '(network, signer): next nonce and who may use it';
comment on column lanes.next_nonce is 'first account nonce without bytes';
comment on column lanes.epoch is 'counts owners; part of every write of a nonce';
comment on column lanes.stopped_reason is 'set when the lane must not go on without the operator, for instance after foreign use of its key';

-- One row per account nonce of a signer that was ever used.
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
    created_at timestamptz not null default now(),
    constraint transactions_pkey primary key (id),
    constraint transactions_one_per_nonce unique (network, signer, nonce),
    constraint transactions_belong_to_a_lane foreign key (network, signer) references lanes (network, signer),
    constraint transactions_kind_is_known check (kind in ('direct')),
    constraint transactions_state_is_known check (state in ('signed', 'mined')),
    constraint transactions_located_iff_mined check (
        (state = 'mined') = (hash is not null and succeeded is not null and block_number is not null
            and block_hash is not null and gas_used is not null and gas_price_wei is not null)
    ),
    constraint transactions_hashes_have_32_bytes check (octet_length(hash) = 32 and octet_length(block_hash) = 32)
);

comment on table transactions is 'one account nonce: what it was used for and what became of it';
comment on column transactions.kind is 'direct: one transferWithAuthorization';
comment on column transactions.state is 'signed: its bytes are committed and may be on their way; mined: one of its attempts is in a canonical block';
comment on column transactions.hash is 'the attempt that was mined';
comment on column transactions.succeeded is 'status of the receipt; says nothing about single payments';
comment on column transactions.gas_price_wei is 'effective price per gas';

create index transactions_unmined on transactions (network, signer, nonce) where state = 'signed';
create index transactions_by_block on transactions (network, block_number) where state = 'mined';

-- The exact bytes that were or will be sent for a nonce. Several per transaction once fees are bumped.
create table attempts (
    hash bytea,
    transaction_id uuid not null,
    sequence smallint not null,
    raw bytea not null,
    gas_limit bigint not null,
    max_fee_wei numeric(78, 0) not null,
    max_priority_fee_wei numeric(78, 0) not null,
    signed_at timestamptz not null default now(),
    constraint attempts_pkey primary key (hash),
    constraint attempts_in_sequence unique (transaction_id, sequence),
    constraint attempts_belong_to_a_transaction foreign key (transaction_id) references transactions (id),
    constraint attempts_hash_has_32_bytes check (octet_length(hash) = 32)
);

comment on table attempts is 'signed bytes, written before they are sent';
comment on column attempts.raw is 'EIP-2718 envelope; sending it again is harmless';

-- Which payments ride in which transaction.
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

comment on table transaction_payments is 'the rows of a transaction and what became of each';
comment on column transaction_payments.outcome is 'null while undecided; elsewhere: another transaction moved this money';

create unique index transaction_payments_one_live_per_payment on transaction_payments (payment_id) where outcome is null;
create index transaction_payments_by_payment on transaction_payments (payment_id);
