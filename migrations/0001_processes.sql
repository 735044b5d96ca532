-- Which x402d processes live. A process renews its lease every 3 s; database time alone decides who has died, so that
-- a wrong clock on one machine cannot take anything from another.
create table processes (
    id uuid,
    version text not null,
    started_at timestamptz not null default now(),
    lease_until timestamptz not null,
    ended_at timestamptz,
    constraint processes_pkey primary key (id)
);

comment on table processes is 'one row per started x402d process';
comment on column processes.version is 'version of the program, for the reader of a post-mortem';
comment on column processes.lease_until is 'the process counts as dead once this has passed';
comment on column processes.ended_at is 'set by an orderly shutdown; a killed process leaves it null';

-- The chain that a network name meant when this ledger was begun: a test chain that was started anew has the same chain id,
-- and nothing written about the old one is true on the new one.
create table networks (
    network text,
    genesis_hash bytea not null,
    first_seen_at timestamptz not null default now(),
    constraint networks_pkey primary key (network),
    constraint networks_name_is_caip2 check (network ~ '^eip155:[1-9][0-9]*$'),
    constraint networks_genesis_hash_has_32_bytes check (octet_length(genesis_hash) = 32)
);

comment on table networks is 'the identity of each chain that this ledger speaks of';
comment on column networks.genesis_hash is 'hash of block 0';
