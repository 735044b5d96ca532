-- Sessions: the terms of one purchase, fixed before any money moves. And the plain transfers that may pay them.
create table sessions (
    id text,
    cancel_token_hash bytea not null,
    client text not null,
    x402_version smallint not null,
    rail text not null,
    network text not null,
    asset bytea not null,
    payer bytea not null,
    payee bytea not null,
    amount numeric(78, 0) not null,
    accepted text not null,
    requirements_hash bytea not null,
    nonce bytea not null,
    resource_id text,
    resource text,
    client_reference text,
    accept_from_block bigint not null,
    confirmations integer not null,
    expires_at timestamptz not null,
    state text not null default 'open',
    payment_id uuid,
    created_at timestamptz not null default now(),
    constraint sessions_pkey primary key (id),
    constraint sessions_one_per_nonce unique (nonce),
    constraint sessions_one_per_payment unique (payment_id),
    constraint sessions_belong_to_a_payment foreign key (payment_id) references payments (id),
    constraint sessions_id_is_well_formed check (id ~ '^ps_[0-9a-hjkmnp-tv-z]{26}$'),
    constraint sessions_version_is_known check (x402_version in (1, 2)),
    constraint sessions_rail_is_known check (rail in ('authorization', 'transfer')),
    constraint sessions_transfer_is_v2 check (rail <> 'transfer' or x402_version = 2),
    constraint sessions_network_is_caip2 check (network ~ '^eip155:[1-9][0-9]*$'),
    constraint sessions_addresses_have_20_bytes check (
        octet_length(asset) = 20 and octet_length(payer) = 20 and octet_length(payee) = 20
    ),
    constraint sessions_hashes_have_32_bytes check (
        octet_length(cancel_token_hash) = 32 and octet_length(requirements_hash) = 32 and octet_length(nonce) = 32
    ),
    constraint sessions_amount_is_positive_uint256 check (amount > 0 and amount < 2::numeric ^ 256),
    constraint sessions_confirmations_is_positive check (confirmations > 0),
    constraint sessions_state_is_known check (state in ('open', 'cancelled', 'expired'))
);

comment on table sessions is 'terms of one purchase: an entry of a seller''s accepts, its rail and expiry, and its payment once there is one';
comment on column sessions.cancel_token_hash is 'keccak-256 of the token that the answer carried';
comment on column sessions.client is 'network address of the caller that opened it (IPv6: its /56); limits of open sessions count by it';
comment on column sessions.rail is 'authorization: EIP-3009, we pay for gas; transfer: a plain transfer, the payer pays for gas';
comment on column sessions.amount is 'atomic units of the asset';
comment on column sessions.accepted is 'the entry of accepts as canonical JSON (RFC 8785)';
comment on column sessions.requirements_hash is 'keccak-256 of accepted';
comment on column sessions.nonce is 'keccak-256 over id and requirements_hash: nonce of the authorization, tag of the transfer';
comment on column sessions.resource_id is 'extra.resourceId of the entry: binds the session to a route of the seller';
comment on column sessions.resource is 'what is bought, as the buyer named it; never checked';
comment on column sessions.client_reference is 'the buyer''s own name for the purchase';
comment on column sessions.accept_from_block is 'a transfer counts from this block on';
comment on column sessions.expires_at is 'money that moves later, by the block''s time, does not count; validBefore of the authorization';
comment on column sessions.state is 'open, cancelled or expired; whether it is paid stands in its payment';

create index sessions_open_by_client on sessions (client, created_at) where state = 'open' and payment_id is null;
create index sessions_open_by_expiry on sessions (expires_at) where state = 'open' and payment_id is null;
create index sessions_without_payment on sessions (created_at) where payment_id is null;

-- Payers' own transactions.
create table transfers (
    payment_id uuid,
    network text not null,
    hash bytea not null,
    account_nonce bigint not null,
    raw bytea,
    submitted_at timestamptz not null default now(),
    constraint transfers_pkey primary key (payment_id),
    constraint transfers_belong_to_a_payment foreign key (payment_id) references payments (id),
    constraint transfers_one_per_transaction unique (network, hash),
    constraint transfers_hash_has_32_bytes check (octet_length(hash) = 32),
    constraint transfers_raw_is_bounded check (octet_length(raw) between 1 and 8192)
);

comment on table transfers is 'one plain ERC-20 transfer that pays one session';
comment on column transfers.account_nonce is 'the payer''s account nonce: once another transaction has used it, this one can never be mined';
comment on column transfers.raw is 'signed bytes, when they were handed to us: written before they are sent';
