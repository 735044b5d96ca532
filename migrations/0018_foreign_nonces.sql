-- A signer's key that is used elsewhere is an event: what rode in the nonce is queued again and the lane goes on. Counted here, so that
-- restarts and replicas agree on how often it has happened.
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

comment on table foreign_nonces is 'nonces of our signers that transactions of somebody else have used';
comment on column foreign_nonces.network is 'CAIP-2';
comment on column foreign_nonces.signer is 'whose key was used elsewhere';
comment on column foreign_nonces.nonce is 'the account nonce that is gone';
comment on column foreign_nonces.transaction_hash is 'the transaction that used it; null when no endpoint could show it';
comment on column foreign_nonces.found_at is 'when it was settled at the promised confirmations; nonces that were found together count once';

create index foreign_nonces_recent on foreign_nonces (network, signer, found_at);
